"""ONNX operators that sum products: matrices, convolutions, pools, attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..ir import ops, sizes, tensor
from ..ir.rules import fn
from ..ir.sizes import Size
from ..ir.tensor import Tensor, new_dims, ravel
from .base import Call, Opaque
from .onnx_common import (
    Lift,
    arithmetic,
    cast,
    dtype_of,
    floats,
    integer,
    known,
    like,
    spatial,
)
from .windows import padded, pool

# --- products -------------------------------------------------------------------------------------------------------


def matmul(c: Call, a: Tensor, b: Tensor) -> Tensor:
    arithmetic(a, b)
    return ops.matmul(a, b)


def swapped(t: Tensor) -> Tensor:
    """The last two dimensions exchanged."""
    rank = len(t.dims)
    return tensor.permute(t, [*range(rank - 2), rank - 1, rank - 2])


def scaled(t: Tensor, coef: float) -> Tensor:
    """coef * t; of integers only where that is exact."""
    if coef != int(coef):
        floats(t)
    return ops.times(t, coef)


def gemm(
    c: Call, a: Tensor, b: Tensor, bias: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0,
    transA: int = 0, transB: int = 0,
) -> Tensor:  # fmt: skip
    arithmetic(a, b, bias)
    product = scaled(ops.matmul(swapped(a) if transA else a, swapped(b) if transB else b), alpha)
    return product if bias is None or beta == 0 else ops.add(product, scaled(bias, beta))


def einsum(c: Call, *operands: Tensor, equation: str) -> Tensor:
    arithmetic(*operands)
    return ops.einsum(equation, *operands)


def matmul_integer(c: Call, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    left, right = cast(a, "int32"), cast(b, "int32")
    if a_zero is not None:
        zero = cast(a_zero, "int32")
        left = ops.sub(left, tensor.unsqueeze(zero, 1) if len(zero.dims) == 1 and zero.shape != (1,) else zero)
    if b_zero is not None:
        right = ops.sub(right, cast(b_zero, "int32"))
    return ops.matmul(left, right)


# --- windows --------------------------------------------------------------------------------------------------------


def margins(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], auto_pad: str,
    pads: Sequence[int] | None,
) -> list[int]:  # fmt: skip
    """The padding before every spatial dimension, then the padding after."""
    count = len(kernel)
    if auto_pad in ("NOTSET", ""):
        return list(pads) if pads is not None else [0] * (2 * count)
    if auto_pad == "VALID":
        return [0] * (2 * count)
    before, after = [], []
    for n, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        whole = integer(x.shape[n + 2])
        total = max(0, (-(-whole // s) - 1) * s + (k - 1) * d + 1 - whole)
        small = total // 2
        before.append(small if auto_pad == "SAME_UPPER" else total - small)
        after.append(total - before[-1])
    return before + after


def convolution(
    c: Call, x: Tensor, w: Tensor, bias: Tensor | None = None, *, kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None, dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None,
    group: int = 1, auto_pad: str = "NOTSET",
) -> Tensor:  # fmt: skip
    floats(x, w)
    kernel = [integer(s) for s in w.shape[2:]]
    steps, gaps = list(strides or [1] * len(kernel)), list(dilations or [1] * len(kernel))
    x = padded(x, spatial(x), margins(x, kernel, steps, gaps, auto_pad, pads), 0)
    return ops.convolution(x, w, bias, steps, [0] * len(kernel), gaps, group)


def transposed_convolution(
    c: Call, x: Tensor, w: Tensor, bias: Tensor | None = None, *, kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] = (1,), dilations: object = None, pads: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,), output_shape: object = None, group: int = 1, auto_pad: str = "NOTSET",
) -> Tensor:  # fmt: skip
    """Of width one it is the convolution with the weight's first two dimensions swapped."""
    floats(x, w)
    wide = any(s != 1 for s in (*w.shape[2:], *strides, group)) or any((*pads, *output_padding))
    if wide or output_shape is not None or auto_pad not in ("NOTSET", "VALID"):
        raise Opaque("a transposed convolution that is wider than one")
    return convolution(c, x, tensor.permute(w, [1, 0, *range(2, len(w.dims))]), bias)


def pooled(
    c: Call, x: Tensor, average: bool, *, kernel_shape: Sequence[int], strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None, auto_pad: str = "NOTSET",
    ceil_mode: int = 0, count_include_pad: int = 0, storage_order: int = 0,
) -> Tensor:  # fmt: skip
    floats(x)
    if ceil_mode or len(c.node.outputs) > 1:
        raise Opaque("pooling with ceil_mode or with indices")
    kernel = list(kernel_shape)
    steps, gaps = list(strides or [1] * len(kernel)), list(dilations or [1] * len(kernel))
    edges = margins(x, kernel, steps, gaps, auto_pad, pads)
    return pool(x, average, kernel, steps, gaps, edges, bool(count_include_pad))


