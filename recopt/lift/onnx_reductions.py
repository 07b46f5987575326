"""ONNX operators that reduce dimensions, and those that divide by what they reduce: softmax, normalisations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..ir import ops, sizes, tensor
from ..ir.tensor import Tensor
from .base import Call, Opaque
from .onnx_common import (
    Lift,
    arithmetic,
    axes_of,
    axis_of,
    cast,
    channelwise,
    floats,
    integer,
    known,
    like,
    spatial,
    stashed,
)

# --- reductions -----------------------------------------------------------------------------------------------------


def reducing(meaning: Callable[[Tensor, list[int] | None, bool], Tensor], check: Callable[..., None] = floats) -> Lift:
    """Reduce*: axes are an attribute in older opsets and an input in newer ones."""

    def lifted(
        c: Call, x: Tensor, given: Tensor | None = None, *, axes: Sequence[int] | None = None, keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:  # fmt: skip
        check(x)
        dims = axes_of(c, x, given if given is not None else axes)
        if not dims:
            dims = [] if noop_with_empty_axes else None
        return meaning(x, dims, bool(keepdims))

    return lifted


def extreme(name: str, of_bool: str) -> Callable[[Tensor, list[int] | None, bool], Tensor]:
    return lambda x, dims, keep: ops.reduction(of_bool if x.dtype == "bool" else name, x, dims, keep)


def sum_of(name: str, after: str | None = None) -> Callable[[Tensor, list[int] | None, bool], Tensor]:
    """The sum of a function of the elements, and a function of that."""

    def meaning(x: Tensor, dims: list[int] | None, keep: bool) -> Tensor:
        summed = ops.total(ops.pointwise(name, x), dims, keep)
        return ops.pointwise(after, summed) if after is not None else summed

    return meaning


def log_sum(x: Tensor, dims: list[int] | None, keep: bool) -> Tensor:
    return ops.pointwise("log", ops.total(x, dims, keep))


def position_of(name: str) -> Lift:
    """ArgMax, ArgMin: the first place, or the last one, that holds the extreme."""

    def lifted(c: Call, x: Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
        known(x)
        place = extreme_place(name, x, axis_of(x, axis), bool(select_last_index))
        return place if keepdims else tensor.squeeze(place, [axis_of(x, axis)])

    return lifted


def extreme_place(name: str, x: Tensor, d: int, last: bool) -> Tensor:
    best = ops.reduction(name, x, [d], keepdim=True)
    places = tensor.reshape(tensor.iota(x.shape[d]), [x.shape[d], *[1] * (len(x.dims) - d - 1)])
    nowhere = tensor.scalar(-1 if last else x.shape[d], "int64")
    held = ops.where(ops.pointwise("eq", x, best), places, nowhere)
    return ops.reduction("max" if last else "min", held, [d], keepdim=True)


def cumulative_sum(c: Call, x: Tensor, axis: Tensor, exclusive: int = 0, reverse: int = 0) -> Tensor:
    arithmetic(x)
    d = axis_of(x, integer(c.size(axis)))
    turned = tensor.flip(x, [d]) if reverse else x
    result = ops.cumulative_sum(turned, d)
    if exclusive:
        result = ops.sub(result, turned)
    return tensor.flip(result, [d]) if reverse else result


# --- softmax --------------------------------------------------------------------------------------------------------


def normalised_dims(c: Call, x: Tensor, axis: int | None) -> list[int]:
    """Where a softmax sums: one dimension since opset 13, before that all from `axis` on."""
    if c.host.opset is None or c.host.opset >= 13:
        return [axis_of(x, -1 if axis is None else axis)]
    return list(range(axis_of(x, 1 if axis is None else axis), len(x.dims)))


def softmax(c: Call, x: Tensor, axis: int | None = None) -> Tensor:
    floats(x)
    exponent = ops.pointwise("exp", x)
    return ops.divide(exponent, ops.total(exponent, normalised_dims(c, x, axis), keepdim=True))


def log_softmax(c: Call, x: Tensor, axis: int | None = None) -> Tensor:
    floats(x)
    dims = normalised_dims(c, x, axis)
    return ops.sub(x, ops.pointwise("log", ops.total(ops.pointwise("exp", x), dims, keepdim=True)))


def hardmax(c: Call, x: Tensor, axis: int | None = None) -> Tensor:
    known(x)
    dims = normalised_dims(c, x, axis)
    if len(dims) != 1:
        raise Opaque("a hardmax over several dimensions")
    (d,) = dims
    place = extreme_place("max", x, d, last=False)
    places = tensor.reshape(tensor.iota(x.shape[d]), [x.shape[d], *[1] * (len(x.dims) - d - 1)])
    return cast(ops.pointwise("eq", place, places), x.dtype)


# --- normalisations -------------------------------------------------------------------------------------------------


def inverse_deviation(variance: Tensor, epsilon: float) -> Tensor:
    """1 / sqrt(variance + epsilon)."""
    return ops.pointwise("rsqrt", ops.add(variance, like(epsilon, variance)))


def batch_norm(
    c: Call, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = 1e-5,
    momentum: float = 0.9, training_mode: int = 0,
) -> Tensor:  # fmt: skip
    floats(x)
    if training_mode or len(c.node.outputs) > 1:
        raise Opaque("batch normalisation in training mode")
    dtype, rank = variance.dtype, max(len(x.dims), 2)
    factor = ops.multiply(cast(weight, dtype), inverse_deviation(variance, epsilon))
    offset = ops.sub(cast(bias, dtype), ops.multiply(mean, factor))
    scaled_x = ops.multiply(cast(x, dtype), channelwise(factor, rank))
    return cast(ops.add(scaled_x, channelwise(offset, rank)), x.dtype)


def centred(x: Tensor, dims: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(variance + epsilon) over `dims`, the mean and the inverse deviation."""
    mean, variance = ops.moments(x, dims)
    inverse = inverse_deviation(variance, epsilon)
    return ops.multiply(ops.sub(x, mean), inverse), mean, inverse


