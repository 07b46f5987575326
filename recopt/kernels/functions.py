"""The functions that an epilogue may call, as data: each with torch's own operator and its cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Function:
    """One function of the language; its Triton twin is ``f_<name>`` in ``triton_math``.

    ``scalars`` counts the trailing arguments that must be literals, ``defaults`` the values of those that may be left
    out, ``flops`` the floating-point operations an element costs (a transcendental counts as 8).
    """

    torch: Callable[..., Any]
    inplace: Callable[..., Any] | None = None
    arity: int = 1
    scalars: int = 0
    defaults: tuple[float, ...] = ()
    flops: int = 1
    boolean: bool = False


def _maximum(a: Any, b: Any) -> Any:
    if not isinstance(a, Tensor):
        return torch.clamp(b, min=a)
    return torch.maximum(a, b) if isinstance(b, Tensor) else torch.clamp(a, min=b)


def _minimum(a: Any, b: Any) -> Any:
    if not isinstance(a, Tensor):
        return torch.clamp(b, max=a)
    return torch.minimum(a, b) if isinstance(b, Tensor) else torch.clamp(a, max=b)


def _logical(op: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    def apply(a: Any, b: Any) -> Tensor:
        like = a if isinstance(a, Tensor) else b
        return op(torch.as_tensor(a, device=like.device), torch.as_tensor(b, device=like.device))

    return apply


def _of_tensors(op: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    """`op` where one of the operands may be a number."""

    def apply(a: Any, b: Any) -> Tensor:
        like = a if isinstance(a, Tensor) else b
        return op(*(torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in (a, b)))

    return apply


def _prelu(h: Tensor, w: Tensor) -> Tensor:
    # torch.prelu puts the channel at dimension 1; its kernel broadcasts as every other operator does.
    return torch._prelu_kernel(h, w.to(h.dtype))


_gelu_ = getattr(torch._C._nn, "gelu_")  # noqa: B009 - the in-place form has no public name

# name -> what it is; arguments first to last as the text gives them.
FUNCTIONS: dict[str, Function] = {
    "neg": Function(torch.neg, torch.neg_),
    "abs": Function(torch.abs, torch.abs_),
    "exp": Function(torch.exp, torch.exp_, flops=8),
    "log": Function(torch.log, torch.log_, flops=8),
    "log1p": Function(torch.log1p, torch.log1p_, flops=8),
    "expm1": Function(torch.expm1, torch.expm1_, flops=8),
    "sqrt": Function(torch.sqrt, torch.sqrt_, flops=4),
    "rsqrt": Function(torch.rsqrt, torch.rsqrt_, flops=4),
    "reciprocal": Function(torch.reciprocal, torch.reciprocal_, flops=4),
    "sigmoid": Function(torch.sigmoid, torch.sigmoid_, flops=10),
    "tanh": Function(torch.tanh, torch.tanh_, flops=12),
    "erf": Function(torch.erf, torch.erf_, flops=16),
    "sin": Function(torch.sin, torch.sin_, flops=8),
    "cos": Function(torch.cos, torch.cos_, flops=8),
    "tan": Function(torch.tan, torch.tan_, flops=20),
    "asin": Function(torch.asin, torch.asin_, flops=24),
    "acos": Function(torch.acos, torch.acos_, flops=24),
    "atan": Function(torch.atan, torch.atan_, flops=24),
    "sinh": Function(torch.sinh, torch.sinh_, flops=20),
    "cosh": Function(torch.cosh, torch.cosh_, flops=16),
    "asinh": Function(torch.asinh, torch.asinh_, flops=24),
    "acosh": Function(torch.acosh, torch.acosh_, flops=24),
    "atanh": Function(torch.atanh, torch.atanh_, flops=20),
    "floor": Function(torch.floor, torch.floor_),
    "ceil": Function(torch.ceil, torch.ceil_),
    "round": Function(torch.round, torch.round_),
    "trunc": Function(torch.trunc, torch.trunc_, flops=3),
    "sign": Function(torch.sign, Tensor.sign_),
    "relu": Function(torch.relu, torch.relu_),
    "relu6": Function(F.relu6, lambda h: torch.clamp_(h, 0.0, 6.0), flops=2),
    "gelu": Function(F.gelu, _gelu_, flops=20),
    "gelu_tanh": Function(lambda h: F.gelu(h, approximate="tanh"), lambda h: _gelu_(h, approximate="tanh"), flops=20),
    "silu": Function(F.silu, lambda h: F.silu(h, inplace=True), flops=11),
    "mish": Function(F.mish, lambda h: F.mish(h, inplace=True), flops=30),
    "softplus": Function(F.softplus, arity=3, scalars=2, defaults=(1.0, 20.0), flops=18),
    "logsigmoid": Function(F.logsigmoid, flops=18),
    "softsign": Function(F.softsign, flops=6),
    "tanhshrink": Function(F.tanhshrink, flops=13),
    "hardswish": Function(F.hardswish, lambda h: F.hardswish(h, inplace=True), flops=5),
    "hardsigmoid": Function(F.hardsigmoid, lambda h: F.hardsigmoid(h, inplace=True), flops=4),
    "selu": Function(F.selu, torch.selu_, flops=11),
    "elu": Function(F.elu, lambda h, a: F.elu(h, a, inplace=True), 2, 1, (1.0,), 10),
    "celu": Function(F.celu, torch.celu_, 2, 1, (1.0,), 12),
    "leaky_relu": Function(F.leaky_relu, lambda h, a: F.leaky_relu(h, a, inplace=True), 2, 1, (0.01,), 2),
    "softshrink": Function(F.softshrink, None, 2, 1, (0.5,), 3),
    "hardshrink": Function(F.hardshrink, None, 2, 1, (0.5,), 2),
    "hardtanh": Function(torch.clamp, torch.clamp_, 3, 2, (-1.0, 1.0), 2),
    "clip": Function(torch.clamp, torch.clamp_, 3, 2, (), 2),
    "prelu": Function(_prelu, None, 2, 0, (), 2),
    "pow": Function(torch.pow, None, 2, 0, (), 20),
    "atan2": Function(_of_tensors(torch.atan2), None, 2, flops=30),
    "hypot": Function(_of_tensors(torch.hypot), None, 2, flops=12),
    "mod": Function(torch.remainder, None, 2, flops=12),
    "floordiv": Function(_of_tensors(torch.floor_divide), None, 2, flops=16),
    "max": Function(_maximum, None, 2),
    "min": Function(_minimum, None, 2),
    "where": Function(torch.where, None, 3),
    "logical_and": Function(_logical(torch.logical_and), None, 2, boolean=True),
    "logical_or": Function(_logical(torch.logical_or), None, 2, boolean=True),
    "logical_not": Function(torch.logical_not, boolean=True),
    "isnan": Function(torch.isnan, boolean=True),
}
