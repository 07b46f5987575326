"""ATen's pointwise operators element by element, with torch's types: each as operators of kernels/pointwise.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..hosts.base import Node, Value
from ..ir import tensor
from ..ir.normal import add
from ..ir.ranges import value_range
from ..ir.rules import FLOATS, WIDTH
from ..ir.term import number
from ..kernels.pointwise import HALF
from ..layout.element import Element, Index
from ..layout.elements import Elements
from ..match import No
from .aten_types import promoted

Function = Callable[[Elements, Node, Index], Element]
WHOLE = ("int32", "int64")  # that hold any bucket


def wide_of(dtype: str) -> str:
    """The type in which torch computes what is several operators, and rounds once."""
    return "float32" if dtype in HALF else dtype


def dtype_of(node: Node) -> str:
    """The type of a node's first result. Raises No for one that the language does not have."""
    dtype = node.outputs[0].dtype
    if dtype not in WIDTH:
        raise No("{} is of {}", node.name, dtype)
    return dtype


def promoted_of(*args: object) -> str:
    """torch.result_type of two operands."""
    return promoted(*(tensor.full(a.shape or (), 0, str(a.dtype)) if isinstance(a, Value) else a for a in args))


def _binary(op: str) -> Function:
    """op(a, b), or op(a, alpha * b)."""

    def element(e: Elements, node: Node, index: Index) -> Element:
        dtype = dtype_of(node)
        name = {"add": "or", "mul": "and"}.get(op, op) if dtype == "bool" else op
        if dtype == "bool" and name not in ("or", "and", "xor", "min", "max"):
            raise No("{} of truth values", node.op)
        a, b = (e.operand(arg, index, dtype) for arg in node.args[:2])
        alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
        if alpha != 1:
            b = e.make("mul", dtype, b, e.operand(alpha, index, dtype))
        return e.make(name, dtype, a, b)

    return element


def _reversed(op: str) -> Function:
    inner = _binary(op)

    def element(e: Elements, node: Node, index: Index) -> Element:
        if len(node.args) > 2 or node.kwargs:
            raise No("{} with a factor", node.op)
        return inner(e, Node(node.name, node.op, (node.args[1], node.args[0]), {}, node.outputs), index)

    return element


def _modulo(op: str) -> Function:
    inner = _binary(op)

    def element(e: Elements, node: Node, index: Index) -> Element:
        if dtype_of(node) not in ("float32", "int8", "int16", "int32", "int64", "uint8"):
            raise No("{} of {}", node.op, dtype_of(node))
        divisor = node.args[1]
        if divisor == 0 and "int" in dtype_of(node):
            raise No("a division by 0")
        return inner(e, node, index)

    return element


def _divide(e: Elements, node: Node, index: Index) -> Element:
    mode = node.kwargs.get("rounding_mode", node.args[2] if len(node.args) > 2 else None)
    dtype = dtype_of(node)
    if mode is not None and dtype in FLOATS:
        raise No("a rounded division of floats")
    op = {None: "div", "floor": "floordiv", "trunc": "truncdiv"}[mode]
    return e.make(op, dtype, *(e.operand(arg, index, dtype) for arg in node.args[:2]))


def _floor_divide(e: Elements, node: Node, index: Index) -> Element:
    if dtype_of(node) in FLOATS:
        raise No("a rounded division of floats")
    return e.make("floordiv", dtype_of(node), *(e.operand(arg, index, dtype_of(node)) for arg in node.args[:2]))


def _unary(op: str) -> Function:
    def element(e: Elements, node: Node, index: Index) -> Element:
        dtype = dtype_of(node)
        if (dtype == "bool" and op != "not") or (dtype == "uint8" and op in ("neg", "sign", "abs")):
            raise No("{} of {}", node.op, dtype)
        x = e.operand(node.args[0], index, dtype)
        if "float" not in dtype and op in ("floor", "ceil", "round", "trunc"):
            return x
        return e.make(op, dtype, x)

    return element


