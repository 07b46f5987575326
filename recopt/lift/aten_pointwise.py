"""ATen: functions of single elements, with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from ..ir import ops, tensor
from ..ir.tensor import Tensor
from .aten_common import Lift, named
from .aten_types import computed, is_float, operand, promoted
from .base import Call, Opaque


def _add(c: Call, a: object, b: object, alpha: object = 1) -> Tensor:
    if c.dtype == "bool":
        return _logical("logical_or")(c, a, b)
    return computed(c.dtype, lambda x, y, k: ops.add(x, ops.multiply(y, k)), a, b, alpha)


def _sub(c: Call, a: object, b: object, alpha: object = 1) -> Tensor:
    return computed(c.dtype, lambda x, y, k: ops.sub(x, ops.multiply(y, k)), a, b, alpha)


def _rsub(c: Call, a: object, b: object, alpha: object = 1) -> Tensor:
    return _sub(c, b, a, alpha)


def _mul(c: Call, a: object, b: object) -> Tensor:
    return _logical("logical_and")(c, a, b) if c.dtype == "bool" else computed(c.dtype, ops.multiply, a, b)


def _div(c: Call, a: object, b: object, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode == "floor":
        return computed(c.dtype, _floor_divide, a, b)
    return computed(c.dtype, ops.divide if rounding_mode is None else ops.truncated_quotient, a, b)


def _floor_divide(a: Tensor, b: Tensor) -> Tensor:
    return ops.pointwise("floordiv", a, b)


def _fmod(a: Tensor, b: Tensor) -> Tensor:
    return ops.sub(a, ops.multiply(b, ops.truncated_quotient(a, b)))


def _of_two(name: str) -> Lift:
    return lambda c, a, b: computed(c.dtype, lambda x, y: ops.pointwise(name, x, y), a, b)


def _compare(name: str) -> Lift:
    def compare(c: Call, a: object, b: object) -> Tensor:
        dtype = promoted(a, b)
        return ops.pointwise(name, operand(a, dtype), operand(b, dtype), dtype="bool")

    return compare


def _logical(name: str) -> Callable[..., Tensor]:
    return lambda c, *args: ops.pointwise(name, *(operand(a, "bool") for a in args))


def _bitwise(name: str) -> Lift:
    return lambda c, a, b: (
        _logical(f"logical_{name}")(c, a, b) if c.dtype == "bool" else _of_two(f"bitwise_{name}")(c, a, b)
    )


def _bitwise_not(c: Call, x: Tensor) -> Tensor:
    if c.dtype == "bool":
        return ops.pointwise("logical_not", x)
    return computed(c.dtype, lambda a: ops.sub(tensor.scalar(-1, a.dtype), a), x)


def _float(function: Callable[[Tensor], Tensor]) -> Lift:
    """A function whose operand is a float first."""
    return lambda c, x: function(operand(x, c.dtype))


def _name(name: str, *attrs: Hashable) -> Callable[[Tensor], Tensor]:
    return lambda x: ops.pointwise(name, x, attrs=attrs)


def _whole(name: str) -> Lift:
    """A rounding, which leaves integers as they are."""
    return lambda c, x: ops.pointwise(name, x) if is_float(x.dtype) else x


def _round(c: Call, x: Tensor, decimals: int = 0) -> Tensor:
    if not decimals or not is_float(x.dtype):
        return _whole("round")(c, x)  # type: ignore[return-value]  # a table function gives one tensor here
    return ops.times(ops.pointwise("round", ops.times(x, 10.0**decimals)), 10.0**-decimals)


def _test(name: str) -> Lift:
    """isnan and isinf, false for integers."""
    return lambda c, x: ops.pointwise(name, x) if is_float(x.dtype) else tensor.full(x.shape, False, "bool")


def _isfinite(c: Call, x: Tensor) -> Tensor:
    if not is_float(x.dtype):
        return tensor.full(x.shape, True, "bool")
    either = ops.pointwise("logical_or", ops.pointwise("isnan", x), ops.pointwise("isinf", x))
    return ops.pointwise("logical_not", either)


# --- limits and choices


def _clamp(c: Call, x: object, min: object = None, max: object = None) -> Tensor:
    result = operand(x, c.dtype)
    for name, bound in (("max", min), ("min", max)):
        if bound is not None:
            result = ops.pointwise(name, result, operand(bound, c.dtype))
    return result


def _where(c: Call, condition: Tensor, a: object, b: object) -> Tensor:
    return ops.where(operand(condition, "bool"), operand(a, c.dtype), operand(b, c.dtype))


def _masked_fill(c: Call, x: Tensor, mask: Tensor, value: object) -> Tensor:
    return _where(c, mask, value, x)


def _prelu(c: Call, x: Tensor, weight: Tensor) -> Tensor:
    if len(x.dims) > 1 and len(weight.dims) == 1 and weight.shape != (1,):
        weight = tensor.reshape(weight, [weight.shape[0], *[1] * (len(x.dims) - 2)])
    return ops.where(ops.pointwise("lt", x, operand(0, x.dtype)), ops.multiply(weight, x), x)


def _threshold(c: Call, x: Tensor, threshold: float, value: float) -> Tensor:
    return ops.where(ops.pointwise("le", x, operand(threshold, x.dtype)), operand(value, x.dtype), x)


def _hardshrink(c: Call, x: Tensor, lambd: float = 0.5) -> Tensor:
    inside = ops.pointwise("le", ops.pointwise("abs", x), operand(lambd, x.dtype))
    return ops.where(inside, operand(0, x.dtype), x)


def _softshrink(c: Call, x: Tensor, lambd: float = 0.5) -> Tensor:
    size = ops.pointwise("max", ops.sub(ops.pointwise("abs", x), operand(lambd, x.dtype)), operand(0, x.dtype))
    return ops.multiply(ops.pointwise("sign", x), size)


def _nan_to_num(
    c: Call, x: Tensor, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    if not is_float(x.dtype):
        return x
    if x.dtype == "bfloat16" and (posinf is None or neginf is None):
        raise Opaque("the largest bfloat16")
    largest = 0.0 if x.dtype == "bfloat16" else float(np.finfo(x.dtype).max)
    result = ops.where(ops.pointwise("isnan", x), operand(0.0 if nan is None else nan, x.dtype), x)
    for old, new in (
        (math.inf, largest if posinf is None else posinf),
        (-math.inf, -largest if neginf is None else neginf),
    ):
        result = ops.where(ops.pointwise("eq", x, operand(old, x.dtype)), operand(new, x.dtype), result)
    return result


# --- activations


def _gelu(c: Call, x: Tensor, approximate: str = "none") -> Tensor:
    return ops.pointwise("gelu" if approximate == "none" else "gelu_tanh", x)


def _elu(c: Call, x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    if input_scale != 1:
        raise Opaque("an ELU with an input scale")
    return ops.times(ops.pointwise("elu", x, attrs=(float(alpha),)), scale)


def _parametric(name: str, *defaults: float) -> Lift:
    def function(c: Call, x: Tensor, *given: float, **named: float) -> Tensor:
        values = [*given, *named.values()] if len(defaults) == 1 else _filled(given, named, defaults)
        attrs = tuple(float(v) for v in values or defaults)
        return ops.pointwise(name, x, attrs=() if name == "softplus" and attrs == defaults else attrs)

    return function


def _filled(given: tuple[float, ...], named: dict[str, float], defaults: tuple[float, ...]) -> list[float]:
    values = [*given, *defaults[len(given) :]]
    for n, key in enumerate(("beta", "threshold")):  # softplus is the one with two
        values[n] = named.get(key, values[n])
    return values


def _rrelu(
    c: Call, x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, *_: object
) -> Tensor:
    if training:
        raise Opaque("a random slope")
    return ops.pointwise("leaky_relu", x, attrs=((lower + upper) / 2,))


def _log_sigmoid(x: Tensor) -> Tensor:
    return ops.times(ops.pointwise("softplus", ops.times(x, -1)), -1)


def _glu(c: Call, x: Tensor, dim: int = -1) -> Tensor:
    half = c.shape[dim]
    dim %= len(x.dims)
    gate = ops.pointwise("sigmoid", tensor.slice_dim(x, dim, half, half))
    return ops.multiply(tensor.slice_dim(x, dim, 0, half), gate)


def _lerp(c: Call, a: Tensor, b: Tensor, weight: object) -> Tensor:
    return ops.add(a, ops.multiply(operand(weight, c.dtype), ops.sub(b, a)))


def _addcmul(c: Call, a: Tensor, x: Tensor, y: Tensor, value: object = 1) -> Tensor:
    return computed(c.dtype, lambda a, x, y, k: ops.add(a, ops.multiply(x, y, k)), a, x, y, value)


def _addcdiv(c: Call, a: Tensor, x: Tensor, y: Tensor, value: object = 1) -> Tensor:
    return computed(c.dtype, lambda a, x, y, k: ops.add(a, ops.multiply(ops.divide(x, y), k)), a, x, y, value)


def _identity(c: Call, x: Tensor, *_: object, **__: object) -> Tensor:
    return x


def _convert(c: Call, x: Tensor, *_: object, **__: object) -> Tensor:
    return operand(x, c.dtype)


def _dropout(c: Call, x: Tensor, p: float, train: bool | None) -> Tensor:
    if train and p:
        raise Opaque("dropout in training mode")
    return x


def _native_dropout(c: Call, x: Tensor, p: float, train: bool | None) -> list[Tensor]:
    return [_dropout(c, x, p, train is not False), tensor.full(x.shape, True, "bool")]


def _unsigned_scale(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: ops.times(ops.pointwise("log", x), factor)


_FLOATS: dict[str, Callable[[Tensor], Tensor]] = {
    **{n: _name(n) for n in "exp expm1 log log1p sqrt rsqrt reciprocal sigmoid erf".split()},
    **{n: _name(n) for n in "sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh".split()},
    **{n: _name(n) for n in "silu mish selu hardswish hardsigmoid".split()},
    "exp2": lambda x: ops.pointwise("exp", ops.times(x, math.log(2))),
    "log2": _unsigned_scale(1 / math.log(2)),
    "log10": _unsigned_scale(1 / math.log(10)),
    "erfc": lambda x: ops.sub(operand(1, x.dtype), ops.pointwise("erf", x)),
    "frac": lambda x: ops.sub(x, ops.pointwise("trunc", x)),
    "log_sigmoid": _log_sigmoid,
    "deg2rad": lambda x: ops.times(x, math.pi / 180),
    "rad2deg": lambda x: ops.times(x, 180 / math.pi),
}

TABLE: dict[str, Lift] = {
    **{f"aten.{name}.default": _float(function) for name, function in _FLOATS.items()},
    **named("add.Tensor add.Scalar", _add),
    **named("sub.Tensor sub.Scalar subtract.Tensor subtract.Scalar", _sub),
    **named("rsub.Tensor rsub.Scalar", _rsub),
    **named("mul.Tensor mul.Scalar multiply.Tensor multiply.Scalar", _mul),
    **named("div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode divide.Tensor divide.Scalar", _div),
    **named("true_divide.Tensor true_divide.Scalar divide.Tensor_mode divide.Scalar_mode", _div),
    **named("floor_divide.default floor_divide.Scalar", lambda c, a, b: computed(c.dtype, _floor_divide, a, b)),
    **named("remainder.Tensor remainder.Scalar remainder.Scalar_Tensor", _of_two("mod")),
    **named("fmod.Tensor fmod.Scalar", lambda c, a, b: computed(c.dtype, _fmod, a, b)),
    **named("pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar", _of_two("pow")),
    **named("maximum.default max.other", _of_two("max")),
    **named("minimum.default min.other", _of_two("min")),
    **named("eq.Tensor eq.Scalar", _compare("eq")),
    **named("ne.Tensor ne.Scalar not_equal.Tensor not_equal.Scalar", _compare("ne")),
    **named("lt.Tensor lt.Scalar less.Tensor less.Scalar", _compare("lt")),
    **named("le.Tensor le.Scalar less_equal.Tensor less_equal.Scalar", _compare("le")),
    **named("gt.Tensor gt.Scalar greater.Tensor greater.Scalar", _compare("gt")),
    **named("ge.Tensor ge.Scalar greater_equal.Tensor greater_equal.Scalar", _compare("ge")),
    **named("logical_and.default", _logical("logical_and")),
    **named("logical_or.default", _logical("logical_or")),
    **named("logical_xor.default", _logical("logical_xor")),
    **named("logical_not.default", _logical("logical_not")),
    **named("bitwise_and.Tensor bitwise_and.Scalar __and__.Tensor __and__.Scalar", _bitwise("and")),
    **named("bitwise_or.Tensor bitwise_or.Scalar __or__.Tensor __or__.Scalar", _bitwise("or")),
    **named("bitwise_xor.Tensor bitwise_xor.Scalar __xor__.Tensor __xor__.Scalar", _bitwise("xor")),
    **named("bitwise_not.default", _bitwise_not),
    **named("bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar", _of_two("shift_left")),
    **named("bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar", _of_two("shift_right")),
    **named("__lshift__.Scalar __lshift__.Tensor", _of_two("shift_left")),
    **named("__rshift__.Scalar __rshift__.Tensor", _of_two("shift_right")),
    **named("neg.default negative.default", lambda c, x: computed(c.dtype, lambda a: ops.times(a, -1), x)),
    **named("abs.default absolute.default", lambda c, x: computed(c.dtype, _name("abs"), x)),
    **named("sign.default sgn.default", lambda c, x: x if x.dtype == "bool" else ops.pointwise("sign", x)),
    **named("square.default", lambda c, x: computed(c.dtype, lambda a: ops.multiply(a, a), x)),
    **named("relu.default", lambda c, x: ops.pointwise("relu", x)),
    **named("floor.default", _whole("floor")),
    **named("ceil.default", _whole("ceil")),
    **named("trunc.default fix.default", _whole("trunc")),
    **named("round.default round.decimals", _round),
    **named("isnan.default", _test("isnan")),
    **named("isinf.default", _test("isinf")),
    **named("isfinite.default", _isfinite),
    **named("clamp.default clamp.Tensor clip.default clip.Tensor", _clamp),
    **named("clamp_min.default clamp_min.Tensor", lambda c, x, min: _clamp(c, x, min)),
    **named("clamp_max.default clamp_max.Tensor", lambda c, x, max: _clamp(c, x, None, max)),
    **named("hardtanh.default", lambda c, x, min_val=-1, max_val=1: _clamp(c, x, min_val, max_val)),
    **named("relu6.default", lambda c, x: _clamp(c, x, 0, 6)),
    **named("where.self where.ScalarSelf where.ScalarOther where.Scalar", _where),
    **named("masked_fill.Scalar masked_fill.Tensor", _masked_fill),
    **named("nan_to_num.default", _nan_to_num),
    **named("prelu.default _prelu_kernel.default", _prelu),
    **named("threshold.default", _threshold),
    **named("hardshrink.default", _hardshrink),
    **named("softshrink.default", _softshrink),
    **named("gelu.default", _gelu),
    **named("elu.default", _elu),
    **named("celu.default", _parametric("celu", 1.0)),
    **named("leaky_relu.default", _parametric("leaky_relu", 0.01)),
    **named("softplus.default", _parametric("softplus", 1.0, 20.0)),
    **named("rrelu.default", _rrelu),
    **named("log_sigmoid_forward.default", lambda c, x: [_log_sigmoid(x), None]),
    **named("glu.default", _glu),
    **named("lerp.Scalar lerp.Tensor", _lerp),
    **named("addcmul.default", _addcmul),
    **named("addcdiv.default", _addcdiv),
    **named("clone.default contiguous.default detach.default alias.default lift_fresh_copy.default", _identity),
    **named("_to_copy.default to.dtype to.device to.other to.dtype_layout type_as.default", _convert),
    **named("dropout.default feature_dropout.default alpha_dropout.default feature_alpha_dropout.default", _dropout),
    **named("native_dropout.default", _native_dropout),
}


def _scalar(function: Callable[..., Any]) -> Lift:
    """An operator on Python numbers."""
    return lambda c, *args: function(c, *args)


TABLE |= {
    "operator.add": _scalar(_add),
    "operator.sub": _scalar(_sub),
    "operator.mul": _scalar(_mul),
    "operator.truediv": _scalar(_div),
    "operator.floordiv": lambda c, a, b: computed(c.dtype, _floor_divide, a, b),
    "operator.mod": _of_two("mod"),
    "operator.neg": lambda c, a: ops.times(a, -1),
    "operator.pow": _of_two("pow"),
    "torch.sym_max": _of_two("max"),
    "torch.sym_min": _of_two("min"),
    "torch.sym_float": _convert,
}
