"""Lookups, pooled or not, in every spelling, side by side.

    y[r.., (piece, d)] = sum_l w[r.., l] * T[ids[r.., l], d]      or the mean, or the maximum, or no pooling

What decides is the term: constant tables that are read at rows which data names. A loop over bags, an `embedding_bag`,
a lookup and a sum, columns of one id matrix, a concat or a stack of any of these: all are such terms, and dense columns
in the same concat come along.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from recopt.fused import Again, Bag, EmbeddingBags, View
from recopt.hosts.base import Value
from recopt.ir import sizes
from recopt.ir.normal import add as add_terms
from recopt.ir.normal import scale, substitute
from recopt.ir.rules import FLOATS
from recopt.ir.tensor import Tensor
from recopt.ir.term import (
    Axis,
    Coord,
    Fn,
    Guard,
    Mono,
    Poly,
    Read,
    TooLarge,
    axis,
    coord,
    monomial,
    number,
    walk,
)
from recopt.lift.base import Lifted
from recopt.match import Match, No, dead_after, fold, is_data
from recopt.recognise.bags import Place, bag_of, table_of
from recopt.recognise.ids import divided_as_float, hashed, unwrapped
from recopt.recognise.lookups import ALL, HASHES, NOTHING, expand, is_lookup, looks_up, multiplies, picked
from recopt.recognise.views import regroup

name = "embedding-bags"
HALVES = {"float16", "bfloat16"}
operator = "recopt::embedding_bags"


# --- where to look ---


def roots(lifted: Lifted) -> list[Value]:
    """The values that hold rows of tables and nothing that a function made of them, last first; and those that multiply
    rows, loop over them in a way that is not understood, or are ids that floats divide: they are refused."""
    values = [v for node in lifted.host.nodes for v in node.outputs]
    return [v for v in values[::-1] if _is_root(lifted, v)]


def _is_root(lifted: Lifted, value: Value) -> bool:
    node = value.node
    if node in lifted.opaque:  # a loop over rows, whose reason the report gives
        return node is not None and node.op == "Loop" and any(looks_up(lifted, v) for v in node.inputs)
    if value.dtype not in FLOATS:  # ids whose division the graph does in floats, and goes on doing so
        read = any(looks_up(lifted, v) for n in lifted.host.users(value) for v in n.outputs)
        return read and divided_as_float(lifted, value) is not None
    return looks_up(lifted, value) or _multiplies(lifted, value)


def _multiplies(lifted: Lifted, value: Value) -> bool:
    """Whether a value is a product of rows, such as would be a lookup if it were of one."""
    t = lifted.definition.get(value)
    monos = t.body.monos if t is not None else ()
    return any(not m.axes and multiplies(lifted, m) for m in monos)


# --- the match ---


def match(lifted: Lifted, root: Value) -> Match | None:
    """`root` as fused embedding bags. None where it is nothing like them; raises No with the reason where it nearly
    is."""
    if root.node in lifted.opaque:
        raise No("a loop over rows: {}", lifted.opaque[root.node])
    rounded = divided_as_float(lifted, root)
    if rounded is not None:
        raise No("ids that the graph divides as {}: the quotients of large ones are rounded", rounded)
    refused: No | None = None
    for opens in (ALL, HASHES, NOTHING):
        try:
            return _match(lifted, root, opens)
        except TooLarge:
            raise No("the term of {} is too large", root.name) from None
        except No as why:
            refused = refused or why
    assert refused is not None
    raise refused


def _match(lifted: Lifted, root: Value, opens: int) -> Match | None:
    """The match with what ids and masks are made of opened, so that the operator makes them, or as values of the
    graph."""
    term = lifted.definition[root]
    inside: set[Value] = set()
    whole = expand(lifted, picked(lifted, term.body), opens, inside)
    place = Place(lifted, root)
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
    _check_again(lifted, spec)
    _check_types(lifted, spec)
    dead = dead_after(lifted, root, [v.value for v in spec.views])
    pooled = sum((bag.count - 1) * int(bag.table.shape[1]) for bag in spec.bags if bag.pool != "row")
    return Match(
        name,
        root,
        spec,
        lambda: term.with_body(whole),
        dead,
        frozenset(),
        flops=sizes.nominal(sizes.product(shape[:-1])) * pooled,
        again=frozenset(v for v in inside if looks_up(lifted, v) and v.node not in dead),
    )


def _check_types(lifted: Lifted, spec: EmbeddingBags) -> None:
    """Refuse rows of a type that the operator does not give, or does not compute with."""
    held = {v.value.dtype or "" for v in spec.views if v.value.dtype in FLOATS}
    # rows of 16 bits may be float32 before anything is done with them
    halves = {bag.table.value.dtype or "" for bag in spec.bags} & HALVES if spec.dtype == "float32" else set()
    if spec.dtype not in held and not halves:
        raise No("rows of {} as {}", " and ".join(sorted(held)), spec.dtype)
    narrow = [bag for bag in spec.bags if bag.table.value.dtype not in (spec.dtype, *halves)]
    if lifted.host.dialect == "aten" and any(bag.pool != "row" or bag.weights for bag in narrow):
        raise No("rows of {} that are added up as {}", narrow[0].table.value.dtype, spec.dtype)


def _check_again(lifted: Lifted, spec: EmbeddingBags) -> None:
    """Refuse numbers that a file's dimensions cannot repeat, as they end within one."""
    for piece in spec.pieces if lifted.host.dialect == "onnx" else ():
        for term in piece:
            count = len(term.rows) if isinstance(term, Again) else 1
            if count > 1 and count not in [sizes.product(spec.shape[n:-1]) for n in range(len(spec.shape))]:
                raise No("numbers beside the lookups that repeat within a dimension")


