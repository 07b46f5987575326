"""Fused attention written into an FX graph: one node, and the layout steps that are left."""

from __future__ import annotations

from ..errors import GraphError, LowerError
from ..fused import Attention, View
from ..hosts.base import Array, Value
from ..hosts.fx import FxHost
from ..hosts.fx_operators import ATTENTION
from .torch import layout


def attention(host: FxHost, spec: Attention, target: str) -> Value:
    """Write `spec` at the insertion point and return its value: one node, plus one for each layout step left.

    `target` is not used: every torch target takes the same operator. Raises LowerError when the operator, or a step,
    does not fit its operands.
    """

    def operand(item: View | Array, part: str) -> Value:
        name = f"{spec.name}_{part}"
        return (
            layout(host, item.value, item.steps, name) if isinstance(item, View) else host.add_constant(item, name=name)
        )

    try:
        q, k, v = operand(spec.q, "q"), operand(spec.k, "k"), operand(spec.v, "v")
        params = [operand(p, f"p{n}") for n, p in enumerate(spec.params)]
        y = host.call(ATTENTION, (q, k, v, spec.score, params, spec.zero), name=spec.name, like=spec.q.value)
        if y.shape != spec.shape or y.dtype != spec.dtype:
            raise LowerError(f"{spec.name} is {y.dtype} {y.shape}, its pattern says {spec.dtype} {spec.shape}")
        return layout(host, y, spec.steps, spec.name)
    except GraphError as error:
        raise LowerError(f"recopt::attention {spec.name}: {error}") from error
