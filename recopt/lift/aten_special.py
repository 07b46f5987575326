"""ATen: special functions, spelled by those that terms know."""

from __future__ import annotations

import math

from ..ir import ops
from ..ir.tensor import Tensor
from .aten_common import Lift
from .aten_types import computed, operand
from .base import Call


def _of_two(name: str) -> Lift:
    return lambda c, a, b: computed(c.dtype, lambda x, y: ops.pointwise(name, x, y), a, b)


def _logit(c: Call, x: Tensor, eps: float | None = None) -> Tensor:
    x = operand(x, c.dtype)
    if eps is not None:
        x = ops.pointwise("min", ops.pointwise("max", x, operand(eps, x.dtype)), operand(1 - eps, x.dtype))
    return ops.pointwise("log", ops.divide(x, ops.sub(operand(1, x.dtype), x)))


def _log_of_sum(base: float) -> Lift:
    """The larger plus what the smaller adds; equal operands apart, since they may be infinite."""

    def function(x: Tensor, y: Tensor) -> Tensor:
        x, y = ops.times(x, math.log(base)), ops.times(y, math.log(base))
        apart = ops.times(ops.pointwise("abs", ops.sub(x, y)), -1)
        added = ops.add(ops.pointwise("max", x, y), ops.pointwise("softplus", apart, attrs=(1.0, 20.0)))
        double = ops.add(x, operand(math.log(2), x.dtype))
        return ops.times(ops.where(ops.pointwise("eq", x, y), double, added), 1 / math.log(base))

    return lambda c, a, b: computed(c.dtype, function, a, b)


def _heaviside(c: Call, x: Tensor, at_zero: Tensor) -> Tensor:
    zero = operand(0, x.dtype)
    above = ops.cast(ops.pointwise("lt", zero, x), c.dtype)
    return ops.where(ops.pointwise("eq", x, zero), at_zero, above)


def _is_negative(x: Tensor) -> Tensor:
    """Whether the sign is minus, that of -0.0 too."""
    below = ops.pointwise("lt", x, operand(0, x.dtype))
    minus_zero = ops.pointwise("eq", ops.pointwise("reciprocal", x), operand(-math.inf, x.dtype))
    return ops.pointwise("logical_or", below, minus_zero)


def _copysign(c: Call, a: object, b: object) -> Tensor:
    def function(x: Tensor, y: Tensor) -> Tensor:
        size = ops.pointwise("abs", x)
        return ops.where(_is_negative(y), ops.times(size, -1), size)

    return computed(c.dtype, function, a, b)


def _without_nan(name: str) -> Lift:
    """fmax and fmin: of a number and NaN the number."""

    def function(x: Tensor, y: Tensor) -> Tensor:
        other = ops.where(ops.pointwise("isnan", y), x, ops.pointwise(name, x, y))
        return ops.where(ops.pointwise("isnan", x), y, other)

    return lambda c, a, b: computed(c.dtype, function, a, b)


def _x_times(name: str) -> Lift:
    """x * name(y), 0 where x is 0 and y is a number."""

    def function(x: Tensor, y: Tensor) -> Tensor:
        product = ops.multiply(x, ops.pointwise(name, y))
        known = ops.where(ops.pointwise("eq", x, operand(0, x.dtype)), operand(0, x.dtype), product)
        return ops.where(ops.pointwise("isnan", y), y, known)

    return lambda c, a, b: computed(c.dtype, function, a, b)


def _normal_cdf(c: Call, x: Tensor) -> Tensor:
    erf = ops.pointwise("erf", ops.times(operand(x, c.dtype), math.sqrt(0.5)))
    return ops.times(ops.add(operand(1, c.dtype), erf), 0.5)


def _sinc(c: Call, x: Tensor) -> Tensor:
    x = operand(x, c.dtype)
    angle = ops.times(x, math.pi)
    curve = ops.divide(ops.pointwise("sin", angle), angle)
    return ops.where(ops.pointwise("eq", x, operand(0, x.dtype)), operand(1, x.dtype), curve)


TABLE: dict[str, Lift] = {
    "aten.logaddexp.default": _log_of_sum(math.e),
    "aten.logaddexp2.default": _log_of_sum(2.0),
    "aten.heaviside.default": _heaviside,
    "aten.atan2.default": _of_two("atan2"),
    "aten.hypot.default": _of_two("hypot"),
    "aten.copysign.Tensor": _copysign,
    "aten.copysign.Scalar": _copysign,
    "aten.fmax.default": _without_nan("max"),
    "aten.fmin.default": _without_nan("min"),
    "aten.xlogy.Tensor": _x_times("log"),
    "aten.xlogy.Scalar_Self": _x_times("log"),
    "aten.xlogy.Scalar_Other": _x_times("log"),
    "aten.special_xlog1py.default": _x_times("log1p"),
    "aten.special_xlog1py.self_scalar": _x_times("log1p"),
    "aten.special_xlog1py.other_scalar": _x_times("log1p"),
    "aten.logit.default": _logit,
    "aten.sinc.default": _sinc,
    "aten.special_ndtr.default": _normal_cdf,
}
