"""Lookups: which values are made of rows of tables that data names, and what the ids are made of.

A lookup may be joined, added and pooled by other values, and is one in them still. A mask or a count that is made of
ids alone is not data of its own: it says which ids count.
"""

from __future__ import annotations

from .hosts.base import Value
from .ir.rules import FLOATS
from .ir.sizes import Size
from .ir.term import (
    Atom,
    Coord,
    Fn,
    Mono,
    Poly,
    Read,
    Reduce,
    axis,
    coord,
    monomial,
    mul,
    number,
    scale,
    single,
    substitute,
    sum_over,
)
from .ir.term import add as add_terms
from .lift.base import Lifted
from .match import constant_leaf, is_data


def looks_up(lifted: Lifted, value: Value) -> bool:
    """Whether a value is made of lookups: one, several joined or added, pooled or not."""
    key = ("looks_up", value)
    if key not in lifted.notes:
        lifted.notes[key] = False
        t = lifted.definition.get(value)
        if t is not None and not lifted.host.is_constant(value):
            body = picked(lifted, t.body)
            made = any(_looks_up(lifted, a) for m in body.monos for a in m.atoms)
            lifted.notes[key] = made and not any(_weighs(lifted, m) for m in body.monos)
    return lifted.notes[key] is True


def _weighs(lifted: Lifted, mono: Mono) -> bool:
    """Whether a sum is one against weights of the model: a linear of what was looked up is no lookup."""
    reads = [a for a in mono.atoms if isinstance(a, Read) and constant_leaf(lifted, a.leaf)]
    return any(not is_lookup(lifted, a) and not a.axes_read.isdisjoint(mono.axes) for a in reads)


def _looks_up(lifted: Lifted, atom: Atom) -> bool:
    if isinstance(atom, Reduce):
        return atom.op == "max" and any(_looks_up(lifted, a) for m in atom.body.monos for a in m.atoms)
    if not isinstance(atom, Read) or not isinstance(atom.leaf, Value):
        return False
    return is_lookup(lifted, atom) or (not constant_leaf(lifted, atom.leaf) and looks_up(lifted, atom.leaf))


def is_lookup(lifted: Lifted, read: Read) -> bool:
    return constant_leaf(lifted, read.leaf) and any(is_data(lifted, p) for p in read.index)


def expand(lifted: Lifted, term: Poly, opened: bool, seen: set[Value]) -> Poly:
    """`term` over tables, ids and dense values: the definitions of what joins, adds or pools lookups are put in. Where
    that is done is added to `seen`."""

    def inner(atom: Atom) -> Poly | None:
        if not isinstance(atom, Read) or not isinstance(atom.leaf, Value) or constant_leaf(lifted, atom.leaf):
            return None
        leaf = atom.leaf
        if not looks_up(lifted, leaf) and not _hashes(lifted, leaf) and not (opened and masks(lifted, leaf)):
            return None
        seen.add(leaf)
        t = lifted.definition[leaf]
        return expand(lifted, t.with_body(picked(lifted, t.body)).at(list(atom.index)), opened, seen)

    return substitute(term, {}, inner)


def masks(lifted: Lifted, value: Value) -> bool:
    """Whether a value is a condition on integers, or a float that is made of such alone: a mask, how many ids count.
    What reads a table or a weight of the model is none, or all that is computed from ids would be."""
    key = ("masks", value)
    if key not in lifted.notes:
        t = lifted.definition.get(value)
        leaves = [] if t is None else [v for v in t.body.leaves if isinstance(v, Value)]
        read = [] if any(constant_leaf(lifted, v) for v in leaves) else leaves
        whole = {v for v in read if v.dtype not in FLOATS and v.dtype != "bool"}
        lifted.notes[key] = bool(read) and value not in read and all(v in whole or masks(lifted, v) for v in read)
    return lifted.notes[key] is True


def picked(lifted: Lifted, term: Poly) -> Poly:
    """sum_k [ids == k] T[k, d] -> T[ids, d], where every id has its place."""
    parts = [_picked_one(lifted, m) or monomial(m, term.dtype) for m in term.monos]
    return add_terms(*parts) if parts else term


def _picked_one(lifted: Lifted, mono: Mono) -> Poly | None:
    for hot in mono.atoms:
        ids = _one_hot(lifted, hot) if isinstance(hot, Read) else None
        place = hot.index[-1].atom if isinstance(hot, Read) and hot.index else None
        if ids is None or not isinstance(place, Coord) or place.axis not in mono.axes:
            continue
        fresh = {a: axis(a.size) for a in mono.axes}
        names = {a: coord(n) for a, n in fresh.items()}
        others = [substitute(single(a, a.dtype), names) for a in mono.atoms if a is not hot]
        row = {fresh[place.axis]: substitute(ids, names)}
        read = scale(mul(*[substitute(p, row) for p in others]), mono.coef)
        return sum_over(read, [n for a, n in fresh.items() if a != place.axis])
    return None


def _one_hot(lifted: Lifted, read: Read) -> Poly | None:
    """The ids, where a read is 1 at the place that they name along its last index and 0 elsewhere."""
    value = read.leaf
    t = lifted.definition.get(value) if isinstance(value, Value) else None
    atom = t.body.atom if t is not None else None
    if t is None or not isinstance(atom, Fn) or atom.name != "cast":
        return None
    seen = t.at(list(read.index)).atom
    inner = seen.args[0].atom if isinstance(seen, Fn) else None
    if isinstance(inner, Read):
        return _one_hot(lifted, inner)
    if ("one-hot", value) not in lifted.notes or not isinstance(inner, Fn) or inner.name != "eq":
        return None
    return next((a for a in inner.args if a is not read.index[-1]), None)


def unwrapped(index: Poly, rows: Size) -> tuple[Poly, bool]:
    """The ids that an index is made of, and whether negative ones count from the end."""
    atom = index.atom
    if not isinstance(atom, Fn) or atom.name != "where":
        return index, False
    condition, wrapped, ids = atom.args
    negative = condition.atom
    if not isinstance(negative, Fn) or negative.name != "lt" or negative.args[0] is not ids:
        return index, False
    whole = add_terms(wrapped, scale(ids, -1)).number == rows and negative.args[1].number == 0
    return (ids, True) if whole else (index, False)


def _hashes(lifted: Lifted, value: Value) -> bool:
    """Whether ids are other ids modulo a number, shifted or both: the operator does that itself, ONNX's Gather not."""
    t = lifted.definition.get(value)
    if t is None or t.dtype in FLOATS or lifted.host.dialect == "onnx" or lifted.term[value].body is t.body:
        return False
    return hashed(t.body)[1] > 0


def hashed(index: Poly) -> tuple[Poly, int, int]:
    """The ids, the modulus and the shift that an index is made of: ids % modulus + shift."""
    shift = sum(m.coef for m in index.monos if not m.atoms and isinstance(m.coef, int))
    bare = add_terms(index, number(-shift, index.dtype))
    atom = bare.atom
    if isinstance(atom, Fn) and atom.name == "mod" and isinstance(atom.args[1].number, int):
        return atom.args[0], atom.args[1].number, shift
    return bare, 0, shift