def _compare(op: str) -> Function:
    def element(e: Elements, node: Node, index: Index) -> Element:
        dtype = promoted_of(*node.args[:2])
        if dtype == "bool" and op not in ("eq", "ne"):
            raise No("an order of truth values")
        a, b = (e.operand(arg, index, dtype) for arg in node.args[:2])
        if op == "eq" and "int" in dtype and (found := _in_bucket(e, a, b) or _in_bucket(e, b, a)):
            return found
        return (_divides(e, op, a, b) if op in ("eq", "ne") else None) or e.make(op, "bool", a, b)

    return element


def _divides(e: Elements, op: str, a: Element, b: Element) -> Element | None:
    """x % d == 0 for odd d: multiples of d alone, times its inverse, are from -limit to limit: their quotients (Warren,
    Hacker's Delight, 10-17)."""
    d = a.args[1] if a.op == "rem" and b.op == "lit" and not b.args[0] and a.dtype == "int64" else None
    if not isinstance(d, Element) or d.op != "lit" or not isinstance(d.args[0], int) or d.args[0] % 2 == 0:
        return None
    divisor, (x, _) = d.args[0], a.args
    if divisor < 3 or not isinstance(x, Element):
        return None
    inverse, limit = pow(divisor, -1, 1 << 64), ((1 << 63) - 1) // divisor
    q = e.make("mul", "int64", x, e.literal(inverse - (inverse >> 63 << 64), "int64"))
    sides = ("ge", "le", "and") if op == "eq" else ("lt", "gt", "or")
    tests = [e.make(s, "bool", q, e.literal(n, "int64")) for s, n in zip(sides, (-limit, limit), strict=False)]
    return e.make(sides[2], "bool", *tests)


def _in_bucket(e: Elements, a: Element, b: Element) -> Element | None:
    """bucket(x) == k -> boundary k - 1 lies below x and boundary k does not: two of them are read and not all."""
    while a.op == "cast" and isinstance(a.args[0], Element) and "int" in a.args[0].dtype and a.dtype in WHOLE:
        a = a.args[0]
    if a.op != "bucket" or b.op not in ("at", "lit"):
        return None
    x, count, right = a.args
    assert isinstance(x, Element) and isinstance(count, int)
    place = b.index[0] if b.op == "at" else number(int(b.args[0]))  # type: ignore[arg-type]  # a number
    low, high = value_range(place)
    if not (isinstance(low, int) and isinstance(high, int) and low >= 0 and high <= count):
        return None
    first = a.index[0]
    k = e.make("at", "int64", index=(place,))
    conditions = []
    for shift, bound in ((-1, 0), (0, count)):
        at = (add(first, place, number(shift)),)
        boundary = e.make("load", x.dtype, source=a.source, index=at, checked=True)
        above = e.make("gt" if right else "ge", "bool", boundary, x)
        if shift == -1:
            above = e.make("not", "bool", above)
        if bound in (low, high):  # no boundary lies beyond the last bucket
            above = e.make("or", "bool", above, e.make("eq", "bool", k, e.literal(bound, "int64")))
        conditions.append(above)
    return e.make("and", "bool", *conditions)


def _logical(op: str) -> Function:
    def element(e: Elements, node: Node, index: Index) -> Element:
        return e.make(op, "bool", *(e.operand(arg, index, "bool") for arg in node.args[:2]))

    return element


def _shift(op: str) -> Function:
    def element(e: Elements, node: Node, index: Index) -> Element:
        dtype, by = dtype_of(node), node.args[1]
        if isinstance(by, bool) or not isinstance(by, int) or not 0 <= by < WIDTH[dtype] - (dtype != "uint8"):
            raise No("a shift by {}", by)
        return e.make(op, dtype, e.operand(node.args[0], index, dtype), e.literal(by, dtype))

    return element


def _clamp(e: Elements, node: Node, index: Index) -> Element:
    dtype = dtype_of(node)
    x = e.operand(node.args[0], index, dtype)
    given = arguments(node, "min max")
    for name, op in (("min", "max"), ("max", "min")):
        if given.get(name) is not None:
            x = e.make(op, dtype, x, e.operand(given[name], index, dtype))
    return x


