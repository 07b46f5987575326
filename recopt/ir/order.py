"""Axes of sums: which of them are one axis in two, and the order that numbers them whatever they were called."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import count

from . import sizes
from .term import Atom, Axis, Coord, Fn, Guard, Interned, Poly, Read, Reduce, axis, coord, depth, times

_NAMES = re.compile(r"(?<![\w.])[ir][0-9]+(?![\w.\[])")  # of axes: whole words that are no leaf's name


def read_jointly(outer: Axis, inner: Axis, term: Interned) -> bool:
    """Whether `term` reads `outer` and `inner` only through outer*size(inner) + inner."""
    if outer not in term.axes_read and inner not in term.axes_read:
        return True
    if isinstance(term, Read):
        return all(read_jointly(outer, inner, p) for p in term.index)
    if isinstance(term, Fn):
        return all(read_jointly(outer, inner, p) for p in term.args)
    if isinstance(term, Guard):
        return read_jointly(outer, inner, term.index)
    if isinstance(term, Reduce):
        return read_jointly(outer, inner, term.body)
    if not isinstance(term, Poly):
        return False
    linear = {m.atoms[0].axis: m.coef for m in term.monos if len(m.atoms) == 1 and isinstance(m.atoms[0], Coord)}
    if outer in linear or inner in linear:
        if linear.get(outer, 0) != times(linear.get(inner, 0), inner.size):
            return False
        others = [
            m
            for m in term.monos
            if not (len(m.atoms) == 1 and isinstance(m.atoms[0], Coord) and m.atoms[0].axis in (outer, inner))
        ]
    else:
        others = list(term.monos)
    return all(read_jointly(outer, inner, a) for m in others for a in m.atoms)


def merge_pair(bound: list[Axis], atoms: list[Atom]) -> tuple[Axis, Axis, Axis] | None:
    """Two axes that are only ever read as outer*size(inner) + inner are one axis."""
    if len(bound) < 2:
        return None
    for outer in bound:
        for inner in bound:
            if outer is not inner and all(read_jointly(outer, inner, a) for a in atoms):
                return outer, inner, axis(sizes.mul(outer.size, inner.size))
    return None


def bind(bound: list[Axis], terms: Iterable[Interned]) -> tuple[dict[Axis, Poly], tuple[Axis, ...]]:
    """Canonical bound axes: numbered from the deepest one inside, in the order in which the sorted terms read them."""
    items = list(terms)
    ordered = bound_order(bound, items)
    ordered += [a for a in bound if a not in ordered]  # a product over what does not read its axis is a power
    taken = {-a.id for t in items for a in t.axes_read if a not in bound}  # those of sums around this one
    free = (n for n in count(depth(items) + 1) if n not in taken)
    names = {a: Axis(-n, a.size) for a, n in zip(ordered, free, strict=False)}
    return {a: coord(n) for a, n in names.items()}, tuple(names.values())


def bound_order(bound: Iterable[Axis], terms: Iterable[Interned]) -> list[Axis]:
    """The axes of `bound` in an order that does not depend on their names: as the terms, sorted blindly, read them."""
    axes, items = list(dict.fromkeys(bound)), list(terms)
    if len(axes) < 2:
        return [a for a in axes if any(a in t.axes_read for t in items)]
    if len(items) > 1:
        items.sort(key=_blinding(axes))
    wanted = set(axes)
    return [a for a in dict.fromkeys(a for t in items for a in t.reading) if a in wanted]


def _blinding(axes: Sequence[Axis]) -> Callable[[Interned], str]:
    """Texts of terms in which `axes` are named by their sizes alone."""
    names = {a.name: f"_{a.size}_" for a in axes}
    return lambda term: _NAMES.sub(lambda m: names.get(m[0], m[0]), term.text)
