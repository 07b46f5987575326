"""``recopt::embedding_bags`` in plain torch: the kernel's reference, and the path on a CPU.

A layout becomes a list of functions once, so that a call at batch 1 pays for its lookups and not for reading text.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .ids import resolved
from .layout import Layout, Term, extends, parse_layout, sums_of
from .operands import Operands, check_operands, rows_of
from .small import even, held, small

_MODES = {"sum": 0, "max": 2}


_Part = Callable[[Operands], Tensor]


def embedding_bags_torch(
    tables: Sequence[Tensor], ids: Sequence[Tensor], offsets: Sequence[Tensor], weights: Sequence[Tensor],
    dense: Sequence[Tensor], scales: Sequence[Tensor], layout: str,
) -> Tensor:  # fmt: skip
    """The pieces of ``layout`` side by side, [R, W]; see embedding_bags_layout.

    Raises EmbeddingBagsError; IndexError or RuntimeError for an id that its table does not hold, as torch does.
    """
    try:
        function = None if (tables or dense)[0].is_cuda or _is_traced() else small(layout)
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
def _compile(text: str) -> _Part:
    first = resolved(text)
    if first is not None:
        lookups, operands = _compile(first.text), first.operands
        return lambda o: lookups(operands(o))
    layout = parse_layout(text)
    runs: list[tuple[Term, ...] | _Part] = []  # single rows of one table that lie side by side: one index_select
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


def _every(runs: Sequence[tuple[Term, ...] | _Part]) -> Callable[[Operands], list[Tensor]]:
    """The results of all runs. Single columns of one id tensor are taken apart at once: 67 us for 26, not 97."""
    parts: list[tuple[bool, Any]] = []
    for (ids, single), group in itertools.groupby(runs, _column_of):
        found = list(group)
        if single and len(found) > 2:
            parts.append((True, _columns(ids, [run[0] for run in found if isinstance(run, tuple)])))
        else:
            parts += [(False, _rows(run) if isinstance(run, tuple) else run) for run in found]
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


def _column_of(run: tuple[Term, ...] | _Part) -> tuple[int, bool]:
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


def _piece(piece: Sequence[Term], layout: Layout) -> _Part:
    runs: list[tuple[Term, ...] | _Part] = []
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


def _sum_of(run: tuple[Term, ...]) -> _Part:
    """A sum of rows whose ids are shifted by their columns: one bag."""
    t, n = run[0], sum(x.count for x in run)
    transform = _transform(run)

    def bag(o: Operands) -> Tensor:
        i, table = o.ids[t.ids].narrow(1, t.first, n), o.tables[t.source]
        i = (i if transform is None else transform(i, table)).reshape(-1)
        out = torch.embedding_bag(held(table), i, _every_so_many(n, i), False, 0, False, None, False)[0]
        return out if t.factor == 1 else out * t.factor

    return bag


def _term(t: Term, layout: Layout) -> _Part:
    if t.pool == "dense":
        return _again(t, layout) if t.every else lambda o: _matrix(o.dense[t.source])
    if t.lookup and t.bare:
        return _rows((t,))
    scale = layout.quantised.get(t.source, 0)
    return _weighted_rows(t, scale) if t.pool == "row" else _bag(t, scale)


def _matrix(x: Tensor) -> Tensor:
    return x if x.dim() > 1 else x[:, None]


def _again(t: Term, layout: Layout) -> _Part:
    """The rows of a dense tensor, again and again: [R, C]."""

    def rows(o: Operands) -> Tensor:
        x, count = _matrix(o.dense[t.source]), rows_of(layout, o)
        # a row that is the same everywhere, and rows that fit, need no copy
        return x.expand(count, -1) if t.every == 1 else x.repeat(-(-count // t.every), 1)[:count]

    return rows


def _rows(run: tuple[Term, ...]) -> _Part:
    """Rows of one table side by side: [R, n * D]."""
    t, n = run[0], sum(t.count for t in run)
    transform = _transform(run)

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


def _transform(run: Sequence[Term]) -> Callable[[Tensor, Tensor], Tensor] | None:
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
    if like.is_cuda or _is_traced():
        return torch.tensor(shifts, dtype=torch.int64).to(like.device)
    return _kept_shifts(shifts)


@functools.lru_cache(maxsize=256)
def _kept_shifts(shifts: tuple[int, ...]) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(shifts, dtype=torch.int64)


def _gather(t: Term, scale: int, o: Operands, i: Tensor) -> Tensor:
    """Rows as numbers, [N, D]."""
    if t.once:
        table, places = _distinct(t, scale, o, i)
        return torch.index_select(table, 0, places)
    return _numbers(t, scale, o, i)


def _distinct(t: Term, scale: int, o: Operands, i: Tensor) -> tuple[Tensor, Tensor]:
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


def _flat_ids(t: Term) -> _Part:
    transform = _transform((t,))

    def flat(o: Operands) -> Tensor:
        i = o.ids[t.ids]
        if not t.ragged and i.dim() > 1:
            i = i.narrow(1, t.first, t.count).reshape(-1)
        return i if transform is None else transform(i, o.tables[t.source])

    return flat


def _flat_weights(t: Term, o: Operands) -> Tensor | None:
    if t.weights is None:
        return None
    w = o.weights[t.weights]
    if t.ragged:
        return w.reshape(-1)
    return (w if w.dim() > 1 else w[:, None]).narrow(1, t.weights_first, t.count).reshape(-1)


def _weighted_rows(t: Term, scale: int) -> _Part:
    """Rows times their weights, zeros where the id is the pad: [R, n * D]."""

    flat = _flat_ids(t)

    def rows(o: Operands) -> Tensor:
        i, w = flat(o), _flat_weights(t, o)
        live = _live(t, i, o.tables[t.source].shape[0])
        found = _gather(t, scale, o, i if live is None or not t.inside else torch.where(live, i, 0))
        dtype = found.dtype
        if w is not None:
            found = found * w[:, None]
        if live is not None:
            found = found.masked_fill(~live[:, None], 0)
        if t.factor != 1:
            found = found * t.factor
        return found.to(dtype).view(i.shape[0] // t.count, t.count * found.shape[1])

    return rows


def _bag(t: Term, scale: int) -> _Part:
    """A bag of rows pooled, over embedding_bag: [R, D]."""
    mode, flat = _MODES[t.pool], _flat_ids(t)
    hides = t.pad is not None or t.inside or t.mask is not None
    plain_mean = t.div == (1.0, 0.0) and t.weights is None and not hides and t.over is None
    # torch's own mean of a fixed number is slower than the sum over that number.
    over = float(t.count) if plain_mean and t.count and t.lengths is None else None
    mode = 1 if plain_mean and over is None else mode
    counted = t.div is not None and not plain_mean
    gathered = ((t.bits > 0 or t.wide) and not t.once) or (t.pool == "max" and t.weights is not None)

    def bag(o: Operands) -> Tensor:
        i, w = flat(o), _flat_weights(t, o)
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
            table, i = _distinct(t, scale, o, i)
            bounds = bounds.long()
        # Weights that the table's type does not hold are multiplied in their own.
        if gathered or (w is not None and w.dtype != table.dtype and table.dtype.itemsize < 4):
            out = _gathered_bag(table[i] if t.once and not gathered else _gather(t, scale, o, i), w, bounds, last, mode)
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


def _largest_shown(t: Term) -> _Part:
    """The maximum of the rows that count, of a fixed number: to hide the others is faster than to leave them out."""
    flat = _flat_ids(t)

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
    live = _live(t, i, height)
    if t.pad is not None and t.pad >= height and not t.inside and live is not None and not bool(live.all()):
        raise IndexError(f"{t}: the pad is no row of a table of {height}")
    if t.mask is not None:
        given = o.weights[t.mask]
        given = given if t.ragged or given.dim() < 2 else given.narrow(1, t.mask_first, t.count)
        given = given.reshape(-1).bool() != t.unmask
        live = given if live is None else live & given
    assert live is not None
    return live


def _live(t: Term, i: Tensor, height: int) -> Tensor | None:
    """Whether rows are neither the pad nor, where that is no error, outside of their table; None where all are."""
    live = None if t.pad is None else torch.ne(i, t.pad)
    if t.inside:
        there = (i >= 0) & (i < height)
        live = there if live is None else live & there
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
    return _every_so_many(t.count, i), False


def _every_so_many(count: int, i: Tensor) -> Tensor:
    """Where bags of `count` ids begin."""
    if i.is_cuda or _is_traced():
        return torch.arange(0, i.shape[0], count, dtype=i.dtype, device=i.device)
    return even(i.shape[0], count, i.dtype)


def _is_traced() -> bool:
    """Whether tensors stand for others, which no later call may meet."""
    return torch._C._get_tracing_state() is not None or torch._C._len_torch_dispatch_stack() > 0


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
