"""One bag of rows as a term says it: its table, its ids and what happens to them, which of them count, its weights.

sum_l w[r.., l] * T[ids[r.., l], d]
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..fused import Bag, Permute, Reshape, Slice, Step, View
from ..hosts.base import Array, Value
from ..ir import sizes
from ..ir.normal import add as add_terms
from ..ir.normal import guard, mul, scale, substitute
from ..ir.rules import FLOATS, fn
from ..ir.sizes import Size
from ..ir.tensor import Dim
from ..ir.term import Atom, Axis, Fn, Guard, Mono, Poly, Read, axis, coord, single
from ..lift.base import Lifted
from ..match import No, constant_leaf, is_data
from .bag_factors import Factors, condition_of, counts, ends_of, factors
from .id_programs import program, source
from .ids import computes, hashed, shifts, unwrapped
from .largest import Largest, largest
from .lookups import is_lookup, widened
from .views import Held, arrange, held_by, taken


@dataclass
class Place:
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
        told = (self.lifted, body, axes, self.lifted.order[self.root])
        found = held_by(*told) or taken(*told)
        for held in [*found, *(_squeezed(held) for held in found if () in held.dims)]:
            try:
                view, dims, order = arrange(held, set(rows), inner)
            except No:
                continue
            fits = tuple(a for d in dims for a in d) == tuple(rows) and len(order) == len(inner)
            if fits and self.dims in (None, dims):
                options.append((_work(view), self.lifted.order.get(held.value, 0), view, dims, order))
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


def _work(view: View) -> int:
    """The steps of a view that an operator does not do itself: it reads columns of a matrix where they lie."""
    columns = len(view.steps) == 1 and isinstance(view.steps[0], Slice) and view.steps[0].dim == 1
    return 0 if columns and len(view.value.shape or ()) == 2 else len(view.steps)


def _squeezed(held: Held) -> Held:
    """The same without dimensions of size 1."""
    dims = tuple(d for d in held.dims if d)
    return Held(held.value, dims, (*held.steps, Reshape(tuple(sizes.product(a.size for a in d) for d in dims))))


def table_of(lifted: Lifted, mono: Mono) -> Read | None:
    """The table that a monomial reads, pooled or not. Raises No where it reads several."""
    atoms = map(widened, _pooled(mono)[2])
    found = [a for a in atoms if isinstance(a, Read) and is_lookup(lifted, a)]
    if len(found) > 1:
        raise No("rows of two tables are multiplied")
    return found[0] if found else None


def _pooled(mono: Mono) -> tuple[str, tuple[Axis, ...], tuple[Atom, ...]]:
    """How a monomial pools, over which axes, what."""
    most = _largest(mono)
    if most is not None:
        return "max", most.axes, most.rows
    return ("sum" if mono.axes else "row"), mono.axes, mono.atoms


def _largest(mono: Mono) -> Largest | None:
    return largest(mono.atoms[0]) if not mono.axes and len(mono.atoms) == 1 else None


def bag_of(place: Place, mono: Mono, columns: Sequence[Axis]) -> Bag:
    """One bag."""
    lifted = place.lifted
    pool, bound, atoms = _pooled(mono)
    fresh = {a: axis(a.size) for a in bound}
    names = {a: coord(n) for a, n in fresh.items()}
    read = table_of(lifted, mono)
    assert read is not None and isinstance(read.leaf, Value)
    others = [single(a, a.dtype) for a in atoms if widened(a) is not read]
    by_data = [is_data(lifted, p) for p in read.index]
    if len(by_data) != 2 or all(by_data) or read.dtype not in FLOATS:
        raise No("{} is read by more than its row", read.leaf.name)
    if by_data[1] and not lifted.host.is_constant(read.leaf):
        raise No("{} is read by its columns and fed at run time", read.leaf.name)
    turned = by_data[1]  # a row for each column: a one-hot through a linear
    index, rest = (substitute(p, names) for p in read.index[:: -1 if turned else 1])
    inner = list(fresh.values())
    rows, width = lifted.term[read.leaf].shape[:: -1 if turned else 1]
    own = list(columns)
    if len(own) == 1 and isinstance(width, int) and isinstance(own[0].size, int) and own[0].size > width > 1:
        # Several rows side by side in one dimension: which of them, and the column of that.
        which, column = axis(own[0].size // width), axis(width)
        place_of = {own[0]: add_terms(scale(coord(which), width), coord(column))}
        index, rest, own = substitute(index, place_of), substitute(rest, place_of), [which, column]
        others = [substitute(p, place_of) for p in others]
    part: tuple[Step, ...] = ()
    if not own or rest is not coord(own[-1]) or own[-1].size != width:
        own, first = _part(own, rest, read.leaf)
        if own[-1].size != width and (lifted.host.dialect != "aten" or turned):
            raise No("a part of the rows of {}", read.leaf.name)
        width = own[-1].size
        part = (Slice(1, first, sizes.size(first + width)),) if width != lifted.term[read.leaf].shape[1] else ()
    inner += own[:-1]
    if pool != "row" and len(own) > 1:
        raise No("bags side by side in one dimension")
    limits = [p for p in others if isinstance(p.atom, Guard) and is_data(lifted, p)]
    ids, wraps = unwrapped(index, rows)
    others = [substitute(p, names) for p in others if p not in limits]
    row = index
    most = _largest(mono)
    of = _source(lifted, hashed(lifted, ids)[0])

    def of_id(test: Poly) -> bool:
        return of is not None and program(test, of) is not None

    told = (ids, row, inner, of_id)
    found = factors(others, *told) if most is None else _counted(most, others, *told)
    if found.uncounted is not None and lifted.host.is_constant(read.leaf) and not turned:
        row_of_pad = lifted.host.constant(read.leaf)[found.uncounted : found.uncounted + 1]
        if len(row_of_pad) and not row_of_pad.any():  # zeros are as good as left out
            found.pad, found.over, found.of_row = found.uncounted, None, found.row_uncounted
    found.below = _below([substitute(p, names) for p in limits], index, rows)
    ids, modulus, moved = hashed(lifted, ids)
    shift = shifts(lifted, moved, inner)
    if lifted.host.dialect == "aten":
        _check_torch(read.leaf, pool, wraps, shift, found)
    if most is not None:
        _check_hidden(lifted, read.leaf, most, found)
    elif found.pad is not None or found.below or found.lengths is not None or found.live:
        _check_finite(lifted, read.leaf, turned, found)
    table = View(read.leaf, (rows, width), (Permute((1, 0)),) if turned else part)
    bag = Bag(table, table, pool, wraps, None, modulus, shift, found.pad, found.above, found.below, found.div)
    bag = replace(bag, of_row=found.of_row)
    if most is not None and most.live:
        below = most.count is None  # as _check_hidden found all rows to be above what hides others
        bag = replace(bag, otherwise=most.hidden if below else most.empty, least=below, taken=most.taken)
    bag, ids = _programs(place, bag, found.live, ids, of, inner)
    if found.over is not None:
        bag = replace(bag, over=place.view(found.over, (), "the denominators")[0])
    if found.starts is not None:
        return _ragged(place, _scaled(mono, bag, 0), found, ids, inner)
    view, order = place.view(ids, inner, "the ids")
    weights = lengths = None
    if found.weights:
        try:
            weights, same = _weights(place, mul(*found.weights), inner)
        except No:
            found.masks = [c for c in map(condition_of, found.weights) if c is not None]
            if len(found.masks) < len(found.weights):
                raise
        else:
            if same != order:
                raise No("the weights lie in another order than the ids")
    if found.masks:
        bag = _masked(place, bag, found.masks, inner, order)
    if found.lengths is not None:
        lengths, _ = place.view(found.lengths, (), "the lengths of bags")
    if pool == "row" and (order != tuple(inner) or lengths or found.div):
        raise No("the ids lie in another order than the result")
    count = sizes.product(a.size for a in inner)
    if not isinstance(count, int):
        raise No("bags of a length that only the run knows")
    hides = found.pad is not None or found.live or found.masks
    uniform = not (weights or lengths or found.div or hides)
    bag = _scaled(mono, bag, count if uniform else 0)
    return replace(bag, ids=view, weights=weights, lengths=lengths)


def _part(own: list[Axis], rest: Poly, table: Value) -> tuple[list[Axis], int]:
    """The axes of a result of which the last lies along columns of a table from a first one on. Raises No for other
    columns than such that lie side by side."""
    if isinstance(rest.number, int):
        return [*own, axis(1)], rest.number
    first = add_terms(rest, scale(coord(own[-1]), -1)).number if own else None
    if not isinstance(first, int) or first < 0:
        raise No("a part of the rows of {}", table.name)
    return own, first


def _source(lifted: Lifted, index: Poly) -> Read | None:
    """The id that an index is a function of, for an operator that computes it; None where it is several or none."""
    if not computes(lifted):
        return None
    return source(index, lambda a: not constant_leaf(lifted, a.leaf))


def _programs(
    place: Place, bag: Bag, live: Sequence[Poly], ids: Poly, of: Read | None, inner: Sequence[Axis]
) -> tuple[Bag, Poly]:
    """The bag with what happens to its ids and which of them count, and the ids that are given."""
    if of is None or (not live and ids.atom is of):
        return bag, ids
    given = single(of, of.dtype)
    text = "" if ids.atom is of else program(ids, of)
    if text is None:
        if live:
            raise No("ids of which only the graph says how they are made: {}", ids.text)
        return bag, ids
    named = None
    if text:
        try:
            named = place.view(ids, inner, "the ids")[0]
        except No:
            named = None
    counts = [program(c, of) or "" for c in live]
    shown = functools.reduce("logical_and({},{})".format, counts) if counts else ""
    return replace(bag, program=text, named=named, live=shown), given


def _masked(place: Place, bag: Bag, masks: Sequence[Poly], inner: Sequence[Axis], order: Sequence[Axis]) -> Bag:
    """The bag under a condition that the graph computes."""
    whole = functools.reduce(lambda a, b: fn("logical_and", [a, b], "bool"), masks)
    atom = whole.atom
    negated = atom.args[0] if isinstance(atom, Fn) and atom.name == "logical_not" else None
    try:
        view, same = place.view(whole, inner, "the mask of a bag")
    except No:
        if negated is None:
            raise
        view, same = place.view(negated, inner, "the mask of a bag")
        bag = replace(bag, unmask=True)
    if tuple(same) != tuple(order):
        raise No("the mask lies in another order than the ids")
    return replace(bag, mask=view)


def _weights(place: Place, body: Poly, inner: Sequence[Axis]) -> tuple[View, tuple[Axis, ...]]:
    """A host value that holds the weights of a bag, which may be a condition."""
    try:
        return place.view(body, inner, "the weights of a bag")
    except No:
        cast = body.atom
        if not isinstance(cast, Fn) or cast.name != "cast" or cast.args[0].dtype != "bool":
            raise
        return place.view(cast.args[0], inner, "the weights of a bag")


def _counted(
    most: Largest, others: list[Poly], ids: Poly, row: Poly, inner: Sequence[Axis], of_id: Callable[[Poly], bool]
) -> Factors:
    """The factors of a maximum: which ids count, and weights of those."""
    dtype = most.rows[0].dtype
    names = dict(zip(most.axes, map(coord, inner), strict=False))
    tests = [fn("cast", [substitute(c, names)], dtype) for c in most.live]
    found = factors(tests, ids, row, inner, of_id)
    found.masks = [c for c in map(condition_of, found.weights) if c is not None]
    if most.count is not None and not any(most.count is n for n in counts(most.count, tests, inner)):
        raise No("a maximum under a condition that is not how many ids count")
    found.weights = others
    return found


def _check_hidden(lifted: Lifted, table: Value, most: Largest, found: Factors) -> None:
    """Refuse a maximum whose rows are not above what stands in the place of others."""
    if not most.live or most.hidden == float("-inf"):
        return
    if found.weights:
        raise No("weighted rows beside {}", most.hidden)
    # Where it is taken off the rows it is all that is left of them, to within what a float32 holds.
    low, high = (most.hidden * 1e-7, -most.hidden * 1e-7) if most.taken else (most.hidden, float("inf"))
    if not all(block.size == 0 or low <= block.min() <= block.max() <= high for block in lifted.host.blocks(table)):
        raise No("rows of {} that {} does not hide", table.name, most.hidden)


def _below(limits: Sequence[Poly], index: Poly, rows: Size) -> int:
    """The row before which an id counts; 0 where all do."""
    if not limits:
        return 0
    if len(limits) > 1 or not isinstance(rows, int):
        raise No("ids under several conditions")
    if guard(index, 0, rows, limits[0].dtype) is limits[0]:
        return rows
    raise No("ids under a condition on others: {}", limits[0].text)


def _check_torch(table: Value, pool: str, wraps: bool, shift: int | tuple[int, ...], found: Factors) -> None:
    """Refuse what the layout of the torch operator has no words for."""
    if wraps and found.pad is not None and not found.of_row:
        raise No("a padding id of {}, of which negative ids count from the end", table.name)
    apart = pool in ("row", "sum") and found.div is None and found.lengths is None and found.starts is None
    if isinstance(shift, tuple) and not apart:
        raise No("ids of {} that each column moves, in bags that are not sums", table.name)


def _check_finite(lifted: Lifted, table: Value, turned: bool, found: Factors) -> None:
    """Refuse a table whose rows are no numbers where the operator does not read them: 0 * inf is not 0."""
    whole = lifted.host.constant(table)
    whole = whole.T if turned else whole
    rows: Iterable[Array] = [whole] if turned else lifted.host.blocks(table)
    if found.below:
        rows = [whole[:1]]  # which is read instead
    elif found.lengths is None and found.pad is not None:
        rows = [whole[found.pad : found.pad + 1]]
    if not all(math.isfinite(block.sum(dtype="float64")) for block in rows):  # a sum needs no second table in memory
        raise No("{} holds values that are not finite, which a mask does not hide", table.name)


def _ragged(place: Place, bag: Bag, found: Factors, ids: Poly, inner: Sequence[Axis]) -> Bag:
    """Bags that lie one after the other in flat ids."""
    (along,) = inner
    assert found.starts is not None
    rows = place.rows or []
    if found.ends is None or len(rows) != 1:
        raise No("bags that begin at offsets and end nowhere")
    last = ends_of(found.starts, found.ends, rows[0], along.size)
    if last is None:
        raise No("bags that do not end where the next begins")
    if last:  # the same value has the last end too
        entries = axis(sizes.add(rows[0].size, 1))
        place.dims = place.dims or ((rows[0],),)
        offsets = place.flat(substitute(found.starts, {rows[0]: coord(entries)}), entries, "the bounds of bags")
    else:
        offsets, _ = place.view(found.starts, (), "the offsets of bags")
    flat = [place.flat(p, along, what) for p, what in ((ids, "the ids"), *((w, "weights") for w in found.weights))]
    if len(flat) > 2:
        raise No("several weights of flat ids")
    return replace(bag, ids=flat[0], weights=flat[1] if len(flat) > 1 else None, offsets=offsets, last=last)


def _scaled(mono: Mono, bag: Bag, count: int) -> Bag:
    """The bag that a coefficient makes of it: 1/L makes a sum of L rows the mean."""
    if mono.coef == 1:
        return bag
    if bag.pool == "sum" and count and isinstance(mono.coef, float) and math.isclose(mono.coef * count, 1):
        return replace(bag, pool="mean")
    if bag.pool != "max" and isinstance(mono.coef, (int, float)):
        return replace(bag, factor=float(mono.coef))
    raise No("rows under a factor of {}", mono.coef)
