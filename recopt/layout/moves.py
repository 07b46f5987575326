"""The fewest layout operators that make given elements: one value through at most one each of slice, gather, reshape,
transpose, expand and pad, or several such joined."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from ..fused import Permute, Reshape
from ..hosts.base import Array, Value
from ..ir import sizes
from ..ir.sizes import Size
from .positions import MOST, Elements, Form, NotLayout, form_of

MAX_PIECES = 1024  # of one join
MANY = 64  # single numbers of a row that a gather copies
SLOW = 8  # operators that such a gather costs as much as: 2.3 ms of 3.4 for 65 000 numbers, profiled
SINGLE = 500  # single numbers that a gather copies in the time of an operator of ONNX Runtime: 2.4 ns each


@dataclass(frozen=True)
class Cut:
    """start, start + step, ... (count of them; None: all) of each dimension."""

    starts: tuple[int, ...]
    counts: tuple[int | None, ...]
    steps: tuple[int, ...]

    @property
    def strided(self) -> bool:
        """Whether it copies single numbers that lie apart: 0.9 ns each in ONNX Runtime, where of rows it takes 0.2."""
        return self.steps[-1] != 1


@dataclass(frozen=True, eq=False)
class Take:
    """The elements `index` of dimension `dim`, whose dimensions stand in its place."""

    dim: int
    index: Array
    block: int  # numbers that lie together

    @property
    def slow(self) -> bool:
        """Whether it copies many single numbers, at 5 to 10 ns each: a transpose is faster."""
        return self.block == 1 and self.index.size >= MANY


@dataclass(frozen=True)
class Expand:
    """Repeat dimensions of size 1 up to `shape`."""

    shape: tuple[Size, ...]


@dataclass(frozen=True)
class Pad:
    """`value` before and after each dimension."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float


Move: TypeAlias = Permute | Reshape | Cut | Take | Expand | Pad
# What tells plans of equal length apart: a reshape moves nothing, a slice what it keeps, a gather reads an index too.
WEIGHT = {Reshape: 0.1, Cut: 1.0, Permute: 1.0, Expand: 1.0, Take: 1.1, Pad: 1.2}
STRIDED = 0.05  # of a slice more, where it copies single numbers


def shape_after(move: Move, shape: Sequence[Size]) -> tuple[Size, ...]:
    """The shape of what a move makes of a value of `shape`."""
    if isinstance(move, Reshape | Expand):
        return move.shape
    if isinstance(move, Permute):
        return tuple(shape[dim] for dim in move.perm)
    if isinstance(move, Take):
        return (*shape[: move.dim], *move.index.shape, *shape[move.dim + 1 :])
    if isinstance(move, Cut):
        return tuple(size if count is None else count for size, count in zip(shape, move.counts, strict=True))
    pads = zip(shape, move.before, move.after, strict=True)
    return tuple(sizes.add(size, before + after) for size, before, after in pads)


@dataclass(frozen=True, eq=False)
class Plan:
    """`source` after `moves`, of shape `shape`."""

    source: Value | Join
    shape: tuple[Size, ...]
    moves: tuple[Move, ...] = ()

    @property
    def nodes(self) -> int:
        return len(self.moves) + (self.source.nodes if isinstance(self.source, Join) else 0)

    @property
    def cost(self) -> tuple[int, float]:
        count, inner = self.source.cost if isinstance(self.source, Join) else (0, 0.0)
        slow = sum(isinstance(m, Take) and m.slow for m in self.moves)
        strided = sum(isinstance(m, Cut) and m.strided for m in self.moves)
        weight = sum(WEIGHT[type(m)] for m in self.moves) + STRIDED * strided
        return len(self.moves) + SLOW * slow + count, inner + weight

    @property
    def singles(self) -> float:
        """Numbers that gathers copy one by one, at the nominal batch."""
        taken = sum(isinstance(m, Take) and m.block == 1 and m.index.ndim > 0 for m in self.moves)
        own = taken * sizes.nominal(sizes.product(self.shape)) if taken else 0.0
        return own + (sum(part.singles for part in self.source.parts) if isinstance(self.source, Join) else 0.0)

    def then(self, shape: tuple[Size, ...], *moves: Move) -> Plan:
        """With further moves; two reshapes in a row are one, one that changes nothing is none."""
        done = list(self.moves)
        for move in moves:
            if isinstance(move, Reshape) and done and isinstance(done[-1], Reshape):
                done.pop()
            done.append(move)
        return Plan(self.source, shape, tuple(done))


