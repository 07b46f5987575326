"""Fused attention as ONNX nodes: the standard operator where the opset has it, MultiHeadAttention on CUDA, else MatMul,
Softmax, MatMul; for `recopt` one node around these."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ..fused import Attention, Heads, Permute, View
from ..hosts.base import Array, Value
from ..hosts.onnx import OnnxHost
from ..hosts.types.onnx import numpy_dtype
from ..kernels.attention.score import Affine, affine
from .onnx_epilogue import emit
from .onnx_layout import apply, view
from .onnx_writer import Writer

FLOATS = {"float32", "float16"}
STANDARD = 23  # the first opset with Attention


def attention(host: Writer, spec: Attention, target: str) -> Value:
    """Append the nodes of `spec` at the host's insertion point and return its value. Raises LowerError."""
    params = [_operand(host, p, f"{spec.name}_p{n}", spec.dtype) for n, p in enumerate(spec.params)]
    if target == "recopt":
        return apply(host, _function(host, spec, params), spec.steps, spec.name)
    plan = affine(spec.score)
    if (
        plan is not None
        and plan.hidden is None
        and len(plan.added) <= 1
        and spec.dtype in FLOATS
        and spec.unseen == "nan"
    ):
        bias = params[plan.added[0]] if plan.added else None
        if host.opset >= STANDARD and (made := _standard(host, spec, plan, bias)) is not None:
            return made
        if target == "ort-cuda" and (made := _multi_head(host, spec, plan, bias)) is not None:
            return made
    operands = [view(host, spec.q, spec.name), _keys(host, spec), view(host, spec.v, spec.name)]
    return apply(host, _plain(host, spec, operands, params), spec.steps, spec.name)


# --- one operator


# On one core with ONNX Runtime's own operators, against MatMul, Softmax, MatMul and the layout around them: with heads
# side by side 0.55 to 0.95 of the time at 1 to 256 rows, lengths 20 to 128; with heads apart 0.93 to 1.13.
def _standard(host: Writer, spec: Attention, plan: Affine, bias: Value | None) -> Value | None:
    """`Attention` over heads that lie side by side. None where there are none, or a bias that cannot be widened."""
    heads = spec.heads
    if heads is None or plan.scale <= 0 or not _fits(bias, spec):
        return None
    attributes: dict[str, object] = {"scale": plan.scale, "q_num_heads": heads.count, "kv_num_heads": heads.count}
    operands = [view(host, v, spec.name) for v in (heads.q, heads.k, heads.v)]
    operands += [] if bias is None else [_widened(host, bias, spec)]
    return _call(host, spec, heads, "Attention", operands, attributes)


def _multi_head(host: Writer, spec: Attention, plan: Affine, bias: Value | None) -> Value | None:
    """ONNX Runtime's `MultiHeadAttention` over heads that lie side by side."""
    heads = spec.heads
    if heads is None or not _fits(bias, spec):
        return None
    operands: list[Value | None] = [view(host, v, spec.name) for v in (heads.q, heads.k, heads.v)]
    operands += [] if bias is None else [None, None, _widened(host, bias, spec)]
    attributes: dict[str, object] = {"num_heads": heads.count, "scale": plan.scale}
    return _call(host, spec, heads, "com.microsoft::MultiHeadAttention", operands, attributes)


def _fits(bias: Value | None, spec: Attention) -> bool:
    """Whether a bias has a row for every query, as ONNX Runtime wants it, or can be given one."""
    if bias is None:
        return True
    if bias.shape is None or len(bias.shape) != 4 or bias.shape[-1] != spec.k.shape[-2] or bias.dtype != spec.dtype:
        return False
    return bias.shape[-2] == spec.q.shape[-2] or isinstance(spec.q.shape[-2], int)


def _widened(host: Writer, bias: Value, spec: Attention) -> Value:
    """A bias with a row for every query."""
    assert bias.shape is not None
    rows = spec.q.shape[-2]
    if bias.shape[-2] == rows:
        return bias
    assert isinstance(rows, int)
    shape = host.share_constant(np.array([1, 1, rows, 1], np.int64), name=f"{spec.name}_rows")
    wide = (*bias.shape[:-2], rows, bias.shape[-1])
    return host.call("Expand", [bias, shape], name=f"{spec.name}_bias", shape=wide, dtype=bias.dtype)


