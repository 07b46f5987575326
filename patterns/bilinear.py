"""Products of data with projected items, which are not projected: the other side is, the other way round.

    y[r.., t] = sum_d ( sum_h x[r.., t, h] * W[d, h] ) * q[r.., d]
             -> sum_h x[r.., t, h] * ( sum_d q[r.., d] * W[d, h] )

The score of DIEN's attention, say, with a candidate q for the many items of a history. Where that is more work it is
left as it is. What decides is the term, as for every pattern.
"""

from __future__ import annotations

from dataclasses import dataclass

from recopt.fused import Bilinear
from recopt.hosts.base import Value
from recopt.ir import sizes
from recopt.ir.normal import mul, normal_mono, scale, substitute, sum_over
from recopt.ir.rules import FLOATS
from recopt.ir.tensor import Tensor
from recopt.ir.term import Axis, Mono, Poly, Read, axis, coord, single
from recopt.lift.base import Lifted
from recopt.match import Attempts, Match, No, dead_after, fold, is_data, understood
from recopt.recognise.contractions import is_contraction
from recopt.recognise.operands import stored_as
from recopt.recognise.places import Place, together
from recopt.recognise.views import regroup

name = "bilinear"
operator = "recopt::linear"


@dataclass(frozen=True)
class _Found:
    """x over h and more, constant weights over h and d, q over d; `projected` is the value that holds x W, if any."""

    x: Poly
    h: Axis
    weight: Poly
    d: Axis
    q: Poly
    projected: Value | None


# --- where to look ---


def roots(lifted: Lifted) -> list[Value]:
    """The values that sum a projection times other data, or data, weights and other data, last first."""
    found: list[Value] = []
    for value in understood(lifted):
        seen = lifted.definition.get(value)
        if value.dtype in FLOATS and seen is not None and (_sides(lifted, seen) or _thrice(lifted, seen)):
            found.append(value)
    return found[::-1]


def _sides(lifted: Lifted, term: Tensor) -> list[tuple[Read, Mono, Axis]]:
    """The ways to see a term as a sum over one axis of a projection times other data: (projection, whole, axis)."""
    if len(term.body.monos) != 1 or len(term.body.monos[0].axes) != 1:
        return []
    if [is_data(lifted, a) for a in term.body.monos[0].atoms] != [True, True]:
        return []
    opened = _opened(term.body.monos[0], term.dtype)
    if opened is None:
        return []
    mono, (d,) = opened
    reads = [a for a in mono.atoms if isinstance(a, Read) and isinstance(a.leaf, Value)]
    return [(a, mono, d) for a in reads if isinstance(a.leaf, Value) and is_contraction(lifted, a.leaf)]


def _thrice(lifted: Lifted, term: Tensor) -> list[_Found]:
    """The ways to see a term as a sum over two axes of data, weights and other data."""
    if len(term.body.monos) != 1 or len(term.body.monos[0].axes) != 2:
        return []
    if sum(is_data(lifted, a) for a in term.body.monos[0].atoms) != 2:
        return []
    opened = _opened(term.body.monos[0], term.dtype)
    if opened is None:
        return []
    mono, inner = opened
    data = [a for a in mono.atoms if is_data(lifted, a)]
    weight = normal_mono(mono.coef, [a for a in mono.atoms if a not in data], term.dtype)
    if weight.axes_read != {*inner}:
        return []
    found = []
    for x, q in (data, data[::-1]):
        for h, d in (inner, inner[::-1]):
            if h in x.axes_read - q.axes_read and d in q.axes_read - x.axes_read:
                found.append(_Found(single(x, term.dtype), h, weight, d, single(q, term.dtype), None))
    return found


def _opened(mono: Mono, dtype: str) -> tuple[Mono, list[Axis]] | None:
    """What a monomial sums, over axes of its own. None where its coefficient is a size."""
    inner = [axis(a.size) for a in mono.axes]
    within = {a: coord(n) for a, n in zip(mono.axes, inner, strict=True)}
    opened = substitute(normal_mono(mono.coef, mono.atoms, dtype), within).monos
    if len(opened) != 1 or not isinstance(opened[0].coef, (int, float)):
        return None
    return opened[0], inner


