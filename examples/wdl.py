"""WDL: Cheng et al., "Wide & Deep Learning for Recommender Systems" (2016), on the fields of Criteo."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))  # a plain script finds its sibling, whatever the working folder
from common import BATCH, demo, mlp, seeded

DENSE = 13
FIELDS = 26


class Model(nn.Module):
    """A linear model over one weight per id (wide) beside an MLP over embeddings (deep)."""

    def __init__(self, rows: int, dim: int = 32) -> None:
        super().__init__()
        self.wide_tables = nn.ModuleList(nn.Embedding(rows, 1) for _ in range(FIELDS))
        self.wide_dense = nn.Linear(DENSE, 1)
        self.deep_tables = nn.ModuleList(nn.Embedding(rows, dim) for _ in range(FIELDS))
        self.deep = mlp([FIELDS * dim + DENSE, 1024, 512, 256])
        self.out = nn.Linear(256, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Return click probabilities [B] of dense [B, 13] and ids [B, 26] (int64)."""
        wide = self.wide_dense(dense)
        for i, table in enumerate(self.wide_tables):
            wide = wide + table(ids[:, i])
        columns = [table(ids[:, i]) for i, table in enumerate(self.deep_tables)]
        deep = self.out(self.deep(torch.cat([*columns, dense], dim=1)))
        return torch.sigmoid(wide + deep).squeeze(1)


ROWS = {True: 1000, False: 100_000}


def model(small: bool = True) -> nn.Module:
    """Return the model in eval mode with seeded weights; small only shrinks the tables (1000 rows, not 100 000)."""
    return seeded(lambda: Model(ROWS[small]))


def inputs(batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Return (dense [batch, 13] fp32, ids [batch, 26] int64) that every size of the model accepts."""
    g = torch.Generator().manual_seed(seed)
    dense = torch.rand(batch, DENSE, generator=g)
    return dense, torch.randint(0, ROWS[True], (batch, FIELDS), generator=g)


def dynamic_shapes() -> tuple[dict[int, torch.export.Dim], ...]:
    """Return torch.export's dynamic_shapes for inputs(): the batch is a symbol."""
    return {0: BATCH}, {0: BATCH}


if __name__ == "__main__":
    demo("WDL", model, inputs, dynamic_shapes)
