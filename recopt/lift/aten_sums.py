"""ATen: sums of products, reductions, normalisation, attention, embedding bags."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..ir import ops, sizes, tensor
from ..ir.rules import FLOATS
from ..ir.tensor import Tensor
from .aten_common import Lift, dim_of, named
from .aten_types import operand
from .base import Call, Opaque
from .windows import pool

Dims = int | Sequence[int] | None


# --- products


def linear(c: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias."""
    y = ops.matmul(x, tensor.permute(weight, list(range(len(weight.dims)))[::-1]))
    return y if bias is None else ops.add(y, bias)


def _added_product(product: Callable[[Tensor, Tensor], Tensor]) -> Lift:
    def function(c: Call, y: Tensor, a: Tensor, b: Tensor, beta: object = 1, alpha: object = 1) -> Tensor:
        total = ops.multiply(product(a, b), operand(alpha, c.dtype))
        return ops.add(ops.multiply(y, operand(beta, c.dtype)), total) if beta != 0 else total

    return function


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return ops.einsum("i,j->ij", a, b)


def _einsum(c: Call, equation: str, operands: Sequence[Tensor], path: object = None) -> Tensor:
    return ops.einsum(equation, *operands)


def _tensordot(c: Call, a: Tensor, b: Tensor, dims_a: Sequence[int], dims_b: Sequence[int]) -> Tensor:
    left = [chr(ord("a") + n) for n in range(len(a.dims))]
    right = [chr(ord("A") + n) for n in range(len(b.dims))]
    for i, j in zip(dims_a, dims_b, strict=True):
        right[j] = left[i]
    free = [x for x in left if x not in right] + [x for x in right if x not in left]
    return ops.einsum(f"{''.join(left)},{''.join(right)}->{''.join(free)}", a, b)


def _vecdot(c: Call, a: Tensor, b: Tensor, dim: int = -1) -> Tensor:
    product = ops.multiply(a, b)
    return ops.total(product, [dim_of(product, dim)])


