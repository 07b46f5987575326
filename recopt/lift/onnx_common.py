"""What the ONNX tables share: dtypes, axes, attributes that became inputs, indices that may be negative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import sympy

from ..ir import ops, sizes, tensor
from ..ir.ops import sizes_known_non_negative
from ..ir.rules import FLOATS, WIDTH
from ..ir.sizes import Size
from ..ir.tensor import Tensor
from ..ir.term import number as term_number
from .base import Call, Opaque, Result

Lift: TypeAlias = Callable[..., Result]

DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64",
    16: "bfloat16",
}  # fmt: skip
EXACT = FLOATS | {"int32", "int64"}  # narrower integers wrap around in practice, which a term does not


def known(*tensors: Tensor | None) -> None:
    """Raise Opaque unless every dtype is one that terms compute with."""
    for t in tensors:
        if t is not None and t.dtype not in WIDTH:
            raise Opaque(f"computes with {t.dtype}")


def arithmetic(*tensors: Tensor | None) -> None:
    """Raise Opaque unless sums and products of these are those of numbers."""
    for t in tensors:
        if t is not None and t.dtype not in EXACT:
            raise Opaque(f"arithmetic of {t.dtype} may wrap around")


def floats(*tensors: Tensor | None) -> None:
    """Raise Opaque unless every dtype is a float."""
    for t in tensors:
        if t is not None and t.dtype not in FLOATS:
            raise Opaque(f"means something else for {t.dtype}")


def dtype_of(code: int) -> str:
    """The name of an element type's number."""
    if code not in DTYPES:
        raise Opaque(f"element type {code}")
    return DTYPES[code]


def cast(t: Tensor, dtype: str) -> Tensor:
    """`ops.cast` between dtypes that terms compute with."""
    known(t)
    return ops.cast(t, dtype)


def stashed(t: Tensor, code: int = 1) -> Tensor:
    """`t` in the dtype in which a normalisation computes: `code`, where that is wider."""
    dtype = dtype_of(code)
    return cast(t, dtype) if WIDTH[dtype] > WIDTH[t.dtype] else t


def axis_of(t: Tensor, axis: int) -> int:
    """A non-negative dimension number."""
    rank = len(t.dims)
    if not -rank <= axis < max(rank, 1):
        raise Opaque(f"axis {axis} of rank {rank}")
    return axis % rank if rank else 0


def axes_of(c: Call, t: Tensor, axes: Tensor | Sequence[int] | None) -> list[int] | None:
    """Non-negative dimension numbers from an attribute or an input; None where they are omitted."""
    if axes is None:
        return None
    return [axis_of(t, integer(a)) for a in c.ints(axes)]


def integer(value: Size) -> int:
    """A size that must be a number."""
    if not isinstance(value, int):
        raise Opaque("an axis or a count that is computed from a size")
    return value


def number(c: Call, t: Tensor) -> float | Size:
    """The value of a one-element tensor. Raises Opaque where data decides it."""
    value = c.lifted.known(t.at([term_number(0)] * len(t.dims))) if all(s == 1 for s in t.shape) else None
    if value is None:
        raise Opaque("a parameter that is computed from data")
    return value


def plain(value: float | Size) -> float:
    """A parameter that is no size."""
    if isinstance(value, sympy.Expr):
        raise Opaque("a parameter that is computed from a size")
    return value


def like(value: float, t: Tensor) -> Tensor:
    """A number of `t`'s dtype."""
    return tensor.scalar(value, t.dtype)


def vector(items: Sequence[Size], dtype: str = "int64") -> Tensor:
    """Sizes as a tensor of rank 1."""
    if not items:
        return tensor.full([0], 0, dtype)
    return tensor.concat([tensor.unsqueeze(tensor.scalar(i, dtype), 0) for i in items], 0)


def channelwise(t: Tensor, rank: int, dim: int = 1) -> Tensor:
    """A vector along dimension `dim` of `rank`; a scalar stays one."""
    if len(t.dims) == 0 or t.shape == (1,):
        return tensor.reshape(t, [])
    return tensor.reshape(t, [*[1] * dim, t.shape[0], *[1] * (rank - dim - 1)])


def spatial(x: Tensor) -> list[int]:
    """The dimensions after batch and channel."""
    return list(range(2, len(x.dims)))


def non_negative(c: Call, ids: Tensor, extent: Size) -> Tensor:
    """Indices with the negative ones counted from the end."""
    if sizes_known_non_negative(ids.body):
        return ids
    array = c.constant(ids)
    if array is not None and array.size and array.min() >= 0:
        return ids
    shifted = ops.add(ids, tensor.scalar(extent, ids.dtype))
    if array is not None and array.size and array.max() < 0:
        return shifted
    return ops.where(ops.pointwise("lt", ids, tensor.scalar(0, ids.dtype)), shifted, ids)


def bounded(value: Size, low: Size, high: Size) -> Size:
    """`value` kept within low..high. Raises Opaque where its form does not decide that."""
    if isinstance(value, int) and abs(value) >= 2**31 - 1:  # "to the end", as exporters write it
        return high if value > 0 else low
    if sizes.at_least(low, value):
        return low
    if sizes.at_least(value, high):
        return high
    if sizes.at_least(value, low) and sizes.at_least(high, value):
        return value
    raise Opaque("a bound that may lie outside of its dimension")
