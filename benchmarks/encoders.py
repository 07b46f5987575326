"""BST and SASRec as users write them, for the benchmarks of whole models: seeded, in eval mode, small tables.

BST: Chen et al., "Behavior Sequence Transformer" (2019): the history and the candidate through one encoder of 8 heads
and width 64, then 1024-512-256 with LeakyReLU. SASRec: Kang & McAuley, "Self-Attentive Sequential Recommendation"
(2018): two causal blocks of one head and width 64, the last state against the candidate.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from examples.common import mlp, seeded

ITEMS, WIDTH = 1000, 64


class Bst(nn.Module):
    """Click probabilities of candidates after histories of items at positions."""

    def __init__(self, history: int) -> None:
        super().__init__()
        self.item = nn.Embedding(ITEMS, WIDTH, padding_idx=0)
        self.position = nn.Parameter(torch.randn(history + 1, WIDTH) / 8)
        self.encoder = nn.TransformerEncoderLayer(
            WIDTH, 8, 4 * WIDTH, activation=nn.functional.leaky_relu, batch_first=True
        )
        self.mlp = mlp([(history + 1) * WIDTH, 1024, 512, 256], act=lambda _: nn.LeakyReLU())
        self.out = nn.Linear(256, 1)

    def forward(self, items: Tensor, candidate: Tensor) -> Tensor:
        """Probabilities [B] of items [B, T], 0 where there is none, and candidate [B] (int64)."""
        ids = torch.cat([items, candidate.unsqueeze(1)], dim=1)
        x = self.encoder(self.item(ids) + self.position, src_key_padding_mask=ids == 0)
        return torch.sigmoid(self.out(self.mlp(x.flatten(1)))).squeeze(-1)


class SasrecBlock(nn.Module):
    """Causal attention, then a network over each position, each with its residual around a normalised input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, eps=1e-8)
        self.attention = nn.MultiheadAttention(WIDTH, 1, batch_first=True)
        self.norm_after = nn.LayerNorm(WIDTH, eps=1e-8)
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """States [B, T, D] of x [B, T, D]; hidden [T, T]: which keys a query does not see."""
        q = self.norm(x)
        x = q + self.attention(q, x, x, attn_mask=hidden, need_weights=False)[0]
        x = self.norm_after(x)
        return x + self.outer(torch.relu(self.inner(x)))


class Sasrec(nn.Module):
    """Scores of candidates after histories."""

    def __init__(self, history: int) -> None:
        super().__init__()
        self.item = nn.Embedding(ITEMS, WIDTH, padding_idx=0)
        nn.init.normal_(self.item.weight, std=WIDTH**-0.5)  # scores near 1
        self.position = nn.Parameter(torch.randn(history, WIDTH) / 8)
        self.blocks = nn.ModuleList(SasrecBlock() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-8)
        self.register_buffer("hidden", torch.ones(history, history, dtype=torch.bool).triu(1))

    def forward(self, items: Tensor, candidate: Tensor) -> Tensor:
        """Scores [B] of items [B, T], 0 in front where there is none, and candidate [B] (int64)."""
        there = (items != 0).unsqueeze(-1)
        x = (self.item(items) * WIDTH**0.5 + self.position) * there
        for block in self.blocks:
            x = block(x, self.hidden) * there
        return (self.norm(x)[:, -1] * self.item(candidate)).sum(-1)


def encoder(kind: type[nn.Module], history: int) -> SimpleNamespace:
    """`model` and `inputs` of a kind, as a module of examples has them."""

    def inputs(batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(seed)
        items = torch.randint(1, ITEMS, (batch, history), generator=g)
        length = torch.randint(1, history + 1, (batch, 1), generator=g)
        candidate = torch.randint(1, ITEMS, (batch,), generator=g)
        return items * (torch.arange(history) >= history - length), candidate

    return SimpleNamespace(model=lambda: seeded(lambda: kind(history)), inputs=inputs)


ENCODERS = {
    f"{name}{history}": encoder(kind, history)
    for name, kind in (("bst", Bst), ("sasrec", Sasrec))
    for history in (50, 200)
}
