"""Terms: what one element of a tensor is, as a polynomial over accesses, in a normal form.

    Poly  = sum of Monos                                      x[i,r]*W[j,r] summed over r, plus b[j]
    Mono  = coef * Sum[axes]( product of atoms )
    Atom  = Coord(axis) | Read(leaf, indices) | Fn(name, args) | Guard(index, lo, hi) | Reduce(op, axes, body)

Indices are Polys too, over axes and, for a lookup, over reads of integer tensors. Guard is 1 where lo <= index < hi and
0 elsewhere, and what it multiplies counts as 0 there whatever it reads: a concat is a sum of guarded pieces, a pad is
one.

Everything is frozen and interned: equal terms are the same object, compare with `is`. The constructors normalise:
products distribute over sums, sums over products of reductions move out, like monomials meet, decided guards go, sums
over guarded axes shrink, split axes that are only read together merge, bound axes are numbered by their place.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import sympy

from . import sizes
from .sizes import Size

Coef: TypeAlias = int | float | bool | sympy.Expr

MAX_MONOS = 1024  # a sum of more is refused: the lift then makes its value a leaf
MAX_PRODUCT = 64  # likewise a product that distributes into more
MAX_UNROLLED = 4  # pieces of a stack that a maximum takes apart


class TooLarge(Exception):
    """A normal form would outgrow its limit; the caller keeps the value as a leaf instead."""


@runtime_checkable
class Leaf(Protocol):
    """What a Read reads: a host value, or anything hashable with a name."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Axis:
    """An index variable 0..size-1. Ids: fresh ones are large, canonical free ones count from 0, bound ones are
    negative."""

    id: int
    size: Size

    @property
    def name(self) -> str:
        return f"i{self.id}" if self.id >= 0 else f"r{-self.id}"


_fresh = count(1000)


def axis(size: Size) -> Axis:
    """A fresh axis."""
    return Axis(next(_fresh), size)


class Interned:
    """Base of terms: there is one object with the same parts. What follows from the parts and is not needed of every
    term is computed when it is first asked for."""

    __slots__ = ("__weakref__", "alone", "axes_read", "bound_depth", "key", "leaves", "reading", "text")
    key: Hashable  # its parts
    text: str  # printed form; also the sort key
    axes_read: frozenset[Axis]  # axes that occur free
    bound_depth: int  # the largest number of a bound axis inside
    leaves: frozenset[Leaf]  # what it reads, at any depth
    reading: tuple[Axis, ...]  # axes of positions inside, in the order in which they are first read

    def __getattr__(self, name: str) -> object:
        """The first time that a derived slot is asked for."""
        if name == "text":
            found: object = _text(self)
        elif name == "leaves":
            own_leaf = (self.leaf,) if isinstance(self, Read) else ()
            found = frozenset().union(own_leaf, *[t.leaves for t in children(self)])
        elif name == "bound_depth":
            own = [-a.id for a in self.axes] if isinstance(self, (Mono, Reduce)) else []
            found = max([*own, _depth(children(self))])
        elif name == "reading":  # terms share parts: walked as trees, they are exponentially large
            own_axis = (self.axis,) if isinstance(self, Coord) else ()
            found = tuple(dict.fromkeys(a for part in (own_axis, *[t.reading for t in children(self)]) for a in part))
        elif name == "alone":
            found = _nothing
        else:
            raise AttributeError(name)
        object.__setattr__(self, name, found)
        return found


def _nothing() -> None:
    return None


T = TypeVar("T", bound=Interned)


class Atom(Interned):
    """A factor of a monomial."""

    __slots__ = ("dtype",)
    dtype: str
    alone: Callable[[], Poly | None]  # the term that is this atom in its own dtype, while it lives


class Coord(Atom):
    """The position along an axis, as a value."""

    __slots__ = ("axis",)

    def __init__(self, axis: Axis) -> None:
        self.axis, self.dtype, self.axes_read = axis, "int64", frozenset((axis,))