def _bounded(op: str) -> Function:
    def element(e: Elements, node: Node, index: Index) -> Element:
        dtype = dtype_of(node)
        if dtype == "bool":
            raise No("{} of truth values", node.op)
        return e.make(op, dtype, *(e.operand(arg, index, dtype) for arg in node.args[:2]))

    return element


def _relu(e: Elements, node: Node, index: Index) -> Element:
    dtype = dtype_of(node)
    return e.make("max", dtype, e.operand(node.args[0], index, dtype), e.literal(0, dtype))


def _power(e: Elements, node: Node, index: Index) -> Element:
    dtype, exponent = dtype_of(node), node.args[1]
    x = e.operand(node.args[0], index, dtype)
    if exponent == 2:
        return e.make("mul", dtype, x, x)
    if dtype not in FLOATS:
        raise No("a power of integers")
    if exponent == 0.5:
        return e.make("sqrt", dtype, x)
    if exponent == 1:
        return x
    return e.make("pow", dtype, x, e.operand(exponent, index, dtype))


def _where(e: Elements, node: Node, index: Index) -> Element:
    dtype = dtype_of(node)
    condition = e.operand(node.args[0], index, "bool")
    return e.make("where", dtype, condition, *(_exact(e, arg, index, dtype) for arg in node.args[1:3]))


def _exact(e: Elements, arg: object, index: Index, dtype: str) -> Element:
    """An operand that is moved and not computed with."""
    return e.literal(arg, dtype) if isinstance(arg, (int, float)) else e.operand(arg, index, dtype)


def _masked_fill(e: Elements, node: Node, index: Index) -> Element:
    x, mask, value = node.args[:3]
    dtype = dtype_of(node)
    return e.make("where", dtype, e.operand(mask, index, "bool"), _exact(e, value, index, dtype), e.operand(x, index))


def _cast(e: Elements, node: Node, index: Index) -> Element:
    if any(node.kwargs.get(k) is not None for k in ("device", "layout")):
        raise No("{} to another device", node.op)
    return e.operand(node.args[0], index, dtype_of(node))


def _same(e: Elements, node: Node, index: Index) -> Element:
    return e.operand(node.args[0], index)


def _isnan(e: Elements, node: Node, index: Index) -> Element:
    x = e.operand(node.args[0], index)
    return e.make("isnan", "bool", x) if x.dtype in FLOATS else e.literal(0, "bool")


def _not(e: Elements, node: Node, index: Index) -> Element:
    return e.make("not", "bool", e.operand(node.args[0], index, "bool"))


def _bucketize(e: Elements, node: Node, index: Index) -> Element:
    """bucketize(x, boundaries), searchsorted(boundaries, x): how many boundaries lie below."""
    x, boundaries = node.args[:2] if "bucketize" in node.op else node.args[1::-1]
    if node.kwargs.get("sorter") is not None:
        raise No("boundaries by way of a sorter")
    if not isinstance(x, Value) or not isinstance(boundaries, Value) or not e.host.is_constant(boundaries):
        raise No("{} by boundaries that are computed", node.name)
    array = e.host.constant(boundaries)
    given = arguments(node, "out_int32 right", 2)
    right = bool(given.get("right", False)) or given.get("side") == "right"
    if array.ndim != 1 or array.dtype.name not in FLOATS | {"int32", "int64"}:
        raise No("boundaries of shape {}", array.shape)
    plain = array.astype(np.float64) if array.dtype.name in FLOATS else array
    if not (np.all(plain[:-1] <= plain[1:])):
        raise No("boundaries that are not sorted")
    at = e.operand(x, index)
    dtype = promoted_of(x, boundaries) if at.dtype != array.dtype.name else at.dtype
    if dtype != array.dtype.name:
        raise No("{} in boundaries of {}", at.dtype, array.dtype)
    found = e.cast(at, dtype)
    if array.size == 0:
        return e.literal(0, dtype_of(node))
    start = number(e.pack(boundaries, array))
    return e.make("bucket", dtype_of(node), found, array.size, int(right), source=array.dtype.name, index=(start,))


