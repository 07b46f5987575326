"""Fused recurrences written into an FX graph: one node, and the layout steps that are left."""

from __future__ import annotations

from ..errors import GraphError, LowerError
from ..fused import Gru, View
from ..hosts.base import Array, Value
from ..hosts.fx import FxHost
from ..hosts.fx_operators import AUGRU, GRU
from .torch import layout


def gru(host: FxHost, spec: Gru, target: str) -> Value:
    """Write `spec` at the insertion point and return its value: one node, plus one for each layout step left.

    `target` is not used: every torch target takes the same operator. Raises LowerError when the operator, or a step,
    does not fit its operands.
    """

    def operand(item: View | Array, part: str) -> Value:
        name = f"{spec.name}_{part}"
        if isinstance(item, View):
            return layout(host, item.value, item.steps, name)
        return host.add_constant(item, name=name)

    try:
        x = layout(host, spec.x.value, spec.x.steps, f"{spec.name}_x")
        h0 = None if spec.h0 is None else operand(spec.h0, "h0")
        weights = [operand(getattr(spec, part), part) for part in ("wi", "wh", "bi", "bh")]
        gates = [] if spec.plain else [spec.keep, [operand(g, f"g{n}") for n, g in enumerate(spec.gates)]]
        op = GRU if spec.plain else AUGRU
        y = host.call(op, (x, h0, *weights, spec.after, *gates), name=spec.name, like=spec.x.value)
        if y.shape != spec.shape or y.dtype != spec.dtype:
            raise LowerError(f"{spec.name} is {y.dtype} {y.shape}, its pattern says {spec.dtype} {spec.shape}")
        return layout(host, y, spec.steps, spec.name)
    except GraphError as error:
        raise LowerError(f"recopt::gru {spec.name}: {error}") from error