@dataclass(frozen=True, eq=False)
class Join:
    """Plans one after the other along a dimension."""

    parts: tuple[Plan, ...]
    dim: int

    @property
    def nodes(self) -> int:
        return 1 + sum(part.nodes for part in self.parts)

    @property
    def cost(self) -> tuple[int, float]:
        costs = [part.cost for part in self.parts]
        return 1 + sum(count for count, _ in costs), 1.0 + sum(weight for _, weight in costs)


Cost: TypeAlias = Callable[[Plan], tuple[float, ...]]


def by_nodes(plan: Plan) -> tuple[float, ...]:
    """What a plan costs where each move is a node that copies."""
    return plan.cost


def by_time(plan: Plan) -> tuple[float, ...]:
    """What a plan costs in ONNX Runtime on a CPU."""
    count, weight = plan.cost
    return count + plan.singles // SINGLE, weight


def shortest(wanted: Elements, cost: Cost = by_nodes) -> Plan | None:
    """The cheapest plan that is known for these elements; None where there is none."""
    found = list(_plans(wanted, cost))
    return min(found, key=cost) if found else None


def _plans(wanted: Elements, cost: Cost = by_nodes) -> Iterator[Plan]:
    if wanted.form.total == 0:
        return
    if (wanted.which < 0).any():
        yield from _padded(wanted, cost)
    elif len(wanted.sources) == 1:
        value, order = wanted.sources[0]
        if value.shape is not None:
            yield from _of_one(value, form_of(value.shape), order, wanted.form, wanted.where)
    else:
        yield from _joined(wanted, cost)


# --- one source


@dataclass(frozen=True)
class Loop:
    """A run through `size` elements; `stride` numbers apart in the source, or along one of its open sizes."""

    size: Size
    stride: int = 0
    open: int | None = None


def _of_one(value: Value | Join, form: Form, order: tuple[int, ...], out: Form, where: Array) -> Iterator[Plan]:
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
    yield from _gathered(start, form, order, out, where)


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


def _gathered(start: Plan, form: Form, order: tuple[int, ...], out: Form, where: Array) -> Iterator[Plan]:
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
    yield made
    yield from _turned_first(made, before)


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


# --- several sources


def _joined(wanted: Elements, cost: Cost) -> Iterator[Plan]:
    out = wanted.form
    for form in _groupings(out, wanted):
        which = wanted.which.reshape(form.counts)
        for d in range(len(form.counts)):
            if form.opens[d] != 1:
                continue
            cuts = [which]
            if wanted.pieces is not None:  # or where the graph joined them: each may be simpler than two together
                cuts.append(which * (int(wanted.pieces.max()) + 1) + wanted.pieces.reshape(form.counts))
            for cut in cuts:
                plan = _along(wanted, form, cut, d, cost)
                if plan is not None:
                    yield plan if form.shape == out.shape else plan.then(out.shape, Reshape(out.shape))
    yield from _joined_first(wanted)


def _groupings(out: Form, wanted: Elements) -> Iterator[Form]:
    """The result's shape, and with all numbers after the open sizes in one dimension: a stack is a concat, reshaped."""
    yield out
    lead = len(out.symbolic)
    flat = Form((*(s for s in out.opens if s != 1), 1), (*[1] * lead, out.total))
    if out.symbolic == tuple(range(lead)) and flat.shape != out.shape:
        yield flat


def _along(wanted: Elements, form: Form, which: Array, d: int, cost: Cost) -> Plan | None:
    """Pieces of one source each along dimension d."""
    slabs = np.moveaxis(which, d, 0).reshape(form.counts[d], -1)
    if not (slabs == slabs[:, :1]).all():
        return None
    line = slabs[:, 0]
    ends = [*(np.flatnonzero(np.diff(line)) + 1).tolist(), len(line)]
    if len(ends) < 2 or len(ends) > MAX_PIECES:
        return None
    where = np.moveaxis(wanted.where.reshape(form.counts), d, 0)
    parts: list[Plan] = []
    begin = 0
    for end in ends:
        counts = (*form.counts[:d], end - begin, *form.counts[d + 1 :])
        positions = np.moveaxis(where[begin:end], 0, d).reshape(-1)
        n = int(np.moveaxis(wanted.which.reshape(form.counts), d, 0)[begin].reshape(-1)[0])
        source = (wanted.sources[n],)
        piece = Elements(Form(form.opens, counts), wanted.dtype, source, np.zeros(len(positions), np.int32), positions)
        plan = shortest(piece, cost)
        if plan is None:
            return None
        parts.append(plan)
        begin = end
    return Plan(Join(tuple(parts), d), form.shape)


