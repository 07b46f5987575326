"""A tensor's meaning: its dimensions as ordered products of axes, and the term of one element over those axes.

A reshape that splits or merges on known boundaries regroups axes, a transpose reorders dimensions, a slice shifts an
index: none of them is work, and the term does not remember them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

from . import sizes
from .normal import add, add_all, guard, mul, read, scale, substitute
from .order import bound_order, read_jointly
from .rules import divided
from .sizes import Size
from .term import Axis, Coef, Leaf, Poly, axis, coord, number

Dim = tuple[Axis, ...]  # major axis first; () has size 1


class ShapeError(Exception):
    """Operands whose shapes do not fit, or do not provably fit: the lift keeps such a node opaque."""


@dataclass(frozen=True)
class Tensor:
    """dims -> body."""

    dims: tuple[Dim, ...]
    body: Poly

    @cached_property
    def shape(self) -> tuple[Size, ...]:
        return tuple(sizes.product(a.size for a in dim) for dim in self.dims)

    @property
    def dtype(self) -> str:
        return self.body.dtype

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The free axes, in the order of the dimensions."""
        return tuple(a for dim in self.dims for a in dim)

    def at(self, index: Sequence[Poly]) -> Poly:
        """The element at `index`, one integer term for each dimension. Raises ShapeError for more or fewer."""
        if len(index) != len(self.dims):
            raise ShapeError(f"{len(index)} positions in {len(self.dims)} dimensions")
        mapping: dict[Axis, Poly] = {}
        for dim, position in zip(self.dims, index, strict=True):
            mapping.update(zip(dim, unravel(position, [a.size for a in dim]), strict=True))
        return substitute(self.body, mapping)

    def fresh(self) -> Tensor:
        """The same meaning over new axes, so that two uses do not share them."""
        names = {a: axis(a.size) for a in self.axes}
        return Tensor(tuple(tuple(names[a] for a in dim) for dim in self.dims), renamed(self.body, names))

    def canonical(self) -> Tensor:
        """The same meaning with free axes numbered by place, and axes that are only read jointly merged: equal meanings
        are then equal objects up to their dims."""
        dims, body = [list(dim) for dim in self.dims], self.body
        for dim in dims:
            n = 0
            while n + 1 < len(dim):
                outer, inner = dim[n], dim[n + 1]
                if read_jointly_everywhere(outer, inner, body):
                    joint = axis(sizes.mul(outer.size, inner.size))
                    body = substitute(body, {outer: number(0), inner: coord(joint)})
                    dim[n : n + 2] = [joint]
                else:
                    n += 1
        names: dict[Axis, Axis] = {}
        for dim in dims:
            for a in dim:
                names[a] = Axis(len(names), a.size)
        return Tensor(tuple(tuple(names[a] for a in dim) for dim in dims), renamed(body, names))

    def with_dims(self, dims: Sequence[Dim]) -> Tensor:
        """The same body under other dimensions."""
        return Tensor(tuple(dims), self.body)

    def with_body(self, body: Poly) -> Tensor:
        """Another body under the same dimensions."""
        return Tensor(self.dims, body)


def renamed(body: Poly, names: Mapping[Axis, Axis]) -> Poly:
    """`body` with other free axes."""
    return substitute(body, {a: coord(n) for a, n in names.items() if a != n})


def read_jointly_everywhere(outer: Axis, inner: Axis, body: Poly) -> bool:
    """Whether every atom of `body` reads the two axes as outer*size(inner) + inner, if at all."""
    return all(read_jointly(outer, inner, a) for m in body.monos for a in m.atoms)


def unravel(position: Poly, extents: Sequence[Size]) -> list[Poly]:
    """The index along each axis of a row-major group, from the index into the group."""
    if len(extents) == 1:
        return [position]
    result: list[Poly] = []
    for n in range(len(extents)):
        quotient, position = divided(position, sizes.product(extents[n + 1 :]))
        result.append(quotient)
    return result


def ravel(dim: Dim) -> Poly:
    """The index into a dimension, from its axes."""
    index, stride = number(0), sizes.size(1)
    terms = []
    for a in reversed(dim):
        terms.append(scale(coord(a), stride))
        stride = sizes.mul(stride, a.size)
    return add(index, *terms)


