"""Bags of rows in plain torch, over torch's own embedding_bag: which ids count, and what a sum is divided by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .layout import Term
from .operands import Operands
from .plain_rows import Part, distinct_rows, flat_ids, flat_weights, is_traced, live_ids, rows_of_ids
from .small_calls import even, held

_MODES = {"sum": 0, "max": 2}


def pooled_rows(t: Term, scale: int) -> Part:
    """A bag of rows pooled, over embedding_bag: [R, D]."""
    mode, flat = _MODES[t.pool], flat_ids(t)
    hides = t.pad is not None or t.inside or t.mask is not None
    plain_mean = t.div == (1.0, 0.0) and t.weights is None and not hides and t.over is None
    # torch's own mean of a fixed number is slower than the sum over that number.
    over = float(t.count) if plain_mean and t.count and t.lengths is None else None
    mode = 1 if plain_mean and over is None else mode
    counted = t.div is not None and not plain_mean
    gathered = ((t.bits > 0 or t.wide) and not t.once) or (t.pool == "max" and t.weights is not None)

    def bag(o: Operands) -> Tensor:
        i, w = flat(o), flat_weights(t, o)
        bounds, last = _bounds(t, o, i)
        if t.lengths is not None:
            i, w, bounds = _shorten(t, o, i, w)
        table = o.tables[t.source]
        padded = t.pad is not None and t.pool == "sum" and not (gathered or t.bits or t.wide or t.inside)
        if padded and t.pad is not None and _is_finite(table, t.pad):
            # Weights of zero are faster than shorter bags, and exact where the pad's row is finite.
            live = torch.ne(i, t.pad)
            w = live.to(table.dtype) if w is None else torch.where(live, w.to(table.dtype), 0.0)
        elif hides:
            i, w, bounds, last = _without_pad(t, o, i, w, bounds, last)
        if t.once and not gathered:
            table, i = distinct_rows(t, scale, o, i)
            bounds = bounds.long()
        # Weights that the table's type does not hold are multiplied in their own.
        if gathered or (w is not None and w.dtype != table.dtype and table.dtype.itemsize < 4):
            out = _gathered_bag(
                table[i] if t.once and not gathered else rows_of_ids(t, scale, o, i), w, bounds, last, mode
            )
        else:
            if w is not None and w.dtype != table.dtype:
                w = w.to(table.dtype)
            out = torch.embedding_bag(held(table), i, bounds, False, mode, False, w, last)[0]
        if over is not None:
            out = out.div_(over) if not out.requires_grad else out / over
        if counted:
            out = out / (_counts(t, i, w, bounds, last) if t.over is None else _given(t, o)).unsqueeze(1)
        if t.factor != 1:
            out = out * t.factor
        if t.otherwise != 0:
            empty = (bounds.diff() if last else torch.diff(bounds, append=bounds.new_tensor([i.shape[0]]))) == 0
            out = torch.where(empty.unsqueeze(1), t.otherwise, out)
        dtype = torch.float32 if t.bits or t.wide else table.dtype
        return out if out.dtype == dtype else out.to(dtype)

    def plain(o: Operands) -> Tensor:
        i = flat(o)
        bounds, last = _bounds(t, o, i)
        return torch.embedding_bag(held(o.tables[t.source]), i, bounds, False, mode, False, None, last)[0]

    def largest(o: Operands) -> Tensor:
        i, table = flat(o), o.tables[t.source]
        return torch.index_select(table, 0, i).view(-1, t.count, table.shape[1]).amax(1)

    if t.pool == "max" and hides and t.count and t.lengths is None and not (gathered or t.bits or t.once):
        return _largest_shown(t)
    simple = t.bare and t.lengths is None and not counted and over is None and t.otherwise == 0
    if simple and t.pool == "max" and t.count:
        return largest
    return plain if simple else bag


def _largest_shown(t: Term) -> Part:
    """The maximum of the rows that count, of a fixed number: to hide the others is faster than to leave them out."""
    flat = flat_ids(t)

    def largest(o: Operands) -> Tensor:
        i, table = flat(o), o.tables[t.source]
        live = _counting(t, o, i)
        i = torch.where(live, i, 0) if t.inside else i
        hidden = ~live.view(-1, t.count, 1)
        rows = torch.index_select(table, 0, i).view(-1, t.count, table.shape[1]).masked_fill_(hidden, -math.inf)
        return rows.amax(1).masked_fill(hidden.all(1), t.otherwise)

    return largest


def _is_finite(table: Tensor, row: int) -> bool:
    """Whether a row of a table of at least float32 holds neither inf nor nan."""
    # A sum that is finite has no other terms; one that overflows only goes the slower way.
    return table.dtype.itemsize >= 4 and row < table.size(0) and math.isfinite(table.select(0, row).sum().item())


def _gathered_bag(rows: Tensor, w: Tensor | None, bounds: Tensor, last: bool, mode: int) -> Tensor:
    """Bags of rows that lie one after the other."""
    if w is not None:
        wide = torch.promote_types(rows.dtype, torch.float32)
        rows = rows.to(wide) * w[:, None].to(wide)
    i = torch.arange(rows.shape[0], device=rows.device, dtype=bounds.dtype)
    return torch.embedding_bag(rows, i, bounds, False, mode, False, None, last)[0]


def _without_pad(
    t: Term, o: Operands, i: Tensor, w: Tensor | None, bounds: Tensor, last: bool
) -> tuple[Tensor, Tensor | None, Tensor, bool]:
    """The ids that count, their weights, and where their bags begin and end."""
    live = _counting(t, o, i)
    if t.ragged or t.lengths is not None:
        counts = _segment_sums(live.float(), bounds, last).to(bounds.dtype)
    else:
        counts = live.view(-1, t.count).sum(1)
    kept = torch.masked_select(i, live)
    return kept, None if w is None else torch.masked_select(w, live), _ends(counts).to(i.dtype), True


def _counting(t: Term, o: Operands, i: Tensor) -> Tensor:
    """Which ids count, flat. Raises IndexError where the pad is one of them and no row."""
    height = o.tables[t.source].shape[0]
    live = live_ids(t, i, height)
    if t.pad is not None and t.pad >= height and not t.inside and live is not None and not bool(live.all()):
        raise IndexError(f"{t}: the pad is no row of a table of {height}")
    if t.mask is not None:
        given = o.weights[t.mask]
        given = given if t.ragged or given.dim() < 2 else given.narrow(1, t.mask_first, t.count)
        given = given.reshape(-1).bool() != t.unmask
        live = given if live is None else live & given
    assert live is not None
    return live


def _given(t: Term, o: Operands) -> Tensor:
    """max(n, LO) + EPS, where an operand is n."""
    assert t.div is not None and t.over is not None
    n = o.offsets[t.over]
    return (n if n.is_floating_point() else n.float()).clamp(min=t.div[0]) + t.div[1]


def _bounds(t: Term, o: Operands, i: Tensor) -> tuple[Tensor, bool]:
    """Where bags begin in the flat ids, and whether the end of the last stands there too."""
    if t.offsets is not None:
        bounds = o.offsets[t.offsets]
        return bounds if bounds.dtype == i.dtype else bounds.to(i.dtype), t.last
    return every_so_many(t.count, i), False


def every_so_many(count: int, i: Tensor) -> Tensor:
    """Where bags of `count` ids begin."""
    if i.is_cuda or is_traced():
        return torch.arange(0, i.shape[0], count, dtype=i.dtype, device=i.device)
    return even(i.shape[0], count, i.dtype)


def _ends(counts: Tensor) -> Tensor:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def _shorten(t: Term, o: Operands, i: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Ids, weights and bounds of bags cut to their lengths: what is cut off is not read."""
    assert t.lengths is not None
    lengths = o.offsets[t.lengths].clamp(0, t.count)
    live = (torch.arange(t.count, device=i.device) < lengths[:, None]).view(-1)
    return i[live], None if w is None else w[live], _ends(lengths)[:-1].to(i.dtype)


def _segment_sums(v: Tensor, bounds: Tensor, last: bool) -> Tensor:
    i = torch.arange(v.shape[0], device=v.device, dtype=bounds.dtype)
    return torch.embedding_bag(v[:, None], i, bounds, False, 0, False, None, last)[0][:, 0]


def _counts(t: Term, i: Tensor, w: Tensor | None, bounds: Tensor, last: bool) -> Tensor:
    """max(n, LO) + EPS of every bag."""
    assert t.div is not None
    if w is not None:
        w = w if w.dtype == torch.float32 else w.to(torch.promote_types(w.dtype, torch.float32))
        n = w.view(-1, t.count).sum(1) if w.shape[0] == bounds.shape[0] * t.count else _segment_sums(w, bounds, last)
    elif last:
        n = bounds.diff().float()
    else:
        n = _segment_sums(torch.ones(i.shape[0], device=i.device), bounds, last)
    return n.clamp(min=t.div[0]) + t.div[1] if t.div[1] else n.clamp(min=t.div[0])
