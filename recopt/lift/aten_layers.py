"""ATen: layers that have one operator. Normalisation, a step of a GRU, attention, embedding bags."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from ..ir import ops, sizes, tensor
from ..ir.normal import scale
from ..ir.sizes import Size
from ..ir.tensor import Tensor, ravel, retyped
from .aten_common import Lift, named
from .aten_sums import dims_of, linear
from .aten_types import operand
from .base import Call, Opaque, Result

# --- normalisation


def _moments(x: Tensor, dims: Sequence[int], correction: float = 0) -> tuple[Tensor, Tensor]:
    """Mean and variance, dimensions kept."""
    mean, variance = ops.moments(x, dims)
    if not correction:
        return mean, variance
    count = sizes.product(x.shape[d] for d in dims)
    rest = sizes.size(count - int(correction))
    if isinstance(rest, int) and rest < 1:
        raise Opaque("the variance of too few elements")
    return mean, ops.divide(ops.times(variance, count), operand(rest, x.dtype))


def _variance(with_mean: bool, root: bool) -> Lift:
    def function(c: Call, x: Tensor, *given: object, **named: object) -> Result:
        flags = [g for g in given if isinstance(g, bool)]
        dim = next((g for g in given if not isinstance(g, bool)), named.get("dim"))
        if "correction" in named or "correction" in c.node.op:
            correction = named.get("correction")
            correction = 1 if correction is None else correction
            keepdim = named.get("keepdim", False)
        else:
            correction = int(bool(named.get("unbiased", flags[0] if flags else True)))
            keepdim = named.get("keepdim", flags[1] if len(flags) > 1 else False)
        if correction != int(correction):  # type: ignore[call-overload]  # a number, by ATen's schema
            raise Opaque("a fractional correction")
        dims = dims_of(x, dim)  # type: ignore[arg-type]  # as ATen's schema says
        mean, spread = _moments(x, dims, correction)  # type: ignore[arg-type]  # as ATen's schema says
        results = [ops.pointwise("sqrt", spread) if root else spread, *([mean] if with_mean else [])]
        shaped = (
            results if keepdim else [r.with_dims([d for n, d in enumerate(r.dims) if n not in dims]) for r in results]
        )
        return shaped if with_mean else shaped[0]

    return function


def _inverse_root(x: Tensor, eps: float) -> Tensor:
    return ops.pointwise("rsqrt", ops.add(x, operand(eps, x.dtype)))


def _per_channel(p: Tensor, x: Tensor) -> Tensor:
    """A parameter of dimension 1 of x."""
    return tensor.reshape(operand(p, x.dtype), [p.shape[0], *[1] * (len(x.dims) - 2)])


def _scaled(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else ops.multiply(y, operand(weight, y.dtype))
    return y if bias is None else ops.add(y, operand(bias, y.dtype))


def _batch_norm(
    c: Call,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    *rest: object,
) -> Tensor:
    training, eps = (rest[0], rest[2]) if len(rest) > 2 else (False, rest[1])
    if training or mean is None or var is None:
        raise Opaque("batch normalisation by the batch's own statistics")
    y = ops.multiply(ops.sub(x, _per_channel(mean, x)), _inverse_root(_per_channel(var, x), float(eps)))  # type: ignore[arg-type]  # as ATen's schema says
    return _scaled(y, *(None if p is None else _per_channel(p, x) for p in (weight, bias)))


def _batch_norm_and_statistics(c: Call, *args: object, **kwargs: object) -> list[Tensor | None]:
    return [_batch_norm(c, *args, **kwargs), None, None]  # type: ignore[arg-type]  # as ATen's schema says


def _layer_norm(
    c: Call,
    x: Tensor,
    shape: Sequence[object],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: object,
) -> list[Tensor | None]:
    dims = list(range(len(x.dims) - len(shape), len(x.dims)))
    mean, var = _moments(x, dims)
    scale = _inverse_root(var, eps)
    return [_scaled(ops.multiply(ops.sub(x, mean), scale), weight, bias), mean, scale]


def _rms_norm(
    c: Call, x: Tensor, shape: Sequence[object], weight: Tensor | None = None, eps: float | None = None
) -> list[Tensor]:
    dims = list(range(len(x.dims) - len(shape), len(x.dims)))
    if eps is None:
        if x.dtype not in ("float32", "float64"):
            raise Opaque("the default epsilon of a half-precision RMS norm")
        eps = float(np.finfo(x.dtype).eps)
    scale = _inverse_root(ops.mean(ops.multiply(x, x), dims, keepdim=True), eps)
    return [_scaled(ops.multiply(x, scale), weight, None), scale]


def _gru_cell(
    c: Call,
    x: Tensor,
    h: Tensor,
    wi: Tensor,
    wh: Tensor,
    bi: Tensor | None = None,
    bh: Tensor | None = None,
) -> Tensor:
    """A step as torch.nn.GRUCell has it; r, z and n lie one below the other in the weights."""
    size = h.shape[-1]

    def gate(n: int, t: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        start = sizes.mul(size, n)
        part = None if b is None else tensor.slice_dim(b, 0, start, size)
        return linear(c, t, tensor.slice_dim(w, 0, start, size), part)

    ir, iz, im = (gate(n, x, wi, bi) for n in range(3))
    hr, hz, hm = (gate(n, h, wh, bh) for n in range(3))
    r, z = (ops.pointwise("sigmoid", ops.add(a, b)) for a, b in ((ir, hr), (iz, hz)))
    new = ops.pointwise("tanh", ops.add(im, ops.multiply(r, hm)))
    return ops.add(new, ops.multiply(z, ops.sub(h, new)))


def _group_norm(
    c: Call,
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: object,
) -> Tensor:
    inside = sizes.divide(sizes.product(x.shape[1:]), groups)
    if inside is None:
        raise Opaque("groups that do not divide the channels")
    rows = tensor.reshape(x, [x.shape[0], groups, inside])
    mean, var = _moments(rows, [2])
    y = tensor.reshape(ops.multiply(ops.sub(rows, mean), _inverse_root(var, eps)), x.shape)
    return _scaled(y, *(None if p is None else _per_channel(p, x) for p in (weight, bias)))


def _instance_norm(
    c: Call,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    own: bool,
    momentum: float,
    eps: float,
    *_: object,
) -> Tensor:
    if not own:
        return _batch_norm(c, x, weight, bias, mean, var, False, momentum, eps)
    if mean is not None:
        raise Opaque("instance normalisation that updates its statistics")
    found, spread = _moments(x, list(range(2, len(x.dims))))
    y = ops.multiply(ops.sub(x, found), _inverse_root(spread, eps))
    return _scaled(y, *(None if p is None else _per_channel(p, x) for p in (weight, bias)))


def _pool_to_one(c: Call, x: Tensor, size: Sequence[int] | int) -> Tensor:
    dims = [size] if isinstance(size, int) else list(size)
    if any(s != 1 for s in dims):
        raise Opaque("adaptive pooling to more than one element")
    return ops.mean(x, range(len(x.dims) - len(dims), len(x.dims)), keepdim=True)


# --- attention


def _attention(
    c: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k^T * scale + mask) v; with a mask, 0 for a query that it hides everything from."""
    if dropout_p:
        raise Opaque("dropout in attention")
    if enable_gqa:
        k, v = (_grouped_heads(t, q.shape[-3]) for t in (k, v))
    scores = ops.matmul(q, tensor.permute(k, [*range(len(k.dims) - 2), len(k.dims) - 1, len(k.dims) - 2]))
    scores = ops.multiply(scores, operand(scale, q.dtype) if scale is not None else _default_scale(q))
    hidden = operand(-math.inf, q.dtype)
    if is_causal:
        seen = ops.pointwise("le", tensor.iota(k.shape[-2]), tensor.unsqueeze(tensor.iota(q.shape[-2]), 1))
        scores = ops.where(seen, scores, hidden)
    if attn_mask is None:
        return ops.matmul(ops.softmax(scores, len(scores.dims) - 1), v)
    if attn_mask.dtype == "bool":
        scores = ops.where(attn_mask, scores, hidden)
    else:
        scores = ops.add(scores, operand(attn_mask, q.dtype))
    return ops.matmul(ops.softmax_or_zero(scores, len(scores.dims) - 1), v)


