"""Rows of tables in plain torch: which rows ids name, and what they are as numbers, for the pieces that do not pool."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .layout import Term
from .operands import Operands

Part = Callable[[Operands], Tensor]


def rows_beside(run: tuple[Term, ...]) -> Part:
    """Rows of one table side by side: [R, n * D]."""
    t, n = run[0], sum(t.count for t in run)
    transform = moves_of(run)

    def one(o: Operands) -> Tensor:
        i = o.ids[t.ids]
        i = i.select(1, t.first) if i.dim() > 1 else i
        table = o.tables[t.source]
        return torch.index_select(table, 0, i if transform is None else transform(i, table))

    def several(o: Operands) -> Tensor:
        i = o.ids[t.ids].narrow(1, t.first, n)
        table = o.tables[t.source]
        rows = torch.index_select(table, 0, (i if transform is None else transform(i, table)).reshape(-1))
        return rows.view(i.shape[0], n * table.shape[1])

    return one if n == 1 else several


def moves_of(run: Sequence[Term]) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The rows of a table that ids name; a vector over the columns where the terms shift them differently."""
    moved = _moved(run)
    if not run[0].wraps:
        return moved and (lambda i, _: moved(i))

    def wrapped(i: Tensor, table: Tensor) -> Tensor:
        i = moved(i) if moved else i
        return torch.where(i < 0, i + table.size(0), i)

    return wrapped


def _moved(run: Sequence[Term]) -> Callable[[Tensor], Tensor] | None:
    """Remainder and shift of ids."""
    pairs = [(t.modulus, t.shift) for t in run for _ in range(max(t.count, 1))]
    if not any(map(any, pairs)):
        return None
    if len(set(pairs)) == 1:
        modulus, shift = pairs[0]

        def same(i: Tensor) -> Tensor:
            # A modulus past the type's range changes no id but a negative one.
            if (modulus and modulus > torch.iinfo(i.dtype).max) or shift > torch.iinfo(i.dtype).max:
                i = i.long()
            if modulus:  # the lowest bits are the remainder by a power of two, in a quarter of the time
                i = i & (modulus - 1) if modulus & (modulus - 1) == 0 else torch.remainder(i, modulus)
            return i + shift if shift else i

        return same
    if any(m for m, _ in pairs):
        each = [_moved((t,)) for t in run]

        def differing(i: Tensor) -> Tensor:
            columns = torch.split(i, [t.count for t in run], 1)
            return torch.cat([c if f is None else f(c) for c, f in zip(columns, each, strict=True)], 1)

        return differing
    shifts = tuple(s for _, s in pairs)
    return lambda i: i + _shifts(shifts, i)


def _shifts(shifts: tuple[int, ...], like: Tensor) -> Tensor:
    if like.is_cuda or is_traced():
        return torch.tensor(shifts, dtype=torch.int64).to(like.device)
    return _kept_shifts(shifts)


@functools.lru_cache(maxsize=256)
def _kept_shifts(shifts: tuple[int, ...]) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(shifts, dtype=torch.int64)


def rows_of_ids(t: Term, scale: int, o: Operands, i: Tensor) -> Tensor:
    """Rows as numbers, [N, D]."""
    if t.once:
        table, places = distinct_rows(t, scale, o, i)
        return torch.index_select(table, 0, places)
    return _numbers(t, scale, o, i)


def distinct_rows(t: Term, scale: int, o: Operands, i: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows that ids name, as numbers, and the place of every id's row among them."""
    distinct, places = torch.unique(i, return_inverse=True)
    return _numbers(t, scale, o, distinct), places


def _numbers(t: Term, scale: int, o: Operands, i: Tensor) -> Tensor:
    rows = torch.index_select(o.tables[t.source], 0, i)
    if not t.bits:
        return rows.float() if t.wide else rows
    if t.bits == 4:
        rows = torch.stack((rows & 15, rows >> 4), -1).flatten(1)[:, : t.values or None]
    s = torch.index_select(o.scales[scale], 0, i)
    return rows.float().mul_(s[:, :1]).add_(s[:, 1:])


def flat_ids(t: Term) -> Part:
    transform = moves_of((t,))

    def flat(o: Operands) -> Tensor:
        i = o.ids[t.ids]
        if not t.ragged and i.dim() > 1:
            i = i.narrow(1, t.first, t.count).reshape(-1)
        return i if transform is None else transform(i, o.tables[t.source])

    return flat


def flat_weights(t: Term, o: Operands) -> Tensor | None:
    if t.weights is None:
        return None
    w = o.weights[t.weights]
    if t.ragged:
        return w.reshape(-1)
    return (w if w.dim() > 1 else w[:, None]).narrow(1, t.weights_first, t.count).reshape(-1)


def weighted_rows(t: Term, scale: int) -> Part:
    """Rows times their weights, zeros where the id is the pad: [R, n * D]."""

    flat = flat_ids(t)

    def rows(o: Operands) -> Tensor:
        i, w = flat(o), flat_weights(t, o)
        live = live_ids(t, i, o.tables[t.source].shape[0])
        found = rows_of_ids(t, scale, o, i if live is None or not t.inside else torch.where(live, i, 0))
        dtype = found.dtype
        if w is not None:
            found = found * w[:, None]
        if live is not None:
            found = found.masked_fill(~live[:, None], 0)
        if t.factor != 1:
            found = found * t.factor
        return found.to(dtype).view(i.shape[0] // t.count, t.count * found.shape[1])

    return rows


def live_ids(t: Term, i: Tensor, height: int) -> Tensor | None:
    """Whether rows are neither the pad nor, where that is no error, outside of their table; None where all are."""
    live = None if t.pad is None else torch.ne(i, t.pad)
    if t.inside:
        there = (i >= 0) & (i < height)
        live = there if live is None else live & there
    return live


def is_traced() -> bool:
    """Whether tensors stand for others, which no later call may meet."""
    return torch._C._get_tracing_state() is not None or torch._C._len_torch_dispatch_stack() > 0
