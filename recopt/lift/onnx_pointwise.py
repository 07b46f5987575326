"""ONNX operators that compute every element from the elements at its place."""

from __future__ import annotations

import math

from ..ir import ops, tensor
from ..ir.rules import FLOATS, WIDTH
from ..ir.tensor import Tensor
from .base import Call, Opaque, kept
from .onnx_common import EXACT, Lift, arithmetic, cast, dtype_of, floats, known, like
from .onnx_common import number as value_of
from .onnx_shifts import UNSIGNED, signed_shift

SELU_ALPHA, SELU_GAMMA = 1.6732632423543772, 1.0507009873554805


def unary(name: str) -> Lift:
    """The operator that is `name` of its input."""

    def lifted(c: Call, x: Tensor) -> Tensor:
        known(x)
        return ops.pointwise(name, x)

    return lifted


def binary(name: str) -> Lift:
    """The operator that is `name` of two inputs of one dtype."""

    def lifted(c: Call, a: Tensor, b: Tensor) -> Tensor:
        known(a, b)
        return ops.pointwise(name, a, b, dtype="bool" if name in ("gt", "ge") else None)

    return lifted


def chained(name: str) -> Lift:
    """`name` over any number of inputs."""

    def lifted(c: Call, first: Tensor, *others: Tensor) -> Tensor:
        known(first, *others)
        for t in others:
            first = ops.pointwise(name, first, t)
        return first

    return lifted


def same(x: float, y: float) -> bool:
    """Whether an attribute is a constant, as far as float32 can tell."""
    return math.isclose(x, y, rel_tol=1e-6)


# --- arithmetic -----------------------------------------------------------------------------------------------------


def add(c: Call, *terms: Tensor) -> Tensor:
    arithmetic(*terms)
    return kept(ops.add(*terms), terms)


def sub(c: Call, a: Tensor, b: Tensor) -> Tensor:
    arithmetic(a, b)
    return kept(ops.sub(a, b), (a, b))


def mul(c: Call, a: Tensor, b: Tensor) -> Tensor:
    arithmetic(a, b)
    return kept(ops.multiply(a, b), (a, b))


def neg(c: Call, x: Tensor) -> Tensor:
    arithmetic(x)
    return ops.times(x, -1)


def mean(c: Call, *terms: Tensor) -> Tensor:
    floats(*terms)
    return ops.times(ops.add(*terms), 1 / len(terms))


def div(c: Call, a: Tensor, b: Tensor) -> Tensor:
    known(a, b)
    return kept(ops.divide(a, b), (a, b)) if a.dtype in FLOATS else truncated_quotient(a, b)


def truncated_quotient(a: Tensor, b: Tensor) -> Tensor:
    """Integer division towards zero."""
    arithmetic(a, b)
    return ops.truncated_quotient(a, b)


def mod(c: Call, a: Tensor, b: Tensor, fmod: int = 0) -> Tensor:
    known(a, b)
    if not fmod:
        if a.dtype in FLOATS:
            raise Opaque("an integer remainder of floats")
        return ops.pointwise("mod", a, b)
    quotient = ops.pointwise("trunc", ops.divide(a, b)) if a.dtype in FLOATS else truncated_quotient(a, b)
    return ops.sub(a, ops.multiply(b, quotient))


def power(c: Call, x: Tensor, y: Tensor) -> Tensor:
    known(x, y)
    if x.dtype in FLOATS:
        return ops.pointwise("pow", x, cast(y, x.dtype))
    if y.dtype in FLOATS:
        return cast(ops.pointwise("pow", cast(x, y.dtype), y), x.dtype)
    exponent = y.body.number
    if not isinstance(exponent, int) or exponent < 0 or x.dtype not in EXACT:
        raise Opaque("an integer to an unknown or negative power")
    return ops.pointwise("pow", x, cast(y, x.dtype))


def bit_shift(c: Call, x: Tensor, y: Tensor, direction: str) -> Tensor:
    known(x, y)
    if direction == "RIGHT":
        return ops.pointwise("shift_right", x, y)
    return ops.pointwise("bitwise_and", ops.pointwise("shift_left", x, y), like(2 ** WIDTH[x.dtype] - 1, x))


def bitwise_not(c: Call, x: Tensor) -> Tensor:
    known(x)
    if x.dtype.startswith("u"):
        return ops.sub(like(2 ** WIDTH[x.dtype] - 1, x), x)
    return ops.sub(like(-1, x), x)


