"""One embedding bag as ONNX nodes: the rows that its ids name, what they are multiplied by, and how they are pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..fused import Again, Bag, EmbeddingBags, Reshape, Stored, View
from ..hosts.base import Value
from ..hosts.onnx import OnnxHost
from ..hosts.types.onnx import element_code
from ..ir.sizes import Size, product
from .onnx_ids import alone, flatter, ids_of, mask_of, row_numbers, stored_rows
from .onnx_layout import apply
from .onnx_writer import Writer

MULTIPLIED = 4  # ids and columns from which a product of matrices takes 0.4 to 1.0 of the time of products and a sum
TURNED = 64  # numbers of a bag's rows up to which ONNX Runtime sums them quicker over a first dimension: 11 us, not 25
POOLS = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax"}


def multiplied(bag: Bag) -> bool:
    """Whether a bag is written as a product of matrices."""
    fixed = bag.pool == "sum" and bag.offsets is None and is_weighed(bag)
    return fixed and min(bag.count, bag.columns) >= MULTIPLIED


def is_weighed(bag: Bag) -> bool:
    return bool(bag.weights or bag.mask or bag.live or bag.lengths or bag.below or bag.pad is not None)


def rows_of(
    host: Writer | OnnxHost, spec: EmbeddingBags, operands: tuple[Value, Value, Value | None], ids: View,
    stored: Stored | None, shape: tuple[Size, ...],
) -> Value:  # fmt: skip
    """The rows of a table that ids name, as numbers; the operands are table, ids and scales."""
    if stored is not None:
        return stored_rows(host, operands, ids, stored, spec.name)
    dtype = operands[0].dtype or spec.dtype
    return host.call("Gather", list(operands[:2]), {"axis": 0}, name=spec.name, shape=shape, dtype=dtype)


def scales_of(bag: Bag) -> View | None:
    return bag.stored.scales if bag.stored is not None else None


def offsets_of(bag: Bag) -> View | None:
    """The offsets along one dimension."""
    return bag.offsets if bag.offsets is None or len(bag.offsets.shape) == 1 else flatter(bag.offsets)


def along(
    host: Writer | OnnxHost, spec: EmbeddingBags, op: str, x: Value, axis: int, shape: tuple[Size, ...] | None
) -> Value:
    """Squeeze or Unsqueeze of one dimension, whose number was an attribute before opset 13."""
    dtype = x.dtype or spec.dtype
    if host.opset < 13:
        return host.call(op, [x], {"axes": [axis]}, name=spec.name, shape=shape, dtype=dtype)
    axes = host.share_constant(np.array([axis]), name=f"{spec.name}_constant")
    return host.call(op, [x, axes], name=spec.name, shape=shape, dtype=dtype)


class Nodes:
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

    def pooled(self, target: str) -> Value:
        """The rows of each bag as one."""
        if self.bag.pool == "max":
            return self._largest()
        kept = self._kept()
        axis, shape = len(self.rows), (*self.rows, self._width)
        if kept is None and target != "ort-cuda" and self.bag.count * self._width <= TURNED and not self.bag.stored:
            total = self._times(self._turned(shape))
        elif kept is not None and multiplied(self.bag):
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

    def _turned(self, shape: tuple[Size, ...]) -> Value:
        """The sum or the mean of rows [L, rows.., D], of ids that are turned first."""
        turned, last = (self.bag.count, *self.rows), len(self.rows)
        ids = self.call("Transpose", [self.ids], turned, self.ids.dtype or "int64", perm=[last, *range(last)])
        table = self.values[self.bag.table]
        rows = self.call("Gather", [table, ids], (*turned, self._width), table.dtype or self.dtype, axis=0)
        return self.reduce(POOLS[self.bag.pool], self.cast(rows, self.dtype), 0, shape)

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
        return self._unless_empty(found, self._unsqueezed(self.cast(counted, "bool")))

    def _or_lowest(self, rows: Value, live: Value) -> Value:
        lowest = self.constant(self.bag.otherwise if self.bag.least else float("-inf"), self.dtype)
        if self.bag.taken:  # a quarter of the time of a choice by row: 11 us, not 41
            taken = self.call("Where", [live, self.constant(0, self.dtype), lowest], live.shape)
            return self.call("Add", [rows, self._unsqueezed(taken)], rows.shape)
        return self.call("Where", [self._unsqueezed(live), rows, lowest], rows.shape)

    def _unless_empty(self, found: Value, some: Value) -> Value:
        """What is found where ids count, told by [rows.., 1]."""
        otherwise = self.constant(self.bag.otherwise, self.dtype)
        return self.call("Where", [some, found, otherwise], found.shape)

    def _times(self, x: Value) -> Value:
        factor = self.bag.factor
        return x if factor == 1 else self.call("Mul", [x, self.constant(factor, self.dtype)], x.shape)

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
        scales = scales_of(bag)
        operands = self.values[bag.table], self.ids, None if scales is None else self.values[scales]
        rows = rows_of(self.host, self.spec, operands, View(self.ids, shape[:-1]), bag.stored, shape)
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
