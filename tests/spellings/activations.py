"""Spellings of the activation: each computes f(h) of a pre-activation h [..., N]; the reference is torch's own f."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-8
ROOT2 = math.sqrt(2.0)
ROOT_2_PI = math.sqrt(2.0 / math.pi)


def _swap(h: Tensor) -> Tensor:
    return h.transpose(-1, -2)


def _softplus(h: Tensor) -> Tensor:
    return torch.log1p(torch.exp(h))


def _gelu_tanh(h: Tensor) -> Tensor:
    return F.gelu(h, approximate="tanh")


def _prelu(m: Any, h: Tensor) -> Tensor:
    return F.prelu(h, m.slope) if h.dim() == 2 else _swap(F.prelu(_swap(h), m.slope))


def _dice(m: Any, h: Tensor) -> Tensor:
    p = torch.sigmoid((h - m.mean) / torch.sqrt(m.var + EPS))
    return p * h + (1 - p) * m.alpha * h  # type: ignore[no-any-return]


def _dice_norm(m: Any, h: Tensor) -> Tensor:
    def norm(x: Tensor) -> Tensor:
        return F.batch_norm(x, m.mean, m.var, training=False, eps=EPS)

    p = torch.sigmoid(norm(h) if h.dim() == 2 else _swap(norm(_swap(h))))
    return m.alpha * (1.0 - p) * h + p * h  # type: ignore[no-any-return]


# Family -> spellings of f(m, h); the first of each family is its canonical form.
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "none": {"identity": lambda m, h: h},
    "relu": {
        "relu": lambda m, h: F.relu(h),
        "relu_in_place": lambda m, h: F.relu(h, inplace=True),
        "relu_twice": lambda m, h: F.relu(torch.relu(h)),
        "clamp_min": lambda m, h: torch.clamp(h, min=0),
        "clamp_min_float": lambda m, h: h.clamp_min(0.0),
        "clamp_to_infinity": lambda m, h: torch.clamp(h, 0.0, math.inf),
        "maximum_zeros": lambda m, h: torch.maximum(h, torch.zeros_like(h)),
        "maximum_scalar": lambda m, h: torch.maximum(torch.tensor(0.0), h),
        "max_of_two": lambda m, h: torch.max(h, h.new_zeros(())),
        "where_gt": lambda m, h: torch.where(h > 0, h, 0.0),
        "where_ge": lambda m, h: torch.where(h >= 0, h, torch.zeros_like(h)),
        "where_lt": lambda m, h: torch.where(h < 0, 0.0, h),
        "where_zero_lt": lambda m, h: torch.where(torch.zeros_like(h) < h, h, 0.0),
        "masked_fill": lambda m, h: h.masked_fill(h < 0, 0.0),
        "threshold": lambda m, h: F.threshold(h, 0.0, 0.0),
        "mean_with_abs": lambda m, h: (h + h.abs()) / 2,
        "half_sum_with_abs": lambda m, h: 0.5 * (torch.abs(h) + h),
        "times_mask": lambda m, h: h * (h > 0),
        "times_float_mask": lambda m, h: (h > 0).float() * h,
        "leaky_of_zero": lambda m, h: F.leaky_relu(h, 0.0),
        "minus_min": lambda m, h: h - torch.clamp(h, max=0.0),
        "negated_min": lambda m, h: -torch.clamp(-h, max=0.0),
        "amax_of_stack": lambda m, h: torch.stack([h, torch.zeros_like(h)]).amax(0),
    },
    "relu6": {
        "relu6": lambda m, h: F.relu6(h),
        "clamp_0_6": lambda m, h: torch.clamp(h, 0.0, 6.0),
        "hardtanh_0_6": lambda m, h: F.hardtanh(h, 0.0, 6.0),
        "min_of_relu": lambda m, h: F.relu(h).clamp(max=6.0),
    },
    "sigmoid": {
        "sigmoid": lambda m, h: torch.sigmoid(h),
        "one_over": lambda m, h: 1 / (1 + torch.exp(-h)),
        "reciprocal": lambda m, h: torch.reciprocal(torch.exp(-h) + 1.0),
        "power_minus_one": lambda m, h: (1.0 + (-h).exp()) ** -1,
        "exp_over": lambda m, h: torch.exp(h) / (1 + torch.exp(h)),
        "by_tanh": lambda m, h: 0.5 * torch.tanh(0.5 * h) + 0.5,
        "one_minus": lambda m, h: 1 - torch.sigmoid(-h),
        "exp_of_log": lambda m, h: torch.exp(F.logsigmoid(h)),
    },
    "tanh": {
        "tanh": lambda m, h: torch.tanh(h),
        "by_sigmoid": lambda m, h: 2 * torch.sigmoid(2 * h) - 1,
        "by_exp": lambda m, h: (torch.exp(h) - torch.exp(-h)) / (torch.exp(h) + torch.exp(-h)),
        "one_minus_two": lambda m, h: 1 - 2 / (torch.exp(2 * h) + 1),
        "sinh_over_cosh": lambda m, h: torch.sinh(h) / torch.cosh(h),
    },
    "gelu": {
        "gelu": lambda m, h: F.gelu(h),
        "erf_div_root2": lambda m, h: h * 0.5 * (1.0 + torch.erf(h / ROOT2)),
        "erf_mul_root_half": lambda m, h: 0.5 * (h * (1.0 + torch.erf(h * 0.7071067811865476))),
        "half_on_h": lambda m, h: (0.5 * h) * (torch.erf(h / ROOT2) + 1),
        "half_on_cdf": lambda m, h: h * (0.5 * (1 + torch.erf(h / ROOT2))),
        "half_at_the_end": lambda m, h: h * (1 + torch.erf(h / ROOT2)) / 2,
        "half_spread": lambda m, h: (0.5 + 0.5 * torch.erf(h / ROOT2)) * h,
        "erfc": lambda m, h: 0.5 * h * (1 - torch.erf(-h * math.sqrt(0.5))),
        "sum_of_halves": lambda m, h: 0.5 * h + 0.5 * h * torch.erf(h / ROOT2),
    },
    "gelu_tanh": {
        "gelu_approximate": lambda m, h: _gelu_tanh(h),
        "tanh_pow": lambda m, h: 0.5 * h * (1 + torch.tanh(ROOT_2_PI * (h + 0.044715 * torch.pow(h, 3)))),
        "tanh_mul_mul": lambda m, h: 0.5 * h * (torch.tanh(0.7978845608028654 * (h + 0.044715 * h * h * h)) + 1),
        "tanh_factored": lambda m, h: h * 0.5 * (1 + torch.tanh(h * ROOT_2_PI * (1 + 0.044715 * h * h))),
        "tanh_as_sigmoid": lambda m, h: h * torch.sigmoid(2 * ROOT_2_PI * (h + 0.044715 * h**3)),
    },
    "quick_gelu": {
        "sigmoid_1702": lambda m, h: h * torch.sigmoid(1.702 * h),
        "exp_1702": lambda m, h: h / (1 + torch.exp(h * -1.702)),
    },
    "silu": {
        "silu": lambda m, h: F.silu(h),
        "times_sigmoid": lambda m, h: h * torch.sigmoid(h),
        "sigmoid_times": lambda m, h: h.sigmoid().mul(h),
        "times_expit": lambda m, h: h * torch.special.expit(h),
        "over_one_plus_exp": lambda m, h: h / (1 + torch.exp(-h)),
        "times_exp_over": lambda m, h: h * (torch.exp(h) / (1 + torch.exp(h))),
    },
    "mish": {
        "mish": lambda m, h: F.mish(h),
        "tanh_softplus": lambda m, h: h * torch.tanh(F.softplus(h)),
        "tanh_log1p_exp": lambda m, h: torch.tanh(_softplus(h)) * h,
        "tanh_log_one_plus_exp": lambda m, h: h * torch.tanh(torch.log(1 + torch.exp(h))),
    },
    "softplus": {
        "softplus": lambda m, h: F.softplus(h),
        "log1p_exp": lambda m, h: _softplus(h),
        "log_one_plus_exp": lambda m, h: torch.log(1.0 + torch.exp(h)),
        "minus_log_sigmoid": lambda m, h: -F.logsigmoid(-h),
        "stable": lambda m, h: F.relu(h) + torch.log1p(torch.exp(-h.abs())),
    },
    "leaky_relu": {
        "leaky_relu": lambda m, h: F.leaky_relu(h, 0.1),
        "maximum": lambda m, h: torch.maximum(h, 0.1 * h),
        "where": lambda m, h: torch.where(h > 0, h, 0.1 * h),
        "two_relus": lambda m, h: F.relu(h) - 0.1 * F.relu(-h),
        "linear_plus_relu": lambda m, h: 0.1 * h + 0.9 * F.relu(h),
        "two_clamps": lambda m, h: h.clamp(min=0) + 0.1 * h.clamp(max=0),
        "prelu_of_one": lambda m, h: F.prelu(h, torch.tensor([0.1])),
        "with_abs": lambda m, h: 0.55 * h + 0.45 * h.abs(),
    },
    "prelu_one": {
        "prelu_scalar": lambda m, h: F.prelu(h, m.slope1),
        "prelu_scalar_where": lambda m, h: torch.where(h >= 0, h, h * m.slope1),
    },
    "prelu": {
        "prelu": lambda m, h: _prelu(m, h),
        "prelu_module": lambda m, h: m.prelu(h) if h.dim() == 2 else _swap(m.prelu(_swap(h))),
        "prelu_where": lambda m, h: torch.where(h > 0, h, m.slope * h),
        "prelu_two_relus": lambda m, h: F.relu(h) - m.slope * F.relu(-h),
        "prelu_clamps": lambda m, h: h.clamp(min=0) + m.slope * h.clamp(max=0),
        "prelu_maximum": lambda m, h: torch.maximum(h, m.slope * h),
    },
    "elu": {
        "elu": lambda m, h: F.elu(h, 1.5),
        "elu_where": lambda m, h: torch.where(h > 0, h, 1.5 * (torch.exp(h) - 1)),
        "elu_expm1": lambda m, h: torch.where(h > 0, h, 1.5 * torch.expm1(h)),
        "elu_relus": lambda m, h: F.relu(h) - 1.5 * F.relu(1 - torch.exp(h)),
    },
    "selu": {
        "selu": lambda m, h: F.selu(h),
        "selu_of_elu": lambda m, h: 1.0507009873554805 * F.elu(h, 1.6732632423543772),
    },
    "celu": {"celu": lambda m, h: F.celu(h, 0.5)},
    "hardsigmoid": {
        "hardsigmoid": lambda m, h: F.hardsigmoid(h),
        "clamp_sixth": lambda m, h: torch.clamp(h / 6 + 0.5, 0.0, 1.0),
        "relu6_of_three": lambda m, h: F.relu6(h + 3) / 6,
    },
    "hardswish": {
        "hardswish": lambda m, h: F.hardswish(h),
        "times_relu6": lambda m, h: h * F.relu6(h + 3) / 6,
        "times_clamp": lambda m, h: h * (torch.clamp(h + 3.0, 0.0, 6.0) * (1 / 6)),
        "times_hardsigmoid": lambda m, h: h * F.hardsigmoid(h),
    },
    "dice": {
        "dice": _dice,
        "dice_by_batch_norm": _dice_norm,
        "dice_factored": lambda m, h: (
            h * (m.alpha + (1 - m.alpha) * torch.sigmoid((h - m.mean) * torch.rsqrt(m.var + EPS)))
        ),
        "dice_as_blend": lambda m, h: torch.lerp(m.alpha * h, h, torch.sigmoid((h - m.mean) / (m.var + EPS).sqrt())),
    },
    "softsign": {"softsign": lambda m, h: F.softsign(h), "over_one_plus_abs": lambda m, h: h / (1 + h.abs())},
    "square": {
        "square": lambda m, h: h.square(),
        "times_itself": lambda m, h: h * h,
        "pow_two": lambda m, h: torch.pow(h, 2),
    },
    "squared_relu": {
        "squared_relu": lambda m, h: F.relu(h).square(),
        "relu_times_h": lambda m, h: F.relu(h) * h,
    },
    "unnamed": {
        "snake": lambda m, h: h + torch.sin(h) ** 2,
        "snake_by_cos": lambda m, h: h + 0.5 - 0.5 * torch.cos(2 * h),
    },
    "gauss": {
        "exp_of_square": lambda m, h: torch.exp(-h * h),
        "exp_of_pow": lambda m, h: torch.exp(-(h**2)),
    },
    "inverse_root": {
        "rsqrt": lambda m, h: torch.rsqrt(h * h + 1.0),
        "one_over_sqrt": lambda m, h: 1 / torch.sqrt(1 + h**2),
    },
    "atan": {
        "atan": lambda m, h: torch.atan(h),
        "atan2_of_one": lambda m, h: torch.atan2(h, torch.ones_like(h)),
        "asin_over_hypot": lambda m, h: torch.asin(h / torch.sqrt(h * h + 1)),
    },
    "atan2": {"atan2": lambda m, h: torch.atan2(h, m.shift)},
    "asinh": {"asinh": lambda m, h: torch.asinh(h), "log_of_sum": lambda m, h: torch.log(h + torch.sqrt(h * h + 1))},
    "hypot": {"hypot": lambda m, h: torch.hypot(h, m.scale), "norm": lambda m, h: torch.sqrt(h * h + m.scale**2)},
    "sinh": {"sinh": lambda m, h: torch.sinh(h), "by_exp": lambda m, h: (torch.exp(h) - torch.exp(-h)) / 2},
    "cosh": {"cosh": lambda m, h: torch.cosh(h), "by_exp": lambda m, h: (torch.exp(h) + torch.exp(-h)) / 2},
    "exp2": {"exp2": lambda m, h: torch.exp2(h), "power_of_two": lambda m, h: torch.pow(2.0, h)},
    "xlogy": {"xlogy": lambda m, h: torch.xlogy(h, m.scale), "times_log": lambda m, h: h * torch.log(m.scale)},
    "fmax": {"fmax": lambda m, h: torch.fmax(h, m.shift), "maximum": lambda m, h: torch.maximum(h, m.shift)},
    "without_nan": {
        "nan_to_num": lambda m, h: torch.nan_to_num(h, 0.0, 9.0, -9.0),
        "where": lambda m, h: torch.where(h.isnan(), 0.0, torch.where(h.isinf(), 9.0 * h.sign(), h)),
        "where_finite": lambda m, h: torch.where(h.isfinite(), h, torch.where(h.isnan(), 0.0, h.sign() * 9)),
    },
    "signed_root": {
        "signed_root": lambda m, h: h.sign() * h.abs().sqrt(),
        "where_root": lambda m, h: torch.where(h > 0, h.abs().sqrt(), -h.abs().sqrt()),
    },
    "scaled_relu": {
        "relu_then_affine": lambda m, h: F.relu(h) * m.gamma + m.beta,
        "relu_then_addcmul": lambda m, h: torch.addcmul(m.beta, torch.clamp(h, min=0), m.gamma),
    },
    "relu_norm": {
        "relu_then_norm_by_hand": lambda m, h: (
            (F.relu(h) - m.norm.running_mean) / torch.sqrt(m.norm.running_var + 1e-5) * m.norm.weight + m.norm.bias
        ),
        "relu_then_norm": lambda m, h: m.norm(F.relu(h)) if h.dim() == 2 else _swap(m.norm(_swap(F.relu(h)))),
    },
}
