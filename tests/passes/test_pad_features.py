"""pad_features: where zeros are written for rows that are no whole number of 16 bytes, and where not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import recopt

BELOW = torch.tril_indices(5, 5, -1)


class Model(nn.Module):
    """Lookups of rows of 7 and dense features, and a spelling of what a layer does with them."""

    def __init__(self, spell: Callable[..., Any], features: int, wide: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(30, 7) for _ in range(5))
        self.layer = nn.Linear(features, wide)
        self.spell = spell

    def forward(self, x: Tensor, ids: Tensor) -> Any:
        return self.spell(self, x, [table(ids[:, n]) for n, table in enumerate(self.tables)])


def interact(m: Model, x: Tensor, rows: list[Tensor]) -> Tensor:
    v = torch.stack(rows, 1)
    return m.layer(torch.cat([x, torch.bmm(v, v.mT)[:, BELOW[0], BELOW[1]]], 1))


def read_again(m: Model, x: Tensor, rows: list[Tensor]) -> Tensor:
    features = torch.cat([*rows, x], 1)
    return m.layer(features) + features.cumsum(0).amax(1, keepdim=True)


CASES: dict[str, tuple[Callable[..., Any], int, int, int]] = {  # features, outputs, columns of zeros
    "lookups": (lambda m, x, rows: torch.relu(m.layer(torch.cat([*rows, x], 1))), 41, 512, 3),
    "a concat": (lambda m, x, rows: torch.relu(m.layer(torch.cat([x.sin().cumsum(1), x.cos().cumsum(1)], 1)) * 2), 12,
                 2048, 0),
    "an odd concat": (lambda m, x, rows: m.layer(torch.cat([x.cumsum(1), x.cumsum(0), x.cumsum(1)[:, :1]], 1)), 13,
                      2048, 3),
    "products of pairs": (interact, 16, 2048, 0),
    "products of pairs beside others": (lambda m, x, rows: interact(m, torch.cat([x, x.cumsum(1)[:, :3]], 1), rows), 19,
                                        2048, 1),
    "few weights": (lambda m, x, rows: m.layer(torch.cat([*rows, x], 1)), 41, 30, 0),
    "read again": (read_again, 41, 512, 0),
    "given": (lambda m, x, rows: m.layer(x[:, :5]), 5, 4096, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_zeros_are_written_with_the_features(name: str) -> None:
    spell, features, wide, zeros = CASES[name]
    model = Model(spell, features, wide).eval()
    args = torch.randn(6, 6), torch.randint(30, (6, 5))
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        fast = recopt.optimize(model, args, target="cuda")
        assert [r.detail for r in fast.report.rewrites if r.pattern == "pad-features"] == (
            [f"{zeros} columns of zeros more"] if zeros else []
        )
        for batch in (6, 2):
            given = args[0][:batch], args[1][:batch]
            want = exact(given[0].double(), given[1]).float()
            torch.testing.assert_close(fast(*given), want, rtol=1e-5, atol=1e-5)


def test_other_targets_and_types_have_no_zeros() -> None:
    spell, features, wide, _ = CASES["lookups"]
    model = Model(spell, features, wide).eval()
    args = torch.randn(6, 6), torch.randint(30, (6, 5))
    with torch.no_grad():
        assert "pad-features" not in recopt.optimize(model, args, target="cpu").report.counts()
        half = recopt.optimize(model.half(), (args[0].half(), args[1]), target="cuda")
    assert "pad-features" not in half.report.counts()
