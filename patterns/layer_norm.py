"""Layer normalisation and RMS normalisation, in every spelling.

    y[r.., d] = (x[r.., d] - mean_d x) / sqrt(var_d x + eps) * g[d] + b[d]
    y[r.., d] = x[r.., d] / sqrt(mean_d x^2 + eps) * g[d] + b[d]

The mean of squares less the square of the mean, the mean of squared differences, a variance over n - 1, a reciprocal
square root, a power: all are one term once what lies between x and y is put in, and that term is compared with the one
that the definition gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from recopt.fused import LayerNorm
from recopt.hosts.base import Value
from recopt.ir import ops, sizes
from recopt.ir.normal import add, mul, normal_mono, scale, substitute
from recopt.ir.rules import FLOATS
from recopt.ir.tensor import Tensor
from recopt.ir.term import Atom, Axis, Fn, Mono, Poly, Read, TooLarge, number, single, walk
from recopt.lift.base import Lifted
from recopt.match import Match, No, constant_leaf, dead_after, fold, is_data
from recopt.recognise.operands import stored_as
from recopt.recognise.views import arrange, held_by, regroup

name = "layer-norm"
operator = "recopt::layer_norm"

STEPS = 6  # nodes between the square root and the result
MAX_BETWEEN = 20  # values from what is normalised to the result


# --- where to look ---


def roots(lifted: Lifted) -> list[Value]:
    """The values that are made of a square root of sums, a few steps on, last first."""
    found: dict[Value, int] = {}
    for node in lifted.host.nodes:
        for value in node.outputs if node not in lifted.opaque else ():
            t = lifted.local(value)
            if t is None or value.dtype not in FLOATS:
                continue
            summed = any(m.axes for m in t.body.monos)
            left = 0 if summed else max((found.get(v, 0) - 1 for v in node.inputs), default=0)
            rooted = any(isinstance(a, Fn) and a.name == "sqrt" and is_data(lifted, a) for a in walk(t.body))
            if rooted or left > 0:
                found[value] = STEPS if rooted else left
    return list(found)[::-1]


# --- the match ---


def match(lifted: Lifted, root: Value) -> Match | None:
    """`root` as a normalisation; None where it is none."""
    term = lifted.local(root)
    if term is None:
        return None
    best: tuple[_Found, list[Value]] | None = None
    for x in _candidates(lifted, root):
        between = _between(lifted, x, root)
        try:
            found = None if between is None else _normalised(lifted, term, _over(lifted, between), x)
        except TooLarge:
            continue
        if found is None or between is None:
            continue
        if best is None or found.centred:
            best = found, between
        if found.centred:  # else x may be what a mean was taken off
            break
    return None if best is None else _match(lifted, root, term, best[0], frozenset(best[1][:-1]))


def _candidates(lifted: Lifted, root: Value) -> Iterator[Value]:
    """What the first reductions before `root` read, and what that is a square of; nearest first."""
    found: dict[Value, None] = {}
    pending, seen = [(root, 0)], {root}
    while pending:
        value, depth = pending.pop()
        own = lifted.local(value)
        if own is None or depth > 2 * STEPS:
            continue
        summed = {leaf for m in walk(own.body) if isinstance(m, Mono) and m.axes for leaf in m.leaves}
        for leaf in own.body.leaves:
            if not isinstance(leaf, Value) or lifted.host.is_constant(leaf):
                continue
            if leaf in summed:
                found |= dict.fromkeys([leaf, *_squared(lifted, leaf)])
            if leaf not in seen:
                seen.add(leaf)
                pending.append((leaf, depth + 1))
    yield from sorted(found, key=lambda v: -lifted.order.get(v, 0))


def _squared(lifted: Lifted, value: Value) -> list[Value]:
    """The one value that `value` is a square of, if any."""
    own = lifted.local(value)
    mono = own.body.monos[0] if own is not None and len(own.body.monos) == 1 else None
    if mono is None or mono.axes or len(mono.atoms) != 2 or mono.atoms[0] is not mono.atoms[1]:
        return []
    leaf = mono.atoms[0].leaf if isinstance(mono.atoms[0], Read) else None
    return [leaf] if isinstance(leaf, Value) else []


class _Found:
    """x [.., along], its scale and offset, what is added to the variance, and whether its mean is taken off."""

    def __init__(self, x: Read, along: tuple[Axis, ...], g: Poly, b: Poly, eps: float, centred: bool) -> None:
        self.x, self.along, self.g, self.b, self.eps, self.centred = x, along, g, b, eps, centred


def _normalised(lifted: Lifted, term: Tensor, body: Poly, x: Value) -> _Found | None:
    """`body`, over x and constants, as a normalisation of x along axes of `term`."""
    reads = {a for m in body.monos for a in m.atoms if isinstance(a, Read) and a.leaf is x and not m.axes}
    roots_of = {a for m in body.monos for a in m.atoms if _is_root(a)}
    if len(reads) != 1 or len(roots_of) != 1:
        return None
    (read,), (root,) = reads, roots_of
    along = tuple(a for a in term.axes if a in read.axes_read and a not in root.axes_read)
    if not along or not all(isinstance(a.size, int) for a in along):
        return None
    plain = Tensor(((), *((a,) for a in along)), single(read, read.dtype))
    assert isinstance(root, Fn)
    inner = root.args[0].atom
    assert isinstance(inner, Fn)
    dims = list(range(1, len(along) + 1))
    mean, variance = ops.moments(plain, dims)
    spread, centred = _shape_of(inner.args[0], variance.body), True
    if spread is None:
        spread, centred = _shape_of(inner.args[0], ops.mean(ops.multiply(plain, plain), dims).body), False
    if spread is None:
        return None
    factor, eps = spread
    numerator = add(plain.body, scale(mean.body, -1)) if centred else plain.body
    unit = mul(numerator, single(root, body.dtype))
    mine = [m for m in body.monos if read in m.atoms and root in m.atoms and not m.axes]
    if len(mine) != 1:
        return None
    g = normal_mono(mine[0].coef, [a for a in mine[0].atoms if a not in (read, root)], body.dtype)
    rest = add(body, scale(mul(g, unit), -1))
    if is_data(lifted, rest) or is_data(lifted, g):
        return None
    return _Found(read, along, scale(g, 1 / math.sqrt(factor)), rest, eps / factor, centred)


def _is_root(atom: Atom) -> bool:
    """Whether a factor is 1 / sqrt(..)."""
    inner = atom.args[0].atom if isinstance(atom, Fn) and atom.name == "reciprocal" else None
    return isinstance(inner, Fn) and inner.name == "sqrt"


def _shape_of(spread: Poly, variance: Poly) -> tuple[float, float] | None:
    """A term as factor * variance + eps; None where it is not."""
    numbers = [m.coef for m in spread.monos if not m.atoms and not m.axes]
    eps = numbers[0] if numbers else 0.0
    rest = add(spread, number(-eps, spread.dtype))
    if not rest.monos or not variance.monos or not isinstance(eps, (int, float)):
        return None
    like = next((m for m in rest.monos if m.atoms == variance.monos[0].atoms), None)
    first = variance.monos[0].coef
    if like is None or not isinstance(like.coef, (int, float)) or not isinstance(first, (int, float)):
        return None
    factor = like.coef / first
    return (factor, float(eps)) if factor > 0 and _vanishes(add(rest, scale(variance, -factor)), factor) else None


def _vanishes(term: Poly, factor: float) -> bool:
    """Whether what is left of two equal terms is rounding of their numbers."""
    return all(isinstance(m.coef, (int, float)) and abs(m.coef) < 1e-9 * factor for m in term.monos)


def _between(lifted: Lifted, x: Value, root: Value) -> list[Value] | None:
    """What is computed from x on the way to `root`, which is last; None where `root` reads other data than x, or where
    more lies between than a normalisation has."""
    between: set[Value] = set()
    pending = [root]
    while pending:
        value = pending.pop()
        own = lifted.local(value)
        if own is None or len(between) == MAX_BETWEEN or lifted.order[value] <= lifted.order.get(x, -1):
            return None
        if any(_weighs(lifted, a, m.axes) for m in own.body.monos for a in m.atoms):
            return None  # a product with weights
        between.add(value)
        data = [v for v in own.body.leaves if isinstance(v, Value) and not lifted.host.is_constant(v)]
        pending += [v for v in data if v is not x and v not in between and v not in pending]
    return sorted(between, key=lambda v: lifted.order[v])


def _weighs(lifted: Lifted, atom: Atom, summed: tuple[Axis, ...]) -> bool:
    """Whether weights are read along what is summed: the gain of torch's own normalisation is not."""
    reads = (t for t in walk(single(atom, atom.dtype)) if isinstance(t, Read) and constant_leaf(lifted, t.leaf))
    return any(not read.axes_read.isdisjoint(summed) for read in reads)


