"""Layout steps as ONNX nodes; a step that changes nothing is none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import sympy

from ..errors import LowerError
from ..fused import Concat, Flip, Permute, Reshape, Slice, Step, Take, View
from ..hosts.base import Value
from ..ir import sizes
from ..ir.sizes import Size
from .onnx_writer import Writer

END = np.iinfo(np.int64).max  # a Slice's "to the end"


def is_static(shape: Sequence[Size]) -> bool:
    return all(isinstance(size, int) for size in shape)


def view(host: Writer, item: View, name: str) -> Value:
    """The value of `item`."""
    return apply(host, item.value, item.steps, name)


def concat(host: Writer, item: Concat, name: str) -> Value:
    """The views of `item`, joined along the last dimension."""
    values = [view(host, part, name) for part in item.views]
    if len(values) == 1:
        return values[0]
    axis, dtype = len(item.shape) - 1, values[0].dtype
    return host.call("Concat", values, {"axis": axis}, name=f"{name}_concat", shape=item.shape, dtype=dtype)


def apply(host: Writer, value: Value, steps: Sequence[Step], name: str) -> Value:
    """`steps` of `value`, left to right."""
    for step in steps:
        match step:
            case Permute(perm):
                value = permute(host, value, perm, name)
            case Reshape(shape):
                value = reshape(host, value, shape, name)
            case Slice():
                value = narrow(host, value, step, name)
            case Flip(dim):
                value = flip(host, value, dim, name)
            case Take(dim, places):
                value = take(host, value, dim, places, name)
    return value


def permute(host: Writer, value: Value, perm: tuple[int, ...], name: str) -> Value:
    if perm == tuple(range(len(perm))):
        return value
    shape = tuple(value.shape[i] for i in perm) if value.shape is not None else None
    attributes = {"perm": list(perm)}
    return host.call("Transpose", [value], attributes, name=f"{name}_transpose", shape=shape, dtype=value.dtype)


def reshape(host: Writer, value: Value, shape: tuple[Size, ...], name: str) -> Value:
    """A Reshape whose shape is a constant unless two sizes are neither numbers nor sizes that stay in their place."""
    if value.shape == shape:
        return value
    before = value.shape or ()
    items: list[Size] = [
        size if isinstance(size, int) else 0 if i < len(before) and before[i] == size else size
        for i, size in enumerate(shape)
    ]
    if any(size == 0 for size in shape):  # 0 means "as it was": an empty dimension is written out
        items = list(shape)
    open_at = [i for i, size in enumerate(items) if not isinstance(size, int)]
    if open_at and not any(size == 0 for size in shape):
        items[open_at.pop()] = -1
    parts = [item if isinstance(item, int) else runtime_size(host, item, value, name) for item in items]
    target = _vector(host, parts, name)
    kwargs = {"allowzero": 1} if any(size == 0 for size in shape) and host.opset >= 14 else {}
    return host.call("Reshape", [value, target], kwargs, name=f"{name}_reshape", shape=shape, dtype=value.dtype)


def expand(host: Writer, value: Value, rows: tuple[Size, ...], name: str) -> Value:
    """`value` [.., C] again and again, [rows.., C]. Raises LowerError where a size is not known when the model runs."""

    def shape() -> Value:
        parts = [size if isinstance(size, int) else runtime_size(host, size, value, name) for size in (*rows, 1)]
        return _vector(host, parts, name)

    wide = None if value.shape is None else (*rows, value.shape[-1])
    operands = [value, host.derive(("rows", name, rows), shape)]
    return host.call("Expand", operands, name=f"{name}_expand", shape=wide, dtype=value.dtype)


def flip(host: Writer, value: Value, dim: int, name: str) -> Value:
    """`value` with one dimension the other way round."""
    operands = [host.share_constant(np.array([n]), name=f"{name}_flip") for n in (-1, -END, dim, -1)]
    return host.call("Slice", [value, *operands], name=f"{name}_flip", shape=value.shape, dtype=value.dtype)


def take(host: Writer, value: Value, dim: int, places: tuple[int, ...], name: str) -> Value:
    """`value` at places of one dimension."""
    at = host.share_constant(np.array(places, np.int64), name=f"{name}_places")
    shape = None if value.shape is None else (*value.shape[:dim], len(places), *value.shape[dim + 1 :])
    return host.call("Gather", [value, at], {"axis": dim}, name=f"{name}_taken", shape=shape, dtype=value.dtype)


def narrow(host: Writer, value: Value, step: Slice, name: str) -> Value:
    """`value` from start to stop of one dimension."""
    before = value.shape[step.dim] if value.shape is not None else None
    if step.start == 0 and step.step == 1 and step.stop == before:
        return value
    whole = step.stop == before
    stop = END if whole else step.stop
    operands = [runtime_size(host, item, value, name) for item in (step.start, stop, step.dim, step.step)]
    shape = None
    if value.shape is not None:
        length = sizes.add(step.stop, -step.start)
        if step.step != 1:
            length = -(-length // step.step) if isinstance(length, int) else sizes.symbol(f"{name}:slice")
        shape = (*value.shape[: step.dim], length, *value.shape[step.dim + 1 :])
    return host.call("Slice", [value, *operands], name=f"{name}_slice", shape=shape, dtype=value.dtype)


def runtime_size(host: Writer, size: Size, value: Value, name: str) -> Value:
    """`size` as an int64 tensor [1], read off the shape of `value` or of a graph input when the model runs.

    Raises LowerError where none of them has that size.
    """
    if isinstance(size, int):
        return host.share_constant(np.array([size], np.int64), name=f"{name}_size")
    for source in (value, *host.inputs):
        if source.shape is not None and size in source.shape:
            return _dimension(host, source, source.shape.index(size), name)
    if isinstance(size, (sympy.Add, sympy.Mul)):
        op = "Add" if isinstance(size, sympy.Add) else "Mul"
        first, *rest = [runtime_size(host, sizes.size(part), value, name) for part in size.args]
        for part in rest:
            first = host.call(op, [first, part], name=f"{name}_size", shape=(1,), dtype="int64")
        return first
    if isinstance(size, sympy.Pow) and size.exp.is_Integer and size.exp > 1:
        return runtime_size(host, sympy.Mul(*[size.base] * int(size.exp), evaluate=False), value, name)
    raise LowerError(f"the size {size} is not known when the model runs")


def _dimension(host: Writer, source: Value, dim: int, name: str) -> Value:
    if host.opset >= 15:
        kwargs = {"start": dim, "end": dim + 1}
        return host.call("Shape", [source], kwargs, name=f"{name}_size", shape=(1,), dtype="int64")
    rank = len(source.shape or ())
    whole = host.call("Shape", [source], name=f"{name}_shape", shape=(rank,), dtype="int64")
    index = host.share_constant(np.array([dim], np.int64), name=f"{name}_index")
    return host.call("Gather", [whole, index], name=f"{name}_size", shape=(1,), dtype="int64")


def _vector(host: Writer, parts: Sequence[int | Value], name: str) -> Value:
    """An int64 vector of numbers and of tensors [1]."""
    numbers = [part for part in parts if isinstance(part, int)]
    if len(numbers) == len(parts):
        return host.share_constant(np.array(numbers, np.int64), name=f"{name}_sizes")
    values = [
        part if isinstance(part, Value) else host.share_constant(np.array([part], np.int64), name=f"{name}_size")
        for part in parts
    ]
    if len(values) == 1:
        return values[0]
    return host.call("Concat", values, {"axis": 0}, name=f"{name}_sizes", shape=(len(parts),), dtype="int64")
