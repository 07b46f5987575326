"""Attention: an average of values under a softmax of products of queries and keys, in every spelling.

    y[r.., s, e] = sum_t softmax_t( f( sum_d q[r.., s, d] * k[r.., t, d] ) ) * v[r.., t, e]

with any batch axes r.. and any pointwise score f: scales, masks, biases, soft caps; or with f itself as the weight, and
no softmax, as HSTU has it. What decides is the term: however
the softmax is spelled and wherever heads, scales and transposes stand, this is what is left. One query a row, as target
attention has, is S = 1; grouped heads are keys that do not vary along an axis of the queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from recopt.fused import Attention, Heads, View
from recopt.hosts.base import Value
from recopt.ir import sizes
from recopt.ir.normal import mul, normal_mono, substitute, sum_over
from recopt.ir.rules import FLOATS
from recopt.ir.tensor import Dim, Tensor
from recopt.ir.term import Axis, Guard, Poly, Read, TooLarge, walk
from recopt.lift.base import Lifted
from recopt.match import Match, No, dead_after
from recopt.recognise.epilogue import H
from recopt.recognise.places import Place, ScoreText, together
from recopt.recognise.scores import Scores, scores_of
from recopt.recognise.softmax import Average, average, averages, softmax, weighs
from recopt.recognise.views import regroup
from recopt.recognise.weights import weighs_by_scores, weighted

name = "attention"
operator = "recopt::attention"


# --- where to look ---


def roots(lifted: Lifted) -> list[Value]:
    """The values that average data under a softmax, last first, and what an operator that is not understood makes of
    the weights, to be refused."""
    found: list[Value] = []
    for node in lifted.host.nodes:
        if node in lifted.opaque and not node.op.startswith("recopt"):  # a dropout in training, say
            found += node.outputs[:1] if any(weighs(lifted, v) for v in node.inputs) else []
        else:
            found += [v for v in node.outputs if averages(lifted, v) or weighs_by_scores(lifted, v)]
    return found[::-1]


# --- the match ---


def match(lifted: Lifted, root: Value) -> Match | None:
    """`root` as a fused attention. None where it is nothing like one; raises No with the reason where it nearly is."""
    if root.node in lifted.opaque:
        raise No("{} is not understood: {}", root.node.op, lifted.opaque[root.node])
    refused: No | None = None
    for term in (lifted.definition[root], lifted.local(root)):  # seen through layout, then as the graph has it
        try:
            found = None if term is None else average(lifted, term.body) or weighted(lifted, term.body)
            if term is not None and found is not None:
                return _match(lifted, root, term, found)
        except TooLarge:
            refused = refused or No("the term of {} is too large", root.name)
        except No as why:
            refused = refused or why
    if refused is not None:
        raise refused
    return None


def _match(lifted: Lifted, root: Value, term: Tensor, found: Average) -> Match | None:
    scores = scores_of(lifted, found)
    if scores is None:
        return None
    if found.coef != 1 and any(averages(lifted, value) for value in found.opened):
        return None  # the average itself is what is fused
    if found.coef != 1:
        raise No("the average is scaled by {}", found.coef)
    axes = _Axes.of(lifted, root, term, found, scores)
    if found.unseen == "scores" and not axes.queries:
        return None  # a sum of the rows of one query, which two products serve
    place = axes.place
    # in torch layout is a view, which costs nothing: there they are read as they are
    head, heads = axes.heads(scores, term) if lifted.host.dialect == "onnx" else ((), None)
    sources = (None, None, None) if heads is None else (heads.q.value, heads.k.value, heads.v.value)
    q = place.view(scores.q, [axes.queries, scores.inner], "the queries", sources[0], head)
    k = place.view(scores.k, [found.along, scores.inner], "the keys", sources[1], head)
    v = place.view(axes.v, [found.along, axes.columns], "the values", sources[2], head)
    printer = ScoreText(place, (axes.queries, axes.along))
    text = printer.poly(scores.outer)
    dims = (*place.rows, axes.queries, axes.columns)
    shape = tuple(sizes.product(a.size for a in d) for d in dims)
    if any(isinstance(p, View) and _is_other_float(p, term.dtype) for p in printer.operands):
        raise No("a mask of another float type than the queries'")
    if {q.value.dtype, k.value.dtype, v.value.dtype} != {term.dtype}:
        raise No("queries, keys and values of several float types")
    spec = Attention(q, k, v, text, tuple(printer.operands), found.unseen, shape, term.dtype,
                     regroup(dims, term.dims), root.name, heads)  # fmt: skip
    dead = dead_after(lifted, root, [view.value for view in spec.views])
    if found.unseen == "scores" and any(value.node not in dead for value in scores.products):
        raise No("the scores have another user")
    shared = [value.name for value in found.opened if value.node not in dead]
    if shared and any(averages(lifted, value) and value.node not in dead for value in found.opened):
        return None  # part of an average that others read whole
    if shared:
        raise No("the weights have another user: {}", ", ".join(sorted(shared)))
    return Match(
        name,
        root,
        spec,
        lambda: term.with_body(_meaning(found, scores, axes.v)),
        dead,
        frozenset((root, *scores.products, *(v for v in found.opened if averages(lifted, v)))),
    )


def _is_other_float(view: View, dtype: str) -> bool:
    return view.value.dtype in FLOATS and view.value.dtype != dtype


def _meaning(found: Average, scores: Scores, v: Poly) -> Poly:
    """The root over what the operator reads."""
    score = substitute(scores.outer, {}, lambda a: scores.product if isinstance(a, Read) and a.leaf is H else None)
    return sum_over(mul(softmax(score, found.along, found.unseen), v), found.along)


# --- operands


@dataclass(frozen=True)
class _Axes:
    """Where the operands lie, what is averaged, and the axes of the result."""

    place: Place
    v: Poly
    queries: Dim
    along: Dim
    columns: Dim

    @classmethod
    def of(cls, lifted: Lifted, root: Value, term: Tensor, found: Average, scores: Scores) -> _Axes:
        """Row axes, those of queries and those of columns, by which operands read them. Raises No."""
        v = normal_mono(1, found.rest, term.dtype)
        if v.axes_read.isdisjoint(found.along):
            raise No("what is averaged does not vary along the softmax")
        others = scores.q.axes_read | scores.k.axes_read | scores.outer.axes_read
        columns = tuple(a for a in term.axes if a in v.axes_read and a not in others)
        asking = [a for a in term.axes if a not in scores.k.axes_read | v.axes_read]
        queries = _queries(asking, scores.q, scores.outer)
        rows = [[a for a in dim if a not in columns and a not in queries] for dim in term.dims]
        operands = [scores.q, scores.k, v, *(t for t in walk(scores.outer) if isinstance(t, (Read, Guard)))]
        known = scores.q.axes_read | scores.k.axes_read | v.axes_read
        if any(a not in known for dim in rows for a in dim):
            raise No("the mask varies along an axis that queries, keys and values do not have")
        dims = tuple(d for dim in rows for d in together(dim, operands))
        return cls(Place(lifted, root, scores.products, dims), v, queries, found.along, columns)

    def heads(self, scores: Scores, term: Tensor) -> tuple[Dim, Heads | None]:
        """The operands with the heads of a batch side by side, where the graph holds them so, and the axes of heads."""
        if len(self.place.rows) != 2 or len(self.queries) > 1:
            return (), None
        found = []
        for batch, head in (self.place.rows, self.place.rows[::-1]):
            count = sizes.product(a.size for a in head)
            if not isinstance(count, int):
                continue
            whole = replace(self.place, rows=(batch,))
            try:
                q = whole.view(scores.q, [self.queries, (*head, *scores.inner)], "the queries")
                k = whole.view(scores.k, [self.along, (*head, *scores.inner)], "the keys")
                v = whole.view(self.v, [self.along, (*head, *self.columns)], "the values")
                steps = regroup((batch, self.queries, (*head, *self.columns)), term.dims)
            except No:
                continue
            widths = [sizes.product(a.size for a in (*head, *last)) for last in (scores.inner, self.columns)]
            if [q.shape[-1], k.shape[-1], v.shape[-1]] == [widths[0], widths[0], widths[1]]:
                found.append((head, Heads(count, q, k, v, steps)))
        return min(found, key=lambda f: f[1].layouts, default=((), None))


def _queries(asking: Sequence[Axis], q: Poly, outer: Poly) -> Dim:
    """The axes of the queries, of those that neither keys nor values have: all of them, heads that share keys too, or
    the one along which a mask varies."""
    reads = {a for t in walk(outer) if isinstance(t, (Read, Guard)) for a in t.axes_read}
    own = [a for a in asking if a in q.axes_read]
    masked = [a for a in asking if a in reads]
    if len(masked) == 1 and masked[0] in own:
        return tuple(masked)
    known = [a for a in own if isinstance(a.size, int)]
    return tuple(known if known and not masked else asking[-1:])
