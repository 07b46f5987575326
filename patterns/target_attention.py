"""Target attention: a history averaged by scores that a small network gives each item beside the target.

    s[r.., t] = network( W1 [q[r..], k[r.., t], q[r..] - k[r.., t], q[r..] * k[r.., t]] + b1 )
    y[r.., e] = sum_t g(s)[r.., t] * v[r.., t, e]           g: any function of s and masks, or the softmax of one

The first layer may read any subset of the target q, the item k, their differences and products, in any order. It splits
into q, k and q * k parts, so that the wide tensor is never made. What decides is the term, as for every pattern; the
layers are those that the linear pattern sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np

from recopt.fused import Linear, TargetAttention, View
from recopt.hosts.base import Array, Value
from recopt.ir import sizes
from recopt.ir.normal import add_all, normal_mono, read, substitute
from recopt.ir.rules import FLOATS
from recopt.ir.sizes import Size
from recopt.ir.tensor import Dim, Tensor
from recopt.ir.term import Atom, Axis, Leaf, Poly, Read, TooLarge, axis, coord, single, walk
from recopt.lift.base import Lifted
from recopt.match import Attempts, Match, No, dead_after, is_data, understood
from recopt.patterns import linear
from recopt.recognise.contractions import is_contraction
from recopt.recognise.epilogue import H
from recopt.recognise.first_layer import added, side_by_side
from recopt.recognise.operands import stored_as
from recopt.recognise.places import Place, ScoreText
from recopt.recognise.scores import by_operands
from recopt.recognise.softmax import average, weighs
from recopt.recognise.views import regroup

name = "target-attention"
operator = "recopt::target_attention"

MAX_LAYERS = 6
MAX_FACTORS = 4  # products of products that are looked through
MAX_ATOMS = 256  # of them multiplied out: a mask, scores and items are some 20; steps of a recurrence grow without end


# --- where to look ---


def roots(lifted: Lifted) -> list[Value]:
    """The values that sum one thing that is data times another, last first."""
    found: list[Value] = []
    for value in understood(lifted):
        seen = lifted.definition.get(value)
        if value.dtype not in FLOATS or seen is None or not any(m.axes for m in seen.body.monos):
            continue  # known without looking at its node again, which is most of what this costs
        if any(_sums_products(lifted, t) for t in _terms(lifted, value)):
            found.append(value)
    return found[::-1]


def _terms(lifted: Lifted, value: Value) -> list[Tensor]:
    """A value seen through layout, as its node has it, and as the multiplication that its node sums has it."""
    key = ("sums", value)
    if key not in lifted.notes:
        known = lifted.definition.get(value)
        opened = None if known is None else _multiplied_out(lifted, known)
        seen = [t for t in (known, lifted.local(value), by_operands(lifted, value), opened) if t is not None]
        lifted.notes[key] = list({(t.dims, t.body): t for t in seen}.values())
    return cast(list[Tensor], lifted.notes[key])


def _multiplied_out(lifted: Lifted, t: Tensor) -> Tensor | None:
    """A sum over products with their factors put in, as of a mask times (scores times items); None where none are."""

    def inner(atom: Atom) -> Poly | None:
        if not isinstance(atom, Read):
            return None
        own = _factors(lifted, atom.leaf)
        return None if own is None else own.at(list(atom.index))

    body = t.body
    try:
        for _ in range(MAX_FACTORS):
            if all(_factors(lifted, leaf) is None for leaf in body.leaves):
                break
            body = substitute(body, {}, inner)
            if sum(1 for _ in walk(body)) > MAX_ATOMS:
                return None
    except TooLarge:  # products of sums, as of layers over products of pairs
        return None
    return None if body is t.body else t.with_body(body)


def _factors(lifted: Lifted, leaf: Leaf) -> Tensor | None:
    """What defines a leaf that is a product; None for other leaves, and for the weights of a softmax, which are seen as
    such."""
    key = ("factors", leaf)
    if key not in lifted.notes:
        t = lifted.definition.get(leaf) if isinstance(leaf, Value) else None
        monos = () if t is None else t.body.monos
        is_product = any(len(m.atoms) > 1 for m in monos) and not any(m.axes for m in monos)
        lifted.notes[key] = t if is_product and not weighs(lifted, cast(Value, leaf)) else None
    return cast("Tensor | None", lifted.notes[key])


def _sums_products(lifted: Lifted, t: Tensor) -> bool:
    for mono in t.body.monos:
        data = [a for a in mono.atoms if is_data(lifted, a)]
        if any(sum(ax in a.axes_read for a in data) > 1 for ax in mono.axes):
            return True
    return False


# --- the match ---


def match(lifted: Lifted, root: Value) -> Match | None:
    """`root` as a fused target attention. None where it is nothing like one; raises No where it nearly is."""
    near: tuple[Linear, ...] = ()
    attempts = Attempts()
    for term in _terms(lifted, root):
        for weights, values, along, softmax in _weighted(lifted, term):
            with attempts:
                found = _network(lifted, weights, along)
                if isinstance(found, _Network):
                    return _match(lifted, root, term, found, values, along, softmax)
                near = near or (() if softmax or found is None else found)
    attempts.none()
    if near:  # a softmax of one is attention, of queries that the model learned
        x = near[0].x
        read = x.value.name if isinstance(x, View) else "a concat"
        raise No("the items are scored by layers whose first reads {}, which is not target and item side by side", read)
    return None


def _weighted(lifted: Lifted, term: Tensor) -> Iterator[tuple[Poly, Poly, Axis, bool]]:
    """The ways to see a term as a sum over one axis of weights times values: (weights, values, axis, softmax)."""
    try:
        softmax = average(lifted, term.body)
    except (No, TooLarge):
        softmax = None
    if softmax is not None:
        if len(softmax.along) == 1 and softmax.coef == 1 and softmax.unseen == "nan":
            yield softmax.score, normal_mono(1, softmax.rest, term.dtype), softmax.along[0], True
        return
    monos = term.body.monos
    if not monos or any(len(m.axes) != 1 or m.axes[0].size != monos[0].axes[0].size for m in monos):
        return
    along = axis(monos[0].axes[0].size)
    summed = [substitute(normal_mono(m.coef, m.atoms, term.dtype), {m.axes[0]: coord(along)}).monos[0] for m in monos]
    for values in summed[0].atoms:
        if isinstance(values, Read) and along in values.axes_read and all(m.atoms.count(values) == 1 for m in summed):
            rest = [normal_mono(m.coef, [a for a in m.atoms if a is not values], term.dtype) for m in summed]
            yield add_all(rest, term.dtype), single(values, values.dtype), along, False


@dataclass(frozen=True)
class _Network:
    """A score as a function `outer` of H, the last of `layers`; the first reads pieces of `q` and `k` over `inner`."""

    outer: Poly
    layers: tuple[Linear, ...]
    q: Poly
    k: Poly
    inner: Axis
    first: tuple[Array | None, Array | None, Array | None]  # Wq, Wk, Wp
    last: Value  # what holds the scores before `outer`


def _match(
    lifted: Lifted, root: Value, term: Tensor, found: _Network, v: Poly, along: Axis, softmax: bool
) -> Match | None:
    others = found.q.axes_read | found.k.axes_read | found.outer.axes_read
    columns = tuple(a for a in term.axes if a in v.axes_read and a not in others)
    rows: tuple[Dim, ...] = tuple((a,) for a in term.axes if a not in columns)
    place = Place(lifted, root, frozenset((found.last,)), rows)
    q = place.view(found.q, [(found.inner,)], "the target")
    k = place.view(found.k, [(along,), (found.inner,)], "the history")
    values = place.view(v, [(along,), columns], "the values")
    if any(a not in found.q.axes_read for dim in rows for a in dim):
        raise No("the target is shared along an axis")
    if {q.value.dtype, k.value.dtype, values.value.dtype} != {term.dtype}:
        raise No("target, history and values of several float types")
    printer = ScoreText(place, [(along,)])
    texts = [layer.epilogue for layer in found.layers] + [printer.poly(found.outer)]
    params = [p for layer in found.layers for p in layer.params] + printer.operands
    dtype = term.dtype
    weights: list[Array | View] = [np.zeros(0, dtype) if w is None else stored_as(w, dtype) for w in found.first]
    for n, layer in enumerate(found.layers):
        bias = np.zeros(int(layer.shape[-1]), dtype) if layer.b is None else layer.b
        weights += [bias] if n == 0 else [layer.w, bias]
    dims = (*rows, columns)
    shape = tuple(sizes.product(a.size for a in d) for d in dims)
    spec = TargetAttention(q, k, values, tuple(weights), "; ".join(texts), tuple(params), softmax, shape, dtype,
                           regroup(dims, term.dims), root.name)  # fmt: skip
    kept = [view.value for view in spec.views]
    dead = dead_after(lifted, root, kept)
    if found.last.node not in dead:
        raise No("the scores {} have another user", found.last.name)
    inside = frozenset(value for node in dead for value in node.outputs if value is not root)
    return Match(name, root, spec, lambda: term, dead, frozenset((root,)), inside=inside)


# --- the network


def _network(lifted: Lifted, weights: Poly, along: Axis) -> _Network | tuple[Linear, ...] | None:
    """Weights as a function of the last layer of a network over a target and the items along an axis; its last layers
    where they are not all."""
    reads: dict[Read, None] = {}
    outer = _outer(lifted, weights, along, reads)
    if len(reads) != 1:
        return None
    (score,) = reads
    assert isinstance(score.leaf, Value)
    held = lifted.term[score.leaf].shape
    rows = score.index[:-1] if held[-1] == 1 else score.index
    if not any(along in index.axes_read for index in rows):
        return None
    layers: list[Linear] = []
    value = score.leaf
    while len(layers) < MAX_LAYERS and value in lifted.definition:
        layer = _layer(lifted, value)
        if layer is None and not layers:  # scores without a dimension for their one column
            layer = _layer(lifted, value, (*held, 1))
        if not layers and layer is not None and layer.shape[-1] != 1:
            return None
        if layer is None:
            summed = added(lifted, value, rows, along, _layer)
            if summed is not None:
                layer, (q, k, inner, parts) = summed
                return _Network(outer, (layer, *layers), q, k, inner, parts, score.leaf)
            break
        layers.insert(0, layer)
        x = layer.x
        if not isinstance(x, View) or x.steps:
            break
        first = side_by_side(lifted, x.value, rows, along, layer)
        if first is not None:
            q, k, inner, parts = first
            return _Network(outer, tuple(layers), q, k, inner, parts, score.leaf)
        value = x.value
    return tuple(layers) or None


def _layer(lifted: Lifted, value: Value, shape: tuple[Size, ...] | None = None) -> Linear | None:
    """The linear that a value is, with nothing moved afterwards, or of a shape that is only regrouped."""
    key = ("layer", value)
    if key not in lifted.notes:
        try:
            found = linear.match(lifted, value) if value in lifted.definition else None  # a table has none
        except No:
            found = None
        lifted.notes[key] = None if found is None else found.spec
    spec = lifted.notes[key]
    if not isinstance(spec, Linear) or isinstance(spec.b, View):
        return None
    return spec if not spec.steps or spec.shape == shape else None


def _outer(lifted: Lifted, term: Poly, along: Axis, reads: dict[Read, None]) -> Poly:
    """`term` over H in place of the one product that it is a function of; what is replaced is added to `reads`."""

    def inner(atom: Atom) -> Poly | None:
        if not isinstance(atom, Read) or not isinstance(atom.leaf, Value) or not _scores(lifted, atom.leaf):
            return None
        if is_contraction(lifted, atom.leaf):
            if along not in atom.axes_read:
                return None
            reads[atom] = None
            return read(H, (), atom.dtype)
        return _outer(lifted, lifted.definition[atom.leaf].at(list(atom.index)), along, reads)

    return substitute(term, {}, inner)


def _scores(lifted: Lifted, value: Value) -> bool:
    """Whether a value is a product with weights, or a pointwise function of one."""

    def find(value: Value) -> bool:
        t = lifted.definition.get(value)
        if t is None or lifted.host.is_constant(value):
            return False
        leaves = [v for v in t.body.leaves if isinstance(v, Value) and v is not value]
        plain = not any(m.axes for m in t.body.monos)
        return is_contraction(lifted, value) or (plain and any(_scores(lifted, v) for v in leaves))

    return lifted.noted("a function of a linear", value, find)
