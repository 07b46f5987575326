# mypy: ignore-errors
# Device code: Triton's compiler gives these functions their types, Python's cannot.
"""The Triton kernel of ``recopt::embedding_bags``: one launch for every table, whatever its width and pooling.

A program makes some bags of one task: a slice of the columns of one piece. Programs of one task follow each other, so
that the rows of one slice of one table are what the L2 holds meanwhile; a slice narrower than the row makes them fit.
What a task is stands in records of int64; what its code is, in constants: tasks of one class share code.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..early import begin, drain

# The fields of a record. Of a table: its address, rows, elements from row to row, first element of the slice.
TABLE, HEIGHT, STRIDE, START = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
# Of the result: columns of the slice, its first column. Of ids: slot, strides, first element, ids a bag.
WIDTH, COLUMN = tl.constexpr(4), tl.constexpr(5)
IDS, IDS_ROW, IDS_STEP, IDS_FIRST, COUNT = (tl.constexpr(n) for n in range(6, 11))
# Slots of offsets or lengths and of the flat ids' size; weights; what becomes of ids; denominators as float64's bits.
BOUNDS, SIZE, WEIGHTS, WEIGHTS_ROW, WEIGHTS_STEP, WEIGHTS_FIRST = (tl.constexpr(n) for n in range(11, 17))
MODULUS, SHIFT, PAD, LOW, EPS, SCALES = (tl.constexpr(n) for n in range(17, 23))
# Of a piece of several terms: how many records further they stand, how many are single rows; the kind of a term, or how
# many others there are. Then the slot of denominators, and a factor as float64's bits.
MORE, TERMS, KIND, OVER, FACTOR = (tl.constexpr(n) for n in range(23, 28))
FIELDS = tl.constexpr(28)


@triton.constexpr_function
def _pointer(name):
    return tl.pointer_type(tl.dtype(name))


@triton.constexpr_function
def _of(constants, *path):
    """An entry of nested constants."""
    for n in path:
        constants = constants[n]
    return constants


@triton.constexpr_function
def _bytes(name, count):
    return count * tl.dtype(name).primitive_bitwidth // 8


@triton.jit
def _aligned(v, ALIGN: tl.constexpr):
    """v, so that the compiler sees what divides it: a hint would not survive the call of a function."""
    return v // ALIGN * ALIGN


@triton.jit
def _slot(slot, dynamic, HOW: tl.constexpr):
    """The address of an operand that changes from call to call."""
    if _of(HOW, 0):
        return tl.load(dynamic[0] + slot)
    address = dynamic[0].to(tl.int64)
    for n in tl.static_range(1, len(dynamic)):
        address = tl.where(slot == n, dynamic[n].to(tl.int64), address)
    return address


@triton.jit
def _size(slot, sizes):
    size = sizes[0].to(tl.int64)
    for n in tl.static_range(1, len(sizes)):
        size = tl.where(slot == n, sizes[n].to(tl.int64), size)
    return size


@triton.jit
def _transform(i, modulus, shift, height, REMAINDER: tl.constexpr, MOVED: tl.constexpr):
    """The row that an id names; the remainder is Python's, never negative. MOVED: 1 shifted, 2 counted from the end
    where it is negative, 3 both; the rest says what becomes of rows outside."""
    i = i.to(tl.int64)
    if REMAINDER:
        i = i % modulus
        i = tl.where(i < 0, i + modulus, i)
    if MOVED % 2:
        i = i + shift
    if MOVED // 2 % 2:
        i = tl.where(i < 0, i + height, i)
    return i


@triton.jit
def _values(
    table,
    i,
    stride,
    start,
    c,
    keep,
    MASKED: tl.constexpr,
    BITS: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGN: tl.constexpr,
    EVICT: tl.constexpr,
    MODIFIER: tl.constexpr,
):
    """Stored values of rows i [B, U] at columns c [N] of a slice, [B, U, N]; zero where they are not kept."""
    ITEM: tl.constexpr = _bytes(DTYPE, 1)
    first = (start + c) // 2 if BITS == 4 else start + c
    # Both factors are of 32 bits, so that a row's address is one multiplication of them and an addition.
    row = i.to(tl.int32).to(tl.int64) * (stride * ITEM).to(tl.int32).to(tl.int64)
    at = ((table + first.to(tl.int64) * ITEM)[None, None, :] + row[:, :, None]).to(_pointer(DTYPE))
    if BITS != 4:
        at = tl.max_contiguous(tl.multiple_of(at, [1, 1, ALIGN * ITEM]), [1, 1, c.shape[0]])
    if MASKED:
        x = tl.load(at, mask=keep, other=0, eviction_policy=EVICT, cache_modifier=MODIFIER)
    else:
        x = tl.load(at, eviction_policy=EVICT, cache_modifier=MODIFIER)
    if BITS == 4:
        x = (x.to(tl.int32) >> (4 * ((start + c) % 2)).to(tl.int32)[None, None, :]) & 15
    return x


@triton.jit
def _scales(record, i, keep, DTYPE: tl.constexpr):
    """Scale and bias of rows: both read as one word."""
    HALVES: tl.constexpr = DTYPE == "fp16"
    pairs = tl.load(record + SCALES).to(tl.pointer_type(tl.int32 if HALVES else tl.int64))
    pair = tl.load(pairs + i, mask=keep, other=0)
    if HALVES:
        scale, bias = (pair & 0xFFFF).to(tl.int16), (pair >> 16).to(tl.int16)
        return scale.to(tl.float16, bitcast=True).to(tl.float32), bias.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        scale, bias = (pair & 0xFFFFFFFF).to(tl.int32), (pair >> 32).to(tl.int32)
        return scale.to(tl.float32, bitcast=True), bias.to(tl.float32, bitcast=True)


@triton.jit
def _dense(record, r, alive, inside, dynamic, CLASS: tl.constexpr, TERM: tl.constexpr, HOW: tl.constexpr):
    """Columns that are copied, or added up with others."""
    ALIGN: tl.constexpr = _of(TERM, 14)
    c = tl.arange(0, _of(CLASS, 2))
    x = _slot(tl.load(record + IDS), dynamic, HOW).to(_pointer(_of(TERM, 1)))
    if _of(TERM, 9):
        r = r % tl.load(record + MODULUS).to(tl.int32)
    row = r.to(tl.int64)[:, None] * tl.load(record + IDS_ROW) + tl.load(record + IDS_FIRST)
    if ALIGN:
        at = x + row + c[None, :]
        at = tl.max_contiguous(tl.multiple_of(at, [1, _bytes(_of(TERM, 1), ALIGN)]), [1, c.shape[0]])
    else:
        at = x + row + c[None, :] * tl.load(record + IDS_STEP)
    begin(_of(HOW, 2))
    return tl.load(at, mask=alive[:, None] & inside[None, :], other=0)


@triton.jit
def _wide(record, r, alive, inside, dynamic, CLASS: tl.constexpr, TERM: tl.constexpr, HOW: tl.constexpr,
          ACC: tl.constexpr):  # fmt: skip
    """Single rows of many tables added up: a bag whose every id reads a table of its own."""
    BAGS: tl.constexpr = _of(CLASS, 0)
    AT_ONCE: tl.constexpr = _of(CLASS, 1)
    COLUMNS: tl.constexpr = _of(CLASS, 2)
    CHECK: tl.constexpr = _of(HOW, 1)
    c = tl.arange(0, COLUMNS)
    begin(_of(HOW, 2))
    acc = tl.zeros([BAGS, AT_ONCE, COLUMNS], ACC)
    bad = tl.zeros([BAGS, AT_ONCE], tl.int32)
    count = tl.load(record + TERMS)
    records = record + tl.load(record + MORE) * FIELDS
    u = tl.arange(0, AT_ONCE)
    for first in range(0, count, AT_ONCE):
        present = first + u < count
        each = records + (first + u) * FIELDS
        ids = _slot(tl.load(each + IDS, mask=present, other=0), dynamic, HOW).to(_pointer(_of(TERM, 3)))
        ids += tl.load(each + IDS_FIRST, mask=present, other=0)
        at = r.to(tl.int64)[:, None] * tl.load(each + IDS_ROW, mask=present, other=0)[None, :]
        live = alive[:, None] & present[None, :]
        i = tl.load(ids[None, :] + at, mask=live, other=0)
        modulus = tl.load(each + MODULUS, mask=present, other=1)[None, :]
        # Without a remainder the modulus is the largest one: it changes no id that is not negative.
        i = i.to(tl.int64)
        i = tl.where(modulus == 0, i, _transform(i, tl.where(modulus == 0, 1, modulus), 0, 0, _of(TERM, 9), 0))
        i += tl.load(each + SHIFT, mask=present, other=0)[None, :]
        if CHECK:
            height = tl.load(each + HEIGHT, mask=present, other=0)[None, :]
            wrong = live & ((i < 0) | (i >= height))
            bad |= wrong.to(tl.int32)
            live = live & (wrong == 0)
        if _of(TERM, 11):
            live = live & (i != tl.load(each + PAD, mask=present, other=0)[None, :])
        table = tl.load(each + TABLE, mask=present, other=0).to(_pointer(_of(TERM, 1)))
        at = i * tl.load(each + STRIDE, mask=present, other=0)[None, :]
        at += tl.load(each + START, mask=present, other=0)[None, :]
        x = tl.load(
            (table[None, :] + at)[:, :, None] + c[None, None, :], mask=live[:, :, None] & inside[None, None, :], other=0
        )
        acc += x.to(ACC)
    if CHECK:
        tl.device_assert(bad == 0, "embedding_bags: an id is not in its table")
    return tl.sum(acc, 1)


@triton.jit
def _bag(record, r, inside, rows, dynamic, sizes, CLASS: tl.constexpr, TERM: tl.constexpr, HOW: tl.constexpr,
         ACC: tl.constexpr):  # fmt: skip
    """Rows of one table pooled, [BAGS, COLUMNS]."""
    BAGS: tl.constexpr = _of(CLASS, 0)
    AT_ONCE: tl.constexpr = _of(CLASS, 1)
    COLUMNS: tl.constexpr = _of(CLASS, 2)
    FULL: tl.constexpr = _of(CLASS, 3)
    CHECK: tl.constexpr = _of(HOW, 1)
    c = tl.arange(0, COLUMNS)
    POOL: tl.constexpr = _of(TERM, 0)
    DTYPE: tl.constexpr = _of(TERM, 1)
    BITS: tl.constexpr = _of(TERM, 2)
    ragged: tl.constexpr = _of(TERM, 4)
    LENGTHS: tl.constexpr = _of(TERM, 6)
    WEIGHTED: tl.constexpr = _of(TERM, 8) != ""
    PADDED: tl.constexpr = _of(TERM, 11)
    OUTSIDE: tl.constexpr = _of(TERM, 10) >= 4
    HIDES: tl.constexpr = PADDED or OUTSIDE
    DIVIDED: tl.constexpr = _of(TERM, 12)
    SINGLE: tl.constexpr = _of(TERM, 13)
    COUNTED: tl.constexpr = DIVIDED or POOL == "max"
    table = tl.load(record + TABLE)
    height = tl.load(record + HEIGHT)
    stride = tl.load(record + STRIDE)
    start = tl.load(record + START)
    modulus = tl.load(record + MODULUS)
    shift = tl.load(record + SHIFT)
    pad = tl.load(record + PAD)
    LENGTH: tl.constexpr = _of(CLASS, 11)
    # Where few lengths occur they are constants, and the compiler overlaps the steps.
    count = LENGTH if LENGTH else tl.load(record + COUNT).to(tl.int32)
    ids_step = tl.load(record + IDS_STEP)
    # Programs past the end read the last bag again, so that nobody needs a mask for them.
    bag = tl.minimum(r, rows - 1)
    bag64 = bag.to(tl.int64)
    ids_at = bag64 * tl.load(record + IDS_ROW) + tl.load(record + IDS_FIRST)
    ids = _slot(tl.load(record + IDS), dynamic, HOW).to(_pointer(_of(TERM, 3)))
    if WEIGHTED:
        weights = _slot(tl.load(record + WEIGHTS), dynamic, HOW).to(_pointer(_of(TERM, 8)))
        weights_at = bag64 * tl.load(record + WEIGHTS_ROW) + tl.load(record + WEIGHTS_FIRST)
        weights_step = tl.load(record + WEIGHTS_STEP)
    # Until here only constants were read: what the kernel before this one writes is not among them.
    begin(_of(HOW, 2))
    if ragged:
        bounds = _slot(tl.load(record + BOUNDS), dynamic, HOW).to(_pointer(_of(TERM, 7))) + bag
        ids_at = tl.load(bounds).to(tl.int64)
        if _of(TERM, 5):
            end = tl.load(bounds + 1).to(tl.int64)
        else:
            end = tl.load(bounds + 1, mask=bag + 1 < rows, other=0).to(tl.int64)
            end = tl.where(bag + 1 < rows, end, _size(tl.load(record + SIZE), sizes))
        weights_at = ids_at
        ids_step = 1
        weights_step = 1
        length = (end - ids_at).to(tl.int32)
    elif LENGTHS:
        bounds = _slot(tl.load(record + BOUNDS), dynamic, HOW).to(_pointer(_of(TERM, 7)))
        length = tl.maximum(tl.minimum(tl.load(bounds + bag64), count), 0).to(tl.int32)
    else:
        length = tl.zeros([BAGS], tl.int32) + count
    u = tl.arange(0, AT_ONCE)
    acc = tl.full([BAGS, AT_ONCE, COLUMNS], float("-inf") if POOL == "max" else 0.0, ACC)
    bad = tl.zeros([BAGS, AT_ONCE], tl.int32)
    n = tl.zeros([BAGS, AT_ONCE], ACC)
    biases = tl.zeros([BAGS, AT_ONCE], tl.float32)
    # Steps that every bag fills first, then what is left: a mask costs as much as adding the row.
    if ragged or LENGTHS:
        most = tl.max(length)
        whole = tl.min(length) // AT_ONCE * AT_ONCE
    else:
        most = count
        whole = count // AT_ONCE * AT_ONCE
    # The ids of a step are on their way while the rows of the step before are.
    ahead = tl.load(ids + (ids_at[:, None] + u[None, :].to(tl.int64) * ids_step), mask=u[None, :] < length[:, None],
                    other=0)  # fmt: skip
    for part in tl.static_range(_of(CLASS, 9), _of(CLASS, 10)):
        for first in tl.range(whole if part else 0, most if part else 1 if SINGLE else whole, AT_ONCE,
                              num_stages=_of(CLASS, 8)):  # fmt: skip
            nth = (first + u)[None, :].to(tl.int64)
            live = (first + u)[None, :] < length[:, None] if part else tl.full([BAGS, AT_ONCE], 1, tl.int1)
            i = ahead
            if not SINGLE:
                following = (first + AT_ONCE + u)[None, :]
                at = ids_at[:, None] + following.to(tl.int64) * ids_step
                ahead = tl.load(ids + at, mask=following < length[:, None], other=0)
            i = _transform(i, modulus, shift, height, _of(TERM, 9), _of(TERM, 10))
            keep = live
            if CHECK or OUTSIDE:
                # One comparison: as unsigned, a negative id is larger than any table.
                inside_table = i.to(tl.uint64, bitcast=True) < height.to(tl.uint64, bitcast=True)
                if not OUTSIDE:
                    bad |= (live & (inside_table == 0)).to(tl.int32)
                keep = live & inside_table
                if not (part or HIDES):
                    i = tl.where(inside_table, i, 0)
            if PADDED:
                keep = keep & (i != pad)
            kept = inside[None, None, :]
            if FULL:  # a comparison with the width would narrow the loads
                kept = keep[:, :, None]
            elif part or HIDES:
                kept = kept & keep[:, :, None]
            x = _values(table, i, stride, start, c, kept, part == 1 or HIDES or not FULL, BITS, DTYPE, _of(TERM, 14),
                        _of(CLASS, 6), _of(CLASS, 7)).to(ACC)  # fmt: skip
            if BITS:
                scale, bias = _scales(record, i, keep, _of(TERM, 17))
            if WEIGHTED:
                w = tl.load(weights + (weights_at[:, None] + nth * weights_step), mask=keep, other=0).to(ACC)
                if BITS:
                    scale, bias = scale * w, bias * w
                else:
                    x = x * w[:, :, None]
            if POOL == "max":
                if BITS:
                    x = x * scale[:, :, None] + bias[:, :, None]
                acc = tl.maximum(acc, tl.where(keep[:, :, None], x, float("-inf")))
            elif BITS:
                acc += x * scale[:, :, None]
                biases += bias
            else:
                acc += x
            if COUNTED:
                n += w if (WEIGHTED and POOL != "max") else keep.to(ACC)
    if CHECK:
        tl.device_assert(bad == 0, "embedding_bags: an id is not in its table")
    if POOL == "max":
        total = tl.max(acc, 1)
        return tl.where(tl.sum(n, 1)[:, None] > 0, total, tl.load(record + LOW).to(tl.float64, bitcast=True).to(ACC))
    total = tl.sum(acc, 1)
    if BITS:
        total += tl.sum(biases, 1)[:, None]
    if DIVIDED:
        low = tl.load(record + LOW).to(tl.float64, bitcast=True).to(ACC)
        eps = tl.load(record + EPS).to(tl.float64, bitcast=True).to(ACC)
        over = tl.sum(n, 1)
        if _of(TERM, 16) != "":
            given = _slot(tl.load(record + OVER), dynamic, HOW).to(_pointer(_of(TERM, 16)))
            over = tl.load(given + bag).to(ACC)
        total = total / (tl.maximum(over, low) + eps)[:, None]
    if _of(TERM, 15):
        total = total * tl.load(record + FACTOR).to(tl.float64, bitcast=True).to(ACC)
    return total


@triton.jit
def _term(record, r, inside, rows, dynamic, sizes, CLASS: tl.constexpr, TERM: tl.constexpr, HOW: tl.constexpr,
          ACC: tl.constexpr):  # fmt: skip
    if _of(TERM, 0) == "dense":
        return _dense(record, r, r < rows, inside, dynamic, CLASS, TERM, HOW).to(ACC)
    else:
        return _bag(record, r, inside, rows, dynamic, sizes, CLASS, TERM, HOW, ACC)


@triton.jit
def _task(out, width, records, task, block, rows, dynamic, sizes, CLASS: tl.constexpr, HOW: tl.constexpr):
    """Some bags of one slice of the columns of one piece."""
    BAGS: tl.constexpr = _of(CLASS, 0)
    COLUMNS: tl.constexpr = _of(CLASS, 2)
    KINDS: tl.constexpr = _of(CLASS, 5)
    ACC: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    record = records + task * FIELDS
    r = block * BAGS + tl.arange(0, BAGS)
    alive = r < rows
    c = tl.arange(0, COLUMNS)
    inside = c < _aligned(tl.load(record + WIDTH).to(tl.int32), _of(CLASS, 4))
    column = _aligned(tl.load(record + COLUMN), _of(CLASS, 4))
    SUM: tl.constexpr = _of(CLASS, 12)
    if SUM is None:
        total = _term(record, r, inside, rows, dynamic, sizes, CLASS, _of(KINDS, 0), HOW, ACC)
    elif len(SUM) > 0:  # one after the other, so that all of their loads are under way at once
        total = tl.zeros([BAGS, COLUMNS], ACC)
        other = record + tl.load(record + MORE) * FIELDS
        for n in tl.static_range(len(SUM)):
            total += _term(other + n * FIELDS, r, inside, rows, dynamic, sizes, CLASS, _of(KINDS, SUM[n]), HOW, ACC)
    else:
        total = tl.zeros([BAGS, COLUMNS], ACC)
        other = record + tl.load(record + MORE) * FIELDS + tl.load(record + TERMS) * FIELDS
        if _of(KINDS, 0, 0) == "wide":
            total += _wide(record, r, alive, inside, dynamic, CLASS, _of(KINDS, 0), HOW, ACC)
        # The other terms stand behind the single rows, each saying of which kind it is.
        for _ in range(tl.load(record + KIND)):
            kind = tl.load(other + KIND)
            for k in tl.static_range(1 if _of(KINDS, 0, 0) == "wide" else 0, len(KINDS)):
                if kind == k:
                    total += _term(other, r, inside, rows, dynamic, sizes, CLASS, _of(KINDS, k), HOW, ACC)
            other += FIELDS
    at = r.to(tl.int64)[:, None] * _aligned(width, _of(CLASS, 4)) + column + c[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=alive[:, None] & inside[None, :], cache_modifier=".cs")


@triton.jit(do_not_specialize=["rows", "sizes", "counts", "width"], do_not_specialize_on_alignment=["dynamic"])
def bags_kernel(
    out, records, dynamic, sizes, counts, rows, width, CLASSES: tl.constexpr, HOW: tl.constexpr
):  # fmt: skip
    """counts[k] tasks of CLASSES[k], class after class in records; a grid of their blocks of bags, tasks outermost
    (of blocks x tasks where the class is one).

    HOW: addresses of ``dynamic`` stand in memory, ids are checked, the launch is early.
    """
    if len(CLASSES) == 1:  # without a division
        block, task = tl.program_id(0), tl.program_id(1)
        _task(out, width, records, task, block, rows, dynamic, sizes, _of(CLASSES, 0), HOW)
    program = tl.program_id(0)
    first = 0
    for k in tl.static_range(0 if len(CLASSES) == 1 else len(CLASSES)):
        blocks = tl.cdiv(rows, _of(CLASSES, k, 0))
        here = counts[k] * blocks
        if (program >= 0) & (program < here):
            task = first + program // blocks
            _task(out, width, records, task, program % blocks, rows, dynamic, sizes, _of(CLASSES, k), HOW)
        program -= here
        first += counts[k]
    drain(_of(HOW, 2))