def new_dims(shape: Sequence[Size]) -> tuple[Dim, ...]:
    """Fresh axes for a shape."""
    return tuple(() if s == 1 else (axis(s),) for s in shape)


def _numbered(extents: Sequence[Sequence[Size]]) -> tuple[Dim, ...]:
    """Dimensions over canonical axes."""
    place = count()
    return tuple(tuple(Axis(next(place), s) for s in dim) for dim in extents)


def leaf(source: Leaf, shape: Sequence[Size], dtype: str) -> Tensor:
    """A tensor that is read as it is."""
    dims = _numbered([[s] if s != 1 else [] for s in shape])
    return Tensor(dims, read(source, [ravel(d) for d in dims], dtype))


def alias(source: Leaf, like: Tensor) -> Tensor:
    """A tensor read as it is, under the axes that its meaning `like` already distinguishes."""
    dims = _numbered([[a.size for a in dim] for dim in like.dims])
    return Tensor(dims, read(source, [ravel(d) for d in dims], like.dtype))


def scalar(value: Coef, dtype: str) -> Tensor:
    """A number of rank 0."""
    return Tensor((), number(value, dtype))


def full(shape: Sequence[Size], value: Coef, dtype: str) -> Tensor:
    """One number everywhere."""
    return Tensor(new_dims(shape), number(value, dtype))


def iota(length: Size, start: Coef = 0, step: Coef = 1, dtype: str = "int64") -> Tensor:
    """start, start + step, ..."""
    dims = new_dims([length])
    return Tensor(dims, retyped(add(scale(ravel(dims[0]), step), number(start)), dtype))


def retyped(term: Poly, dtype: str) -> Poly:
    """The same monomials under another dtype, where every value is exact in both."""
    return add_all([term], dtype)


# --- regrouping


def reshape(t: Tensor, shape: Sequence[Size]) -> Tensor:
    """Row-major regrouping: on known boundaries the axes regroup, elsewhere the index is divided."""
    if sizes.size(sizes.product(t.shape) - sizes.product(shape)) != 0:
        raise ShapeError(f"reshape {t.shape} to {tuple(shape)}")
    pending = [a for dim in t.dims for a in dim]  # axes still to be placed, major first
    splits: dict[Axis, Poly] = {}
    dims: list[Dim] = []
    for wanted in shape:
        dim: list[Axis] = []
        left = wanted
        while left != 1:
            if not pending:
                raise ShapeError(f"reshape {t.shape} to {tuple(shape)}")
            head = pending.pop(0)
            rest = sizes.divide(left, head.size)
            if rest is not None:  # the whole axis fits
                dim.append(head)
                left = rest
                continue
            inner = sizes.divide(head.size, left)
            if inner is None:
                return _reindexed(t, shape)
            outer, low = axis(left), axis(inner)  # the axis is cut: its major part completes this dimension
            splits[head] = add(scale(coord(outer), inner), coord(low))
            dim.append(outer)
            pending.insert(0, low)
            left = 1
        dims.append(tuple(dim))
    body = t.body
    # an axis may have been cut several times: its parts are substituted in the order of the cuts
    for cut, parts in splits.items():
        body = substitute(body, {cut: parts})
    return Tensor(tuple(dims), body)


def _reindexed(t: Tensor, shape: Sequence[Size]) -> Tensor:
    dims = new_dims(shape)
    position = ravel(tuple(a for dim in dims for a in dim))
    extents = [a.size for a in t.axes]
    return Tensor(dims, substitute(t.body, dict(zip(t.axes, unravel(position, extents), strict=True))))


