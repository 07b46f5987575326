"""Layer and RMS normalisations as ONNX nodes: one operator where the opset has it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from ..fused import LayerNorm
from ..hosts.base import Node, Value
from ..hosts.onnx import OnnxHost
from ..hosts.types.onnx import numpy_dtype
from ..ir.sizes import Size
from .onnx_layout import apply, view
from .onnx_writer import Writer

NORMALISES = 17  # the first opset with LayerNormalization
RMS_NORMALISES = 23  # the first with RMSNormalization
# Before that an RMS normalisation is these, one after the other: ONNX Runtime 1.31 makes one kernel of them, as it does
# of what the TorchScript exporter writes, but of few other spellings, and of none without an epsilon. Of the time of
# what the dynamo exporter writes it takes 0.4 to 0.5 on a CPU, 50 to 12800 rows of 64.
RMS = ("Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul")


def layer_norm(host: Writer, spec: LayerNorm, target: str) -> Value:
    """The standard operator, or what stands for it, and the layout steps around it."""
    g, b = (
        host.share_constant(np.asarray(w, numpy_dtype(spec.dtype)), name=f"{spec.name}_{part}")
        for w, part in ((spec.g, "weight"), (spec.b, "bias"))
    )
    x = view(host, spec.x, spec.name)
    if spec.centred:
        return apply(host, _call(host, spec, "LayerNormalization", [x, g, b]), spec.steps, spec.name)
    if host.opset >= RMS_NORMALISES:
        y = _call(host, spec, "RMSNormalization", [x, g])
    else:
        y = _function(host, spec, [x, g]) if target == "recopt" else _steps(host, spec, [x, g])
    if spec.b.any():
        y = host.call("Add", [y, b], name=spec.name, shape=spec.shape, dtype=spec.dtype)
    return apply(host, y, spec.steps, spec.name)


def is_written(host: OnnxHost, spec: LayerNorm, root: Value, nodes: Iterable[Node]) -> bool:
    """Whether nodes that end in `root` are what stands for an RMS normalisation already, with its gain or before it."""
    if spec.centred or host.opset >= RMS_NORMALISES:
        return False
    found = sorted(n.op for n in nodes)
    gained = found == sorted(RMS[:-1]) and [n.op for n in host.users(root)] == ["Mul"]
    return gained or found == sorted([*RMS, "Add"] if spec.b.any() else RMS)


def _call(host: Writer, spec: LayerNorm, op: str, operands: list[Value]) -> Value:
    attributes = {"axis": -1, "epsilon": spec.eps}
    return host.call(op, operands, attributes, name=spec.name, shape=spec.shape, dtype=spec.dtype)


def _steps(host: Writer | OnnxHost, spec: LayerNorm, operands: list[Value]) -> Value:
    """`RMS` over x and g."""
    x, g = operands
    two, eps = (
        host.share_constant(np.asarray(v, numpy_dtype(spec.dtype)), name=f"{spec.name}_{part}")
        for v, part in ((2, "exponent"), (spec.eps, "eps"))
    )
    keeps: dict[str, object] = {"keepdims": 1}
    over: list[Value] = []
    if host.opset < 18:
        keeps["axes"] = [-1]
    else:
        over.append(host.share_constant(np.array([-1], np.int64), name=f"{spec.name}_axes"))

    def call(op: str, args: list[Value], width: Size = 1, attributes: dict[str, object] | None = None) -> Value:
        shape = (*spec.shape[:-1], width)
        return host.call(op, args, attributes, name=spec.name, shape=shape, dtype=spec.dtype)

    width = spec.shape[-1]
    square = call("ReduceMean", [call("Pow", [x, two], width), *over], attributes=keeps)
    return call("Mul", [call("Div", [x, call("Sqrt", [call("Add", [square, eps])])], width), g], width)


def _function(host: Writer, spec: LayerNorm, operands: list[Value]) -> Value:
    """One node `recopt::RmsNorm_*`, whose function is shared by all of its epsilon, rank and dtype."""
    text = repr((spec.eps, len(spec.shape), spec.dtype))
    name = f"RmsNorm_{hashlib.sha1(text.encode()).hexdigest()[:8]}"
    op = host.define(name, [spec.dtype] * 2, lambda inner, values: _steps(inner, spec, values))
    return host.call(op, operands, name=spec.name, shape=spec.shape, dtype=spec.dtype)
