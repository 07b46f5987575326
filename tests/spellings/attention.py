"""Spellings of attention, and what looks like it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import Plain

H, S, T, D = 4, 10, 11, 8  # heads, queries, keys, their width: all different
PLAIN = ((H, S, D), (H, T, D), (H, T, D))


@dataclass(frozen=True)
class Case:
    """A spelling of one attention over inputs of these shapes a row; "mask" has bools, "hidden" their opposite,
    "kept" floats of 0 and 1, "length" a number of keys, each beside its shape. `target` is that of the torch host: on a
    CPU learned queries do not pay."""

    spell: Callable[..., Any] | nn.Module
    shapes: tuple[tuple[Any, ...], ...] = PLAIN
    reason: str = ""  # of a near miss
    beside: tuple[str, ...] = ()  # what computes a mask
    onnx: bool = True  # whether both exporters carry it as one
    target: str = "cpu"

    def module(self) -> nn.Module:
        """The spelling as a module in eval."""
        return (self.spell if isinstance(self.spell, nn.Module) else Plain(self.spell)).eval()

    def args(self, batch: int) -> tuple[Tensor, ...]:
        """Seeded inputs; the first key of a row is always seen."""
        g = torch.Generator().manual_seed(batch)

        def one(shape: tuple[Any, ...]) -> Tensor:
            kind, *sizes = shape if shape and isinstance(shape[0], str) else ("normal", *shape)
            if kind == "length":
                return torch.randint(1, T + 1, (batch,), generator=g)
            if kind == "normal":
                return torch.randn(batch, *sizes, generator=g)
            seen = torch.rand(batch, *sizes, generator=g) > 0.4
            seen[..., 0] = True
            return seen if kind == "mask" else ~seen if kind == "hidden" else seen.float()

        return tuple(map(one, self.shapes))


def softmax(s: Tensor) -> Tensor:
    return torch.softmax(s, -1)


def turned(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)


def exps(s: Tensor) -> Tensor:
    return torch.exp(s - s.amax(-1, keepdim=True))


def normal(e: Tensor) -> Tensor:
    return e / e.sum(-1, keepdim=True)


def heads(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], H, -1).transpose(1, 2)


def joined(y: Tensor) -> Tensor:
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)


def flat(x: Tensor) -> Tensor:
    return heads(x).reshape(-1, x.shape[1], D)


def packed_five(x: Tensor) -> Tensor:
    q, k, v = x.reshape(x.shape[0], S, 3, H, D).permute(2, 0, 3, 1, 4)
    return softmax(q @ turned(k) / 3) @ v


def packed_chunks(x: Tensor) -> Tensor:
    q, k, v = map(heads, x.chunk(3, -1))
    return joined(softmax(q @ turned(k) / 3) @ v)


def rows_and_heads_in_one(x: Tensor, y: Tensor, m: Tensor) -> Tensor:
    s = torch.bmm(flat(x), flat(y).transpose(1, 2)).reshape(-1, H, S, T)
    s = s.masked_fill(~m[:, None, None, :], -1e9).reshape(-1, S, T)
    return joined(torch.bmm(softmax(s), flat(y)).reshape(-1, H, S, D))


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x[:, :, None].expand(-1, 2, 2, T, D).reshape(-1, H, T, D) for x in (k, v))
    return softmax(q @ turned(k) / 3) @ v


def grouped_heads_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two heads of queries for one of keys, and a mask for all heads."""
    s = torch.einsum("bskgd,btkd->bkgst", q, k).masked_fill(LOWER == 0, -math.inf)
    return torch.einsum("bkgst,btke->bskge", softmax(s), v)


