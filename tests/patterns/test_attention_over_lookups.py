"""Histories whose items are rows of tables: what pools them by scores is attention, and the lookups stay lookups."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
from spellings.export import run_onnx, to_onnx
from torch import Tensor, nn

import recopt

D, N, ROWS, T = 6, 10, 30, 9


class Looked(nn.Module):
    """A target and a history, each a row of one table beside a row of another, both frozen or both trained."""

    def __init__(self, unit: bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.one, self.two = nn.Embedding(ROWS, D), nn.Embedding(ROWS, D)
            self.first, self.last = nn.Linear(8 * D, N), nn.Linear(N, 1)
        self.unit = unit

    def forward(self, *args: Tensor) -> Tensor:
        one, two, ones, twos = args
        q = torch.cat([self.one(one), self.two(two)], -1)
        k = torch.cat([self.one(ones), self.two(twos)], -1)
        if self.unit:
            wide = q[:, None].expand(-1, T, -1)
            s = self.last(torch.relu(self.first(torch.cat([wide, k, wide - k, wide * k], -1)))).squeeze(-1)
        else:
            s = torch.softmax((k @ q[:, :, None])[:, :, 0] / D, -1)
        return torch.cat([q, (s[:, None] @ k)[:, 0]], -1)


def inputs(batch: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(batch)
    one, two = torch.randint(0, ROWS, (2, batch), generator=g)
    ones, twos = torch.randint(0, ROWS, (2, batch, T), generator=g)
    return one.clone(), two.clone(), ones.clone(), twos.clone()


def check(result: recopt.Optimized, name: str) -> None:
    counts = result.report.counts()
    assert counts[name] == 1, counts
    assert counts["embedding-bags"] >= 1, counts
    assert not result.report.undone


CASES = [(True, "target-attention"), (False, "attention")]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize(("unit", "name"), CASES)
def test_torch(unit: bool, name: str, target: str) -> None:
    model = Looked(unit).eval()
    result = recopt.optimize(model, inputs(4), target=target)
    check(result, name)
    for batch in (1, 5):
        with torch.no_grad():
            torch.testing.assert_close(result(*inputs(batch)), model(*inputs(batch)))


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize(("unit", "name"), CASES)
def test_onnx(unit: bool, name: str, dynamo: bool) -> None:
    model = Looked(unit).eval()
    file = to_onnx(model, inputs(4), dynamo=dynamo)
    result = recopt.optimize(onnx.load_from_string(file), target="recopt")
    counts: Any = result.report.counts()
    assert counts[name] == 1, counts
    assert not result.report.undone
    with torch.no_grad():
        expected = model(*inputs(5))
    (found,) = run_onnx(result.to_proto().SerializeToString(), inputs(5))
    torch.testing.assert_close(torch.as_tensor(found), expected)
