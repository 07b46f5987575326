"""Lookups: which values are made of rows of tables that data names, and what the ids are made of.

A lookup may be joined, added and pooled by other values, and is one in them still. A mask or a count that is made of
ids alone is not data of its own: it says which ids count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..hosts.base import Value
from ..ir.normal import add as add_terms
from ..ir.normal import mul, normal_mono, scale, substitute, sum_over
from ..ir.rules import FLOATS, WIDTH, fn
from ..ir.tensor import Tensor
from ..ir.term import (
    Atom,
    Axis,
    Coord,
    Fn,
    Guard,
    Mono,
    Poly,
    Read,
    Reduce,
    TooLarge,
    axis,
    coord,
    monomial,
    single,
)
from ..lift.base import Lifted
from ..match import constant_leaf, is_data
from .ids import hashes, of_one_id
from .largest import largest
from .row_tests import row_test


def looks_up(lifted: Lifted, value: Value) -> bool:
    """Whether a value is made of lookups: one, several joined or added, pooled or not."""

    def find(value: Value) -> bool:
        t = lifted.definition.get(value)
        if t is None or t.dtype not in FLOATS or lifted.host.is_constant(value):
            return False
        body = picked(lifted, t.body)
        made = any(_looks_up(lifted, a) for m in body.monos for a in m.atoms)
        return made and not any(_weighs(lifted, m) or multiplies(lifted, m) for m in body.monos)

    return lifted.noted("looks_up", value, find)


def _weighs(lifted: Lifted, mono: Mono) -> bool:
    """Whether a sum is one against weights of the model, or along the columns of a row: a linear of what was looked up
    is no lookup, nor is a norm of it."""
    for atom in mono.atoms if mono.axes else ():
        read = widened(atom)
        if not isinstance(read, Read) or not isinstance(read.leaf, Value) or read.axes_read.isdisjoint(mono.axes):
            continue
        if constant_leaf(lifted, read.leaf) and not is_lookup(lifted, read):
            return True
        if any(_along(read.index[n], mono.axes) for n in _columns(lifted, read)):
            return True
    return False


def _along(index: Poly, axes: Sequence[Axis]) -> bool:
    return not index.axes_read.isdisjoint(axes)


def _columns(lifted: Lifted, read: Read) -> Iterable[int]:
    """The dimensions of what is read that lie along the columns of tables."""
    leaf = read.leaf
    assert isinstance(leaf, Value)
    if constant_leaf(lifted, leaf):
        return [n for n, p in enumerate(read.index) if not is_data(lifted, p)]
    key = ("columns", leaf)
    if key not in lifted.notes:
        found: set[Axis] = set()
        t = lifted.definition.get(leaf)
        monos = picked(lifted, t.body).monos if t is not None and looks_up(lifted, leaf) else ()
        for inner in (widened(a) for m in monos for a in m.atoms):
            if isinstance(inner, Read) and isinstance(inner.leaf, Value):
                found.update(a for n in _columns(lifted, inner) for a in inner.index[n].axes_read)
        lifted.notes[key] = [n for n, dim in enumerate(t.dims) if found.intersection(dim)] if found and t else []
    return lifted.notes[key]  # type: ignore[return-value]  # written here alone


def multiplies(lifted: Lifted, mono: Mono) -> bool:
    """Whether rows are multiplied with each other. No operator of lookups does so, and what reads such a value is none:
    moments of rows would be put into each other along a whole model."""
    return sum(_looks_up(lifted, a) for a in mono.atoms) > 1


def _looks_up(lifted: Lifted, atom: Atom) -> bool:
    most = largest(atom)
    if most is not None:
        return any(_looks_up(lifted, a) for a in most.rows)
    if isinstance(atom, Reduce):
        return atom.op == "max" and any(_looks_up(lifted, a) for m in atom.body.monos for a in m.atoms)
    atom = widened(atom)
    if not isinstance(atom, Read) or not isinstance(atom.leaf, Value):
        return False
    return is_lookup(lifted, atom) or (not constant_leaf(lifted, atom.leaf) and looks_up(lifted, atom.leaf))


def widened(atom: Atom) -> Atom:
    """What is read, where that is cast to a float that holds all its values."""
    inner = atom.args[0].atom if isinstance(atom, Fn) and atom.name == "cast" else None
    if not isinstance(inner, Read) or inner.dtype not in FLOATS or atom.dtype not in FLOATS:
        return atom
    return inner if WIDTH[atom.dtype] > WIDTH[inner.dtype] else atom


def is_lookup(lifted: Lifted, read: Read) -> bool:
    return constant_leaf(lifted, read.leaf) and any(is_data(lifted, p) for p in read.index)


# What `expand` opens besides lookups, from most to least.
ALL, HASHES, NOTHING = 2, 1, 0


def expand(lifted: Lifted, term: Poly, opens: int, seen: set[Value]) -> Poly:
    """`term` over tables, ids and dense values: the definitions of what joins, adds or pools lookups are put in. Where
    that is done is added to `seen`."""
    opened = opens == ALL

    def inner(atom: Atom) -> Poly | None:
        if opened and isinstance(atom, Fn) and atom.name == "reciprocal":
            return fn("reciprocal", [expand(lifted, _total(lifted, atom.args[0]), opens, seen)], atom.dtype)
        if not isinstance(atom, Read) or not isinstance(atom.leaf, Value):
            return None
        leaf = atom.leaf
        if constant_leaf(lifted, leaf):
            return progression(lifted, atom) if opened else None
        test = row_test(lifted, leaf) if opened and atom.dtype == "bool" else None
        if test is not None:
            seen.add(leaf)
            return test.at(list(atom.index))
        made = looks_up(lifted, leaf) or (opens >= HASHES and hashes(lifted, leaf))
        if not made and not (opened and (masks(lifted, leaf) or _is_share(lifted, leaf) or of_one_id(lifted, leaf))):
            return None
        seen.add(leaf)
        whole = _expanded(lifted, leaf, opens)
        if whole is not None:
            seen.update(whole[1])
            return whole[0].at(list(atom.index))
        t = lifted.definition[leaf]
        return expand(lifted, t.with_body(picked(lifted, t.body)).at(list(atom.index)), opens, seen)

    return substitute(term, {}, inner)


def _expanded(lifted: Lifted, value: Value, opens: int) -> tuple[Tensor, set[Value]] | None:
    """A value's definition as `expand` makes it, once for all that read it: along a chain of residuals each way to a
    value would be walked. None where it is too large, though a part of it may not be."""
    key = ("expanded", value, opens)
    if key not in lifted.notes:
        seen: set[Value] = set()
        t = lifted.definition[value]
        try:
            lifted.notes[key] = (t.with_body(expand(lifted, picked(lifted, t.body), opens, seen)), seen)
        except TooLarge:
            lifted.notes[key] = None
    return lifted.notes[key]  # type: ignore[return-value]  # written here alone


def progression(lifted: Lifted, read: Read) -> Poly | None:
    """The places 0, 1, 2, .. that a constant holds, as the place itself."""
    leaf = read.leaf
    places = [p for p in read.index if p.number != 0]
    if not isinstance(leaf, Value) or len(places) != 1 or read.dtype in FLOATS or not lifted.host.is_constant(leaf):
        return None
    held = lifted.host.constant(leaf).reshape(-1)
    extent = lifted.term[leaf].shape[read.index.index(places[0])]
    return places[0] if extent == held.size and (held == range(held.size)).all() else None


def _total(lifted: Lifted, term: Poly) -> Poly:
    """What a denominator adds up, under the limits and the small number that keep it from zero."""
    numbers = [monomial(m, term.dtype) for m in term.monos if not m.atoms]
    if numbers:
        return add_terms(_total(lifted, add_terms(term, *(scale(n, -1) for n in numbers))), *numbers)
    atom = term.atom
    if isinstance(atom, Fn) and (atom.name == "max" or (atom.name == "where" and atom.args[1].number == 1)):
        return fn(atom.name, [_total(lifted, p) for p in atom.args], term.dtype)
    t = lifted.definition.get(atom.leaf) if isinstance(atom, Read) and isinstance(atom.leaf, Value) else None
    if not isinstance(atom, Read) or t is None or t.dtype not in FLOATS or looks_up(lifted, atom.leaf):  # type: ignore[arg-type]  # a value, as it has a definition
        return term
    adds = len(t.body.monos) == 1 and len(t.body.monos[0].axes) > 0
    bounds = not adds and (_limits(t.body) or _total(lifted, t.body) is not t.body)
    return _total(lifted, t.at(list(atom.index))) if adds or bounds else term


def _limits(term: Poly) -> bool:
    """Whether a term is another that a number bounds from below, or stands for where it is 0."""
    atom = term.atom
    if not isinstance(atom, Fn) or atom.name not in ("max", "where"):
        return False
    return any(isinstance(a.number, (int, float)) for a in atom.args[-2:])


def _is_share(lifted: Lifted, value: Value) -> bool:
    """Whether a value is a part of a total: w / sum(w)."""
    t = lifted.definition.get(value)
    if t is None or t.dtype not in FLOATS or len(t.body.monos) != 1 or t.body.monos[0].axes:
        return False
    below = [a.args[0] for a in t.body.monos[0].atoms if isinstance(a, Fn) and a.name == "reciprocal"]
    return len(below) == 1 and _total(lifted, below[0]) is not below[0]


def masks(lifted: Lifted, value: Value) -> bool:
    """Whether a value is a condition on integers, or a float that is made of such alone: a mask, how many ids count.
    What reads a table or a weight of the model is none, or all that is computed from ids would be."""
    key = ("masks", value)
    if key not in lifted.notes:
        t = lifted.definition.get(value)
        leaves = [] if t is None else [v for v in t.body.leaves if isinstance(v, Value)]
        weights = any(constant_leaf(lifted, v) and v.dtype in FLOATS for v in leaves)
        read = [] if weights else [v for v in leaves if not constant_leaf(lifted, v)]
        whole = {v for v in read if v.dtype not in FLOATS}
        counts = t is None or t.dtype in FLOATS or t.dtype == "bool" or _counts(lifted, t.body)
        lifted.notes[key] = (
            counts and bool(read) and value not in read and all(v in whole or masks(lifted, v) for v in read)
        )
    return lifted.notes[key] is True


def _counts(lifted: Lifted, term: Poly) -> bool:
    """Whether an integer is made of conditions: ids that are chosen by one are ids still."""
    for atom in (a for m in term.monos for a in m.atoms):
        condition = isinstance(atom, Fn) and atom.name == "cast" and atom.args[0].dtype == "bool"
        if isinstance(atom, Fn) and atom.name == "max" and _limits(term):
            condition = all(_counts(lifted, p) for p in atom.args)
        held = isinstance(atom, Read) and isinstance(atom.leaf, Value) and masks(lifted, atom.leaf)
        if not (condition or held):
            return False
    return True


@dataclass(frozen=True)
class _Hot:
    """coef sum_axes [place == ids]; `exact`: every id has its place, since one that has none is an error."""

    place: Poly
    ids: Poly
    axes: tuple[Axis, ...]
    exact: bool
    coef: float = 1


def picked(lifted: Lifted, term: Poly) -> Poly:
    """sum_k [ids == k] T[k, d] -> [0 <= ids < K] T[ids, d], without the guard where every id has its place;
    where(c, 0, T[ids, d]) -> [not c] T[ids, d]; max_l x[l] -> max_l where(c, T[ids[l], d], -1e9), where that is x."""
    ways = (_picked_one, _cleared, _shown)
    parts = [next(filter(None, (way(lifted, m) for way in ways)), monomial(m, term.dtype)) for m in term.monos]
    return add_terms(*parts) if parts else term


def _picked_one(lifted: Lifted, mono: Mono) -> Poly | None:
    for atom in mono.atoms if mono.axes else ():
        hot = _one_hot(lifted, atom) if isinstance(atom, Read) else None
        if hot is None or not isinstance(hot.place.atom, Coord) or hot.place.atom.axis not in mono.axes:
            continue
        names = {a: coord(axis(a.size)) for a in mono.axes}
        others = [substitute(single(a, a.dtype), names) for a in mono.atoms if a is not atom]
        constants = [v for o in others for v in o.leaves if isinstance(v, Value) and lifted.host.is_constant(v)]
        if not all(_is_finite(lifted, v) for v in constants):  # 0 times infinity is NaN in every row
            continue
        equal = fn("eq", [substitute(hot.place, names), substitute(hot.ids, names)], "bool")
        product = mul(*others, fn("cast", [equal], atom.dtype))
        bound = [p.atom.axis for p in names.values() if isinstance(p.atom, Coord)]
        read = scale(scale(sum_over(product, [*bound, *hot.axes]), mono.coef), hot.coef)
        return _always_inside(lifted, read) if hot.exact else read
    return None


def _cleared(lifted: Lifted, mono: Mono) -> Poly | None:
    for atom in mono.atoms:
        if not isinstance(atom, Fn) or atom.name != "where" or atom.dtype not in FLOATS or largest(atom) is not None:
            continue
        condition, a, b = atom.args
        rows, zero = (b, a) if a.number == 0 else (a, b)
        if zero.number != 0 or not all(_is_finite(lifted, v) for v in rows.leaves if isinstance(v, Value)):
            continue
        live = fn("cast", [fn("logical_not", [condition], "bool") if rows is b else condition], atom.dtype)
        names = {x: axis(x.size) for x in mono.axes}
        others = [single(x, x.dtype) for x in mono.atoms if x is not atom]
        product = substitute(mul(live, rows, *others), {x: coord(n) for x, n in names.items()})
        return scale(sum_over(product, list(names.values())), mono.coef)
    return None


def _shown(lifted: Lifted, mono: Mono) -> Poly | None:
    only = mono.atoms[0] if len(mono.atoms) == 1 and not mono.axes else None
    if only is None or largest(only) is None:
        return None

    def inner(atom: Atom) -> Poly | None:
        t = lifted.definition.get(atom.leaf) if isinstance(atom, Read) and isinstance(atom.leaf, Value) else None
        what = t.body.atom if t is not None else None
        if not isinstance(atom, Read) or t is None or not isinstance(what, Fn) or what.name != "where":
            return None
        hides = what.dtype in FLOATS and any(isinstance(a.number, (int, float)) for a in what.args[1:])
        return t.at(list(atom.index)) if hides else None

    shown = substitute(single(only, only.dtype), {}, inner)
    return None if shown.atom is only else scale(shown, mono.coef)


def _is_finite(lifted: Lifted, value: Value) -> bool:
    """Whether a value is made of ids and of tables of numbers: where a mask hides a row, 0 times it is 0 then."""
    key = ("finite", value)
    if key not in lifted.notes:
        if value.dtype not in FLOATS:
            lifted.notes[key] = True
        elif lifted.host.is_constant(value):
            lifted.notes[key] = math.isfinite(lifted.host.constant(value).sum(dtype="float64"))
        else:
            t = lifted.definition.get(value)
            own = value in t.body.leaves if t is not None else True
            made = looks_up(lifted, value) and not own and t is not None
            lifted.notes[key] = made and all(_is_finite(lifted, v) for v in t.body.leaves if isinstance(v, Value))  # type: ignore[union-attr]  # made only where there is a definition
    return lifted.notes[key] is True


def _one_hot(lifted: Lifted, read: Read) -> _Hot | None:
    """What a read is, where it is 1 at the place that an id names, or how many ids name it, and 0 elsewhere;
    or that times a number, as the mean of one-hots is."""
    value = read.leaf
    t = lifted.definition.get(value) if isinstance(value, Value) else None
    term = t.at(list(read.index)) if t is not None else None
    mono = term.monos[0] if term is not None and len(term.monos) == 1 else None
    if t is None or mono is None or len(mono.atoms) != 1 or not isinstance(mono.coef, (int, float)):
        return None
    if mono.coef != 1 and t.dtype not in FLOATS:  # small integers may not hold the product
        return None
    exact = ("one-hot", value) in lifted.notes
    names = {a: axis(a.size) for a in mono.axes}
    atom = substitute(single(mono.atoms[0], mono.atoms[0].dtype), {a: coord(n) for a, n in names.items()}).atom
    if isinstance(atom, Fn) and atom.name == "cast":
        atom = atom.args[0].atom
    if isinstance(atom, Read):
        hot = _one_hot(lifted, atom)
        axes = (*hot.axes, *names.values()) if hot is not None else ()
        return hot and replace(hot, axes=axes, exact=hot.exact or exact, coef=hot.coef * mono.coef)
    if not isinstance(atom, Fn) or atom.name != "eq" or atom.args[0].dtype in FLOATS:
        return None
    for place, ids in (atom.args, atom.args[::-1]):
        constant = progression(lifted, place.atom) if isinstance(place.atom, Read) else None
        if isinstance((constant or place).atom, Coord) and is_data(lifted, ids):
            return _Hot(constant or place, ids, tuple(names.values()), exact, mono.coef)
    return None


def _always_inside(lifted: Lifted, term: Poly) -> Poly:
    """A term of which no id is outside."""
    parts = []
    for m in term.monos:
        kept = [a for a in m.atoms if not (isinstance(a, Guard) and is_data(lifted, a))]
        names = {a: axis(a.size) for a in m.axes}
        bare = substitute(normal_mono(m.coef, kept, term.dtype), {a: coord(n) for a, n in names.items()})
        parts.append(sum_over(bare, list(names.values())))
    return add_terms(*parts)
