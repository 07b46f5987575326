"""DLRM: Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems" (2019)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))  # a plain script finds its sibling, whatever the working folder
from common import BATCH, demo, mlp, seeded

DENSE = 13
HOTS = (1,) * 26  # lookups of each table: the one-hot fields of Criteo


class Model(nn.Module):
    """Tables pooled by EmbeddingBag, a bottom MLP, the pairwise dot products of the results, a top MLP."""

    row: Tensor
    column: Tensor

    def __init__(self, rows: int, dim: int = 128, hots: Sequence[int] = HOTS) -> None:
        super().__init__()
        self.hots = list(hots)
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, dim, mode="sum") for _ in hots)
        self.bottom = mlp([DENSE, 512, 256, dim])
        vectors = len(self.hots) + 1
        pairs = vectors * (vectors - 1) // 2
        self.top = mlp([dim + pairs, 1024, 1024, 512, 256, 1], last=nn.Sigmoid())
        below = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("row", below[0], persistent=False)
        self.register_buffer("column", below[1], persistent=False)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Return click probabilities [B] of dense [B, 13] and ids [B, sum(hots)] (int64, each table's in turn)."""
        x: Tensor = self.bottom(dense)
        pooled = [table(part) for table, part in zip(self.tables, torch.split(ids, self.hots, dim=1), strict=True)]
        vectors = torch.stack([x, *pooled], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        pairs = products[:, self.row, self.column]
        click: Tensor = self.top(torch.cat([x, pairs], dim=1))
        return click.squeeze(1)


ROWS = {True: 1000, False: 100_000}


def model(small: bool = True) -> nn.Module:
    """Return the model in eval mode with seeded weights; small only shrinks the tables (1000 rows, not 100 000)."""
    return seeded(lambda: Model(ROWS[small]))


def inputs(batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Return (dense [batch, 13] fp32, ids [batch, 26] int64) that every size of the model accepts."""
    g = torch.Generator().manual_seed(seed)
    dense = torch.rand(batch, DENSE, generator=g)
    return dense, torch.randint(0, ROWS[True], (batch, sum(HOTS)), generator=g)


def dynamic_shapes() -> tuple[dict[int, torch.export.Dim], ...]:
    """Return torch.export's dynamic_shapes for inputs(): the batch is a symbol."""
    return {0: BATCH}, {0: BATCH}


if __name__ == "__main__":
    demo("DLRM", model, inputs, dynamic_shapes)
