"""ONNX operators that move elements: shapes, slices, joins, lookups, and what run-time shape arithmetic is made of."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir import ops, sizes, tensor
from ..ir.normal import add as add_terms
from ..ir.normal import add_all, scale
from ..ir.ranges import value_range
from ..ir.rules import fn
from ..ir.sizes import Size
from ..ir.tensor import Tensor, new_dims, ravel
from ..ir.term import number
from .base import Call, Opaque
from .onnx_common import (
    Lift,
    axes_of,
    axis_of,
    bounded,
    cast,
    integer,
    plain,
    vector,
)
from .onnx_common import number as value_of
from .windows import padded

# --- shapes ---------------------------------------------------------------------------------------------------------


def shape(c: Call, x: Tensor, start: int = 0, end: int | None = None) -> Tensor:
    return vector(x.shape[start:end])


def size(c: Call, x: Tensor) -> Tensor:
    return tensor.scalar(sizes.product(x.shape), "int64")


def wanted(c: Call, target: Tensor) -> list[Size]:
    """The shape that an operand gives, or that the host found for the result where data seems to decide it."""
    try:
        return c.ints(target)
    except Opaque:
        if c.node.outputs[0].shape is None:
            raise
        return list(c.shape)


def reshape(c: Call, x: Tensor, target: Tensor, allowzero: int = 0) -> Tensor:
    return tensor.reshape(x, completed(x, wanted(c, target), bool(allowzero)))


def completed(x: Tensor, target: Sequence[Size], allowzero: bool) -> list[Size]:
    """A Reshape's target with its 0 and -1 filled in."""
    result = list(target)
    if not allowzero:
        result = [x.shape[n] if s == 0 else s for n, s in enumerate(result)]
    if -1 in result:
        open_ = result.index(-1)
        rest = sizes.divide(sizes.product(x.shape), sizes.product(s for n, s in enumerate(result) if n != open_))
        if rest is None:
            raise Opaque(f"reshape {x.shape} to {tuple(result)}")
        result[open_] = rest
    return result


def flatten(c: Call, x: Tensor, axis: int = 1) -> Tensor:
    at = axis + len(x.dims) if axis < 0 else axis
    return tensor.reshape(x, [sizes.product(x.shape[:at]), sizes.product(x.shape[at:])])


def squeeze(c: Call, x: Tensor, given: Tensor | None = None, *, axes: Sequence[int] | None = None) -> Tensor:
    dims = axes_of(c, x, given if given is not None else axes)
    if dims is None:
        if not all(isinstance(s, int) for s in x.shape):
            raise Opaque("squeezes the dimensions that turn out to be 1")
        dims = [n for n, s in enumerate(x.shape) if s == 1]
    for d in sorted(dims, reverse=True):
        x = tensor.select(x, d, 0)  # of a dimension that is 1, or has to be
    return x


def unsqueeze(c: Call, x: Tensor, given: Tensor | None = None, *, axes: Sequence[int] | None = None) -> Tensor:
    places = [integer(a) for a in c.ints(given if given is not None else axes or ())]
    rank = len(x.dims) + len(places)
    for place in sorted(p % rank for p in places):
        x = tensor.unsqueeze(x, place)
    return x


def transpose(c: Call, x: Tensor, perm: Sequence[int] | None = None) -> Tensor:
    return tensor.permute(x, list(perm) if perm is not None else list(range(len(x.dims)))[::-1])


def expand(c: Call, x: Tensor, target: Tensor) -> Tensor:
    """Broadcast both ways: a 1 in the target keeps x's size."""
    sizes_ = wanted(c, target)
    rank = max(len(sizes_), len(x.dims))
    own = [1] * (rank - len(x.dims)) + list(x.shape)
    given = [1] * (rank - len(sizes_)) + sizes_
    return tensor.expand(x, [o if g == 1 else g for o, g in zip(own, given, strict=True)])


def tile(c: Call, x: Tensor, repeats: Tensor) -> Tensor:
    counts = c.ints(repeats)
    return x.with_dims([(*new_dims([n])[0], *d) for n, d in zip(counts, x.dims, strict=True)])


# --- pieces ---------------------------------------------------------------------------------------------------------


def concat(c: Call, *parts: Tensor, axis: int) -> Tensor:
    return tensor.concat(parts, axis_of(parts[0], axis))