def _call(
    host: Writer, spec: Attention, heads: Heads, op: str, operands: Sequence[object], attributes: dict[str, object]
) -> Value:
    shape = (*heads.q.shape[:2], heads.v.shape[-1])
    y = host.call(op, operands, attributes, name=spec.name, shape=shape, dtype=spec.dtype)
    return apply(host, y, heads.steps, spec.name)


# --- standard operators of old


def _plain(host: Writer | OnnxHost, spec: Attention, operands: Sequence[Value], params: Sequence[Value]) -> Value:
    """softmax(score(q kt)) v of operands [rows.., S, D], [rows.., D, T], [rows.., T, E]."""
    q, kt, v = operands
    shape = (*spec.shape[:-1], spec.k.shape[-2])
    h = host.call("MatMul", [q, kt], name=f"{spec.name}_scores", shape=shape, dtype=spec.dtype)
    scores = emit(host, spec.score, h, params, f"{spec.name}_scores")
    if spec.unseen == "scores":
        return host.call("MatMul", [scores, v], name=spec.name, shape=spec.shape, dtype=spec.dtype)
    weights = host.call("Softmax", [scores], {"axis": -1}, name=f"{spec.name}_weights", shape=shape, dtype=spec.dtype)
    if spec.unseen != "nan":  # weights that are 0 anyway may be set to 0 again
        nought = host.share_constant(np.asarray(0, numpy_dtype(spec.dtype)), name=f"{spec.name}_nought")
        if spec.unseen == "clean":
            hidden = host.call("IsNaN", [weights], name=f"{spec.name}_unseen", shape=shape, dtype="bool")
        else:
            nothing = host.share_constant(np.asarray(-np.inf, numpy_dtype(spec.dtype)), name=f"{spec.name}_nothing")
            hidden = host.call("Equal", [scores, nothing], name=f"{spec.name}_unseen", shape=shape, dtype="bool")
        weights = host.call("Where", [hidden, nought, weights], name=f"{spec.name}_weights", shape=shape,
                            dtype=spec.dtype)  # fmt: skip
    return host.call("MatMul", [weights, v], name=spec.name, shape=spec.shape, dtype=spec.dtype)


def _keys(host: Writer, spec: Attention) -> Value:
    """The keys as [rows.., D, T]: one Transpose with what their heads need."""
    rank = len(spec.k.shape)
    turn = (*range(rank - 2), rank - 1, rank - 2)
    steps = spec.k.steps
    if steps and isinstance(steps[-1], Permute):
        perm = steps[-1].perm
        return apply(host, spec.k.value, (*steps[:-1], Permute(tuple(perm[n] for n in turn))), spec.name)
    return apply(host, spec.k.value, (*steps, Permute(turn)), spec.name)


def _operand(host: Writer, item: View | Array, name: str, dtype: str) -> Value:
    if isinstance(item, View):
        return view(host, item, name)
    return host.share_constant(np.asarray(item, numpy_dtype(dtype)), name=name)


def _function(host: Writer, spec: Attention, params: Sequence[Value]) -> Value:
    """One node `recopt::Attention_*`; its function is shared by all of its score, rank and dtype."""
    operands = [view(host, spec.q, spec.name), view(host, spec.k, spec.name), view(host, spec.v, spec.name), *params]
    rank = len(spec.shape)
    text = repr((spec.score, rank, spec.unseen, [v.dtype for v in operands]))
    name = f"Attention_{hashlib.sha1(text.encode()).hexdigest()[:8]}"

    def body(inner: OnnxHost, values: list[Value]) -> Value:
        q, k, v, *rest = values
        turn = [*range(rank - 2), rank - 1, rank - 2]
        kt = inner.call("Transpose", [k], {"perm": turn}, name="kt", dtype=spec.dtype)
        return _plain(inner, spec, [q, kt, v], rest)

    op = host.define(name, [v.dtype or spec.dtype for v in operands], body, ["score"])
    return host.call(op, operands, {"score": spec.score}, name=spec.name, shape=spec.shape, dtype=spec.dtype)
