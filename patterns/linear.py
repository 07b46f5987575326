"""Linear + bias + activation, in every spelling.

    y[r.., n] = f( sum_k x[r.., k] * W[n, k] + b[n] )

with any batch axes r.. and any pointwise f, per-channel constants in it. What decides is the term: a value that is a
function of one contraction with constant weights, plus constants. Scales, BatchNorm in eval, several biases, split or
sliced sums, column pieces, a bias through a column of ones: all fold into one W and one b, in float64, cast once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recopt.fused import Concat, Linear, View
from recopt.hosts.base import Array, Value
from recopt.ir import sizes
from recopt.ir.normal import substitute
from recopt.ir.rules import FLOATS
from recopt.ir.tensor import Tensor
from recopt.ir.term import Fn, Guard, Leaf, Poly, Read, Reduce, TooLarge, walk
from recopt.lift.base import Lifted
from recopt.match import Match, No, dead_after, fold, is_data
from recopt.recognise import epilogue
from recopt.recognise.contractions import Reach, expand, is_contraction, reach, sources_of
from recopt.recognise.epilogue import H
from recopt.recognise.operands import Operands, operands, stored_as
from recopt.recognise.preactivation import pre_activations
from recopt.recognise.views import regroup

name = "linear"
operator = "recopt::linear"


# --- where to look ---


def roots(lifted: Lifted) -> list[Value]:
    """The values that are pointwise functions of contractions and constants, last first: a longer match is met before
    those inside it. What an operator that is not understood makes of one, and what reads other data too, is among them,
    to be refused."""
    known: dict[Leaf, Reach] = {}
    found = []
    for node in lifted.host.nodes:
        for value in node.outputs:
            mine = reach(lifted, value, known)
            if mine is None:
                if (why := _no_function(lifted, value, known)) is not None:
                    lifted.notes["no function", value] = why
                    found.append(value)
                continue
            known[value] = mine
            if mine.sources and value.dtype in FLOATS:
                found.append(value)
        fused = node.op.startswith("recopt")  # written by an earlier pass
        if node in lifted.opaque and not fused and any(_is_weighed(lifted, v, known) for v in node.inputs):
            found += node.outputs[:1]
    return found[::-1]


def _is_weighed(lifted: Lifted, value: Value, known: Mapping[Leaf, Reach]) -> bool:
    """Whether a value is a function of a product, or what one would sum up: x[b, k] * W[n, k]."""
    if value in known:
        return bool(known[value].sources)
    t = lifted.definition.get(value)
    mono = t.body.monos[0] if t is not None and len(t.body.monos) == 1 else None
    data = [a for a in mono.atoms if is_data(lifted, a)] if mono is not None else []
    return len(data) == 1 and mono is not None and bool(mono.axes_read - data[0].axes_read)


def _no_function(lifted: Lifted, value: Value, known: Mapping[Leaf, Reach]) -> No | None:
    """Why a value that reads a product is no pointwise function of it: a residual, a gate, another product, a sum over
    its rows."""
    t = lifted.definition.get(value)
    if t is None or t.dtype not in FLOATS or lifted.host.is_constant(value):
        return None
    data = sorted(sources_of(lifted, t.body), key=lambda v: lifted.order.get(v, 0))
    products = [v for v in data if v in known and known[v].sources]
    if not products or any(isinstance(a, (Guard, Reduce)) for a in walk(t.body)):
        return None
    if any(m.axes for m in t.body.monos):
        only = t.body.monos[0].atoms[0] if len(t.body.monos) == 1 == len(t.body.monos[0].atoms) else None
        return No("it adds up what the product computes") if isinstance(only, Read) else None
    others = [v for v in data if v not in products] or products[:-1]
    return No("it reads {} beside the product, which is no constant", others[0].name) if others else None


# --- the match ---


def match(lifted: Lifted, root: Value) -> Match | None:
    """`root` as a fused linear. None where it is nothing like one; raises No with the reason where it nearly is."""
    try:
        return _match(lifted, root)
    except TooLarge:
        raise No("the term of {} is too large", root.name) from None


def _match(lifted: Lifted, root: Value) -> Match | None:
    if isinstance(why := lifted.notes.get(("no function", root)), No):
        raise No(*why.args)
    if root.node in lifted.opaque:
        raise No("{} is not understood: {}", root.node.op, lifted.opaque[root.node])
    term = lifted.term[root] if lifted.term[root].body.atom is None else lifted.definition[root]
    if is_contraction(lifted, root):
        term = lifted.term[root]
    whole = expand(lifted, term.body)
    if not is_data(lifted, whole):
        return None
    refused: No | None = None
    for candidate, outer in pre_activations(lifted, whole):
        joined: Match | None = None
        for layout in (True, False):  # seen through layout, then as the graph has it
            try:
                found = operands(lifted, candidate, layout)
                if found is None:
                    return None
                made = _assemble(lifted, root, term, found, outer)
            except No as why:
                refused = refused or why
                continue
            spec = made.spec
            assert isinstance(spec, Linear)
            if spec.epilogue == "h" and len(found.product.monos) == 1 and not found.product.monos[0].axes:
                return None  # a multiplication by constants, which is as good as a product of width one
            if not isinstance(spec.x, Concat):
                return made
            joined = joined or made  # pieces that the graph may hold joined already
        if joined is not None:
            return joined
    inside = sources_of(lifted, whole)
    if not any(is_contraction(lifted, v) for v in inside):
        return None  # nobody takes a scaled column for a linear, nor a gate or a concat
    if refused is None and (len(inside) > 1 or any(isinstance(a, Guard) for m in whole.monos for a in m.atoms)):
        return None
    raise refused or No("{} is no function of one scaled product", root.name)


def _assemble(lifted: Lifted, root: Value, term: Tensor, found: Operands, outer: Poly) -> Match:
    """`root` as `outer` of a product."""

    def per_channel(t: Poly) -> Array:
        if t.axes_read - set(found.columns):
            raise No("the activation's constants vary along a batch axis")
        folded = fold(lifted, Tensor((found.columns,), t))
        _check_division(folded, t)
        return folded

    for part in (found.w, found.b):
        if isinstance(part, np.ndarray):
            _check_division(part, found.product)
    text, params = epilogue.text_of(outer, per_channel)
    if not epilogue.varies(text):
        raise No("the activation is constant")
    product = found.product
    shape = (*(sizes.product(a.size for a in d) for d in found.row_dims), sizes.product(a.size for a in found.columns))
    spec = Linear(
        found.x,
        found.w,
        found.b,
        text,
        tuple(stored_as(p, product.dtype) for p in params),
        shape,
        product.dtype,
        regroup((*found.row_dims, found.columns), term.dims),
        root.name,
    )
    views = found.x.views if isinstance(found.x, Concat) else (found.x,)
    kept = [v.value for v in (*views, found.w, found.b) if isinstance(v, View)]
    return Match(
        name,
        root,
        spec,
        lambda: term.with_body(_meaning(outer, product)),
        dead_after(lifted, root, kept),
        found.sources,
        flops=2.0 * sizes.nominal(sizes.product(shape)) * sizes.nominal(found.w.shape[1]),
    )


def _check_division(folded: Array, term: Poly) -> None:
    """A pre-activation is divided by its factor, as by alpha in alpha*s: not where that is zero."""
    if not np.isfinite(folded).all() and any(isinstance(a, Fn) and a.name == "reciprocal" for a in walk(term)):
        raise No("a constant that it would be divided by is zero")


def _meaning(outer: Poly, product: Poly) -> Poly:
    """The root over what the operator reads."""
    return substitute(outer, {}, lambda a: product if isinstance(a, Read) and a.leaf is H else None)
