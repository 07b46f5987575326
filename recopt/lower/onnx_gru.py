"""Fused recurrences as ONNX nodes: the standard GRU where no gate is added, else steps one after the other with the
products of their inputs made at once; for `recopt` one node around these."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ..fused import Gru, Permute, Reshape, Step, View
from ..hosts.base import Array, Value
from ..hosts.onnx import OnnxHost
from ..hosts.types.onnx import element_code, numpy_dtype
from ..ir import sizes
from ..ir.sizes import Size
from .onnx_epilogue import emit
from .onnx_layout import apply, runtime_size, view
from .onnx_writer import Writer

STANDARD = {"float32", "float64"}  # what ONNX Runtime's GRU takes


def gru(host: Writer, spec: Gru, target: str) -> Value:
    """Append the nodes of `spec` at the host's insertion point and return its value. Raises LowerError."""
    h0 = None if spec.h0 is None else _first_state(host, spec, spec.h0)
    if spec.plain and spec.dtype in STANDARD:
        return apply(host, _standard(host, spec, h0), spec.steps, spec.name)
    x = view(host, spec.x, spec.name)
    parts = {"wi": 1, "wh": 1, "bi": 0, "bh": 0}  # matrices as MatMul takes them, [K, H] a gate
    weights = [_constant(host, spec, w, f"{n}{g}") for n in parts for g, w in enumerate(_gates(spec, n))]
    gates = [_real(host, spec, _constant(host, spec, g, f"g{n}")) for n, g in enumerate(spec.gates)]
    write = _function if target == "recopt" else _steps
    return apply(host, write(host, spec, x, h0, weights, gates), spec.steps, spec.name)


def _gates(spec: Gru, part: str) -> list[Array | View]:
    item = getattr(spec, part)
    assert isinstance(item, np.ndarray)
    return [np.ascontiguousarray(w.T) for w in np.split(item, 3)]


def _constant(host: Writer, spec: Gru, item: Array | View, part: str) -> Value:
    if isinstance(item, View):
        return view(host, item, f"{spec.name}_{part}")
    return host.share_constant(np.asarray(item, numpy_dtype(spec.dtype)), name=f"{spec.name}_{part}")


def _real(host: Writer, spec: Gru, gate: Value) -> Value:
    """A gate that positions are compared with, as a length is, in their dtype."""
    if gate.dtype is None or "int" not in gate.dtype:
        return gate
    to = {"to": element_code(spec.dtype)}
    return host.call("Cast", [gate], to, name=spec.name, shape=gate.shape, dtype=spec.dtype)


def _first_state(host: Writer, spec: Gru, item: Array | View) -> Value:
    """h0 as [B, H]."""
    batch, hidden = spec.shape[0], spec.shape[-1]
    value = _constant(host, spec, item, "h0")
    if item.shape[0] == batch:
        return value
    rows = runtime_size(host, batch, view(host, spec.x, spec.name), spec.name)
    width = runtime_size(host, hidden, value, spec.name)
    shape = host.call("Concat", [rows, width], {"axis": 0}, name=f"{spec.name}_shape", shape=(2,), dtype="int64")
    return host.call("Expand", [value, shape], name=f"{spec.name}_h0", shape=(batch, hidden), dtype=spec.dtype)


# --- one operator


def _standard(host: Writer, spec: Gru, h0: Value | None) -> Value:
    """`GRU`, whose gates are in the order z, r, n and whose sequences are [T, B, ..]."""
    batch, steps, hidden = spec.shape[0], spec.x.shape[1], spec.shape[-1]
    x = apply(host, spec.x.value, _turned(spec.x), spec.name)

    def stored(item: Array | View, part: str) -> Value:
        assert isinstance(item, np.ndarray)
        r, z, n = np.split(item, 3)
        return _constant(host, spec, np.concatenate([z, r, n])[None], part)

    biases = []
    for item in (spec.bi, spec.bh):
        assert isinstance(item, np.ndarray)
        r, z, n = np.split(item, 3)
        biases += [z, r, n]
    operands: list[Value | None] = [x, stored(spec.wi, "wi"), stored(spec.wh, "wh"),
                                    _constant(host, spec, np.concatenate(biases)[None], "b")]  # fmt: skip
    if h0 is not None:
        operands += [None, apply(host, h0, (Reshape((1, batch, hidden)),), spec.name)]
    attributes = {"hidden_size": hidden, "linear_before_reset": int(spec.after)}
    shape: tuple[Size, ...] = (steps, 1, batch, hidden)
    y = host.call("GRU", operands, attributes, name=spec.name, shape=shape, dtype=spec.dtype)
    if spec.last:
        at = host.share_constant(np.asarray(-1, np.int64), name=f"{spec.name}_last")
        end = host.call("Gather", [y, at], {"axis": 0}, name=spec.name, shape=shape[1:], dtype=spec.dtype)
        return apply(host, end, (Reshape(spec.shape),), spec.name)
    return apply(host, y, (Permute((2, 0, 1, 3)), Reshape((batch, steps, hidden))), spec.name)


