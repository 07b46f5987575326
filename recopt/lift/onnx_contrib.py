"""ONNX Runtime's contrib operators, as its optimiser and its transformer tools write them."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..ir import ops, sizes, tensor
from ..ir.tensor import Tensor
from .base import Call, Opaque
from .onnx_common import Lift, arithmetic, axis_of, floats, integer, like
from .onnx_pointwise import SELU_ALPHA, SELU_GAMMA, clamped, swish
from .onnx_products import attend, causal, convolution, gemm, in_heads, out_of_heads, swapped
from .onnx_reductions import centred, layer_norm, rms_norm

# The activations of a fused operator: name -> meaning of x and up to three parameters, those not given None.
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "Relu": lambda x, *_: ops.pointwise("relu", x),
    "Sigmoid": lambda x, *_: ops.pointwise("sigmoid", x),
    "Tanh": lambda x, *_: ops.pointwise("tanh", x),
    "Softplus": lambda x, *_: ops.pointwise("softplus", x),
    "Softsign": lambda x, *_: ops.pointwise("softsign", x),
    "LeakyRelu": lambda x, a, *_: ops.pointwise("leaky_relu", x, attrs=(a,)),
    "Elu": lambda x, a, *_: ops.pointwise("elu", x, attrs=(a,)),
    "Clip": lambda x, a, b, *_: clamped(x, like(a, x), like(b, x)),
    "HardSigmoid": lambda x, a, b, *_: clamped(ops.add(ops.times(x, a), like(b, x)), like(0, x), like(1, x)),
}


def activated(x: Tensor, name: str, *parameters: float | None) -> Tensor:
    """A fused activation of x. Raises Opaque for one that is not known or whose parameters are not given."""
    if name == "":
        return x
    needed = {"LeakyRelu": 1, "Elu": 1, "Clip": 2, "HardSigmoid": 2}.get(name, 0)
    if name == "Selu" and parameters[:1] == (None,):
        return ops.pointwise("selu", x)
    if name not in ACTIVATIONS or any(p is None for p in parameters[:needed]) or len(parameters) < needed:
        raise Opaque(f"a fused {name}")
    if name == "HardSigmoid" and parameters[1] == 0.5 and math.isclose(parameters[0] or 0, 1 / 6, rel_tol=1e-6):
        return ops.pointwise("hardsigmoid", x)
    return ACTIVATIONS[name](x, *parameters)


def fused_gemm(
    c: Call, a: Tensor, b: Tensor, bias: Tensor | None = None, *, activation: str = "",
    activation_alpha: float | None = None, activation_beta: float | None = None, activation_gamma: float | None = None,
    alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0,
) -> Tensor:  # fmt: skip
    h = gemm(c, a, b, bias, alpha=alpha, beta=beta, transA=transA, transB=transB)
    if activation == "Selu" and activation_alpha is not None:
        if not (math.isclose(activation_alpha, SELU_ALPHA, rel_tol=1e-6)
                and math.isclose(activation_gamma or 0, SELU_GAMMA, rel_tol=1e-6)):  # fmt: skip
            return ops.times(ops.pointwise("elu", h, attrs=(activation_alpha,)), activation_gamma or 0)
        return ops.pointwise("selu", h)
    return activated(h, activation, activation_alpha, activation_beta, activation_gamma)


def fused_matmul(
    c: Call, a: Tensor, b: Tensor, *, alpha: float = 1.0, transA: int = 0, transB: int = 0, transBatchA: int = 0,
    transBatchB: int = 0, activation: str = "", **parameters: float,
) -> Tensor:  # fmt: skip
    floats(a, b)
    if transBatchA or transBatchB or parameters:
        raise Opaque("a product over a batch dimension")
    left = swapped(a) if transA and len(a.dims) > 1 else a
    right = swapped(b) if transB and len(b.dims) > 1 else b
    return activated(ops.times(ops.matmul(left, right), alpha), activation)


def fused_conv(
    c: Call, x: Tensor, w: Tensor, bias: Tensor | None = None, z: Tensor | None = None, *, activation: str = "",
    activation_params: tuple[float, ...] = (), **attributes: object,
) -> Tensor:  # fmt: skip
    y = convolution(c, x, w, bias, **attributes)  # type: ignore[arg-type]  # attributes by ONNX's names
    return activated(y if z is None else ops.add(y, z), activation, *activation_params)


def biased(name: str) -> Lift:
    """An activation of x + bias."""

    def lifted(c: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
        floats(x)
        return ops.pointwise(name, x if bias is None else ops.add(x, bias))

    return lifted


def quick_gelu(c: Call, x: Tensor, alpha: float = 1.702) -> Tensor:
    return swish(c, x, alpha)


def bias_add(c: Call, x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    arithmetic(x)
    return ops.add(x, bias, skip)


def bias_split_gelu(c: Call, x: Tensor, bias: Tensor) -> Tensor:
    """The first half of x + bias times the GELU of the second."""
    floats(x)
    whole, d = ops.add(x, bias), len(x.dims) - 1
    half = sizes.divide(x.shape[d], 2)
    if half is None:
        raise Opaque("an odd width")
    first, second = tensor.slice_dim(whole, d, 0, half), tensor.slice_dim(whole, d, half, half)
    return ops.multiply(first, ops.pointwise("gelu", second))


def bias_softmax(c: Call, x: Tensor, bias: Tensor, axis: int = 1, is_inner_broadcast: int = 1) -> Tensor:
    """Softmax of x + bias over all dimensions from `axis` on."""
    floats(x)
    if not is_inner_broadcast and len(bias.dims) != len(x.dims):
        raise Opaque("a bias that is repeated along outer dimensions")
    exponent = ops.pointwise("exp", ops.add(x, bias))
    return ops.divide(exponent, ops.total(exponent, list(range(axis_of(x, axis), len(x.dims))), keepdim=True))


def skip_layer_norm(
    c: Call, x: Tensor, skip: Tensor, weight: Tensor | None = None, shift: Tensor | None = None,
    bias: Tensor | None = None, *, epsilon: float = 1e-5,
) -> list[Tensor | None]:  # fmt: skip
    """Layer normalisation of x + skip + bias; the fourth result is that sum."""
    floats(x)
    whole = ops.add(x, skip) if bias is None else ops.add(x, skip, bias)
    y, mean, inverse = layer_norm(c, whole, weight, shift, epsilon=epsilon)
    return [y, mean, inverse, whole]


def skip_rms_norm(
    c: Call, x: Tensor, skip: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, epsilon: float = 1e-5
) -> list[Tensor | None]:
    floats(x)
    whole = ops.add(x, skip) if bias is None else ops.add(x, skip, bias)
    return [rms_norm(c, whole, weight, epsilon=epsilon), None, None, whole]


def multi_head_attention(
    c: Call, q: Tensor, k: Tensor | None = None, v: Tensor | None = None, bias: Tensor | None = None,
    key_padding: Tensor | None = None, score_bias: Tensor | None = None, *more: Tensor | None, num_heads: int,
    scale: float | None = None, unidirectional: int = 0, mask_filter_value: float = -10000.0,
) -> Tensor:  # fmt: skip
    """Attention over [b, l, h*d]; `bias` is that of the three projections, joined."""
    if k is None or v is None or len(k.dims) != 3 or key_padding is not None or any(m is not None for m in more):
        raise Opaque("packed projections, a padding mask or a cache")
    if len(c.node.outputs) > 1 or q.dtype not in ("float32", "float64"):
        raise Opaque("attention with scores as a result, or in low precision")
    parts, start = [q, k, v], 0
    if bias is not None:
        for n, t in enumerate(parts):
            width = integer(t.shape[2])
            parts[n] = ops.add(t, tensor.slice_dim(bias, 0, start, width))
            start += width
    return attended([in_heads(t, num_heads) for t in parts], scale, score_bias, bool(unidirectional))


def attended(heads: list[Tensor], scale: float | None, score_bias: Tensor | None, ordered: bool) -> Tensor:
    q, k, v = heads
    factor = scale if scale else 1 / math.sqrt(integer(q.shape[3]))
    return out_of_heads(attend(q, k, v, factor, score_bias, [causal(q.shape[2], k.shape[2])] if ordered else []))


def packed_attention(
    c: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None,
    past: Tensor | None = None, score_bias: Tensor | None = None, *more: Tensor | None, num_heads: int,
    scale: float | None = None, unidirectional: int = 0, do_rotary: int = 0, mask_filter_value: float = -10000.0,
    qkv_hidden_sizes: tuple[int, ...] = (), rotary_embedding_dim: int = 0, past_present_share_buffer: int = 0,
) -> Tensor:  # fmt: skip
    """com.microsoft::Attention: the three projections of x by one weight, then attention."""
    if mask is not None or past is not None or do_rotary or any(m is not None for m in more):
        raise Opaque("attention with a mask index, a cache or rotary positions")
    if len(c.node.outputs) > 1 or x.dtype not in ("float32", "float64"):
        raise Opaque("attention with a cache as a result, or in low precision")
    projected = ops.matmul(x, weight) if bias is None else ops.add(ops.matmul(x, weight), bias)
    widths = list(qkv_hidden_sizes) or [integer(weight.shape[1]) // 3] * 3
    parts, start = [], 0
    for width in widths:
        parts.append(in_heads(tensor.slice_dim(projected, 2, start, width), num_heads))
        start += width
    return attended(parts, scale, score_bias, bool(unidirectional))


def group_norm_channels_last(
    c: Call, x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, epsilon: float = 1e-5, activation: int = 0,
    channels_last: int = 1,
) -> Tensor:  # fmt: skip
    """Group normalisation of [n, h, w, c], with SiLU where `activation` is 1."""
    if not channels_last or x.dtype not in ("float32", "float64"):
        raise Opaque("channels first, or low precision")
    n, h, w, channels = x.shape
    part = sizes.divide(channels, groups)
    if part is None:
        raise Opaque("channels that the groups do not divide")
    normal, _, _ = centred(tensor.reshape(x, [n, h, w, groups, part]), [1, 2, 4], epsilon)
    y = ops.add(ops.multiply(tensor.reshape(normal, x.shape), weight), bias)
    return ops.pointwise("silu", y) if activation else y


CONTRIB: dict[str, Lift] = {
    "com.microsoft::Attention": packed_attention,
    "com.microsoft::BiasAdd": bias_add,
    "com.microsoft::BiasGelu": biased("gelu"),
    "com.microsoft::BiasSoftmax": bias_softmax,
    "com.microsoft::BiasSplitGelu": bias_split_gelu,
    "com.microsoft::FastGelu": biased("gelu_tanh"),
    "com.microsoft::FusedConv": fused_conv,
    "com.microsoft::FusedGemm": fused_gemm,
    "com.microsoft::FusedMatMul": fused_matmul,
    "com.microsoft::FusedMatMulActivation": fused_matmul,
    "com.microsoft::Gelu": biased("gelu"),
    "com.microsoft::GroupNorm": group_norm_channels_last,
    "com.microsoft::MultiHeadAttention": multi_head_attention,
    "com.microsoft::QuickGelu": quick_gelu,
    "com.microsoft::SkipLayerNormalization": skip_layer_norm,
    "com.microsoft::SkipSimplifiedLayerNormalization": skip_rms_norm,
    "com.microsoft::TransposeMatMul": fused_matmul,
    "SimplifiedLayerNormalization": rms_norm,
}