class Read(Atom):
    """One element of a leaf tensor."""

    __slots__ = ("index", "leaf")

    def __init__(self, leaf: Leaf, index: tuple[Poly, ...], dtype: str) -> None:
        self.leaf, self.index, self.dtype, self.axes_read = leaf, index, dtype, _union(index)


class Fn(Atom):
    """A pointwise function that is neither sum nor product; `attrs` are its parameters."""

    __slots__ = ("args", "attrs", "name")

    def __init__(self, name: str, args: tuple[Poly, ...], attrs: tuple[Hashable, ...], dtype: str) -> None:
        self.name, self.args, self.attrs, self.dtype, self.axes_read = name, args, attrs, dtype, _union(args)


class Guard(Atom):
    """1 where lo <= index < hi, else 0; None is no bound."""

    __slots__ = ("hi", "index", "lo")

    def __init__(self, index: Poly, lo: Size | None, hi: Size | None) -> None:
        self.index, self.lo, self.hi, self.dtype, self.axes_read = index, lo, hi, "int64", index.axes_read


class Reduce(Atom):
    """A reduction other than a sum: max, min, prod, any, all."""

    __slots__ = ("axes", "body", "op")

    def __init__(self, op: str, axes: tuple[Axis, ...], body: Poly) -> None:
        self.op, self.axes, self.body, self.dtype = op, axes, body, body.dtype
        self.axes_read = body.axes_read.difference(axes)


class Mono(Interned):
    """coef * Sum[axes]( product of atoms )."""

    __slots__ = ("atoms", "axes", "coef")

    def __init__(self, coef: Coef, axes: tuple[Axis, ...], atoms: tuple[Atom, ...]) -> None:
        self.coef, self.axes, self.atoms = coef, axes, atoms
        free = _union(atoms)
        self.axes_read = free.difference(axes) if axes else free


class Poly(Interned):
    """A sum of monomials, sorted, none alike."""

    __slots__ = ("atom", "dtype", "monos")
    atom: Atom | None  # of a Poly that is exactly one atom

    def __init__(self, monos: tuple[Mono, ...], dtype: str) -> None:
        self.monos, self.dtype, self.axes_read = monos, dtype, _union(monos)
        only = monos[0] if len(monos) == 1 else None
        alone = only is not None and len(only.atoms) == 1 and not only.axes and only.coef == 1
        self.atom = only.atoms[0] if only is not None and alone else None

    @property
    def number(self) -> Coef | None:
        """The value of a Poly that is one number (a symbolic size included), else None."""
        if not self.monos:
            return 0
        if len(self.monos) == 1 and not self.monos[0].atoms and not self.monos[0].axes:
            return self.monos[0].coef
        return None


# --- the one object with the same parts

_coords: dict[Axis, Coord] = {}
_reads: dict[tuple[Leaf, tuple[Poly, ...], str], Read] = {}
_fns: dict[tuple[str, tuple[Poly, ...], tuple[Hashable, ...], str], Fn] = {}
_guards: dict[tuple[Poly, Size | None, Size | None], Guard] = {}
_reduces: dict[tuple[str, tuple[Axis, ...], Poly], Reduce] = {}
_monos: dict[tuple[type, Coef, tuple[Axis, ...], tuple[Atom, ...]], Mono] = {}
_polys: dict[tuple[tuple[Mono, ...], str], Poly] = {}
_TABLES: tuple[dict[Any, Any], ...] = (_coords, _reads, _fns, _guards, _reduces, _monos, _polys)
_room = MIN_ROOM = 1 << 16  # terms that a table may hold before those that nothing else holds go

K = TypeVar("K", bound=Hashable)


def _keep(table: dict[K, T], key: K, made: T) -> T:
    """`made`, which is the one object with these parts from now on."""
    made.key = key
    if len(table) > _room:
        sweep()
    table[key] = made
    return made


