"""ATen: new tensors."""

from __future__ import annotations

from ..ir import ops, sizes, tensor
from ..ir.sizes import Size
from ..ir.tensor import Tensor
from .aten_common import Lift, named
from .aten_types import is_float, operand
from .base import Call, Opaque


def identity_matrix(rows: Size, columns: Size, dtype: str) -> Tensor:
    row = tensor.unsqueeze(tensor.iota(rows), 1)
    return ops.cast(ops.pointwise("eq", row, tensor.iota(columns)), dtype)


def _filled(value: object) -> Lift:
    return lambda c, *_, **__: tensor.full(c.shape, value, c.dtype)


def _full(c: Call, _: object, value: object, **__: object) -> Tensor:
    return tensor.expand(operand(value, c.dtype), c.shape)


def _new_full(c: Call, _: Tensor, shape: object, value: object, **__: object) -> Tensor:
    return _full(c, shape, value)


def _scalar_tensor(c: Call, value: object, **_: object) -> Tensor:
    return operand(value, c.dtype)


def _arange(c: Call, *bounds: object, **_: object) -> Tensor:
    start, step = (bounds[0] if len(bounds) > 1 else 0), (bounds[2] if len(bounds) > 2 else 1)
    end = bounds[0] if len(bounds) == 1 else bounds[1]
    if any(isinstance(b, float) for b in bounds) and not is_float(c.dtype):
        raise Opaque("an integer range by fractions")
    first, stride = (v if isinstance(v, float) else c.size(v) for v in (start, step))
    # the host may have a symbol of its own for the length, which the division gives in terms of the others
    length = None if any(isinstance(v, float) for v in (first, end, stride)) else _steps(c, first, end, stride)
    return tensor.iota(c.shape[0] if length is None else length, first, stride, c.dtype)


def _steps(c: Call, start: Size, end: object, step: Size) -> Size | None:
    try:
        return sizes.divide(sizes.size(c.size(end) - start), step)
    except Opaque:
        return None


def _linspace(c: Call, start: float, end: float, steps: int, **_: object) -> Tensor:
    if not is_float(c.dtype) or isinstance(start, Tensor) or isinstance(end, Tensor):
        raise Opaque("a linspace of integers or data")
    return tensor.iota(c.shape[0], start, (end - start) / (steps - 1) if steps > 1 else 0, c.dtype)


def _eye(c: Call, *_: object, **__: object) -> Tensor:
    return identity_matrix(c.shape[0], c.shape[1], c.dtype)


TABLE: dict[str, Lift] = {
    **named("zeros.default zeros_like.default new_zeros.default", _filled(0)),
    **named("ones.default ones_like.default new_ones.default", _filled(1)),
    **named("full.default full_like.default fill.Scalar fill.Tensor", _full),
    **named("new_full.default", _new_full),
    **named("scalar_tensor.default", _scalar_tensor),
    **named("arange.default arange.start arange.start_step", _arange),
    **named("linspace.default", _linspace),
    **named("eye.default eye.m", _eye),
}
