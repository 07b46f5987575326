"""Embedding tables in fewer bits a number (optional): float16, or int8 and int4 under a scale and a bias of each row.

before:  rows of float32
after:   codes, rows kept apart by what a cache line holds, and scales [rows, 2]: q * scale + bias

Scales are of float32, or on a GPU of float16, where that makes no step much longer: a scale is a line of memory of its
own, and a line holds twice as many. (A CPU takes 1.1 times as long to read them.)

A table stays as it is where a column of what is made of it could be off by more than `error`. The bound is rigorous: it
is made of the errors of all rows of the table, of how many a bag adds up, and of what the terms of a column add.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np

from recopt.errors import OptionError
from recopt.fused import Again, Bag, EmbeddingBags, Stored, View
from recopt.hosts.base import Array, Host, Value
from recopt.report import Refusal
from recopt.rewrite import Context, Place
from recopt.tables import Change, Fitness, bags_of, blocks, find, rewrite, with_bags

LINE = 128  # bytes
EPS = float(np.finfo(np.float32).eps)
HALF = 2.0**-11  # relative error of a number rounded to float16
LARGEST = 60_000.0  # which float16 holds, whatever the rounding
LONGER = 0.05  # of the longest step: what scales of float16 may cost


@dataclass(frozen=True)
class QuantizeTables:
    """Optional. Embedding tables in fewer bits a number: bits=8, or 16 or 4; no column is off by more than error=0.01.

    The error is absolute. Raises OptionError for other bits, and for an error that is not positive.
    """

    bits: int = 8
    error: float = 1e-2
    name: ClassVar[str] = "quantize-tables"
    lossy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (isinstance(self.bits, Integral) and self.bits in (16, 8, 4)):
            raise OptionError(f"quantize-tables: tables of 16, 8 or 4 bits, not {self.bits!r}")
        if not (isinstance(self.error, Real) and self.error > 0):
            raise OptionError(f"quantize-tables: an error above 0, not {self.error!r}")

    def run(self, host: Host, context: Context) -> bool:
        """Whether any table was stored anew."""
        places = find(host, context, self.name)
        stored: dict[Value, _Table] = {}
        fitness = Fitness(host, places)
        for table, bags in bags_of(places).items():
            why = self._refuses(host, fitness, places, table, bags)
            if not why:
                found = _table(host.constant(table), self.bits, host.dialect == "aten", context.target == "cuda")
                stored[table] = found
                why = "" if np.isfinite(found.errors).all() else "a row is too large for it"
            if why:
                stored.pop(table, None)
                context.report.refusals.append(Refusal(self.name, table.name, why))
        self._keep_within(places, stored, context)
        made = {table: self._add(host, table, found) for table, found in stored.items()}
        return rewrite(host, context, self.name, [c for p in places if (c := self._change(p, stored, made))])

    def _refuses(self, host: Host, fitness: Fitness, places: list[Place], table: Value, bags: list[Bag]) -> str:
        why = fitness.why_not(bags)
        if why:
            return why
        if any(p.spec.dtype != "float32" for p in places if table in {b.table.value for b in p.spec.bags}):
            return "what is made of the table is not float32"
        if self.bits != 16 and (host.opset or 13) < 13:
            return f"opset {host.opset} has no DequantizeLinear by row: 13 has"
        width = bags[0].columns
        row = width * self.bits / 8 + (8 if self.bits < 16 else 0)
        if row >= 4 * width:
            return f"rows of {width} numbers would not shrink: {row:.0f} bytes with scale and bias, {4 * width} without"
        open_sum = next((why for bag in bags if (why := _unbounded(bag))), "")
        if open_sum:
            return open_sum
        array = host.constant(table)
        finite = all(np.isfinite(block).all() for _, block in blocks(array))
        return "" if finite else "the table holds values that are not finite"

    def _keep_within(self, places: list[Place], stored: dict[Value, _Table], context: Context) -> None:
        """Leave out tables of columns that would be off by too much."""
        worst: dict[Value, float] = {}
        for place in places:
            for piece in place.spec.pieces:
                bound = float(_bound_of(piece, stored).max(initial=0.0))
                for bag in piece:
                    if isinstance(bag, Bag) and bound > self.error:
                        worst[bag.table.value] = max(worst.get(bag.table.value, 0.0), bound)
        for table, bound in worst.items():
            if stored.pop(table, None) is not None:
                why = f"{self.bits} bits could be off by {bound:.2g}, more than the {self.error:g} allowed"
                context.report.refusals.append(Refusal(self.name, table.name, why))

    def _add(self, host: Host, table: Value, found: _Table) -> tuple[View, Stored]:
        codes = host.add_constant(found.codes, name=f"{table.name}_{self.bits}bit")
        scales = None
        if found.scales is not None:
            value = host.add_constant(found.scales, name=f"{table.name}_scales")
            scales = View(value, found.scales.shape)
        assert table.shape is not None
        return View(codes, found.codes.shape), Stored(self.bits, int(table.shape[1]), scales)

    def _change(
        self, place: Place, stored: dict[Value, _Table], made: dict[Value, tuple[View, Stored]]
    ) -> Change | None:
        tables = dict.fromkeys(bag.table.value for bag in place.spec.bags if bag.table.value in stored)
        if not tables:
            return None

        def new(bag: Bag) -> Bag:
            if bag.table.value not in made:
                return bag
            table, kept = made[bag.table.value]
            return replace(bag, table=table, stored=kept)

        bounds = [_bound_of(piece, stored) for piece in place.spec.pieces]
        before, after = (sum(getattr(stored[table], which) for table in tables) for which in ("before", "after"))
        detail = f"{len(tables)} tables of {self.bits} bits, {before} -> {after} bytes; {_columns(place.spec, bounds)}"
        return Change(place, with_bags(place.spec, new), detail, np.concatenate(bounds))


@dataclass(frozen=True)
class _Table:
    """A table stored anew, the largest error of each column, and the largest magnitude."""

    codes: Array
    scales: Array | None
    errors: Array
    largest: float
    before: int  # bytes
    after: int


def _table(table: Array, bits: int, apart: bool, halves: bool) -> _Table:
    """`table` in `bits` a number, by blocks of its rows. `apart`: for the operator, whose rows lie in lines of memory
    and hold neighbours in a byte; else dense, and a byte holds numbers of the two halves. `halves`: scales may be
    float16."""
    rows, width = table.shape
    codes = _rows(rows, -(-width * bits // 8), apart) if bits < 16 else np.empty((rows, width), np.float16)
    scales = _scales(table, bits, halves) if bits < 16 else None
    errors, largest = np.zeros(width), 0.0
    for start, block in blocks(table):
        stop = start + len(block)
        if scales is None:
            with np.errstate(over="ignore"):
                codes[start:stop] = block
            numbers = codes[start:stop].astype(np.float32)
        else:
            q = quantise(block, scales[start:stop], bits)
            codes[start:stop] = _packed(q, apart) if bits == 4 else q
            numbers = q.astype(np.float32) * scales[start:stop, :1] + scales[start:stop, 1:]
        with np.errstate(invalid="ignore"):
            errors = np.maximum(errors, np.abs(numbers.astype(np.float64) - block).max(axis=0, initial=0.0))
        largest = max(largest, float(np.abs(block).max(initial=0.0)))
    after = codes.size * codes.itemsize + (0 if scales is None else scales.nbytes)
    # A multiplication and an addition may round once instead of twice.
    return _Table(codes, scales, errors + 2 * EPS * largest, largest, table.nbytes, after)


def _scales(table: Array, bits: int, halves: bool) -> Array:
    """Scales [rows, 2] of a table; of float16, if `halves` may be, where no step grows much."""
    wide, narrow = (np.empty((len(table), 2), dtype) for dtype in (np.float32, np.float16))
    for start, block in blocks(table):
        low, high = (end(axis=1).astype(np.float64) for end in (block.min, block.max))
        for scales in (wide, narrow):
            scales[start : start + len(block)] = steps(low, high, bits, scales.dtype.type)
    with np.errstate(invalid="ignore"):
        longer = (narrow[:, 0] - wide[:, 0]).max(initial=0.0)
    return narrow if halves and longer <= LONGER * wide[:, 0].max(initial=0.0) else wide


def steps(low: Array, high: Array, bits: int, dtype: type[Any]) -> Array:
    """Scales and biases [rows, 2] of rows of finite numbers from `low` to `high`, float64, which 0 and 2 ** bits - 1
    stand for, or rather numbers just outside where these cannot be had. Infinite where `dtype` is too narrow."""

    def beyond(x: Array, end: float) -> Array:
        near = x.astype(dtype)
        return np.where(near < x if end > 0 else near > x, np.nextafter(near, dtype(end)), near)

    with np.errstate(over="ignore"):
        bias = beyond(low, -np.inf)
        return np.stack([beyond((high - bias) / (2**bits - 1), np.inf), bias], 1)


def quantise(block: Array, scales: Array, bits: int) -> Array:
    """Codes [rows, width] of rows of finite numbers under their scales [rows, 2]."""
    scale, bias = scales[:, :1].astype(np.float64), scales[:, 1:].astype(np.float64)
    codes = np.clip(np.rint((block - bias) / np.where(scale > 0, scale, 1.0)), 0, 2**bits - 1)
    return codes.astype(np.uint8)


def _packed(codes: Array, apart: bool) -> Array:
    """Two codes a byte: neighbours, or one of each half of the row."""
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    half = even.shape[1] // 2
    low, high = (even[:, ::2], even[:, 1::2]) if apart else (even[:, :half], even[:, half:])
    packed: Array = low | (high << 4)
    return packed


def _rows(rows: int, width: int, apart: bool) -> Array:
    """An array [rows, width] of bytes. `apart`: no row lies in more cache lines than it must."""
    if not apart:
        return np.empty((rows, width), np.uint8)
    stride = -(-width // LINE) * LINE if width > LINE else 1 << (width - 1).bit_length()
    memory = np.zeros(rows * stride + LINE, np.uint8)
    first = -memory.ctypes.data % LINE
    return memory[first : first + rows * stride].reshape(rows, stride)[:, :width]


def _unbounded(bag: Bag) -> str:
    """Why nothing can be said about how much the rows of a bag add up to, "" where it can."""
    if bag.weights is not None:
        node = bag.weights.value.node
        truth = node is not None and len(node.inputs) == 1 and node.inputs[0].dtype == "bool"
        if not truth or bag.pool == "max":
            return "rows under weights that data gives have no bound"
    if bag.over is not None:
        return "sums over a number that data gives have no bound"
    if bag.pool == "sum" and bag.div is None and bag.offsets is not None:
        return "sums of as many rows as the run says have no bound"
    return ""


def _factor(bag: Bag) -> float:
    """How much a bag makes of an error of its rows, at most."""
    return abs(bag.factor) * _gain(bag)


def _gain(bag: Bag) -> float:
    if bag.pool != "sum":
        return 1.0
    counts = np.arange(1, max(bag.count, 1) + 1, dtype=np.float64)
    if bag.div is None:
        return float(counts[-1])
    low, eps = bag.div
    if bag.offsets is not None:  # n / (max(n, low) + eps) is nearest to 1 where n is large
        return 1.0 if eps >= 0 else float("inf")
    return float(np.max(counts / (np.maximum(counts, low) + eps)))


def _bound_of(piece: tuple[Bag | View | Again, ...], stored: dict[Value, _Table]) -> Array:
    """The largest error of each column of a piece."""
    first = piece[0]
    bound = np.zeros(first.width if isinstance(first, Bag) else _width(first))
    halves = 0.0  # the largest magnitude of what is added up in float16
    for bag in piece:
        table = stored.get(bag.table.value) if isinstance(bag, Bag) else None
        if not isinstance(bag, Bag) or table is None:
            continue
        bound = bound + np.tile(_factor(bag) * table.errors, len(bound) // len(table.errors))
        if table.scales is None and (bag.pool in ("sum", "mean") or bag.factor != 1 or len(piece) > 1):
            halves += _factor(bag) * table.largest
            if max(bag.count, 1) * table.largest > LARGEST:  # a mean is a sum first
                halves = np.inf
    # What is pooled is rounded to float16, divided in it, and added to other terms in it.
    return bound + 2 * HALF * halves * (1 + (len(piece) > 1)) if halves < LARGEST else np.full_like(bound, np.inf)


def _width(term: View | Again) -> int:
    return int((term.rows if isinstance(term, Again) else term).shape[-1])


def _columns(spec: EmbeddingBags, bounds: list[Array]) -> str:
    """The largest error of the columns of each piece, in words."""
    first, said = 0, []
    for bound in bounds:
        if bound.any():
            said.append(f"{first}:{first + len(bound)} within {bound.max():.2g}")
        first += len(bound)
    return f"of {spec.shape[-1]} columns " + ", ".join(said)