def sweep() -> None:
    """Forget the terms that nothing but the tables holds. Weak references would do so at once, at a higher price: most
    terms are made again and again."""
    global _room
    held = [[weakref.ref(t) for t in table.values()] for table in _TABLES]
    for table in _TABLES:
        table.clear()
    for table, refs in zip(_TABLES, held, strict=True):
        table.update((t.key, t) for t in (ref() for ref in refs) if t is not None)
    _room = max(MIN_ROOM, *(2 * len(table) for table in _TABLES))


def _text(term: Interned) -> str:
    if isinstance(term, Poly):
        return " + ".join([m.text for m in term.monos]) or "0"
    if isinstance(term, Mono):
        factors = [a.text for a in term.atoms]
        if term.coef != 1 or not factors:
            factors.insert(0, f"({term.coef})" if isinstance(term.coef, sympy.Add) else str(term.coef))
        product = "*".join(factors)
        return f"sum[{_bounds(term.axes)}]({product})" if term.axes else product
    if isinstance(term, Coord):
        return term.axis.name
    if isinstance(term, Read):
        return f"{term.leaf.name}[{','.join([p.text for p in term.index])}]"
    if isinstance(term, Fn):
        label = f"{term.name}<{term.dtype}>" if term.name == "cast" else term.name
        return f"{label}({', '.join([p.text for p in term.args] + [str(a) for a in term.attrs])})"
    if isinstance(term, Guard):
        lo, hi = "" if term.lo is None else f"{term.lo}<=", "" if term.hi is None else f"<{term.hi}"
        return f"[{lo}{term.index.text}{hi}]"
    assert isinstance(term, Reduce)
    return f"{term.op}[{_bounds(term.axes)}]({term.body.text})"


def _bounds(axes: Iterable[Axis]) -> str:
    return ",".join([f"{a.name}<{a.size}" for a in axes])


def _union(items: Iterable[Interned]) -> frozenset[Axis]:
    sets = [t.axes_read for t in items]
    return sets[0] if len(sets) == 1 else frozenset().union(*sets)


def _depth(items: Iterable[Interned]) -> int:
    return max((t.bound_depth for t in items), default=0)


# --- atoms


def coord(ax: Axis) -> Poly:
    """The coordinate along `ax` as an index."""
    if ax.size == 1:
        return number(0)
    return single(_coords.get(ax) or _keep(_coords, ax, Coord(ax)), "int64")


def read(leaf: Leaf, index: Iterable[Poly], dtype: str) -> Poly:
    """leaf[index]."""
    idx = tuple([_index(p) for p in index])
    key = (leaf, idx, dtype)
    return single(_reads.get(key) or _keep(_reads, key, Read(*key)), dtype)


def _index(p: Poly) -> Poly:
    """An index without the casts between integer types, which change no position."""
    atom = p.atom
    while isinstance(atom, Fn) and atom.name == "cast" and "int" in atom.dtype and "int" in atom.args[0].dtype:
        p = atom.args[0]
        atom = p.atom
    return p


def raw_fn(name: str, args: Iterable[Poly], dtype: str, attrs: tuple[Hashable, ...] = ()) -> Poly:
    """name(args) without any rule applied; `ops.fn` is the normalising constructor."""
    key = (name, tuple(args), attrs, dtype)
    return single(_fns.get(key) or _keep(_fns, key, Fn(*key)), dtype)


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

    key = (index, lo, hi)
    return single(_guards.get(key) or _keep(_guards, key, Guard(*key)), dtype)


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
    renamed, order = _bind(bound, (body,))
    inner = substitute(body, renamed)

    key = (op, order, inner)
    return single(_reduces.get(key) or _keep(_reduces, key, Reduce(*key)), body.dtype)


def _is_guarded(body: Poly, ax: Axis) -> bool:
    """Whether pieces along an axis are told apart by guards."""
    return any(isinstance(a, Guard) and ax in a.axes_read for m in body.monos for a in m.atoms)