def aligned(tensors: Sequence[Tensor]) -> tuple[tuple[Dim, ...], list[Poly]]:
    """Broadcast: the common dimensions, and each tensor's body over them. The axes of the first that has a dimension
    stay, so that the largest bodies seldom change."""
    rank = max(len(t.dims) for t in tensors)
    bodies = []
    dims: list[Dim] = []
    mappings: list[dict[Axis, Poly]] = [{} for _ in tensors]
    taken: set[int] = set()
    for n in range(rank):
        present = [(i, t.dims[n - rank + len(t.dims)]) for i, t in enumerate(tensors) if n - rank + len(t.dims) >= 0]
        wide = [(i, d) for i, d in present if d]
        common = _refined([d for _, d in wide])
        if not taken.isdisjoint(a.id for a in common):
            common = tuple(axis(a.size) for a in common)
        taken.update(a.id for a in common)
        dims.append(common)
        for i, d in wide:
            mappings[i].update(_expressed(d, common))
    for t, mapping in zip(tensors, mappings, strict=True):
        bodies.append(substitute(t.body, mapping))
    return tuple(dims), bodies


def _refined(dims: list[Dim]) -> Dim:
    """Axes fine enough that each of `dims`, all of one size, is a regrouping of them: those of the first where they
    are, else fresh ones; a single one where there are none."""
    if not dims:
        return ()
    if all(len(d) == len(dims[0]) and all(a.size == b.size for a, b in zip(d, dims[0], strict=True)) for d in dims[1:]):
        return dims[0]
    total = sizes.product(a.size for a in dims[0])
    for d in dims[1:]:
        if sizes.size(sizes.product(a.size for a in d) - total) != 0:
            raise ShapeError(f"sizes {total} and {sizes.product(a.size for a in d)} do not provably agree")
    common = [a.size for a in dims[0]]
    for d in dims[1:]:
        refined: list[Size] = []
        left, right = list(common), [a.size for a in d]
        while left and right:
            a, b = left[0], right[0]
            if sizes.size(a - b) == 0:
                refined.append(a)
                left.pop(0), right.pop(0)
            elif (rest := sizes.divide(a, b)) is not None:
                refined.append(b)
                left[0] = rest
                right.pop(0)
            elif (rest := sizes.divide(b, a)) is not None:
                refined.append(a)
                right[0] = rest
                left.pop(0)
            else:
                return (axis(total),)
        common = refined
    return tuple(axis(s) for s in common)


def _expressed(dim: Dim, common: Dim) -> dict[Axis, Poly]:
    """Each axis of `dim` as an index over `common`, a refinement of it; none for axes that stay."""
    mapping: dict[Axis, Poly] = {}
    if dim == common:
        return mapping
    pending = list(common)
    for a in dim:
        taken: list[Axis] = []
        while sizes.size(sizes.product(x.size for x in taken) - a.size) != 0:
            if not pending or (taken and sizes.divide(a.size, sizes.product(x.size for x in taken)) is None):
                return dict(zip(dim, unravel(ravel(common), [x.size for x in dim]), strict=True))
            taken.append(pending.pop(0))
        mapping[a] = ravel(tuple(taken))
    return mapping


# --- layout


def permute(t: Tensor, perm: Sequence[int]) -> Tensor:
    """Dimension i of the result is dimension perm[i]."""
    return t.with_dims([t.dims[p] for p in perm])


def unsqueeze(t: Tensor, dim: int) -> Tensor:
    """A dimension of size 1 at `dim` of the result."""
    dims = list(t.dims)
    dims.insert(dim, ())
    return t.with_dims(dims)


def squeeze(t: Tensor, dims: Sequence[int]) -> Tensor:
    """Without those of `dims` that have size 1."""
    return t.with_dims([d for n, d in enumerate(t.dims) if n not in dims or d])


def expand(t: Tensor, shape: Sequence[Size]) -> Tensor:
    """Broadcast to `shape` (right-aligned)."""
    extra = len(shape) - len(t.dims)
    if extra < 0:
        raise ShapeError(f"expand {t.shape} to {tuple(shape)}")
    dims: list[Dim] = []
    for n, wanted in enumerate(shape):
        dim = t.dims[n - extra] if n >= extra else ()
        if dim and sizes.size(sizes.product(a.size for a in dim) - wanted) != 0:
            raise ShapeError(f"expand {t.shape} to {tuple(shape)}")
        dims.append(dim or new_dims([wanted])[0])
    return t.with_dims(dims)


