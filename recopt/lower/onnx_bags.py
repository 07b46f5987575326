"""Fused embedding bags as ONNX nodes: a Gather and a reduction a bag, one Concat; for `recopt` one node around them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from ..fused import Bag, EmbeddingBags, Reshape, View
from ..hosts.base import Value
from ..hosts.onnx import OnnxHost
from ..ir.sizes import Size, product
from .onnx_layout import apply, view
from .onnx_writer import Writer

# Tables of one width are not stacked under one Gather: with ids that must be refused as before it takes 0.8 to 1.4
# times as long at the nominal batch (benchmarks/merged_tables.py), and every table would be written anew.
POOLS = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax"}


def embedding_bags(host: Writer, spec: EmbeddingBags, target: str) -> Value:
    """Append the nodes of `spec` at the host's insertion point and return its value. Raises LowerError."""
    write = _function if target == "recopt" else _nodes
    return apply(host, write(host, spec), spec.steps, spec.name)


def _nodes(host: Writer, spec: EmbeddingBags) -> Value:
    return _side_by_side(host, spec, _operands(host, spec))


def _function(host: Writer, spec: EmbeddingBags) -> Value:
    """One node `recopt::EmbeddingBags_*`; its function is shared by all that read and pool alike."""
    operands = _operands(host, spec)
    numbers = {v: n for n, v in enumerate(operands)}

    def told(term: Bag | View) -> object:
        if isinstance(term, View):
            return numbers[term]
        read = (term.table, term.ids, term.weights)
        return term.pool, term.count, term.table.shape[1], len(term.ids.shape), [v and numbers[v] for v in read]

    types = [v.dtype or spec.dtype for v in operands.values()]
    text = repr((types, [[told(term) for term in piece] for piece in spec.pieces]))
    name = f"EmbeddingBags_{hashlib.sha1(text.encode()).hexdigest()[:8]}"

    def body(inner: OnnxHost, values: list[Value]) -> Value:
        return _side_by_side(inner, spec, dict(zip(operands, values, strict=True)))

    op = host.define(name, types, body)
    return host.call(op, list(operands.values()), name=spec.name, shape=spec.shape, dtype=spec.dtype)


def _operands(host: Writer, spec: EmbeddingBags) -> dict[View, Value]:
    """What is read, each view once."""
    return {item: view(host, _operand(spec, item), spec.name) for item in dict.fromkeys(spec.views)}


def _operand(spec: EmbeddingBags, item: View) -> View:
    """Ids of single rows lose their last dimension, which a Gather would keep."""
    single = {bag.ids for bag in spec.bags if bag.pool == "row" and bag.count == 1}
    if item not in single:
        return item
    rows = item.shape[:-1]
    kept = item.steps[:-1] if item.steps and isinstance(item.steps[-1], Reshape) else item.steps
    return View(item.value, rows, (*kept, Reshape(rows)))


def _side_by_side(host: Writer | OnnxHost, spec: EmbeddingBags, values: Mapping[View, Value]) -> Value:
    pieces = []
    for piece in spec.pieces:
        terms = [_bag(host, spec, t, values) if isinstance(t, Bag) else values[t] for t in piece]
        joint = terms[0]
        for term in terms[1:]:
            joint = host.call("Add", [joint, term], name=spec.name, shape=joint.shape, dtype=spec.dtype)
        pieces.append(joint)
    if len(pieces) == 1:
        return pieces[0]
    axis = {"axis": len(spec.shape) - 1}
    return host.call("Concat", pieces, axis, name=spec.name, shape=spec.shape, dtype=spec.dtype)


def _bag(host: Writer | OnnxHost, spec: EmbeddingBags, bag: Bag, values: Mapping[View, Value]) -> Value:
    rows, width = bag.ids.shape[:-1], bag.table.shape[1]
    shape: tuple[Size, ...] = (*bag.ids.shape, width) if bag.pool != "row" or bag.count > 1 else (*rows, width)
    operands = [values[bag.table], values[bag.ids]]
    read = host.call("Gather", operands, {"axis": 0}, name=spec.name, shape=shape, dtype=spec.dtype)
    if bag.weights is not None:
        last = host.share_constant(np.array([-1], np.int64), name=f"{spec.name}_last")
        weights = values[bag.weights]
        if len(shape) > len(bag.ids.shape):
            weights = host.call(
                "Unsqueeze", [weights, last], name=spec.name, shape=(*bag.ids.shape, 1), dtype=spec.dtype
            )
        read = host.call("Mul", [read, weights], name=spec.name, shape=shape, dtype=spec.dtype)
    if bag.pool == "row":
        if bag.count == 1:
            return read
        flat = (*rows, product((bag.count, width)))
        return apply(host, read, (Reshape(flat),), spec.name)
    axis = len(rows)
    op = POOLS[bag.pool]
    if host.opset >= 18 or (op == "ReduceSum" and host.opset >= 13):
        axes = [host.share_constant(np.array([axis], np.int64), name=f"{spec.name}_axis")]
        attributes: dict[str, object] = {"keepdims": 0}
    else:
        axes, attributes = [], {"keepdims": 0, "axes": [axis]}
    return host.call(op, [read, *axes], attributes, name=spec.name, shape=(*rows, width), dtype=spec.dtype)
