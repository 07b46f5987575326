"""Plans of layout moves as ONNX nodes: one standard operator a move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from ..fused import Permute, Reshape
from ..hosts.base import Value
from ..ir import sizes
from ..ir.sizes import Size
from ..layout.moves import Cut, Expand, Join, Move, Pad, Plan, Take
from .onnx_layout import permute, reshape
from .onnx_writer import Writer

FIRST = np.iinfo(np.int64).min  # before the first element, for a slice that runs backwards


def moved(host: Writer, plan: Plan, name: str, now: Mapping[Value, Value]) -> Value:
    """The value of a plan, over the values that its sources are `now`. Raises LowerError where a size is not known."""
    if isinstance(plan.source, Join):
        parts = [moved(host, part, name, now) for part in plan.source.parts]
        shape = plan.shape if not plan.moves else _shape_of(plan.source)
        attributes = {"axis": plan.source.dim}
        value = host.call("Concat", parts, attributes, name=f"{name}_concat", shape=shape, dtype=parts[0].dtype)
    else:
        value = now.get(plan.source, plan.source)
    for move in plan.moves:
        value = _move(host, value, move, name)
    return value


def _shape_of(join: Join) -> tuple[Size, ...]:
    first = join.parts[0].shape
    total = reduce(sizes.add, (part.shape[join.dim] for part in join.parts))
    return (*first[: join.dim], total, *first[join.dim + 1 :])


def _move(host: Writer, value: Value, move: Move, name: str) -> Value:
    match move:
        case Permute(perm):
            return permute(host, value, perm, name)
        case Reshape(shape):
            return reshape(host, value, shape, name)
        case Cut():
            return _cut(host, value, move, name)
        case Take(dim, index, _):
            shape = (*_known(value)[:dim], *index.shape, *_known(value)[dim + 1 :])
            ids = host.share_constant(np.array(index, np.int64, order="C"), name=f"{name}_index")
            return host.call(
                "Gather", [value, ids], {"axis": dim}, name=f"{name}_gather", shape=shape, dtype=value.dtype
            )
        case Expand(shape):
            before = [1] * (len(shape) - len(_known(value))) + list(_known(value))
            target = [1 if b == s else s for b, s in zip(before, shape, strict=True)]  # 1 keeps what is there
            full = host.share_constant(np.array(target, np.int64), name=f"{name}_sizes")
            return host.call("Expand", [value, full], name=f"{name}_expand", shape=shape, dtype=value.dtype)
        case Pad():
            return _pad(host, value, move, name)


def _known(value: Value) -> tuple[Size, ...]:
    assert value.shape is not None
    return value.shape


def _cut(host: Writer, value: Value, move: Cut, name: str) -> Value:
    shape = tuple(s if c is None else c for s, c in zip(_known(value), move.counts, strict=True))
    dims = [d for d, c in enumerate(move.counts) if c is not None]
    ends = []
    for d in dims:
        end = move.starts[d] + move.steps[d] * (move.counts[d] or 0)
        ends.append(end if end >= 0 else FIRST)
    columns: list[Sequence[int]] = [[move.starts[d] for d in dims], ends, dims]
    if any(move.steps[d] != 1 for d in dims):
        columns.append([move.steps[d] for d in dims])
    operands = [host.share_constant(np.array(c, np.int64), name=f"{name}_slice") for c in columns]
    return host.call("Slice", [value, *operands], name=f"{name}_slice", shape=shape, dtype=value.dtype)


def _pad(host: Writer, value: Value, move: Pad, name: str) -> Value:
    shape = tuple(
        s if b == a == 0 else int(s) + b + a for s, b, a in zip(_known(value), move.before, move.after, strict=True)
    )
    widths = host.share_constant(np.array([*move.before, *move.after], np.int64), name=f"{name}_pads")
    operands = [value, widths]
    if move.value != 0:
        assert value.dtype is not None
        operands.append(host.share_constant(np.array(move.value, value.dtype), name=f"{name}_fill"))
    return host.call("Pad", operands, name=f"{name}_pad", shape=shape, dtype=value.dtype)
