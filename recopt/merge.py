"""Several linears of one input as one: y1 = f(x W1), y2 = f(x W2) -> y = f(x [W1 W2]), y1 and y2 slices of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .cost import MACHINES, Cost
from .fused import Linear, Slice, Step, View
from .hosts.base import Array, Host

SLICE = 0.5  # launches that a slice costs where the caller is Python; none is launched


def joins(host: Host, specs: Sequence[Linear], target: str) -> bool:
    """Whether one product with slices is cheaper than several: in ONNX a slice copies, in torch it is a view."""
    if len(specs) < 2 or host.dialect == "onnx" or any(_array(host, s.w) is None for s in specs):
        return False
    if specs[0].channels_second:  # a slice of its result would no longer lie as the original's
        return False
    slices = SLICE * len(specs) if target == "cpu" else 0.0
    return Cost(launches=len(specs) - 1 - slices).seconds(MACHINES[target]) > 0


def key(spec: Linear) -> object:
    """Linears with equal keys read one input and end in one function."""
    return spec.x, spec.epilogue, len(spec.params), spec.dtype, spec.shape[:-1]


def joined(host: Host, specs: Sequence[Linear]) -> tuple[Linear, list[tuple[Step, ...]]]:
    """The one linear, and for each of `specs` the steps that give its own result."""
    widths = [int(s.shape[-1]) for s in specs]
    biased = any(s.b is not None for s in specs)
    one = replace(
        specs[0],
        w=np.concatenate([_array(host, s.w) for s in specs]),
        b=np.concatenate([_vector(host, s.b, n, s.dtype, 0.0) for s, n in zip(specs, widths, strict=True)])
        if biased
        else None,
        params=tuple(
            np.concatenate([_vector(host, s.params[i], n, s.dtype, 0.0) for s, n in zip(specs, widths, strict=True)])
            for i in range(len(specs[0].params))
        ),
        shape=(*specs[0].shape[:-1], sum(widths)),
        steps=(),
    )
    last = len(specs[0].shape) - 1
    starts = [sum(widths[:n]) for n in range(len(widths))]
    return one, [(Slice(last, a, a + n), *s.steps) for s, a, n in zip(specs, starts, widths, strict=True)]


def _array(host: Host, operand: Array | View | None) -> Array | None:
    if isinstance(operand, View):
        return host.constant(operand.value) if not operand.steps and host.is_constant(operand.value) else None
    return operand


def _vector(host: Host, operand: Array | View | None, width: int, dtype: str, default: float) -> Array:
    array = _array(host, operand)
    return np.full(width, default, dtype=np.dtype(dtype)) if array is None else np.broadcast_to(array, (width,))
