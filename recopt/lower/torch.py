"""Fused operators written into an FX graph: one node each, and the layout steps that are left."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from ..errors import GraphError, LowerError
from ..fused import Bilinear, Concat, DotInteraction, Flip, LayerNorm, Linear, Permute, Reshape, Slice, Step, Take, View
from ..hosts.base import Array, Value
from ..hosts.fx import FxHost
from ..hosts.fx_norms import LAYER_NORM, RMS_NORM
from ..hosts.fx_operators import DOT_INTERACTION, LINEAR
from ..ir.sizes import Size, product
from ..kernels.dot_interaction import Pairs
from ..kernels.layer_norm import NARROW

_END = 2**63 - 1

Operand: TypeAlias = View | Concat | Array


def linear(host: FxHost, spec: Linear, target: str) -> Value:
    """Write `spec` at the insertion point and return its value: one node, plus one for each layout step left.

    `target` is not used: every torch target takes the same operator. Raises LowerError when the operator, or a step,
    does not fit its operands.
    """
    try:
        if spec.channels_second:
            return _over_space(host, spec)
        x = _operand(host, spec.x, f"{spec.name}_x", spec.dtype)
        w = _operand(host, spec.w, f"{spec.name}_weight", spec.dtype)
        b = None if spec.b is None else _operand(host, spec.b, f"{spec.name}_bias", spec.dtype)
        params = [_operand(host, p, f"{spec.name}_p{i}", spec.dtype) for i, p in enumerate(spec.params)]
        y = host.call(LINEAR, (x, w, b, spec.epilogue, params), name=spec.name, like=_first(spec.x))
        if y.shape != spec.shape or y.dtype != spec.dtype:
            raise LowerError(f"{spec.name} is {y.dtype} {y.shape}, its pattern says {spec.dtype} {spec.shape}")
        return layout(host, y, spec.steps, spec.name)
    except GraphError as error:
        raise LowerError(f"recopt::linear {spec.name}: {error}") from error


def narrow(spec: LayerNorm, target: str) -> bool:
    """Whether `recopt::layer_norm` or `recopt::rms_norm` is quicker than torch's own: its kernel is for narrow float32
    rows on a GPU, and torch has none for an RMS normalisation on a CPU."""
    if target == "cuda":
        return spec.dtype == "float32" and len(spec.g) <= NARROW
    return not spec.centred and spec.dtype in ("float32", "float64")


def layer_norm(host: FxHost, spec: LayerNorm, target: str) -> Value:
    """Write `recopt::layer_norm`, or torch's own where that is as quick, and the layout steps around it. Raises
    LowerError."""
    try:
        x = layout(host, spec.x.value, spec.x.steps, f"{spec.name}_x")
        g, b = (host.add_constant(w, name=f"{spec.name}_{n}") for w, n in ((spec.g, "weight"), (spec.b, "bias")))
        own, weights = narrow(spec, target), (g, b) if spec.centred else (g,)
        operands = (x, *weights, spec.eps) if own else (x, [len(spec.g)], *weights, spec.eps)
        ours, theirs = (LAYER_NORM, "aten.layer_norm.default") if spec.centred else (RMS_NORM, "aten.rms_norm.default")
        y = host.call(ours if own else theirs, operands, name=spec.name, like=spec.x.value)
        if not spec.centred and spec.b.any():
            y = host.call("aten.add.Tensor", (y, b), name=spec.name, like=spec.x.value)
        return layout(host, y, spec.steps, spec.name)
    except GraphError as error:
        raise LowerError(f"layer_norm {spec.name}: {error}") from error


def bilinear(host: FxHost, spec: Bilinear) -> Value:
    """Write the projection of q and torch's own product of x with it. Raises LowerError."""
    try:
        q = layout(host, spec.q.value, spec.q.steps, f"{spec.name}_q")
        w = host.add_constant(spec.w, name=f"{spec.name}_weight")
        projected = host.call(LINEAR, (q, w, None, "h", []), name=f"{spec.name}_q", like=spec.q.value)
        if (turned := spec.turned) is not None:
            items = layout(host, turned.value, turned.steps, f"{spec.name}_x")
            y = host.call("aten.matmul.default", (projected, items), name=spec.name, like=spec.x.value)
            return layout(host, y, spec.steps, spec.name)
        column = layout(host, projected, (Reshape((*spec.q.shape[:-1], len(spec.w), 1)),), spec.name)
        x = layout(host, spec.x.value, spec.x.steps, f"{spec.name}_x")
        y = host.call("aten.matmul.default", (x, column), name=spec.name, like=spec.x.value)
        return layout(host, y, (Reshape(spec.shape), *spec.steps), spec.name)
    except GraphError as error:
        raise LowerError(f"recopt::linear {spec.name}: {error}") from error