def _one_hot(e: Elements, node: Node, index: Index) -> Element:
    if len(node.args) < 2 or node.args[1] == -1:
        raise No("a one-hot whose width depends on data")
    place = e.make("at", "int64", index=(index[-1],))
    ids = e.operand(node.args[0], index[:-1], "int64")
    return e.cast(_in_bucket(e, ids, place) or e.make("eq", "bool", place, ids), dtype_of(node))


def arguments(node: Node, names: str, first: int = 1) -> dict[str, Any]:
    """Arguments by name, the first of them at a place."""
    return dict(zip(names.split(), node.args[first:], strict=False)) | dict(node.kwargs)


def named(names: str, function: Function) -> dict[str, Function]:
    """A row for each of these names."""
    return {f"aten.{name}": function for name in names.split()}


SINGLE: dict[str, Function] = {
    **named("add.Tensor add.Scalar", _binary("add")),
    **named("sub.Tensor sub.Scalar", _binary("sub")),
    **named("rsub.Scalar rsub.Tensor", _reversed("sub")),
    **named("mul.Tensor mul.Scalar", _binary("mul")),
    **named("div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode true_divide.Tensor", _divide),
    **named("floor_divide.default floor_divide.Scalar", _floor_divide),
    **named("remainder.Scalar remainder.Tensor", _modulo("rem")),
    **named("fmod.Scalar fmod.Tensor", _modulo("fmod")),
    **named("bitwise_and.Tensor bitwise_and.Scalar __and__.Tensor __and__.Scalar", _binary("and")),
    **named("bitwise_or.Tensor bitwise_or.Scalar __or__.Tensor __or__.Scalar", _binary("or")),
    **named("bitwise_xor.Tensor bitwise_xor.Scalar __xor__.Tensor __xor__.Scalar", _binary("xor")),
    **named("bitwise_not.default", _unary("not")),
    **named("__rshift__.Scalar bitwise_right_shift.Tensor_Scalar", _shift("shr")),
    **named("__lshift__.Scalar bitwise_left_shift.Tensor_Scalar", _shift("shl")),
    **named("logical_and.default", _logical("and")),
    **named("logical_or.default", _logical("or")),
    **named("logical_xor.default", _logical("xor")),
    **named("logical_not.default", _not),
    **named("eq.Tensor eq.Scalar", _compare("eq")),
    **named("ne.Tensor ne.Scalar not_equal.Tensor not_equal.Scalar", _compare("ne")),
    **named("lt.Tensor lt.Scalar less.Tensor less.Scalar", _compare("lt")),
    **named("le.Tensor le.Scalar", _compare("le")),
    **named("gt.Tensor gt.Scalar greater.Tensor greater.Scalar", _compare("gt")),
    **named("ge.Tensor ge.Scalar", _compare("ge")),
    **named("where.self where.ScalarSelf where.ScalarOther where.Scalar", _where),
    **named("masked_fill.Scalar masked_fill.Tensor", _masked_fill),
    **named("clamp.default clamp.Tensor clip.default", _clamp),
    **named("clamp_min.default maximum.default", _bounded("max")),
    **named("clamp_max.default minimum.default", _bounded("min")),
    **named("relu.default", _relu),
    **named("pow.Tensor_Scalar", _power),
    **named("to.dtype _to_copy.default", _cast),
    **named("clone.default contiguous.default", _same),
    **named("isnan.default", _isnan),
    **named("bucketize.Tensor searchsorted.Tensor", _bucketize),
    **named("one_hot.default", _one_hot),
    **{
        f"aten.{name}.default": _unary(name)
        for name in """neg abs floor ceil round trunc sign sqrt rsqrt exp log log1p log2 log10 expm1 tanh sigmoid
        sin cos erf""".split()
    },
    **named("sgn.default", _unary("sign")),
}
