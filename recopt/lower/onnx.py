"""Fused operators as ONNX nodes, by target.

`portable` writes standard operators, `ort-cpu` and `ort-cuda` what ONNX Runtime runs fastest there, `recopt` one node
whose model-local function has a body of standard operators.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..errors import LowerError
from ..fused import Bilinear, Concat, Flip, Linear, Permute, Reshape, Slice, Step, Take, View
from ..hosts.base import Array, Value
from ..hosts.onnx import OnnxHost
from ..hosts.types.onnx import numpy_dtype
from ..ir import sizes
from ..ir.sizes import Size
from .onnx_epilogue import emit, named
from .onnx_layout import apply, concat, is_static, reshape, view
from .onnx_writer import Writer

TARGETS = ("portable", "ort-cpu", "ort-cuda", "recopt")
FLOATS = {"float32", "float16", "bfloat16", "float64"}
SHARED_LIMIT = 64 << 20  # bytes of the weights that are compared by content, so that steps of one cell share them

# What com.microsoft::FusedGemm knows: epilogue -> (activation, its alpha, beta and gamma: they have no defaults there).
# Against Gemm and the activation, which ONNX Runtime fuses into the same kernel when it loads a model, on 2 cores with
# 1x64x64, 16x512x256 and 256x512x512: 0.99 to 1.02 of the time, one node fewer. Around Reshape instead of
# MatMul-Add-Relu on 1x10x64x32, 16x50x128x64 and 256x20x256x80: 0.97, 0.93, 1.00.
GEMM_ACTIVATIONS: dict[str, tuple[str, Callable[..., tuple[float, ...]]]] = {
    "relu": ("Relu", lambda: ()),
    "sigmoid": ("Sigmoid", lambda: ()),
    "tanh": ("Tanh", lambda: ()),
    "softsign": ("Softsign", lambda: ()),
    "leaky_relu": ("LeakyRelu", lambda slope=0.01: (slope,)),
    "elu": ("Elu", lambda alpha=1.0: (alpha,)),
    "selu": ("Selu", lambda: (1.6732632423543772, 0.0, 1.0507009873554805)),
    "hardsigmoid": ("HardSigmoid", lambda: (1 / 6, 0.5)),
}

# One kernel for the bias and the activation in the CUDA provider, which has no FusedGemm and where Gemm copies the bias
# out first. On the CPU they lose to Gemm-Gelu at batch 1 (6.0 us against 5.5 at 64x64), so they are not used there.
CUDA_BIASED = {"gelu": "com.microsoft::BiasGelu", "gelu_tanh": "com.microsoft::FastGelu"}


def linear(host: Writer, spec: Linear, target: str) -> Value:
    """Append the nodes of `spec` at the host's insertion point and return its value.

    Raises LowerError for an unknown target, an epilogue outside the language, and a size that no value in reach has.
    """
    if target not in TARGETS:
        raise LowerError(f"no target {target!r} for an ONNX model: one of {', '.join(TARGETS)}")
    if is_convolution(spec):
        return _convolution(host, spec, target)
    x = concat(host, spec.x, spec.name) if isinstance(spec.x, Concat) else view(host, spec.x, spec.name)
    params = [_vector(host, param, f"{spec.name}_p{i}", spec.dtype) for i, param in enumerate(spec.params)]
    bias = None if spec.b is None else _vector(host, spec.b, f"{spec.name}_bias", spec.dtype)
    write = _function if target == "recopt" else _nodes
    y = write(host, spec, x, bias, params, target)
    return apply(host, y, spec.steps, spec.name)


def bilinear(host: Writer, spec: Bilinear) -> Value:
    """Append the product of x with what q is projected to. Raises LowerError."""
    q = view(host, spec.q, spec.name)
    w = host.add_constant(spec.w.T, name=f"{spec.name}_weight")
    wide = (*spec.q.shape[:-1], len(spec.w))
    projected = host.call("MatMul", [q, w], {}, name=f"{spec.name}_q", shape=wide, dtype=spec.dtype)
    if spec.turned is not None:
        operands = [projected, view(host, spec.turned, spec.name)]
        y = host.call("MatMul", operands, {}, name=spec.name, shape=spec.shape, dtype=spec.dtype)
        return apply(host, y, spec.steps, spec.name)
    x, column = view(host, spec.x, spec.name), reshape(host, projected, (*wide, 1), spec.name)
    y = host.call("MatMul", [x, column], {}, name=spec.name, shape=(*spec.shape, 1), dtype=spec.dtype)
    return apply(host, reshape(host, y, spec.shape, spec.name), spec.steps, spec.name)


def _nodes(host: Writer, spec: Linear, x: Value, bias: Value | None, params: Sequence[Value], target: str) -> Value:
    name, scalars = named(spec.epilogue) or (None, ())
    if target == "ort-cpu" and spec.dtype == "float32" and name in GEMM_ACTIVATIONS and _fits_gemm(spec):
        activation, values = GEMM_ACTIVATIONS[name]
        kinds = ("activation_alpha", "activation_beta", "activation_gamma")
        attributes = {"activation": activation, **dict(zip(kinds, values(*scalars), strict=False))}
        return _gemm(host, spec, x, bias, "com.microsoft::FusedGemm", attributes)
    if target == "ort-cuda" and spec.dtype in {"float32", "float16"}:
        if name in CUDA_BIASED and bias is not None:
            product = _matmul(host, spec, x, _weight(host, spec, transposed=True))
            return _call(host, spec, CUDA_BIASED[name], [product, bias])
        if name == "silu":
            return _call(host, spec, "com.microsoft::QuickGelu", [_product(host, spec, x, bias)], alpha=1.0)
    return emit(host, spec.epilogue, _product(host, spec, x, bias), params, spec.name)


def _product(host: Writer, spec: Linear, x: Value, bias: Value | None) -> Value:
    if len(spec.shape) == 2 and spec.dtype in FLOATS:
        return _gemm(host, spec, x, bias)
    product = _matmul(host, spec, x, _weight(host, spec, transposed=True))
    return product if bias is None else _call(host, spec, "Add", [product, bias])


def _fits_gemm(spec: Linear) -> bool:
    """Whether x can be flattened to two dimensions and y unflattened by constant shapes."""
    return len(spec.shape) == 2 or (len(spec.shape) > 2 and is_static(spec.shape[1:]))


def _gemm(
    host: Writer,
    spec: Linear,
    x: Value,
    bias: Value | None,
    op: str = "Gemm",
    attributes: dict[str, object] | None = None,
) -> Value:
    """x @ w.T + b by a two-dimensional operator. ONNX Runtime packs w of either layout alike (56.6 and 57.7 us at
    16x512x256), so w stays as it is stored."""
    transposed = _is_transposed(spec.w)
    operands = [x, _weight(host, spec, transposed=transposed), *([] if bias is None else [bias])]
    attributes = {**(attributes or {}), **({} if transposed else {"transB": 1})}
    if len(spec.shape) == 2:
        return _call(host, spec, op, operands, **attributes)
    features = spec.x.shape[-1]
    operands[0] = reshape(host, x, (sizes.product(spec.shape[:-1]), features), spec.name)
    shape = (sizes.product(spec.shape[:-1]), spec.shape[-1])
    flat = host.call(op, operands, attributes, name=spec.name, shape=shape, dtype=spec.dtype)
    return reshape(host, flat, spec.shape, spec.name)


def _matmul(host: Writer, spec: Linear, x: Value, w: Value) -> Value:
    return _call(host, spec, "MatMul", [x, w])


def _call(host: Writer, spec: Linear, op: str, args: Sequence[Value], **attributes: object) -> Value:
    return host.call(op, args, attributes, name=spec.name, shape=spec.shape, dtype=spec.dtype)


def is_convolution(spec: Linear) -> bool:
    """Whether `linear` writes a convolution of width one. ONNX Runtime has none in float64 on the CPU."""
    return spec.channels_second and spec.dtype == "float32"


def _convolution(host: Writer, spec: Linear, target: str) -> Value:
    """f(x W^T + b) over axis 1: Conv and the activation, or one node."""
    assert isinstance(spec.x, View)
    batch, *space, width = spec.shape
    ones = (1,) * len(space)
    w = _shaped(spec.w, (width, spec.x.shape[-1], *ones))
    shaped = replace(spec, w=w, shape=(batch, width, *space))
    bias = None if spec.b is None else _vector(host, spec.b, f"{spec.name}_bias", spec.dtype)
    params = [
        _vector(host, _shaped(p, (p.shape[0], *ones)), f"{spec.name}_p{i}", spec.dtype)
        for i, p in enumerate(spec.params)
    ]
    if target == "recopt":
        return _function(host, shaped, spec.x.value, bias, params, target)
    operands = [spec.x.value, _weight(host, shaped, transposed=False), *([] if bias is None else [bias])]
    return emit(host, spec.epilogue, _call(host, shaped, "Conv", operands), params, spec.name)


def _shaped(item: Array | View, shape: tuple[Size, ...]) -> Array | View:
    if isinstance(item, View):
        return View(item.value, shape, (*item.steps, Reshape(shape)))
    return item.reshape([int(size) for size in shape])


def _function(host: Writer, spec: Linear, x: Value, bias: Value | None, params: Sequence[Value], target: str) -> Value:
    """One node `recopt::Linear_*`, whose function is shared by all linears of its epilogue, rank and dtype."""
    operands = [x, _weight(host, spec, transposed=False), *([] if bias is None else [bias]), *params]
    rank, biased, convolves = len(spec.shape), bias is not None, len(spec.w.shape) > 2
    plain = re.sub(r"\W+", "_", spec.epilogue.replace("(h)", "")).strip("_") or "h"
    if plain != spec.epilogue.replace("(h)", ""):  # not the text itself: tell it from others that read alike
        plain = f"{plain[:24].strip('_')}_{hashlib.sha1(spec.epilogue.encode()).hexdigest()[:8]}"
    kind = f"{rank}d{'_channels_second' if convolves else ''}{'' if biased else '_nobias'}"
    name = f"Linear_{plain}_{kind}{'' if spec.dtype == 'float32' else '_' + spec.dtype}"

    def body(inner: OnnxHost, values: list[Value]) -> Value:
        x, w, *rest = values
        offset = [rest.pop(0)] if biased else []
        if convolves:
            h = inner.call("Conv", [x, w, *offset], name="h", dtype=spec.dtype)
        elif rank == 2 and spec.dtype in FLOATS:
            h = inner.call("Gemm", [x, w, *offset], {"transB": 1}, name="h", dtype=spec.dtype)
        else:
            turned = inner.call("Transpose", [w], {"perm": [1, 0]}, name="wt", dtype=spec.dtype)
            h = inner.call("MatMul", [x, turned], name="xw", dtype=spec.dtype)
            if offset:
                h = inner.call("Add", [h, *offset], name="h", dtype=spec.dtype)
        return emit(inner, spec.epilogue, h, rest, "y")

    op = host.define(name, [spec.dtype] * len(operands), body, ["epilogue"])
    return _call(host, spec, op, operands, epilogue=spec.epilogue or "h")


# Constants


def _is_transposed(w: Array | View) -> bool:
    """Whether w lies in its host value as [K, N]."""
    return isinstance(w, View) and w.steps == (Permute((1, 0)),)


def _weight(host: Writer, spec: Linear, *, transposed: bool) -> Value:
    """w as [N, K], or as [K, N] when `transposed`; a stored weight is used where it lies or turned once."""
    w, name = spec.w, f"{spec.name}_weight"
    if not isinstance(w, View):
        array = np.asarray(w, numpy_dtype(spec.dtype))
        array = np.ascontiguousarray(array.T) if transposed else array
        if array.nbytes > SHARED_LIMIT:
            return host.add_constant(array, name=name)
        return host.share_constant(array, name=name)
    if transposed and _is_transposed(w):
        return w.value
    steps = (*w.steps, Permute((1, 0))) if transposed else w.steps
    return folded(host, w, steps, name) if steps else w.value


def folded(host: Writer, w: View, steps: tuple[Step, ...], name: str) -> Value:
    """`steps` of a value: done here, once, where it is constant, else as nodes."""
    if not host.is_constant(w.value) or any(not is_static(s.shape) for s in steps if isinstance(s, Reshape)):
        return apply(host, w.value, steps, name)
    return host.derive((w.value, steps), lambda: host.add_constant(_moved(host.constant(w.value), steps), name=name))


def _moved(array: Array, steps: Sequence[Step]) -> Array:
    for step in steps:
        match step:
            case Permute(perm):
                array = array.transpose(perm)
            case Reshape(shape):
                array = array.reshape([int(size) for size in shape])
            case Slice(dim, start, stop, stride):
                array = array[(slice(None),) * dim + (slice(start, int(stop), stride),)]
            case Flip(dim):
                array = np.flip(array, dim)
            case Take(dim, places):
                array = array.take(places, dim)
    return np.ascontiguousarray(array)


def _vector(host: Writer, item: Array | View, name: str, dtype: str) -> Value:
    """A bias or a parameter: [N] or [1]."""
    if isinstance(item, View):
        return folded(host, item, item.steps, name) if item.steps else item.value
    return host.share_constant(np.asarray(item, numpy_dtype(dtype)), name=name)
