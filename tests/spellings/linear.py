"""Spellings of linear + bias + activation, and what looks like one and is none.

SPELLINGS holds every row of `products` under a ReLU, every row of `activations` over a plain linear, and some pairs of
the two; each at rank 2 and rank 3 where it has both, under "name_2d" and "name_3d".
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import ACTIVATIONS
from .case import Case, Spell, Spelling, cases
from .near_misses import NEAR_MISSES
from .products import PRODUCTS, linear

__all__ = ["NEAR_MISSES", "SPELLINGS"]


def _under(activation: Spell) -> Any:
    def wrap(product: Spell) -> Spell:
        return lambda m, *xs: activation(m, product(m, *xs))

    return wrap


def _over(activation: Spell) -> Spell:
    return lambda m, x: activation(m, F.linear(x, m.weight, m.bias))


def _activations() -> dict[str, Spelling]:
    out: dict[str, Spelling] = {}
    for family, spellings in ACTIVATIONS.items():
        canonical = next(iter(spellings.values()))
        for name, spell in spellings.items():
            out[f"{family}.{name}"] = Spelling(_over(spell), _over(canonical))
    return out


# An odd product under an odd activation: neither may hide the other.
PAIRS = (
    ("input_added", "silu", "times_sigmoid"),
    ("einsum_weight_first_3d", "silu", "over_one_plus_exp"),
    ("einsum_to_transposed", "gelu", "half_spread"),
    ("conv1d_over_time", "relu", "mean_with_abs"),
    ("conv2d_single", "prelu", "prelu_two_relus"),
    ("batch_norm_transposed", "dice", "dice_by_batch_norm"),
    ("batch_norm_by_hand", "mish", "tanh_log1p_exp"),
    ("transposed_product_and_bias", "hardswish", "times_clamp"),
    ("split_k_by_chunk", "leaky_relu", "maximum"),
    ("split_columns", "sigmoid", "exp_over"),
    ("unsqueeze_mul_sum", "gelu_tanh", "tanh_mul_mul"),
    ("ones_column", "elu", "elu_where"),
    ("add_mul_add", "relu", "clamp_min"),
    ("bmm_after_expand", "tanh", "by_exp"),
    ("int8_weight", "quick_gelu", "exp_1702"),
    ("time_first", "prelu", "prelu_where"),
    ("two_layers", "unnamed", "snake"),
)


def _pairs() -> dict[str, Spelling]:
    out: dict[str, Spelling] = {}
    for product, family, name in PAIRS:
        row, canonical = PRODUCTS[product], next(iter(ACTIVATIONS[family].values()))
        out[f"{product}+{name}"] = Spelling(
            _under(ACTIVATIONS[family][name])(row.spell),
            _under(canonical)(row.reference or linear),
            ranks=row.ranks,
            inputs=row.inputs,
        )
    return out


def _second_user(product: Spell) -> Spell:
    def spell(m: Any, x: Tensor) -> Tensor:
        p = product(m, x)
        return torch.cat([F.relu(p + m.bias), p], dim=-1)

    return spell


EXTRAS: dict[str, Spelling] = {
    "cat_of_halves_under_relu": Spelling(
        lambda m, x: torch.cat(
            [F.relu(F.linear(x, m.top, m.top_bias)), F.relu(F.linear(x, m.bottom, m.bottom_bias))], dim=-1
        ),
        lambda m, x: F.relu(linear(m, x)),
        note="one function of pieces that lie side by side",
    ),
    "function_of_both_signs": Spelling(
        lambda m, x: torch.cat([F.relu(linear(m, x)), F.relu(-linear(m, x))], dim=-1),
        lambda m, x: F.relu(F.linear(x, torch.cat([m.weight, -m.weight]), torch.cat([m.bias, -m.bias]))),
        note="CReLU: one function of a product and of its negative, beside each other",
    ),
    "function_of_two_scales": Spelling(
        lambda m, x: torch.cat([torch.sigmoid(linear(m, x)), torch.sigmoid(3 * linear(m, x))], dim=-1),
        lambda m, x: torch.sigmoid(torch.cat([linear(m, x), 3 * linear(m, x)], dim=-1)),
    ),
    "second_user_of_the_product": Spelling(
        _second_user(lambda m, x: x @ m.weight.T),
        _second_user(lambda m, x: F.linear(x, m.weight)),
        note="the product stays alive beside the activation, and a concatenation is left",
    ),
    "second_user_of_the_sum": Spelling(
        lambda m, x: torch.cat([F.relu(m.bias + x @ m.weight.T), torch.sigmoid(m.bias + x @ m.weight.T)], dim=-1),
        lambda m, x: torch.cat([F.relu(linear(m, x)), torch.sigmoid(linear(m, x))], dim=-1),
        note="one product under two activations; a concatenation is left",
    ),
}


def _relu(m: Any, h: Tensor) -> Tensor:
    return F.relu(h)


def _alone(spell: Spell) -> Spell:
    return spell


# What torch's exporters have no symbol for.
ROADS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("inner", "einsum_channel_first", "transposed_twice"), ("dynamo",)),
    **dict.fromkeys(("tanh.sinh_over_cosh", "elu.elu_expm1", "asinh.asinh", "sinh.sinh", "cosh.cosh"), ("dynamo",)),
    **dict.fromkeys(("exp2.exp2", "xlogy.xlogy"), ("dynamo",)),
    **dict.fromkeys(("hypot.hypot", "fmax.fmax"), ()),
}

SPELLINGS: dict[str, Case] = {
    **cases(PRODUCTS, _under(_relu), linear, ROADS),
    **cases(_activations(), _alone, linear, ROADS),
    **cases(_pairs(), _alone, linear),
    **cases(EXTRAS, _alone, linear),
}
