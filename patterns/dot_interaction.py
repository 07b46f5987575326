"""Dot products of pairs of vectors that lie in one tensor: the interactions of DLRM, PNN and others.

    y[r.., p] = sum_d x[r.., first(p) + d] * x[r.., second(p) + d]

Where vectors begin, `first` and `second`, is any function of the place p that constants give: a lower triangle that is
gathered, all products with all, or columns of them. Where x lies in several dimensions, a row of it is read as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from recopt.fused import DotInteraction, Reshape, View
from recopt.hosts.base import Value
from recopt.ir import sizes
from recopt.ir.normal import add, normal_mono, scale, substitute
from recopt.ir.rules import FLOATS
from recopt.ir.sizes import Size
from recopt.ir.tensor import Tensor
from recopt.ir.term import Atom, Axis, Poly, Read, TooLarge, axis, coord, number
from recopt.lift.base import Lifted
from recopt.match import Match, No, dead_after, fold, is_data, understood
from recopt.recognise.views import regroup

name = "dot-interaction"
operator = "recopt::dot_interaction"

MOST_VECTORS = 64
MOST_PAIRS = 4096
MOST_STEPS = 8  # of layout


@dataclass(frozen=True)
class _Found:
    """The vectors' leaf, its rows and how long they are, the places of pairs, and where both vectors of one begin."""

    x: Value
    rows: tuple[Axis, ...]
    places: tuple[Axis, ...]
    width: int
    size: int
    first: Poly
    second: Poly


def roots(lifted: Lifted) -> list[Value]:
    """The values that sum a product of a tensor with itself, last first."""
    found = []
    for value in understood(lifted):
        if value.dtype in FLOATS:
            with suppress(TooLarge):
                found += [value] if _opened(lifted, _seen(lifted, value)) is not None else []
    return found[::-1]


def _seen(lifted: Lifted, value: Value) -> Tensor | None:
    """A sum, or elements of one, over the values that layout begins with; None for anything else."""
    chain = [lifted.local(value)]
    while (last := chain[-1]) is not None and len(chain) <= MOST_STEPS and isinstance(read := last.body.atom, Read):
        chain.append(lifted.local(read.leaf) if isinstance(read.leaf, Value) else None)
    term = chain[0]
    if term is None or last is None or len(last.body.monos) != 1 or not last.body.monos[0].axes:
        return None
    for inside in chain[1:]:
        read = term.body.atom
        assert inside is not None and isinstance(read, Read)
        term = term.with_body(inside.at(list(read.index)))

    def put_in(atom: Atom) -> Poly | None:
        own = lifted.local(atom.leaf) if isinstance(atom, Read) and isinstance(atom.leaf, Value) else None
        if own is None or not isinstance(atom, Read) or not _is_moved(lifted, own.body):
            return None
        return own.at(list(atom.index))

    for _ in range(MOST_STEPS):
        body = substitute(term.body, {}, put_in)
        if body is term.body:
            break
        term = term.with_body(body)
    return term


def _is_moved(lifted: Lifted, body: Poly) -> bool:
    """Whether a term is elements of data that stand elsewhere, or their products."""
    if len(body.monos) != 1 or body.monos[0].axes or body.monos[0].coef != 1:
        return False
    atoms = body.monos[0].atoms
    return all(isinstance(a, Read) and is_data(lifted, a) for a in atoms) and not any(
        is_data(lifted, index) for a in atoms if isinstance(a, Read) for index in a.index
    )


def _opened(lifted: Lifted, term: Tensor | None) -> tuple[Read, Read, Axis] | None:
    """The two factors of a sum over one axis of a tensor times itself, and that axis."""
    if term is None or len(term.body.monos) != 1:
        return None
    mono = term.body.monos[0]
    if len(mono.axes) != 1 or mono.coef != 1 or len(mono.atoms) != 2:
        return None
    (own,) = mono.axes
    d = axis(own.size)
    opened = substitute(normal_mono(1, mono.atoms, term.dtype), {own: coord(d)}).monos
    if len(opened) != 1 or len(opened[0].atoms) != 2:
        return None
    a, b = opened[0].atoms
    if not isinstance(a, Read) or not isinstance(b, Read) or a.leaf is not b.leaf or not isinstance(a.leaf, Value):
        return None
    same = a.leaf.dtype == term.dtype and a.leaf.dtype == a.dtype == b.dtype
    return (a, b, d) if same and is_data(lifted, a) and d in a.axes_read & b.axes_read else None


