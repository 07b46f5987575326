"""Fused recurrences as ONNX nodes: the standard GRU where no gate is added, else steps one after the other; for
`recopt` one node around these."""

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
    if is_standard(spec):
        h0 = None if spec.h0 is None else _first_state(host, spec, spec.h0)
        return apply(host, _standard(host, spec, h0), spec.steps, spec.name)
    hidden = spec.shape[-1]
    h0 = _first_state(host, spec, np.zeros((1, int(hidden))) if spec.h0 is None else spec.h0)
    x = view(host, spec.x, spec.name)
    weights = [_constant(host, spec, w, f"w{n}") for n, w in enumerate(_weights(spec))]
    gates = [_real(host, spec, _constant(host, spec, g, f"g{n}")) for n, g in enumerate(spec.gates)]
    write = _function if target == "recopt" else _steps
    return apply(host, write(host, spec, x, h0, weights, gates), spec.steps, spec.name)


def is_standard(spec: Gru) -> bool:
    """Whether `spec` is the standard operator, which takes any number of steps."""
    return spec.plain and spec.dtype in STANDARD


def _weights(spec: Gru) -> list[Array]:
    """A matrix and a bias for each product of a step, matrices as MatMul takes them, [K, H]: r and z of input and state
    side by side, and n likewise, or of each where the reset gate weighs a product."""
    assert all(isinstance(w, np.ndarray) for w in (spec.wi, spec.wh, spec.bi, spec.bh))
    wi, wh, bi, bh = (np.split(np.asarray(w), 3) for w in (spec.wi, spec.wh, spec.bi, spec.bh))
    found: list[Array] = []
    for n in range(3):
        if n == 2 and spec.after:
            found += [wi[n].T, bi[n], wh[n].T, bh[n]]
        else:
            found += [np.concatenate([wi[n], wh[n]], axis=1).T, bi[n] + bh[n]]
    return [np.ascontiguousarray(w) for w in found]


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


# Against the steps that it replaces, ONNX Runtime on one core, 50 steps of 64 to 128, the reset gate on the product:
# 0.23 of the time at batch 1, 0.81 at 16, 1.23 at 256. Its operator does not gain from rows as Gemm does.
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


# The products of the inputs stay in the steps: made at once they are 0.87 to 0.94 of the time at batch 1 for DIEN, and
# 1.04 to 1.08 at 16 and 256, since a step then copies them out, and Gemm copies them again.
def _steps(
    host: Writer | OnnxHost, spec: Gru, x: Value, h0: Value, weights: Sequence[Value], gates: Sequence[Value]
) -> Value:
    """All states, or the last, of x [B, T, K], `_weights` and gates that broadcast to [B, T]."""
    batch, steps, hidden = spec.shape[0], spec.x.shape[1], spec.shape[-1]
    assert isinstance(steps, int)

    def call(op: str, args: Sequence[object], shape: tuple[Size, ...] = (batch, hidden), **attributes: object) -> Value:
        return host.call(op, args, attributes, name=spec.name, shape=shape, dtype=spec.dtype)

    def at(value: Value, place: object, width: Size) -> Value:
        """The elements at one place of dimension 1; a list keeps that dimension."""
        index = host.share_constant(np.asarray(place, np.int64), name=f"{spec.name}_t")
        shape = (batch, width)
        return host.call("Gather", [value, index], {"axis": 1}, name=spec.name, shape=shape, dtype=value.dtype)

    width = spec.x.shape[2]
    wr, br, wz, bz, *of_new = weights
    h, states = h0, []
    for t in range(steps):
        now = at(x, t, width)
        both = call("Concat", [now, h], (batch, sizes.add(width, hidden)), axis=1)
        columns = [at(g, [t if s.shape[1] != 1 else 0], 1) for g, s in zip(gates, spec.gates, strict=True)]
        r = call("Sigmoid", [call("Gemm", [both, wr, br])])
        z = emit(host, spec.keep, call("Gemm", [both, wz, bz]), columns, spec.name)
        if spec.after:
            wn, bn, un, cn = of_new
            n = call("Add", [call("Gemm", [now, wn, bn]), call("Mul", [r, call("Gemm", [h, un, cn])])])
        else:
            reset = call("Mul", [r, h])
            n = call("Gemm", [call("Concat", [now, reset], (batch, sizes.add(width, hidden)), axis=1), *of_new])
        n = call("Tanh", [n])
        h = call("Add", [n, call("Mul", [z, call("Sub", [h, n])])])
        if not spec.last:
            states.append(apply(host, h, (Reshape((batch, 1, hidden)),), spec.name))
    return h if spec.last else call("Concat", states, (batch, steps, hidden), axis=1)


def _function(host: Writer, spec: Gru, x: Value, h0: Value, weights: Sequence[Value], gates: Sequence[Value]) -> Value:
    """One node `recopt::Gru_*`; its function is shared by all of its length, gates and dtypes."""
    operands = [x, h0, *weights, *gates]
    wide = [g.shape[1] != 1 for g in spec.gates]
    text = repr((spec.keep, spec.after, spec.x.shape[1], spec.last, wide, [v.dtype for v in operands]))
    name = f"Gru_{hashlib.sha1(text.encode()).hexdigest()[:8]}"

    def body(inner: OnnxHost, values: list[Value]) -> Value:
        x, h0, *rest = values
        return _steps(inner, spec, x, h0, rest[: len(weights)], rest[len(weights) :])

    op = host.define(name, [v.dtype or spec.dtype for v in operands], body, ["keep"])
    return host.call(op, operands, {"keep": spec.keep}, name=spec.name, shape=spec.shape, dtype=spec.dtype)