def layer_norm(
    c: Call, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, axis: int = -1,
    epsilon: float = 1e-5, stash_type: int = 1,
) -> list[Tensor]:  # fmt: skip
    floats(x)
    normal, mean, inverse = centred(stashed(x, stash_type), list(range(axis_of(x, axis), len(x.dims))), epsilon)
    return [affine(cast(normal, x.dtype), weight, bias), mean, inverse]


def affine(t: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """t * weight + bias."""
    t = t if weight is None else ops.multiply(t, cast(weight, t.dtype))
    return t if bias is None else ops.add(t, cast(bias, t.dtype))


def rms_norm(
    c: Call, x: Tensor, weight: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    floats(x)
    wide, dims = stashed(x, stash_type), list(range(axis_of(x, axis), len(x.dims)))
    inverse = inverse_deviation(ops.mean(ops.multiply(wide, wide), dims, keepdim=True), epsilon)
    return affine(cast(ops.multiply(wide, inverse), x.dtype), weight, None)


def instance_norm(c: Call, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float = 1e-5) -> Tensor:
    floats(x)
    normal, _, _ = centred(x, spatial(x), epsilon)
    return affine(normal, channelwise(weight, len(x.dims)), channelwise(bias, len(x.dims)))


def group_norm(
    c: Call, x: Tensor, weight: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    floats(x)
    rank, channels = len(x.dims), x.shape[1]
    part = sizes.divide(channels, num_groups)
    if part is None:
        raise Opaque("channels that the groups do not divide")
    grouped = tensor.reshape(stashed(x, stash_type), [x.shape[0], num_groups, part, *x.shape[2:]])
    normal, _, _ = centred(grouped, list(range(2, rank + 1)), epsilon)
    normal = cast(normal, x.dtype)
    if c.host.opset is not None and c.host.opset < 21:  # one weight for each group
        weight, bias = (channelwise(t, rank + 1) for t in (weight, bias))
        return tensor.reshape(affine(normal, weight, bias), x.shape)
    flat = tensor.reshape(normal, x.shape)
    return affine(flat, channelwise(weight, rank), channelwise(bias, rank))


def lp_normalization(c: Call, x: Tensor, axis: int = -1, p: int = 2) -> Tensor:
    """x / norm, and 0 where the norm is 0."""
    floats(x)
    if p == 2:
        norm = ops.pointwise("sqrt", ops.total(ops.pointwise("square", x), [axis_of(x, axis)], keepdim=True))
    else:
        norm = ops.total(ops.pointwise("abs", x), [axis_of(x, axis)], keepdim=True)
    return ops.where(ops.pointwise("eq", norm, like(0, x)), like(0, x), ops.divide(x, norm))


def mean_variance_norm(c: Call, x: Tensor, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    floats(x)
    dims = [axis_of(x, a) for a in axes]
    difference = ops.sub(x, ops.mean(x, dims, keepdim=True))
    deviation = ops.pointwise("sqrt", ops.mean(ops.multiply(difference, difference), dims, keepdim=True))
    return ops.divide(difference, ops.add(deviation, like(1e-9, x)))


REDUCTIONS: dict[str, Lift] = {
    "ReduceSum": reducing(ops.total, arithmetic),
    "ReduceMean": reducing(ops.mean),
    "ReduceMax": reducing(extreme("max", "any"), known),
    "ReduceMin": reducing(extreme("min", "all"), known),
    "ReduceProd": reducing(extreme("prod", "all"), arithmetic),
    "ReduceL1": reducing(sum_of("abs"), arithmetic),
    "ReduceL2": reducing(sum_of("square", "sqrt")),
    "ReduceSumSquare": reducing(sum_of("square"), arithmetic),
    "ReduceLogSum": reducing(log_sum),
    "ReduceLogSumExp": reducing(sum_of("exp", "log")),
    "ArgMax": position_of("max"),
    "ArgMin": position_of("min"),
    "CumSum": cumulative_sum,
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
    "Hardmax": hardmax,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_norm,
}
