"""Plans of layout moves as ATen operators: views where ATen has them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import GraphError, LowerError
from ..fused import Permute, Reshape
from ..hosts.base import Value
from ..hosts.fx import FxHost
from ..layout.moves import Cut, Expand, Join, Move, Pad, Plan, Take
from .torch import layout


def moved(
    host: FxHost, plan: Plan, name: str, now: Mapping[Value, Value], finish: str | None = None, of: Value | None = None
) -> Value:
    """The value of a plan, over the values that its sources are `now`, through the operator `finish` if one is given: a
    copy lies in memory in order where the value that it is `of` does. Raises LowerError."""
    try:
        value = _moved(host, plan, name, now)
        if finish is None:
            return value
        ordered = finish == "aten.clone.default" and of is not None and host.is_contiguous(of)
        kwargs = {"memory_format": "contiguous_format"} if ordered else {}
        return host.call(finish, (value,), kwargs, name=name, like=value)
    except GraphError as error:
        raise LowerError(f"layout {name}: {error}") from error


def _moved(host: FxHost, plan: Plan, name: str, now: Mapping[Value, Value]) -> Value:
    if isinstance(plan.source, Join):
        parts = [_moved(host, part, name, now) for part in plan.source.parts]
        value = host.call("aten.cat.default", (parts, plan.source.dim), name=name, like=parts[0])
    else:
        value = now.get(plan.source, plan.source)
    for move in plan.moves:
        value = _move(host, value, move, name)
    return value


def _move(host: FxHost, value: Value, move: Move, name: str) -> Value:
    match move:
        case Permute() | Reshape():
            return layout(host, value, (move,), name)
        case Cut():
            return _cut(host, value, move, name)
        case Take(dim, index, _):
            return _take(host, value, dim, index, name)
        case Expand(shape):
            sizes = [-1 if not isinstance(s, int) else s for s in shape]  # an open size stays as it is
            return host.call("aten.expand.default", (value, sizes), name=name, like=value)
        case Pad(before, after, number):
            widths = [w for pair in zip(reversed(before), reversed(after), strict=True) for w in pair]
            return host.call("aten.constant_pad_nd.default", (value, widths, number), name=name, like=value)


def _take(
    host: FxHost, value: Value, dim: int, index: np.ndarray[tuple[int, ...], np.dtype[np.int64]], name: str
) -> Value:
    if index.ndim == 0:
        return host.call("aten.select.int", (value, dim, int(index)), name=name, like=value)
    assert value.shape is not None
    before, size, after = value.shape[:dim], value.shape[dim], value.shape[dim + 1 :]
    width = index.shape[-1]
    rows = index[..., :1] // width
    if (
        index.ndim > 1
        and isinstance(size, int)
        and size % width == 0
        and (index == rows * width + np.arange(width)).all()
    ):
        value = layout(host, value, (Reshape((*before, size // width, width, *after)),), name)  # rows are copied whole
        index, after = rows[..., 0], (width, *after)
    # Measured on a CPU: aten.index takes 4 to 28 times as long.
    ids = host.add_constant(np.array(index.reshape(-1), np.int64, order="C"), name=f"{name}_index")
    value = host.call("aten.index_select.default", (value, dim, ids), name=name, like=value)
    return value if index.ndim == 1 else layout(host, value, (Reshape((*before, *index.shape, *after)),), name)


def _cut(host: FxHost, value: Value, move: Cut, name: str) -> Value:
    for d, (start, count, step) in enumerate(zip(move.starts, move.counts, move.steps, strict=True)):
        if count is None:
            continue
        first, stride = (start, step) if step > 0 else (start + step * (count - 1), -step)
        value = host.call(
            "aten.slice.Tensor", (value, d, first, first + stride * (count - 1) + 1, stride), name=name, like=value
        )
    backwards = [d for d, step in enumerate(move.steps) if step < 0]
    return host.call("aten.flip.default", (value, backwards), name=name, like=value) if backwards else value
