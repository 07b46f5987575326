"""Sums before layer normalisations in ONNX: ONNX Runtime makes no slower operator of both."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from spellings.export import BATCH, run_onnx, runs_as, to_onnx
from torch import Tensor, nn

import recopt


class Residual(nn.Module):
    """Two sums and their normalisations; the first sum is read again by the second, which may be an output."""

    def __init__(self, shown: bool = False) -> None:
        super().__init__()
        self.shown, self.linear, self.first, self.second = shown, nn.Linear(16, 16), nn.LayerNorm(16), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        inner = x + torch.tanh(x)
        outer = inner + self.linear(self.first(inner))
        return (self.second(outer), outer) if self.shown else (self.second(outer),)


@pytest.mark.parametrize(("target", "sums"), [("portable", 2), ("ort-cpu", 2), ("ort-cuda", 0)])
def test_targets(target: str, sums: int, tmp_path: Path) -> None:
    module, x = Residual().eval(), torch.randn(BATCH, 5, 16)
    given = onnx.load_from_string(to_onnx(module, (x,), dynamo=False))
    assert "SkipLayerNormalization" in runs_as(given, tmp_path)
    result = recopt.optimize(given, target=target)
    made = result.to_proto()
    assert [n.op_type for n in made.graph.node].count("Sum") == sums
    assert ("SkipLayerNormalization" in runs_as(made, tmp_path)) == (not sums)
    assert result.report.counts().get("separate-residuals", 0) == sums
    with torch.no_grad():
        torch.testing.assert_close(torch.as_tensor(run_onnx(made.SerializeToString(), (x,))[0]), module(x)[0])


def test_an_output_stays() -> None:
    given = onnx.load_from_string(to_onnx(Residual(shown=True).eval(), (torch.randn(BATCH, 5, 16),), dynamo=False))
    assert recopt.optimize(given, target="ort-cpu").report.counts().get("separate-residuals", 0) == 1
