"""Spellings of target attention: DIN's unit in the forms that repositories write it in, and what looks like it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

T, D, N1, N2 = 9, 6, 10, 7  # items, their width, the layers' widths


class Unit(nn.Module):
    """A seeded network over pieces of target and items, and a spelling of what is done with it."""

    def __init__(self, spell: Callable[..., Any], pieces: int = 4, act: Callable[[], nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(11)
            self.first, self.second, self.last = nn.Linear(pieces * D, N1), nn.Linear(N1, N2), nn.Linear(N2, 1)
            self.one, self.two = act(), act()
            self.norm = nn.BatchNorm1d(N1, eps=1e-8)
            self.norm.running_mean = torch.randn(N1) * 0.3
            self.norm.running_var = torch.rand(N1) + 0.5
            self.alpha = nn.Parameter(torch.randn(N1) * 0.3)
            self.table = nn.Parameter(torch.randn(D + 1, D))
        self.spell = spell

    def network(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(self.two(self.second(self.one(self.first(x)))))
        return scores

    def dice(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.norm(x.transpose(1, 2)).transpose(1, 2))
        return p * x + (1 - p) * self.alpha * x

    def forward(self, *args: Tensor) -> Any:
        return self.spell(self, *args)


@dataclass(frozen=True)
class Case:
    """A spelling over target [B, D], items [B, T, D] and how many of them count [B]."""

    spell: Callable[..., Any]
    pieces: int = 4
    act: Callable[[], nn.Module] = nn.Sigmoid
    reason: str = ""  # of a near miss
    target: str = "cpu"  # which has nothing to gain of some, as small as they are here

    def module(self) -> nn.Module:
        """The spelling as a module in eval."""
        return Unit(self.spell, self.pieces, self.act).eval()

    def args(self, batch: int) -> tuple[Tensor, ...]:
        """Seeded inputs; at least one item counts."""
        g = torch.Generator().manual_seed(batch)
        target, items = torch.randn(batch, D, generator=g), torch.randn(batch, T, D, generator=g)
        return target, items, torch.randint(1, T + 1, (batch,), generator=g)


def seen(n: Tensor) -> Tensor:
    return torch.arange(T) < n[:, None]


def wide(q: Tensor) -> Tensor:
    return q[:, None].expand(-1, T, -1)


def full(q: Tensor, k: Tensor) -> Tensor:
    q = wide(q)
    return torch.cat([q, k, q - k, q * k], -1)


def paper(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    s = u.network(full(q, k)).squeeze(-1)
    return torch.bmm(torch.where(seen(n), s, torch.zeros_like(s))[:, None], k)[:, 0]


def softmaxed(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    s = u.network(full(q, k)).transpose(1, 2)
    s = torch.where(seen(n)[:, None], s, torch.full_like(s, -(2.0**32) + 1)) / math.sqrt(D)
    return torch.matmul(torch.softmax(s, -1), k).squeeze(1)


def multiplied(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    s = u.network(full(q, k)) * seen(n)[..., None].float()
    return (s * k).sum(1)


def repeated(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    q = q[:, None].repeat(1, T, 1)
    s = u.network(torch.cat([k, q, q * k, q - k], -1)).squeeze(-1)
    return torch.einsum("bt,btd->bd", s.masked_fill(~seen(n), 0.0), k)


def less(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    s = u.network(torch.cat([wide(q), k, wide(q) * k], -1))
    return (s.masked_fill(~seen(n)[..., None], 0.0) * k).sum(1)


def turned(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    s = u.network(torch.cat([k - wide(q), k * wide(q)], -1)).squeeze(-1)
    return (k.transpose(1, 2) @ torch.where(seen(n), s, 0.0)[..., None])[..., 0]


def with_dice(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    s = u.last(u.two(u.second(u.dice(u.first(full(q, k)))))).squeeze(-1)
    return torch.bmm(torch.where(seen(n), s, 0.0)[:, None], k)[:, 0]


def gated(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    s = torch.sigmoid(u.network(full(q, k))).squeeze(-1)
    return (torch.where(seen(n), s, 0.0)[..., None] * k).sum(1)


def averaged(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    s = u.network(full(q, k)).squeeze(-1)
    return (torch.where(seen(n), s, 0.0)[..., None] * k).mean(1)


def other_values(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    s = u.network(full(q, k)).squeeze(-1)
    return (torch.where(seen(n), s, 0.0)[..., None] * torch.cat([k, k.sin()], -1)).sum(1)


def shallow(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    s = u.last(u.first(full(q, k)).relu()[..., :N2]).squeeze(-1)
    return (torch.where(seen(n), s, 0.0)[..., None] * k).sum(1)


def flattened(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    s = u.network(full(q, k).reshape(-1, 4 * D)).view(-1, T)
    return (torch.where(seen(n), s, 0.0)[..., None] * k).sum(1)


def joined_pieces(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    """Target and items of two embeddings each."""
    q, k = torch.cat([q[:, :4].sin(), q[:, 4:].cos()], -1), torch.cat([k[..., :4].sin(), k[..., 4:].cos()], -1)
    return paper(u, q, k, n)


def looked_up(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    """Target and items are rows of one table, as they are."""
    target, items = (q > 0).long().sum(-1), (k > 0).long().sum(-1)
    return paper(u, F.embedding(target, u.table), F.embedding(items, u.table), n)


def sides(u: Any, q: Tensor, k: Tensor) -> Tensor:
    """The first layer of target and items as two, added up."""
    w = u.first.weight
    return F.linear(q, w[:, :D], u.first.bias)[:, None] + F.linear(k, w[:, D:])


def added(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    """Additive attention: softmax of v . tanh(W q + U k)."""
    s = (u.second.weight[0] * torch.tanh(sides(u, q, k))).sum(-1).masked_fill(~seen(n), -1e9)
    return torch.einsum("bt,btd->bd", torch.softmax(s, -1), k)


def added_deep(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    """More layers behind it, and the mask on what the scores weigh."""
    weighed = u.last(u.two(u.second(u.one(sides(u, q, k))))) * k
    return (weighed * seen(n).float()[..., None]).sum(1)


def several(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    """Three queries over one history."""
    q = torch.stack([q, 2 * q, q.flip(-1)], 1)[:, :, None].expand(-1, -1, T, -1)
    s = u.network(torch.cat([q, k[:, None].expand(-1, 3, -1, -1)], -1)).squeeze(-1)
    return torch.where(seen(n)[:, None], s, 0.0) @ k


SPELLINGS: dict[str, Case] = {
    "paper": Case(paper),
    "softmaxed": Case(softmaxed),
    "multiplied": Case(multiplied),
    "repeated": Case(repeated),
    "less": Case(less, 3),
    "turned": Case(turned, 2),
    "dice": Case(with_dice),
    "prelu": Case(paper, act=nn.PReLU),
    "relu": Case(paper, act=nn.ReLU),
    "gated": Case(gated),
    "averaged": Case(averaged),
    "other_values": Case(other_values),
    "joined_pieces": Case(joined_pieces),
    "looked_up": Case(looked_up),
    "flattened": Case(flattened),
    "several": Case(several, 2),
    "added": Case(added, 2, target="cuda"),
    "added_deep": Case(added_deep, 2, target="cuda"),
}


def scores_returned(u: Any, q: Tensor, k: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    s = u.network(full(q, k)).squeeze(-1)
    return (torch.where(seen(n), s, 0.0)[..., None] * k).sum(1), s


def two_targets(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    s = u.network(torch.cat([wide(q), k, wide(q.sin()) - k, wide(q) * k], -1)).squeeze(-1)
    return (torch.where(seen(n), s, 0.0)[..., None] * k).sum(1)


def added_twice(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    """Two things beside the items."""
    s = u.last(torch.relu(u.second(torch.sigmoid(sides(u, q, k) + sides(u, q.sin(), k))))).squeeze(-1)
    return (torch.where(seen(n), s, 0.0)[..., None] * k).sum(1)


def squares(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    s = u.network(torch.cat([wide(q), k, k * k, wide(q) * k], -1)).squeeze(-1)
    return (torch.where(seen(n), s, 0.0)[..., None] * k).sum(1)


def items_alone(u: Any, q: Tensor, k: Tensor, n: Tensor) -> Tensor:
    s = u.network(torch.cat([k, k, k, k], -1)).squeeze(-1)
    return (torch.where(seen(n), s, 0.0)[..., None] * k).sum(1)


NEAR_MISSES: dict[str, Case] = {
    "scores_returned": Case(scores_returned, reason="another user"),
    "two_targets": Case(two_targets, reason="side by side"),
    "added_twice": Case(added_twice, 2, reason="side by side"),
    "squares": Case(squares, reason="side by side"),
    "items_alone": Case(items_alone, reason="side by side"),
}
