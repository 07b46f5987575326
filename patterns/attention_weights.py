"""Attention weights that something else than an average needs: a softmax of products of each row's query with its keys.

    y[r.., t] = softmax_t( f( sum_d q[r.., d] * k[r.., t, d] ) )

The gates of DIEN's AUGRU, say. What decides is the term, as for `attention`: weights are what would average anything.
Keys that several queries share are left to a product of matrices.
"""

from __future__ import annotations

from recopt.fused import AttentionWeights
from recopt.hosts.base import Value
from recopt.ir import sizes
from recopt.ir.normal import mul, read, substitute, sum_over
from recopt.ir.tensor import Tensor
from recopt.ir.term import Axis, Guard, Read, coord, walk
from recopt.lift.base import Lifted
from recopt.match import Attempts, Match, No, dead_after, understood
from recopt.recognise.epilogue import H
from recopt.recognise.places import Place, ScoreText, together
from recopt.recognise.scores import scores_of
from recopt.recognise.softmax import Average, average, softmax, weighs
from recopt.recognise.views import regroup

name = "attention-weights"
operator = "recopt::attention_weights"


def roots(lifted: Lifted) -> list[Value]:
    """The values that may be the weights of a softmax, last first."""
    return [v for v in understood(lifted) if weighs(lifted, v)][::-1]


def match(lifted: Lifted, root: Value) -> Match | None:
    """`root` as the weights of one query a row. None where it is nothing like it; raises No with the reason where it
    nearly is."""
    attempts = Attempts()
    seen = lifted.definition[root], lifted.local(root)  # through layout, then as the graph has it
    for term in [t for t in seen if t is not None]:
        for along in term.axes[::-1]:
            with attempts:
                found = _averaging(lifted, term, along)
                if found is not None:
                    attempts.refused = None  # of another axis: this is the softmax's
                    made = _match(lifted, root, term, along, found)
                    if made is not None:
                        return made
                    break
    attempts.none()
    return None


def _averaging(lifted: Lifted, term: Tensor, along: Axis) -> Average | None:
    """The average of anything by the term as weights over `along`. None where they are weighed themselves."""
    anything = read(H, (coord(along),), term.dtype)
    found = average(lifted, sum_over(mul(term.body, anything), [along]))
    if found is None or found.coef != 1 or len(found.along) != 1 or len(found.rest) != 1:
        return None
    return found if isinstance(found.rest[0], Read) and found.rest[0].leaf is H else None


def _match(lifted: Lifted, root: Value, term: Tensor, along: Axis, found: Average) -> Match | None:
    scores = scores_of(lifted, found)
    if scores is None:
        return None
    rows = [tuple(a for a in dim if a is not along) for dim in term.dims]
    if any(a not in scores.k.axes_read for dim in rows for a in dim):
        return None
    operands = [scores.q, scores.k, *(t for t in walk(scores.outer) if isinstance(t, (Read, Guard)))]
    place = Place(lifted, root, scores.products, tuple(d for dim in rows for d in together(dim, operands)))
    q = place.view(scores.q, [scores.inner], "the query")
    k = place.view(scores.k, [found.along, scores.inner], "the keys")
    printer = ScoreText(place, (found.along,), compares=True)
    text = printer.poly(scores.outer)
    if {q.value.dtype, k.value.dtype} != {term.dtype}:
        raise No("queries and keys of several float types")
    dims = (*place.rows, found.along)
    shape = tuple(sizes.product(a.size for a in d) for d in dims)
    (own,) = found.along
    whole = [tuple(own if a is along else a for a in dim) for dim in term.dims]
    spec = AttentionWeights(
        q, k, text, tuple(printer.operands), found.unseen, shape, term.dtype, regroup(dims, whole), root.name
    )
    dead = dead_after(lifted, root, [view.value for view in spec.views])

    def means() -> Tensor:
        score = substitute(scores.outer, {}, lambda a: scores.product if isinstance(a, Read) and a.leaf is H else None)
        return term.with_body(substitute(softmax(score, found.along, found.unseen), {own: coord(along)}))

    return Match(name, root, spec, means, dead, frozenset((root, *scores.products)))
