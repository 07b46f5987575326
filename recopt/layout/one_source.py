"""Elements of one value by the fewest operators: at most one each of slice, gather, reshape, transpose, expand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..fused import Permute, Reshape
from ..hosts.base import Array, Value
from ..ir import sizes
from ..ir.sizes import Size, nominal
from .moves import Cut, Expand, Join, Plan, Take
from .positions import MOST, Form
from .row_moves import rows_taken

TURNED = 128  # columns up to which a transpose there and back is faster than a gather: of 256 with 256 rows it is not


@dataclass(frozen=True)
class Loop:
    """A run through `size` elements; `stride` numbers apart in the source, or along one of its open sizes."""

    size: Size
    stride: int = 0
    open: int | None = None


def of_one(value: Value | Join, form: Form, order: tuple[int, ...], out: Form, where: Array) -> Iterator[Plan]:
    """Plans whose result has the form `out` and the elements `where` of a value of `form`, whose open sizes stand in
    `order`."""
    start = Plan(value, form.shape)
    straight = order == tuple(range(len(order)))
    if straight and form.shape == out.shape and np.array_equal(where, np.arange(form.total)):
        yield start
        return
    if straight:
        yield from _taken(start, form, out, where)
    dims, offset = _loops(form, order, out, where) or (None, 0)
    if dims is not None:
        yield from _sliced(start, form, out, dims, offset)
    yield from gathered(start, form, order, out, where)


def _taken(start: Plan, form: Form, out: Form, where: Array) -> Iterator[Plan]:
    """One gather: all dimensions but one stay."""
    rank = len(out.counts) - len(form.counts) + 1
    if rank < 0:
        return
    grid = np.indices(out.counts, sparse=True) if out.counts else []
    where = where.reshape(out.counts)
    for d in range(len(form.counts)):
        if form.opens[d] != 1 or (form.shape[:d], form.shape[d + 1 :]) != (out.shape[:d], out.shape[d + rank :]):
            continue
        if any(s != 1 for s in out.opens[d : d + rank]):
            continue
        inner = math.prod(form.counts[d + 1 :])
        if inner == 0:
            continue
        index = where // inner % form.counts[d]
        index = index[(0,) * d + (slice(None),) * rank + (0,) * (len(form.counts) - d - 1)]
        position: Array = np.zeros([1] * len(out.counts), np.int64)
        for n, count in enumerate(form.counts):
            if n == d:
                place = index.reshape([1] * d + list(index.shape) + [1] * (len(form.counts) - d - 1))
            else:
                place = grid[n if n < d else n + rank - 1]
            position = position * count + place
        if np.array_equal(np.broadcast_to(position, out.counts), where):
            yield start.then(out.shape, Take(d, index, inner))


def turned(plan: Plan) -> Iterator[Plan]:
    """A plan that ends with a gather of single columns [rows, columns], with one of the rows of a transpose instead."""
    take = plan.moves[-1] if plan.moves else None
    if not isinstance(take, Take) or take.index.ndim != 1 or take.dim != 1 or take.block != 1 or len(plan.shape) != 2:
        return
    source, rows = plan.source, plan.shape[0]
    if isinstance(source, Join):
        width: Size = sum(int(part.shape[-1]) for part in source.parts) if source.dim == 1 else MOST
    else:
        width = (source.shape or (MOST,))[-1]
    if len(plan.moves) > 1 or not isinstance(width, int) or width > TURNED:
        return
    lines = Take(0, take.index, int(nominal(rows)))
    start = Plan(source, (rows, width))
    yield start.then((width, rows), Permute((1, 0)), lines).then(plan.shape, Permute((1, 0)))


def gathered(start: Plan, form: Form, order: tuple[int, ...], out: Form, where: Array) -> Iterator[Plan]:
    """A reshape to one dimension after the open ones, a gather of it, and what brings the open ones to their places.
    Rows that stay whole are gathered whole."""
    if form.symbolic != tuple(range(len(form.symbolic))) or order != tuple(range(len(order))):
        return
    opens = tuple(size for size in form.opens if size != 1)
    row = _whole_rows(form, out, where)
    tail = (row,) if row > 1 else ()
    flat = (*opens, form.total // row, *tail)
    index = where.reshape(-1)[::row] // row
    base = start if form.shape == flat else start.then(flat, Reshape(flat))
    if out.symbolic == tuple(range(len(opens))):
        counts = [*out.counts[: len(opens)], *out.counts[len(opens) :]]
        concrete = [c for n, c in enumerate(counts) if n >= len(opens) or c != 1]
        steps = set(np.diff(index).tolist())
        if len(steps) == 1 and 0 not in steps:  # a slice of all numbers in one dimension
            run = (int(index[0]), len(index), steps.pop())
            whole = (0, None, 1)
            starts, held, strides = zip(*[whole] * len(opens), run, *[whole] * len(tail), strict=True)
            made = base.then((*opens, len(index), *tail), Cut(starts, held, strides))
        elif row == 1:
            shape = (*opens, *concrete)
            made = base.then(shape, Take(len(opens), index.reshape(concrete), 1))
        else:
            shape = (*opens, len(index), *tail)
            made = base.then(shape, Take(len(opens), index, row))
        yield made if made.shape == out.shape else made.then(out.shape, Reshape(out.shape))
    elif row == 1 and all(out.counts[n] == 1 for n in out.symbolic):
        concrete = [c for n, c in enumerate(out.counts) if n not in out.symbolic]
        rest = [n for n in range(len(out.counts)) if n not in out.symbolic]
        perm = np.argsort([*out.symbolic, *rest])
        made = base.then((*opens, *concrete), Take(len(opens), index.reshape(concrete), 1))
        yield made.then(out.shape, Permute(tuple(int(p) for p in perm)))


def _whole_rows(form: Form, out: Form, where: Array) -> int:
    """The numbers at the end of the source's dimensions that are read all, in order, and end the result's alike."""
    best, size = 1, 1
    for count in reversed(form.counts):
        size *= count
        if size == 0 or form.total % size or len(where) % size:
            break
        rows = where.reshape(-1, size)
        if (rows[:, 0] % size).any() or not np.array_equal(rows, rows[:, :1] + np.arange(size)):
            break
        best = size
    return best if best < form.total else 1


def _loops(form: Form, order: tuple[int, ...], out: Form, where: Array) -> tuple[list[list[Loop]], int] | None:
    """The loops of each result dimension, and where they begin; None where they are no loops."""
    places = {n: order.index(i) for i, n in enumerate(out.symbolic)}
    table = where.reshape(out.counts) if out.counts else where.reshape(())
    offset = int(table.reshape(-1)[0])
    lines = []
    total: Array = np.full([1] * len(out.counts), offset, np.int64)
    for n, count in enumerate(out.counts):
        line = table[(0,) * n + (slice(None),) + (0,) * (len(out.counts) - n - 1)] - offset
        lines.append(line)
        total = total + line.reshape([count if m == n else 1 for m in range(len(out.counts))])
    if not np.array_equal(np.broadcast_to(total, out.counts), table):
        return None
    dims: list[list[Loop]] = []
    for n, line in enumerate(lines):
        found = _nested(line)
        if found is None:
            return None
        if n in places:
            found = [Loop(out.opens[n], open=places[n]), *found]
        dims.append(found)
    return dims, offset


def _nested(line: Array) -> list[Loop] | None:
    """0, s, 2*s, .. repeated at further strides, as loops; outer ones first."""
    loops: list[Loop] = []
    while line.size > 1:
        stride = int(line[1] - line[0])
        steps = np.arange(line.size) * stride
        wrong = np.flatnonzero(line != steps)
        run = int(wrong[0]) if wrong.size else line.size
        if line.size % run or not np.array_equal(
            line.reshape(-1, run), line.reshape(-1, run)[:, :1] + np.arange(run) * stride
        ):
            return None
        loops.insert(0, Loop(run, stride))
        line = line.reshape(-1, run)[:, 0]
    return loops


def _sliced(start: Plan, form: Form, out: Form, dims: list[list[Loop]], offset: int) -> Iterator[Plan]:
    """[reshape] slice [reshape] transpose [expand] [reshape], of which only what is needed."""
    strides = [math.prod(form.counts[n + 1 :]) for n in range(len(form.counts))]
    dims = [[part for loop in dim for part in _split(loop, form, strides)] for dim in dims]
    own: list[list[Loop]] = [[] for _ in form.counts]
    for loop in (loop for dim in dims for loop in dim):
        if loop.open is not None:
            own[form.symbolic[loop.open]].append(loop)
            continue
        if loop.stride == 0:
            continue
        at = next((n for n, s in enumerate(strides) if s and s <= abs(loop.stride) < s * form.counts[n]), None)
        if at is None:
            return
        own[at].append(loop)
    before: list[Size] = []  # the shape before the slice
    held: list[list[Loop]] = []  # the loops of its dimensions
    starts: list[int] = []
    counts: list[int | None] = []
    steps: list[int] = []

    def add(size: Size, loops: list[Loop], begin: int, count: int | None, step: int) -> None:
        before.append(size)
        held.append(loops)
        starts.append(begin)
        counts.append(count)
        steps.append(step)

    split = False
    for n, count in enumerate(form.counts):
        inner = sorted((x for x in own[n] if x.open is None), key=lambda x: -abs(x.stride))
        opened = [x for x in own[n] if x.open is not None]
        begin = offset // strides[n] % count if strides[n] else 0
        length = math.prod(int(x.size) for x in inner)
        unit = abs(inner[-1].stride) // strides[n] if inner else 1
        if any(abs(x.stride) % strides[n] for x in inner):
            return
        dense = all(abs(a.stride) == abs(b.stride) * b.size and a.stride > 0 < b.stride for a, b in pairwise(inner))
        if dense:
            step = -unit if inner and inner[-1].stride < 0 else unit
            if not 0 <= begin + (length - 1) * step < count:
                return
            if length == count and step == 1:
                add(form.shape[n], [*opened, *inner], 0, None, 1)
            elif opened:  # an open size and part of what is inside it
                split = True
                add(form.opens[n], opened, 0, None, 1)
                add(count, inner, begin, length, step)
            else:
                add(count, inner, begin, length, step)
            continue
        split = True
        if opened:
            add(form.opens[n], opened, 0, None, 1)
        left, rest = count, begin
        for k, x in enumerate(inner):  # each loop in a dimension of its own, of the size that its stride leaves
            stride = abs(x.stride) // strides[n]
            below = stride if k + 1 < len(inner) else 1
            if below == 0 or left % below:
                return
            first = rest // below
            step = (1 if x.stride > 0 else -1) * (stride // below)
            if not 0 <= first + (int(x.size) - 1) * step < left // below:
                return
            add(left // below, [x], first, int(x.size), step)
            left, rest = below, rest % below
    plan = start
    if split:
        plan = plan.then(tuple(before), Reshape(tuple(before)))
    wanted = [
        c is not None and not (c == s and b == 0 and t == 1)
        for c, s, b, t in zip(counts, before, starts, steps, strict=True)
    ]
    if any(wanted):
        keep = [c if w else None for c, w in zip(counts, wanted, strict=True)]
        after = tuple(c if c is not None else s for c, s in zip(keep, before, strict=True))
        begins = tuple(b if w else 0 for b, w in zip(starts, wanted, strict=True))
        plan = plan.then(
            after, Cut(begins, tuple(keep), tuple(t if w else 1 for t, w in zip(steps, wanted, strict=True)))
        )
    made = _arranged(plan, held, dims, out)
    for found in (made, *_turned_first(made, before)):
        yield found
        yield from rows_taken(found, start.shape)


def _turned_first(plan: Plan, before: Sequence[Size]) -> Iterator[Plan]:
    """The transpose before the slice, from [..] `before` it, where rows are sliced then and single numbers were not:
    16 x 16 numbers turned take 7 us and half of their rows 7, half of their columns 28 and these turned 6 (of 256)."""
    for n, (cut, turn) in enumerate(pairwise(plan.moves)):
        if not isinstance(cut, Cut) or not isinstance(turn, Permute) or not cut.strided:
            continue
        perm = turn.perm
        if not any(list(others) == sorted(others) for d in perm if (others := [p for p in perm if p != d])):
            continue  # that moves more than one dimension is slow on all numbers
        kept = math.prod(c for c in cut.counts if c is not None)
        whole = math.prod(int(s) for s, c in zip(before, cut.counts, strict=True) if c is not None)
        after = Cut(*(tuple(field[p] for p in perm) for field in (cut.starts, cut.counts, cut.steps)))  # type: ignore[arg-type]  # of three kinds
        if 2 * kept >= whole and not after.strided:
            yield Plan(plan.source, plan.shape, (*plan.moves[:n], turn, after, *plan.moves[n + 2 :]))


def _split(loop: Loop, form: Form, strides: Sequence[int]) -> list[Loop]:
    """A loop that runs through several dimensions of the source as one for each."""
    if loop.open is not None or loop.stride <= 0:
        return [loop]
    result: list[Loop] = []
    size, stride = int(loop.size), loop.stride
    for n in reversed(range(len(strides))):
        reach = strides[n] * form.counts[n]
        if not strides[n] or not strides[n] <= stride < reach or reach % stride:
            continue
        inside = reach // stride
        if size > inside and size % inside == 0:
            result.insert(0, Loop(inside, stride))
            size, stride = size // inside, reach
    return [Loop(size, stride), *result] if size > 1 or not result else result


def _arranged(plan: Plan, held: list[list[Loop]], dims: list[list[Loop]], out: Form) -> Plan:
    """`_moved`, without the dimensions of size 1 first where that takes no move more: the fewer dimensions a transpose
    has, the more of it ONNX Runtime knows as copies of rows (256 x 50 rows of 128: 0.75 ms against 1.25)."""
    found = _moved(plan, held, dims, out)
    if all(held):
        return found
    some = [d for d in held if d]
    shape = tuple(sizes.product(x.size for x in d) for d in some)
    narrow = _moved(plan.then(shape, Reshape(shape)), some, dims, out)
    return narrow if len(narrow.moves) <= len(found.moves) else found


def _moved(plan: Plan, held: list[list[Loop]], dims: list[list[Loop]], out: Form) -> Plan:
    """From dimensions that hold these loops to those of the result: [reshape] transpose [expand] [reshape]."""
    source = [x for d in held for x in d]
    target = [x for d in dims for x in d if x.stride != 0 or x.open is not None]
    narrow = any(x.stride == 0 and x.open is None for d in dims for x in d)
    if [id(x) for x in source] != [id(x) for x in target]:
        plan, held = _permuted(plan, held, dims)
    if narrow:
        return _expanded(plan, held, dims, out)
    return plan if plan.shape == out.shape else plan.then(out.shape, Reshape(out.shape))


def _permuted(plan: Plan, held: list[list[Loop]], dims: list[list[Loop]]) -> tuple[Plan, list[list[Loop]]]:
    source = [id(x) for d in held for x in d]
    target = [id(x) for d in dims for x in d if x.stride != 0 or x.open is not None]
    after = dict(pairwise(target))
    blocks = [d for d in held if d]
    fits = all(after.get(id(a)) == id(b) for d in blocks for a, b in pairwise(d))
    if not fits:  # some dimension falls apart: the blocks that stay together, and no others
        loops = {id(x): x for d in held for x in d}
        parts: list[list[int]] = []
        for x in source:
            if parts and after.get(parts[-1][-1]) == x:
                parts[-1].append(x)
            else:
                parts.append([x])
        held = [[loops[x] for x in part] for part in parts]
        shape = tuple(sizes.product(x.size for x in d) for d in held)
        plan = plan.then(shape, Reshape(shape))
        blocks = held
    first = {id(d[0]): n for n, d in enumerate(held) if d}
    empties = [n for n, d in enumerate(held) if not d]
    perm: list[int] = []
    for d in dims:
        real = [x for x in d if id(x) in set(source)]
        if not real and empties and not d:
            perm.append(empties.pop(0))
        perm += [first[id(x)] for x in real if id(x) in first]
    perm += empties
    if perm != sorted(perm):
        plan = plan.then(tuple(plan.shape[p] for p in perm), Permute(tuple(perm)))
    return plan, [held[p] for p in perm]


def _expanded(plan: Plan, held: list[list[Loop]], dims: list[list[Loop]], out: Form) -> Plan:
    """Loops that do not move are dimensions of size 1, expanded."""
    flat = [x for d in dims for x in d]
    whole = all(len(d) == 1 or all(x.stride or x.open is not None for x in d) for d in dims)
    if whole:  # each result dimension is repeated or it is not
        full = tuple(out.shape)
        ones = tuple(1 if d and not d[0].stride and d[0].open is None else s for d, s in zip(dims, full, strict=True))
    else:
        full = tuple(x.size for x in flat)
        ones = tuple(1 if not x.stride and x.open is None else x.size for x in flat)
    squeezed = ones
    while squeezed and squeezed[0] == 1 and len(squeezed) > len(plan.shape):  # an expand adds dimensions in front
        squeezed = squeezed[1:]
    if plan.shape != squeezed and plan.shape != ones:
        plan = plan.then(squeezed, Reshape(squeezed))
    plan = plan.then(full, Expand(full))
    return plan if full == out.shape else plan.then(out.shape, Reshape(out.shape))
