"""ONNX operators that look elements up by index, and those that fill a tensor by a rule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..hosts.base import Array, Value
from ..ir import ops, sizes, tensor
from ..ir.normal import add as add_terms
from ..ir.normal import scale
from ..ir.rules import FLOATS, fn
from ..ir.sizes import Size
from ..ir.tensor import Tensor, new_dims, ravel
from ..ir.term import Poly, Read, number
from .base import Call, Opaque
from .onnx_common import Lift, axis_of, cast, dtype_of, integer, known, non_negative, plain
from .onnx_common import number as value_of
from .onnx_layout import wanted

FEW = range(2, 9)  # places that are written to one after the other

# --- lookups --------------------------------------------------------------------------------------------------------


def gather(c: Call, x: Tensor, ids: Tensor, axis: int = 0) -> Tensor:
    d = axis_of(x, axis)
    line = progression(c, ids, x.shape[d])
    if line is not None:
        start, step, count = line
        taken = tensor.slice_dim(x, d, start, count, step)
        return tensor.reshape(taken, [*x.shape[:d], *ids.shape, *x.shape[d + 1 :]])
    return ops.take(x, non_negative(c, ids, x.shape[d]), d)


def progression(c: Call, ids: Tensor, whole: Size) -> tuple[Size, int, int] | None:
    """Start, step and length of constant indices that are an arithmetic progression, else None."""
    if ids.body.number is not None:
        position = integer_size(ids.body)
        if sizes.at_least(-1, position):
            position = sizes.size(position + whole)
        return (position, 1, 1) if not ids.dims or all(s == 1 for s in ids.shape) else None
    array = c.constant(ids)
    if array is None or array.size == 0:
        return None
    flat = array.reshape(-1)
    step = int(flat[1] - flat[0]) if flat.size > 1 else 1
    if step == 0 or not np.array_equal(flat, flat[0] + step * np.arange(flat.size)):
        return None
    if flat.min() < 0 <= flat.max():
        return None
    start: Size = int(flat[0])
    return (sizes.size(start + whole) if flat[0] < 0 else start), step, int(flat.size)


def integer_size(p: Poly) -> Size:
    """The size that a term is."""
    value = p.number
    if value is None or isinstance(value, float):
        raise Opaque("an index that is no integer")
    return value


def gather_elements(c: Call, x: Tensor, ids: Tensor, axis: int = 0) -> Tensor:
    d = axis_of(x, axis)
    ids = non_negative(c, ids, x.shape[d]).fresh()
    index = [ravel(dim) for dim in ids.dims]
    index[d] = ids.body
    return ids.with_body(x.fresh().at(index))


def scatter_elements(
    c: Call, x: Tensor, ids: Tensor, updates: Tensor, axis: int = 0, reduction: str = "none"
) -> Tensor:
    d = axis_of(x, axis)
    alike = all(a == b for n, (a, b) in enumerate(zip(x.shape, ids.shape, strict=True)) if n != d)
    if not alike or updates.shape != ids.shape or reduction not in ("none", "add"):
        raise Opaque("a scatter into a part of a tensor, or that does not add")
    starts = known_places(c, x, ids, d) if reduction == "none" else None
    if starts is not None:
        for row, start in enumerate(starts):
            places = [start if n == d else 0 for n in range(len(x.dims))]
            x = tensor.overwritten(x, tensor.slice_dim(updates, d, row, 1), places)
        return x
    if reduction == "none" and ids.shape[d] != 1:
        raise Opaque("a scatter of several elements, of which the last stays")
    c.lifted.notes["one-hot", c.node.outputs[0]] = True  # an id that has no place is an error
    write = ops.scatter_add if reduction == "add" else ops.scatter_one
    return write(x, d, non_negative(c, ids, x.shape[d]), updates)


def known_places(c: Call, x: Tensor, ids: Tensor, d: int) -> list[Size] | None:
    """Where the ids along a dimension write, each the same for all others; None where data says that."""
    found: list[Size] = []
    for row in range(integer(ids.shape[d])) if ids.shape[d] in FEW else ():
        one = tensor.slice_dim(ids, d, row, 1)
        start, _ = box_start(c, one.at([ravel(dim) for dim in one.dims]), ())
        if start is None:
            return None
        start = sizes.add(start, x.shape[d]) if sizes.at_least(-1, start) else start
        if not (sizes.at_least(start, 0) and sizes.at_least(x.shape[d], sizes.add(start, 1))):
            return None
        found.append(start)
    return found or None


def gather_nd(c: Call, x: Tensor, ids: Tensor, batch_dims: int = 0) -> Tensor:
    depth = integer(ids.shape[-1])
    x = x.fresh()
    columns = [non_negative(c, tensor.select(ids, len(ids.dims) - 1, n), x.shape[batch_dims + n]) for n in range(depth)]
    joint = ops.add(*columns) if depth > 1 else columns[0]  # only for the dimensions that they share
    dims, bodies = tensor.aligned([joint, *columns])
    rest = x.dims[batch_dims + depth :]
    index = [*(ravel(d) for d in dims[:batch_dims]), *bodies[1:], *(ravel(d) for d in rest)]
    return Tensor((*dims, *rest), x.at(index))


def scatter_nd(c: Call, x: Tensor, ids: Tensor, updates: Tensor, reduction: str = "none") -> Tensor:
    """A write to places that do not depend on data: boxes of x, one after the other where there are several. Or of one
    value wherever a mask says."""
    if reduction != "none":
        raise Opaque("a scatter that adds")
    mask = marked(c, ids)
    if mask is None:
        return written(c, x, ids, updates)
    if mask.shape != x.shape[: len(mask.dims)] or updates.body.axes_read.intersection(updates.dims[0]):
        raise Opaque("a write of one value after the other to the places of a mask")
    rest = len(x.dims) - len(mask.dims)
    there = cast(tensor.reshape(mask, [*mask.shape, *[1] * rest]), "bool")
    return ops.where(there, updates.with_dims(updates.dims[1:]), x)


def marked(c: Call, ids: Tensor) -> Tensor | None:
    """The mask whose places ids [n, rank] are, as NonZero lists them."""
    seen = ids.body.atom
    node = seen.leaf.node if isinstance(seen, Read) and isinstance(seen.leaf, Value) else None
    if node is None or node.op != "NonZero" or len(ids.dims) != 2:
        return None
    mask = c.lifted.of(node.inputs[0])
    in_order = isinstance(seen, Read) and seen.index == (ravel(ids.dims[1]), ravel(ids.dims[0]))
    return mask if in_order and mask is not None and len(mask.dims) == ids.shape[1] else None


def written(c: Call, x: Tensor, ids: Tensor, updates: Tensor) -> Tensor:
    """x with `updates` at ids[..., :], whose columns are each one number or go up along a dimension of their own."""
    depth, last = integer(ids.shape[-1]), len(ids.dims) - 1
    places = [ravel(dim) for dim in ids.dims[:last]]
    starts: list[Size] = []
    along: list[int | None] = []
    for n in range(depth):
        column = ids.at([*places, number(n)])
        start, d = box_start(c, column, places)
        if start is None:
            d = next((k for k in range(last) if ids.shape[k] in FEW and set(ids.dims[k]) & column.axes_read), None)
            if d is None:
                raise Opaque("a write to places that data names")
            for row in range(integer(ids.shape[d])):
                x = written(c, x, *(tensor.slice_dim(t, d, row, 1) for t in (ids, updates)))
            return x
        if sizes.at_least(-1, start):
            start = sizes.add(start, x.shape[n])
        end = sizes.add(start, 1 if d is None else ids.shape[d])
        if not (sizes.at_least(start, 0) and sizes.at_least(x.shape[n], end)):
            raise Opaque("a write to places that may lie outside")
        starts.append(start)
        along.append(d)
    used = [d for d in along if d is not None]
    if len(set(used)) != len(used) or any(ids.shape[d] != 1 for d in range(last) if d not in used):
        raise Opaque("a write of several elements to one place, of which the last stays")
    part = tensor.permute(updates, [*used, *(d for d in range(last) if d not in used), *range(last, len(updates.dims))])
    part = tensor.reshape(part, [*(1 if d is None else ids.shape[d] for d in along), *x.shape[depth:]])
    return tensor.overwritten(x, part, [*starts, *[0] * (len(x.dims) - depth)])


def box_start(c: Call, column: Poly, places: Sequence[Poly]) -> tuple[Size | None, int | None]:
    """The first of the indices in a column, and the dimension along which they go up one by one, None where they are
    all one; (None, None) where they do neither."""
    for d, place in [(None, number(0)), *enumerate(places)]:
        start = c.lifted.known(add_terms(column, scale(place, -1)))
        if start is not None and not isinstance(start, float):
            return start, d
    return None, None


def one_hot(c: Call, ids: Tensor, depth: Tensor, values: Tensor, axis: int = -1) -> Tensor:
    """`values` are [off, on]; an id outside of -depth..depth-1 leaves its row off."""
    count = c.size(depth) if isinstance(depth.dtype, str) and depth.dtype not in FLOATS else integer_value(c, depth)
    hot = ops.one_hot(non_negative(c, cast(ids, "int64"), count), count, values.dtype, axis)
    off, on = (element(c, values, n) for n in (0, 1))
    return ops.add(ops.multiply(hot, ops.sub(on, off)), off)


def integer_value(c: Call, t: Tensor) -> Size:
    value = value_of(c, t)
    return int(value) if isinstance(value, float) else value


def element(c: Call, t: Tensor, n: int) -> Tensor:
    """One element of a vector, as its number where that is known."""
    value = c.lifted.known(t.at([number(n)]))
    return tensor.select(t, 0, n) if value is None else tensor.scalar(value, t.dtype)


# --- filled tensors -------------------------------------------------------------------------------------------------


def constant_of_shape(c: Call, target: Tensor, value: Array | None = None) -> Tensor:
    fill = np.zeros(1, np.float32) if value is None else value
    plain_fill = fill.reshape(-1)[0].item()
    if plain_fill != plain_fill:
        raise Opaque("filled with NaN")
    return tensor.full(wanted(c, target), plain_fill, fill.dtype.name)


def arange(c: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    first, last, step = (value_of(c, t) for t in (start, limit, delta))
    if isinstance(first, float) or isinstance(last, float) or isinstance(step, float):
        count: Size = max(0, math.ceil((plain(last) - plain(first)) / plain(step)))
    else:
        count = extent_of_range(first, last, integer(step))
    return tensor.iota(count, first, step, start.dtype)


def extent_of_range(first: Size, last: Size, step: int) -> Size:
    span = sizes.size((last - first) * (1 if step > 0 else -1))
    if isinstance(span, int):
        return max(0, -(-span // abs(step)))
    count = sizes.divide(span, abs(step))
    if count is None or not sizes.at_least(span, 0):
        raise Opaque("a range whose length is no size")
    return count


def eye_like(c: Call, x: Tensor, dtype: int | None = None, k: int = 0) -> Tensor:
    kind = dtype_of(dtype) if dtype is not None else x.dtype
    dims = new_dims(x.shape)
    row = add_terms(ravel(dims[0]), number(k))
    return Tensor(dims, fn("cast", [fn("eq", [row, ravel(dims[1])], "bool")], kind))


def triangle(c: Call, x: Tensor, k: Tensor | None = None, upper: int = 1) -> Tensor:
    return ops.triangle(x, integer(c.size(k)) if k is not None else 0, lower=not upper)


def array_features(c: Call, x: Tensor, ids: Tensor) -> Tensor:
    known(ids)
    flat = tensor.reshape(ids, [sizes.product(ids.shape)])
    taken = gather(c, x, flat, axis=-1)
    return tensor.unsqueeze(taken, 0) if len(x.dims) == 1 else taken


LOOKUPS: dict[str, Lift] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "OneHot": one_hot,
    "ConstantOfShape": constant_of_shape,
    "Range": arange,
    "EyeLike": eye_like,
    "Trilu": triangle,
    "ai.onnx.ml::ArrayFeatureExtractor": array_features,
    "com.microsoft::GatherND": gather_nd,
    "com.microsoft::Trilu": triangle,
}