def _turned(x: View) -> tuple[Step, ...]:
    """The steps to [T, B, K]."""
    last = x.steps[-1] if x.steps else None
    if isinstance(last, Permute):
        first, second, third = last.perm
        return (*x.steps[:-1], Permute((second, first, third)))
    return (*x.steps, Permute((1, 0, 2)))


# --- step by step


def _steps(
    host: Writer | OnnxHost, spec: Gru, x: Value, h0: Value | None, weights: Sequence[Value], gates: Sequence[Value]
) -> Value:
    """All states, of x [B, T, K], weights r, z, n of each part and gates that broadcast to [B, T]."""
    batch, steps, hidden = spec.shape[0], spec.x.shape[1], spec.shape[-1]
    assert isinstance(steps, int)
    wi, wh, bi, bh = (weights[n : n + 3] for n in range(0, 12, 3))

    def call(op: str, args: Sequence[object], shape: tuple[Size, ...] = (batch, hidden), **attributes: object) -> Value:
        return host.call(op, args, attributes, name=spec.name, shape=shape, dtype=spec.dtype)

    def at(value: Value, step: int, shape: tuple[Size, ...]) -> Value:
        index = host.share_constant(np.asarray(step, np.int64), name=f"{spec.name}_t")
        return host.call("Gather", [value, index], {"axis": 1}, name=spec.name, shape=shape, dtype=value.dtype)

    def column(value: Value, step: int, wide: bool) -> Value:
        """One column of a gate, [B, 1]."""
        index = host.share_constant(np.asarray([step if wide else 0], np.int64), name=f"{spec.name}_t")
        shape: tuple[Size, ...] = (batch, 1)
        return host.call("Gather", [value, index], {"axis": 1}, name=spec.name, shape=shape, dtype=value.dtype)

    whole: tuple[Size, ...] = (batch, steps, hidden)
    flat = apply(host, x, (Reshape((sizes.product((batch, steps)), spec.x.shape[2])),), spec.name)
    inputs = []
    for gate, (w, b, c) in enumerate(zip(wi, bi, bh, strict=True)):
        offset = b if spec.after and gate == 2 else call("Add", [b, c], (hidden,))
        product = call("Gemm", [flat, w, offset], (sizes.product((batch, steps)), hidden))
        inputs.append(apply(host, product, (Reshape(whole),), spec.name))
    h, states = h0, []
    for t in range(steps):
        r, z, n = (at(value, t, (batch, hidden)) for value in inputs)
        if h is not None:
            r, z = (call("Gemm", [h, w, c]) for w, c in zip(wh[:2], (r, z), strict=True))
        r = call("Sigmoid", [r])
        now = [column(g, t, s.shape[1] != 1) for g, s in zip(gates, spec.gates, strict=True)]
        z = emit(host, spec.keep, z, now, spec.name)
        if spec.after:
            n = call("Add", [n, call("Mul", [r, bh[2] if h is None else call("Gemm", [h, wh[2], bh[2]])])])
        elif h is not None:
            n = call("Gemm", [call("Mul", [r, h]), wh[2], n])
        n = call("Tanh", [n])
        kept = call("Mul", [z, n if h is None else call("Sub", [h, n])])
        h = call("Sub" if h is None else "Add", [n, kept])
        if not spec.last:
            states.append(apply(host, h, (Reshape((batch, 1, hidden)),), spec.name))
    if spec.last:
        assert h is not None
        return h
    return call("Concat", states, whole, axis=1)


def _function(
    host: Writer, spec: Gru, x: Value, h0: Value | None, weights: Sequence[Value], gates: Sequence[Value]
) -> Value:
    """One node `recopt::Gru_*`; its function is shared by all of its length, gates and dtypes."""
    operands = [x, *([] if h0 is None else [h0]), *weights, *gates]
    wide = [g.shape[1] != 1 for g in spec.gates]
    text = repr((spec.keep, spec.after, spec.x.shape[1], spec.last, h0 is None, wide, [v.dtype for v in operands]))
    name = f"Gru_{hashlib.sha1(text.encode()).hexdigest()[:8]}"

    def body(inner: OnnxHost, values: list[Value]) -> Value:
        x, *rest = values
        first = rest.pop(0) if h0 is not None else None
        return _steps(inner, spec, x, first, rest[:12], rest[12:])

    op = host.define(name, [v.dtype or spec.dtype for v in operands], body, ["keep"])
    return host.call(op, operands, {"keep": spec.keep}, name=spec.name, shape=spec.shape, dtype=spec.dtype)
