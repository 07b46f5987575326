"""Fused attention, of any kind, written into an FX graph: one node, and the layout steps that are left."""

from __future__ import annotations

from ..errors import GraphError, LowerError
from ..fused import Attention, AttentionWeights, Averages, TargetAttention, View
from ..hosts.base import Array, Value
from ..hosts.fx import FxHost
from ..hosts.fx_operators import ATTENTION, ATTENTION_WEIGHTS, TARGET_ATTENTION
from ..ir import sizes
from ..ir.sizes import nominal
from ..kernels.attention import is_short
from ..kernels.attention.weights import is_held
from ..kernels.target_attention.cpu import WORTH
from .torch import layout


def attention(host: FxHost, spec: Attention, target: str) -> Value:
    """Write `spec` at the insertion point and return its value: one node, plus one for each layout step left.

    `target` is not used: every torch target takes the same operator. Raises LowerError when the operator, or a step,
    does not fit its operands.
    """
    try:
        q, k, v = (_operand(host, spec, item, part) for item, part in ((spec.q, "q"), (spec.k, "k"), (spec.v, "v")))
        params = [_operand(host, spec, p, f"p{n}") for n, p in enumerate(spec.params)]
        y = host.call(ATTENTION, (q, k, v, spec.score, params, spec.unseen), name=spec.name, like=spec.q.value)
        return _finished(host, spec, y)
    except GraphError as error:
        raise LowerError(f"recopt::attention {spec.name}: {error}") from error


def quicker(spec: Attention, target: str) -> bool:
    """Whether the operator is the quicker one, where torch's own would do."""
    sizes = (spec.q.shape[-2], spec.k.shape[-2], spec.q.shape[-1], spec.v.shape[-1])
    known = all(isinstance(size, int) for size in sizes)
    return target == "cuda" and spec.dtype == "float32" and known and is_short(*sizes)


def attention_weights(host: FxHost, spec: AttentionWeights) -> Value:
    """As `attention`."""
    try:
        q, k = (_operand(host, spec, item, part) for item, part in ((spec.q, "q"), (spec.k, "k")))
        params = [_operand(host, spec, p, f"p{n}") for n, p in enumerate(spec.params)]
        operands = (q, k, spec.score, params, spec.unseen)
        return _finished(host, spec, host.call(ATTENTION_WEIGHTS, operands, name=spec.name, like=spec.k.value))
    except GraphError as error:
        raise LowerError(f"recopt::attention_weights {spec.name}: {error}") from error


def holds(spec: AttentionWeights) -> bool:
    """Whether a kernel takes so many keys."""
    keys, width = spec.k.shape[-2:]
    return spec.dtype == "float32" and isinstance(keys, int) and isinstance(width, int) and is_held(keys, width)


def compiles(spec: TargetAttention) -> bool:
    """Whether a CPU runs the operator as one call of C, so that no layer of all items is written."""
    matrices = (spec.weights[1], *spec.weights[4::2])
    work = nominal(spec.k.shape[-2]) * sum(nominal(sizes.product(w.shape)) for w in matrices)
    return spec.dtype == "float32" and work >= WORTH


def target_attention(host: FxHost, spec: TargetAttention, target: str) -> Value:
    """As `attention`."""
    try:
        q, k, v = (_operand(host, spec, item, part) for item, part in ((spec.q, "q"), (spec.k, "k"), (spec.v, "v")))
        weights = [_operand(host, spec, w, f"w{n}") for n, w in enumerate(spec.weights)]
        params = [_operand(host, spec, p, f"p{n}") for n, p in enumerate(spec.params)]
        operands = (q, k, v, weights, params, spec.text, spec.softmax)
        return _finished(host, spec, host.call(TARGET_ATTENTION, operands, name=spec.name, like=spec.k.value))
    except GraphError as error:
        raise LowerError(f"recopt::target_attention {spec.name}: {error}") from error


def _operand(host: FxHost, spec: Averages, item: View | Array, part: str) -> Value:
    name = f"{spec.name}_{part}"
    if isinstance(item, View):
        return layout(host, item.value, item.steps, name)
    return host.add_constant(item, name=name)


def _finished(host: FxHost, spec: Averages, y: Value) -> Value:
    if y.shape != spec.shape or y.dtype != spec.dtype:
        raise LowerError(f"{spec.name} is {y.dtype} {y.shape}, its pattern says {spec.dtype} {spec.shape}")
    return layout(host, y, spec.steps, spec.name)
