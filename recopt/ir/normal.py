"""The normal form: the constructors that keep terms in it, sums over axes, and substitution, which applies them again.

Products distribute over sums, sums over products of reductions move out, like monomials meet, decided guards go, sums
over guarded axes shrink, split axes that are only read together merge, bound axes are numbered by their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import sympy

from . import sizes
from .order import bind, merge_pair
from .ranges import value_range
from .sizes import Size
from .term import (
    Atom,
    Axis,
    Coef,
    Coord,
    Fn,
    Guard,
    Interned,
    Leaf,
    Mono,
    Poly,
    Read,
    Reduce,
    TooLarge,
    axis,
    coord,
    monomial,
    number,
    raw_guard,
    raw_mono,
    raw_poly,
    raw_read,
    raw_reduce,
    single,
    times,
)

MAX_MONOS = 1024  # a sum of more is refused: the lift then makes its value a leaf
MAX_PRODUCT = 64  # likewise a product that distributes into more
MAX_UNROLLED = 4  # pieces of a stack that a maximum takes apart


def read(leaf: Leaf, index: Iterable[Poly], dtype: str) -> Poly:
    """leaf[index]."""
    return raw_read(leaf, tuple([_index(p) for p in index]), dtype)


def _index(p: Poly) -> Poly:
    """An index without the casts between integer types, which change no position."""
    atom = p.atom
    while isinstance(atom, Fn) and atom.name == "cast" and "int" in atom.dtype and "int" in atom.args[0].dtype:
        p = atom.args[0]
        atom = p.atom
    return p


def guard(index: Poly, lo: Size | None, hi: Size | None, dtype: str = "int64") -> Poly:
    """1 where lo <= index < hi, else 0; decided at once where the range of `index` allows."""
    offset = index.monos[0].coef if index.monos and not index.monos[0].atoms else 0
    if offset != 0:  # the constant part moves into the bounds, so that equal guards meet
        index = add(index, number(-offset))
        lo = None if lo is None else sizes.size(lo - offset)
        hi = None if hi is None else sizes.size(hi - offset)
    low, high = value_range(index)
    if lo is not None and low is not None and sizes.at_least(low, lo):
        lo = None
    if hi is not None and high is not None and sizes.at_least(hi, sizes.size(high + 1)):
        hi = None
    if lo is None and hi is None:
        return number(1, dtype)
    if (hi is not None and low is not None and sizes.at_least(low, hi)) or (
        lo is not None and high is not None and sizes.at_least(lo, sizes.size(high + 1))
    ):
        return number(0, dtype)
    return raw_guard(index, lo, hi, dtype)


def reduce(op: str, axes: Iterable[Axis], body: Poly) -> Poly:
    """op over `axes` of `body`, for op in max, min, prod, any, all."""
    bound = [a for a in axes if a.size != 1]
    if not bound:
        return body
    if op in ("max", "min", "any", "all"):  # idempotent: an axis that the body does not read changes nothing
        bound = [a for a in bound if a in body.axes_read]
        if not bound:
            return body
    last = bound[-1]
    if op in ("max", "min") and isinstance(last.size, int) and last.size <= MAX_UNROLLED and _is_guarded(body, last):
        from .rules import fn  # a reduction over stacked pieces is a function of the pieces

        pieces = [substitute(body, {last: number(n)}) for n in range(last.size)]
        joined = pieces[0]
        for piece in pieces[1:]:
            joined = fn(op, [joined, piece], body.dtype)
        return reduce(op, bound[:-1], joined)
    renamed, order = bind(bound, (body,))
    inner = substitute(body, renamed)
    return raw_reduce(op, order, inner)


def _is_guarded(body: Poly, ax: Axis) -> bool:
    """Whether pieces along an axis are told apart by guards."""
    return any(isinstance(a, Guard) and ax in a.axes_read for m in body.monos for a in m.atoms)


# --- monomials and polynomials


def poly(monos: Iterable[Mono], dtype: str) -> Poly:
    """The sum of `monos`: like ones meet, those that cancel go."""
    collected: dict[tuple[tuple[Axis, ...], tuple[Atom, ...]], tuple[Coef, float]] = {}
    for m in monos:
        key = (m.axes, m.atoms)
        old, scale = collected.get(key, (0, 0.0))
        magnitude = abs(m.coef) if isinstance(m.coef, (int, float)) else 0.0
        collected[key] = (m.coef if old == 0 else old + m.coef, max(scale, magnitude))
    kept = [
        raw_mono(sizes.size(c) if isinstance(c, sympy.Expr) else c, *key)
        for key, (c, scale) in collected.items()
        # what is left of two floats that cancel is rounding, not meaning
        if c != 0 and not (isinstance(c, float) and abs(c) < 1e-15 * scale)
    ]
    if len(kept) > MAX_MONOS:
        raise TooLarge
    if len(kept) > 1:  # most are one, whose text nobody needs then
        kept = _whole(kept, dtype)
        if any(m.axes or any(isinstance(a, Guard) for a in m.atoms) for m in kept):
            from .pieces import joined  # pieces are compared by the constructors, which must join them

            kept = joined(kept, dtype)
        kept.sort(key=lambda m: (bool(m.atoms), m.text))
    return raw_poly(tuple(kept), dtype)


def _whole(monos: list[Mono], dtype: str) -> list[Mono]:
    """c*(p // c) + p % c -> p: a position that was divided and put together again."""
    single_fns = {m.atoms[0]: m for m in monos if len(m.atoms) == 1 and not m.axes and isinstance(m.atoms[0], Fn)}
    for rest, m in single_fns.items():
        if not (isinstance(rest, Fn) and rest.name == "mod" and "int" in rest.dtype):
            continue
        for quotient, other in single_fns.items():
            if isinstance(quotient, Fn) and quotient.name == "floordiv" and quotient.args == rest.args:
                divisor = rest.args[1].number
                if divisor is not None and other.coef == times(m.coef, divisor):
                    others = [x for x in monos if x is not m and x is not other]
                    return list(poly([*others, *scale(rest.args[0], m.coef).monos], dtype).monos)
    return monos


def add(*terms: Poly) -> Poly:
    """The sum; dtypes must agree (the lift casts)."""
    return poly((m for t in terms for m in t.monos), terms[0].dtype)


def scale(term: Poly, coef: Coef) -> Poly:
    """coef * term."""
    if coef == 1:
        return term
    return poly((raw_mono(times(m.coef, coef), m.axes, m.atoms) for m in term.monos), term.dtype)


def mul(*terms: Poly) -> Poly:
    """The product, distributed over the sums."""
    result = terms[0]
    for other in terms[1:]:
        if len(result.monos) > 1 and len(other.monos) > 1 and len(result.monos) * len(other.monos) > MAX_PRODUCT:
            raise TooLarge
        result = add_all([_product(a, b, result.dtype) for a in result.monos for b in other.monos], result.dtype)
    return result


def add_all(terms: Iterable[Poly], dtype: str) -> Poly:
    """The sum of any number of terms."""
    terms = list(terms)
    if len(terms) == 1 and terms[0].dtype == dtype:
        return terms[0]
    return poly((m for t in terms for m in t.monos), dtype)


def _product(a: Mono, b: Mono, dtype: str) -> Poly:
    coef = times(a.coef, b.coef)
    if not a.axes and not b.axes:
        return normal_mono(coef, (*a.atoms, *b.atoms), dtype)
    a_axes, a_atoms = _apart(a, b, dtype)
    b_axes, b_atoms = _apart(b, a, dtype)
    return sum_over(normal_mono(coef, (*a_atoms, *b_atoms), dtype), (*a_axes, *b_axes))


def _apart(mono: Mono, other: Mono, dtype: str) -> tuple[tuple[Axis, ...], Sequence[Atom]]:
    """The bound axes and the atoms of `mono`, under new names where `other` has axes of the same."""
    if other.axes_read.isdisjoint(mono.axes) and not (mono.axes and other.axes):
        return mono.axes, mono.atoms
    return _renamed(mono, dtype)


def _renamed(mono: Mono, dtype: str) -> tuple[tuple[Axis, ...], list[Atom]]:
    """The bound axes and the atoms of a sum, under new names."""
    fresh = {a: axis(a.size) for a in mono.axes}
    rename = _Substitution({a: coord(n) for a, n in fresh.items()}, None)
    return tuple(fresh.values()), mul_atoms(rename.atom(t, dtype) for t in mono.atoms)


def mul_atoms(terms: Iterable[Poly]) -> list[Atom]:
    """The atoms of a product of one-atom terms."""
    return [a for t in terms for m in t.monos for a in m.atoms]


def normal_mono(coef: Coef, atoms: Iterable[Atom], dtype: str) -> Poly:
    """A product of atoms: guards on one index meet, x * reciprocal(x) of constants goes, atoms are sorted."""
    guards: dict[Poly, tuple[Size | None, Size | None]] = {}
    rest: list[Atom] = []
    for atom in atoms:
        if not isinstance(atom, Guard):
            rest.append(atom)
            continue
        lo, hi = atom.lo, atom.hi
        if atom.index in guards:
            old_lo, old_hi = guards[atom.index]
            lo = old_lo if lo is None else lo if old_lo is None or sizes.at_least(lo, old_lo) else old_lo
            hi = old_hi if hi is None else hi if old_hi is None or sizes.at_least(old_hi, hi) else old_hi
        guards[atom.index] = (lo, hi)
    for index, (lo, hi) in guards.items():
        if lo is not None and hi is not None and sizes.at_least(lo, hi):
            return number(0, dtype)
        rest += [a for m in guard(index, lo, hi).monos for a in m.atoms]
    if coef == 0:
        return number(0, dtype)
    if len(rest) > 1:
        rest = sorted(_cancel(rest), key=lambda a: a.text)
    return raw_poly((raw_mono(coef, (), tuple(rest)),), dtype)


def _cancel(atoms: list[Atom]) -> list[Atom]:
    """x * reciprocal(x) -> 1."""
    divided = [a.args[0].atom for a in atoms if isinstance(a, Fn) and a.name == "reciprocal"]
    if not any(atom in atoms for atom in divided):
        return atoms
    kept: list[Atom] = []
    for atom in atoms:
        opposite = next((k for k in kept if _inverse(k, atom) or _inverse(atom, k)), None)
        if opposite is None:
            kept.append(atom)
        else:
            kept.remove(opposite)
    return kept


def _inverse(a: Atom, b: Atom) -> bool:
    return isinstance(a, Fn) and a.name == "reciprocal" and a.args[0].atom is b


# --- sums


def sum_over(term: Poly, axes: Iterable[Axis]) -> Poly:
    """Sum of `term` over `axes`, monomial by monomial."""
    bound = [a for a in axes if a.size != 1]
    return add_all([_sum_mono(m, bound, term.dtype) for m in term.monos], term.dtype) if bound else term


def _sum_mono(mono: Mono, axes: list[Axis], dtype: str) -> Poly:
    coef, atoms, bound = mono.coef, list(mono.atoms), axes
    if mono.axes:  # canonical numbers may clash with those that `bind` hands out below
        own, atoms = _renamed(mono, dtype)
        bound = [*own, *axes]
    for ax in list(bound):
        if not any(ax in a.axes_read for a in atoms):  # a sum of equal things
            coef, bound = times(coef, ax.size), [b for b in bound if b != ax]
    for ax in bound:
        shrunk = _shrink(ax, atoms) or _pick(ax, atoms)
        if shrunk is not None:
            replacement, keep, new_axis = shrunk
            body = substitute(normal_mono(coef, keep, dtype), {ax: replacement})
            return sum_over(body, [b for b in bound if b != ax] + ([new_axis] if new_axis else []))
    merged = merge_pair(bound, atoms)
    if merged is not None:
        outer, inner, joint = merged
        mapping = {
            outer: number(0),
            inner: coord(joint),
        }  # outer*size + inner becomes joint, and outer occurs nowhere else
        body = substitute(normal_mono(coef, atoms, dtype), mapping)
        return sum_over(body, [b for b in bound if b not in (outer, inner)] + [joint])
    if not bound:
        return normal_mono(coef, atoms, dtype)
    renamed_axes, order = bind(bound, atoms)
    rename = _Substitution(renamed_axes, None)
    final = sorted(mul_atoms(rename.atom(a, dtype) for a in atoms), key=lambda a: a.text)
    return raw_poly((raw_mono(coef, order, tuple(final)),), dtype)


def _shrink(ax: Axis, atoms: list[Atom]) -> tuple[Poly, list[Atom], Axis | None] | None:
    """sum[k<K]([lo<=k<hi] * f(k)) -> sum[k<hi-lo](f(k+lo))."""
    for atom in atoms:
        if isinstance(atom, Guard) and isinstance(atom.index.atom, Coord) and atom.index.atom.axis == ax:
            lo = 0 if atom.lo is None else atom.lo
            hi = ax.size if atom.hi is None else atom.hi
            length = sizes.size(hi - lo)
            fresh = axis(length)
            keep = [a for a in atoms if a is not atom]
            return add(coord(fresh), number(lo)), keep, fresh if length != 1 else None
    return None


def _pick(ax: Axis, atoms: list[Atom]) -> tuple[Poly, list[Atom], Axis | None] | None:
    """sum[k<K]((k == e) * f(k)) -> [0<=e<K] * f(e): a one-hot product is a lookup."""
    for atom in atoms:
        equal = atom.args[0].atom if isinstance(atom, Fn) and atom.name == "cast" else atom
        if not (isinstance(equal, Fn) and equal.name == "eq"):
            continue
        for mine, other in (equal.args, equal.args[::-1]):
            if isinstance(mine.atom, Coord) and mine.atom.axis == ax and ax not in other.axes_read:
                keep = [a for a in atoms if a is not atom]
                return other, keep + mul_atoms([guard(other, 0, ax.size)]), None
    return None


# --- substitution

Rebuild: TypeAlias = Callable[[Atom], "Poly | None"]


def substitute(term: Poly, axes: Mapping[Axis, Poly], atoms: Rebuild | None = None) -> Poly:
    """`term` with axes replaced by indices, and then every read by what `atoms` returns for it (None keeps it)."""
    return _Substitution(axes, atoms).poly(term)


class _Substitution:
    def __init__(self, axes: Mapping[Axis, Poly], atoms: Rebuild | None) -> None:
        self.axes, self.atoms = axes, atoms
        self.replaced = frozenset(axes)
        self.memo: dict[Interned, Poly] = {}

    def keeps(self, term: Interned) -> bool:
        """Whether nothing in `term` is replaced, as far as can be seen at once."""
        return self.replaced.isdisjoint(term.axes_read) and (self.atoms is None or not term.leaves)

    def poly(self, term: Poly) -> Poly:
        if self.keeps(term):
            return term
        found = self.memo.get(term)
        if found is None:
            found = self.memo[term] = add_all([self.mono(m, term.dtype) for m in term.monos], term.dtype)
        return found

    def mono(self, mono: Mono, dtype: str) -> Poly:
        if self.keeps(mono):
            return monomial(mono, dtype)
        if not mono.axes:
            parts = [self.atom(a, dtype) for a in mono.atoms]
            if all(p.atom is a for p, a in zip(parts, mono.atoms, strict=True)):
                return monomial(mono, dtype)
            return scale(_times_all(parts, dtype), mono.coef)
        inner, bound = self.under(mono.axes, mono.axes_read)
        parts = [inner.atom(a, dtype) for a in mono.atoms]
        if bound is mono.axes and all(p.atom is a for p, a in zip(parts, mono.atoms, strict=True)):
            return monomial(mono, dtype)
        return sum_over(scale(_times_all(parts, dtype), mono.coef), bound)

    def under(self, bound: tuple[Axis, ...], free: frozenset[Axis]) -> tuple[_Substitution, tuple[Axis, ...]]:
        """What replaces the axes below a sum over `bound`, and the axes of that sum: new ones only where an index that
        is put in reads an axis of the same number."""
        used = {a: p for a, p in self.axes.items() if a in free}
        if any(b in p.axes_read for p in used.values() for b in bound):
            fresh = {a: axis(a.size) for a in bound}
            renamed = {**used, **{a: coord(n) for a, n in fresh.items()}}
            return _Substitution(renamed, self.atoms), tuple(fresh.values())
        if any(b in self.axes for b in bound):
            return _Substitution(used, self.atoms), bound
        return self, bound

    def atom(self, atom: Atom, dtype: str) -> Poly:
        found = self.memo.get(atom)
        if found is None:
            found = self.memo[atom] = self.build(atom)
        return found if found.dtype == dtype else raw_poly(found.monos, dtype)

    def build(self, atom: Atom) -> Poly:
        result: Poly
        if self.keeps(atom):
            return single(atom, atom.dtype)
        if isinstance(atom, Coord):
            result = self.axes[atom.axis] if atom.axis in self.axes else coord(atom.axis)
        elif isinstance(atom, Read):
            result = read(atom.leaf, [self.poly(p) for p in atom.index], atom.dtype)
        elif isinstance(atom, Fn):
            from .rules import fn  # rules build on terms, and substitution must apply them again

            result = fn(atom.name, [self.poly(p) for p in atom.args], atom.dtype, atom.attrs)
        elif isinstance(atom, Guard):
            result = guard(self.poly(atom.index), atom.lo, atom.hi)
        else:
            assert isinstance(atom, Reduce)
            inner, bound = self.under(atom.axes, atom.axes_read)
            body = inner.poly(atom.body)
            result = single(atom, atom.dtype) if body is atom.body else reduce(atom.op, bound, body)
        if self.atoms is None:
            return result
        last = result.atom
        replaced = self.atoms(last) if last is not None else None
        return result if replaced is None else replaced


def _times_all(parts: list[Poly], dtype: str) -> Poly:
    """The product of what a monomial's atoms became."""
    factors = [p.atom for p in parts]
    if None not in factors:  # nothing to distribute: one monomial, at a third of the cost
        return normal_mono(1, [f for f in factors if f is not None], dtype)
    return mul(number(1, dtype), *parts)
