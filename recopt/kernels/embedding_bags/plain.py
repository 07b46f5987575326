"""``recopt::embedding_bags`` in plain torch: the kernel's reference, and the path on a CPU.

A layout becomes a list of functions once, so that a call at batch 1 pays for its lookups and not for reading text.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .ids import resolved
from .layout import Layout, Term, extends, parse_layout, sums_of
from .operands import Operands, check_operands, rows_of
from .plain_bags import every_so_many, pooled_rows
from .plain_rows import Part, is_traced, moves_of, rows_beside, weighted_rows
from .small import small
from .small_calls import held


def embedding_bags_torch(
    tables: Sequence[Tensor], ids: Sequence[Tensor], offsets: Sequence[Tensor], weights: Sequence[Tensor],
    dense: Sequence[Tensor], scales: Sequence[Tensor], layout: str,
) -> Tensor:  # fmt: skip
    """The pieces of ``layout`` side by side, [R, W]; see embedding_bags_layout.

    Raises EmbeddingBagsError; IndexError or RuntimeError for an id that its table does not hold, as torch does.
    """
    try:
        function = None if (tables or dense)[0].is_cuda or is_traced() else small(layout)
        if function is not None and (found := function(tables, ids, offsets, weights, dense)) is not None:
            return found
    except (IndexError, RuntimeError):
        pass  # ids that no table holds may be such as do not count, which is for the general way to say
    try:
        return _compile(layout)(Operands(tables, ids, offsets, weights, dense, scales))
    except (IndexError, RuntimeError):
        # Looked at only now: at batch 1 a look costs as much as a lookup.
        check_operands(parse_layout(layout), Operands(tables, ids, offsets, weights, dense, scales))
        raise


@functools.lru_cache(maxsize=4096)
def _compile(text: str) -> Part:
    first = resolved(text)
    if first is not None:
        lookups, operands = _compile(first.text), first.operands
        return lambda o: lookups(operands(o))
    layout = parse_layout(text)
    runs: list[tuple[Term, ...] | Part] = []  # single rows of one table that lie side by side: one index_select
    for piece in layout.pieces:
        t = piece[0]
        if len(piece) > 1 or not _plain(t):
            runs.append(_piece(piece, layout))
        elif runs and isinstance(runs[-1], tuple) and extends(runs[-1][-1], t):
            runs[-1] = (*runs[-1], t)
        else:
            runs.append((t,))
    every = _every(runs)
    if len(runs) == 1:
        return lambda o: every(o)[0]
    return lambda o: torch.cat(every(o), 1)


def _plain(t: Term) -> bool:
    """Whether a term is rows as they are stored."""
    return t.pool == "row" and t.bare


def _every(runs: Sequence[tuple[Term, ...] | Part]) -> Callable[[Operands], list[Tensor]]:
    """The results of all runs. Single columns of one id tensor are taken apart at once: 67 us for 26, not 97."""
    parts: list[tuple[bool, Any]] = []
    for (ids, single), group in itertools.groupby(runs, _column_of):
        found = list(group)
        if single and len(found) > 2:
            parts.append((True, _columns(ids, [run[0] for run in found if isinstance(run, tuple)])))
        else:
            parts += [(False, rows_beside(run) if isinstance(run, tuple) else run) for run in found]
    if len(parts) == 1 and parts[0][0]:
        whole: Callable[[Operands], list[Tensor]] = parts[0][1]
        return whole

    def every(o: Operands) -> list[Tensor]:
        results: list[Tensor] = []
        for many, part in parts:
            if many:
                results += part(o)
            else:
                results.append(part(o))
        return results

    return every


def _column_of(run: tuple[Term, ...] | Part) -> tuple[int, bool]:
    """The ids of a run, and whether it is one column of them as it is."""
    if not isinstance(run, tuple):
        return -1, False
    t = run[0]
    return t.ids, len(run) == t.count == 1 and not (t.modulus or t.shift or t.wraps)


def _columns(ids: int, terms: Sequence[Term]) -> Callable[[Operands], list[Tensor]]:
    sources, firsts = [t.source for t in terms], [t.first for t in terms]
    in_order = firsts == list(range(len(firsts)))

    def columns(o: Operands) -> list[Tensor]:
        i = o.ids[ids]
        if i.dim() == 1:
            apart: Sequence[Tensor] = [i] * len(firsts)
        elif in_order and i.size(1) == len(firsts):
            apart = i.unbind(1)
        elif i.size(1) <= 2 * len(firsts):
            whole = i.unbind(1)
            apart = [whole[n] for n in firsts]
        else:
            apart = [i.select(1, n) for n in firsts]
        return list(map(torch.embedding, [o.tables[n] for n in sources], apart))

    return columns


# Terms that are added one by one; more are stacked, which is two operators instead of as many as there are terms.
_CHAIN = 3


def _piece(piece: Sequence[Term], layout: Layout) -> Part:
    runs: list[tuple[Term, ...] | Part] = []
    for run in sums_of(piece):
        t = run[0]
        if len(run) > 1:
            runs.append(_sum_of(run))
        else:
            runs.append(run if _plain(t) and t.count == 1 else _term(t, layout))
    every = _every(runs)
    if len(runs) == 1:
        return lambda o: every(o)[0]

    def add(o: Operands) -> Tensor:
        terms = every(o)
        if len(terms) > _CHAIN:
            return torch.stack(terms).sum(0)
        total = terms[0]
        for term in terms[1:]:
            if term.shape != total.shape:  # add would stretch one row over all
                raise RuntimeError(f"terms of shapes {list(total.shape)} and {list(term.shape)}")
            total = total + term
        return total

    return add


def _sum_of(run: tuple[Term, ...]) -> Part:
    """A sum of rows whose ids are shifted by their columns: one bag."""
    t, n = run[0], sum(x.count for x in run)
    transform = moves_of(run)

    def bag(o: Operands) -> Tensor:
        i, table = o.ids[t.ids].narrow(1, t.first, n), o.tables[t.source]
        i = (i if transform is None else transform(i, table)).reshape(-1)
        out = torch.embedding_bag(held(table), i, every_so_many(n, i), False, 0, False, None, False)[0]
        return out if t.factor == 1 else out * t.factor

    return bag


def _term(t: Term, layout: Layout) -> Part:
    if t.pool == "dense":
        return _again(t, layout) if t.every else lambda o: _matrix(o.dense[t.source])
    if t.lookup and t.bare:
        return rows_beside((t,))
    scale = layout.quantised.get(t.source, 0)
    return weighted_rows(t, scale) if t.pool == "row" else pooled_rows(t, scale)


def _matrix(x: Tensor) -> Tensor:
    return x if x.dim() > 1 else x[:, None]


def _again(t: Term, layout: Layout) -> Part:
    """The rows of a dense tensor, again and again: [R, C]."""

    def rows(o: Operands) -> Tensor:
        x, count = _matrix(o.dense[t.source]), rows_of(layout, o)
        # a row that is the same everywhere, and rows that fit, need no copy
        return x.expand(count, -1) if t.every == 1 else x.repeat(-(-count // t.every), 1)[:count]

    return rows
