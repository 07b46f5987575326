"""Reshapes around `recopt::embedding_bags` that a module does not need: its ids [B, T] are rows [B * T, 1] and back.

    reshape(x, [-1, 1]); embedding_bags; reshape(y, [-1, T, W])  ->  one call, which takes the dimensions as they are

The host's graph keeps them, as the operator's contract is rows. At batch 1 they are a fifth of a lookup's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from ..kernels.embedding_bags.layout import parse_layout
from .fx_operators import at_once, embedding_bags_call


def embedding_bags_spread(
    tables: list[Tensor], ids: list[Tensor], weights: list[Tensor], dense: list[Tensor], layout: str, rank: int,
    fixed: tuple[int, ...],
) -> Tensor:  # fmt: skip
    """The embedding bags of ids [*S, C] or [*S], weights and dense tensors likewise: [*S, W].

    `rank` is that of S, `fixed` are the dense tensors whose rows come again and again, which are as the operator takes
    them. Raises what `recopt::embedding_bags` does.
    """
    found = at_once(tables, ids, (), weights, dense, layout, rank)
    if found is not None:
        return found

    def rows(x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1] if x.dim() > rank else 1)

    flat = [rows(x) if n not in fixed else x for n, x in enumerate(dense)]
    y = embedding_bags_call(tables, list(map(rows, ids)), [], list(map(rows, weights)), flat, [], layout)
    return y.reshape(*ids[0].shape[:rank], y.shape[-1])


def spread(graph: fx.Graph) -> None:
    """Take the reshapes away in a module's graph."""
    for node in graph.find_nodes(op="call_function", target=embedding_bags_call):
        found = _spread(node)
        if found is None:
            continue
        args, space = found
        with graph.inserting_before(node):
            whole = graph.call_function(embedding_bags_spread, args)
        whole.meta["is_wrapped"] = True
        shape, users = (*space, (_shape(node) or ("",))[-1]), list(node.users)
        node.replace_all_uses_with(whole)
        for user in users:
            if _shape(user) == shape:
                whole.meta.update(user.meta)
                user.replace_all_uses_with(whole)
                graph.erase_node(user)
        rows = [n for n in dict.fromkeys(node.all_input_nodes) if n.target is torch.reshape]
        for old in (node, *rows):
            if not old.users:
                graph.erase_node(old)


def _spread(node: fx.Node) -> tuple[tuple[Any, ...], tuple[str, ...]] | None:
    """The arguments of the call that stands for a node between reshapes, and the dimensions in the place of its rows.
    None where they are rows anyway."""
    tables, ids, offsets, weights, dense, scales, layout = cast("tuple[list[fx.Node], ...]", node.args)
    first = _before(ids[0]) if ids else None
    if offsets or scales or first is None or not all(user.target is torch.reshape for user in node.users):
        return None
    single = (_shape(ids[0]) or ("",))[-1] != first[-1]
    space = first if single else first[:-1]
    fixed = tuple({t.source for t in parse_layout(str(layout)).terms if t.every})
    given = [_given(x, space) for x in (*ids, *weights)]
    rows = [x if n in fixed else _given(x, space) for n, x in enumerate(dense)]
    if len(space) < 2 or None in given or None in rows:
        return None
    return (tables, given[: len(ids)], given[len(ids) :], rows, layout, len(space), fixed), space


def _before(x: fx.Node) -> tuple[str, ...] | None:
    """The shape of what was reshaped."""
    source = x.args[0] if x.target is torch.reshape else None
    return _shape(source) if isinstance(source, fx.Node) else None


def _given(x: fx.Node, space: Sequence[str]) -> fx.Node | None:
    """What was reshaped to rows and columns, where it has the dimensions of the result before these."""
    shape = _before(x)
    if shape is None or shape[: len(space)] != space or len(shape) > len(space) + 1:
        return None
    columns = shape[-1] if len(shape) > len(space) else "1"
    return cast(fx.Node, x.args[0]) if (_shape(x) or ("",))[-1] == columns else None


def _shape(node: fx.Node) -> tuple[str, ...] | None:
    value = node.meta.get("val")
    return tuple(map(str, value.shape)) if isinstance(value, Tensor) else None
