"""What assignments leave once they are functional: copies that take the strides of what they would have overwritten.

torch makes them by a copy of all memory between the first and the last element of the part that is written.

before:  slice_scatter(x, copy(slice(x), v))    select_scatter(x, fill(select(x), 0))
after:   slice_scatter(x, v)                    select_scatter(x, expand_as(0, select(x)))
"""

from __future__ import annotations

import numpy as np

from .base import Host, Node, Value

COPY = "aten.copy.default"
FILLS = ("aten.fill.Tensor", "aten.fill.Scalar")
WRITES = ("aten.slice_scatter.default", "aten.select_scatter.default")  # the second argument is what they write
EXACT = 2**53  # whole numbers up to which are floats of Python


def written(host: Host, node: Node) -> Value | None:
    """What stands for a copy or a fill that nothing but assignments reads, by calls at the insertion point. None where
    it stays."""
    if node.op != COPY and node.op not in FILLS:
        return None
    out, over, value = node.outputs[0], node.args[0], node.args[1]
    if host.is_output(out) or not all(_writes(u, out) for u in host.users(out)):
        return None
    if node.op in FILLS:
        value = _constant(host, value, out)
    if not isinstance(value, Value) or value.dtype != out.dtype or value.shape is None or out.shape is None:
        return None
    if value.shape == out.shape:
        return value
    return host.call("aten.expand_as.default", (value, over), name=node.name, like=out)


def _writes(node: Node, value: Value) -> bool:
    """Whether a node is an assignment of `value`, and no more."""
    return node.op in WRITES and len(node.args) > 1 and node.args[1] is value and node.args[0] is not value


def _constant(host: Host, value: object, out: Value) -> Value | None:
    """What a fill writes, in the dtype of `out`. None where conversions might differ from torch's."""
    if isinstance(value, Value):
        if not host.is_constant(value) or value.dtype == out.dtype:
            return value
        value = host.constant(value).item()
    if out.dtype not in ("float32", "float64") or not isinstance(value, (int, float)):
        return None
    if isinstance(value, int) and abs(value) > EXACT:
        return None
    return host.add_constant(np.array(value, out.dtype), name=f"{out.name}_written")
