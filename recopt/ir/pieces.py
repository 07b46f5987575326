"""Neighbouring pieces of a sum that are one piece: guards that touch, sums over ranges that touch."""

from __future__ import annotations

from collections.abc import Hashable

from . import sizes
from .normal import MAX_MONOS, add, guard, mul, mul_atoms, normal_mono, poly, read, scale, substitute, sum_over
from .sizes import Size
from .term import Atom, Coord, Guard, Mono, Poly, Read, axis, coord, number, retype


def joined(monos: list[Mono], dtype: str) -> list[Mono]:
    """Neighbouring pieces that do the same become one piece: guards that touch, sums over ranges that touch."""
    groups: dict[Hashable, list[Mono]] = {}
    for m in monos:  # only monomials of one form over the same leaves can be neighbours
        leaves = sorted(str(id(a.leaf)) if isinstance(a, Read) else type(a).__name__ for a in m.atoms)
        if leaves:
            groups.setdefault((m.coef, *leaves), []).append(m)
    pairs = [(a, b) for pieces in groups.values() for n, a in enumerate(pieces) for b in pieces[n + 1 :]]
    if len(pairs) <= MAX_MONOS:
        for first, second in pairs:
            for a, b in ((first, second), (second, first)):
                joint = _join_guards(a, b, dtype) if a.axes == b.axes else None
                joint = _join_sums(a, b, dtype) if joint is None else joint
                if joint is not None:
                    rest = [m for m in monos if m is not first and m is not second]
                    return list(poly([*rest, *joint.monos], dtype).monos)
    return monos


def _join_guards(a: Mono, b: Mono, dtype: str) -> Poly | None:
    """[lo<=i<m]*f + [m<=i<hi]*f -> [lo<=i<hi]*f, where a piece of one element shows f at that element only."""
    for one in a.atoms:
        for other in b.atoms:
            if not (isinstance(one, Guard) and isinstance(other, Guard) and one.index is other.index):
                continue
            if one.hi is None or one.hi != other.lo:
                continue
            left = normal_mono(1, [x for x in a.atoms if x is not one], dtype)
            right = normal_mono(1, [x for x in b.atoms if x is not other], dtype)
            body = left if left is right else _extended(left, right, one, other)
            if body is not None:
                joint = retype(guard(one.index, one.lo, other.hi), dtype)
                fresh = {ax: axis(ax.size) for ax in a.axes}
                whole = substitute(mul(joint, body), {ax: coord(n) for ax, n in fresh.items()})
                return sum_over(scale(whole, a.coef), fresh.values())
    return None


def _extended(left: Poly, right: Poly, one: Guard, other: Guard) -> Poly | None:
    """The f of both pieces, where at least one of them holds a single element of its axis; None where there is none."""
    place = one.index.atom
    if not isinstance(place, Coord) or not isinstance(one.hi, int):
        return None
    first = (one.lo if one.lo is not None else 0) == one.hi - 1
    last = (other.hi if other.hi is not None else place.axis.size) == one.hi + 1
    if first and substitute(right, {place.axis: number(one.hi - 1)}) is left:
        return right
    if last and substitute(left, {place.axis: number(one.hi)}) is right:
        return left
    return _between(left, right, add(one.index, number(1 - one.hi))) if first and last else None


def _between(left: Poly, right: Poly, step: Poly) -> Poly | None:
    """The product that is `left` at step 0 and `right` at step 1, their reads at neighbouring places."""
    if len(left.monos) != 1 or len(right.monos) != 1 or len(left.monos[0].atoms) != len(right.monos[0].atoms):
        return None
    atoms: list[Atom] = []
    for a, b in zip(left.monos[0].atoms, right.monos[0].atoms, strict=True):
        if a is b:
            atoms.append(a)
            continue
        if not (isinstance(a, Read) and isinstance(b, Read) and a.leaf is b.leaf):
            return None
        index = []
        for p, q in zip(a.index, b.index, strict=True):
            distance = add(q, scale(p, -1)).number
            if distance not in (-1, 0, 1):
                return None
            index.append(add(p, scale(step, distance)))
        atoms += mul_atoms([read(a.leaf, index, a.dtype)])
    return normal_mono(1, atoms, left.dtype)


def _join_sums(a: Mono, b: Mono, dtype: str) -> Poly | None:
    """sum[k<s](f(k)) + sum[k<t](f(k+s)) -> sum[k<s+t](f(k)); a single f(s) or f(-1) joins likewise."""
    if len(a.axes) != 1 or len(b.axes) > 1:
        return None
    (first,) = a.axes
    left, right = normal_mono(1, a.atoms, dtype), normal_mono(1, b.atoms, dtype)
    start: Size = 0
    if b.axes:
        (second,) = b.axes
        joint = axis(sizes.add(first.size, second.size))
        shifted = substitute(left, {first: add(coord(joint), number(first.size))})
        if shifted is not substitute(right, {second: coord(joint)}):
            return None
    else:
        joint = axis(sizes.add(first.size, 1))
        if substitute(left, {first: number(-1)}) is right:
            start = -1
        elif substitute(left, {first: number(first.size)}) is not right:
            return None
    return sum_over(substitute(scale(left, a.coef), {first: add(coord(joint), number(start))}), [joint])


def unguarded(term: Poly) -> Poly:
    """[i<n-1]*(3*i + 3) + 3*n*[n-1<=i] -> 3*i + 3, i < n: a sum that the last place continues needs no guards there."""
    groups: dict[Guard, list[Mono]] = {}
    for mono in term.monos:
        guards = [a for a in mono.atoms if isinstance(a, Guard)]
        if len(guards) != 1:
            return term
        groups.setdefault(guards[0], []).append(mono)
    if len(groups) != 2:
        return term
    one, other = sorted(groups, key=lambda g: g.hi is None)
    place = one.index.atom
    if one.index is not other.index or one.hi is None or one.hi != other.lo or not isinstance(place, Coord):
        return term
    if one.lo is not None or other.hi is not None or sizes.size(place.axis.size - one.hi) != 1:
        return term

    def piece(guard: Guard) -> Poly:
        bare = [normal_mono(m.coef, [a for a in m.atoms if a is not guard], term.dtype) for m in groups[guard]]
        return add(*bare) if not any(m.axes for m in groups[guard]) else term

    last = {place.axis: number(one.hi)}
    return piece(one) if substitute(piece(one), last) is substitute(piece(other), last) else term
