"""DIN: Zhou et al., "Deep Interest Network for Click-Through Rate Prediction" (2018)."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))  # a plain script finds its sibling, whatever the working folder
from common import BATCH, Dice, demo, mlp, seeded

HISTORY = 100


class ActivationUnit(nn.Module):
    """Score each history item against the candidate by a small MLP, then sum the history by score."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = mlp([4 * dim, 80, 40], act=Dice)
        self.out = nn.Linear(40, 1)

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Pool keys [B, T, D] by score against query [B, D] where mask [B, T]: [B, D]. No softmax (section 4.3)."""
        q = query.unsqueeze(1).expand(-1, keys.shape[1], -1)
        score = self.out(self.score(torch.cat([q, keys, q - keys, q * keys], dim=-1))).squeeze(-1)
        weights = torch.where(mask, score, torch.zeros_like(score))
        return torch.bmm(weights.unsqueeze(1), keys).squeeze(1)


class Model(nn.Module):
    """Embeddings of user, candidate and history, the activation unit, an MLP with Dice."""

    def __init__(self, users: int, items: int, categories: int = 100, dim: int = 32) -> None:
        super().__init__()
        self.user = nn.Embedding(users, dim)
        self.item = nn.Embedding(items, dim, padding_idx=0)
        self.category = nn.Embedding(categories, dim, padding_idx=0)
        self.unit = ActivationUnit(2 * dim)
        self.mlp = mlp([5 * dim, 200, 80], act=Dice)
        self.out = nn.Linear(80, 1)

    def forward(
        self, user: Tensor, item: Tensor, category: Tensor, items: Tensor, categories: Tensor, length: Tensor
    ) -> Tensor:
        """Return click probabilities [B] of user, item, category, length [B] and items, categories [B, T] (int64)."""
        query = torch.cat([self.item(item), self.category(category)], dim=-1)
        keys = torch.cat([self.item(items), self.category(categories)], dim=-1)
        mask = torch.arange(items.shape[1], device=items.device) < length.unsqueeze(1)
        interest = self.unit(query, keys, mask)
        x = torch.cat([self.user(user), query, interest], dim=-1)
        return torch.sigmoid(self.out(self.mlp(x))).squeeze(-1)


ROWS = {True: 1000, False: 100_000}


def model(small: bool = True) -> nn.Module:
    """Return the model in eval mode with seeded weights; small only shrinks the tables (1000 rows, not 100 000)."""
    return seeded(lambda: Model(users=ROWS[small], items=ROWS[small]))


def inputs(batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Return user, item, category [batch], items, categories [batch, 100] and length [batch] in 1..100, all int64."""
    g = torch.Generator().manual_seed(seed)
    user, item = torch.randint(1, ROWS[True], (2, batch), generator=g)
    category = torch.randint(1, 100, (batch,), generator=g)
    items = torch.randint(1, ROWS[True], (batch, HISTORY), generator=g)
    categories = torch.randint(1, 100, (batch, HISTORY), generator=g)
    length = torch.randint(1, HISTORY + 1, (batch,), generator=g)
    present = torch.arange(HISTORY) < length.unsqueeze(1)
    return user.clone(), item.clone(), category, items * present, categories * present, length


def dynamic_shapes() -> tuple[dict[int, torch.export.Dim], ...]:
    """Return torch.export's dynamic_shapes for inputs(): the batch is a symbol, the history is fixed."""
    return tuple({0: BATCH} for _ in range(6))


if __name__ == "__main__":
    demo("DIN", model, inputs, dynamic_shapes)
