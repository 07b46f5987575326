"""Shifts of signed whole numbers to the right, which ONNX has of unsigned ones alone.

    where(x < 0, int(uint(x) >> k | ones), int(uint(x) >> k))  ->  x >> k        ones: the k highest bits

So torch's exporter writes them. Terms know no unsigned numbers of that many bits, so the nodes are looked at.
"""

from __future__ import annotations

from ..hosts.base import Node, Value
from ..ir import ops
from ..ir.tensor import Tensor
from ..ir.term import Fn
from .base import Call
from .onnx_common import like

UNSIGNED = {"int64": ("uint64", 64), "int32": ("uint32", 32)}


def signed_shift(c: Call) -> Tensor | None:
    """What a Where gives if it is such a shift; None if not."""
    condition, filled, plain = c.node.args
    shifted = _bits(plain, "BitShift")
    source = shifted.args[0].node if shifted is not None else None
    if shifted is None or source is None or source.op != "Cast" or shifted.kwargs.get("direction") != "RIGHT":
        return None
    x, bits = source.args[0], shifted.outputs[0]
    dtype, width = UNSIGNED.get(x.dtype, ("", 0))
    k, ones = _number(c, shifted.args[1]), _ones(c, _bits(filled, "BitwiseOr"), bits)
    if bits.dtype != dtype or {filled.dtype, plain.dtype} != {x.dtype} or k is None or not 0 <= k < width - 1:
        return None
    negative, seen = c.lifted.definition.get(condition), c.lifted.of(x)
    if ones != (1 << width) - (1 << (width - k)) or negative is None or seen is None:
        return None
    test = negative.body.atom
    if not isinstance(test, Fn) or test.name != "lt" or test.args[1].number != 0:
        return None
    if negative.with_body(test.args[0]).canonical() != seen.canonical():
        return None
    return ops.pointwise("shift_right", seen, like(k, seen))


def _bits(value: Value, op: str) -> Node | None:
    """The node `op` whose result is cast to a value."""
    cast = value.node
    made = cast.args[0].node if cast is not None and cast.op == "Cast" else None
    return made if made is not None and made.op == op else None


def _ones(c: Call, node: Node | None, bits: Value) -> int | None:
    """What is set besides `bits`."""
    for one, other in (node.args, node.args[::-1]) if node is not None else ():
        if one is bits:
            return _number(c, other)
    return None


def _number(c: Call, value: Value) -> int | None:
    """The one number of a constant."""
    held = c.host.constant(value).reshape(-1) if c.host.is_constant(value) else None
    return int(held[0]) if held is not None and held.size == 1 else None