def slice_dim(t: Tensor, dim: int, start: Size, length: Size, step: int = 1) -> Tensor:
    """Elements start, start + step, ... (`length` of them) of one dimension; a negative step runs backwards."""
    if start == 0 and step == 1 and sizes.size(length - t.shape[dim]) == 0:
        return t
    (cut,) = new_dims([length])
    position = add(scale(ravel(cut), step), number(start))
    mapping = dict(zip(t.dims[dim], unravel(position, [a.size for a in t.dims[dim]]), strict=True))
    return Tensor((*t.dims[:dim], cut, *t.dims[dim + 1 :]), substitute(t.body, mapping))


def select(t: Tensor, dim: int, position: Size) -> Tensor:
    """One element of one dimension, which goes."""
    cut = slice_dim(t, dim, position, 1)
    return cut.with_dims([d for n, d in enumerate(cut.dims) if n != dim])


def flip(t: Tensor, dims: Sequence[int]) -> Tensor:
    """Reversed dimensions."""
    for d in dims:
        t = slice_dim(t, d, sizes.size(t.shape[d] - 1), t.shape[d], -1)
    return t


def pad(t: Tensor, dim: int, before: Size, after: Size, value: Coef = 0) -> Tensor:
    """`before` and `after` elements of `value` at the ends of one dimension; negative ones cut."""
    length = sizes.size(t.shape[dim] + before + after)
    (dim_axes,) = new_dims([length])
    position = add(ravel(dim_axes), number(sizes.size(-before)))
    inside = guard(position, 0, t.shape[dim], t.dtype)
    mapping = dict(zip(t.dims[dim], unravel(position, [a.size for a in t.dims[dim]]), strict=True))
    body = mul(retyped(inside, t.dtype), substitute(t.body, mapping))
    if isinstance(value, float) and math.isinf(value):  # less itself it would be NaN inside
        ends = guard(position, None, 0, t.dtype), guard(position, t.shape[dim], None, t.dtype)
        body = add(body, *(scale(retyped(end, t.dtype), value) for end in ends))
    elif value != 0:
        body = add(body, number(value, t.dtype), scale(retyped(inside, t.dtype), -value))
    return Tensor((*t.dims[:dim], dim_axes, *t.dims[dim + 1 :]), body)


def concat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Tensors one after the other along `dim`: a sum of guarded pieces."""
    if len(tensors) == 1:
        return tensors[0]
    total = sizes.size(sum((t.shape[dim] for t in tensors), start=0))
    # other dimensions are aligned by broadcasting over a size-1 stand-in for the joined one
    (joined,) = new_dims([total])
    offset: Size = 0
    pieces: list[Tensor] = []
    for t in tensors:
        t = t.fresh()
        position = add(ravel(joined), number(sizes.size(-offset)))
        inside = retyped(guard(position, 0, t.shape[dim]), t.dtype)
        mapping = dict(zip(t.dims[dim], unravel(position, [a.size for a in t.dims[dim]]), strict=True))
        body = mul(inside, substitute(t.body, mapping))
        pieces.append(Tensor((*t.dims[:dim], (), *t.dims[dim + 1 :]), body))
        offset = sizes.add(offset, t.shape[dim])
    dims, bodies = aligned(pieces)
    return Tensor((*dims[:dim], joined, *dims[dim + 1 :]), add(*bodies))


def overwritten(t: Tensor, part: Tensor, starts: Sequence[Size]) -> Tensor:
    """`t` with `part` in place of the box that begins at `starts`, one for each dimension, and lies within `t`."""
    for d, start in enumerate(starts):
        after = sizes.add(start, part.shape[d])
        room = sizes.size(t.shape[d] - after)
        if start != 0 or room != 0:
            inside = slice_dim(t, d, start, part.shape[d])
            whole = overwritten(inside, part, [*[0] * (d + 1), *starts[d + 1 :]])
            pieces = [(0, start), None, (after, room)]
            return concat([whole if p is None else slice_dim(t, d, *p) for p in pieces if p is None or p[1] != 0], d)
    return part


def stack(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Tensors along a new dimension."""
    return concat([unsqueeze(t, dim) for t in tensors], dim)


def closed_order(t: Tensor) -> list[Axis]:
    """The free axes in an order that depends on what the body reads and not on the order of the dimensions."""
    return bound_order(t.axes, t.body.monos)
