"""Fused embedding bags as ONNX nodes: a Gather and a reduction a bag, one Concat; for `recopt` one node around them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..fused import Bag, EmbeddingBags, Reshape, Stored, View
from ..hosts.base import Value
from ..hosts.onnx import OnnxHost
from ..hosts.types.onnx import element_code
from ..ir.sizes import Size, product
from .onnx import folded
from .onnx_ids import plain, row_numbers, stored_rows
from .onnx_layout import END, apply, view
from .onnx_writer import Writer

# Tables of one width are not stacked under one Gather: with ids that must be refused as before it takes 0.8 to 1.4
# times as long at the nominal batch (benchmarks/merged_tables.py), and every table would be written anew.
POOLS = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax"}


def embedding_bags(host: Writer, spec: EmbeddingBags, target: str) -> Value:
    """Append the nodes of `spec` at the host's insertion point and return its value. Raises LowerError."""
    spec = _plain(host, spec)
    write = _function if target == "recopt" else _nodes
    return apply(host, write(host, spec), spec.steps, spec.name)


def _plain(host: Writer, spec: EmbeddingBags) -> EmbeddingBags:
    """`spec` with ids that name rows themselves."""

    def read(table: View, ids: View, stored: Stored | None) -> Value:
        scales = stored.scales.value if stored and stored.scales else None
        operands = view(host, table, spec.name), ids.value, scales
        return _rows(host, spec, operands, ids, stored, (*ids.shape, table.shape[1]))

    def term(item: Bag | View) -> Bag | View:
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
    numbers = {v: n for n, v in enumerate(operands)}

    def told(term: Bag | View) -> object:
        if isinstance(term, View):
            return numbers[term]
        stored = term.stored or Stored(32, term.columns)
        read = (term.table, _ids(term), term.weights, _offsets(term), term.lengths, _scales(term))
        rows = (term.modulus, term.shift, term.pad, term.above, term.below, term.div, term.last)
        shape = term.pool, term.count, term.columns, len(term.ids.shape), stored.bits
        return shape, rows, [v and numbers[v] for v in read]

    types = [v.dtype or spec.dtype for v in operands.values()]
    text = repr((types, [[told(term) for term in piece] for piece in spec.pieces]))
    name = f"EmbeddingBags_{hashlib.sha1(text.encode()).hexdigest()[:8]}"

    def body(inner: OnnxHost, values: list[Value]) -> Value:
        return _side_by_side(inner, spec, dict(zip(operands, values, strict=True)))

    op = host.define(name, types, body)
    return host.call(op, list(operands.values()), name=spec.name, shape=spec.shape, dtype=spec.dtype)


def _operands(host: Writer, spec: EmbeddingBags) -> dict[View, Value]:
    """What is read, each view once."""
    parts = [(bag.table, _ids(bag), bag.weights, _offsets(bag), bag.lengths, _scales(bag)) for bag in spec.bags]
    read = [v for part in parts for v in part if v]
    dense = [term for piece in spec.pieces for term in piece if isinstance(term, View)]
    tables = {bag.table: folded(host, bag.table, bag.table.steps, spec.name) for bag in spec.bags if bag.table.steps}
    return {item: tables.get(item) or view(host, item, spec.name) for item in dict.fromkeys((*dense, *read))}


def _scales(bag: Bag) -> View | None:
    return bag.stored.scales if bag.stored is not None else None


def _ids(bag: Bag) -> View:
    """The ids; those of single rows without their last dimension, which a Gather would keep."""
    return _flatter(bag.ids) if bag.pool == "row" and bag.count == 1 else bag.ids


def _offsets(bag: Bag) -> View | None:
    """The offsets along one dimension."""
    return bag.offsets if bag.offsets is None or len(bag.offsets.shape) == 1 else _flatter(bag.offsets)


def _flatter(item: View) -> View:
    """A view without its last dimension, which has size 1."""
    rows = item.shape[:-1]
    kept = item.steps[:-1] if item.steps and isinstance(item.steps[-1], Reshape) else item.steps
    return View(item.value, rows, (*kept, Reshape(rows)))


def _side_by_side(host: Writer | OnnxHost, spec: EmbeddingBags, values: Mapping[View, Value]) -> Value:
    pieces = []
    for piece in spec.pieces:
        terms = [_bag(host, spec, t, values) if isinstance(t, Bag) else values[t] for t in piece]
        joint = terms[0]
        for term in terms[1:]:
            joint = host.call("Add", [joint, term], name=spec.name, shape=joint.shape, dtype=spec.dtype)
        pieces.append(joint)
    if len(pieces) == 1:
        return pieces[0]
    axis = {"axis": len(spec.shape) - 1}
    return host.call("Concat", pieces, axis, name=spec.name, shape=spec.shape, dtype=spec.dtype)


def _bag(host: Writer | OnnxHost, spec: EmbeddingBags, bag: Bag, values: Mapping[View, Value]) -> Value:
    nodes = _Nodes(host, spec, bag, values)
    if bag.pool == "row":
        return nodes.side_by_side()
    return nodes.ragged() if bag.offsets is not None else nodes.pooled()


