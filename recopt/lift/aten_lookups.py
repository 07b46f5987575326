"""ATen: lookups by integer tensors, and writes to the places that they name."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir import ops, sizes, tensor
from ..ir.normal import add, substitute
from ..ir.rules import fn
from ..ir.sizes import Size
from ..ir.tensor import Dim, Tensor, aligned, ravel, unravel
from ..ir.term import Axis, Poly, number
from .aten_common import Lift, dim_of, named
from .base import Call, Opaque


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


def _index_put(
    c: Call, x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    """x[mask] = values, each the same wherever the mask says: where(mask, values, x)."""
    mask = indices[0] if len(indices) == 1 else None
    if mask is None or mask.dtype != "bool" or accumulate:
        raise Opaque("a write to places that data names, in an order that matters")
    rest = len(x.dims) - len(mask.dims)
    if len(values.dims) == rest + 1 and values.shape[0] == 1:
        values = tensor.squeeze(values, [0])
    if len(values.dims) > rest:
        raise Opaque("a write of one value after the other to the places of a mask")
    return ops.where(tensor.reshape(mask, [*mask.shape, *[1] * rest]), values, x)


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


TABLE: dict[str, Lift] = {
    **named("embedding.default", _embedding),
    **named("index_select.default", _index_select),
    **named("gather.default", _gather),
    **named("index.Tensor", _index),
    **named("index_put.default", _index_put),
    **named("one_hot.default", _one_hot),
    **named("take_along_dim.default", _take_along_dim),
    **named("scatter.value scatter.src", _scatter(add=False)),
    **named("scatter_add.default scatter_reduce.two", _scatter(add=True)),
}