def _joined_first(wanted: Elements) -> Iterator[Plan]:
    """All sources joined as they are, then moved as one."""
    used, first = np.unique(wanted.which, return_index=True)
    reads = used[np.argsort(first)].tolist()
    values = [wanted.sources[n][0] for n in reads]
    orders = {order for _, order in wanted.sources}
    if len(orders) != 1 or len(set(values)) != len(values) or len(values) > MAX_PIECES:
        return
    (order,) = orders
    forms = [form_of(value.shape or ()) for value in values]
    if len({len(f.counts) for f in forms}) != 1:
        return
    for d in range(len(forms[0].counts)):
        others = {(f.shape[:d], f.shape[d + 1 :]) for f in forms}
        if len(others) != 1 or any(f.opens[d] != 1 for f in forms):
            continue
        counts = list(forms[0].counts)
        counts[d] = sum(f.counts[d] for f in forms)
        whole = Form(forms[0].opens, tuple(counts))
        if whole.total > MOST:
            continue
        inner = math.prod(counts[d + 1 :])
        where = np.empty_like(wanted.where)
        before = 0
        for n, f in zip(reads, forms, strict=True):
            at = wanted.which == n
            outer, place = np.divmod(wanted.where[at], max(f.counts[d] * inner, 1))
            where[at] = outer * counts[d] * inner + before * inner + place
            before += f.counts[d]
        join = Join(tuple(Plan(v, f.shape) for v, f in zip(values, forms, strict=True)), d)
        yield from _of_one(join, whole, order, wanted.form, where)


# --- elements that are numbers


def _padded(wanted: Elements, cost: Cost) -> Iterator[Plan]:
    out = wanted.form
    numbers = {wanted.fills[i] for i in wanted.where[wanted.which < 0].tolist()}
    if len(numbers) != 1 or not out.counts:
        return
    (number,) = numbers
    inside = (wanted.which >= 0).reshape(out.counts)
    box = []
    for n in range(len(out.counts)):
        other = tuple(m for m in range(len(out.counts)) if m != n)
        line = np.flatnonzero(inside.any(axis=other))
        box.append((int(line[0]), int(line[-1]) + 1))
    cut = tuple(slice(a, b) for a, b in box)
    if inside[cut].all() and all(out.opens[n] == 1 or (a, b) == (0, out.counts[n]) for n, (a, b) in enumerate(box)):
        form = Form(out.opens, tuple(b - a for a, b in box))
        pieces = wanted.which if wanted.pieces is None else wanted.pieces
        kept = [a.reshape(out.counts)[cut].reshape(-1) for a in (wanted.which, wanted.where, pieces)]
        core = shortest(replace(wanted, form=form, which=kept[0], where=kept[1], pieces=kept[2]), cost)
        if core is not None:
            after = tuple(c - b for c, (_, b) in zip(out.counts, box, strict=True))
            yield core.then(out.shape, Pad(tuple(a for a, _ in box), after, number))
    if len(wanted.sources) == 1:  # one more element that the gather may name
        value, order = wanted.sources[0]
        form = form_of(value.shape or ())
        opens = tuple(s for s in form.opens if s != 1)
        if form.symbolic != tuple(range(len(opens))) or order != tuple(range(len(order))):
            return
        flat = Form((*opens, 1), (*[1] * len(opens), form.total))
        more = Form(flat.opens, (*flat.counts[:-1], form.total + 1))
        base = Plan(value, form.shape)
        base = base if form.shape == flat.shape else base.then(flat.shape, Reshape(flat.shape))
        base = base.then(more.shape, Pad((0,) * len(flat.counts), (*[0] * len(opens), 1), number))
        positions = np.where(wanted.which < 0, form.total, wanted.where)
        for rest in _gathered(Plan(value, more.shape), more, order, out, positions):
            yield base.then(rest.shape, *rest.moves)


__all__ = ["Cut", "Expand", "Join", "Move", "NotLayout", "Pad", "Plan", "Take", "shortest"]
