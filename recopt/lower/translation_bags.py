"""`recopt::embedding_bags` over the operators of onnxscript, for torch's ONNX exporter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import LowerError
from ..kernels.embedding_bags_layout import Term, parse_layout

POOLS = {"sum": "ReduceSum", "max": "ReduceMax"}


def embedding_bags(op: Any, operands: Sequence[Sequence[Any]], layout: str) -> Any:
    """The pieces of `layout` side by side; `operands` are the operator's lists in their order, `op` an opset.
    Raises LowerError for quantised tables, and for the maximum of bags that lie one after the other."""
    lists = dict(zip(("tables", "ids", "offsets", "weights", "dense", "scales"), operands, strict=True))
    pieces = []
    for piece in parse_layout(layout).pieces:
        terms = [_term(op, term, lists) for term in piece]
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
    ids = op.Mod(ids, t.modulus) if t.modulus else ids
    ids = op.Add(ids, t.shift) if t.shift else ids
    rows = op.Gather(table, ids, axis=0)
    kept = _kept(op, t, ids, lists, rows)
    if kept is not None:
        rows = op.Mul(rows, op.Unsqueeze(kept, [-1]))
    if t.pool == "row":
        return op.Reshape(rows, [0, -1])
    if not t.ragged:
        pooled = getattr(op, POOLS[t.pool])(rows, [1], keepdims=0)
        count = None if kept is None else op.ReduceSum(kept, [1], keepdims=1)
    else:
        member = _member(op, t, ids, lists, rows)
        pooled = op.MatMul(member, rows)
        count = op.ReduceSum(member, [1], keepdims=1) if kept is None else op.MatMul(member, op.Unsqueeze(kept, [-1]))
    if t.div is None:
        return pooled
    low, eps = t.div
    if count is None:
        return op.Div(pooled, max(float(t.count), low) + eps)
    count = op.Max(count, op.CastLike(low, count)) if low != float("-inf") else count
    return op.Div(pooled, op.Add(count, eps) if eps else count)


def _kept(op: Any, t: Term, ids: Any, lists: dict[str, Sequence[Any]], rows: Any) -> Any:
    """What the rows are multiplied by, [R, L] or [N]; None where it is 1."""
    kept = None
    if t.weights is not None:
        kept = lists["weights"][t.weights]
        kept = op.CastLike(kept if t.ragged else _columns(op, kept, t.weights_first, t.count), rows)
    tests = []
    if t.pad is not None:
        tests.append(op.Not(op.Equal(ids, op.CastLike(t.pad, ids))))
    if t.lengths is not None:
        length = lists["offsets"][t.lengths]
        tests.append(op.Less(op.CastLike(list(range(t.count)), length), op.Unsqueeze(length, [1])))
    for test in tests:
        factor = op.CastLike(test, rows)
        kept = factor if kept is None else op.Mul(kept, factor)
    return kept


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
