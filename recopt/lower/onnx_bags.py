"""Fused embedding bags as ONNX nodes: a Gather and a reduction a bag, one Concat; for `recopt` one node around them."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from ..errors import LowerError
from ..fused import Again, Bag, EmbeddingBags, Reshape, Stored, View
from ..hosts.base import Value
from ..hosts.onnx import OnnxHost
from ..hosts.types.onnx import element_code
from ..ir.sizes import Size, product
from .onnx import folded
from .onnx_ids import alone, column, computed, flatter, given, ids_of, mask_of, plain, row_numbers, single, stored_rows
from .onnx_layout import END, apply, view
from .onnx_writer import Writer

# Tables of one width are not stacked under one Gather: with ids that must be refused as before it takes 0.8 to 1.4
# times as long at the nominal batch (benchmarks/merged_tables.py), and every table would be written anew.
MULTIPLIED = 4  # ids and columns from which a product of matrices takes 0.4 to 1.0 of the time of products and a sum
JOINT = 200  # numbers of a row for each of several bags that are quicker to copy than a reduction: 20 us of 256 rows
POOLS = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax"}


def embedding_bags(host: Writer, spec: EmbeddingBags, target: str) -> Value:
    """Append the nodes of `spec` at the host's insertion point and return its value. Raises LowerError."""
    spec = single(_plain(host, spec))
    write = _function if target == "recopt" else _nodes
    return apply(host, write(host, spec), spec.steps, spec.name)


def multiplied(bag: Bag) -> bool:
    """Whether a bag is written as a product of matrices."""
    fixed = bag.pool == "sum" and bag.offsets is None and _is_weighed(bag)
    return fixed and min(bag.count, bag.columns) >= MULTIPLIED


def _is_weighed(bag: Bag) -> bool:
    return bool(bag.weights or bag.mask or bag.live or bag.lengths or bag.below or bag.pad is not None)


def _plain(host: Writer, spec: EmbeddingBags) -> EmbeddingBags:
    """`spec` with ids that name rows themselves."""

    def read(table: View, ids: View, stored: Stored | None) -> Value:
        scales = stored.scales.value if stored and stored.scales else None
        operands = view(host, table, spec.name), ids.value, scales
        return _rows(host, spec, operands, ids, stored, (*ids.shape, table.shape[1]))

    def term(item: Bag | View | Again) -> Bag | View | Again:
        return plain(host, item, spec.name, read) if isinstance(item, Bag) else item

    return replace(spec, pieces=tuple(tuple(map(term, piece)) for piece in spec.pieces))


def _rows(
    host: Writer | OnnxHost, spec: EmbeddingBags, operands: tuple[Value, Value, Value | None], ids: View,
    stored: Stored | None, shape: tuple[Size, ...],
) -> Value:  # fmt: skip
    """The rows of a table that ids name, as numbers; the operands are table, ids and scales."""
    if stored is not None:
        return stored_rows(host, operands, ids, stored, spec.name)
    dtype = operands[0].dtype or spec.dtype
    return host.call("Gather", list(operands[:2]), {"axis": 0}, name=spec.name, shape=shape, dtype=dtype)


def _nodes(host: Writer, spec: EmbeddingBags) -> Value:
    return _side_by_side(host, spec, _operands(host, spec))


def _function(host: Writer, spec: EmbeddingBags) -> Value:
    """One node `recopt::EmbeddingBags_*`; its function is shared by all that read and pool alike."""
    operands = _operands(host, spec)
    numbers, starts = {v: n for n, v in enumerate(operands)}, given(spec)

    def told(term: Bag | View | Again) -> object:
        if not isinstance(term, Bag):
            return numbers[term]
        stored = term.stored or Stored(32, term.columns)
        read = (
            term.table,
            starts[term],
            term.weights,
            _offsets(term),
            term.lengths,
            _scales(term),
            term.over,
            mask_of(term),
        )
        rows = (
            term.modulus,
            term.shift,
            term.pad,
            term.above,
            term.of_row,
            term.below,
            term.div,
            term.last,
            term.factor,
            term.unmask,
            term.program,
            term.live,
            term.ids.steps if starts[term] != ids_of(term) else (),
        )
        ranks = len(term.ids.shape), alone(term)
        shape = term.pool, term.otherwise, term.least, term.count, term.columns, ranks, stored.bits
        return shape, rows, [v and numbers[v] for v in read]

    types = [v.dtype or spec.dtype for v in operands.values()]
    text = repr((types, [[told(term) for term in piece] for piece in spec.pieces]))
    name = f"EmbeddingBags_{hashlib.sha1(text.encode()).hexdigest()[:8]}"

    def body(inner: OnnxHost, values: list[Value]) -> Value:
        return _side_by_side(inner, spec, dict(zip(operands, values, strict=True)))

    op = host.define(name, types, body)
    return host.call(op, list(operands.values()), name=spec.name, shape=spec.shape, dtype=spec.dtype)


