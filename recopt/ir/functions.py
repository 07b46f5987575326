"""The pointwise functions a term may hold, by name, each with its meaning in numpy.

Floats are computed in float64, integers in int64 with Python's signs for floordiv and mod. The same names are the
vocabulary of epilogues (kernels/epilogue.py). A new function is one line here and one in each lift table that knows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_erf = np.vectorize(math.erf, otypes=[np.float64])
_SQRT2 = math.sqrt(2.0)


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, small) / (1 + small))


def _softplus(x: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    return np.where(x * beta > threshold, x, np.log1p(np.exp(np.minimum(x * beta, threshold))) / beta)


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _round(x: Array) -> Array:
    return np.round(x)  # half to even, as torch and ONNX do


def _reciprocal(x: Array) -> Array:
    return 1.0 / np.asarray(x, dtype=np.float64)


def _cast(x: Array, to: str) -> Array:
    """The values `to` can hold, in the evaluator's carrier type."""
    if to == "bool":
        return x.astype(bool)
    if "int" in to:
        target = np.dtype(to)
        return np.trunc(x).astype(target).astype(np.int64) if x.dtype.kind == "f" else x.astype(target).astype(np.int64)
    return x.astype(np.float64)  # rounding to a narrower float is left out: the reference is exact arithmetic


def _pow(x: Array, y: Array) -> Array:
    x = np.asarray(x)
    return np.power(x.astype(np.float64), y) if x.dtype.kind == "f" or np.any(np.asarray(y) < 0) else np.power(x, y)


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "abs": np.abs,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "reciprocal": _reciprocal,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "hypot": np.hypot,
    "asin": np.arcsin,
    "acos": np.arccos,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "erf": _erf,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": _round,
    "trunc": np.trunc,
    "sign": np.sign,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / _SQRT2)),
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x * _sigmoid(x),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "softplus": _softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "elu": lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "celu": lambda x, alpha=1.0: np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha)),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
    "leaky_relu": lambda x, slope=0.01: np.where(x >= 0, x, slope * x),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hardsigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "clip": np.clip,
    "max": np.maximum,
    "min": np.minimum,
    "pow": _pow,
    "where": np.where,
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_not": np.logical_not,
    "logical_xor": np.logical_xor,
    "floordiv": np.floor_divide,
    "mod": np.mod,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "shift_left": np.left_shift,
    "shift_right": np.right_shift,
    "cast": _cast,
}

BOOLEAN = frozenset("eq ne lt le gt ge logical_and logical_or logical_not logical_xor isnan isinf".split())
COMMUTATIVE = frozenset(
    "max min hypot eq logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor".split()
)
