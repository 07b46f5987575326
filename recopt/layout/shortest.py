"""The cheapest layout operators known for given elements: of one value, of several joined, with numbers around."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ..fused import Permute, Reshape
from ..hosts.base import Array
from ..ir import sizes
from ..ir.sizes import Size
from .moves import Cost, Join, Pad, Plan, by_nodes
from .one_source import gathered, of_one, turned
from .positions import MOST, Elements, Form, form_of

MAX_PIECES = 1024  # of one join
TURNED = "float32"  # what ONNX Runtime transposes fast: 256 x 26 numbers of int64 take 6 us, and of float32 0.6


def shortest(wanted: Elements, cost: Cost = by_nodes, turns: bool = False) -> Plan | None:
    """The cheapest plan that is known for these elements; None where there is none. Where a transpose `turns` fast, of
    plans that cost as much the one that gathers rows of one: others may turn small matrices one by one."""
    found = [*_plans(wanted, cost), *(_stacked(wanted) if turns else ())]
    best = min(found, key=cost) if found else None
    if best is None or not turns or wanted.dtype != TURNED:
        return best
    rows = min((p for plan in found for p in turned(plan)), key=cost, default=best)
    return rows if cost(rows)[0] <= cost(best)[0] else best


def _plans(wanted: Elements, cost: Cost = by_nodes) -> Iterator[Plan]:
    if wanted.form.total == 0:
        return
    if (wanted.which < 0).any():
        yield from _padded(wanted, cost)
    elif len(wanted.sources) == 1:
        value, order = wanted.sources[0]
        if value.shape is not None:
            yield from of_one(value, form_of(value.shape), order, wanted.form, wanted.where)
    else:
        yield from _joined(wanted, cost)


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


def _stacked(wanted: Elements) -> Iterator[Plan]:
    """Vectors of one open size beside each other: joined to one, and turned. 26 of 256 numbers of int64 take ONNX
    Runtime 23 us so, and 27 as columns of one number each."""
    out = wanted.form
    shapes = {value.shape for value, _ in wanted.sources}
    if len(shapes) != 1 or (wanted.which < 0).any() or len(out.symbolic) != 1 or not 1 < out.total <= MAX_PIECES:
        return
    (shape,) = shapes
    (place,) = out.symbolic
    if shape != (out.opens[place],):
        return
    parts = tuple(Plan(wanted.sources[n][0], shape) for n in wanted.which.tolist())
    made = Plan(Join(parts, 0), (sizes.mul(shape[0], len(parts)),))
    before, after = out.counts[:place], out.counts[place + (out.counts[place] == 1) :]
    lines: tuple[Size, ...] = (*before, *after, *shape)
    made = made.then(lines, Reshape(lines))
    if math.prod(after) > 1:
        ends = range(len(before)), range(len(before), len(lines) - 1)
        made = made.then((*before, *shape, *after), Permute((*ends[0], len(lines) - 1, *ends[1])))
    yield made if made.shape == out.shape else made.then(out.shape, Reshape(out.shape))


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
        yield from of_one(join, whole, order, wanted.form, where)


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
        for rest in gathered(Plan(value, more.shape), more, order, out, positions):
            yield base.then(rest.shape, *rest.moves)