def dot_interaction(host: FxHost, spec: DotInteraction) -> Value:
    """Write `spec` and the layout steps around it. Raises LowerError."""
    try:
        x = layout(host, spec.x.value, spec.x.steps, f"{spec.name}_x")
        text = str(Pairs(spec.size, spec.starts, spec.pairs))
        y = host.call(DOT_INTERACTION, (x, None, text, 0), name=spec.name, like=spec.x.value)
        return layout(host, y, spec.steps, spec.name)
    except GraphError as error:
        raise LowerError(f"recopt::dot_interaction {spec.name}: {error}") from error


def _over_space(host: FxHost, spec: Linear) -> Value:
    """x and y as they lie, [B, K, space..] and [B, N, space..]: w and the parameters take the rank that says so."""
    assert isinstance(spec.x, View)
    batch, *space, width = spec.shape
    ones = (1,) * len(space)

    def shaped(item: View | Array, shape: tuple[Size, ...]) -> Operand:
        if isinstance(item, View):
            return View(item.value, shape, (*item.steps, Reshape(shape)))
        return item.reshape([int(size) for size in shape])

    w = _operand(host, shaped(spec.w, (width, spec.x.shape[-1], *ones)), f"{spec.name}_weight", spec.dtype)
    b = None if spec.b is None else _operand(host, spec.b, f"{spec.name}_bias", spec.dtype)
    params = [
        _operand(host, p if p.shape == (1,) else shaped(p, (*p.shape, *ones)), f"{spec.name}_p{i}", spec.dtype)
        for i, p in enumerate(spec.params)
    ]
    y = host.call(LINEAR, (spec.x.value, w, b, spec.epilogue, params), name=spec.name, like=spec.x.value)
    if y.shape != (batch, width, *space) or y.dtype != spec.dtype:
        raise LowerError(f"{spec.name} is {y.dtype} {y.shape}, its pattern says {spec.dtype} {spec.shape}, turned")
    return y


def _first(operand: View | Concat) -> Value:
    return operand.value if isinstance(operand, View) else operand.views[0].value


def _operand(host: FxHost, operand: Operand, name: str, dtype: str) -> Value:
    if isinstance(operand, Concat):
        parts = [_operand(host, view, name, dtype) for view in operand.views]
        return host.call("aten.cat.default", (parts, -1), name=name, like=operand.views[0].value)
    if isinstance(operand, View):
        if not operand.steps or not host.is_constant(operand.value):
            return layout(host, operand.value, operand.steps, name)
        operand = _fold(host.constant(operand.value), operand.steps)
    if operand.dtype.name != dtype:
        raise LowerError(f"{name} is {operand.dtype.name}, the product {dtype}")
    return host.add_constant(operand, name=name)


def _fold(array: Array, steps: tuple[Step, ...]) -> Array:
    """The steps on a constant: numpy views, so that a transposed weight is read where it is stored."""
    for step in steps:
        match step:
            case Permute(perm):
                array = array.transpose(perm)
            case Reshape(shape):
                array = array.reshape(tuple(int(size) for size in shape))
            case Slice(dim, start, stop, stride):
                array = array[(np.s_[:],) * dim + (slice(start, int(stop), stride),)]
            case Flip(dim):
                array = np.flip(array, dim)
            case Take(dim, places):
                array = array.take(places, dim)
    return array


def layout(host: FxHost, value: Value, steps: tuple[Step, ...], name: str, *, dense: bool = False) -> Value:
    """A value after layout steps. Elements that are taken lie side by side in memory where it is to be `dense`."""
    for step in steps:
        match step:
            case Permute(perm):
                value = host.call("aten.permute.default", (value, list(perm)), name=name, like=value)
            case Reshape(shape):
                value = host.call("aten.reshape.default", (value, _sizes(host, shape)), name=name, like=value)
            case Slice(dim, start, stop, stride):
                assert value.shape is not None
                end = _END if stop == value.shape[dim] else host.size(stop)
                value = host.call("aten.slice.Tensor", (value, dim, start, end, stride), name=name, like=value)
            case Flip(dim):
                value = host.call("aten.flip.default", (value, [dim]), name=name, like=value)
            case Take(dim, places):
                value = _take(host, value, dim, places, name, dense)
    return value


def _take(host: FxHost, value: Value, dim: int, places: tuple[int, ...], name: str, dense: bool) -> Value:
    step = places[1] - places[0] if len(places) > 1 else 1
    if not dense and step > 0 and places == (*range(places[0], places[-1] + 1, step),):  # no copy
        args = (value, dim, places[0], places[-1] + 1, step)
        return host.call("aten.slice.Tensor", args, name=name, like=value)
    at = host.add_constant(np.array(places, np.int64), name=f"{name}_places")
    return host.call("aten.index_select.default", (value, dim, at), name=name, like=value)


def _sizes(host: FxHost, shape: tuple[Size, ...]) -> list[int | Value]:
    """A reshape's argument: one unknown size is -1, which costs nothing at run time."""
    unknown = [i for i, size in enumerate(shape) if not isinstance(size, int)]
    if len(unknown) == 1 and product(size for i, size in enumerate(shape) if i != unknown[0]) != 0:
        return [-1 if i == unknown[0] else int(size) for i, size in enumerate(shape)]
    return [host.size(size) for size in shape]