def single(atom: Atom, dtype: str) -> Poly:
    """The term that is one atom."""
    if dtype != atom.dtype:
        return _poly((_mono(1, (), (atom,)),), dtype)
    known = atom.alone()
    if known is None:
        known = _poly((_mono(1, (), (atom,)),), dtype)
        atom.alone = weakref.ref(known)
    return known


# --- monomials and polynomials


def _mono(coef: Coef, axes: tuple[Axis, ...], atoms: tuple[Atom, ...]) -> Mono:
    """Intern parts that are in normal form already."""
    if isinstance(coef, float) and coef.is_integer() and abs(coef) < 2**53:
        coef = int(coef)  # 1 and 1.0 are one coefficient: the dtype is the polynomial's
    key = (type(coef), coef, axes, atoms)
    return _monos.get(key) or _keep(_monos, key, Mono(coef, axes, atoms))


def _poly(monos: tuple[Mono, ...], dtype: str) -> Poly:
    key = (monos, dtype)
    return _polys.get(key) or _keep(_polys, key, Poly(monos, dtype))


def number(value: Coef, dtype: str = "int64") -> Poly:
    """A constant."""
    if isinstance(value, bool):
        value = int(value)
    return _poly((_mono(value, (), ()),) if value != 0 else (), dtype)


def poly(monos: Iterable[Mono], dtype: str) -> Poly:
    """The sum of `monos`: like ones meet, those that cancel go."""
    collected: dict[tuple[tuple[Axis, ...], tuple[Atom, ...]], tuple[Coef, float]] = {}
    for m in monos:
        key = (m.axes, m.atoms)
        old, scale = collected.get(key, (0, 0.0))
        magnitude = abs(m.coef) if isinstance(m.coef, (int, float)) else 0.0
        collected[key] = (m.coef if old == 0 else old + m.coef, max(scale, magnitude))
    kept = [
        _mono(sizes.size(c) if isinstance(c, sympy.Expr) else c, *key)
        for key, (c, scale) in collected.items()
        # what is left of two floats that cancel is rounding, not meaning
        if c != 0 and not (isinstance(c, float) and abs(c) < 1e-15 * scale)
    ]
    if len(kept) > MAX_MONOS:
        raise TooLarge
    kept = _joined(_whole(kept, dtype), dtype)
    return _poly(tuple(sorted(kept, key=lambda m: (bool(m.atoms), m.text))), dtype)


def _whole(monos: list[Mono], dtype: str) -> list[Mono]:
    """c*(p // c) + p % c -> p: a position that was divided and put together again."""
    single_fns = {m.atoms[0]: m for m in monos if len(m.atoms) == 1 and not m.axes and isinstance(m.atoms[0], Fn)}
    for rest, m in single_fns.items():
        if not (isinstance(rest, Fn) and rest.name == "mod" and "int" in rest.dtype):
            continue
        for quotient, other in single_fns.items():
            if isinstance(quotient, Fn) and quotient.name == "floordiv" and quotient.args == rest.args:
                divisor = rest.args[1].number
                if divisor is not None and other.coef == _times(m.coef, divisor):
                    others = [x for x in monos if x is not m and x is not other]
                    return list(poly([*others, *scale(rest.args[0], m.coef).monos], dtype).monos)
    return monos


def _joined(monos: list[Mono], dtype: str) -> list[Mono]:
    """Neighbouring pieces that do the same become one piece: guards that touch, sums over ranges that touch."""
    if not any(m.axes or any(isinstance(a, Guard) for a in m.atoms) for m in monos):
        return monos
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


def retype(term: Poly, dtype: str) -> Poly:
    """The same monomials under another dtype, where every value is exact in both."""
    return term if term.dtype == dtype else _poly(term.monos, dtype)


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


def monomial(mono: Mono, dtype: str, coef: Coef | None = None) -> Poly:
    """The term that is one monomial, with another coefficient where `coef` is given."""
    return _poly((mono if coef is None else _mono(coef, mono.axes, mono.atoms),), dtype)


