"""ATen: where elements are. Shapes, slices and joins."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir import ops, sizes, tensor
from ..ir.normal import add, scale, substitute
from ..ir.sizes import Size
from ..ir.tensor import Tensor, new_dims, ravel, unravel
from .aten_common import Lift, dim_of, named
from .aten_new import identity_matrix
from .aten_types import operand
from .base import Call, Opaque


def _permute(c: Call, x: Tensor, dims: Sequence[int]) -> Tensor:
    return tensor.permute(x, [d % len(x.dims) for d in dims])


def _transpose(c: Call, x: Tensor, a: int, b: int) -> Tensor:
    order = list(range(len(x.dims)))
    if order:
        a, b = dim_of(x, a), dim_of(x, b)
        order[a], order[b] = b, a
    return tensor.permute(x, order)


def _reversed_dims(c: Call, x: Tensor) -> Tensor:
    return tensor.permute(x, list(range(len(x.dims)))[::-1])


def _movedim(c: Call, x: Tensor, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    sources = [dim_of(x, d) for d in ([source] if isinstance(source, int) else source)]
    places = [dim_of(x, d) for d in ([destination] if isinstance(destination, int) else destination)]
    placed = dict(zip(places, sources, strict=True))
    rest = iter([d for d in range(len(x.dims)) if d not in sources])
    return tensor.permute(x, [placed[n] if n in placed else next(rest) for n in range(len(x.dims))])


def _reshaped(c: Call, x: Tensor, *_: object, **__: object) -> Tensor:
    """Every view is the reshape to the shape that the host declares, which has no -1."""
    return tensor.reshape(x, c.shape)


def _expanded(c: Call, x: Tensor, *_: object, **__: object) -> Tensor:
    return tensor.expand(x, c.shape)


def _squeeze(c: Call, x: Tensor, dims: int | Sequence[int] | None = None) -> Tensor:
    chosen = range(len(x.dims)) if dims is None else [dims] if isinstance(dims, int) else dims
    places = [dim_of(x, d) for d in chosen]
    if any(not isinstance(x.shape[d], int) for d in places):
        raise Opaque("squeezes a size that may turn out to be 1")
    return tensor.squeeze(x, places)


def _unsqueeze(c: Call, x: Tensor, dim: int) -> Tensor:
    return tensor.unsqueeze(x, dim_of(x, dim, 1))


def _slice(c: Call, x: Tensor, dim: int = 0, start: object = None, end: object = None, step: int = 1) -> Tensor:
    dim = dim_of(x, dim)
    extent, length = x.shape[dim], c.shape[dim]
    first = 0 if start is None else c.size(start)
    if not sizes.at_least(first, 0):
        wrapped = sizes.add(first, extent)
        if sizes.at_least(wrapped, 0):
            first = wrapped
        elif step == 1 and (end is None or _beyond(end, extent)):
            first = sizes.size(extent - length)  # "the last n" of a dimension that may be shorter than n
        elif isinstance(wrapped, int):
            first = 0
        else:
            raise Opaque("a slice from the end of a dimension that may be too short")
    return tensor.slice_dim(x, dim, first, length, step)


def _beyond(end: object, extent: Size) -> bool:
    return isinstance(end, int) and end >= 0 and (end >= 2**31 or sizes.at_least(end, extent))


def _select(c: Call, x: Tensor, dim: int, index: object) -> Tensor:
    dim, position = dim_of(x, dim), c.size(index)
    if not sizes.at_least(position, 0):
        position = sizes.add(position, x.shape[dim])
    return tensor.select(x, dim, position)


def _narrow(c: Call, x: Tensor, dim: int, start: object, length: object) -> Tensor:
    return _slice(c, x, dim, start, None)


def _split(c: Call, x: Tensor, _: object = None, dim: int = 0) -> list[Tensor]:
    dim = dim_of(x, dim)
    start: Size = 0
    pieces = []
    for value in c.node.outputs:
        if value.shape is None:
            raise Opaque("a split with pieces of unknown shape")
        pieces.append(tensor.slice_dim(x, dim, start, value.shape[dim]))
        start = sizes.add(start, value.shape[dim])
    return pieces


def _unbind(c: Call, x: Tensor, dim: int = 0) -> list[Tensor]:
    dim = dim_of(x, dim)
    return [tensor.select(x, dim, n) for n in range(len(c.node.outputs))]


def _cat(c: Call, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    rank = max(len(t.dims) for t in tensors)
    # an empty 1-D tensor joins anything
    pieces = [operand(t, c.dtype) for t in tensors if t.shape != (0,) or rank == 1]
    return tensor.concat(pieces, dim_of(pieces[0], dim))


def _stack(c: Call, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return tensor.stack([operand(t, c.dtype) for t in tensors], dim_of(tensors[0], dim, 1))


def _joined(dim: int, least_rank: int) -> Lift:
    """hstack and its like: a cat after lifting the operands to a rank."""

    def join(c: Call, tensors: Sequence[Tensor]) -> Tensor:
        raised = [_raised(t, least_rank, dim) for t in tensors]
        return _cat(c, raised, 0 if len(raised[0].dims) == 1 else dim)

    return join


def _raised(t: Tensor, rank: int, dim: int) -> Tensor:
    while len(t.dims) < rank:
        t = tensor.unsqueeze(t, len(t.dims) if dim == 1 and len(t.dims) else 0)
    return t


def _repeat(c: Call, x: Tensor, repeats: Sequence[object]) -> Tensor:
    counts = c.ints(repeats)
    x = x.fresh()
    missing = len(counts) - len(x.dims)
    dims = [*[()] * missing, *x.dims] if missing > 0 else list(x.dims)
    counts = [*[1] * -missing, *counts]
    return x.with_dims([(*new, *old) for new, old in zip(new_dims(counts), dims, strict=True)])


def _repeat_interleave(
    c: Call, x: Tensor, repeats: object, dim: int | None = None, output_size: object = None
) -> Tensor:
    x = x.fresh()
    if dim is None:
        x, dim = tensor.reshape(x, [sizes.product(x.shape)]), 0
    dim = dim_of(x, dim)
    (new,) = new_dims([c.size(repeats)])
    return x.with_dims([(*d, *new) if n == dim else d for n, d in enumerate(x.dims)])


def _roll(c: Call, x: Tensor, shifts: Sequence[object], dims: Sequence[int] = ()) -> Tensor:
    if not dims:
        return tensor.reshape(_roll(c, tensor.reshape(x, [sizes.product(x.shape)]), shifts, [0]), x.shape)
    for shift, d in zip(c.ints(shifts), dims, strict=True):
        d = dim_of(x, d)
        extent = x.shape[d]
        if isinstance(extent, int) and isinstance(shift, int) and extent:
            shift %= extent
        if shift == 0:
            continue
        if not (sizes.at_least(shift, 0) and sizes.at_least(extent, shift)):
            raise Opaque("a roll by more than the size may be")
        rest = sizes.size(extent - shift)
        x = tensor.concat([tensor.slice_dim(x, d, rest, shift), tensor.slice_dim(x, d, 0, rest)], d)
    return x


def _flip(c: Call, x: Tensor, dims: Sequence[int]) -> Tensor:
    return tensor.flip(x, [dim_of(x, d) for d in dims])


def _rot90(c: Call, x: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    """Quarter turns from the first of two dimensions to the second."""
    first, second = (dim_of(x, d) for d in dims)
    if k % 4 == 2:
        return tensor.flip(x, [first, second])
    return x if k % 4 == 0 else _transpose(c, tensor.flip(x, [second if k % 4 == 1 else first]), first, second)


def _pixel_shuffle(c: Call, x: Tensor, factor: int) -> Tensor:
    *lead, channels, height, width = x.shape
    kept, n = sizes.divide(channels, factor**2), len(lead)
    if kept is None:
        raise Opaque("channels that the factor does not divide")
    parts = tensor.reshape(x, [*lead, kept, factor, factor, height, width])
    turned = tensor.permute(parts, [*range(n), *(n + d for d in (0, 3, 1, 4, 2))])
    return tensor.reshape(turned, [*lead, kept, sizes.mul(height, factor), sizes.mul(width, factor)])


def _pixel_unshuffle(c: Call, x: Tensor, factor: int) -> Tensor:
    *lead, channels, height, width = x.shape
    rows, columns, n = sizes.divide(height, factor), sizes.divide(width, factor), len(lead)
    if rows is None or columns is None:
        raise Opaque("a picture that the factor does not divide")
    parts = tensor.reshape(x, [*lead, channels, rows, factor, columns, factor])
    turned = tensor.permute(parts, [*range(n), *(n + d for d in (0, 2, 4, 1, 3))])
    return tensor.reshape(turned, [*lead, sizes.mul(channels, factor**2), rows, columns])


def _channel_shuffle(c: Call, x: Tensor, groups: int) -> Tensor:
    batch, channels, *rest = x.shape
    each = sizes.divide(channels, groups)
    if each is None:
        raise Opaque("channels that the groups do not divide")
    turned = tensor.permute(tensor.reshape(x, [batch, groups, each, *rest]), [0, 2, 1, *range(3, len(rest) + 3)])
    return tensor.reshape(turned, x.shape)


def _pad(c: Call, x: Tensor, pad: Sequence[object], *rest: object, value: object = 0, mode: str = "constant") -> Tensor:
    for item in rest:  # aten.pad has (mode, value), aten.constant_pad_nd (value)
        mode, value = (item, value) if isinstance(item, str) else (mode, item)
    if mode != "constant":
        raise Opaque(f"padding by {mode}")
    amounts = c.ints(pad)
    filler = operand(0 if value is None else value, x.dtype).body.number
    if filler is None:
        raise Opaque("padding with data")
    for n in range(len(amounts) // 2):
        x = tensor.pad(x, len(x.dims) - 1 - n, amounts[2 * n], amounts[2 * n + 1], filler)
    return x


def _unfold(c: Call, x: Tensor, dim: int, size: int, step: int) -> Tensor:
    x, dim = x.fresh(), dim_of(x, dim)
    count, window = new_dims([c.shape[dim], size])
    position = add(scale(ravel(count), step), ravel(window))
    mapping = dict(zip(x.dims[dim], unravel(position, [a.size for a in x.dims[dim]]), strict=True))
    return Tensor((*x.dims[:dim], count, *x.dims[dim + 1 :], window), substitute(x.body, mapping))


def _triangle(lower: bool) -> Lift:
    return lambda c, x, diagonal=0: ops.triangle(x, diagonal, lower)


def _diagonal(c: Call, x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    return ops.diagonal(x, offset, dim_of(x, dim1), dim_of(x, dim2))


def _diag_embed(c: Call, x: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    if offset or (dim1, dim2) != (-2, -1):
        raise Opaque("diag_embed off the main diagonal")
    size = x.shape[-1]
    return ops.multiply(tensor.unsqueeze(x, len(x.dims)), identity_matrix(size, size, x.dtype))


def _meshgrid(c: Call, tensors: Sequence[Tensor], indexing: str = "ij") -> list[Tensor]:
    rank = len(tensors)
    places = [1, 0, *range(2, rank)] if indexing == "xy" and rank > 1 else list(range(rank))
    grids = []
    for t, place, value in zip(tensors, places, c.node.outputs, strict=True):
        lined = tensor.reshape(t, [sizes.product(t.shape), *[1] * (rank - 1 - place)])
        if value.shape is None:
            raise Opaque("a grid of unknown shape")
        grids.append(tensor.expand(lined, value.shape))
    return grids


def _copy(c: Call, x: Tensor, src: Tensor, non_blocking: bool = False) -> Tensor:
    """`src` in the shape and dtype of `x`, whose elements go."""
    return tensor.expand(operand(src, x.dtype), x.shape)


def _slice_scatter(
    c: Call, x: Tensor, src: Tensor, dim: int = 0, start: object = None, end: object = None, step: int = 1
) -> Tensor:
    if step != 1:
        raise Opaque("a write to a strided slice")
    dim = dim_of(x, dim)
    first = 0 if start is None else c.size(start)
    if not sizes.at_least(first, 0):
        first = sizes.add(first, x.shape[dim])
    room = sizes.size(x.shape[dim] - sizes.add(first, src.shape[dim]))
    if not (sizes.at_least(first, 0) and sizes.at_least(room, 0)):
        raise Opaque("a write to a slice that may be cut off")
    return tensor.overwritten(x, operand(src, x.dtype), [first if n == dim else 0 for n in range(len(x.dims))])


def _select_scatter(c: Call, x: Tensor, src: Tensor, dim: int, index: object) -> Tensor:
    dim = dim_of(x, dim)
    position = c.size(index)
    if not sizes.at_least(position, 0):
        position = sizes.add(position, x.shape[dim])
    return _slice_scatter(c, x, tensor.unsqueeze(src, dim), dim, position)


TABLE: dict[str, Lift] = {
    **named("permute.default", _permute),
    **named("transpose.int swapaxes.default swapdims.default", _transpose),
    **named("t.default", lambda c, x: _reversed_dims(c, x)),
    **named("numpy_T.default", _reversed_dims),
    **named("mT.default adjoint.default", lambda c, x: _transpose(c, x, -2, -1)),
    **named("movedim.int movedim.intlist moveaxis.int moveaxis.intlist", _movedim),
    **named("view.default reshape.default _unsafe_view.default view_as.default reshape_as.default", _reshaped),
    **named("_reshape_alias.default flatten.using_ints unflatten.int ravel.default", _reshaped),
    **named("atleast_1d.default view_copy.default", _reshaped),
    **named("expand.default expand_as.default broadcast_to.default", _expanded),
    **named("squeeze.default squeeze.dim squeeze.dims", _squeeze),
    **named("unsqueeze.default", _unsqueeze),
    **named("slice.Tensor", _slice),
    **named("select.int", _select),
    **named("narrow.default", _narrow),
    **named("split.Tensor split.sizes split_with_sizes.default chunk.default unsafe_split.Tensor", _split),
    **named("unsafe_split_with_sizes.default unsafe_chunk.default tensor_split.sections tensor_split.indices", _split),
    **named("unbind.int", _unbind),
    **named("cat.default concat.default concatenate.default", _cat),
    **named("stack.default", _stack),
    **named("hstack.default", _joined(1, 1)),
    **named("vstack.default", _joined(0, 2)),
    **named("column_stack.default", _joined(1, 2)),
    **named("repeat.default tile.default", _repeat),
    **named("repeat_interleave.self_int", _repeat_interleave),
    **named("roll.default", _roll),
    **named("flip.default", _flip),
    **named("rot90.default", _rot90),
    **named("pixel_shuffle.default", _pixel_shuffle),
    **named("pixel_unshuffle.default", _pixel_unshuffle),
    **named("channel_shuffle.default", _channel_shuffle),
    **named("fliplr.default", lambda c, x: _flip(c, x, [1])),
    **named("flipud.default", lambda c, x: _flip(c, x, [0])),
    **named("pad.default constant_pad_nd.default", _pad),
    **named("unfold.default", _unfold),
    **named("tril.default", _triangle(True)),
    **named("triu.default", _triangle(False)),
    **named("diagonal.default", _diagonal),
    **named("diag_embed.default", _diag_embed),
    **named("meshgrid.default meshgrid.indexing", _meshgrid),
    **named("copy.default", _copy),
    **named("slice_scatter.default", _slice_scatter),
    **named("select_scatter.default", _select_scatter),
    "aten.sym_size.int": lambda c, x, dim: tensor.scalar(x.shape[dim], "int64"),
}