def by_length(q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    s = (q[:, None] * k).sum(-1).masked_fill(torch.arange(T) >= n[:, None], -1e9)
    return (softmax(s)[..., None] * k).sum(1)


def interacting(x: Tensor) -> Tensor:
    """AutoInt's heads."""
    q, k, v = (torch.stack(torch.split(x * c, D, 2)) for c in (1.0, 0.7, 1.3))
    y = torch.einsum("hbst,hbtd->hbsd", softmax(torch.einsum("hbsd,hbtd->hbst", q, k)), v)
    return torch.cat(torch.unbind(y, 0), -1)


def both(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    weights = softmax(q @ turned(k))
    return weights @ v, weights


def only_the_highest(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ turned(k)
    return softmax(torch.where(s < s.topk(3).values[..., -1:], -1e9, s)) @ v


class SelfAttention(nn.Module):
    """torch's own multi-head attention, of x by itself."""

    def __init__(self, weights: bool = False, causal: bool = False) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, H, batch_first=True)
        self.weights, self.causal = weights, causal

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        ahead = torch.triu(torch.ones(S, S, dtype=torch.bool), 1) if self.causal else None
        y: Tensor = self.attention(x, x, x, hidden, self.weights, ahead)[0]
        return y


class Encoder(nn.Module):
    """A block of BERT, as its authors write it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.norm = nn.LayerNorm(32)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        added = (1.0 - seen[:, None, None, :].to(x.dtype)) * -10000.0
        q, k, v = (f(x).view(x.size(0), -1, H, 8).permute(0, 2, 1, 3) for f in (self.q, self.k, self.v))
        weights = F.dropout(softmax(torch.matmul(q, turned(k)) / math.sqrt(8) + added), 0.1, self.training)
        y = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous().view(x.size(0), -1, 32)
        normal: Tensor = self.norm(self.out(y) + x)
        return normal


SLOPES = torch.tensor([0.5, 0.25, 0.1, 0.05])[:, None, None]
LOWER = torch.tril(torch.ones(S, T))


class Pooled(nn.Module):
    """Additive attention: learned queries over what a layer makes of the items."""

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.items, self.queries = nn.Linear(D, 6), nn.Linear(6, queries, bias=False)

    def forward(self, k: Tensor) -> Tensor:
        return turned(torch.softmax(self.queries(self.items(k).tanh()), 1)) @ k


NEARBY = torch.randn(S, T, D, generator=torch.Generator().manual_seed(6))
GENERAL = torch.randn(D, D, generator=torch.Generator().manual_seed(5)) * 0.3

SPELLINGS: dict[str, Case] = {
    "plain": Case(lambda q, k, v: softmax(q @ turned(k) / math.sqrt(D)) @ v),
    "scale_on_q": Case(lambda q, k, v: softmax((q * D**-0.5) @ turned(k)) @ v),
    "scale_on_k": Case(lambda q, k, v: softmax(q @ turned(k / D**0.5)) @ v),
    "scale_on_both": Case(lambda q, k, v: softmax((q * D**-0.25) @ turned(k * D**-0.25)) @ v),
    "no_scale": Case(lambda q, k, v: softmax(q @ turned(k)) @ v),
    "softmax_axis_3": Case(lambda q, k, v: torch.softmax(q @ turned(k) / 3, 3) @ v),
    "masked_fill": Case(
        lambda q, k, v, m: softmax((q @ turned(k) / 3).masked_fill(~m, -1e9)) @ v, (*PLAIN, ("mask", 1, 1, T))
    ),
    "masked_fill_inf": Case(
        lambda q, k, v, m: softmax((q @ turned(k) / 3).masked_fill(~m, -math.inf)) @ v, (*PLAIN, ("mask", 1, 1, T))
    ),
    "where_scalar": Case(
        lambda q, k, v, m: softmax(torch.where(m, q @ turned(k) / 3, torch.tensor(-1e4))) @ v,
        (*PLAIN, ("mask", 1, S, T)),
    ),
    "mask_added": Case(lambda q, k, v, m: softmax((1 - m) * -1e4 + q @ turned(k) / 3) @ v, (*PLAIN, ("kept", 1, 1, T))),
    "mask_of_rows": Case(
        lambda q, k, v, m: softmax(q @ turned(k) / 3 + (1 - m)[:, None, None, :] * -1e4) @ v, (*PLAIN, ("kept", T))
    ),
    "bias": Case(lambda q, k, v, b: softmax(q @ turned(k) / 3 + b) @ v, (*PLAIN, (1, S, T))),
    "relative_keys": Case(
        lambda q, k, v, m: (
            softmax(
                (q @ turned(k) + torch.einsum("bhsd,std->bhst", q, NEARBY)) / 3 + (1 - m) * torch.finfo(m.dtype).min
            )
            @ v
        ),
        (*PLAIN, ("kept", 1, 1, T)),
        beside=("einsum", "Einsum"),
    ),
    "constant_bias": Case(lambda q, k, v: softmax(q @ turned(k) / 3 + SLOPES * torch.arange(T)) @ v),
    "causal": Case(lambda q, k, v: softmax((q @ turned(k) / 3).masked_fill(LOWER == 0, -math.inf)) @ v),
    "exponentials": Case(lambda q, k, v: normal(exps(q @ turned(k) / 3)) @ v),
    "no_maximum": Case(lambda q, k, v: normal(torch.exp(q @ turned(k) / 3)) @ v),
    "divided_after": Case(lambda q, k, v: exps(q @ turned(k) / 3) @ v / exps(q @ turned(k) / 3).sum(-1, keepdim=True)),
    "log_softmax": Case(lambda q, k, v: torch.log_softmax(q @ turned(k) / 3, -1).exp() @ v),
    "log_sum_exp": Case(
        lambda q, k, v: torch.exp(q @ turned(k) - torch.logsumexp(q @ turned(k), -1, keepdim=True)) @ v
    ),
    "masked_exponentials": Case(
        lambda q, k, v, m: normal(torch.exp(q @ turned(k) / 3) * m) @ v, (*PLAIN, ("mask", 1, 1, T))
    ),
    "divided_anew": Case(
        lambda q, k, v, m: normal(softmax(q @ turned(k) / 3) * (1 - m.float())) @ v,
        (*PLAIN, ("hidden", 1, 1, T)),
        beside=("_assert_tensor_metadata",),  # of the cast
    ),
    "lower_exponentials": Case(lambda q, k, v: normal(torch.pow(2.0, q @ turned(k) / 3).tril()) @ v),
    "keys_times_queries": Case(lambda q, k, v: softmax(turned(k @ turned(q)) / 3) @ v),
    "einsum": Case(
        lambda q, k, v: torch.einsum("bhst,bhte->bhse", softmax(torch.einsum("bhsd,bhtd->bhst", q, k) / 3), v)
    ),
    "einsum_heads_last": Case(
        lambda q, k, v: torch.einsum("bhst,bthe->bshe", softmax(torch.einsum("bshd,bthd->bhst", q, k) / 3), v),
        ((S, H, D), (T, H, D), (T, H, D)),
    ),
    "keys_stored_transposed": Case(lambda q, k, v: softmax(q @ k / 3) @ v, ((H, S, D), (H, D, T), (H, T, D))),
    "packed_chunks": Case(packed_chunks, ((S, 3 * H * D),), beside=("Add", "Div")),  # the sizes of chunks
    "packed_five": Case(packed_five, ((S, 3 * H * D),)),
    "grouped": Case(grouped, ((H, S, D), (2, T, D), (2, T, D))),
    "grouped_heads_last": Case(grouped_heads_last, ((S, 2, 2, D), (T, 2, D), (T, 2, D))),
    "one_head": Case(lambda q, k, v: torch.bmm(softmax(torch.bmm(q, turned(k)) / 3), v), ((S, D), (T, D), (T, D))),
    "rows_and_heads_in_one": Case(rows_and_heads_in_one, ((S, H * D), (T, H * D), ("mask", T))),
    "target": Case(lambda q, k: (softmax((k @ q[..., None])[..., 0])[:, None] @ k)[:, 0], ((D,), (T, D))),
    "target_sums": Case(lambda q, k: (softmax((q[:, None] * k).sum(-1) / 3)[..., None] * k).sum(1), ((D,), (T, D))),
    "target_general": Case(
        lambda q, k: (softmax((k @ GENERAL @ q[..., None])[..., 0])[..., None] * k).sum(1), ((D,), (T, D))
    ),
    "target_by_length": Case(by_length, ((D,), (T, D), ("length",))),
    "learned_queries": Case(Pooled(3), ((T, D),), beside=("tanh",), target="cuda"),
    "soft_cap": Case(lambda q, k, v: softmax(torch.tanh(q @ turned(k) / 20) * 20) @ v),
    "widened": Case(lambda q, k, v: softmax((q @ turned(k) / 3).double()).float() @ v),
    "dropout": Case(lambda q, k, v: F.dropout(softmax(q @ turned(k) / 3), 0.1, False) @ v),
    "interacting": Case(interacting, ((S, H * D),)),
    # the function of a score is the weight, without a softmax
    "sigmoid": Case(lambda q, k, v: torch.sigmoid(q @ turned(k)) @ v),
    "silu_over_a_number": Case(lambda q, k, v, m: F.silu(q @ turned(k)) / T * m @ v, (*PLAIN, ("kept", 1, 1, T))),
    "silu_by_hand": Case(
        lambda q, k, v: ((q @ turned(k) + 1) / (1 + torch.exp(-1 - q @ turned(k)))).tril() / T @ v,
    ),
    "squares_einsum": Case(
        lambda q, k, v: torch.einsum("bhst,bthe->bshe", F.relu(torch.einsum("bshd,bthd->bhst", q, k) / 3) ** 2, v),
        ((S, H, D), (T, H, D), (T, H, D)),
    ),
    "where_sigmoid": Case(
        lambda q, k, v, m: torch.where(m, torch.sigmoid(q @ turned(k) / 3), 0.0) @ v, (*PLAIN, ("mask", 1, 1, T))
    ),
}


def sigmoid_and_weights(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.sigmoid(q @ turned(k))
    return weights @ v, weights


MODELS: dict[str, Case] = {
    "self_attention": Case(SelfAttention(), ((S, 32),)),
    "averaged_weights_unused": Case(SelfAttention(weights=True), ((S, 32),)),
    "causal": Case(SelfAttention(causal=True), ((S, 32),)),
    "hidden_keys": Case(SelfAttention(), ((S, 32), ("hidden", S))),
    "encoder_layer": Case(nn.TransformerEncoderLayer(32, H, 48, batch_first=True), ((S, 32),)),
    "encoder": Case(Encoder(), ((S, 32), ("kept", S))),
}

NEAR_MISSES: dict[str, Case] = {
    "weights_returned": Case(both, reason="another user"),
    "another_axis": Case(
        lambda q, k, v: torch.softmax(q @ turned(k) / 3, -2) @ v, ((H, S, D), (H, S, D), (H, S, D)), "another axis"
    ),
    "epsilon": Case(lambda q, k, v: exps(q @ turned(k)) / (exps(q @ turned(k)).sum(-1, keepdim=True) + 1e-3) @ v),
    "mask_of_the_scores": Case(only_the_highest, reason="depend on the scores"),
    "two_products": Case(
        lambda q, k, v, r: softmax(q @ turned(k) + q @ turned(r)) @ v, (*PLAIN, (H, T, D)), "several products"
    ),
    "wide_scores": Case(
        lambda q, k, v: softmax(q.double() @ turned(k.double())).float() @ v, reason="several float types"
    ),
    "masked_above_alone": Case(
        lambda q, k, v, m: softmax(q @ turned(k)) * m @ v, (*PLAIN, ("mask", 1, 1, T)), "holds the values"
    ),
    "masked_below_alone": Case(
        lambda q, k, v, m: torch.exp(q @ turned(k)) / (torch.exp(q @ turned(k)) * m).sum(-1, keepdim=True) @ v,
        (*PLAIN, ("mask", 1, 1, T)),
        "leaves out other weights",
    ),
    "weighted_exponentials": Case(lambda q, k, v, w: normal(torch.exp(q @ turned(k)) * w) @ v, (*PLAIN, (1, 1, T))),
    "gate_of_experts": Case(lambda q, k: (softmax(q @ GENERAL)[..., None] * k).sum(1), ((D,), (D, D))),
    "sigmoid_returned": Case(sigmoid_and_weights, reason="another user"),
    "product_of_three": Case(lambda q, k, v: q @ turned(k) @ v),
    "of_weights": Case(lambda q, k, v: torch.sigmoid(q @ turned(k)) @ GENERAL.repeat(2, 1)[:T]),
    "other_scores_below": Case(
        lambda q, k, v: torch.exp(q @ turned(k)) / torch.exp(q @ turned(k) / 2).sum(-1, keepdim=True) @ v,
        reason="other scores",
    ),
}