def cast_to(c: Call, x: Tensor, to: int, **_: int) -> Tensor:
    return cast(x, dtype_of(to))


def cast_like(c: Call, x: Tensor, target: Tensor, **_: int) -> Tensor:
    known(target)
    return cast(x, target.dtype)


def is_inf(c: Call, x: Tensor, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    known(x)
    if detect_negative and detect_positive:
        return ops.pointwise("isinf", x)
    if not detect_negative and not detect_positive:
        return tensor.full(x.shape, 0, "bool")
    return ops.pointwise("eq", x, like(math.inf if detect_positive else -math.inf, x))


def where(c: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    shift = signed_shift(c) if a.dtype in UNSIGNED else None
    return ops.where(condition, a, b) if shift is None else shift


# --- activations ----------------------------------------------------------------------------------------------------


def with_slope(name: str, default: float) -> Lift:
    """A function with one parameter, the attribute alpha."""

    def lifted(c: Call, x: Tensor, alpha: float = default) -> Tensor:
        floats(x)
        return ops.pointwise(name, x, attrs=(float(alpha),))

    return lifted


def clamped(x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """min(max(x, low), high)."""
    if low is not None:
        x = ops.pointwise("max", x, low)
    return x if high is None else ops.pointwise("min", x, high)


def clip(
    c: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None, *, min: float | None = None,
    max: float | None = None,
) -> Tensor:  # fmt: skip
    known(x, low, high)
    low = like(min, x) if min is not None else None if low is None else tensor.reshape(low, [])
    high = like(max, x) if max is not None else None if high is None else tensor.reshape(high, [])
    return clamped(x, low, high)


def hard_sigmoid(c: Call, x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    floats(x)
    if same(alpha, 1 / 6) and beta == 0.5:
        return ops.pointwise("hardsigmoid", x)
    return clamped(ops.add(ops.times(x, alpha), like(beta, x)), like(0, x), like(1, x))


def selu(c: Call, x: Tensor, alpha: float = SELU_ALPHA, gamma: float = SELU_GAMMA) -> Tensor:
    floats(x)
    if same(alpha, SELU_ALPHA) and same(gamma, SELU_GAMMA):
        return ops.pointwise("selu", x)
    return ops.times(ops.pointwise("elu", x, attrs=(float(alpha),)), gamma)


def prelu(c: Call, x: Tensor, slope: Tensor) -> Tensor:
    arithmetic(x, slope)
    return ops.where(ops.pointwise("lt", x, like(0, x)), ops.multiply(x, slope), x)


def gelu(c: Call, x: Tensor, approximate: str = "none") -> Tensor:
    floats(x)
    return ops.pointwise("gelu_tanh" if approximate == "tanh" else "gelu", x)


def swish(c: Call, x: Tensor, alpha: float = 1.0) -> Tensor:
    floats(x)
    if alpha == 1:
        return ops.pointwise("silu", x)
    return ops.multiply(x, ops.pointwise("sigmoid", ops.times(x, alpha)))


def thresholded_relu(c: Call, x: Tensor, alpha: float = 1.0) -> Tensor:
    floats(x)
    return ops.where(ops.pointwise("lt", like(alpha, x), x), x, like(0, x))


def shrink(c: Call, x: Tensor, lambd: float = 0.5, bias: float = 0.0) -> Tensor:
    floats(x)
    above = ops.pointwise("lt", like(lambd, x), x)
    below = ops.pointwise("lt", x, like(-lambd, x))
    inner = ops.where(above, ops.add(x, like(-bias, x)), like(0, x))
    return ops.where(below, ops.add(x, like(bias, x)), inner)


def dropout(
    c: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None, **_: object
) -> list[Tensor]:
    """x, and a mask that keeps everything."""
    if training is not None and value_of(c, training) != 0:
        raise Opaque("dropout in training mode")
    return [x, tensor.full(x.shape, 1, "bool")]


# --- quantisation ---------------------------------------------------------------------------------------------------

RANGES = {"uint8": (0, 255), "int8": (-128, 127), "int16": (-32768, 32767)}


def dequantize(
    c: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None, axis: int = 1, block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:  # fmt: skip
    """(x - zero) * scale."""
    if block_size:
        raise Opaque("quantised in blocks")
    floats(scale)
    scale = along(scale, x, axis)
    shifted = cast(x, scale.dtype)
    if zero is not None:
        shifted = ops.sub(shifted, cast(along(zero, x, axis), scale.dtype))
    result = ops.multiply(shifted, scale)
    return cast(result, dtype_of(output_dtype)) if output_dtype else result


def quantize(
    c: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None, axis: int = 1, block_size: int = 0,
    output_dtype: int = 0, saturate: int = 1, precision: int = 0,
) -> Tensor:  # fmt: skip
    """round(x / scale) + zero, kept within the integer type."""
    dtype = zero.dtype if zero is not None else dtype_of(output_dtype) if output_dtype else "uint8"
    if block_size or precision or dtype not in RANGES or x.dtype not in FLOATS or scale.dtype != x.dtype:
        raise Opaque("a quantisation that is no plain one to an integer type")
    level = ops.pointwise("round", ops.divide(x, along(scale, x, axis)))
    if zero is not None:
        level = ops.add(level, cast(along(zero, x, axis), x.dtype))
    low, high = RANGES[dtype]
    return cast(clamped(level, like(low, x), like(high, x)), dtype)


def along(t: Tensor, x: Tensor, axis: int) -> Tensor:
    """A scalar, or a vector along `axis` of x."""
    if t.dims and t.shape != (1,):
        if len(t.dims) != 1:
            raise Opaque("quantised in blocks")
        axis %= len(x.dims)
        return tensor.reshape(t, [*[1] * axis, t.shape[0], *[1] * (len(x.dims) - axis - 1)])
    return tensor.reshape(t, [])


def scaler(c: Call, x: Tensor, offset: tuple[float, ...] = (0.0,), scale: tuple[float, ...] = (1.0,)) -> Tensor:
    """(x - offset) * scale of ai.onnx.ml, with one number for all features."""
    if len(offset) != 1 or len(scale) != 1 or x.dtype != "float32":
        raise Opaque("a scaler with a number for every feature")
    return ops.times(ops.add(x, like(-offset[0], x)), scale[0])


def binarizer(c: Call, x: Tensor, threshold: float = 0.0) -> Tensor:
    known(x)
    return cast(ops.pointwise("lt", like(threshold, x), x), x.dtype)


UNARY = {
    "Abs": "abs", "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh", "Atan": "atan", "Atanh": "atanh",
    "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh", "Erf": "erf", "Exp": "exp", "Floor": "floor",
    "HardSwish": "hardswish", "IsNaN": "isnan", "Log": "log", "Mish": "mish", "Not": "logical_not",
    "Reciprocal": "reciprocal", "Relu": "relu", "Round": "round", "Sigmoid": "sigmoid", "Sign": "sign", "Sin": "sin",
    "Sinh": "sinh", "Softplus": "softplus", "Softsign": "softsign", "Sqrt": "sqrt", "Tan": "tan", "Tanh": "tanh",
}  # fmt: skip
BINARY = {
    "And": "logical_and", "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor",
    "Equal": "eq", "Greater": "gt", "GreaterOrEqual": "ge", "Less": "lt", "LessOrEqual": "le", "Or": "logical_or",
    "Xor": "logical_xor",
}  # fmt: skip

POINTWISE: dict[str, Lift] = {
    **{op: unary(name) for op, name in UNARY.items()},
    **{op: binary(name) for op, name in BINARY.items()},
    "Add": add,
    "Sum": add,
    "Sub": sub,
    "Mul": mul,
    "Div": div,
    "Neg": neg,
    "Mean": mean,
    "Mod": mod,
    "Pow": power,
    "Max": chained("max"),
    "Min": chained("min"),
    "BitShift": bit_shift,
    "BitwiseNot": bitwise_not,
    "Cast": cast_to,
    "CastLike": cast_like,
    "IsInf": is_inf,
    "Where": where,
    "Celu": with_slope("celu", 1.0),
    "Elu": with_slope("elu", 1.0),
    "LeakyRelu": with_slope("leaky_relu", 0.01),
    "Clip": clip,
    "HardSigmoid": hard_sigmoid,
    "Selu": selu,
    "PRelu": prelu,
    "Gelu": gelu,
    "Swish": swish,
    "ThresholdedRelu": thresholded_relu,
    "Shrink": shrink,
    "Dropout": dropout,
    "DequantizeLinear": dequantize,
    "QuantizeLinear": quantize,
    "ai.onnx.ml::Scaler": scaler,
    "ai.onnx.ml::Binarizer": binarizer,
}