def add(*terms: Poly) -> Poly:
    """The sum; dtypes must agree (the lift casts)."""
    return poly((m for t in terms for m in t.monos), terms[0].dtype)


def scale(term: Poly, coef: Coef) -> Poly:
    """coef * term."""
    if coef == 1:
        return term
    return poly((_mono(_times(m.coef, coef), m.axes, m.atoms) for m in term.monos), term.dtype)


def _times(a: Coef, b: Coef) -> Coef:
    product = a * b
    return sizes.size(product) if isinstance(product, sympy.Expr) and not product.has(sympy.Float) else product


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
    coef = _times(a.coef, b.coef)
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
    rest = _cancel(rest)
    return (
        _poly((_mono(coef, (), tuple(sorted(rest, key=lambda a: a.text))),), dtype) if coef != 0 else number(0, dtype)
    )


def _cancel(atoms: list[Atom]) -> list[Atom]:
    """x * reciprocal(x) -> 1."""
    if not any(isinstance(a, Fn) and a.name == "reciprocal" and a.args[0].atom in atoms for a in atoms):
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
    if mono.axes:  # canonical numbers may clash with those that `_bind` hands out below
        own, atoms = _renamed(mono, dtype)
        bound = [*own, *axes]
    for ax in list(bound):
        if not any(ax in a.axes_read for a in atoms):  # a sum of equal things
            coef, bound = _times(coef, ax.size), [b for b in bound if b != ax]
    for ax in bound:
        shrunk = _shrink(ax, atoms) or _pick(ax, atoms)
        if shrunk is not None:
            replacement, keep, new_axis = shrunk
            body = substitute(normal_mono(coef, keep, dtype), {ax: replacement})
            return sum_over(body, [b for b in bound if b != ax] + ([new_axis] if new_axis else []))
    merged = _merge_pair(bound, atoms)
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
    renamed_axes, order = _bind(bound, atoms)
    rename = _Substitution(renamed_axes, None)
    final = sorted(mul_atoms(rename.atom(a, dtype) for a in atoms), key=lambda a: a.text)
    return _poly((_mono(coef, order, tuple(final)),), dtype)


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


def _merge_pair(bound: list[Axis], atoms: list[Atom]) -> tuple[Axis, Axis, Axis] | None:
    """Two axes that are only ever read as outer*size(inner) + inner are one axis."""
    if len(bound) < 2:
        return None
    for outer in bound:
        for inner in bound:
            if outer is not inner and all(read_jointly(outer, inner, a) for a in atoms):
                return outer, inner, axis(sizes.mul(outer.size, inner.size))
    return None


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
        if linear.get(outer, 0) != _times(linear.get(inner, 0), inner.size):
            return False
        others = [
            m
            for m in term.monos
            if not (len(m.atoms) == 1 and isinstance(m.atoms[0], Coord) and m.atoms[0].axis in (outer, inner))
        ]
    else:
        others = list(term.monos)
    return all(read_jointly(outer, inner, a) for m in others for a in m.atoms)


def _bind(bound: list[Axis], terms: Iterable[Interned]) -> tuple[dict[Axis, Poly], tuple[Axis, ...]]:
    """Canonical bound axes: numbered from the deepest one inside, in the order in which the sorted terms read them."""
    items = list(terms)
    ordered = bound_order(bound, items)
    ordered += [a for a in bound if a not in ordered]  # a product over what does not read its axis is a power
    taken = {-a.id for t in items for a in t.axes_read if a not in bound}  # those of sums around this one
    free = (n for n in count(_depth(items) + 1) if n not in taken)
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
    found = re.compile(rf"(?<![\w.])(?:{'|'.join(names)})(?![\w.\[])")  # whole words that are no leaf's name
    return lambda term: found.sub(lambda m: names[m[0]], term.text)


def children(term: Interned) -> tuple[Interned, ...]:
    """The terms directly inside."""
    if isinstance(term, Poly):
        return term.monos
    if isinstance(term, Mono):
        return term.atoms
    if isinstance(term, Read):
        return term.index
    if isinstance(term, Fn):
        return term.args
    if isinstance(term, Guard):
        return (term.index,)
    if isinstance(term, Reduce):
        return (term.body,)
    return ()


