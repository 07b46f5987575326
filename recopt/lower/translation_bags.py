"""`recopt::embedding_bags` over the operators of onnxscript, for torch's ONNX exporter."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ..errors import LowerError
from ..kernels.embedding_bags.layout import Term, parse_layout
from .onnx_programs import written

BOOL = 9  # ONNX's number of the type


def embedding_bags(op: Any, operands: Sequence[Sequence[Any]], layout: str) -> Any:
    """The pieces of `layout` side by side; `operands` are the operator's lists in their order, `op` an opset.
    Raises LowerError for quantised tables, and for the maximum of bags that lie one after the other."""
    lists = dict(zip(("tables", "ids", "offsets", "weights", "dense", "scales"), operands, strict=True))
    parsed = parse_layout(layout)
    read = [lists["dense" if t.pool == "dense" else "tables"][t.source] for t in parsed.terms]
    made = {t: _term(op, t, lists) for t in parsed.terms if not t.every}
    if any(t.wide for t in parsed.terms):
        read += [made[t] for t in parsed.terms if t.wide]
    widest = max(read, key=_width)
    if not made:
        raise LowerError(f"nothing says how many rows there are: {layout}")
    rows = op.Squeeze(op.Shape(next(iter(made.values())), start=0, end=1))
    pieces = []
    for piece in parsed.pieces:
        terms = [_again(op, t, lists, rows) if t.every else made[t] for t in piece]
        if any(_width(x) != _width(widest) for x in read):
            terms = [op.CastLike(term, widest) for term in terms]
        joint = terms[0]
        for term in terms[1:]:
            joint = op.Add(joint, term)
        pieces.append(joint)
    return pieces[0] if len(pieces) == 1 else op.Concat(*pieces, axis=1)


def _term(op: Any, t: Term, lists: dict[str, Sequence[Any]]) -> Any:
    if t.pool == "dense":
        return _matrix(op, lists["dense"][t.source])
    if t.bits or (t.ragged and t.pool == "max"):
        raise LowerError(f"no ONNX operators for {t}")
    table, ids = lists["tables"][t.source], lists["ids"][t.ids]
    if not t.ragged:
        ids = _columns(op, ids, t.first, t.count)
    given = ids
    ids = _computed(op, t.program, given) if t.program else given
    ids = op.Mod(ids, t.modulus) if t.modulus else ids
    ids = op.Add(ids, t.shift) if t.shift else ids
    if t.wraps and (
        t.pad is not None or t.inside
    ):  # a Gather counts from the end by itself, but the pad is the row that it reads
        ids = op.Where(op.Less(ids, op.CastLike(0, ids)), op.Add(ids, table.shape[0]), ids)
    live = _live(op, t, ids, given, lists)
    if t.inside:
        first, end = op.CastLike(0, ids), op.CastLike(table.shape[0], ids)
        there = op.And(op.GreaterOrEqual(ids, first), op.Less(ids, end))
        ids, live = op.Where(there, ids, first), there if live is None else op.And(live, there)
    rows = op.Gather(table, ids, axis=0)
    rows = op.Cast(rows, to=1) if t.wide else rows
    if t.pool == "max":
        return _largest(op, t, rows, None if t.weights is None else _weights(op, t, lists, rows), live)
    kept = _kept(op, t, lists, rows, live)
    if kept is not None:
        rows = op.Mul(rows, op.Unsqueeze(kept, [-1]))
    if t.factor != 1:
        rows = op.Mul(rows, op.CastLike(t.factor, rows))
    if t.pool == "row":
        return op.Reshape(rows, [0, -1])
    if not t.ragged:
        pooled = op.ReduceSum(rows, [1], keepdims=0)
        count = None if kept is None else op.ReduceSum(kept, [1], keepdims=1)
    else:
        member = _member(op, t, ids, lists, rows)
        pooled = op.MatMul(member, rows)
        count = op.ReduceSum(member, [1], keepdims=1) if kept is None else op.MatMul(member, op.Unsqueeze(kept, [-1]))
    if t.div is None:
        return pooled
    low, eps = t.div
    if t.over is not None:
        count = op.Unsqueeze(op.CastLike(lists["offsets"][t.over], rows), [1])
    if count is None:
        return op.Div(pooled, op.CastLike(max(float(t.count), low) + eps, rows))
    count = op.Max(count, op.CastLike(low, count)) if low != float("-inf") else count
    return op.Div(pooled, op.Add(count, op.CastLike(eps, count)) if eps else count)


def _again(op: Any, t: Term, lists: dict[str, Sequence[Any]], rows: Any) -> Any:
    """The rows of a dense tensor, again and again."""
    return op.Gather(_matrix(op, lists["dense"][t.source]), op.Mod(op.Range(0, rows, 1), t.every), axis=0)


def _width(x: Any) -> int:
    """Bytes of a value."""
    return 4 if x.dtype is None else int(x.dtype.itemsize)


def _largest(op: Any, t: Term, rows: Any, weights: Any, live: Any) -> Any:
    """The maximum of the rows that count, another number where none does."""
    rows = rows if weights is None else op.Mul(rows, op.Unsqueeze(weights, [-1]))
    if live is None:
        return op.ReduceMax(rows, [1], keepdims=0)
    counts = op.Unsqueeze(live, [-1])
    lowest = op.CastLike(t.otherwise if t.least else float("-inf"), rows)
    largest = op.ReduceMax(op.Where(counts, rows, lowest), [1], keepdims=0)
    if t.least:
        return largest
    any_counts = op.Cast(op.ReduceMax(op.Cast(counts, to=6), [1], keepdims=0), to=9)
    return op.Where(any_counts, largest, op.CastLike(t.otherwise, rows))


def _kept(op: Any, t: Term, lists: dict[str, Sequence[Any]], rows: Any, live: Any) -> Any:
    """What the rows are multiplied by, [R, L] or [N]; None where it is 1."""
    weights = None if t.weights is None else _weights(op, t, lists, rows)
    if live is None:
        return weights
    factor = op.CastLike(live, rows)
    return factor if weights is None else op.Mul(weights, factor)


def _weights(op: Any, t: Term, lists: dict[str, Sequence[Any]], rows: Any) -> Any:
    assert t.weights is not None
    weights = lists["weights"][t.weights]
    return op.CastLike(weights if t.ragged else _columns(op, weights, t.weights_first, t.count), rows)


def _live(op: Any, t: Term, ids: Any, given: Any, lists: dict[str, Sequence[Any]]) -> Any:
    """Whether ids count, [R, L] or [N]; None where all do."""
    tests = []
    if t.pad is not None:
        tests.append(op.Not(op.Equal(ids, op.CastLike(t.pad, ids))))
    if t.live:
        tests.append(_computed(op, t.live, given))
    if t.mask is not None:
        mask = lists["weights"][t.mask]
        mask = op.Cast(mask if t.ragged else _columns(op, mask, t.mask_first, t.count), to=BOOL)
        tests.append(op.Not(mask) if t.unmask else mask)
    if t.lengths is not None:
        length = lists["offsets"][t.lengths]
        tests.append(op.Less(op.CastLike(list(range(t.count)), length), op.Unsqueeze(length, [1])))
    return functools.reduce(op.And, tests) if tests else None


def _computed(op: Any, text: str, ids: Any) -> Any:
    """An id program as nodes. Raises LowerError for a function that ONNX does not have of signed numbers."""

    def call(name: str, *operands: Any, **attributes: Any) -> Any:
        return getattr(op, name)(*operands, **attributes)

    return written(text, ids, call, lambda number, like: op.CastLike(number, like), {})


def _member(op: Any, t: Term, ids: Any, lists: dict[str, Sequence[Any]], rows: Any) -> Any:
    """1 where an id is in a bag, [R, N]."""
    offsets = lists["offsets"][t.offsets or 0]
    count = op.CastLike(op.Shape(ids), offsets)
    place = op.CastLike(op.Range(0, op.Squeeze(op.Shape(ids)), 1), offsets)
    starts = op.Slice(offsets, [0], [-1], [0]) if t.last else offsets
    ends = op.Slice(offsets, [1], [2**62], [0])
    ends = ends if t.last else op.Concat(ends, count, axis=0)
    begun = op.LessOrEqual(op.Unsqueeze(starts, [1]), place)
    return op.CastLike(op.And(begun, op.Less(place, op.Unsqueeze(ends, [1]))), rows)


def _columns(op: Any, x: Any, first: int, count: int) -> Any:
    return op.Slice(_matrix(op, x), [first], [first + count], [1])


def _matrix(op: Any, x: Any) -> Any:
    return op.Unsqueeze(x, [1]) if len(x.shape) == 1 else x
