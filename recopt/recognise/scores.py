"""Attention scores: a term as a function of one product of queries and keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..hosts.base import Value
from ..ir.normal import add_all, mul, normal_mono, read, scale, substitute, sum_over
from ..ir.rules import fn
from ..ir.tensor import Tensor, retyped
from ..ir.term import Atom, Axis, Fn, Mono, Poly, Read, axis, coord, number, single
from ..lift.base import Lifted
from ..match import No, is_data
from .epilogue import H
from .softmax import Average, is_wider


@dataclass(frozen=True)
class Scores:
    """`outer` over H, which is the sum of q * k over `inner`; `products` are the values of the graph that hold such."""

    outer: Poly
    q: Poly
    k: Poly
    inner: tuple[Axis, ...]
    products: frozenset[Value]

    @property
    def product(self) -> Poly:
        """H spelled out."""
        return sum_over(mul(self.q, self.k), self.inner)


def scores_of(lifted: Lifted, found: Average) -> Scores | None:
    """The scores of a softmax as a function of one product: of data, or of keys with queries that the model learned.
    None where there is neither."""
    for multiplies in (_multiplies, _weighs):
        seen: set[Value] = set()
        scores = _Products(set(found.along)).scores(_open(lifted, found.score, seen, multiplies), frozenset(seen))
        if scores is not None:
            return scores if is_data(lifted, scores.k) else None  # else a gate: what it chooses among does not count
    return None


class _Products:
    """Replaces the products in a term by H; all must be the same one."""

    def __init__(self, along: set[Axis]) -> None:
        self.along = along
        self.found: tuple[Poly, Poly, tuple[Axis, ...]] | None = None
        self.key: Poly | None = None

    def scores(self, term: Poly, products: frozenset[Value]) -> Scores | None:
        outer = self.over(term)
        return None if self.found is None else Scores(outer, *self.found, products)

    def over(self, term: Poly) -> Poly:
        """`term` with H in place of every product."""
        parts = [self.product(m, term.dtype) if m.axes else self.factors(m, term.dtype) for m in term.monos]
        return add_all(parts, term.dtype)

    def factors(self, mono: Mono, dtype: str) -> Poly:
        return scale(self.times(mono.atoms, dtype), mono.coef)

    def times(self, atoms: Sequence[Atom], dtype: str) -> Poly:
        parts = [
            fn(a.name, [self.over(x) for x in a.args], a.dtype, a.attrs) if isinstance(a, Fn) else single(a, a.dtype)
            for a in atoms
        ]
        return mul(number(1, dtype), *(retyped(p, dtype) for p in parts))

    def product(self, mono: Mono, dtype: str) -> Poly:
        """coef * outside * sum_d(q * k) as coef * outside * H."""
        inner = tuple(axis(a.size) for a in mono.axes)
        names = {a: coord(n) for a, n in zip(mono.axes, inner, strict=True)}
        atoms = [p for a in mono.atoms if (p := substitute(single(a, a.dtype), names).atom) is not None]
        if len(atoms) < len(mono.atoms):
            raise No("the scores sum {}", mono.text)
        summed = [a for a in atoms if not a.axes_read.isdisjoint(inner)]
        outside = [a for a in atoms if a not in summed]
        keys = [a for a in summed if not a.axes_read.isdisjoint(self.along)]
        queries = [a for a in summed if a not in keys]
        if not keys or not queries:
            raise No("the scores are no product of queries and keys: {}", mono.text)
        q, k = normal_mono(1, queries, dtype), normal_mono(1, keys, dtype)
        key = sum_over(mul(q, k), inner)
        if self.key not in (None, key):
            raise No("the scores add several products of queries and keys")
        if self.found is None:
            self.found, self.key = (q, k, inner), key
        h = read(H, (), dtype)
        return scale(mul(h, self.times(outside, dtype)), mono.coef)


# --- opening

Multiplies = Callable[[Lifted, Mono], bool]


def _open(lifted: Lifted, term: Poly, seen: set[Value], multiplies: Multiplies) -> Poly:
    """`term` with what functions make of a product put in, and the product; widening to compute them is left out."""

    def inner(atom: Atom) -> Poly | None:
        if isinstance(atom, Fn) and atom.name == "cast" and is_wider(atom) and is_data(lifted, atom):
            return retyped(atom.args[0], atom.dtype)
        if not isinstance(atom, Read) or not isinstance(atom.leaf, Value):
            return None
        spelled = _product(lifted, atom.leaf, multiplies)
        if spelled is not None:
            seen.add(atom.leaf)
            return spelled.at(list(atom.index))
        if not _carries(lifted, atom.leaf, multiplies):
            return None
        return _open(lifted, lifted.definition[atom.leaf].at(list(atom.index)), seen, multiplies)

    return substitute(term, {}, inner)


def _product(lifted: Lifted, value: Value, multiplies: Multiplies) -> Tensor | None:
    """The meaning of a value that is a sum of products, in as few products as the graph allows; else None."""
    key = ("product", value, multiplies)
    if key not in lifted.notes:
        lifted.notes[key] = None
        if (t := lifted.definition.get(value)) is not None and any(multiplies(lifted, m) for m in t.body.monos):
            lifted.notes[key] = t if len(t.body.monos) == 1 else by_operands(lifted, value) or t
    found = lifted.notes[key]
    assert found is None or isinstance(found, Tensor)
    return found


def _multiplies(lifted: Lifted, mono: Mono) -> bool:
    """Whether more than one factor that is data reads an axis that is summed."""
    data = [a for a in mono.atoms if is_data(lifted, a)]
    return any(sum(ax in a.axes_read for a in data) > 1 for ax in mono.axes)


def _weighs(lifted: Lifted, mono: Mono) -> bool:
    """Whether data and a weight read an axis that is summed."""
    return any({is_data(lifted, a) for a in mono.atoms if ax in a.axes_read} == {False, True} for ax in mono.axes)


def by_operands(lifted: Lifted, value: Value) -> Tensor | None:
    """The product over the operands of its own node, or of the multiplication that the node sums; numbers that scale an
    operand are seen."""
    t = lifted.local(value)
    if t is None or len(t.body.monos) != 1:
        return None
    data = [a for a in t.body.monos[0].atoms if is_data(lifted, a)]
    body = _spelled_once(lifted, t.body, lambda own: len(data) == 1)
    return t.with_body(_spelled_once(lifted, body, _is_scaled))


def _spelled_once(lifted: Lifted, term: Poly, wanted: Callable[[Mono], bool]) -> Poly:
    """`term` with the data that it reads as the nodes of that make it, where these are one wanted monomial each."""

    def inner(atom: Atom) -> Poly | None:
        own = lifted.local(atom.leaf) if isinstance(atom, Read) and isinstance(atom.leaf, Value) else None
        if own is None or len(own.body.monos) != 1 or not wanted(own.body.monos[0]):
            return None
        assert isinstance(atom, Read)
        return own.at(list(atom.index))

    return substitute(term, {}, inner)


def _is_scaled(mono: Mono) -> bool:
    """Whether a monomial is one read times a number."""
    return not mono.axes and len(mono.atoms) == 1 and isinstance(mono.atoms[0], Read) and mono.coef != 1


def carries(lifted: Lifted, value: Value, itself: bool = False) -> bool:
    """Whether a value is a pointwise function of a product of data; or, where asked, the product `itself`."""
    return _carries(lifted, value, _multiplies) or (itself and _product(lifted, value, _multiplies) is not None)


def _carries(lifted: Lifted, value: Value, multiplies: Multiplies) -> bool:
    """Whether a value is a pointwise function of such a product, and of other things."""

    def find(value: Value) -> bool:
        t = lifted.definition.get(value)
        if t is None or lifted.host.is_constant(value) or any(m.axes for m in t.body.monos):
            return False
        leaves = [v for v in t.body.leaves if isinstance(v, Value) and v is not value]
        return any(_product(lifted, v, multiplies) is not None or _carries(lifted, v, multiplies) for v in leaves)

    return lifted.noted(("carries a product", multiplies), value, find)