def _width(term: Bag | View | Again) -> int:
    if isinstance(term, Again):
        return int(term.rows.shape[-1])
    return term.width if isinstance(term, Bag) else int(term.shape[-1])


def _pieces(place: Place, term: Tensor, whole: Poly) -> tuple[list[Axis], list[tuple[Bag | View | Again, ...]]]:
    """The column axes, and the terms of every piece of the concat."""
    flat = [a for d in term.dims for a in d]
    along = _joined_along(place.lifted, whole)
    if not along:
        columns = _columns(place.lifted, whole)
        place.rows = [a for a in flat if a not in columns]
        return columns, [_terms(place, whole, columns)]
    if not along <= {*flat}:
        raise No("lookups that are joined along more than one dimension")
    at = next(n for n, a in enumerate(flat) if a in along)
    # what lies along the rows of tables is a column wherever tables are joined: behind the others, too
    own = {p.atom.axis for read in _tables(place.lifted, whole) for p in read.index if isinstance(p.atom, Coord)}
    columns = [*flat[at:], *(a for a in flat[:at] if a in own)]
    place.rows = [a for a in flat[:at] if a not in own]
    return columns, list(_split(place, whole, columns))


def _split(place: Place, body: Poly, columns: Sequence[Axis]) -> Iterator[tuple[Bag | View | Again, ...]]:
    """The terms of every piece of a term that is cut along the first of its columns, and in a piece along the next."""
    along = _joined_along(place.lifted, body)
    joined = columns[0] if columns else None
    if not along:
        yield _terms(place, body, columns)
        return
    if joined not in along or joined is None or not isinstance(joined.size, int):
        raise No("lookups that are joined along more than one dimension")
    cuts = [found for g in _guards(place.lifted, body) if (found := _cut(g)) is not None]
    bounds = {0, joined.size} | {b for a, at in cuts if a == joined for b in at if b < joined.size}
    if len(bounds) == 2:
        raise No("lookups that are joined where the size of an input says")
    for start, stop in pairwise(sorted(bounds)):
        fresh = [axis(stop - start)] if stop - start > 1 else []
        position = add_terms(*map(coord, fresh), number(start))
        yield from _split(place, substitute(body, {joined: position}), [*fresh, *columns[1:]])


def _guards(lifted: Lifted, body: Poly) -> set[Guard]:
    return {a for m in body.monos for a in m.atoms if isinstance(a, Guard) and not is_data(lifted, a)}


