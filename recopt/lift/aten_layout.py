"""ATen: where elements are. Shapes, slices, joins, new tensors; lookups by integer tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..ir import ops, sizes, tensor
from ..ir.rules import fn
from ..ir.sizes import Size
from ..ir.tensor import Dim, Tensor, aligned, new_dims, ravel, unravel
from ..ir.term import Axis, Poly, add, number, scale, substitute
from .aten_types import is_float, operand
from .base import Call, Opaque, Result

Lift = Callable[..., Result]


def dim_of(t: Tensor, dim: int, extra: int = 0) -> int:
    """A dimension number, counted from the front."""
    return dim % max(len(t.dims) + extra, 1)


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


def _pixel_shuffle(c: Call, x: Tensor, factor: int) -> Tensor:
    *lead, channels, height, width = x.shape
    kept, n = sizes.divide(channels, factor**2), len(lead)
    if kept is None:
        raise Opaque("channels that the factor does not divide")
    parts = tensor.reshape(x, [*lead, kept, factor, factor, height, width])
    turned = tensor.permute(parts, [*range(n), *(n + d for d in (0, 3, 1, 4, 2))])
    return tensor.reshape(turned, [*lead, kept, sizes.mul(height, factor), sizes.mul(width, factor)])


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
    return ops.multiply(tensor.unsqueeze(x, len(x.dims)), _identity_matrix(size, size, x.dtype))


def _identity_matrix(rows: Size, columns: Size, dtype: str) -> Tensor:
    row = tensor.unsqueeze(tensor.iota(rows), 1)
    return ops.cast(ops.pointwise("eq", row, tensor.iota(columns)), dtype)


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


def _slice_scatter(
    c: Call, x: Tensor, src: Tensor, dim: int = 0, start: object = None, end: object = None, step: int = 1
) -> Tensor:
    if step != 1:
        raise Opaque("a write to a strided slice")
    dim = dim_of(x, dim)
    first = 0 if start is None else c.size(start)
    if not sizes.at_least(first, 0):
        first = sizes.add(first, x.shape[dim])
    after = sizes.add(first, src.shape[dim])
    room = sizes.size(x.shape[dim] - after)
    if not (sizes.at_least(first, 0) and sizes.at_least(room, 0)):
        raise Opaque("a write to a slice that may be cut off")
    pieces = [(0, first), None, (after, room)]
    kept = [
        operand(src, x.dtype) if p is None else tensor.slice_dim(x, dim, *p) for p in pieces if p is None or p[1] != 0
    ]
    return tensor.concat(kept, dim)


def _select_scatter(c: Call, x: Tensor, src: Tensor, dim: int, index: object) -> Tensor:
    dim = dim_of(x, dim)
    position = c.size(index)
    if not sizes.at_least(position, 0):
        position = sizes.add(position, x.shape[dim])
    return _slice_scatter(c, x, tensor.unsqueeze(src, dim), dim, position)


# --- lookups


def _embedding(c: Call, weight: Tensor, ids: Tensor, *_: object, **__: object) -> Tensor:
    return ops.take(weight, ids)  # padding_idx is the gradient's


def _index_select(c: Call, x: Tensor, dim: int, index: Tensor) -> Tensor:
    if len(index.dims) == 0:
        index = tensor.unsqueeze(index, 0)
    return ops.take(x, index, dim_of(x, dim))


def _gather(c: Call, x: Tensor, dim: int, index: Tensor, sparse_grad: bool = False) -> Tensor:
    if not x.dims or not index.dims:
        raise Opaque("a gather of rank 0")
    x, index, dim = x.fresh(), index.fresh(), dim_of(x, dim)
    mapping: dict[Axis, Poly] = {}
    for n, (mine, other) in enumerate(zip(x.dims, index.dims, strict=True)):
        position = index.body if n == dim else ravel(other)
        mapping.update(zip(mine, unravel(position, [a.size for a in mine]), strict=True))
    return index.with_body(substitute(x.body, mapping))


def _take_along_dim(c: Call, x: Tensor, index: Tensor, dim: int | None = None) -> Tensor:
    if dim is None:
        x, index, dim = (*(tensor.reshape(t, [sizes.product(t.shape)]) for t in (x, index)), 0)
    dim = dim_of(x, dim)
    shapes = [list(t.shape) for t in (x, index)]
    for n in range(len(x.dims)):
        if n != dim:  # the others broadcast
            shapes[0][n] = shapes[1][n] = shapes[1][n] if shapes[0][n] == 1 else shapes[0][n]
    return _gather(c, tensor.expand(x, shapes[0]), dim, tensor.expand(index, shapes[1]))


def _scatter(add: bool) -> Lift:
    def lift(
        c: Call, x: Tensor, dim: int, index: Tensor, source: Tensor | float, reduce: str = "sum",
        include_self: bool = True,
    ) -> Tensor:  # fmt: skip
        dim = dim_of(x, dim)
        given = source if isinstance(source, Tensor) else tensor.full(index.shape, source, x.dtype)
        alike = all(a == b for n, (a, b) in enumerate(zip(x.shape, index.shape, strict=True)) if n != dim)
        if not alike or given.shape != index.shape or reduce != "sum" or not include_self:
            raise Opaque("a scatter into a part of a tensor, or that does not add")
        if not add and index.shape[dim] != 1:
            raise Opaque("a scatter of several elements, of which the last stays")
        c.lifted.notes["one-hot", c.node.outputs[0]] = True  # an id that has no place is an error
        return (ops.scatter_add if add else ops.scatter_one)(x, dim, index, given)

    return lift


def _index(c: Call, x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Advanced indexing by integer tensors: their common dimensions stand where these are adjacent, else first."""
    chosen = [(n, i) for n, i in enumerate(indices) if i is not None]
    if any(i.dtype in ("bool", "uint8") for _, i in chosen):
        raise Opaque("indexing by a mask: the shape depends on data")
    x = x.fresh()
    common, positions = aligned([i for _, i in chosen])
    mapping: dict[Axis, Poly] = {}
    for (n, index), position in zip(chosen, positions, strict=True):
        wrapped = _wrapped(c, index, position, x.shape[n])
        mapping.update(zip(x.dims[n], unravel(wrapped, [a.size for a in x.dims[n]]), strict=True))
    places = [n for n, _ in chosen]
    rest: list[Dim] = [d for n, d in enumerate(x.dims) if n not in places]
    adjacent = places == list(range(places[0], places[0] + len(places)))
    front = places[0] if adjacent else 0
    return Tensor((*rest[:front], *common, *rest[front:]), substitute(x.body, mapping))


