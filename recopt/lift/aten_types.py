"""torch's dtypes: which one operands meet in, and operands in it."""

from __future__ import annotations

from collections.abc import Callable

import sympy

from ..ir import ops, tensor
from ..ir.rules import FLOATS, WIDTH
from ..ir.tensor import Tensor
from .base import Opaque, is_negative_zero, kept

WRAPPING = frozenset({"uint8", "int8", "int16"})  # small enough that models meet the ends of their range


def is_float(dtype: str) -> bool:
    """Whether `dtype` is a floating-point one."""
    return dtype in FLOATS


def promoted(*args: object) -> str:
    """torch.result_type: tensors decide, rank-0 tensors and then numbers only where their category is higher."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    _known(*(t.dtype for t in tensors))
    found = ""
    for group in ([t for t in tensors if t.dims], [t for t in tensors if not t.dims]):
        if group:
            candidate = ops.result_type(*group)
            found = candidate if not found or _category(candidate) > _category(found) else found
    for number in args:
        if not isinstance(number, Tensor):
            candidate = "bool" if isinstance(number, bool) else "float32" if isinstance(number, float) else "int64"
            found = candidate if not found or _category(candidate) > _category(found) else found
    return found


def operand(arg: object, dtype: str) -> Tensor:
    """An operand, tensor or number, as torch converts it. Raises Opaque for a dtype that terms do not compute in."""
    _known(dtype)
    if isinstance(arg, Tensor):
        _known(arg.dtype)
        return ops.cast(arg, dtype)
    if not isinstance(arg, (bool, int, float, sympy.Expr)):
        raise Opaque(f"an operand of type {type(arg).__name__}")
    if dtype == "bool":
        return tensor.scalar(bool(arg), dtype)
    if isinstance(arg, float) and (arg != arg or is_negative_zero(arg) or not is_float(dtype)):
        raise Opaque(f"the number {arg} among {dtype} tensors")
    return tensor.scalar(arg, dtype)


def computed(dtype: str, function: Callable[..., Tensor], *args: object) -> Tensor:
    """function(args...) in `dtype`. Small integers wrap around; int32 and int64 are taken as never full."""
    inner = "int64" if dtype in WRAPPING else dtype
    operands = [operand(a, inner) for a in args]
    return ops.cast(kept(function(*operands), operands), dtype)


def _known(*dtypes: str) -> None:
    for dtype in dtypes:
        if dtype not in WIDTH:
            raise Opaque(f"arithmetic on {dtype}")


def _category(dtype: str) -> int:
    return 0 if dtype == "bool" else 2 if is_float(dtype) else 1
