"""Between which whole numbers all elements of a value of an ONNX graph lie, for any input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .. import lower
from ..hosts.base import Host, Node, Value
from ..lower.onnx_columns import same_anywhere

Range = tuple[int, int]

EXACT = {"bool": 1, "float16": 1 << 11, "float32": 1 << 24, "float64": 1 << 53}  # up to which whole numbers are exact
KEPT = frozenset(
    """Identity Reshape Flatten Squeeze Unsqueeze Transpose Expand Slice Split Gather Dropout Tile""".split()
)  # of the first operand
DEEPEST = 64  # operators that are asked one after the other


def whole_range(host: Host, value: Value | None, depth: int = DEEPEST) -> Range | None:
    """The least and the largest element that `value` may have, where all are whole numbers; None where unknown."""
    if value is None or depth == 0:
        return None
    if host.is_constant(value):
        return _held(host, value)
    if value.dtype == "bool":
        return 0, 1
    node = value.node
    found = None if node is None or node.opaque else _computed(host, node, depth - 1)
    return found if found is not None and _fits(found, value.dtype) else None


def _held(host: Host, value: Value) -> Range | None:
    if value.shape is None or not all(isinstance(s, int) for s in value.shape) or math.prod(value.shape) > 1 << 16:
        return None
    held = host.constant(value)
    if held.size == 0 or held.dtype.kind not in "biuf" or not np.isfinite(held).all() or (held != np.trunc(held)).any():
        return None
    return int(held.min()), int(held.max())


def _fits(found: Range, dtype: str | None) -> bool:
    """Whether a type holds all numbers of a range exactly."""
    if dtype in EXACT:
        return max(-found[0], found[1]) <= EXACT[dtype]
    if dtype is None or "int" not in dtype:
        return False
    held = np.iinfo(dtype)
    return held.min <= found[0] and found[1] <= held.max


def _computed(host: Host, node: Node, depth: int) -> Range | None:
    if node.op in KEPT or node.op == "Cast":
        return whole_range(host, node.args[0], depth)
    if node.op in ("Where", "Concat"):
        return _either([whole_range(host, arg, depth) for arg in (node.args[1:] if node.op == "Where" else node.args)])
    if node.op in ("Mod", "BitwiseAnd"):
        return _masked(host, node)
    if node.op == "Clip":
        bounds = [None if arg is None else whole_range(host, arg, depth) for arg in node.args[1:]]
        whole = str(node.outputs[0].dtype).startswith("int") and same_anywhere(host, node)
        return (bounds[0][0], bounds[1][1]) if whole and len(bounds) == 2 and bounds[0] and bounds[1] else None
    if node.op in ("Add", "Sub", "Mul"):
        return _arithmetic(node.op, [whole_range(host, arg, depth) for arg in node.args])
    if node.op == "ReduceSum":
        found, shape = whole_range(host, node.args[0], depth), node.args[0].shape
        axes, _ = lower.columns_of(host).sum_axes(node) or ([], False)
        summed = [shape[a] for a in axes] if shape and all(-len(shape) <= a < len(shape) for a in axes) else []
        if found is None or not summed or not all(isinstance(s, int) for s in summed):
            return None
        count = math.prod(summed)
        return found[0] * count, found[1] * count
    return None


def _either(found: Sequence[Range | None]) -> Range | None:
    known = [r for r in found if r is not None]
    return (min(r[0] for r in known), max(r[1] for r in known)) if known and len(known) == len(found) else None


def _masked(host: Host, node: Node) -> Range | None:
    """Of a remainder by positive numbers, or of the low bits."""
    by = node.args[1]
    held = _held(host, by) if host.is_constant(by) else None
    if held is None or node.kwargs.get("fmod", 0) or node.outputs[0].dtype not in ("int32", "int64"):
        return None
    if node.op == "Mod":
        return (0, held[1] - 1) if held[0] > 0 else None
    return (0, held[1]) if held[0] >= 0 else None


def _arithmetic(op: str, found: Sequence[Range | None]) -> Range | None:
    (a, b) = found
    if a is None or b is None:
        return None
    if op == "Add":
        return a[0] + b[0], a[1] + b[1]
    if op == "Sub":
        return a[0] - b[1], a[1] - b[0]
    products = [x * y for x in a for y in b]
    return min(products), max(products)
