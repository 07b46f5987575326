"""Terms: what one element of a tensor is, as a polynomial over accesses, in a normal form.

    Poly  = sum of Monos                                      x[i,r]*W[j,r] summed over r, plus b[j]
    Mono  = coef * Sum[axes]( product of atoms )
    Atom  = Coord(axis) | Read(leaf, indices) | Fn(name, args) | Guard(index, lo, hi) | Reduce(op, axes, body)

Indices are Polys too, over axes and, for a lookup, over reads of integer tensors. Guard is 1 where lo <= index < hi and
0 elsewhere, and what it multiplies counts as 0 there whatever it reads: a concat is a sum of guarded pieces, a pad is
one.

Everything is frozen and interned: equal terms are the same object, compare with `is`. `normal.py` has the constructors
that normalise; those here take parts that are in normal form already.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import count
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import sympy

from . import sizes
from .sizes import Size

Coef: TypeAlias = int | float | bool | sympy.Expr


class TooLarge(Exception):
    """A normal form would outgrow its limit; the caller keeps the value as a leaf instead."""


@runtime_checkable
class Leaf(Protocol):
    """What a Read reads: a host value, or anything hashable with a name."""

    @property
    def name(self) -> str: ...


class Axis(NamedTuple):  # hashed a thousand times for each node of a graph: a dataclass would do it in Python
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
            found = frozenset().union(own_leaf, *[t.leaves for t in self.inside()])
        elif name == "bound_depth":
            own = [-a.id for a in self.axes] if isinstance(self, (Mono, Reduce)) else []
            found = max([*own, depth(self.inside())])
        elif name == "reading":  # terms share parts: walked as trees, they are exponentially large
            own_axis = (self.axis,) if isinstance(self, Coord) else ()
            found = tuple(dict.fromkeys(a for part in (own_axis, *[t.reading for t in self.inside()]) for a in part))
        elif name == "alone":
            found = _nothing
        else:
            raise AttributeError(name)
        object.__setattr__(self, name, found)
        return found

    def inside(self) -> tuple[Interned, ...]:
        """The terms directly inside."""
        return ()


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

    def inside(self) -> tuple[Interned, ...]:
        return self.index


class Fn(Atom):
    """A pointwise function that is neither sum nor product; `attrs` are its parameters."""

    __slots__ = ("args", "attrs", "name")

    def __init__(self, name: str, args: tuple[Poly, ...], attrs: tuple[Hashable, ...], dtype: str) -> None:
        self.name, self.args, self.attrs, self.dtype, self.axes_read = name, args, attrs, dtype, _union(args)

    def inside(self) -> tuple[Interned, ...]:
        return self.args


class Guard(Atom):
    """1 where lo <= index < hi, else 0; None is no bound."""

    __slots__ = ("hi", "index", "lo")

    def __init__(self, index: Poly, lo: Size | None, hi: Size | None) -> None:
        self.index, self.lo, self.hi, self.dtype, self.axes_read = index, lo, hi, "int64", index.axes_read

    def inside(self) -> tuple[Interned, ...]:
        return (self.index,)


class Reduce(Atom):
    """A reduction other than a sum: max, min, prod, any, all."""

    __slots__ = ("axes", "body", "op")

    def __init__(self, op: str, axes: tuple[Axis, ...], body: Poly) -> None:
        self.op, self.axes, self.body, self.dtype = op, axes, body, body.dtype
        self.axes_read = body.axes_read.difference(axes)

    def inside(self) -> tuple[Interned, ...]:
        return (self.body,)


class Mono(Interned):
    """coef * Sum[axes]( product of atoms )."""

    __slots__ = ("atoms", "axes", "coef")

    def __init__(self, coef: Coef, axes: tuple[Axis, ...], atoms: tuple[Atom, ...]) -> None:
        self.coef, self.axes, self.atoms = coef, axes, atoms
        free = _union(atoms)
        self.axes_read = free.difference(axes) if axes else free

    def inside(self) -> tuple[Interned, ...]:
        return self.atoms


class Poly(Interned):
    """A sum of monomials, sorted, none alike."""

    __slots__ = ("atom", "dtype", "monos")
    atom: Atom | None  # of a Poly that is exactly one atom

    def __init__(self, monos: tuple[Mono, ...], dtype: str) -> None:
        self.monos, self.dtype, self.axes_read = monos, dtype, _union(monos)
        only = monos[0] if len(monos) == 1 else None
        alone = only is not None and len(only.atoms) == 1 and not only.axes and only.coef == 1
        self.atom = only.atoms[0] if only is not None and alone else None

    def inside(self) -> tuple[Interned, ...]:
        return self.monos

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
_room = MIN_ROOM = 1 << 17  # terms that a table may hold before those that nothing else holds go

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


def depth(items: Iterable[Interned]) -> int:
    return max((t.bound_depth for t in items), default=0)


def walk(term: Interned) -> Iterator[Interned]:
    """`term` and every term inside it, each once."""
    seen: set[Interned] = set()
    pending = [term]
    while pending:
        item = pending.pop()
        if item not in seen:
            seen.add(item)
            yield item
            pending.extend(reversed(item.inside()))


# --- terms of parts that are in normal form already


def raw_mono(coef: Coef, axes: tuple[Axis, ...], atoms: tuple[Atom, ...]) -> Mono:
    """Intern parts that are in normal form already."""
    if isinstance(coef, float) and coef.is_integer() and abs(coef) < 2**53:
        coef = int(coef)  # 1 and 1.0 are one coefficient: the dtype is the polynomial's
    key = (type(coef), coef, axes, atoms)
    return _monos.get(key) or _keep(_monos, key, Mono(coef, axes, atoms))


def raw_poly(monos: tuple[Mono, ...], dtype: str) -> Poly:
    key = (monos, dtype)
    return _polys.get(key) or _keep(_polys, key, Poly(monos, dtype))


def number(value: Coef, dtype: str = "int64") -> Poly:
    """A constant."""
    if isinstance(value, bool):
        value = int(value)
    return raw_poly((raw_mono(value, (), ()),) if value != 0 else (), dtype)


def coord(ax: Axis) -> Poly:
    """The coordinate along `ax` as an index."""
    if ax.size == 1:
        return number(0)
    return single(_coords.get(ax) or _keep(_coords, ax, Coord(ax)), "int64")


def raw_fn(name: str, args: Iterable[Poly], dtype: str, attrs: tuple[Hashable, ...] = ()) -> Poly:
    """name(args) without any rule applied; `ops.fn` is the normalising constructor."""
    key = (name, tuple(args), attrs, dtype)
    return single(_fns.get(key) or _keep(_fns, key, Fn(*key)), dtype)


def raw_read(leaf: Leaf, index: tuple[Poly, ...], dtype: str) -> Poly:
    key = (leaf, index, dtype)
    return single(_reads.get(key) or _keep(_reads, key, Read(*key)), dtype)


def raw_guard(index: Poly, lo: Size | None, hi: Size | None, dtype: str) -> Poly:
    key = (index, lo, hi)
    return single(_guards.get(key) or _keep(_guards, key, Guard(*key)), dtype)


def raw_reduce(op: str, axes: tuple[Axis, ...], body: Poly) -> Poly:
    key = (op, axes, body)
    return single(_reduces.get(key) or _keep(_reduces, key, Reduce(*key)), body.dtype)


def single(atom: Atom, dtype: str) -> Poly:
    """The term that is one atom."""
    if dtype != atom.dtype:
        return raw_poly((raw_mono(1, (), (atom,)),), dtype)
    known = atom.alone()
    if known is None:
        known = raw_poly((raw_mono(1, (), (atom,)),), dtype)
        atom.alone = weakref.ref(known)
    return known


def monomial(mono: Mono, dtype: str, coef: Coef | None = None) -> Poly:
    """The term that is one monomial, with another coefficient where `coef` is given."""
    return raw_poly((mono if coef is None else raw_mono(coef, mono.axes, mono.atoms),), dtype)


def retype(term: Poly, dtype: str) -> Poly:
    """The same monomials under another dtype, where every value is exact in both."""
    return term if term.dtype == dtype else raw_poly(term.monos, dtype)


def times(a: Coef, b: Coef) -> Coef:
    """a * b."""
    product = a * b
    return sizes.size(product) if isinstance(product, sympy.Expr) and not product.has(sympy.Float) else product
