"""Ranking models at their full sizes: DLRM with one and with many lookups a table, DeepRecSys's RMC1 to 3, WDL.

Tables lie on the device from the start: the largest model holds 13 GB.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import dlrm
import wdl
from common import mlp, seeded

# Lookups of each table of MLPerf's multi-hot Criteo.
MANY = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)


class Concat(nn.Module):
    """A bottom MLP and pooled tables side by side, then a top MLP: Gupta et al., "The Architectural Implications of
    Facebook's DNN-based Personalized Recommendation" (2020)."""

    def __init__(self, tables: int, rows: int, lookups: int, bottom: Sequence[int], top: Sequence[int]) -> None:
        super().__init__()
        self.lookups = lookups
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, bottom[-1], mode="sum") for _ in range(tables))
        self.bottom = mlp(bottom)
        self.top = mlp([bottom[-1] * (tables + 1), *top], last=nn.Sigmoid())

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Return click probabilities [B] of dense [B, bottom[0]] and ids [B, tables * lookups] (int64)."""
        pooled = [table(part) for table, part in zip(self.tables, ids.split(self.lookups, 1), strict=True)]
        click: Tensor = self.top(torch.cat([self.bottom(dense), *pooled], 1))
        return click.squeeze(1)


class Ranker(NamedTuple):
    """What makes a model, and its inputs: dense features, ids a request, rows of its tables."""

    build: Callable[[], nn.Module]
    dense: int
    ids: int
    rows: int

    def model(self) -> nn.Module:
        """The model on the GPU, in eval mode, with seeded weights."""
        with torch.device("cuda"):
            return seeded(self.build)

    def inputs(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        """Uniform dense features and ids, on the CPU."""
        g = torch.Generator().manual_seed(seed)
        dense = torch.rand(batch, self.dense, generator=g)
        return dense, torch.randint(0, self.rows, (batch, self.ids), generator=g)


RANKERS = {
    "dlrm-1m": Ranker(lambda: dlrm.Model(1_000_000), 13, 26, 1_000_000),
    "dlrm-many": Ranker(lambda: dlrm.Model(1_000_000, hots=MANY), 13, sum(MANY), 1_000_000),
    "rmc1": Ranker(lambda: Concat(8, 1_000_000, 80, (256, 128, 32), (256, 64, 1)), 256, 640, 1_000_000),
    "rmc2": Ranker(lambda: Concat(32, 500_000, 120, (256, 128, 32), (512, 128, 1)), 256, 3840, 500_000),
    "rmc3": Ranker(lambda: Concat(10, 2_000_000, 20, (2560, 512, 32), (512, 128, 1)), 2560, 200, 2_000_000),
    "wdl-1m": Ranker(lambda: wdl.Model(1_000_000), 13, 26, 1_000_000),
}
