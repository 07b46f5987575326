"""Fused target attention as ONNX nodes: products of a quarter of the concat's width; for `recopt` one node around them.

With ONNX Runtime on one core DIN's unit (80-40-1 over 100 items of 64) is measured in benchmarks/models.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ..fused import Permute, TargetAttention, View
from ..hosts.base import Array, Value
from ..hosts.onnx import OnnxHost
from ..hosts.types.onnx import numpy_dtype
from ..ir.sizes import Size
from .onnx_epilogue import emit, parameters
from .onnx_layout import apply, view
from .onnx_writer import Writer


def target_attention(host: Writer, spec: TargetAttention, target: str) -> Value:
    """Append the nodes of `spec` at the host's insertion point and return its value. Raises LowerError."""
    operands = [view(host, item, spec.name) for item in (spec.q, spec.k, spec.v)]
    weights = [None if 0 in w.shape else _constant(host, spec, w, n) for n, w in enumerate(_turned(host, spec))]
    params = [_constant(host, spec, p, f"p{n}") for n, p in enumerate(spec.params)]
    write = _function if target == "recopt" else _nodes
    return apply(host, write(host, spec, operands, weights, params), spec.steps, spec.name)


def _turned(host: Writer, spec: TargetAttention) -> list[Array | View]:
    """The weights, matrices as [K, N]: a row's own one is made of them, and MatMul takes them so."""

    def turned(w: Array | View) -> Array | View:
        if len(w.shape) < 2:
            return w
        if isinstance(w, np.ndarray):
            return w.T
        if not w.steps and host.is_constant(w.value):
            return host.constant(w.value).T
        return View(w.value, w.shape[::-1], (*w.steps, Permute((1, 0))))

    return [turned(w) for w in spec.weights]


def _constant(host: Writer, spec: TargetAttention, item: Array | View, part: object) -> Value:
    name = f"{spec.name}_{part}"
    if isinstance(item, View):
        return view(host, item, name)
    return host.share_constant(np.ascontiguousarray(item, numpy_dtype(spec.dtype)), name=name)


def _nodes(
    host: Writer | OnnxHost,
    spec: TargetAttention,
    operands: Sequence[Value],
    weights: Sequence[Value | None],
    params: Sequence[Value],
) -> Value:
    q, k, v = operands
    left = list(params)
    *layers, score = (text.strip() for text in spec.text.split(";"))
    items = (*spec.q.shape[:-1], spec.k.shape[-2])  # a history of several rows has fewer

    def call(op: str, args: Sequence[object], shape: tuple[Size, ...], **attributes: object) -> Value:
        return host.call(op, args, attributes, name=spec.name, shape=shape, dtype=spec.dtype)

    def axis(op: str, x: Value, at: int, shape: tuple[Size, ...]) -> Value:
        if host.opset < 13:
            return call(op, [x], shape, axes=[at % max(len(shape), len(shape) + 1)])
        place = host.share_constant(np.array([at], np.int64), name=f"{spec.name}_axis")
        return call(op, [x, place], shape)

    def applied(text: str, h: Value) -> Value:
        count = parameters(text)
        mine, left[:] = left[:count], left[count:]
        return emit(host, text, h, mine, spec.name)

    wq, wk, wp, b1 = weights[:4]
    assert b1 is not None
    width = spec.weights[3].shape[0]
    rows, depth = spec.q.shape[:-1], spec.q.shape[-1]
    own = wk
    if wp is not None:
        own = call("Mul", [axis("Unsqueeze", q, -1, (*rows, depth, 1)), wp], (*rows, depth, width))
        own = own if wk is None else call("Add", [own, wk], (*rows, depth, width))
    h = call("MatMul", [k, own], (*(spec.k.shape[:-1] if wp is None else items), width))
    if wq is None:
        h = call("Add", [h, b1], (*items, width))
    else:
        if len(rows) == 1:
            c = call("Gemm", [q, wq, b1], (*rows, width))
        else:
            c = call("Add", [call("MatMul", [q, wq], (*rows, width)), b1], (*rows, width))
        h = call("Add", [h, axis("Unsqueeze", c, -2, (*rows, 1, width))], (*items, width))
    for n, text in enumerate(layers):
        if n:
            w, b = weights[2 + 2 * n], weights[3 + 2 * n]
            width = spec.weights[3 + 2 * n].shape[0]
            h = call("Add", [call("MatMul", [h, w], (*items, width)), b], (*items, width))
        h = applied(text, h)
    s = applied(score, axis("Squeeze", h, -1, items))
    if spec.softmax:
        s = call("Softmax", [s], items, axis=-1)
    y = call("MatMul", [axis("Unsqueeze", s, -2, (*items[:-1], 1, items[-1])), v], (*rows, 1, spec.v.shape[-1]))
    return axis("Squeeze", y, -2, spec.shape)


def _function(
    host: Writer,
    spec: TargetAttention,
    operands: Sequence[Value],
    weights: Sequence[Value | None],
    params: Sequence[Value],
) -> Value:
    """One node `recopt::TargetAttention_*`; its function is shared by all of its text, rank and dtypes."""
    given = [w for w in weights if w is not None]
    values = [*operands, *given, *params]
    widths = [w is not None for w in weights]
    text = repr((spec.text, spec.softmax, len(spec.shape), widths, [v.dtype for v in values]))
    name = f"TargetAttention_{hashlib.sha1(text.encode()).hexdigest()[:8]}"

    def body(inner: OnnxHost, inputs: list[Value]) -> Value:
        rest = iter(inputs[3:])
        own = [next(rest) if w is not None else None for w in weights]
        return _nodes(inner, spec, inputs[:3], own, list(rest))

    op = host.define(name, [v.dtype or spec.dtype for v in values], body, ["text"])
    return host.call(op, values, {"text": spec.text}, name=spec.name, shape=spec.shape, dtype=spec.dtype)