def cut(
    c: Call, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    """Slice, with numpy's rules for bounds outside of the dimension; in the loop that TorchScript writes for
    tensor_split a bound is a scalar."""
    starts, ends = (t if t.dims else Tensor(((),), t.body) for t in (starts, ends))
    if steps is None and starts.body.axes_read - set(starts.axes):
        return moving(c, x, starts, ends, axes)
    begin, end = c.ints(starts), c.ints(ends)
    dims = axes_of(c, x, axes) or list(range(len(begin)))
    strides = [integer(s) for s in c.ints(steps)] if steps is not None else [1] * len(begin)
    for d, first, last, step in zip(dims, begin, end, strides, strict=True):
        start, length = extent(x.shape[d], first, last, step)
        x = tensor.slice_dim(x, d, start, length, step)
    return x


def moving(c: Call, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None) -> Tensor:
    """A slice that begins elsewhere for every turn of a loop, and is as long in each."""
    dims = axes_of(c, x, axes) or list(range(integer(starts.shape[0])))
    for n, d in enumerate(dims):
        start, stop = starts.at([number(n)]), ends.at([number(n)])
        length = add_terms(stop, scale(start, -1)).number
        if length is None or isinstance(length, float):
            raise Opaque("a slice whose length differs from turn to turn")
        low, high = value_range(start)
        inside = low is not None and high is not None and sizes.at_least(x.shape[d], sizes.add(high, length))
        if not inside or not sizes.at_least(low or 0, 0):
            raise Opaque("a slice that may leave its dimension")
        piece = tensor.iota(length)
        at = piece.with_body(add_terms(piece.body, start))
        x = ops.take(x, at, d)
    return x


def extent(whole: Size, first: Size, last: Size, step: int) -> tuple[Size, Size]:
    """The first position of a slice and its number of elements."""
    top = whole if step > 0 else sizes.size(whole - 1)
    bottom = 0 if step > 0 else -1
    start = bounded(from_end(first, whole), 0, top)
    stop = bounded(from_end(last, whole), bottom, top)
    span = sizes.size(stop - start) if step > 0 else sizes.size(start - stop)
    if sizes.at_least(0, span):
        return 0, 0
    if not sizes.at_least(span, 0):
        raise Opaque("a slice whose bounds may cross")
    stride = abs(step)
    if stride == 1:
        return start, span
    if isinstance(span, int):
        return start, -(-span // stride)
    count = sizes.divide(span, stride)
    if count is None:
        raise Opaque("a strided slice of a run-time size")
    return start, count


def from_end(position: Size, whole: Size) -> Size:
    """A negative position counted from the end."""
    if isinstance(position, int):
        return position if position >= 0 or position <= -(2**31 - 1) else sizes.size(whole + position)
    if sizes.at_least(position, 0):
        return position
    if sizes.at_least(-1, position):
        return sizes.size(whole + position)
    raise Opaque("a slice bound of unknown sign")


def split(
    c: Call, x: Tensor, given: Tensor | None = None, *, axis: int = 0, split: Sequence[int] | None = None,
    num_outputs: int | None = None,
) -> list[Tensor]:  # fmt: skip
    d, count = axis_of(x, axis), len(c.node.outputs)
    if given is not None or split is not None:
        lengths = c.ints(given if given is not None else split or ())
    else:
        lengths = parts(x.shape[d], num_outputs or count)
    result, start = [], 0
    for length in lengths:
        result.append(tensor.slice_dim(x, d, start, length))
        start = sizes.add(start, length)
    return result


def parts(whole: Size, count: int) -> list[Size]:
    """Equal parts, the last one smaller where they do not come out even."""
    even = sizes.divide(whole, count)
    if even is not None:
        return [even] * count
    if not isinstance(whole, int):
        raise Opaque("a split of a run-time size into parts that may differ")
    part = -(-whole // count)
    return [part] * (count - 1) + [whole - part * (count - 1)]


def pad(
    c: Call, x: Tensor, given: Tensor | None = None, constant: Tensor | None = None, axes: Tensor | None = None, *,
    mode: str = "constant", pads: Sequence[int] | None = None, value: float = 0.0,
) -> Tensor:  # fmt: skip
    widths = c.ints(given if given is not None else pads or ())
    dims = axes_of(c, x, axes) if axes is not None else list(range(len(x.dims)))
    assert dims is not None
    if mode != "constant":
        return mirrored(x, dims, widths, mode)
    fill = plain(value_of(c, constant)) if constant is not None else value
    return padded(x, dims, widths, fill)


def mirrored(x: Tensor, dims: Sequence[int], widths: Sequence[Size], mode: str) -> Tensor:
    """Padding by pieces of x itself: its edge, its mirror image without the edge, or its other end."""
    for n, d in enumerate(dims):
        before, after, whole = integer(widths[n]), integer(widths[n + len(dims)]), x.shape[d]
        last = sizes.size(whole - 1)
        if before < 0 or after < 0 or mode not in ("edge", "reflect", "wrap"):
            raise Opaque(f"padding with mode {mode} and negative widths")
        pieces = [x]
        if mode == "edge":
            ends = [tensor.slice_dim(x, d, place, 1) for place in (0, last)]
            pieces = [ends[0]] * before + [x] + [ends[1]] * after
        else:
            if not sizes.at_least(last, max(before, after)):
                raise Opaque("padding wider than what it repeats")
            left, right = (before, sizes.size(whole - 2)) if mode == "reflect" else (sizes.size(whole - before), 0)
            step = -1 if mode == "reflect" else 1
            if before:
                pieces.insert(0, tensor.slice_dim(x, d, left, before, step))
            if after:
                pieces.append(tensor.slice_dim(x, d, right, after, step))
        x = tensor.concat(pieces, d)
    return x


def reverse_sequence(c: Call, x: Tensor, lengths: Tensor, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """The first lengths[b] elements backwards, the others as they are."""
    x, lengths = x.fresh(), lengths.fresh()
    time, row = ravel(x.dims[time_axis]), ravel(x.dims[batch_axis])
    length = cast(lengths.with_body(lengths.at([row])).with_dims([]), "int64").body
    steps = tensor.retyped(time, "int64")
    inside = fn("lt", [steps, length], "bool")
    backwards = add_all([length, number(-1), scale(steps, -1)], "int64")
    index = [ravel(d) for d in x.dims]
    index[time_axis] = fn("where", [inside, backwards, steps], "int64")
    return x.with_body(x.at(index))


# --- blocks ---------------------------------------------------------------------------------------------------------


def depth_to_space(c: Call, x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    n, channels, height, width = x.shape
    kept = sizes.divide(channels, blocksize**2)
    if kept is None:
        raise Opaque("channels that the block does not divide")
    block, depth = [blocksize, blocksize], [kept]
    split_x = tensor.reshape(x, [n, *(block + depth if mode == "DCR" else depth + block), height, width])
    turned = tensor.permute(split_x, [0, 3, 4, 1, 5, 2] if mode == "DCR" else [0, 1, 4, 2, 5, 3])
    return tensor.reshape(turned, [n, kept, sizes.mul(height, blocksize), sizes.mul(width, blocksize)])


def space_to_depth(c: Call, x: Tensor, blocksize: int) -> Tensor:
    n, channels, height, width = x.shape
    rows, columns = sizes.divide(height, blocksize), sizes.divide(width, blocksize)
    if rows is None or columns is None:
        raise Opaque("an image that the block does not divide")
    turned = tensor.permute(tensor.reshape(x, [n, channels, rows, blocksize, columns, blocksize]), [0, 3, 5, 1, 2, 4])
    return tensor.reshape(turned, [n, sizes.mul(channels, blocksize**2), rows, columns])


def identity(c: Call, x: Tensor) -> Tensor:
    return x


def expand_dims(c: Call, x: Tensor, axis: Tensor) -> Tensor:
    return tensor.unsqueeze(x, integer(c.size(axis)) % (len(x.dims) + 1))


LAYOUT: dict[str, Lift] = {
    "Identity": identity,
    "Shape": shape,
    "Size": size,
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": transpose,
    "Expand": expand,
    "Tile": tile,
    "Concat": concat,
    "Slice": cut,
    "Split": split,
    "Pad": pad,
    "ReverseSequence": reverse_sequence,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "com.microsoft::ExpandDims": expand_dims,
    "com.microsoft::Pad": pad,
}