def _over(lifted: Lifted, between: list[Value]) -> Poly:
    """The last of some values with the others put in."""
    opened: dict[Value, Tensor] = {}

    def put_in(atom: Atom) -> Poly | None:
        known = opened.get(atom.leaf) if isinstance(atom, Read) and isinstance(atom.leaf, Value) else None
        return None if known is None or not isinstance(atom, Read) else known.at(list(atom.index))

    for value in between:
        own = lifted.local(value)
        assert own is not None
        opened[value] = own.with_body(substitute(own.body, {}, put_in))
    return opened[between[-1]].body


def _match(lifted: Lifted, root: Value, term: Tensor, found: _Found, inside: frozenset[Value]) -> Match:
    rows = [a for a in term.axes if a not in found.along]
    options = []
    for held in held_by(lifted, single(found.x, found.x.dtype), list(term.axes), lifted.order[root]):
        try:
            view, dims, order = arrange(held, set(rows), found.along)
        except No:
            continue
        if order == found.along:
            options.append((len(view.steps), lifted.order.get(held.value, 0), view, dims))
    if not options:
        raise No("no value of the graph holds what is normalised")
    _, _, view, dims = min(options, key=lambda o: o[:2])
    if found.g.axes_read - set(found.along) or found.b.axes_read - set(found.along):
        raise No("its scale varies along a batch axis")
    g, b = (stored_as(fold(lifted, Tensor((found.along,), t)), term.dtype) for t in (found.g, found.b))
    shape = (*(sizes.product(a.size for a in d) for d in dims), sizes.product(a.size for a in found.along))
    steps = regroup((*dims, found.along), term.dims)
    spec = LayerNorm(view, g, b, found.eps, shape, term.dtype, steps, root.name, found.centred)
    return Match(name, root, spec, lambda: term, dead_after(lifted, root, [view.value]), frozenset(), inside=inside)
