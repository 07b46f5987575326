"""What no input changes is a constant: small ones are computed, known sizes and the shapes of reshapes written out.

before:  Add(x, Unsqueeze(b));  Div(x, Cast(Gather(Shape(y [B, 8]), 1)));  Reshape(x [B, S, 8], Concat(B * S, 8))
after:   Add(x, b');            Div(x, 8.0);                               Reshape(x, [-1, 8])
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Container, Iterator

import numpy as np

from recopt.errors import GraphError
from recopt.hosts.base import Array, Host, Node, Value
from recopt.report import Rewrite
from recopt.rewrite import Context

name = "fold-constants"

LARGEST = 1 << 20  # bytes of a constant that is computed: never a table
DTYPES = frozenset("bool uint8 int8 int16 int32 int64 float16 float32 float64".split())
QUANTISED = ("QuantizeLinear", "DequantizeLinear")  # weights of few bits stay as small as they are


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten; in files alone: in torch a view of a weight costs nothing."""
    if host.dialect != "onnx":
        return False
    changed = False
    for step in (_sizes, _shapes, _constants):  # each sees what the ones before it made constant
        for old, array in list(step(host)):
            if context.allows(name, old.name):
                _write(host, context, old, array, of_reshape=step is _shapes)
                changed = True
    return context.settle(host, changed)


def _sizes(host: Host) -> Iterator[tuple[Value, Array]]:
    """Whole numbers that arithmetic of shapes ends in, where no symbol is left in them."""
    known = {v: c for v, c in host.contents().items() if all(isinstance(item, int) for item in c)}
    for value, content in known.items():
        if value.shape is not None and math.prod(value.shape) == len(content) and _ends(host, value, known):
            yield value, np.array(content, value.dtype).reshape(np.array(value.shape, int))


def _shapes(host: Host) -> Iterator[tuple[Value, Array]]:
    """The results of reshapes to computed shapes, and the constant shapes that say the same: the sizes that are no
    numbers stay in their places, or are one. Both at once would be wrong for an empty batch."""
    contents = host.contents()
    for node in host.nodes:
        if node.op != "Reshape" or node.args[1] not in contents or host.is_constant(node.args[1]):
            continue
        before, after = node.args[0].shape, node.outputs[0].shape
        if before is None or after is None or 0 in after:
            continue
        stay = [n < len(before) and before[n] == size and not isinstance(size, int) for n, size in enumerate(after)]
        moved = [n for n, size in enumerate(after) if not isinstance(size, int) and not stay[n]]
        if not moved or (len(moved) == 1 and not any(stay)):
            numbers = [size if isinstance(size, int) else 0 if stay[n] else -1 for n, size in enumerate(after)]
            yield node.outputs[0], np.array(numbers, np.int64)


def _constants(host: Host) -> Iterator[tuple[Value, Array]]:
    """Constants that nodes compute, each at the end of its chain."""
    chain = {v for n in host.nodes for v in n.outputs if host.is_constant(v)}
    kept: set[Value] = set()
    for node in host.nodes:
        if node.op in QUANTISED or not kept.isdisjoint(node.inputs):
            kept.update(node.outputs)
        for value in node.outputs:
            if value in chain and value not in kept and _is_small(value) and _ends(host, value, chain):
                with contextlib.suppress(GraphError):  # what it is computed from is too large
                    yield value, host.constant(value)


def _is_small(value: Value) -> bool:
    sizes = value.shape
    if sizes is None or value.dtype not in DTYPES or not all(isinstance(size, int) for size in sizes):
        return False
    return math.prod(sizes) * np.dtype(value.dtype).itemsize <= LARGEST


def _ends(host: Host, value: Value, known: Container[Value]) -> bool:
    """Whether a node that computes something else reads `value`."""
    readers: list[Node] = [] if value.node is None or host.is_output(value) else list(host.users(value))
    return any(out not in known for reader in readers for out in reader.outputs)


def _write(host: Host, context: Context, old: Value, array: Array, of_reshape: bool) -> None:
    assert old.node is not None
    new = host.add_constant(array, name=f"{old.name}_shape" if of_reshape else old.name)
    if of_reshape:
        with host.at(old.node):
            args = [old.node.args[0], new]
            new = host.call("Reshape", args, name=old.name, shape=old.shape, dtype=old.dtype, like=old)
    host.replace(old, new)
    after = (new.node.name,) if new.node else ()
    detail = "a shape that is known" if of_reshape else "a constant"
    context.report.rewrites.append(
        Rewrite(name, "constant", old.name, (old.node.name,), after, 0.0, 0.0, 1.0, None, detail)
    )
