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
    filled = Filled(host, spec, x)
    operands: list[Value | None] = [filled.padded(x, (0, 1)), stored(spec.wi, "wi"), stored(spec.wh, "wh"),
                                    _constant(host, spec, np.concatenate(biases)[None], "b")]  # fmt: skip
    if h0 is not None:
        h0 = filled.padded(apply(host, h0, (Reshape((1, batch, hidden)),), spec.name), (None, 1))
        operands += [None, h0]
    attributes = {"hidden_size": hidden, "linear_before_reset": int(spec.after)}
    shape: tuple[Size, ...] = (filled.sizes[0], 1, filled.sizes[1], hidden)
    y = host.call("GRU", operands, attributes, name=spec.name, shape=shape, dtype=spec.dtype)
    if spec.last:
        at = host.share_constant(np.asarray(-1, np.int64), name=f"{spec.name}_last")
        end = host.call("Gather", [y, at], {"axis": 0}, name=spec.name, shape=shape[1:], dtype=spec.dtype)
        end = filled.cut(filled.unless_empty(end, h0), (None, 1))
        return apply(host, end, (Reshape(spec.shape),), spec.name)
    y = filled.cut(y, (0, None, 1))
    return apply(host, y, (Permute((2, 0, 1, 3)), Reshape((batch, steps, hidden))), spec.name)


class Filled:
    """Sequences [T, B, K] that get a step, or a row, where they have none: ONNX Runtime 1.31 ends the process at a GRU
    without. What they got is cut off again."""

    def __init__(self, host: Writer, spec: Gru, x: Value) -> None:
        self.host, self.spec = host, spec
        self.true = (spec.x.shape[1], spec.shape[0])
        may = [d for d, size in enumerate(self.true) if not isinstance(size, int) or size == 0]
        self.count = {d: runtime_size(host, self.true[d], x, spec.name) for d in may}
        self.more = {d: self._missing(n) for d, n in self.count.items()}
        self.sizes = [sizes.symbol(f"{spec.name}:{d}") if d in may else size for d, size in enumerate(self.true)]

    def _missing(self, count: Value) -> Value:
        """1 where a count [1] is 0, else 0: 1 - min(count, 1), by an operator that is not folded, as elsewhere no
        size is 0."""
        one = self.host.share_constant(np.ones(1, np.int64), name=f"{self.spec.name}_one")
        both = self._call("Concat", [count, one], (2,), axis=0)
        kwargs, further = {"axis": 0, "largest": 0}, [((1,), "int64")]
        least = self.host.call(
            "TopK", [both, one], kwargs, name=self.spec.name, shape=(1,), dtype="int64", further=further
        )
        return self._call("Sub", [one, least])

    def padded(self, value: Value, which: Sequence[int | None]) -> Value:
        """`value` with the step and the row that are missing, where `which` says for each of its first dimensions
        whether it is that of steps, 0, or of rows, 1."""
        if not set(which) & self.more.keys():
            return value
        shape = value.shape or ()
        dims = [*which, *[None] * (len(shape) - len(which))]
        nothing = self.host.share_constant(np.zeros(1, np.int64), name=f"{self.spec.name}_none")
        more = [nothing if d is None else self.more.get(d, nothing) for d in dims]
        pads = self._call("Concat", [*[nothing] * len(shape), *more], (2 * len(shape),), axis=0)
        wide = tuple(size if d is None else self.sizes[d] for d, size in zip(dims, shape, strict=True))
        return self._call("Pad", [value, pads], wide, self.spec.dtype)

    def unless_empty(self, last: Value, h0: Value | None) -> Value:
        """The last state, the first one where there is no step."""
        if 0 not in self.more:
            return last
        empty = self._call("Cast", [self.more[0]], dtype="bool", to=element_code("bool"))
        zero = np.zeros(1, numpy_dtype(self.spec.dtype))
        first = self.host.share_constant(zero, name=f"{self.spec.name}_zero") if h0 is None else h0
        return self._call("Where", [empty, first, last], last.shape or (), self.spec.dtype)

    def cut(self, value: Value, which: Sequence[int | None]) -> Value:
        """`value` without what `padded` gave."""
        dims = {n: d for n, d in enumerate(which) if d is not None and d in self.count}
        if not dims:
            return value
        ends = [self.count[d] for d in dims.values()]
        end = ends[0] if len(ends) == 1 else self._call("Concat", ends, (len(ends),), axis=0)
        starts, axes = (
            self.host.share_constant(np.array(v, np.int64), name=f"{self.spec.name}_cut")
            for v in ([0] * len(dims), list(dims))
        )
        shape = tuple(self.true[dims[n]] if n in dims else size for n, size in enumerate(value.shape or ()))
        return self._call("Slice", [value, starts, end, axes], shape, self.spec.dtype)

    def _call(
        self, op: str, args: Sequence[Value], shape: tuple[Size, ...] = (1,), dtype: str = "int64", **attributes: object
    ) -> Value:
        return self.host.call(op, args, attributes, name=self.spec.name, shape=shape, dtype=dtype)


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