def match(lifted: Lifted, root: Value) -> Match | None:
    """`root` as dot products of pairs of vectors; None where it is none."""
    term = _seen(lifted, root)
    opened = _opened(lifted, term)
    assert term is not None and opened is not None
    found = _found(term, *opened)
    if found is None:
        return None
    shape = tuple(sizes.product(a.size for a in axes) for axes in ((*found.rows,), found.places))
    if not isinstance(shape[1], int) or shape[1] > MOST_PAIRS:
        raise No("{} pairs of vectors", shape[1])
    first, second = (fold(lifted, Tensor((found.places,), p)).astype(int).tolist() for p in (found.first, found.second))
    starts = tuple(sorted({*first, *second}))
    if len(starts) > MOST_VECTORS:
        raise No("{} vectors, of which the operator holds {}", len(starts), MOST_VECTORS)
    if starts[0] < 0 or starts[-1] + found.size > found.width:
        raise No("a vector lies in two rows")
    number_of = {start: n for n, start in enumerate(starts)}
    pairs = tuple((number_of[a], number_of[b]) for a, b in zip(first, second, strict=True))
    if len(set(pairs)) < len(pairs):
        raise No("a pair of vectors comes twice")
    flat = (shape[0], found.width)
    x = View(found.x, flat, () if found.x.shape == flat else (Reshape(flat),))
    steps = regroup((found.rows, found.places), term.dims)
    spec = DotInteraction(x, found.size, starts, pairs, shape, term.dtype, steps, root.name)
    return Match(name, root, spec, lambda: term, dead_after(lifted, root, [found.x]), frozenset({root}))


def _found(term: Tensor, a: Read, b: Read, d: Axis) -> _Found | None:
    """What both factors read along the same axes of the result are rows, where rows fill x; all other axes say where a
    vector begins."""
    x = a.leaf
    assert isinstance(x, Value) and x.shape is not None
    if not isinstance(d.size, int) or not all(isinstance(size, int) for size in x.shape[1:]):
        return None
    first, second = (_address(read, x.shape) for read in (a, b))
    apart = add(first, scale(second, -1)).axes_read
    own = [ax for dim in term.dims for ax in dim]
    shared = tuple(ax for ax in own if ax in first.axes_read and ax not in apart)
    for rows in (shared[:n] for n in range(len(shared), 0, -1)):
        places = tuple(ax for ax in own if ax not in rows)
        width = sizes.divide(sizes.product(x.shape), sizes.product(ax.size for ax in rows))
        if not places or not isinstance(width, int):
            continue
        ends = add(scale(_index(rows), width), coord(d))
        begins = [add(p, scale(ends, -1)) for p in (first, second)]
        if begins[0].axes_read | begins[1].axes_read == set(places):
            return _Found(x, rows, places, width, d.size, begins[0], begins[1])
    return None


def _address(read: Read, shape: Sequence[Size]) -> Poly:
    """Where an element lies in a tensor read row by row, of which all sizes but the first are numbers."""
    at, stride = number(0, "int64"), 1
    for index, extent in zip(read.index[::-1], shape[::-1], strict=True):
        at = add(at, scale(index, stride))
        stride *= extent if isinstance(extent, int) else 1
    return at


def _index(axes: Sequence[Axis]) -> Poly:
    """The number of a place along several axes, read row by row."""
    at, stride = number(0, "int64"), sizes.size(1)
    for a in reversed(axes):
        at = add(at, scale(coord(a), stride))
        stride = sizes.mul(stride, a.size)
    return at