def _default_scale(q: Tensor) -> Tensor:
    width = q.shape[-1]
    if isinstance(width, int):
        return operand(1 / math.sqrt(width), q.dtype)
    return ops.pointwise("rsqrt", operand(width, q.dtype))


def _grouped_heads(t: Tensor, heads: Size) -> Tensor:
    repeats = sizes.divide(heads, t.shape[-3])
    if repeats is None:
        raise Opaque("query heads that are no multiple of the key heads")
    t = t.fresh()
    (new,) = tensor.new_dims([repeats])
    return t.with_dims([(*d, *new) if n == len(t.dims) - 3 else d for n, d in enumerate(t.dims)])


def _flash_attention(
    c: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> list[Tensor | None]:
    return [_attention(c, q, k, v, attn_mask, dropout_p, is_causal, scale), None]


# --- embedding bags


def _embedding_bag(
    c: Call,
    weight: Tensor,
    ids: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> list[Tensor | None]:
    """y[b, d] = sum of weight[ids[l], d] over the l of bag b; the mean (0 where empty), the maximum."""
    if padding_idx is not None and padding_idx < 0:
        padding_idx = None if c.node.op == "aten._embedding_bag.default" else padding_idx + _whole(weight.shape[0])
    bags = sizes.size(offsets.shape[0] - 1) if include_last_offset else offsets.shape[0]
    fixed = _fixed_length(offsets, ids.shape[0], bags)
    tests: list[Tensor] = []
    if fixed is not None:
        ids = tensor.reshape(ids, [bags, fixed])
    else:
        tests += _members(offsets, ids.shape[0], bags, include_last_offset)
        ids = tensor.unsqueeze(ids, 0)
    rows = ops.take(weight, ids)
    if padding_idx is not None:
        tests.append(ops.pointwise("ne", ids, tensor.scalar(padding_idx, ids.dtype), dtype="bool"))
    if mode == 2:
        return [_largest(rows, tests), None, None, None]
    members = ops.multiply(*(ops.cast(t, weight.dtype) for t in tests)) if tests else None
    factors = members
    if per_sample_weights is not None:
        given = tensor.reshape(per_sample_weights, ids.shape)
        factors = given if members is None else ops.multiply(members, given)
    if factors is not None:
        rows = ops.multiply(rows, tensor.unsqueeze(factors, 2))
    if mode == 0:
        return [ops.total(rows, [1]), None, None, None]
    if members is None:
        return [ops.mean(rows, [1]), None, None, None]
    count = ops.pointwise("max", ops.total(members, [1], keepdim=True), operand(1, weight.dtype))
    return [ops.divide(ops.total(rows, [1]), count), None, None, None]


def _largest(rows: Tensor, tests: Sequence[Tensor]) -> Tensor:
    """The maximum over dimension 1 of the rows for which all tests hold, 0 where there is none."""
    if not tests:
        return ops.reduction("max", rows, [1])
    live = functools.reduce(lambda a, b: ops.pointwise("logical_and", a, b), tests)
    shown = ops.where(tensor.unsqueeze(live, 2), rows, operand(float("-inf"), rows.dtype))
    count = ops.total(ops.multiply(*(ops.cast(t, rows.dtype) for t in tests)), [1], keepdim=True)
    some = ops.pointwise("lt", operand(0, rows.dtype), count)
    return ops.where(some, ops.reduction("max", shown, [1]), operand(0, rows.dtype))


def _whole(size: Size) -> int:
    if not isinstance(size, int):
        raise Opaque("a padding index counted from the end of a table of unknown size")
    return size


def _fixed_length(offsets: Tensor, ids: Size, bags: Size) -> Size | None:
    """L where the offsets are 0, L, 2L, ... up to the end, so that every bag has L ids."""
    length = sizes.divide(ids, bags)
    if length is None or length == 0:
        return None
    steps = retyped(scale(ravel(offsets.dims[0]), length), offsets.dtype)
    return length if offsets.body is steps else None


def _members(offsets: Tensor, ids: Size, bags: Size, include_last: bool) -> list[Tensor]:
    """Where id l is in bag b, both hold."""
    last = tensor.full([1], ids, offsets.dtype)
    ends = [tensor.slice_dim(offsets, 0, 1, sizes.size(offsets.shape[0] - 1)), *([] if include_last else [last])]
    start = tensor.slice_dim(offsets, 0, 0, bags)
    place = tensor.iota(ids, dtype=offsets.dtype)
    begun = ops.pointwise("le", tensor.unsqueeze(start, 1), place)
    open_ = ops.pointwise("lt", place, tensor.unsqueeze(tensor.concat(ends, 0), 1))
    return [begun, open_]


TABLE: dict[str, Lift] = {
    **named("var.default var.dim var.correction", _variance(False, False)),
    **named("std.default std.dim std.correction", _variance(False, True)),
    **named("var_mean.default var_mean.dim var_mean.correction", _variance(True, False)),
    **named("std_mean.default std_mean.dim std_mean.correction", _variance(True, True)),
    **named("batch_norm.default", _batch_norm),
    **named("_native_batch_norm_legit_no_training.default native_batch_norm.default", _batch_norm_and_statistics),
    **named("layer_norm.default", lambda c, *args, **kwargs: _layer_norm(c, *args, **kwargs)[:1]),
    **named("native_layer_norm.default", _layer_norm),
    **named("rms_norm.default", lambda c, *args, **kwargs: _rms_norm(c, *args, **kwargs)[0]),
    **named("_fused_rms_norm.default", _rms_norm),
    **named("gru_cell.default", _gru_cell),
    **named("group_norm.default", _group_norm),
    **named("instance_norm.default", _instance_norm),
    **named("adaptive_avg_pool1d.default adaptive_avg_pool2d.default _adaptive_avg_pool2d.default", _pool_to_one),
    **named("scaled_dot_product_attention.default", _attention),
    **named("_scaled_dot_product_flash_attention_for_cpu.default", _flash_attention),
    **named(
        "embedding_bag.default embedding_bag.padding_idx _embedding_bag.default _embedding_bag_forward_only.default",
        _embedding_bag,
    ),
}