def _bilinear(c: Call, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = ops.einsum("...i,oij,...j->...o", a, weight, b)
    return y if bias is None else ops.add(y, bias)


def _convolution(
    c: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,),
    dilation: Sequence[int] = (1,),
    transposed: bool = False,
    output_padding: object = None,
    groups: int = 1,
) -> Tensor:
    rank = len(weight.dims) - 2
    stride, dilation = _each(stride, rank), _each(dilation, rank)
    if transposed:
        raise Opaque("a transposed convolution")
    if isinstance(padding, str):
        around = [
            d * (c.size(e) - 1) if padding == "same" else 0 for d, e in zip(dilation, weight.shape[2:], strict=True)
        ]
        if any(n % 2 for n in around):
            raise Opaque("padding to the same size that differs from side to side")
        padding = [n // 2 for n in around]
    else:
        padding = _each(padding, rank)
    batched = len(x.dims) == rank + 2
    y = ops.convolution(x if batched else tensor.unsqueeze(x, 0), weight, bias, stride, padding, dilation, groups)
    return y if batched else tensor.squeeze(y, [0])


def _conv_transpose(
    c: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Tensor:
    """Of width one it is the convolution with the weight's first two dimensions swapped."""
    if any(s != 1 for s in (*weight.shape[2:], *stride, groups)) or any((*padding, *output_padding)):
        raise Opaque("a transposed convolution that is wider than one")
    turned = tensor.permute(weight, [1, 0, *range(2, len(weight.dims))])
    return _convolution(c, x, turned, bias)


def _conv(c: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: object, **named: object) -> Tensor:
    names = dict(zip(("stride", "padding", "dilation", "groups"), rest, strict=False))
    return _convolution(c, x, weight, bias, **{**names, **named})  # type: ignore[arg-type]  # as ATen's schema says


def _each(values: Sequence[int], rank: int) -> list[int]:
    return list(values) * rank if len(values) == 1 else list(values)


# --- reductions


def dims_of(t: Tensor, dim: Dims) -> list[int]:
    """Dimension numbers; none given is all of them."""
    return ops.normal_dims(t, None if dim is None or dim == [] or dim == () else [dim] if isinstance(dim, int) else dim)


def _sum(c: Call, x: Tensor, dim: Dims = None, keepdim: bool = False, dtype: object = None) -> Tensor:
    return ops.total(operand(x, c.dtype), dims_of(x, dim), keepdim)


def _nansum(c: Call, x: Tensor, dim: Dims = None, keepdim: bool = False, dtype: object = None) -> Tensor:
    x = ops.where(ops.pointwise("isnan", x), operand(0, x.dtype), x) if x.dtype in FLOATS else x
    return _sum(c, x, dim, keepdim)


def _trace(c: Call, x: Tensor) -> Tensor:
    return ops.total(operand(ops.diagonal(x, 0, 0, 1), c.dtype), [-1])


def _mean(c: Call, x: Tensor, dim: Dims = None, keepdim: bool = False, dtype: object = None) -> Tensor:
    return ops.mean(operand(x, c.dtype), dims_of(x, dim), keepdim)


def _prod(c: Call, x: Tensor, dim: Dims = None, keepdim: bool = False, dtype: object = None) -> Tensor:
    return ops.reduction("prod", operand(x, c.dtype), dims_of(x, dim), keepdim)


def _extreme(name: str) -> Lift:
    return lambda c, x, dim=None, keepdim=False: ops.reduction(name, x, dims_of(x, dim), keepdim)


def _extreme_and_place(name: str) -> Lift:
    """Values and where they are; the places are no sum of products."""
    return lambda c, x, dim, keepdim=False: [ops.reduction(name, x, dims_of(x, dim), keepdim), None]


def _extremes(c: Call, x: Tensor, dim: int | None = None, keepdim: bool = False) -> list[Tensor]:
    return [ops.reduction(name, x, dims_of(x, dim), keepdim) for name in ("min", "max")]


def _boolean(name: str) -> Lift:
    def function(c: Call, x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
        if dim == [] or dim == ():
            raise Opaque("a reduction over no dimensions, which torch versions read differently")
        return ops.cast(ops.reduction(name, operand(x, "bool"), dims_of(x, dim), keepdim), c.dtype)

    return function


def _cumsum(c: Call, x: Tensor, dim: int, dtype: object = None) -> Tensor:
    x = operand(x, c.dtype)
    return ops.cumulative_sum(x, dim_of(x, dim)) if x.dims else x


def _count_nonzero(c: Call, x: Tensor, dim: Dims = None) -> Tensor:
    return ops.total(ops.cast(operand(x, "bool"), "int64"), dims_of(x, dim))


def _softmax(c: Call, x: Tensor, dim: int, *_: object, **__: object) -> Tensor:
    x = operand(x, c.dtype)
    return ops.softmax(x, dim_of(x, dim))


def _log_softmax(c: Call, x: Tensor, dim: int, *_: object, **__: object) -> Tensor:
    x = operand(x, c.dtype)
    return ops.sub(x, _logsumexp(c, x, dim, True))


def _safe_softmax(c: Call, x: Tensor, dim: int, dtype: object = None) -> Tensor:
    return ops.softmax_or_zero(operand(x, c.dtype), dim_of(x, dim))


def _logsumexp(c: Call, x: Tensor, dim: Dims, keepdim: bool = False) -> Tensor:
    return ops.pointwise("log", ops.total(ops.pointwise("exp", operand(x, c.dtype)), dims_of(x, dim), keepdim))


def _norm(
    c: Call, x: Tensor, ord: float | None = 2, dim: Dims = None, keepdim: bool = False, dtype: object = None
) -> Tensor:
    x = operand(x, c.dtype)
    return _vector_norm(x, 2 if ord is None else ord, dims_of(x, dim), keepdim)


def _vector_norm(x: Tensor, order: float, dims: Sequence[int], keepdim: bool = False) -> Tensor:
    size = ops.pointwise("abs", x)
    if order == 1:
        return ops.total(size, dims, keepdim)
    if order == 2:
        return ops.pointwise("sqrt", ops.total(ops.multiply(x, x), dims, keepdim))
    if order in (math.inf, -math.inf):
        return ops.reduction("max" if order > 0 else "min", size, dims, keepdim)
    raise Opaque(f"the norm of order {order}")


def _cosine_similarity(c: Call, a: Tensor, b: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    rank = max(len(a.dims), len(b.dims))
    a, b = (tensor.reshape(operand(t, c.dtype), [*[1] * (rank - len(t.dims)), *t.shape]) for t in (a, b))
    axis = [dim % rank]

    def unit(t: Tensor) -> Tensor:
        size = ops.pointwise("sqrt", ops.total(ops.multiply(t, t), axis, keepdim=True))
        return ops.divide(t, ops.pointwise("max", size, operand(eps, c.dtype)))

    return ops.total(ops.multiply(unit(a), unit(b)), axis)


def _pairwise_distance(c: Call, a: Tensor, b: Tensor, p: float = 2, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    gap = ops.add(ops.sub(a, b), operand(eps, c.dtype))
    return _vector_norm(gap, p, [len(gap.dims) - 1], keepdim)


def _cdist(c: Call, a: Tensor, b: Tensor, p: float = 2, compute_mode: object = None) -> Tensor:
    gap = ops.sub(tensor.unsqueeze(a, len(a.dims) - 1), tensor.unsqueeze(b, len(b.dims) - 2))
    return _vector_norm(gap, p, [len(gap.dims) - 1])


# --- pools


def _pool(c: Call, x: Tensor, average: bool, rank: int, kernel: Sequence[int], stride: Sequence[int],
          padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool, counts_edges: bool) -> Tensor:  # fmt: skip
    if ceil_mode or x.dtype not in FLOATS:
        raise Opaque("pooling with ceil_mode, or of integers")
    kernel, padding, dilation = (_each(given, rank) for given in (kernel, padding, dilation))
    steps = _each(stride, rank) if stride else kernel
    batched = len(x.dims) == rank + 2
    x = x if batched else tensor.unsqueeze(x, 0)
    y = pool(x, average, kernel, steps, dilation, padding * 2, counts_edges)
    return y if batched else tensor.squeeze(y, [0])


def _average_pool(rank: int) -> Lift:
    def function(
        c: Call, x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
        ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Tensor:  # fmt: skip
        if divisor_override is not None:
            raise Opaque("a mean over another number of elements")
        return _pool(c, x, True, rank, kernel, stride, padding, (1,), ceil_mode, count_include_pad)

    return function


def _max_pool(rank: int) -> Lift:
    def function(
        c: Call, x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,), ceil_mode: bool = False,
    ) -> Tensor:  # fmt: skip
        return _pool(c, x, False, rank, kernel, stride, padding, dilation, ceil_mode, False)

    return function


def _bucketize(c: Call, x: object, boundaries: Tensor, right: bool = False, **_: object) -> Tensor:
    return _searchsorted(c, boundaries, x, right=right)


def _searchsorted(
    c: Call,
    boundaries: Tensor,
    x: object,
    right: bool = False,
    side: str | None = None,
    sorter: object = None,
    **_: object,
) -> Tensor:
    """How many of the sorted boundaries lie below x, or at most at x."""
    if len(boundaries.dims) != 1 or sorter is not None:
        raise Opaque("a search in more than one row of boundaries, or in unsorted ones")
    value = operand(x, boundaries.dtype)
    value = tensor.unsqueeze(value, len(value.dims))
    below = ops.pointwise("le" if right or side == "right" else "lt", boundaries, value)
    return ops.total(ops.cast(below, c.dtype), [-1])


def _isin(c: Call, elements: object, tests: object, assume_unique: bool = False, invert: bool = False) -> Tensor:
    dtype = next(t.dtype for t in (elements, tests) if isinstance(t, Tensor))
    left, right = operand(elements, dtype), operand(tests, dtype)
    flat = tensor.reshape(right, [sizes.product(right.shape)])
    found = ops.reduction("any", ops.pointwise("eq", tensor.unsqueeze(left, len(left.dims)), flat), [-1])
    return ops.pointwise("logical_not", found) if invert else found


TABLE: dict[str, Lift] = {
    **named("linear.default", linear),
    **named(
        "mm.default bmm.default matmul.default mv.default dot.default vdot.default", lambda c, a, b: ops.matmul(a, b)
    ),
    **named("addmm.default baddbmm.default addmv.default", _added_product(ops.matmul)),
    **named("addbmm.default", _added_product(lambda a, b: ops.einsum("bij,bjk->ik", a, b))),
    **named("addr.default", _added_product(_outer)),
    **named("outer.default ger.default", lambda c, a, b: _outer(a, b)),
    **named("inner.default", lambda c, a, b: ops.einsum("...i,ji->...j" if len(b.dims) == 2 else "...i,i->...", a, b)),
    **named("einsum.default", _einsum),
    **named("tensordot.default", _tensordot),
    **named("bilinear.default", _bilinear),
    **named("convolution.default", _convolution),
    **named("conv1d.default conv2d.default conv3d.default conv1d.padding conv2d.padding conv3d.padding", _conv),
    **named("conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input", _conv_transpose),
    **named("linalg_vecdot.default", _vecdot),
    **named("sum.default sum.dim_IntList", _sum),
    **named("nansum.default", _nansum),
    **named("trace.default", _trace),
    **named("mean.default mean.dim", _mean),
    **named("prod.default prod.dim_int", _prod),
    **named("amax.default max.default", _extreme("max")),
    **named("amin.default min.default", _extreme("min")),
    **named("max.dim", _extreme_and_place("max")),
    **named("min.dim", _extreme_and_place("min")),
    **named("aminmax.default", _extremes),
    **named("avg_pool1d.default", _average_pool(1)),
    **named("avg_pool2d.default", _average_pool(2)),
    **named("max_pool1d.default", _max_pool(1)),
    **named("max_pool2d.default", _max_pool(2)),
    **named("any.default any.dim any.dims", _boolean("any")),
    **named("all.default all.dim all.dims", _boolean("all")),
    **named("cumsum.default", _cumsum),
    **named("count_nonzero.default count_nonzero.dim_IntList", _count_nonzero),
    **named("softmax.int _softmax.default", _softmax),
    **named("log_softmax.int _log_softmax.default", _log_softmax),
    **named("_safe_softmax.default", _safe_softmax),
    **named("logsumexp.default", _logsumexp),
    **named("norm.Scalar norm.ScalarOpt_dim linalg_vector_norm.default", _norm),
    **named("cosine_similarity.default", _cosine_similarity),
    **named("pairwise_distance.default", _pairwise_distance),
    **named("cdist.default", _cdist),
    **named("bucketize.Tensor", _bucketize),
    **named("searchsorted.Tensor searchsorted.Scalar", _searchsorted),
    **named("isin.Tensor_Tensor isin.Tensor_Scalar", _isin),
}
