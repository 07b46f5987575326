"""Host values that hold a term: as they are, or after the fewest layout steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import sympy

from ..fused import Flip, Permute, Reshape, Slice, Step, Take, View
from ..hosts.base import Value
from ..ir import sizes
from ..ir.normal import add, scale, substitute
from ..ir.sizes import Size
from ..ir.tensor import Dim, Tensor, read_jointly_everywhere
from ..ir.term import Axis, Coord, Fn, Poly, Read, axis, coord, number, single, walk
from ..lift.base import Lifted, closed
from ..match import No, fold, is_data


@dataclass(frozen=True)
class Held:
    """A host value whose dimensions, after `steps`, are these products of the axes of a term."""

    value: Value
    dims: tuple[Dim, ...]
    steps: tuple[Step, ...] = ()


def held_by(lifted: Lifted, term: Poly, axes: Sequence[Axis], before: int) -> list[Held]:
    """The host values computed before position `before` that hold `term` over `axes`, as they are or after slices."""
    found: list[Held] = []
    t = Tensor(tuple((a,) for a in axes), term)
    key = closed(t)
    if key is not None:
        order = dict(enumerate(key[1]))
        for value, theirs in lifted.by_meaning.get(key[0], ()):
            if lifted.order.get(value, 0) >= before:
                continue
            rename = {a: order[n] for n, a in enumerate(theirs)}
            found.append(Held(value, tuple(tuple(rename[a] for a in dim) for dim in lifted.term[value].dims)))
    direct = sliced(term, lifted)
    found += [] if direct is None else [direct]
    for a in axes if not found else ():
        if (inner := _divided(term, a)) is not None:
            found += _joined_again(lifted, term, axes, before, a, inner)
    return found


def _divided(term: Poly, a: Axis) -> int | None:
    """The number by which a term divides the places along an axis, as where dimensions are read as one."""
    reads = {item for item in walk(term) if isinstance(item, Fn) and item.args[0] is coord(a)}
    by = {item.args[1].number for item in reads if item.name in ("floordiv", "mod")}
    only = by.pop() if len(by) == 1 else None
    fits = isinstance(only, int) and isinstance(a.size, int) and only > 1 and a.size % only == 0
    return only if fits and isinstance(only, int) else None


def _joined_again(lifted: Lifted, term: Poly, axes: Sequence[Axis], before: int, whole: Axis, count: int) -> list[Held]:
    """The host values that hold a term whose axis is two dimensions of them."""
    outer, inner = axis(sizes.size(whole.size // count)), axis(count)
    apart = substitute(term, {whole: add(scale(coord(outer), count), coord(inner))})
    found = []
    for held in held_by(lifted, apart, [x for a in axes for x in ((outer, inner) if a == whole else (a,))], before):
        flat = [a for d in held.dims for a in d]
        real = [d for d in held.dims if d]
        if outer not in flat or flat[flat.index(outer) + 1 : flat.index(outer) + 2] != [inner]:
            continue
        dims: list[Dim] = []
        for dim in real:
            if inner in dim and outer not in dim:  # a dimension of its own, or the first of one
                dims[-1] = (*dims[-1], *dim)
            else:
                dims.append(dim)
        joint = tuple(tuple(whole if a == outer else a for a in d if a != inner) for d in dims)
        steps = held.steps if len(dims) == len(held.dims) else (*held.steps, Reshape(_shape(joint)))
        found.append(Held(held.value, joint, steps))
    return found


def sliced(term: Poly, lifted: Lifted) -> Held | None:
    """A term that reads a host value at unit stride, or backwards, in every dimension: slices and flips, then a
    dimension for each index."""
    read = term.atom
    if not isinstance(read, Read) or not isinstance(read.leaf, Value):
        return None
    source = lifted.term[read.leaf]
    dims: list[Dim] = []
    steps: list[Step] = []
    for n, (index, extent) in enumerate(zip(read.index, source.shape, strict=True)):
        offset = 0
        parts: list[tuple[Size, Axis]] = []
        for mono in index.monos:
            if not mono.atoms:
                if not isinstance(mono.coef, int):
                    return None
                offset = mono.coef
            elif (
                len(mono.atoms) == 1
                and isinstance(mono.atoms[0], Coord)
                and not mono.axes
                and isinstance(mono.coef, (int, sympy.Expr))
            ):
                parts.append((mono.coef, mono.atoms[0].axis))
            else:
                return None
        turned = [a for coef, a in parts if coef == -1]
        if len(parts) == 1 and turned and isinstance(turned[0].size, int):
            offset, parts = offset - turned[0].size + 1, [(1, turned[0])]
        dim: list[Axis] = []
        stride: Size = 1
        while parts:  # minor axis first: each stride is the product of the sizes inside it
            part = next((p for p in parts if sizes.size(p[0] - stride) == 0), None)
            if part is None:
                return None
            parts.remove(part)
            dim.insert(0, part[1])
            stride = sizes.mul(stride, part[1].size)
        if offset != 0 or sizes.size(stride - extent) != 0:
            if offset < 0:
                return None
            steps.append(Slice(n, offset, sizes.size(offset + stride)))
        if turned and tuple(turned) == tuple(dim):
            steps.append(Flip(n))
        dims.append(tuple(dim))
    return Held(read.leaf, tuple(dims), tuple(steps))


def taken(lifted: Lifted, term: Poly, axes: Sequence[Axis], before: int) -> list[Held]:
    """The host values, computed before position `before`, that hold a term at other places of one dimension, which the
    axes and constants alone say: windows, every second one, some in another order."""
    read = term.atom
    if not isinstance(read, Read) or not isinstance(read.leaf, Value):
        return []
    for n, (index, extent) in enumerate(zip(read.index, lifted.term[read.leaf].shape, strict=True)):
        own = [a for a in axes if a in index.axes_read]
        apart = all(p.axes_read.isdisjoint(own) for m, p in enumerate(read.index) if m != n)
        if not isinstance(extent, int) or not own or not apart or is_data(lifted, index):
            continue
        places = [int(p) for p in fold(lifted, Tensor(tuple((a,) for a in own), index)).reshape(-1)]
        if not 0 <= min(places, default=-1) <= max(places, default=0) < extent:
            continue
        whole = axis(extent)
        source = single(Read(read.leaf, (*read.index[:n], coord(whole), *read.index[n + 1 :]), read.dtype), read.dtype)
        held = held_by(lifted, source, [*(a for a in axes if a not in own), whole], before)
        return [_taken(h, whole, own, places) for h in held if (whole,) in h.dims]
    return []


def _taken(held: Held, whole: Axis, own: Sequence[Axis], places: Sequence[int]) -> Held:
    dim = held.dims.index((whole,))
    dims = (*held.dims[:dim], tuple(own), *held.dims[dim + 1 :])
    return Held(held.value, dims, (*held.steps, Take(dim, tuple(places))))


def joined(term: Poly, dims: Sequence[Dim]) -> tuple[Poly, dict[Axis, Dim]]:
    """A term with one axis in place of those of a dimension that it reads only as the place within that dimension, and
    what the new axes stand for."""
    apart: dict[Axis, Dim] = {}
    for dim in dims:
        for outer, inner in pairwise(dim):
            left = next((a for a, d in apart.items() if d[-1] == outer), outer)
            if read_jointly_everywhere(left, inner, term):
                joint = axis(sizes.mul(left.size, inner.size))
                apart[joint] = (*apart.pop(left, (left,)), inner)
                term = substitute(term, {left: number(0), inner: coord(joint)})
    return term, apart


def arrange(held: Held, rows: set[Axis], columns: Sequence[Axis]) -> tuple[View, tuple[Dim, ...], tuple[Axis, ...]]:
    """`held` as [rows..., columns flattened]: the view, the row dimensions, and the order of the column axes in the
    last dimension. Row dimensions stay in the order of the host value."""
    dims, steps = list(held.dims), list(held.steps)
    if any(d and {a in rows for a in d} == {True, False} for d in dims):  # a dimension that holds both is split
        dims = [(a,) for d in dims for a in d]
        steps.append(Reshape(tuple(a.size for d in dims for a in d)))
    inner = [n for n, d in enumerate(dims) if d and d[0] not in rows]
    if not columns and () in dims:  # one feature: the last dimension of size 1 may as well be it
        inner = [max(n for n, d in enumerate(dims) if not d)]
    outer = [n for n in range(len(dims)) if n not in inner]
    perm = outer + inner
    if perm != sorted(perm):
        if _moves(dims, perm):
            steps.append(Permute(tuple(perm)))
            dims = [dims[p] for p in perm]
        else:  # only dimensions of size 1 move: that is a reshape
            dims = [dims[p] for p in perm]
            steps.append(Reshape(_shape(dims)))
    row_dims = tuple(dims[: len(outer)])
    order = tuple(a for d in dims[len(outer) :] for a in d)
    extent = sizes.product(a.size for a in order)
    shape = (*_shape(row_dims), extent)
    if len(inner) != 1:
        if steps and isinstance(steps[-1], Reshape):
            steps.pop()
        steps.append(Reshape(shape))
    return View(held.value, shape, tuple(steps)), row_dims, order


def _moves(dims: Sequence[Dim], perm: Sequence[int]) -> bool:
    """Whether a permutation moves more than dimensions of size 1."""
    real = [p for p in perm if dims[p]]
    return real != sorted(real)


def _shape(dims: Sequence[Dim]) -> tuple[Size, ...]:
    return tuple(sizes.product(a.size for a in d) for d in dims)


def regroup(source: Sequence[Dim], target: Sequence[Dim]) -> tuple[Step, ...]:
    """The steps from a value with dimensions `source` to one with dimensions `target`, over the same axes."""
    if tuple(source) == tuple(target):
        return ()
    flat = [a for d in source for a in d]
    wanted = [a for d in target for a in d]
    if set(flat) != set(wanted):
        raise No("the result is broadcast after the product")
    if flat == wanted:
        return (Reshape(_shape(target)),)
    steps: list[Step] = []
    atoms = [d for d in source if d]
    if any(len(d) > 1 for d in atoms) and not _is_permutation(atoms, [d for d in target if d]):
        atoms = [(a,) for a in flat]
    if tuple(atoms) != tuple(source):
        steps.append(Reshape(_shape(atoms)))
    order: list[Dim] = []
    left = list(atoms)
    for a in wanted:
        found = next((d for d in left if d[0] == a), None)
        if found is not None:
            order.append(found)
            left.remove(found)
    steps.append(Permute(tuple(atoms.index(d) for d in order)))
    if tuple(order) != tuple(target):
        steps.append(Reshape(_shape(target)))
    return tuple(steps)


def _is_permutation(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    return sorted(map(repr, a)) == sorted(map(repr, b))