def walk(term: Interned) -> Iterator[Interned]:
    """`term` and every term inside it, each once."""
    seen: set[Interned] = set()
    pending = [term]
    while pending:
        item = pending.pop()
        if item not in seen:
            seen.add(item)
            yield item
            pending.extend(reversed(children(item)))


# --- substitution

Rebuild: TypeAlias = Callable[[Atom], "Poly | None"]


def substitute(term: Poly, axes: Mapping[Axis, Poly], atoms: Rebuild | None = None) -> Poly:
    """`term` with axes replaced by indices, and then every read by what `atoms` returns for it (None keeps it)."""
    return _Substitution(axes, atoms).poly(term)


class _Substitution:
    def __init__(self, axes: Mapping[Axis, Poly], atoms: Rebuild | None) -> None:
        self.axes, self.atoms = axes, atoms
        self.memo: dict[Interned, Poly] = {}

    def keeps(self, term: Interned) -> bool:
        """Whether nothing in `term` is replaced, as far as can be seen at once."""
        return self.axes.keys().isdisjoint(term.axes_read) and (self.atoms is None or not term.leaves)

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
        return found if found.dtype == dtype else _poly(found.monos, dtype)

    def build(self, atom: Atom) -> Poly:
        from .rules import fn  # rules build on terms, and substitution must apply them again

        result: Poly
        if self.keeps(atom):
            return single(atom, atom.dtype)
        if isinstance(atom, Coord):
            result = self.axes[atom.axis] if atom.axis in self.axes else coord(atom.axis)
        elif isinstance(atom, Read):
            result = read(atom.leaf, [self.poly(p) for p in atom.index], atom.dtype)
        elif isinstance(atom, Fn):
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


# --- ranges


def value_range(term: Poly) -> tuple[Size | None, Size | None]:
    """The smallest and largest value of an integer index, None where unknown."""
    low: Size | None = 0
    high: Size | None = 0
    for mono in term.monos:
        lo, hi = _mono_range(mono)
        low = None if low is None or lo is None else sizes.add(low, lo)
        high = None if high is None or hi is None else sizes.add(high, hi)
    return low, high


def _mono_range(mono: Mono) -> tuple[Size | None, Size | None]:
    if isinstance(mono.coef, float) or mono.axes:
        return None, None
    if not mono.atoms:
        return mono.coef, mono.coef
    if len(mono.atoms) > 1:
        return None, None
    lo, hi = atom_range(mono.atoms[0])
    if isinstance(mono.coef, int) and mono.coef < 0:
        lo, hi = hi, lo
    elif not sizes.at_least(mono.coef, 0):
        if not sizes.at_least(sizes.size(-mono.coef), 0):
            return None, None
        lo, hi = hi, lo
    return (None if lo is None else sizes.mul(mono.coef, lo), None if hi is None else sizes.mul(mono.coef, hi))


def atom_range(atom: Atom) -> tuple[Size | None, Size | None]:
    """The smallest and largest value of an integer atom, None where unknown."""
    if isinstance(atom, Coord):
        return 0, sizes.size(atom.axis.size - 1)
    if isinstance(atom, Guard):
        return 0, 1
    if (
        isinstance(atom, Fn)
        and atom.name == "mod"
        and atom.args[1].number is not None
        and sizes.at_least(atom.args[1].number, 1)
    ):
        return 0, sizes.size(atom.args[1].number - 1)
    if isinstance(atom, Fn) and atom.name == "floordiv":
        low, high = value_range(atom.args[0])
        divisor = atom.args[1].number
        if isinstance(divisor, int) and divisor > 0:
            return (
                low // divisor if isinstance(low, int) else (0 if low is not None and sizes.at_least(low, 0) else None),
                high // divisor if isinstance(high, int) else None,
            )
    return None, None
