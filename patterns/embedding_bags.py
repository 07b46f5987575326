"""Lookups, pooled or not, in every spelling, side by side.

    y[r.., (piece, d)] = sum_l w[r.., l] * T[ids[r.., l], d]      or the mean, or the maximum, or no pooling

What decides is the term: constant tables that are read at rows which data names. A loop over bags, an `embedding_bag`,
a lookup and a sum, columns of one id matrix, a concat or a stack of any of these: all are such terms, and dense columns
in the same concat come along.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from recopt.bag_factors import Factors, ends_of, factors
from recopt.cost import nominal
from recopt.fused import Bag, EmbeddingBags, View
from recopt.hosts.base import Array, Value
from recopt.ir import sizes
from recopt.ir.rules import FLOATS
from recopt.ir.tensor import Dim, Tensor
from recopt.ir.term import (
    Atom,
    Axis,
    Coord,
    Guard,
    Mono,
    Poly,
    Read,
    Reduce,
    TooLarge,
    axis,
    coord,
    monomial,
    mul,
    number,
    scale,
    single,
    substitute,
    walk,
)
from recopt.ir.term import add as add_terms
from recopt.lift.base import Lifted
from recopt.lookups import expand, hashed, is_lookup, looks_up, picked, unwrapped
from recopt.match import Match, No, dead_after, is_data
from recopt.views import arrange, held_by, regroup

name = "embedding-bags"
operator = "recopt::embedding_bags"


# --- where to look ---


def roots(lifted: Lifted) -> list[Value]:
    """The values that hold rows of tables and nothing that a function made of them, last first."""
    values = [v for node in lifted.host.nodes if node not in lifted.opaque for v in node.outputs]
    return [v for v in values[::-1] if v.dtype in FLOATS and looks_up(lifted, v)]


# --- the match ---


@dataclass
class _Place:
    """Where the terms of a match lie: the root, its row axes and, once a term has said so, its row dimensions."""

    lifted: Lifted
    root: Value
    rows: list[Axis] | None = None
    dims: tuple[Dim, ...] | None = None

    def view(self, body: Poly, inner: Sequence[Axis], what: str) -> tuple[View, tuple[Axis, ...]]:
        """A host value that holds a term as [rows.., inner], with the fewest steps, and the order of `inner` in it."""
        rows = self.rows or []
        axes = [a for a in (*rows, *inner) if a in body.axes_read]
        if not body.axes_read <= {*rows, *inner}:
            raise No("{} varies along the columns of a row", what)
        if len(axes) < len(rows) + len(inner):
            raise No("{} is the same along an axis of the result", what)
        options = []
        for held in held_by(self.lifted, body, axes, self.lifted.order[self.root]):
            try:
                view, dims, order = arrange(held, set(rows), inner)
            except No:
                continue
            fits = tuple(a for d in dims for a in d) == tuple(rows) and len(order) == len(inner)
            if fits and self.dims in (None, dims):
                options.append((len(view.steps), self.lifted.order.get(held.value, 0), view, dims, order))
        if not options:
            raise No("no value of the graph holds {}: {}", what, body.text)
        _, _, view, self.dims, order = min(options, key=lambda o: o[:2])
        return view, order

    def flat(self, body: Poly, along: Axis, what: str) -> View:
        """A host value that holds a term along one axis, whatever the rows are."""
        if body.axes_read == {along}:
            for held in held_by(self.lifted, body, [along], self.lifted.order[self.root]):
                if held.dims == ((along,),):
                    return View(held.value, (along.size,), held.steps)
        raise No("no value of the graph holds {}: {}", what, body.text)


def match(lifted: Lifted, root: Value) -> Match | None:
    """`root` as fused embedding bags. None where it is nothing like them; raises No with the reason where it nearly
    is."""
    refused: No | None = None
    for opened in (True, False) if lifted.host.dialect == "aten" else (False,):
        try:
            return _match(lifted, root, opened)
        except TooLarge:
            raise No("the term of {} is too large", root.name) from None
        except No as why:
            refused = refused or why
    assert refused is not None
    raise refused


def _match(lifted: Lifted, root: Value, opened: bool) -> Match | None:
    """The match with what masks are made of `opened`, so that the operator makes them, or as values of the graph."""
    term = lifted.definition[root]
    inside: set[Value] = set()
    whole = expand(lifted, picked(lifted, term.body), opened, inside)
    place = _Place(lifted, root)
    columns, pieces = _pieces(place, term, whole)
    assert place.dims is not None
    if any(_width(t) != _width(piece[0]) for piece in pieces for t in piece):
        raise No("terms of different widths add up")
    width = sum(_width(piece[0]) for piece in pieces)
    shape = (*(sizes.product(a.size for a in d) for d in place.dims), width)
    steps = regroup((*place.dims, tuple(columns)), term.dims)
    spec = EmbeddingBags(tuple(pieces), shape, term.dtype, steps, root.name)
    if not spec.bags:
        return None
    dead = dead_after(lifted, root, [v.value for v in spec.views])
    pooled = sum((bag.count - 1) * int(bag.table.shape[1]) for bag in spec.bags if bag.pool != "row")
    return Match(
        name,
        root,
        spec,
        lambda: term.with_body(whole),
        dead,
        frozenset(),
        flops=nominal(sizes.product(shape[:-1])) * pooled,
        again=frozenset(v for v in inside if looks_up(lifted, v) and v.node not in dead),
    )


def _width(term: Bag | View) -> int:
    return term.width if isinstance(term, Bag) else int(term.shape[-1])


def _pieces(place: _Place, term: Tensor, whole: Poly) -> tuple[list[Axis], list[tuple[Bag | View, ...]]]:
    """The column axes, and the terms of every piece of the concat."""
    flat = [a for d in term.dims for a in d]
    guards = {a for m in whole.monos for a in m.atoms if isinstance(a, Guard)}
    along = {g.index.atom.axis if isinstance(g.index.atom, Coord) else None for g in guards}
    if not guards:
        columns = _columns(place.lifted, whole)
        place.rows = [a for a in flat if a not in columns]
        return columns, [_terms(place, whole, columns)]
    (joined,) = along if len(along) == 1 else (None,)
    if joined is None or joined not in flat or not isinstance(joined.size, int):
        raise No("lookups that are joined along more than one dimension")
    at = flat.index(joined)
    place.rows, columns = flat[:at], flat[at:]
    bounds = {0, joined.size} | {b for g in guards for b in (g.lo, g.hi) if isinstance(b, int)}
    pieces = []
    for start, stop in pairwise(sorted(bounds)):
        fresh = [axis(stop - start)] if stop - start > 1 else []
        position = add_terms(*map(coord, fresh), number(start))
        pieces.append(_terms(place, substitute(whole, {joined: position}), [*fresh, *columns[1:]]))
    return columns, pieces


def _columns(lifted: Lifted, body: Poly) -> list[Axis]:
    """The axes along the rows of the first table."""
    for atom in walk(body):
        if isinstance(atom, Read) and is_lookup(lifted, atom):
            return [p.atom.axis for p in atom.index if isinstance(p.atom, Coord)]
    raise No("no table is read at rows that data names")


def _terms(place: _Place, body: Poly, columns: Sequence[Axis]) -> tuple[Bag | View, ...]:
    terms = [_dense(place, m, columns) if _lookup(place.lifted, m) is None else None for m in body.monos]
    found = [t or _bag(place, m, columns) for t, m in zip(terms, body.monos, strict=True)]
    if not found:
        raise No("columns that nothing fills")
    return tuple(found)


def _lookup(lifted: Lifted, mono: Mono) -> Read | None:
    """The table that a monomial reads, pooled or not. Raises No where it reads several."""
    atoms = _pooled(mono)[2]
    found = [a for a in atoms if isinstance(a, Read) and is_lookup(lifted, a)]
    if len(found) > 1:
        raise No("rows of two tables are multiplied")
    return found[0] if found else None


def _pooled(mono: Mono) -> tuple[str, tuple[Axis, ...], tuple[Atom, ...]]:
    """How a monomial pools, over which axes, what."""
    if not mono.axes and len(mono.atoms) == 1 and isinstance(mono.atoms[0], Reduce) and mono.atoms[0].op == "max":
        inside = mono.atoms[0].body.monos
        if len(inside) == 1 and not inside[0].axes and inside[0].coef == 1:
            return "max", mono.atoms[0].axes, inside[0].atoms
    return ("sum" if mono.axes else "row"), mono.axes, mono.atoms


def _dense(place: _Place, mono: Mono, columns: Sequence[Axis]) -> View:
    """Columns that are no lookup."""
    body = monomial(mono, mono.atoms[0].dtype if mono.atoms else "float32")
    view, order = place.view(body, columns, "columns beside the lookups")
    if order != tuple(columns):
        raise No("columns beside the lookups in another order")
    return view


def _bag(place: _Place, mono: Mono, columns: Sequence[Axis]) -> Bag:
    """One bag."""
    lifted = place.lifted
    pool, bound, atoms = _pooled(mono)
    fresh = {a: axis(a.size) for a in bound}
    names = {a: coord(n) for a, n in fresh.items()}
    read = _lookup(lifted, mono)
    assert read is not None and isinstance(read.leaf, Value)
    others = [single(a, a.dtype) for a in atoms if a is not read]
    if len(read.index) != 2 or is_data(lifted, read.index[1]) or read.dtype not in FLOATS:
        raise No("{} is read by more than its row", read.leaf.name)
    index, rest = (substitute(p, names) for p in read.index)
    inner = list(fresh.values())
    width = lifted.term[read.leaf].shape[1]
    own = list(columns)
    if len(own) == 1 and isinstance(width, int) and isinstance(own[0].size, int) and own[0].size > width > 1:
        # Several rows side by side in one dimension: which of them, and the column of that.
        which, column = axis(own[0].size // width), axis(width)
        place_of = {own[0]: add_terms(scale(coord(which), width), coord(column))}
        index, rest, own = substitute(index, place_of), substitute(rest, place_of), [which, column]
        others = [substitute(p, place_of) for p in others]
    if not own or rest is not coord(own[-1]) or own[-1].size != width:
        if not (width == 1 and rest.number == 0):
            raise No("a part of the rows of {}", read.leaf.name)
        own = [*own, axis(1)]
    inner += own[:-1]
    if pool != "row" and len(own) > 1:
        raise No("bags side by side in one dimension")
    ids, wraps = unwrapped(index, lifted.term[read.leaf].shape[0])
    plain = lifted.host.dialect == "onnx"  # there the ids are as they stand, and every factor is a weight
    if wraps and not plain:
        raise No("negative ids of {} count from the end: to the operator they are an error", read.leaf.name)
    others = [substitute(p, names) for p in others]
    found = Factors(weights=others) if plain or pool == "max" else factors(others, ids, inner)
    ids, modulus, shift = (ids, 0, 0) if plain else hashed(ids)
    if found.pad is not None or found.lengths is not None:
        _check_finite(lifted, read.leaf, found)
    table = View(read.leaf, lifted.term[read.leaf].shape)
    bag = Bag(table, table, pool, wraps, None, modulus, shift, found.pad, found.div)
    if found.starts is not None:
        return _ragged(place, replace(bag, pool=_scaled(mono, pool, 0)), found, ids, inner)
    view, order = place.view(ids, inner, "the ids")
    weights = lengths = None
    if found.weights:
        weights, same = place.view(mul(*found.weights), inner, "the weights of a bag")
        if same != order:
            raise No("the weights lie in another order than the ids")
    if found.lengths is not None:
        lengths, _ = place.view(found.lengths, (), "the lengths of bags")
    if pool == "row" and (order != tuple(inner) or lengths or found.div):
        raise No("the ids lie in another order than the result")
    count = sizes.product(a.size for a in inner)
    if not isinstance(count, int):
        raise No("bags of a length that only the run knows")
    uniform = not (weights or lengths or found.div) and found.pad is None
    return replace(bag, ids=view, weights=weights, lengths=lengths, pool=_scaled(mono, pool, count if uniform else 0))


def _check_finite(lifted: Lifted, table: Value, found: Factors) -> None:
    """Refuse a table whose rows are no numbers where the operator does not read them: 0 * inf is not 0."""
    if found.lengths is None and found.pad is not None:
        blocks: Iterable[Array] = [lifted.host.constant(table)[found.pad : found.pad + 1]]
    else:
        blocks = lifted.host.blocks(table)
    if not all(math.isfinite(rows.sum(dtype="float64")) for rows in blocks):  # a sum needs no second table in memory
        raise No("{} holds values that are not finite, which a mask does not hide", table.name)


def _ragged(place: _Place, bag: Bag, found: Factors, ids: Poly, inner: Sequence[Axis]) -> Bag:
    """Bags that lie one after the other in flat ids."""
    (along,) = inner
    assert found.starts is not None
    rows = place.rows or []
    if found.ends is None or len(rows) != 1:
        raise No("bags that begin at offsets and end nowhere")
    last = ends_of(found.starts, found.ends, rows[0], along.size)
    if last is None:
        raise No("bags that do not end where the next begins")
    offsets, _ = place.view(found.starts, (), "the offsets of bags")
    if last:
        assert isinstance(found.starts.atom, Read) and isinstance(found.starts.atom.leaf, Value)
        whole = found.starts.atom.leaf
        offsets = View(whole, place.lifted.term[whole].shape)
        if offsets.shape != (sizes.add(rows[0].size, 1),):
            raise No("offsets of more bags than the result has rows")
    flat = [place.flat(p, along, what) for p, what in ((ids, "the ids"), *((w, "weights") for w in found.weights))]
    if len(flat) > 2:
        raise No("several weights of flat ids")
    return replace(bag, ids=flat[0], weights=flat[1] if len(flat) > 1 else None, offsets=offsets, last=last)


def _scaled(mono: Mono, pool: str, count: int) -> str:
    """The pool that a coefficient makes of it: 1/L makes a sum of L rows the mean."""
    if mono.coef == 1:
        return pool
    if pool == "sum" and count and isinstance(mono.coef, float) and math.isclose(mono.coef * count, 1):
        return "mean"
    raise No("rows under a factor of {}", mono.coef)
