"""Optional passes on bags that lie one after the other, several of them at once, alone, and on whole models."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import pytest
import roads
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spellings.export import run_onnx, to_onnx
from torch import Tensor

import recopt
from recopt.passes import CartesianTables, DedupeIds, HotRows, QuantizeTables

HOT = HotRows({"mean.weight": np.arange(20) % 7, "most.weight": np.arange(20) % 5})


class Ragged(torch.nn.Module):
    """Bags over flat ids: a mean, a sum without a bound, both of pads."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.EmbeddingBag(20, 12, mode="mean", padding_idx=3)
        self.most = torch.nn.EmbeddingBag(20, 12, mode="sum")

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return torch.cat([self.mean(ids, offsets), self.most(ids, offsets)], 1)


@functools.cache
def ragged(kind: str) -> tuple[torch.nn.Module, recopt.Optimized]:
    passes = {"quantize": [QuantizeTables(8)], "hot": [HOT], "dedupe": [DedupeIds(always=1)]}
    torch.manual_seed(0)
    model = Ragged().eval()
    dynamic = ({0: torch.export.Dim.AUTO},) * 2
    args = torch.arange(21) % 20, torch.tensor([0, 2, 2, 5, 9])
    return model, recopt.optimize(model, args, dynamic_shapes=dynamic, passes=["default", *passes[kind]])


@pytest.mark.parametrize("kind", ["quantize", "hot", "dedupe"])
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 4), min_size=2, max_size=6).filter(any), seed=st.integers(0, 99))
def test_bags_one_after_the_other(kind: str, lengths: list[int], seed: int) -> None:
    model, result = ragged(kind)
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, 20, sum(lengths)))
    offsets = torch.tensor([0, *np.cumsum(lengths)[:-1]])
    expected, found = model(ids, offsets).detach(), result(ids, offsets)
    if kind != "quantize":
        assert len([r for r in result.report.rewrites if r.pattern != "embedding-bags"]) == 1
        torch.testing.assert_close(found, expected)
        return
    (bound,) = [r.bound for r in result.report.rewrites if r.bound is not None]
    assert any("as many rows as the run says" in r for r in roads.reasons(result, "quantize-tables"))
    assert float((found - expected)[:, :12].abs().max()) <= bound + 1e-5
    torch.testing.assert_close(found[:, 12:], expected[:, 12:])


@pytest.mark.parametrize("road", roads.ROADS)
@pytest.mark.parametrize("fused", [True, False])
def test_several_at_once_and_without_the_fusion(road: str, fused: bool) -> None:
    counts = HotRows({"tables.0": np.arange(23)[::-1], "tables.3": np.arange(26) % 4})
    asked: list[Any] = [CartesianTables(60_000), counts, QuantizeTables(8, error=0.5), DedupeIds(always=1)]
    model, args = roads.module("columns"), roads.example()
    given_model: Any = onnx.load_from_string(to_onnx(model, args, dynamo=False)) if road != "cpu" else model
    passes = ["default", *asked] if fused else ["clean-up", *asked]
    result = recopt.optimize(given_model, args, target=road, passes=passes)
    made = result.report.counts()
    assert {"cartesian-tables", "hot-rows", "quantize-tables", "dedupe-ids"} - set(made) == set(), result.report
    assert not result.report.undone
    (bound,) = [r.bound for r in result.report.rewrites if r.bound is not None]
    for batch in (1, 3, 7):
        ids = torch.randint(0, roads.ROWS, (batch, roads.COUNT), generator=torch.Generator().manual_seed(batch))
        found = roads.runs(result)(ids, torch.ones(batch, roads.COUNT))
        assert float((found - model(ids, torch.ones(batch, roads.COUNT))).abs().max()) <= bound + 1e-5


class Small(torch.nn.Module):
    """A model as it is served: tables of several widths, a linear behind them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.tables = torch.nn.ModuleList(torch.nn.Embedding(200, 8 * n) for n in (1, 2, 3))
        self.history = torch.nn.EmbeddingBag(500, 16, mode="mean")
        self.head = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))

    def forward(self, *args: Tensor) -> Tensor:
        ids, past = args
        rows = [table(ids[:, n]) for n, table in enumerate(self.tables)]
        found: Tensor = self.head(torch.cat([*rows, self.history(past)], 1))
        return found


@pytest.mark.parametrize("road", ["cpu", "ort-cpu"])
def test_a_whole_model(road: str) -> None:
    model = Small().eval()
    args = torch.randint(0, 200, (4, 3)), torch.randint(0, 500, (4, 9))
    given_model: Any = onnx.load_from_string(to_onnx(model, args, dynamo=False)) if road != "cpu" else model
    result = recopt.optimize(given_model, args, target=road, passes=["default", QuantizeTables(8, error=0.02)])
    assert result.report.counts()["quantize-tables"] >= 1 and result.report.counts()["linear"] >= 1
    assert result.report.model_error is not None and result.report.model_error <= 1 and not result.report.undone
    run = result if road == "cpu" else lambda *a: torch.as_tensor(run_onnx(result.to_proto().SerializeToString(), a)[0])
    assert float((run(*args) - model(*args)).abs().max()) < 0.05


def test_a_limit_stops_optional_passes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECOPT_LIMIT", "1")
    result = roads.optimize(roads.module("columns"), "cpu", [QuantizeTables(8, error=1.0)])
    assert result.report.counts() == {"embedding-bags": 1}


@pytest.mark.parametrize("level", ["none", "shapes"])
def test_without_verification_the_report_says_so(level: str) -> None:
    result = roads.optimize(roads.module("columns"), "cpu", [QuantizeTables(8, error=1.0)], verify=level)
    text = " ".join(str(result.report).split())
    assert "model not verified; 1 places not verified to be within the bounds stated below" in text