# --- the match ---


def match(lifted: Lifted, root: Value) -> Match | None:
    """`root` as a product with q projected. None where it is no such product, or that is no less work; raises No with
    the reason where it nearly is."""
    attempts = Attempts()
    for term in (lifted.definition[root], lifted.local(root)):  # seen through layout, then as the graph has it
        if term is None:
            continue
        with attempts:
            ways = [_projection(lifted, *side) for side in _sides(lifted, term)] + _thrice(lifted, term)
            made = (_match(lifted, root, term, found) for found in ways if found is not None)
            best = next((m for m in made if m is not None), None)
            if best is not None:
                return best
    attempts.none()
    return None


def _projection(lifted: Lifted, read: Read, whole: Mono, d: Axis) -> _Found | None:
    """A projection as one sum of data times constant weights. None for another contraction; raises No for a bias."""
    assert isinstance(read.leaf, Value)
    inside = lifted.definition[read.leaf].at(list(read.index))
    summed = [m for m in inside.monos if m.axes]
    opened = _opened(summed[0], inside.dtype) if len(summed) == 1 and len(summed[0].axes) == 1 else None
    if opened is None:
        return None
    mono, (h,) = opened
    data = [a for a in mono.atoms if is_data(lifted, a)]
    x = normal_mono(1, data, inside.dtype)
    weight = normal_mono(mono.coef, [a for a in mono.atoms if a not in data], inside.dtype)
    if weight.axes_read != {d, h} or d in x.axes_read or h not in x.axes_read:
        return None
    if len(inside.monos) > 1:
        raise No("the projection {} has a bias", read.leaf.name)
    q = normal_mono(1, [a for a in whole.atoms if a is not read], inside.dtype)
    return _Found(x, h, scale(weight, whole.coef), d, q, read.leaf)


def _match(lifted: Lifted, root: Value, term: Tensor, found: _Found) -> Match | None:
    items = tuple(a for a in term.axes if a in found.x.axes_read and a not in found.q.axes_read)
    rows = [tuple(a for a in dim if a not in items) for dim in term.dims]
    if not items or _work(found, term) >= 0:
        return None
    place = Place(lifted, root, frozenset(), tuple(d for dim in rows for d in together(dim, [found.x, found.q])))
    x = place.view(found.x, [items, (found.h,)], "the items")
    q = place.view(found.q, [(found.d,)], "what they are multiplied by")
    if {x.value.dtype, q.value.dtype} != {term.dtype}:
        raise No("operands of several float types")
    w = stored_as(fold(lifted, Tensor(((found.h,), (found.d,)), found.weight)), term.dtype)
    dims = (*place.rows, items)
    shape = tuple(sizes.product(a.size for a in dim) for dim in dims)
    spec = Bilinear(x, q, w, shape, term.dtype, regroup(dims, term.dims), root.name)
    dead = dead_after(lifted, root, [x.value, q.value])
    projected = found.projected
    if projected is not None and projected.node not in dead:
        raise No("the projection {} has another user", projected.name)
    products = {root} if projected is None else {root, projected}
    return Match(name, root, spec, lambda: term.with_body(_meaning(found)), dead, frozenset(products))


def _work(found: _Found, term: Tensor) -> float:
    """Multiplications more, at the nominal batch, once q is projected."""
    h, d = sizes.nominal(found.h.size), sizes.nominal(found.d.size)
    (result, of_x, of_q) = (
        sizes.nominal(sizes.product(a.size for a in axes))
        for axes in (term.axes, found.x.axes_read - {found.h}, found.q.axes_read - {found.d})
    )
    return (of_q * d * h + result * h) - (of_x * h * d + result * d)


def _meaning(found: _Found) -> Poly:
    """The root over what is read."""
    return sum_over(mul(found.x, sum_over(mul(found.weight, found.q), [found.d])), [found.h])