def _wrapped(c: Call, index: Tensor, position: Poly, extent: Size) -> Poly:
    """An index with negative values counted from the end."""
    value = position.number
    if value is not None and not isinstance(value, float):
        return position if sizes.at_least(value, 0) else number(sizes.add(value, extent))
    known = c.constant(index)
    if ops.sizes_known_non_negative(position) or (known is not None and known.size and known.min() >= 0):
        return position
    negative = fn("lt", [position, number(0, position.dtype)], "bool")
    return fn("where", [negative, add(position, number(extent, position.dtype)), position], position.dtype)


def _one_hot(c: Call, ids: Tensor, classes: object = -1) -> Tensor:
    depth = c.size(classes)
    if depth == -1:
        raise Opaque("a one-hot whose width depends on data")
    c.lifted.notes["one-hot", c.node.outputs[0]] = True  # an id that has no place is an error, not a row of zeros
    return ops.one_hot(ids, depth, c.dtype)


# --- new tensors


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
    return _identity_matrix(c.shape[0], c.shape[1], c.dtype)


def _named(names: str, function: Lift) -> dict[str, Lift]:
    return {f"aten.{name}": function for name in names.split()}


TABLE: dict[str, Lift] = {
    **_named("permute.default", _permute),
    **_named("transpose.int swapaxes.default swapdims.default", _transpose),
    **_named("t.default", lambda c, x: _reversed_dims(c, x)),
    **_named("numpy_T.default", _reversed_dims),
    **_named("mT.default adjoint.default", lambda c, x: _transpose(c, x, -2, -1)),
    **_named("movedim.int movedim.intlist moveaxis.int moveaxis.intlist", _movedim),
    **_named("view.default reshape.default _unsafe_view.default view_as.default reshape_as.default", _reshaped),
    **_named("_reshape_alias.default flatten.using_ints unflatten.int ravel.default", _reshaped),
    **_named("atleast_1d.default view_copy.default", _reshaped),
    **_named("expand.default expand_as.default broadcast_to.default", _expanded),
    **_named("squeeze.default squeeze.dim squeeze.dims", _squeeze),
    **_named("unsqueeze.default", _unsqueeze),
    **_named("slice.Tensor", _slice),
    **_named("select.int", _select),
    **_named("narrow.default", _narrow),
    **_named("split.Tensor split.sizes split_with_sizes.default chunk.default unsafe_split.Tensor", _split),
    **_named("unsafe_split_with_sizes.default unsafe_chunk.default tensor_split.sections tensor_split.indices", _split),
    **_named("unbind.int", _unbind),
    **_named("cat.default concat.default concatenate.default", _cat),
    **_named("stack.default", _stack),
    **_named("hstack.default", _joined(1, 1)),
    **_named("vstack.default", _joined(0, 2)),
    **_named("column_stack.default", _joined(1, 2)),
    **_named("repeat.default tile.default", _repeat),
    **_named("repeat_interleave.self_int", _repeat_interleave),
    **_named("roll.default", _roll),
    **_named("flip.default", _flip),
    **_named("pixel_shuffle.default", _pixel_shuffle),
    **_named("channel_shuffle.default", _channel_shuffle),
    **_named("fliplr.default", lambda c, x: _flip(c, x, [1])),
    **_named("flipud.default", lambda c, x: _flip(c, x, [0])),
    **_named("pad.default constant_pad_nd.default", _pad),
    **_named("unfold.default", _unfold),
    **_named("tril.default", _triangle(True)),
    **_named("triu.default", _triangle(False)),
    **_named("diagonal.default", _diagonal),
    **_named("diag_embed.default", _diag_embed),
    **_named("meshgrid.default meshgrid.indexing", _meshgrid),
    **_named("slice_scatter.default", _slice_scatter),
    **_named("select_scatter.default", _select_scatter),
    **_named("embedding.default", _embedding),
    **_named("index_select.default", _index_select),
    **_named("gather.default", _gather),
    **_named("index.Tensor", _index),
    **_named("one_hot.default", _one_hot),
    **_named("take_along_dim.default", _take_along_dim),
    **_named("scatter.value scatter.src", _scatter(add=False)),
    **_named("scatter_add.default scatter_reduce.two", _scatter(add=True)),
    **_named("zeros.default zeros_like.default new_zeros.default", _filled(0)),
    **_named("ones.default ones_like.default new_ones.default", _filled(1)),
    **_named("full.default full_like.default fill.Scalar fill.Tensor", _full),
    **_named("new_full.default", _new_full),
    **_named("scalar_tensor.default", _scalar_tensor),
    **_named("arange.default arange.start arange.start_step", _arange),
    **_named("linspace.default", _linspace),
    **_named("eye.default eye.m", _eye),
    "aten.sym_size.int": lambda c, x, dim: tensor.scalar(x.shape[dim], "int64"),
}
