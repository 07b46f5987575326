"""Random graphs of layout, integer and pointwise operators: one operator, the original's bits."""

from __future__ import annotations

import random

import pytest
import torch
from spellings.pointwise import inputs
from torch import Tensor, nn

import recopt

SEEDS = range(16)


class Graph(nn.Module):
    """A graph drawn from a seed: values [B, n] of int64 and float32, later ones made of earlier ones."""

    def __init__(self, seed: int, steps: int = 14) -> None:
        super().__init__()
        self.seed, self.steps = seed, steps

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        draw = random.Random(self.seed)
        values = [x, ids]
        for _ in range(self.steps):
            v = draw.choice(values)
            made = self.moved(draw, v, values) if draw.random() < 0.5 else self.computed(draw, v)
            if 0 < made.shape[1] <= 40:
                values.append(made)
        return tuple(values[-3:])

    def moved(self, draw: random.Random, v: Tensor, values: list[Tensor]) -> Tensor:
        width = v.shape[1]
        at = draw.randrange(width)
        other = draw.choice(values)
        return draw.choice(
            [
                lambda: v[:, at:],
                lambda: v.flip(1),
                lambda: v.roll(at, 1),
                lambda: torch.cat([v[:, at:], v[:, :at], v[:, at : at + 1]], 1),
                lambda: torch.cat([v.float(), other.float()], 1),
                lambda: torch.stack([v, v], 2).flatten(1),
                lambda: torch.stack([v, v], 1).transpose(1, 2).flatten(1),
                lambda: torch.nn.functional.pad(v, (1, 1))[:, : width + 1],
                lambda: v[:, [at, 0, width - 1]],
                lambda: v[:, ::2],
            ]
        )()

    def computed(self, draw: random.Random, v: Tensor) -> Tensor:
        n = draw.randrange(1, 2**40)
        if v.dtype == torch.int64:
            return draw.choice(
                [
                    lambda: v * n + 1,
                    lambda: v % n,
                    lambda: v % -n,
                    lambda: (v ^ (v >> 7)) & n,
                    lambda: v // n,
                    lambda: torch.where(v > 0, v, -v),
                    lambda: (v % 7 == 3).to(torch.int64),
                    lambda: (v % 1000).to(torch.float32) * 0.25,
                ]
            )()
        return draw.choice(
            [
                lambda: v * 0.5,
                lambda: v.abs() + 1.0,
                lambda: v.floor(),
                lambda: torch.where(v.isnan(), torch.zeros_like(v), v),
                lambda: torch.bucketize(v, torch.linspace(-2, 2, 9)),
                lambda: v.clamp(-1.5, 2.5),
                lambda: v.amax(1, keepdim=True) - v,
                lambda: -v,
            ]
        )()


@pytest.mark.parametrize("seed", SEEDS)
def test_random_regions(seed: int) -> None:
    module = Graph(seed)
    found = recopt.optimize(module, inputs(4), target="cuda")
    assert not found.report.undone
    for batch in (1, 5):
        args = inputs(batch, seed=seed + batch)
        for e, a in zip(module(*args), found(*args), strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)
