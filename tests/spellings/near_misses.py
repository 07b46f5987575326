"""What looks like linear + bias + activation and is not: a peer folded most of these wrongly at one time or another."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .case import K, N, NearMiss, Spell, Spelled, T, sample

Inputs = Callable[[int], tuple[Tensor, ...]]


def _near(spell: Spell, reason: str = "", rank: int = 2, inputs: Inputs | None = None, **fields: Any) -> NearMiss:
    make = inputs or functools.partial(sample, rank, 1)
    return NearMiss(lambda: Spelled(spell, make(2)).eval(), make, rank, reason, **fields)


def _normal(*shapes: tuple[int, ...]) -> Inputs:
    """Normal inputs, each [batch, *shape]."""

    def make(batch: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(3)
        return tuple(torch.randn(batch, *shape, generator=g) for shape in shapes)

    return make


def _integers(batch: int) -> tuple[Tensor, ...]:
    return (torch.randint(-99, 99, (batch, K), generator=torch.Generator().manual_seed(3)),)


def _routed(batch: int) -> tuple[Tensor, ...]:
    return (*sample(2, 1, batch), torch.arange(batch) % 4)


def _masked(batch: int) -> tuple[Tensor, ...]:
    return (*sample(2, 1, batch), (torch.arange(batch) % 3 > 0)[:, None])


def _extremes(batch: int) -> tuple[Tensor, ...]:
    x = sample(2, 1, batch)[0].clone()
    x[0, 3] = math.nan
    x[-1, 5] = math.inf if batch > 1 else math.nan
    return (x,)


def _swap(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)


def _every_other_column(m: Any, x: Tensor) -> Tensor:
    return sum((x[..., k : k + 1] * m.weight_t[k] for k in range(0, K, 2)), m.bias)  # type: ignore[no-any-return]


def _linear(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, m.weight, m.bias)


def _product_returned(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    p = x @ m.weight.T
    return F.relu(p + m.bias), p


def _sum_returned(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    h = _linear(m, x)
    return F.relu(h), h


def _two_biases_on_one_product(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    p = x @ m.weight.T
    return F.relu(p + m.bias), torch.sigmoid(p + m.bias2)


def _product_squared(m: Any, x: Tensor) -> Tensor:
    p = x @ m.weight.T
    return (p + m.bias) * p  # type: ignore[no-any-return]


def _added_in_place(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    p = x @ m.weight.T
    view = p[:, :7]
    p.add_(m.bias)
    return F.relu(p), view * 1.0


def _read_before_written(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    p = x @ m.weight.T
    before = p * 1.0
    p += m.bias
    return torch.relu_(p), before


def _column_overwritten(m: Any, x: Tensor) -> Tensor:
    h = _linear(m, x)
    h[:, 0] = 0.0
    return F.relu(h)


def _buffer_written(m: Any, x: Tensor) -> Tensor:
    m.calls.add_(1.0)
    return _linear(m, x) * m.calls  # type: ignore[no-any-return]


NEAR_MISSES: dict[str, NearMiss] = {
    # the bias
    "bias_widens": _near(lambda m, x: F.relu(x @ m.weight.T + m.bias_31n), "rank", note="[3,1,N] makes [3,B,N]"),
    "bias_widens_by_one": _near(lambda m, x: F.relu(x @ m.weight.T + m.bias_11n), note="[1,1,N] makes [1,B,N]"),
    "bias_per_step": _near(lambda m, x: F.relu(x @ m.weight.T + m.bias_tn), "bias", rank=3, note="[T,N]"),
    "bias_along_rows": _near(lambda m, x: F.relu(x @ m.weight.T + m.bias_t1), "bias", rank=3, note="[T,1]"),
    "bias_of_the_row": _near(lambda m, x: x @ m.weight.T + x.mean(-1, keepdim=True)),
    "bias_is_an_input": _near(
        lambda m, x, r: F.relu(x @ m.weight.T + r), inputs=_normal((K,), (N,)), note="a residual, [B,N]"
    ),
    "bias_along_square_rows": _near(
        lambda m, x: x @ m.square + m.square_bias[:, None], rank=3, inputs=_normal((K, K)), note="[K,1] on [B,K,K]"
    ),
    "input_added_after": _near(lambda m, x: x + F.relu(x @ m.square), note="the residual stands outside the function"),
    "input_added_backwards": _near(lambda m, x: x @ m.square + x.flip(-1)),
    "input_gated": _near(lambda m, x: x * torch.sigmoid(x @ m.square) + x),
    "half_input_added": _near(lambda m, x: (x.half() @ m.square.half() + x.half()).float(), note="1 + W rounds W off"),
    # a sum that is written out, or looks like one
    "columns_left_out": _near(_every_other_column, inputs=_extremes, note="NaN there must not reach the sum"),
    "columns_pooled": _near(lambda m, x: torch.sigmoid((x[..., 0] + x[..., 1]) / 2), note="no weights"),
    "columns_scaled": _near(lambda m, x: torch.cat([x[..., :1] * 0.5, x[..., 1:2] * 0.25], -1)),
    "vector_per_feature": _near(lambda m, x: x[..., None] * m.square + m.square_bias, note="no feature is contracted"),
    "bias_per_step_of_a_rank_one": _near(lambda m, x: x[..., :1] * m.weight_t[0] + m.bias_tn, rank=3),
    # the weight
    "weight_per_row": _near(
        lambda m, x, w: torch.bmm(x[:, None], w).squeeze(1) + m.bias, "computed", inputs=_normal((K,), (K, N))
    ),
    "weight_per_row_einsum": _near(
        lambda m, x, w: torch.einsum("bk,bnk->bn", x, w) + m.bias, "computed", inputs=_normal((K,), (N, K))
    ),
    "weight_looked_up": _near(
        lambda m, x, ids: (m.experts[ids] @ x[..., None]).squeeze(-1) + m.bias, "computed", inputs=_routed
    ),
    "weight_is_the_input": _near(lambda m, x: F.relu(x @ x.T), note="[B,B]"),
    "weight_is_the_input_3d": _near(lambda m, x: F.relu(x @ x.transpose(1, 2)), rank=3, note="[B,T,T]"),
    "square": _near(lambda m, x: F.relu(x @ m.square + m.square_bias)),
    "square_transposed": _near(lambda m, x: F.relu(x @ m.square.T + m.square_bias)),
    "square_left": _near(lambda m, x: F.relu((m.square @ x.T).T + m.square_bias)),
    "square_left_transposed": _near(lambda m, x: F.relu((m.square.T @ x.T).T + m.square_bias)),
    "square_over_rows": _near(
        lambda m, x: m.square @ x + m.square_bias, rank=3, inputs=_normal((K, K)), note="contracts the rows"
    ),
    "square_over_rows_transposed": _near(
        lambda m, x: (_swap(x) @ m.square) + m.square_bias, rank=3, inputs=_normal((K, K))
    ),
    "square_result_transposed": _near(
        lambda m, x: _swap(x @ m.square.T) + m.square_bias,
        rank=3,
        inputs=_normal((K, K)),
        note="the bias meets the rows",
    ),
    "square_einsum": _near(lambda m, x: torch.einsum("bij,jk->bki", x, m.square), rank=3, inputs=_normal((K, K))),
    "square_mul_sum": _near(lambda m, x: (x.unsqueeze(-1) * m.square).sum(-1) + m.square_bias, note="x leaves the sum"),
    "over_time": _near(lambda m, x: F.linear(_swap(x), m.time_weight, m.time_bias).mT, rank=3, exporters=("dynamo",)),
    "scrambled_view": _near(
        lambda m, x: F.relu(F.linear(_swap(x).reshape(-1, T, K), m.weight, m.bias)), rank=3, note="[K,T] read as [T,K]"
    ),
    # another reader of a value inside
    "product_returned": _near(_product_returned),
    "sum_returned": _near(_sum_returned),
    "two_biases_on_one_product": _near(_two_biases_on_one_product),
    "product_squared": _near(_product_squared),
    "two_layers_of_one_weight": _near(
        lambda m, x: F.linear(F.relu(F.linear(x, m.square, m.square_bias)), m.square, m.square_bias)
    ),
    "gated": _near(lambda m, x: _linear(m, x) * torch.sigmoid(F.linear(x, m.weight2, m.bias2))),
    # no pointwise function of h, or not of h alone
    "softmax": _near(lambda m, x: torch.softmax(_linear(m, x), dim=-1)),
    "log_softmax": _near(lambda m, x: F.log_softmax(_linear(m, x), dim=-1)),
    "layer_norm": _near(lambda m, x: F.layer_norm(_linear(m, x), (N,), m.gamma, m.beta)),
    "batch_norm_in_training": _near(
        lambda m, x: _swap(F.batch_norm(_swap(x @ m.weight.T), None, None, m.gamma, m.beta, training=True)),
        rank=3,
        note="statistics of the batch",
    ),
    "batch_norm_of_steps": _near(
        lambda m, x: F.batch_norm(_linear(m, x), m.step_mean, m.step_var), rank=3, note="over T"
    ),
    "standardised_by_batch": _near(lambda m, x: _linear(m, x) - _linear(m, x).mean(0), note="over the batch"),
    "cumsum_between": _near(lambda m, x: torch.cumsum(x @ m.weight.T, dim=-1) + m.bias),
    "max_over_k": _near(lambda m, x: (x.unsqueeze(-2) * m.weight).amax(-1) + m.bias),
    "sum_over_n": _near(lambda m, x: F.relu((x.unsqueeze(-2) * m.weight).sum(-2))),
    "sum_over_batch": _near(lambda m, x: F.relu((x.unsqueeze(-2) * m.weight).sum(0))),
    "mean_over_k": _near(lambda m, x: (x.unsqueeze(-2) * m.weight).mean(-1) + m.bias, note="1/K stays"),
    "scaled_by_the_row": _near(lambda m, x: _linear(m, x) * x.abs().amax(-1, keepdim=True)),
    "masked_by_an_input": _near(lambda m, x, keep: torch.where(keep, _linear(m, x), 0.0), inputs=_masked),
    "shifted_along_n": _near(lambda m, x: F.relu(_linear(m, x).roll(1, -1)) + m.bias),
    "relu_before_bias": _near(lambda m, x: F.relu(x @ m.weight.T) + m.bias),
    "compared": _near(lambda m, x: _linear(m, x) > 0, note="a truth value is no result of the operator"),
    # NaN and infinity are part of the function
    "infinity_beside": _near(
        lambda m, x: torch.cat([torch.exp(_linear(m, x)[:, :9] * 99), torch.sigmoid(_linear(m, x)[:, 9:])], -1),
        note="a function that overflows in some columns only",
    ),
    "nan_through_where": _near(lambda m, x: torch.where(_linear(m, x) > 0, _linear(m, x), 0.0), inputs=_extremes),
    "nan_through_relu": _near(lambda m, x: F.relu(_linear(m, x)), inputs=_extremes),
    "nan_through_clamp": _near(lambda m, x: torch.clamp(_linear(m, x), 0.0, 6.0), inputs=_extremes),
    "nan_through_abs": _near(lambda m, x: (_linear(m, x) + _linear(m, x).abs()) / 2, inputs=_extremes),
    # convolutions that are no linear, or one of something else
    "conv_of_three": _near(lambda m, x: F.conv1d(_swap(x), m.conv3, m.bias), rank=3),
    "conv_in_groups": _near(lambda m, x: F.conv1d(_swap(x), m.conv_groups, m.bias, groups=4), "weight", rank=3),
    "conv_strided": _near(lambda m, x: F.conv1d(_swap(x), m.conv1, m.bias, stride=2), rank=3),
    "conv_padded": _near(lambda m, x: F.relu(F.conv1d(_swap(x), m.conv1, m.bias, padding=1)), rank=3),
    # the type
    "half_product": _near(
        lambda m, x: F.relu((x.half() @ m.weight.half().T).float() + m.bias), "dtype", note="fp16 product, fp32 bias"
    ),
    "double_product": _near(lambda m, x: F.linear(x.double(), m.weight.double()).float() + m.bias, "dtype"),
    "rounded_between": _near(lambda m, x: F.relu(F.linear(x, m.weight).bfloat16().float() + m.bias), "dtype"),
    "integer_product": _near(lambda m, x: x @ m.quantised.T.long() + 3, inputs=_integers),
    "truncated_between": _near(lambda m, x: F.linear(x, m.weight).to(torch.int32).float() + m.bias),
    # state and chance
    "added_in_place": _near(_added_in_place, note="a view of the product is read after the bias is added"),
    "read_before_written": _near(_read_before_written),
    "column_overwritten": _near(_column_overwritten),
    "buffer_written": _near(_buffer_written, exporters=(), note="each call differs from the one before"),
    "dropout_in_training": _near(lambda m, x: F.dropout(_linear(m, x), 0.5, training=True), random=True),
    "noise": _near(lambda m, x: F.relu(_linear(m, x) + torch.rand_like(_linear(m, x))), random=True),
}
