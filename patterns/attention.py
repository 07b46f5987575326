"""Attention: an average of values under a softmax of products of queries and keys, in every spelling.

    y[r.., s, e] = sum_t softmax_t( f( sum_d q[r.., s, d] * k[r.., t, d] ) ) * v[r.., t, e]

with any batch axes r.. and any pointwise score f: scales, masks, biases, soft caps. What decides is the term: however
the softmax is spelled and wherever heads, scales and transposes stand, this is what is left. One query a row, as target
attention has, is S = 1; grouped heads are keys that do not vary along an axis of the queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from recopt.epilogue import H, Printer
from recopt.fused import Attention, Heads, View
from recopt.hosts.base import Array, Value
from recopt.ir import sizes
from recopt.ir.tensor import Dim, Tensor
from recopt.ir.term import (
    Atom,
    Axis,
    Fn,
    Guard,
    Interned,
    Poly,
    Read,
    TooLarge,
    mul,
    normal_mono,
    number,
    single,
    substitute,
    sum_over,
    walk,
)
from recopt.lift.base import Lifted
from recopt.match import Match, No, dead_after, fold, is_data
from recopt.operands import stored_as
from recopt.scores import Scores, scores_of
from recopt.softmax import Average, average, averages, softmax, weighs
from recopt.views import Held, held_by, joined, regroup

name = "attention"
operator = "recopt::attention"


# --- where to look ---


def roots(lifted: Lifted) -> list[Value]:
    """The values that average data under a softmax, last first, and what an operator that is not understood makes of
    the weights, to be refused."""
    found: list[Value] = []
    for node in lifted.host.nodes:
        if node in lifted.opaque:  # a dropout in training, say
            found += node.outputs[:1] if any(weighs(lifted, v) for v in node.inputs) else []
        else:
            found += [v for v in node.outputs if averages(lifted, v)]
    return found[::-1]


# --- the match ---


def match(lifted: Lifted, root: Value) -> Match | None:
    """`root` as a fused attention. None where it is nothing like one; raises No with the reason where it nearly is."""
    if root.node in lifted.opaque:
        raise No("{} is not understood: {}", root.node.op, lifted.opaque[root.node])
    refused: No | None = None
    for term in (lifted.definition[root], lifted.local(root)):  # seen through layout, then as the graph has it
        try:
            found = None if term is None else average(lifted, term.body)
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
    place = _Place.of(lifted, root, term, found, scores)
    # in torch layout is a view, which costs nothing: there they are read as they are
    head, heads = place.heads(scores, term) if lifted.host.dialect == "onnx" else ((), None)
    sources = (None, None, None) if heads is None else (heads.q.value, heads.k.value, heads.v.value)
    q = place.view(scores.q, [place.queries, scores.inner], "the queries", sources[0], head)
    k = place.view(scores.k, [found.along, scores.inner], "the keys", sources[1], head)
    v = place.view(place.v, [found.along, place.columns], "the values", sources[2], head)
    printer = _Score(place)
    text = printer.poly(scores.outer)
    dims = (*place.rows, place.queries, place.columns)
    shape = tuple(sizes.product(a.size for a in d) for d in dims)
    spec = Attention(q, k, v, text, tuple(printer.operands), found.zero, shape, term.dtype,
                     regroup(dims, term.dims), root.name, heads)  # fmt: skip
    dead = dead_after(lifted, root, [view.value for view in spec.views])
    shared = [value.name for value in found.opened if value.node not in dead]
    if shared and any(averages(lifted, value) and value.node not in dead for value in found.opened):
        return None  # part of an average that others read whole
    if shared:
        raise No("the weights have another user: {}", ", ".join(sorted(shared)))
    return Match(
        name,
        root,
        spec,
        lambda: term.with_body(_meaning(found, scores, place.v)),
        dead,
        frozenset((root, *scores.products, *(v for v in found.opened if averages(lifted, v)))),
    )


def _meaning(found: Average, scores: Scores, v: Poly) -> Poly:
    """The root over what the operator reads."""
    score = substitute(scores.outer, {}, lambda a: scores.product if isinstance(a, Read) and a.leaf is H else None)
    return sum_over(mul(softmax(score, found.along, found.zero), v), found.along)


# --- operands


@dataclass(frozen=True)
class _Place:
    """Where the operands lie: the root, what the softmax reads, the axes of the result."""

    lifted: Lifted
    root: Value
    products: frozenset[Value]
    v: Poly
    rows: tuple[Dim, ...]
    queries: Dim
    along: Dim
    columns: Dim

    @classmethod
    def of(cls, lifted: Lifted, root: Value, term: Tensor, found: Average, scores: Scores) -> _Place:
        """Row axes, those of queries and those of columns, by which operands read them. Raises No."""
        v = normal_mono(1, found.rest, term.dtype)
        if v.axes_read.isdisjoint(found.along):
            raise No("what is averaged does not vary along the softmax")
        others = scores.q.axes_read | scores.k.axes_read | scores.outer.axes_read
        columns = tuple(a for a in term.axes if a in v.axes_read and a not in others)
        asking = [a for a in term.axes if a not in scores.k.axes_read | v.axes_read]
        queries = tuple(asking[-1:])
        rows = [[a for a in dim if a not in columns and a not in queries] for dim in term.dims]
        operands = [scores.q, scores.k, v, *(t for t in walk(scores.outer) if isinstance(t, (Read, Guard)))]
        known = scores.q.axes_read | scores.k.axes_read | v.axes_read
        if any(a not in known for dim in rows for a in dim):
            raise No("the mask varies along an axis that queries, keys and values do not have")
        return cls(lifted, root, scores.products, v, tuple(d for dim in rows for d in _joint(dim, operands)), queries,
                   found.along, columns)  # fmt: skip

    def view(self, term: Poly, last: Sequence[Dim], what: str, source: Value | None = None, head: Dim = ()) -> View:
        """A host value, or `source`, that holds a term as [rows.., *last], size 1 where it does not vary, with the
        fewest steps; or with the axes of a head before the last ones."""
        own = term.axes_read
        target = [tuple(a for a in dim if a in own) for dim in (*self.rows, *last)]
        if own != {a for dim in target for a in dim}:
            raise No("{} vary along another axis too", what)
        options = []
        for held in self._held(term, [*target, (*head, *target[-1])]):
            if source not in (None, held.value):
                continue
            if self._follows(held.value):
                raise No("{} depend on the scores", what)
            steps = (*held.steps, *regroup(held.dims, target))
            options.append((len(steps), self.lifted.order.get(held.value, 0), held.value, steps))
        if not options:
            raise No("no value of the graph holds {}: {}", what, term.text)
        _, _, value, steps = min(options, key=lambda o: o[:2])
        return View(value, tuple(sizes.product(a.size for a in d) for d in target), steps)

    def heads(self, scores: Scores, term: Tensor) -> tuple[Dim, Heads | None]:
        """The operands with the heads of a batch side by side, where the graph holds them so, and the axes of heads."""
        if len(self.rows) != 2 or len(self.queries) > 1:
            return (), None
        found = []
        for batch, head in (self.rows, self.rows[::-1]):
            count = sizes.product(a.size for a in head)
            if not isinstance(count, int):
                continue
            whole = replace(self, rows=(batch,))
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

    def _held(self, term: Poly, target: Sequence[Dim]) -> Iterator[Held]:
        """The values that hold a term, as it is read and as users see what it reads; those too whose dimensions are as
        `target` joins them."""
        before = self.lifted.order[self.root]
        for body in dict.fromkeys((term, self._seen(term))):
            yield from held_by(self.lifted, body, list(dict.fromkeys(a for dim in target for a in dim)), before)
            joint, apart = joined(body, target)
            if apart:
                for held in held_by(self.lifted, joint, [a for a in joint.axes_read], before):
                    dims = tuple(tuple(b for a in dim for b in apart.get(a, (a,))) for dim in held.dims)
                    yield replace(held, dims=dims)

    def _seen(self, term: Poly) -> Poly:
        """A term with what it reads as users see that, so that other values of the graph may hold it too."""

        def inner(atom: Atom) -> Poly | None:
            known = self.lifted.term.get(atom.leaf) if isinstance(atom, Read) and isinstance(atom.leaf, Value) else None
            return None if known is None or not isinstance(atom, Read) else known.at(list(atom.index))

        return substitute(term, {}, inner)

    def _follows(self, value: Value) -> bool:
        """Whether a value is computed from the product that the scores are made of."""
        first = min((self.lifted.order[p] for p in self.products), default=0)
        pending, seen = [value], {value}
        while pending:
            v = pending.pop()
            if v in self.products:
                return True
            if v.node is not None and self.lifted.order.get(v, 0) > first:
                fresh = [u for u in v.node.inputs if u not in seen]
                seen.update(fresh)
                pending += fresh
        return False


def _joint(dim: Sequence[Axis], operands: Sequence[Interned]) -> list[Dim]:
    """The axes of a dimension, together where every operand reads all or none of them."""
    joint: list[Dim] = []
    for a in dim:
        if joint and all((a in t.axes_read) == (joint[-1][-1] in t.axes_read) for t in operands):
            joint[-1] = (*joint[-1], a)
        else:
            joint.append((a,))
    return joint


# --- the score


class _Score(Printer):
    """Prints a score; what is no number becomes an operand that broadcasts to [rows.., S, T]."""

    def __init__(self, place: _Place) -> None:
        super().__init__(lambda term: np.zeros(0))
        self.place = place
        self.operands: list[Array | View] = []

    def constant(self, term: Poly) -> str:
        """A literal, or an operand that holds the whole term, or an expression of such."""
        if isinstance(term.number, (int, float)):
            return repr(float(term.number))
        if term not in self.known:
            try:
                self.operands.append(self._operand(term))
                self.known[term] = f"p{len(self.operands) - 1}"
            except No as why:
                self.known[term] = self._parts(term, why)
        return self.known[term]

    def _operand(self, term: Poly) -> Array | View:
        place, last = self.place, (self.place.queries, self.place.along)
        if is_data(place.lifted, term):
            return place.view(term, last, "the mask or bias")
        target = tuple(tuple(a for a in dim if a in term.axes_read) for dim in (*place.rows, *last))
        return stored_as(fold(place.lifted, Tensor(target, term)), "float32")

    def _parts(self, term: Poly, why: No) -> str:
        """A term that no value holds, of terms that some do."""
        if term.atom is not None and not isinstance(term.atom, Fn):
            raise why
        texts = []
        for mono in term.monos:
            if mono.axes:
                raise why
            factors = [self.atom(a) if isinstance(a, Fn) else self.constant(single(a, a.dtype)) for a in mono.atoms]
            if mono.coef != 1 or not factors:
                factors.insert(0, self.constant(number(mono.coef, term.dtype)))
            texts.append(" * ".join(factors))
        return f"({' + '.join(texts)})"
