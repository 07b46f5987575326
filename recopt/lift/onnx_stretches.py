"""Bags of lengths that data says, in ONNX loops: slices between two bounds that are read from a tensor.

    ids[offsets[i] : offsets[i + 1]]  ->  a dimension of a size n, which stands for the difference
    sum_l T[ids[offsets[i] + l]], l < n  ->  sum_l [offsets[i] <= l] [l < offsets[i + 1]] T[ids[l]]

The bounds lie in 0..N and go up, as those of nn.EmbeddingBag must. The mean of nothing, which ONNX leaves undefined, is
0 as in nn.EmbeddingBag and in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import sympy

from ..hosts.base import Value
from ..ir import sizes
from ..ir.normal import add as add_terms
from ..ir.normal import mul, normal_mono, reduce, scale, substitute, sum_over
from ..ir.rules import FLOATS, fn
from ..ir.sizes import Size
from ..ir.tensor import Tensor, unravel
from ..ir.tensor import leaf as tensor_leaf
from ..ir.term import (
    Atom,
    Axis,
    Coef,
    Coord,
    Fn,
    Leaf,
    Mono,
    Poly,
    Read,
    Reduce,
    axis,
    coord,
    monomial,
    number,
    retype,
    walk,
)
from .base import Call, Opaque


@dataclass(frozen=True)
class Stretch:
    """Positions from `start` to `end` of a dimension of size `whole`; `count` is their number. With `leaf` they are
    those for which `test` of `place` holds, and what `leaf` holds in their order."""

    start: Poly
    end: Poly
    whole: Size
    count: sympy.Symbol
    leaf: Value | None = None
    test: Poly | None = None
    place: Axis | None = None

    @property
    def span(self) -> int | None:
        """How many positions there are to choose from, where that is a number."""
        difference = add_terms(self.end, scale(self.start, -1)).number
        return difference if self.leaf is not None and isinstance(difference, int) else None

    def axis(self) -> Axis:
        """A new axis along all positions that may be among them."""
        return axis(self.whole if self.span is None else self.span)

    def position(self, along: Axis) -> Poly:
        """A position along such an axis."""
        at = retype(coord(along), self.start.dtype)
        return at if self.span is None else add_terms(self.start, at)

    def tests(self, along: Axis) -> list[Poly]:
        """All hold where a position is one of them."""
        at, found = self.position(along), []
        if self.span is None:
            found = [fn("le", [self.start, at], "bool"), fn("lt", [at, self.end], "bool")]
        if self.test is not None and self.place is not None:
            found.append(substitute(self.test, {self.place: at}))
        return found

    def moved(self, along: Axis) -> Poly:
        """What stands in the place of one among them."""
        at = coord(along)
        return at if self.leaf is not None else add_terms(at, scale(self.start, -1))

    def members(self, along: Axis, dtype: str) -> Poly:
        """1 where a position is one of them, else 0."""
        return mul(*(fn("cast", [test], dtype) for test in self.tests(along)))

    def total(self, dtype: str) -> Poly:
        """How many they are, as a sum."""
        along = self.axis()
        return sum_over(self.members(along, dtype), [along])


@dataclass
class Stretches:
    """Those of one loop, by their bounds."""

    found: dict[tuple[Poly, ...], Stretch] = field(default_factory=dict)

    def part(self, x: Tensor, dim: int, start: Poly, end: Poly) -> Tensor:
        """x[start:end] along one dimension."""
        if (start, end) not in self.found:
            self.found[start, end] = Stretch(start, end, x.shape[dim], sizes.symbol(f"count{axis(1).id}"))
        cut = axis(self.found[start, end].count)
        places = unravel(add_terms(start, retype(coord(cut), start.dtype)), [a.size for a in x.dims[dim]])
        body = substitute(x.body, dict(zip(x.dims[dim], places, strict=True)))
        return Tensor((*x.dims[:dim], (cut,), *x.dims[dim + 1 :]), body)

    def selected(self, leaf: Value, start: Poly, end: Poly, whole: Size, place: Axis, test: Poly) -> Tensor:
        """The positions between two bounds for which a test of `place` holds, as the tensor that `leaf` is."""
        count = sizes.symbol(f"count{axis(1).id}")
        self.found[start, end, test] = Stretch(start, end, whole, count, leaf, test, place)
        return tensor_leaf(leaf, (count,), start.dtype)

    def none(self, condition: Poly) -> Stretch | None:
        """The stretch of which a condition says that it is empty."""
        test = condition.atom
        if not isinstance(test, Fn) or test.name != "eq" or 0 not in [p.number for p in test.args]:
            return None
        return next((s for s in self.found.values() for p in test.args if p.number == s.count), None)

    def between(self, bounds: Iterable[Poly]) -> Stretch | None:
        """The stretch between two bounds, in whatever order they are named."""
        given = set(bounds)
        return next((s for s in self.found.values() if s.leaf is None and {s.start, s.end} == given), None)

    # --- branches

    def unless_empty(self, s: Stretch, c: Call, empty: Tensor, otherwise: Tensor) -> Tensor:
        """Zeros where a stretch is empty, else sums and means over it, which are zeros there too, or a maximum."""
        sums = all(any(a.size == s.count for a in m.axes) for m in otherwise.body.monos)
        most = otherwise.body.atom
        largest = isinstance(most, Reduce) and most.op == "max" and any(a.size == s.count for a in most.axes)
        if not (sums or largest) or empty.shape != otherwise.shape or not _is_zero(c, empty):
            raise Opaque("a branch for empty bags that is no empty sum")
        if not largest:
            return otherwise
        dtype = otherwise.dtype
        some = fn("lt", [number(0, dtype), s.total(dtype)], "bool")
        return otherwise.with_body(fn("where", [some, otherwise.body, number(0, dtype)], dtype))

    def divided(self, span: Poly, quotient: Tensor, whole: Tensor) -> Tensor:
        """x / n where n is above 0, else x."""
        s = next((s for s in self.found.values() if add_terms(s.end, scale(s.start, -1)) is span), None)
        below = fn("reciprocal", [fn("cast", [span], whole.dtype)], whole.dtype)
        if s is None or quotient.body is not mul(whole.body, below):
            raise Opaque("a branch that data decides")
        return whole.with_body(scale(whole.body, 1 / s.count))

    # --- back to tensors of known sizes

    def resolved(self, t: Tensor) -> Tensor:
        """A term without sizes that only the run knows. Raises Opaque where they are in its shape."""
        symbols = {s.count: s for s in self.found.values()}
        if symbols:
            t = t.with_body(substitute(t.body, {}, lambda atom: _largest(atom, symbols)))
        kept = {s.leaf for s in symbols.values() if s.leaf is not None}
        if any(_has(a.size, symbols) for a in t.axes) or any(_has(a.size, symbols) for a in _hidden(t.body)):
            raise Opaque("a slice of a length that data says")
        parts = [self._resolved(m, t.dtype, symbols) for m in t.body.monos]
        t = t.with_body(add_terms(*parts)) if parts else t
        if not kept.isdisjoint(t.body.leaves):
            raise Opaque("positions that a loop keeps, used one by one")
        return t

    def _resolved(self, mono: Mono, dtype: str, symbols: dict[sympy.Symbol, Stretch]) -> Poly:
        if not any(_has(a.size, symbols) for a in mono.axes) and not _has(mono.coef, symbols):
            return monomial(mono, dtype)
        places = {a: symbols[a.size] for a in mono.axes if a.size in symbols}
        named = {a: places[a].axis() if a in places else axis(a.size) for a in mono.axes}
        moved = {a: places[a].moved(n) if a in places else coord(n) for a, n in named.items()}
        factors = [s.members(named[a], dtype) for a, s in places.items()]
        coef: Coef = mono.coef
        for symbol, s in symbols.items():
            if _has(coef, {symbol: s}):
                coef = sizes.size(coef * symbol)
                total = fn("max", [s.total(dtype), number(1, dtype)], dtype)
                factors.append(fn("reciprocal", [total], dtype))
        if _has(coef, symbols) or any(_has(n.size, symbols) for n in named.values()):
            raise Opaque("arithmetic with the length of a bag")
        positions: dict[Leaf, Poly] = {s.leaf: s.position(named[a]) for a, s in places.items() if s.leaf is not None}
        chosen = substitute(normal_mono(1, mono.atoms, dtype), moved, lambda atom: _at(atom, positions))
        product = mul(chosen, *factors)
        return scale(sum_over(product, list(named.values())), coef)


def _largest(atom: Atom, symbols: Mapping[sympy.Symbol, Stretch]) -> Poly | None:
    """max over a stretch -> max_l where(start <= l < end, .., -inf)"""
    if not isinstance(atom, Reduce) or atom.op != "max" or not any(a.size in symbols for a in atom.axes):
        return None
    named = {a: symbols[a.size].axis() if a.size in symbols else axis(a.size) for a in atom.axes}
    moved, live = {}, None
    positions: dict[Leaf, Poly] = {}
    for a, n in named.items():
        moved[a] = coord(n)
        if a.size in symbols:
            s = symbols[a.size]
            moved[a] = s.moved(n)
            if s.leaf is not None:
                positions[s.leaf] = s.position(n)
            for test in s.tests(n):
                live = test if live is None else fn("logical_and", [live, test], "bool")
    assert live is not None
    chosen = substitute(atom.body, moved, lambda inner: _at(inner, positions))
    shown = fn("where", [live, chosen, number(float("-inf"), atom.dtype)], atom.dtype)
    return reduce("max", list(named.values()), shown)


def _at(atom: Atom, positions: Mapping[Leaf, Poly]) -> Poly | None:
    """Where positions that a loop keeps are read along an axis of all positions, the position."""
    if not isinstance(atom, Read) or atom.leaf not in positions:
        return None
    position = positions[atom.leaf]
    return position if atom.index[0].atom in _coords(position) else None


def _coords(position: Poly) -> Sequence[Atom]:
    return [a for m in position.monos for a in m.atoms if isinstance(a, Coord)]


def _has(size: object, symbols: Iterable[sympy.Symbol]) -> bool:
    return isinstance(size, sympy.Expr) and not size.free_symbols.isdisjoint(symbols)


def _hidden(body: Poly) -> list[Axis]:
    """Axes that are bound anywhere but in the sums of the term itself."""
    found: list[Axis] = []
    for mono in body.monos:
        for atom in mono.atoms:
            for inner in walk(atom):
                found += inner.axes if isinstance(inner, (Mono, Reduce)) else ()
    return found


def _is_zero(c: Call, t: Tensor) -> bool:
    """Whether a tensor is zeros, as a number or as a constant of the model."""
    if t.body.number is not None:
        return t.body.number == 0
    read = t.body.atom
    leaf = read.leaf if isinstance(read, Read) else None
    return isinstance(leaf, Value) and c.host.is_constant(leaf) and not c.host.constant(leaf).any()


def reads_data(c: Call, term: Poly) -> bool:
    """Whether a bound is read from an integer tensor."""
    return term.dtype not in FLOATS and any(isinstance(v, Value) and not c.host.is_constant(v) for v in term.leaves)