def global_pool(c: Call, x: Tensor) -> Tensor:
    floats(x)
    return ops.mean(x, spatial(x), keepdim=True)


def global_max_pool(c: Call, x: Tensor) -> Tensor:
    known(x)
    return ops.reduction("max", x, spatial(x), keepdim=True)


# --- attention ------------------------------------------------------------------------------------------------------


def in_heads(t: Tensor, heads: int) -> Tensor:
    """[b, l, h*d] -> [b, h, l, d]."""
    width = sizes.divide(t.shape[2], heads)
    if width is None:
        raise Opaque("a width that the heads do not divide")
    return tensor.permute(tensor.reshape(t, [t.shape[0], t.shape[1], heads, width]), [0, 2, 1, 3])


def out_of_heads(t: Tensor) -> Tensor:
    """[b, h, l, d] -> [b, l, h*d]."""
    b, h, length, d = t.shape
    return tensor.reshape(tensor.permute(t, [0, 2, 1, 3]), [b, length, sizes.mul(h, d)])


def attend(
    q: Tensor, k: Tensor, v: Tensor, factor: float, bias: Tensor | None, keep: Sequence[Tensor], softcap: float = 0.0,
    softmax: Callable[[Tensor, int], Tensor] = ops.softmax,
) -> Tensor:  # fmt: skip
    """softmax(factor * q k^T + bias) v over [b, h, l, d]; positions that any of `keep` lacks count for nothing."""
    scores = ops.times(ops.einsum("bhqd,bhkd->bhqk", q, k), factor)
    if softcap:
        scores = ops.times(ops.pointwise("tanh", ops.times(scores, 1 / softcap)), softcap)
    if bias is not None:
        scores = ops.add(scores, bias)
    for mask in keep:
        scores = ops.where(mask, scores, like(-math.inf, scores))
    return ops.einsum("bhqk,bhkd->bhqd", softmax(scores, 3), v)


def causal(queries: Size, keys: Size) -> Tensor:
    """Whether key j may be seen by query i: j <= i."""
    rows, columns = new_dims([queries]), new_dims([keys])
    return Tensor((*rows, *columns), fn("le", [ravel(columns[0]), ravel(rows[0])], "bool"))


def repeated_heads(t: Tensor, heads: Size) -> Tensor:
    """Every head of [b, h, l, d] as often in a row as makes `heads`."""
    b, own, length, d = t.shape
    times = sizes.divide(heads, own)
    if times is None:
        raise Opaque("query heads that the key heads do not divide")
    if times == 1:
        return t
    wide = tensor.expand(tensor.unsqueeze(t, 2), [b, own, times, length, d])
    return tensor.reshape(wide, [b, heads, length, d])


def attention(
    c: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *more: Tensor | None, is_causal: int = 0,
    kv_num_heads: int = 0, q_num_heads: int = 0, qk_matmul_output_mode: int = 0, scale: float | None = None,
    softcap: float = 0.0, softmax_precision: int | None = None,
) -> Tensor:  # fmt: skip
    floats(q)
    if any(m is not None for m in more) or len(c.node.outputs) > 1 or q.dtype not in ("float32", "float64"):
        raise Opaque("attention with a cache, with scores as a result, or in low precision")
    if softmax_precision is not None and dtype_of(softmax_precision) != q.dtype:
        raise Opaque("attention whose softmax is computed in another dtype")
    flat = len(q.dims) == 3
    if flat:
        q, k, v = in_heads(q, q_num_heads), in_heads(k, kv_num_heads), in_heads(v, kv_num_heads)
    k, v = repeated_heads(k, q.shape[1]), repeated_heads(v, q.shape[1])
    factor = scale if scale else 1 / math.sqrt(integer(q.shape[3]))
    keep = [causal(q.shape[2], k.shape[2])] if is_causal else []
    bias = None
    if mask is not None:
        if mask.dtype == "bool":
            keep.append(mask)
        else:
            bias = mask
    softmax = ops.softmax if mask is None else ops.softmax_or_zero
    y = attend(q, k, v, factor, bias, keep, softcap, softmax)
    return out_of_heads(y) if flat else y


def average_pool(c: Call, x: Tensor, **attributes: object) -> Tensor:
    return pooled(c, x, True, **attributes)  # type: ignore[arg-type]  # attributes by ONNX's names


def max_pool(c: Call, x: Tensor, **attributes: object) -> Tensor:
    return pooled(c, x, False, **attributes)  # type: ignore[arg-type]  # attributes by ONNX's names


PRODUCTS: dict[str, Lift] = {
    "MatMul": matmul,
    "Gemm": gemm,
    "Einsum": einsum,
    "MatMulInteger": matmul_integer,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "AveragePool": average_pool,
    "MaxPool": max_pool,
    "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_max_pool,
    "Attention": attention,
}
