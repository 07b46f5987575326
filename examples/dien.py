"""DIEN: Zhou et al., "Deep Interest Evolution Network for Click-Through Rate Prediction" (2019)."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))  # a plain script finds its sibling, whatever the working folder
from common import BATCH, Dice, demo, mlp, seeded

HISTORY = {True: 20, False: 50}
HIDDEN = 128


class AUGRUCell(nn.Module):
    """A GRU step whose update gate is scaled by the attention score (section 4.3.2)."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.update = nn.Linear(size + hidden, hidden)
        self.reset = nn.Linear(size + hidden, hidden)
        self.candidate = nn.Linear(size + hidden, hidden)

    def forward(self, x: Tensor, h: Tensor, attention: Tensor) -> Tensor:
        """Return the next state [B, H] of x [B, I], h [B, H] and attention [B, 1]."""
        both = torch.cat([x, h], dim=-1)
        u = attention * torch.sigmoid(self.update(both))
        r = torch.sigmoid(self.reset(both))
        new = torch.tanh(self.candidate(torch.cat([x, r * h], dim=-1)))
        return (1.0 - u) * h + u * new


class Model(nn.Module):
    """A GRU over the history (interest extractor), attention against the candidate, an AUGRU (interest evolution)."""

    def __init__(self, users: int, items: int, categories: int = 100, dim: int = 32) -> None:
        super().__init__()
        self.user = nn.Embedding(users, dim)
        self.item = nn.Embedding(items, dim, padding_idx=0)
        self.category = nn.Embedding(categories, dim, padding_idx=0)
        self.extractor = nn.GRU(2 * dim, HIDDEN, batch_first=True)
        self.attend = nn.Linear(HIDDEN, 2 * dim, bias=False)
        self.evolution = AUGRUCell(HIDDEN, HIDDEN)
        self.mlp = mlp([3 * dim + HIDDEN, 200, 80], act=Dice)
        self.out = nn.Linear(80, 1)

    def forward(
        self, user: Tensor, item: Tensor, category: Tensor, items: Tensor, categories: Tensor, length: Tensor
    ) -> Tensor:
        """Return click probabilities [B] of user, item, category, length [B] and items, categories [B, T] (int64)."""
        candidate = torch.cat([self.item(item), self.category(category)], dim=-1)
        history = torch.cat([self.item(items), self.category(categories)], dim=-1)
        mask = torch.arange(items.shape[1], device=items.device) < length.unsqueeze(1)
        interests, _ = self.extractor(history)
        scores = torch.matmul(self.attend(interests), candidate.unsqueeze(-1)).squeeze(-1)
        attention = torch.softmax(scores.masked_fill(~mask, -1e9), dim=-1)
        h = torch.zeros_like(interests[:, 0])
        for t in range(items.shape[1]):
            # A padded step has an attention of zero, so the update gate itself keeps the state.
            h = self.evolution(interests[:, t], h, attention[:, t : t + 1])
        x = torch.cat([self.user(user), candidate, h], dim=-1)
        return torch.sigmoid(self.out(self.mlp(x))).squeeze(-1)


ROWS = {True: 1000, False: 100_000}


def model(small: bool = True) -> nn.Module:
    """Return the model in eval mode with seeded weights; small only shrinks the tables (1000 rows, not 100 000)."""
    return seeded(lambda: Model(users=ROWS[small], items=ROWS[small]))


def inputs(batch: int, seed: int = 0, small: bool = True) -> tuple[Tensor, ...]:
    """Return user, item, category [batch], items, categories [batch, T] and length [batch] in 1..T, all int64."""
    g = torch.Generator().manual_seed(seed)
    steps = HISTORY[small]
    user, item = torch.randint(1, ROWS[True], (2, batch), generator=g)
    category = torch.randint(1, 100, (batch,), generator=g)
    items = torch.randint(1, ROWS[True], (batch, steps), generator=g)
    categories = torch.randint(1, 100, (batch, steps), generator=g)
    length = torch.randint(1, steps + 1, (batch,), generator=g)
    present = torch.arange(steps) < length.unsqueeze(1)
    return user.clone(), item.clone(), category, items * present, categories * present, length


def dynamic_shapes() -> tuple[dict[int, torch.export.Dim], ...]:
    """Return torch.export's dynamic_shapes for inputs(): the batch is a symbol, the history is fixed."""
    return tuple({0: BATCH} for _ in range(6))


if __name__ == "__main__":
    demo("DIEN", model, inputs, dynamic_shapes)
