"""Reshapes around `recopt::embedding_bags` that a module does not need: its ids [B, T] are rows [B * T, 1] and back.

    reshape(x, [-1, 1]); embedding_bags; reshape(y, [-1, T, W])  ->  one call, which takes the dimensions as they are
    reshape(x, [-1, 2 * D]); embedding_bags; reshape(y, [-1, P, D])  ->  one call, which leaves the rows apart

The host's graph keeps them, as the operator's contract is rows. At batch 1 they are a fifth of a lookup's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, fx

from ..kernels.embedding_bags.layout import Term, parse_layout
from ..kernels.embedding_bags.small_source import joins
from .fx_operators import at_once, embedding_bags_call


def embedding_bags_spread(
    tables: list[Tensor], ids: list[Tensor], weights: list[Tensor], dense: list[Tensor], layout: str, rank: int,
    fixed: tuple[int, ...], apart: int = 0,
) -> Tensor:  # fmt: skip
    """The embedding bags of ids [*S, C] or [*S], weights and dense tensors likewise: [*S, W].

    `rank` is that of S, `fixed` are the dense tensors whose rows come again and again, which are as the operator takes
    them. Where the result is rows of one width they may stay `apart`, as many as it says: dense tensors are
    [*S, n, D], the result is [*S, apart, D]. Raises what `recopt::embedding_bags` does.
    """
    found = at_once(tables, ids, (), weights, dense, layout, rank, apart > 0)
    if found is not None:
        return found

    def rows(x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1] if x.dim() > rank else 1)

    flat = [rows(x.flatten(rank) if apart else x) if n not in fixed else x for n, x in enumerate(dense)]
    y = embedding_bags_call(tables, list(map(rows, ids)), [], list(map(rows, weights)), flat, [], layout)
    width = (apart, y.shape[-1] // apart) if apart else (y.shape[-1],)
    return y.reshape(*ids[0].shape[:rank], *width)


def spread(graph: fx.Graph) -> None:
    """Take the reshapes away in a module's graph."""
    for node in graph.find_nodes(op="call_function", target=embedding_bags_call):
        found = _spread(node)
        if found is None:
            continue
        args, shape = found
        with graph.inserting_before(node):
            whole = graph.call_function(embedding_bags_spread, args)
        whole.meta["is_wrapped"] = True
        users = list(node.users)
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
    """The arguments of the call that stands for a node between reshapes, and the shape of its result. None where its
    operands and result are rows anyway."""
    tables, ids, offsets, weights, dense, scales, layout = cast("tuple[list[fx.Node], ...]", node.args)
    if not ids or offsets or scales or not all(user.target is torch.reshape for user in node.users):
        return None
    first, own = _before(ids[0]), _shape(ids[0]) or ("",)
    space = own[:1] if first is None else first if own[-1] != first[-1] else first[:-1]
    fixed = tuple({t.source for t in parse_layout(str(layout)).terms if t.every})
    given = [_given(x, space) for x in (*ids, *weights)]
    rows = [x if n in fixed else _given(x, space) for n, x in enumerate(dense)]
    apart = _apart(node, space, fixed)
    if apart is not None:
        rows, shape = apart
    elif len(space) < 2:
        return None
    else:
        shape = (*space, (_shape(node) or ("",))[-1])
    if None in given or None in rows:
        return None
    args = (tables, given[: len(ids)], given[len(ids) :], rows, layout, len(space), fixed)
    return (args if apart is None else (*args, int(shape[-2]))), shape


def _apart(
    node: fx.Node, space: Sequence[str], fixed: Sequence[int]
) -> tuple[list[fx.Node | None], tuple[str, ...]] | None:
    """The dense operands before they were rows, and the shape, of a result that is only used as rows of one width, some
    of which lie below each other already. None where it is not such."""
    tables, _, _, _, dense, _, text = cast("tuple[list[fx.Node], ...]", node.args)
    shapes = {_shape(user) for user in node.users}
    shape = shapes.pop() if len(shapes) == 1 else None
    if shape is None or shape[:-2] != (*space,) or not shape[-2].isdigit() or fixed:
        return None
    whole = [n.args[0] if n.target is torch.reshape else n for n in dense]
    given = [_shape(n) if isinstance(n, fx.Node) else None for n in whole]
    if any(s is None or s[:-2] != (*space,) or s[-1] != shape[-1] for s in given):
        return None
    pieces = parse_layout(str(text)).pieces
    below = any(len(a) == len(b) == 1 and joins(a[0], b[0]) for a, b in pairwise(pieces))
    for piece in pieces:
        rows = {str((given[t.source] or "")[-2]) if t.pool == "dense" else str(_count(t)) for t in piece}
        widths = {(_shape(tables[t.source]) or ("",))[-1] for t in piece if t.pool != "dense"}
        if len(rows) > 1 or widths - {shape[-1]} or (len(piece) > 1 and any(t.pool == "dense" for t in piece)):
            return None
        below |= rows != {"1"}
    return (cast("list[fx.Node | None]", whole), shape) if below else None


def _count(t: Term) -> int:
    return t.count if t.pool == "row" else 1


def _before(x: fx.Node) -> tuple[str, ...] | None:
    """The shape of what was reshaped."""
    source = x.args[0] if x.target is torch.reshape else None
    return _shape(source) if isinstance(source, fx.Node) else None


def _given(x: fx.Node, space: Sequence[str]) -> fx.Node | None:
    """What was reshaped to rows and columns, where it has the dimensions of the result before these."""
    shape = _before(x)
    if shape is None and len(space) == 1 and (_shape(x) or ())[:1] == (*space,):
        return x
    if shape is None or shape[: len(space)] != space or len(shape) > len(space) + 1:
        return None
    columns = shape[-1] if len(shape) > len(space) else "1"
    return cast(fx.Node, x.args[0]) if (_shape(x) or ("",))[-1] == columns else None


def _shape(node: fx.Node) -> tuple[str, ...] | None:
    value = node.meta.get("val")
    return tuple(map(str, value.shape)) if isinstance(value, Tensor) else None