def _operands(host: Writer, spec: EmbeddingBags) -> dict[View | Again, Value]:
    """What is read, each view once."""
    starts = given(spec)
    parts = [
        (bag.table, starts[bag], bag.weights, _offsets(bag), bag.lengths, _scales(bag), bag.over, mask_of(bag))
        for bag in spec.bags
    ]
    read = [v for part in parts for v in part if v]
    dense = [term for piece in spec.pieces for term in piece if isinstance(term, View)]
    tables = {bag.table: folded(host, bag.table, bag.table.steps, spec.name) for bag in spec.bags if bag.table.steps}
    fixed = [term for piece in spec.pieces for term in piece if isinstance(term, Again)]
    found: dict[View | Again, Value] = {term: _fixed(host, spec, term) for term in fixed}
    return found | {item: tables.get(item) or column(host, item, spec.name) for item in dict.fromkeys((*dense, *read))}


def _fixed(host: Writer, spec: EmbeddingBags, term: Again) -> Value:
    """Numbers that broadcast to [rows.., C]. Raises LowerError where the dimensions do not repeat them."""
    count, width = term.rows.shape
    shape = next((s for n in range(len(spec.shape)) if product(s := spec.shape[n:-1]) == count), None)
    if shape is None:
        raise LowerError(f"{spec.name}: {count} rows repeat within a dimension")
    whole = term.rows.reshape([*shape, width]) if count > 1 else term.rows.reshape(width)
    return host.share_constant(whole.astype(spec.dtype), name=f"{spec.name}_rows")


def _scales(bag: Bag) -> View | None:
    return bag.stored.scales if bag.stored is not None else None


def _offsets(bag: Bag) -> View | None:
    """The offsets along one dimension."""
    return bag.offsets if bag.offsets is None or len(bag.offsets.shape) == 1 else flatter(bag.offsets)


def _side_by_side(host: Writer | OnnxHost, spec: EmbeddingBags, values: Mapping[View | Again, Value]) -> Value:
    spec, values = computed(host, spec, values)
    if _is_of_columns(spec):
        return _beside(host, spec, values)
    pieces = []
    for alike, group in groupby(spec.pieces, _alike):
        found = list(group)
        if alike is not None and len(found) > 1 and _row(found) <= JOINT * len(found):
            pieces.append(_joint(host, spec, found, values))
            continue
        for piece in found:
            terms = [_bag(host, spec, t, values) if isinstance(t, Bag) else values[t] for t in piece]
            pieces.append(_sum(host, spec, terms))
    if len(pieces) == 1:
        return pieces[0]
    axis = {"axis": len(spec.shape) - 1}
    return host.call("Concat", pieces, axis, name=spec.name, shape=spec.shape, dtype=spec.dtype)


Piece = tuple[Bag | View | Again, ...]


def _alike(piece: Piece) -> Hashable:
    """What pieces have in common whose rows are pooled alike and all count; None of others."""
    bag = piece[0]
    if len(piece) > 1 or not isinstance(bag, Bag) or bag.pool not in POOLS or bag.offsets is not None:
        return None
    plainly = not _is_weighed(bag) and bag.div is None and bag.factor == 1
    return (bag.pool, bag.ids.shape) if plainly else None


def _row(pieces: Sequence[Piece]) -> int:
    """Numbers that are pooled for a row of the result."""
    return sum(bag.count * bag.columns for piece in pieces for bag in piece if isinstance(bag, Bag))


