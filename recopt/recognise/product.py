"""A pre-activation as a product: contractions of data with constant weights, and a constant bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..hosts.base import Value
from ..ir import sizes
from ..ir.normal import add, add_all, guard, mul, normal_mono, scale, substitute, sum_over
from ..ir.tensor import retyped
from ..ir.term import Axis, Mono, Poly, Read, axis, coord, monomial
from ..lift.base import Lifted
from ..match import No, is_data
from .contractions import unfold, weighs_columns

MAX_COMPOSED = 16  # layers that become one


@dataclass(frozen=True)
class Contraction:
    """sum over `inner` of x * weight."""

    x: Poly
    inner: tuple[Axis, ...]
    weight: Poly


@dataclass(frozen=True)
class Product:
    """The sum of contractions and a bias: y[rows.., columns..]."""

    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    contractions: tuple[Contraction, ...]
    bias: Poly


def product_of(lifted: Lifted, product: Poly) -> Product | None:
    """A pre-activation as contractions with constant weights and a constant bias; None where it has no weights."""
    rows: set[Axis] = set()
    split: list[_Part] = []
    bias: list[Mono] = []
    for mono in product.monos:
        inner = {a: axis(a.size) for a in mono.axes}
        opened = substitute(normal_mono(mono.coef, mono.atoms, product.dtype), {a: coord(n) for a, n in inner.items()})
        (bare,) = opened.monos if opened.monos else (mono,)
        data = [a for a in bare.atoms if is_data(lifted, a)]
        if not data:
            bias.append(mono)
            continue
        x = normal_mono(1, data, product.dtype)
        summed = [a for a in inner.values() if a in x.axes_read]
        others = [a for a in inner.values() if a not in summed]
        weight = sum_over(normal_mono(bare.coef, [a for a in bare.atoms if a not in data], product.dtype), others)
        if len(data) > 1 and not weight.leaves:
            raise No("both operands of the product are computed")
        weighed = summed and weight.leaves
        if weighed or (weight.axes_read and weight.axes_read.isdisjoint(x.axes_read)):
            rows |= x.axes_read - set(summed)
        split.append((mono, x, summed, weight))
    split = [_weighed_by_one(part, split, rows) for part in split]
    alone = not rows and not any(summed for _, _, summed, _ in split)
    if (alone or not any(weight.leaves for _, _, _, weight in split)) and not weighs_columns(
        lifted, [(x, weight) for _, x, _, weight in split]
    ):
        return None
    if alone:
        rows = set().union(*(x.axes_read for _, x, _, _ in split))
    columns = [a for a in ordered(product) if a not in rows]
    for _, x, summed, weight in split:
        if not (summed and weight.leaves) and x.axes_read - set(summed) - rows:
            if summed:
                return None
            raise No("it adds data that no weight contracts")  # else one more input feature: x * W[n, k] at one k
    for _, _, summed, weight in split:
        if weight.axes_read & rows:
            raise No("the weight depends on a batch axis (size {})", next(iter(weight.axes_read & rows)).size)
        if weight.axes_read - set(summed) - set(columns):
            raise No("the weight reads an axis that is not the product's")
    constant = add_all([monomial(m, product.dtype) for m in bias], product.dtype)
    own = set().union(*(weight.axes_read for _, _, _, weight in split))
    widening = [a for a in columns if a not in own]
    if widening:
        raise No("a bias of higher rank widens the output along an axis of size {}", widening[0].size)
    if constant.axes_read & rows:
        raise No("the bias varies along a batch axis (size {})", next(iter(constant.axes_read & rows)).size)
    parts = tuple(Contraction(x, tuple(summed), weight) for _, x, summed, weight in split)
    return Product(tuple(a for a in ordered(product) if a in rows), tuple(columns), parts, constant)


_Part = tuple[Mono, Poly, list[Axis], Poly]


def _weighed_by_one(part: _Part, parts: Sequence[_Part], rows: set[Axis]) -> _Part:
    """x[r, n] beside sum_k x[r, k] * W[k, n] as sum_k x[r, k] * [k = n]; any other part as it is."""
    mono, x, summed, weight = part
    own = x.axes_read - rows
    if summed or len(own) != 1 or not rows:
        return part
    (column,) = own
    for _, theirs, inner, _ in parts:
        if len(inner) == 1 and inner[0].size == column.size and substitute(x, {column: coord(inner[0])}) is theirs:
            k = axis(column.size)
            equal = retyped(guard(add(coord(k), scale(coord(column), -1)), 0, 1), x.dtype)
            at_k = substitute(weight, {column: coord(k)})
            return mono, substitute(x, {column: coord(k)}), [k], mul(at_k, equal)
    return part


def ordered(term: Poly) -> list[Axis]:
    return sorted(term.axes_read, key=lambda a: a.id)


def composed(lifted: Lifted, found: Product, product: Poly) -> tuple[Product, Poly]:
    """Products with nothing between them as one, where that is less work: (x A) B -> x (A B). At most so many, since a
    weight that is the product of all before it takes work that grows faster than the chain."""
    for _ in range(MAX_COMPOSED):
        if not all(isinstance(p.x.atom, Read) for p in found.contractions):  # products of data stay products of data
            return found, product
        deeper = unfold(lifted, product, lifted.definition.get)
        if deeper is product:
            return found, product
        try:
            whole = product_of(lifted, deeper)
        except No:
            return found, product
        inner = {p.x.atom.leaf for p in found.contractions if isinstance(p.x.atom, Read)}
        layers = [lifted.definition[v].body for v in inner if isinstance(v, Value) and v in lifted.definition]
        axes = [_weight_axes(lifted, m) for body in layers for m in body.monos]
        before = _work(lifted, found) + sum(sizes.nominal(sizes.product(a.size for a in own)) for own in axes)
        if whole is None or _work(lifted, whole) > before:
            return found, product
        found, product = whole, deeper
    return found, product


def _work(lifted: Lifted, found: Product) -> float:
    """Multiplications a row. Contractions of one value are made at once, each of its columns read once."""
    widths: dict[object, list[float]] = {}
    for part in found.contractions:
        atom = part.x.atom
        key = atom.leaf if isinstance(atom, Read) else part.x
        widths.setdefault(key, []).append(sizes.nominal(sizes.product(a.size for a in part.inner)))
    rows = set(found.rows)
    total = 0.0
    for leaf, own in widths.items():
        reads = [p.x.atom for p in found.contractions if isinstance(p.x.atom, Read) and p.x.atom.leaf is leaf]
        whole = [
            sizes.nominal(
                sizes.product(
                    e for e, p in zip(lifted.term[leaf].shape, a.index, strict=True) if not p.axes_read & rows
                )
            )
            for a in reads
            if isinstance(leaf, Value)
        ]
        total += min([sum(own), *whole])
    return total * sizes.nominal(sizes.product(a.size for a in found.columns))


def _weight_axes(lifted: Lifted, mono: Mono) -> set[Axis]:
    return set().union(*(a.axes_read for a in mono.atoms if not is_data(lifted, a)))
