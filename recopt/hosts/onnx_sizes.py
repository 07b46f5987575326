"""Sizes that onnx's inference leaves open: shape arithmetic followed in symbols.

Exporters compute shapes at run time (Shape, Gather, Concat, Where, ... into Reshape, Expand, Slice, Range). Here the
small integer tensors of that arithmetic are evaluated over sizes, and the shapes that they decide become hints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from ..ir import sizes
from ..ir.sizes import Size
from .base import Array, Node, Value

Content: TypeAlias = "list[Size | None]"  # the elements of an integer tensor of rank 0 or 1; None where unknown
Shape: TypeAlias = "tuple[Size | None, ...]"

LONGEST = 64  # elements of a shape, with a margin
END = 1 << 31  # from here a Slice's bound means "to the end"


class Sizes:
    """What is known of the sizes of one graph; `named` are the symbols of its inputs."""

    def __init__(self, constant: Callable[[Value], Array | None], named: Iterable[object]) -> None:
        self.constant = constant
        self.named = set(named)
        self.constants: dict[Value, Content | None] = {}
        self.contents: dict[Value, Content | None] = {}

    def hints(self, nodes: Sequence[Node]) -> dict[str, Shape]:
        """Name -> shape of the values of `nodes`, in topological order, that become better known."""
        found: dict[str, Shape] = {}
        self.contents = {}
        for node in nodes:
            if node.opaque or len(node.outputs) != 1:
                continue
            output = node.outputs[0]
            rule = SHAPES.get(node.op)
            if rule is not None and not self.is_known(output.shape):
                shape = rule(self, node)
                if shape is not None and self.gains(output.shape, shape):
                    found[output.name] = shape
            content = CONTENTS.get(node.op)
            if content is not None and output.dtype in {"int64", "int32", "bool"}:
                self.contents[output] = content(self, node)
        return found

    def known(self, size: Size | None) -> Size | None:
        """`size` unless it has a symbol that inference made up."""
        return size if size is not None and (isinstance(size, int) or size.free_symbols <= self.named) else None

    def is_known(self, shape: Sequence[Size | None] | None) -> bool:
        return shape is not None and all(self.known(size) is not None for size in shape)

    def gains(self, before: Sequence[Size] | None, after: Shape) -> bool:
        if before is None or len(before) != len(after):
            return before is None
        return any(self.known(b) is None and a is not None for b, a in zip(before, after, strict=True))

    def shape(self, value: Value) -> Shape | None:
        return None if value.shape is None else tuple(self.known(size) for size in value.shape)

    def content(self, value: Value | None) -> Content | None:
        """The elements of `value` where it is a small integer tensor."""
        if value is None:
            return None
        if value in self.contents:
            return self.contents[value]
        if value not in self.constants:
            array = self.constant(value)
            small = array is not None and array.ndim <= 1 and array.size <= LONGEST and array.dtype.kind in "iub"
            self.constants[value] = [int(item) for item in array.ravel()] if array is not None and small else None
        return self.constants[value]

    def numbers(self, value: Value | None) -> list[int] | None:
        content = self.content(value)
        return None if content is None else [c for c in content if isinstance(c, int)] if None not in content else None


# Contents


def _arg(node: Node, index: int) -> Value | None:
    return node.args[index] if index < len(node.args) else None


def _shape_op(s: Sizes, node: Node) -> Content | None:
    shape = s.shape(node.args[0])
    return None if shape is None else list(shape[node.kwargs.get("start", 0) : node.kwargs.get("end")])


def _gather(s: Sizes, node: Node) -> Content | None:
    data, indices = s.content(node.args[0]), s.numbers(node.args[1])
    if data is None or indices is None or any(not -len(data) <= i < len(data) for i in indices):
        return None
    return [data[i] for i in indices]


def _slice(s: Sizes, node: Node) -> Content | None:
    data = s.content(node.args[0])
    starts, ends, steps = (s.numbers(_arg(node, i)) for i in (1, 2, 4))
    if data is None or not starts or not ends or (steps is None and _arg(node, 4) is not None):
        return None
    return data[starts[0] : ends[0] : steps[0]] if steps else data[starts[0] : ends[0]]


def _concat(s: Sizes, node: Node) -> Content | None:
    parts = [s.content(value) for value in node.args]
    return None if None in parts else [item for part in parts if part is not None for item in part]


def _same(s: Sizes, node: Node) -> Content | None:
    return s.content(node.args[0])


def _flat(s: Sizes, node: Node) -> Content | None:
    shape = node.outputs[0].shape
    return s.content(node.args[0]) if shape is not None and len(shape) <= 1 else None


def _filled(s: Sizes, node: Node) -> Content | None:
    length, value = s.numbers(node.args[0]), node.kwargs.get("value")
    if length is None or len(length) > 1 or math.prod(length) > LONGEST:
        return None
    return [0 if value is None else int(value.ravel()[0])] * math.prod(length)


def _product(s: Sizes, node: Node) -> Content | None:
    data = s.content(node.args[0])
    return None if data is None else [None if None in data else sizes.product(d for d in data if d is not None)]


def _size_of(s: Sizes, node: Node) -> Content | None:
    shape = s.shape(node.args[0])
    return None if shape is None or None in shape else [sizes.product(d for d in shape if d is not None)]


def _pointwise(function: Callable[..., Size | None]) -> Callable[[Sizes, Node], Content | None]:
    def rule(s: Sizes, node: Node) -> Content | None:
        parts = [s.content(value) for value in node.args]
        length = max((len(part) for part in parts if part is not None), default=0)
        columns = [part * length if len(part) == 1 else part for part in parts if part is not None]
        if len(columns) != len(parts) or any(len(column) != length for column in columns):
            return None
        return [None if None in items else function(*items) for items in zip(*columns, strict=True)]

    return rule


def _equal(a: Size, b: Size) -> Size | None:
    """Of sizes that may be 0: a graph may ask whether its batch is empty."""
    difference = sizes.add(a, sizes.mul(-1, b))
    if isinstance(difference, int):
        return int(difference == 0)
    return 0 if _more(a, b) or _more(b, a) else None


def _greater(a: Size, b: Size) -> Size | None:
    if _more(a, b):
        return 1
    return 0 if sizes.at_least(b, a, sizes.symbols_of(b) | sizes.symbols_of(a)) else None


def _more(a: Size, b: Size) -> bool:
    return sizes.at_least(a, sizes.add(b, 1), sizes.symbols_of(a) | sizes.symbols_of(b))


def _choose(condition: Size, a: Size, b: Size) -> Size | None:
    return (a if condition else b) if isinstance(condition, int) else None


def _sub(a: Size, b: Size) -> Size:
    return sizes.add(a, sizes.mul(-1, b))


CONTENTS: Mapping[str, Callable[[Sizes, Node], Content | None]] = {
    "Shape": _shape_op,
    "Size": _size_of,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Identity": _same,
    "Cast": _same,
    "Unsqueeze": _flat,
    "Squeeze": _flat,
    "Reshape": _flat,
    "ConstantOfShape": _filled,
    "ReduceProd": _product,
    "Add": _pointwise(sizes.add),
    "Sub": _pointwise(_sub),
    "Mul": _pointwise(sizes.mul),
    "Div": _pointwise(sizes.divide),
    "Equal": _pointwise(_equal),
    "Greater": _pointwise(_greater),
    "Less": _pointwise(lambda a, b: _greater(b, a)),
    "Where": _pointwise(_choose),
}


# Shapes


def _reshaped(s: Sizes, node: Node) -> Shape | None:
    target, before = s.content(node.args[1]), s.shape(node.args[0])
    if target is None:
        return None
    result = list(target)
    for i, size in enumerate(target):
        if size == 0 and not node.kwargs.get("allowzero"):
            result[i] = before[i] if before is not None and i < len(before) else None
    if -1 in result:
        rest = [d for d in result if d != -1]
        whole = before is not None and None not in before and None not in rest
        total = sizes.product(d for d in before or () if d is not None)
        length = sizes.divide(total, sizes.product(d for d in rest if d is not None)) if whole else None
        result[result.index(-1)] = length
    return tuple(result)


def _expanded(s: Sizes, node: Node) -> Shape | None:
    target, before = s.content(node.args[1]), s.shape(node.args[0])
    if target is None or before is None:
        return None
    rank = max(len(target), len(before))
    pairs = zip((1,) * (rank - len(target)) + tuple(target), (1,) * (rank - len(before)) + before, strict=True)
    return tuple(a if b == 1 or a == b else b if a == 1 else b if isinstance(b, int) else None for a, b in pairs)


def _created(s: Sizes, node: Node) -> Shape | None:
    target = s.content(node.args[0])
    return None if target is None else tuple(target)


def _range(s: Sizes, node: Node) -> Shape | None:
    start, limit, delta = (s.content(value) for value in node.args)
    if start and limit and delta == [1] and start[0] is not None and limit[0] is not None:
        length = _sub(limit[0], start[0])
        return (length,) if sizes.at_least(length, 0) else None
    return None


def _sliced(s: Sizes, node: Node) -> Shape | None:
    before = s.shape(node.args[0])
    starts, ends = s.content(node.args[1]), s.content(node.args[2])
    if before is None or starts is None or ends is None:
        return None
    axes = s.numbers(_arg(node, 3)) if _arg(node, 3) else list(range(len(starts)))
    steps = s.numbers(_arg(node, 4)) if _arg(node, 4) else [1] * len(starts)
    if axes is None or steps is None or any(step != 1 for step in steps):
        return None
    result = list(before)
    for axis, start, end in zip(axes, starts, ends, strict=True):
        size = result[axis]
        low, high = (None if size is None or b is None else _bound(b, size) for b in (start, end))
        length = None if low is None or high is None else _sub(high, low)
        result[axis] = length if length is not None and sizes.at_least(length, 0) else None
    return tuple(result)


def _bound(bound: Size, size: Size) -> Size | None:
    """A start or an end as a size between 0 and `size`, where that is sure."""
    if isinstance(bound, int) and bound < 0:
        bound = sizes.add(size, bound)
        return bound if sizes.at_least(bound, 0) else None
    if (isinstance(bound, int) and bound >= END) or sizes.at_least(bound, size):
        return size
    return bound if sizes.at_least(size, bound) else None


def _joined(s: Sizes, node: Node) -> Shape | None:
    shapes = [s.shape(value) for value in node.args]
    first, axis = shapes[0], node.kwargs["axis"]
    if first is None or any(shape is None or len(shape) != len(first) for shape in shapes):
        return None
    lengths = [shape[axis] for shape in shapes if shape is not None]
    result = [next((shape[i] for shape in shapes if shape and shape[i] is not None), None) for i in range(len(first))]
    total: Size = 0
    for length in lengths:
        total = sizes.add(total, length if length is not None else 0)
    result[axis] = None if None in lengths else total
    return tuple(result)


def _flattened(s: Sizes, node: Node) -> Shape | None:
    before, axis = s.shape(node.args[0]), node.kwargs.get("axis", 1)
    if before is None:
        return None
    axis = axis % len(before) if axis < 0 else axis
    parts = (before[:axis], before[axis:])
    return tuple(None if None in part else sizes.product(d for d in part if d is not None) for part in parts)


def _tiled(s: Sizes, node: Node) -> Shape | None:
    before, repeats = s.shape(node.args[0]), s.content(node.args[1])
    if before is None or repeats is None:
        return None
    return tuple(None if a is None or b is None else sizes.mul(a, b) for a, b in zip(before, repeats, strict=True))


SHAPES: Mapping[str, Callable[[Sizes, Node], Shape | None]] = {
    "Reshape": _reshaped,
    "Expand": _expanded,
    "ConstantOfShape": _created,
    "Range": _range,
    "Slice": _sliced,
    "Concat": _joined,
    "Flatten": _flattened,
    "Tile": _tiled,
}