def _joint(
    host: Writer | OnnxHost, spec: EmbeddingBags, pieces: Sequence[Piece], values: Mapping[View | Again, Value]
) -> Value:
    """Rows side by side, pooled as one."""
    nodes = [_Nodes(host, spec, bag, values) for piece in pieces for bag in piece if isinstance(bag, Bag)]
    first, width = nodes[0], sum(n.bag.columns for n in nodes)
    shape, axis = (*first.bag.ids.shape, width), len(first.rows)
    rows = first.call("Concat", [n.rows_of_all() for n in nodes], shape, axis=axis + 1)
    return first.reduce(POOLS[first.bag.pool], rows, axis, (*first.rows, width))


def _sum(host: Writer | OnnxHost, spec: EmbeddingBags, terms: Sequence[Value]) -> Value:
    """The sum of terms; of many of one type by one node."""
    if len(terms) < 3 or spec.dtype not in ("float32", "float64"):  # others ONNX Runtime cannot add so
        joint = terms[0]
        for term in terms[1:]:
            joint = host.call("Add", [joint, term], name=spec.name, shape=joint.shape, dtype=spec.dtype)
        return joint
    return host.call("Sum", terms, name=spec.name, shape=terms[0].shape, dtype=spec.dtype)


def _is_of_columns(spec: EmbeddingBags) -> bool:
    """Whether all is single rows of cut columns, and dense columns."""
    terms = [piece[0] for piece in spec.pieces if len(piece) == 1]
    bags = [t for t in terms if isinstance(t, Bag)]
    single = all(bag.pool == "row" and bag.count == 1 and not alone(bag) for bag in bags)
    return single and len(bags) > 1 and len(terms) == len(spec.pieces)


def _beside(host: Writer | OnnxHost, spec: EmbeddingBags, values: Mapping[View | Again, Value]) -> Value:
    """Rows [rows.., 1, D] side by side, without the dimension between in the end."""
    *rows, width = spec.shape
    pieces = []
    for (term,) in spec.pieces:
        if isinstance(term, Bag):
            pieces.append(_Nodes(host, spec, term, values).rows_of_all())
        else:
            part = values[term]
            wide = None if part.shape is None else (*part.shape[:-1], 1, part.shape[-1])
            pieces.append(along(host, spec, "Unsqueeze", part, -2, wide))
    shape = (*rows, 1, width)
    joint = host.call("Concat", pieces, {"axis": len(rows) + 1}, name=spec.name, shape=shape, dtype=spec.dtype)
    return along(host, spec, "Squeeze", joint, -2, spec.shape)


def along(
    host: Writer | OnnxHost, spec: EmbeddingBags, op: str, x: Value, axis: int, shape: tuple[Size, ...] | None
) -> Value:
    """Squeeze or Unsqueeze of one dimension, whose number was an attribute before opset 13."""
    dtype = x.dtype or spec.dtype
    if host.opset < 13:
        return host.call(op, [x], {"axes": [axis]}, name=spec.name, shape=shape, dtype=dtype)
    axes = host.share_constant(np.array([axis]), name=f"{spec.name}_constant")
    return host.call(op, [x, axes], name=spec.name, shape=shape, dtype=dtype)


def _bag(host: Writer | OnnxHost, spec: EmbeddingBags, bag: Bag, values: Mapping[View | Again, Value]) -> Value:
    nodes = _Nodes(host, spec, bag, values)
    if bag.pool == "row":
        return nodes.side_by_side()
    return nodes.ragged() if bag.offsets is not None else nodes.pooled()