class _Nodes:
    """The nodes of one bag."""

    def __init__(self, host: Writer | OnnxHost, spec: EmbeddingBags, bag: Bag, values: Mapping[View, Value]) -> None:
        self.host, self.spec, self.bag, self.values = host, spec, bag, values
        self.dtype = spec.dtype
        # the rows of the result, and whether the ids have a dimension of their own beside them
        self.rows = bag.ids.shape[:-1] if bag.offsets is None else spec.shape[:-1]
        self.alone = bag.pool == "row" and bag.count == 1
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

    def side_by_side(self) -> Value:
        rows = self._weighted(self._kept())
        if self.alone:
            return rows
        return apply(self.host, rows, (Reshape((*self.rows, product((self.bag.count, self._width)))),), self.spec.name)

    def pooled(self) -> Value:
        kept = self._kept()
        rows, axis = self._weighted(kept), len(self.rows)
        shape = (*self.rows, self._width)
        total = self._reduce(POOLS[self.bag.pool], rows, axis, shape)
        if self.bag.div is None:
            return total
        if kept is None:
            return self.call("Div", [total, self.constant(self._over(float(self.bag.count)), self.dtype)], shape)
        return self._divided(total, self._reduce("ReduceSum", kept, axis, self.rows))

    def ragged(self) -> Value:
        """Rows are added to the bag that begins last at or before their id; bag 0 takes what lies before the first."""
        kept = self._kept()
        rows = self._weighted(kept)
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
        total = self._bags(self._added("ScatterND", shape, place, rows), self._width)
        if self.bag.div is None:
            return total
        if kept is None:
            kept = self.call("Expand", [self.constant([1], self.dtype), ids], None)
        return self._divided(total, self._bags(self._added("ScatterElements", bags, which, kept)))

    @property
    def _width(self) -> int:
        return self.bag.columns

    def _row_numbers(self) -> Value:
        return row_numbers(self.host, self.bag, self.values[_ids(self.bag)], self.spec.name)

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
        bag, shape = self.bag, self.ids.shape
        factors = [] if bag.weights is None else [self.cast(self.values[bag.weights], self.dtype)]
        if self.inside is not None:
            factors.append(self.cast(self._unsqueezed(self.inside) if self.alone else self.inside, self.dtype))
        if bag.pad is not None:
            pad = self.constant(bag.pad, self.ids.dtype or "int64")
            live = self.call("Greater" if bag.above else "Equal", [self.ids, pad], shape, "bool")
            live = live if bag.above else self.call("Not", [live], shape, "bool")
            factors.append(self.cast(self._unsqueezed(live) if self.alone else live, self.dtype))
        if bag.lengths is not None:
            lengths = self.values[bag.lengths]  # [rows.., 1]
            places = self.constant(range(bag.count), lengths.dtype or "int64")
            factors.append(self.cast(self.call("Less", [places, lengths], shape, "bool"), self.dtype))
        kept = None
        for factor in factors:
            kept = factor if kept is None else self.call("Mul", [kept, factor], shape)
        return kept

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

    def _divided(self, total: Value, count: Value) -> Value:
        """A sum over how many were added up, or over the sum of their weights."""
        assert self.bag.div is not None
        low, eps = self.bag.div
        if low != float("-inf"):
            count = self.call("Max", [count, self.constant(low, self.dtype)], count.shape)
        count = self.call("Add", [count, self.constant(eps, self.dtype)], count.shape) if eps else count
        return self.call("Div", [total, self._unsqueezed(count)], (*self.rows, self._width))

    def _over(self, count: float) -> float:
        assert self.bag.div is not None
        return max(count, self.bag.div[0]) + self.bag.div[1]

    def _reduce(self, op: str, x: Value, axis: int, shape: tuple[Size, ...]) -> Value:
        if self.host.opset >= 18 or (op == "ReduceSum" and self.host.opset >= 13):
            return self.call(op, [x, self.constant([axis])], shape, keepdims=0)
        return self.call(op, [x], shape, keepdims=0, axes=[axis])

    def _unsqueezed(self, x: Value) -> Value:
        shape = None if x.shape is None else (*x.shape, 1)
        return self.call("Unsqueeze", [x, self.constant([-1])], shape, x.dtype or self.dtype)

    def _cut(self, x: Value, start: int, stop: int, *shape: Size) -> Value:
        bounds = [self.constant([n]) for n in (start, stop, 0)]
        return self.call("Slice", [x, *bounds], shape or None, x.dtype or self.dtype)

    def _bags(self, x: Value, *width: Size) -> Value:
        """Without what lies before the first bag, and behind the last where the offsets say where that is."""
        return self._cut(x, 1, -1 if self.bag.last else END, *self.rows, *width)

    def _added(self, op: str, shape: Value, places: Value, x: Value) -> Value:
        """Zeros of a shape, to which `x` is added at places."""
        kind = x.dtype or self.dtype
        zeros = self.call("Expand", [self.constant(np.zeros(1), kind), shape], None, kind)
        return self.call(op, [zeros, places, x], None, kind, reduction="add")