def _joined_along(lifted: Lifted, body: Poly) -> set[Axis | None]:
    """The axes along which pieces lie side by side; None among them where that is no axis."""
    return {found[0] if (found := _cut(g)) is not None else None for g in _guards(lifted, body)}


def _cut(g: Guard) -> tuple[Axis, list[int]] | None:
    """The axis that a guard cuts, at a place or at a quotient of it by a number, and where."""
    atom, by = g.index.atom, 1
    if isinstance(atom, Fn) and atom.name == "floordiv":
        number_of = atom.args[1].number
        atom, by = atom.args[0].atom, number_of if isinstance(number_of, int) else 0
    if not isinstance(atom, Coord) or by < 1:
        return None
    return atom.axis, [b * by for b in (g.lo, g.hi) if isinstance(b, int)]


def _axis_of(index: Poly) -> Axis | None:
    """The axis of which an index is the place, or some places further."""
    atom = add_terms(index, *(scale(monomial(m, index.dtype), -1) for m in index.monos if not m.atoms)).atom
    return atom.axis if isinstance(atom, Coord) else None


def _tables(lifted: Lifted, body: Poly) -> Iterator[Read]:
    """The reads of tables at rows that data names."""
    for atom in walk(body):
        if isinstance(atom, Read) and isinstance(atom.leaf, Value) and is_lookup(lifted, atom):
            yield atom


def _columns(lifted: Lifted, body: Poly) -> list[Axis]:
    """The axes along the rows of the first table, and before them those along which its ids are moved by constants."""
    for atom in _tables(lifted, body):
        if isinstance(atom.leaf, Value):
            columns = [a for a in map(_axis_of, atom.index) if a is not None]
            extents = zip(atom.index, lifted.term[atom.leaf].shape, strict=True)
            moved = [hashed(lifted, unwrapped(p, rows)[0])[2] for p, rows in extents if is_data(lifted, p)]
            apart = {a for p in moved for a in p.axes_read & body.axes_read if isinstance(a.size, int)}
            return [*sorted(apart.difference(columns), key=lambda a: a.id), *columns]
    raise No("no table is read at rows that data names")


def _terms(place: Place, body: Poly, columns: Sequence[Axis]) -> tuple[Bag | View | Again, ...]:
    fixed = [monomial(m, body.dtype) for m in body.monos if not is_data(place.lifted, m)]
    monos = [m for m in body.monos if is_data(place.lifted, m)]
    terms = [_dense(place, m, columns) if table_of(place.lifted, m) is None else None for m in monos]
    found: list[Bag | View | Again] = [t or bag_of(place, m, columns) for t, m in zip(terms, monos, strict=True)]
    if fixed:
        found.append(_again(place, add_terms(*fixed), columns))
    if not found:  # tables of several widths are filled up to one
        found.append(_again(place, number(0.0, body.dtype), columns))
    rows = any(isinstance(t, Bag) and t.pool == "row" and isinstance(t.shift, tuple) for t in found)
    if rows and len(found) > 1 and place.lifted.host.dialect == "aten":
        raise No("rows that add up, of which each column moves the ids")
    return tuple(found)


def _again(place: Place, body: Poly, columns: Sequence[Axis]) -> Again:
    """Numbers that the model holds, the same for all rows or by their place along the last row axes."""
    rows = place.rows or []
    used = [n for n, a in enumerate(rows) if a in body.axes_read]
    inner = rows[used[0] :] if used else []
    array = fold(place.lifted, Tensor(tuple((a,) for a in (*inner, *columns)), body))
    width = sizes.product(a.size for a in columns)
    assert isinstance(width, int)
    return Again(array.reshape(-1, width))


def _dense(place: Place, mono: Mono, columns: Sequence[Axis]) -> View:
    """Columns that are no lookup."""
    body = monomial(mono, mono.atoms[0].dtype if mono.atoms else "float32")
    view, order = place.view(body, columns, "columns beside the lookups")
    if order != tuple(columns):
        raise No("columns beside the lookups in another order")
    return view