class _Nodes:
    """The nodes of one bag."""

    def __init__(
        self, host: Writer | OnnxHost, spec: EmbeddingBags, bag: Bag, values: Mapping[View | Again, Value]
    ) -> None:
        self.host, self.spec, self.bag, self.values = host, spec, bag, values
        self.dtype = spec.dtype
        # the rows of the result, and whether the ids have a dimension of their own beside them
        self.rows = bag.ids.shape[:-1] if bag.offsets is None else spec.shape[:-1]
        self.alone = alone(bag)
        self.ids = self._row_numbers()
        self.inside = self._inside() if bag.below else None

    def call(
        self, op: str, args: Sequence[Value], shape: tuple[Size, ...] | None = None, dtype: str = "", **how: object
    ) -> Value:
        return self.host.call(op, args, how, name=self.spec.name, shape=shape, dtype=dtype or self.dtype)

    def constant(self, value: object, dtype: str = "int64") -> Value:
        return self.host.share_constant(np.array(value, dtype), name=f"{self.spec.name}_constant")

    def cast(self, x: Value, dtype: str) -> Value:
        return x if x.dtype == dtype else self.call("Cast", [x], x.shape, dtype, to=element_code(dtype))

    def rows_of_all(self) -> Value:
        """The rows that the ids name, [.., D]."""
        return self._times(self._weighted(self._kept()))

    def side_by_side(self) -> Value:
        rows = self.rows_of_all()
        if self.alone:
            return rows
        return apply(self.host, rows, (Reshape((*self.rows, product((self.bag.count, self._width)))),), self.spec.name)

    def pooled(self) -> Value:
        if self.bag.pool == "max":
            return self._largest()
        kept = self._kept()
        axis, shape = len(self.rows), (*self.rows, self._width)
        if kept is not None and multiplied(self.bag):
            total = self._times(self._product(kept, shape))
        else:
            total = self._times(self.reduce(POOLS[self.bag.pool], self._weighted(kept), axis, shape))
        if self.bag.div is None:
            return total
        if self.bag.over is not None:
            return self._divided(total, None)
        if kept is None:
            return self.call("Div", [total, self.constant(self._over(float(self.bag.count)), self.dtype)], shape)
        return self._divided(total, self.reduce("ReduceSum", kept, axis, self.rows))

    def _product(self, kept: Value, shape: tuple[Size, ...]) -> Value:
        """The sum of rows times weights, as a product of matrices [1, L] x [L, D]."""
        weights = self._along("Unsqueeze", kept, -2, (*self.rows, 1, self.bag.count))
        product = self.call("MatMul", [weights, self._weighted(None)], (*self.rows, 1, self._width))
        return self._along("Squeeze", product, -2, shape)

    def _largest(self) -> Value:
        """The largest of the rows that count."""
        rows, live, axis = self._weighted(self._weights()), self._live(), len(self.rows)
        shape = (*self.rows, self._width)
        if live is None:
            return self.reduce("ReduceMax", rows, axis, shape)
        found = self.reduce("ReduceMax", self._or_lowest(rows, live), axis, shape)
        if self.bag.least or self.bag.otherwise == float("-inf"):
            return found
        counted = self.reduce("ReduceMax", self.cast(live, self.dtype), axis, self.rows)
        return self._unless_empty(found, self.cast(counted, "bool"))

    def _or_lowest(self, rows: Value, live: Value) -> Value:
        lowest = self.constant(self.bag.otherwise if self.bag.least else float("-inf"), self.dtype)
        return self.call("Where", [self._unsqueezed(live), rows, lowest], rows.shape)

    def _unless_empty(self, found: Value, some: Value) -> Value:
        otherwise = self.constant(self.bag.otherwise, self.dtype)
        return self.call("Where", [self._unsqueezed(some), found, otherwise], (*self.rows, self._width))

    def _times(self, x: Value) -> Value:
        factor = self.bag.factor
        return x if factor == 1 else self.call("Mul", [x, self.constant(factor, self.dtype)], x.shape)

    def ragged(self) -> Value:
        """Rows are added to the bag that begins last at or before their id; bag 0 takes what lies before the first."""
        most = self.bag.pool == "max"
        kept = self._weights() if most else self._kept()
        rows, live = self._weighted(kept), self._live() if most else None
        rows = self._times(rows) if live is None else self._or_lowest(rows, live)
        given = _offsets(self.bag)
        assert given is not None
        ids, one = self.call("Shape", [self.ids], (1,), "int64"), self.constant([1])
        # a slice ends with what it is taken from, whatever the offsets say
        offsets = self.call("Min", [self.cast(self.values[given], "int64"), ids], None, "int64")
        starts = self.call("Shape", [offsets], (1,), "int64")
        room = self.call("Add", [ids, one], (1,), "int64")
        begun = self._added("ScatterElements", room, offsets, self.call("Expand", [one, starts], None, "int64"))
        through = self.call("CumSum", [begun, self.constant(0)], None, "int64")
        which = self._cut(through, 0, -1)
        bags = self.call("Add", [starts, one], (1,), "int64")
        place = self._unsqueezed(which)
        shape = self.call("Concat", [bags, self.constant([self._width])], (2,), "int64", axis=0)
        if most:
            return self._largest_ragged(offsets, shape, place, rows, bags, which, live)
        total = self._bags(self._added("ScatterND", shape, place, rows), self._width)
        if self.bag.div is None:
            return total
        if self.bag.over is not None:
            return self._divided(total, None)
        if kept is None:
            kept = self.call("Expand", [self.constant([1], self.dtype), ids], None)
        return self._divided(total, self._bags(self._added("ScatterElements", bags, which, kept)))

    def _largest_ragged(
        self, offsets: Value, shape: Value, place: Value, rows: Value, bags: Value, which: Value, live: Value | None
    ) -> Value:
        if self.host.opset < 18:  # whose ScatterND knows no maximum
            return self._largest_padded(offsets, rows, live)
        found = self._bags(self._added("ScatterND", shape, place, rows, "max"), self._width)
        if self.bag.otherwise == float("-inf"):
            return found
        ids = self.call("Shape", [self.ids], (1,), "int64")
        counts = self.call("Expand", [self.constant([1]), ids], None, "int64") if live is None else live
        some = self._bags(self._added("ScatterElements", bags, which, self.cast(counts, "int64")))
        return self._unless_empty(found, self.cast(some, "bool"))

    def _largest_padded(self, starts: Value, rows: Value, live: Value | None) -> Value:
        """The same over bags that are all as long as the longest: more memory, no scatter."""
        count = self.call("Shape", [self.ids], (1,), "int64")
        ends = self._cut(starts, 1, END)
        ends = ends if self.bag.last else self.call("Concat", [ends, count], None, "int64", axis=0)
        starts = self._cut(starts, 0, -1) if self.bag.last else starts
        lengths = self._unsqueezed(self.call("Sub", [ends, starts], None, "int64"))
        flat = self.call("Concat", [self.call("Reshape", [lengths, self.constant([-1])], None, "int64"),
                                    self.constant([0])], None, "int64", axis=0)  # fmt: skip
        longest = self.reduce("ReduceMax", flat, 0, ())
        places = self.call("Range", [self.constant(0), longest, self.constant(1)], None, "int64")
        inside = self.call("Less", [places, lengths], None, "bool")
        at = self.call("Add", [self._unsqueezed(starts), places], None, "int64")
        at = self.call("Where", [inside, at, self.constant(0)], None, "int64")
        wide = self.call("Gather", [rows, at], None, axis=0)
        found = self.reduce("ReduceMax", self._or_lowest(wide, inside), 1, (*self.rows, self._width))
        if self.bag.otherwise == float("-inf"):
            return found
        if live is not None:
            inside = self.call("And", [inside, self.call("Gather", [live, at], None, "bool", axis=0)], None, "bool")
        # one that does not count behind each bag, so that none is empty
        none = self.call("Expand", [self.constant([[0]]), self.call("Shape", [lengths], (2,), "int64")], None, "int64")
        counts = self.call("Concat", [self.cast(inside, "int64"), none], None, "int64", axis=1)
        return self._unless_empty(found, self.cast(self.reduce("ReduceMax", counts, 1, self.rows), "bool"))

    @property
    def _width(self) -> int:
        return self.bag.columns

    def _row_numbers(self) -> Value:
        return row_numbers(self.host, self.bag, self.values[ids_of(self.bag)], self.spec.name)

    def _inside(self) -> Value:
        """Whether rows are there; those that are not are read as row 0."""
        bag, shape, kind = self.bag, self.ids.shape, self.ids.dtype or "int64"
        first = self.constant(-bag.below - 1 if bag.wraps else -1, kind)
        above = self.call("Greater", [self.ids, first], shape, "bool")
        below = self.call("Less", [self.ids, self.constant(bag.below, kind)], shape, "bool")
        inside = self.call("And", [above, below], shape, "bool")
        self.ids = self.call("Where", [inside, self.ids, self.constant(0, kind)], shape, kind)
        return inside

    def _kept(self) -> Value | None:
        """What the rows are multiplied by; None where it is 1."""
        weights, live = self._weights(), self._live()
        if live is None:
            return weights
        factor = self.cast(self._unsqueezed(live) if self.alone else live, self.dtype)
        return factor if weights is None else self.call("Mul", [weights, factor], self.ids.shape)

    def _weights(self) -> Value | None:
        weights = self.bag.weights
        return None if weights is None else self.cast(self.values[weights], self.dtype)

    def _live(self) -> Value | None:
        """Whether ids count; None where all do."""
        bag, shape = self.bag, self.ids.shape
        tests = [] if self.inside is None else [self.inside]
        if bag.pad is not None:
            pad = self.constant(bag.pad, self.ids.dtype or "int64")
            live = self.call("Greater" if bag.above else "Equal", [self.ids, pad], shape, "bool")
            tests.append(live if bag.above else self.call("Not", [live], shape, "bool"))
        if bag.mask is not None:
            held = mask_of(bag)
            assert held is not None
            given = self.cast(self.values[held], "bool")
            tests.append(self.call("Not", [given], shape, "bool") if bag.unmask else given)
        if bag.lengths is not None:
            lengths = self.values[bag.lengths]  # [rows.., 1]
            places = self.constant(range(bag.count), lengths.dtype or "int64")
            tests.append(self.call("Less", [places, lengths], shape, "bool"))
        found = None
        for test in tests:
            found = test if found is None else self.call("And", [found, test], shape, "bool")
        return found

    def _weighted(self, kept: Value | None) -> Value:
        """The rows of all ids, times `kept`."""
        bag = self.bag
        shape = (*(self.rows if self.alone else bag.ids.shape), self._width)
        scales = _scales(bag)
        operands = self.values[bag.table], self.ids, None if scales is None else self.values[scales]
        rows = _rows(self.host, self.spec, operands, View(self.ids, shape[:-1]), bag.stored, shape)
        read = self.cast(rows, self.dtype)
        if kept is None:
            return read
        wide = kept if self.alone else self._unsqueezed(kept)
        return self.call("Mul", [read, wide], shape)

    def _divided(self, total: Value, count: Value | None) -> Value:
        """A sum over how many were added up, over the sum of their weights, or over what is given."""
        assert self.bag.div is not None
        low, eps = self.bag.div
        if count is None:
            assert self.bag.over is not None
            count = self.cast(self.values[self.bag.over], self.dtype)  # [rows.., 1]
            return self._quotient(total, self._bounded(count, low, eps))
        return self._quotient(total, self._unsqueezed(self._bounded(count, low, eps)))

    def _quotient(self, total: Value, count: Value) -> Value:
        return self.call("Div", [total, count], (*self.rows, self._width))

    def _bounded(self, count: Value, low: float, eps: float) -> Value:
        if low != float("-inf"):
            count = self.call("Max", [count, self.constant(low, self.dtype)], count.shape)
        return self.call("Add", [count, self.constant(eps, self.dtype)], count.shape) if eps else count

    def _over(self, count: float) -> float:
        assert self.bag.div is not None
        return max(count, self.bag.div[0]) + self.bag.div[1]

    def reduce(self, op: str, x: Value, axis: int, shape: tuple[Size, ...]) -> Value:
        if self.host.opset >= 18 or (op == "ReduceSum" and self.host.opset >= 13):
            return self.call(op, [x, self.constant([axis])], shape, x.dtype or self.dtype, keepdims=0)
        return self.call(op, [x], shape, x.dtype or self.dtype, keepdims=0, axes=[axis])

    def _unsqueezed(self, x: Value) -> Value:
        shape = None if x.shape is None else (*x.shape, 1)
        return self._along("Unsqueeze", x, -1, shape)

    def _along(self, op: str, x: Value, axis: int, shape: tuple[Size, ...] | None) -> Value:
        return along(self.host, self.spec, op, x, axis, shape)

    def _cut(self, x: Value, start: int, stop: int, *shape: Size) -> Value:
        bounds = [self.constant([n]) for n in (start, stop, 0)]
        return self.call("Slice", [x, *bounds], shape or None, x.dtype or self.dtype)

    def _bags(self, x: Value, *width: Size) -> Value:
        """Without what lies before the first bag, and behind the last where the offsets say where that is."""
        return self._cut(x, 1, -1 if self.bag.last else END, *self.rows, *width)

    def _added(self, op: str, shape: Value, places: Value, x: Value, reduction: str = "add") -> Value:
        """Zeros of a shape, to which `x` is added at places; or of lowest numbers, the maximum with it."""
        kind = x.dtype or self.dtype
        start = np.zeros(1) if reduction == "add" else np.full(1, -np.inf)
        begun = self.call("Expand", [self.constant(start, kind), shape], None, kind)
        return self.call(op, [begun, places, x], None, kind, reduction=reduction)
