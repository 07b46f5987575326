"""Softmaxes in ONNX: ONNX Runtime does not write them over their scores, not knowing that both have one shape."""

from __future__ import annotations

import onnx
import pytest
import torch
from spellings.export import BATCH, run_onnx, to_onnx
from torch import Tensor, nn

import recopt


class Heads(nn.Module):
    """Attention of x by itself, with two heads, and a softmax of an input."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, *args: Tensor) -> Tensor:
        x, mask = args
        q, k, v = (y.view(-1, x.shape[1], 2, 8).transpose(1, 2) for y in (self.q(x), self.k(x), x))
        weights = torch.softmax(q @ k.transpose(2, 3) / 3 + mask, -1)
        return (weights @ v).transpose(1, 2).reshape(x.shape) + torch.softmax(x, -1)


def batches(file: onnx.ModelProto) -> list[bool]:
    """Of the softmaxes of computed scores: whether ONNX finds out that their batch is that of the inputs."""
    found = onnx.shape_inference.infer_shapes(file)
    shapes = {v.name: v.type.tensor_type.shape.dim for v in found.graph.value_info}
    batch = found.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    read = [n.input[0] for n in found.graph.node if n.op_type == "Softmax" and n.input[0] != "x0"]
    return [shapes[name][0].dim_param == batch for name in read]


@pytest.mark.parametrize(("target", "columns", "open_"), [
    ("portable", 5, True), ("ort-cpu", 5, True), ("ort-cpu", 16, False), ("ort-cuda", 5, False),
])  # fmt: skip
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_targets(target: str, columns: int, open_: bool, dynamo: bool) -> None:
    """Not where a row is whole lines of a cache, which are as fast in place."""
    module, args = Heads().eval(), lambda b: (torch.randn(b, columns, 16), torch.randn(b, 1, 1, columns))
    given = onnx.load_from_string(to_onnx(module, args(BATCH), dynamo))
    result = recopt.optimize(given, target=target)
    made = result.to_proto()
    if target != "ort-cuda":  # which has one operator for all of it
        assert batches(made) == [not open_]
    assert result.report.counts().get("separate-softmaxes", 0) == open_
    for b in (1, 3):
        x = args(b)
        with torch.no_grad():
            torch.testing.assert_close(torch.as_tensor(run_onnx(made.SerializeToString(), x)[0]), module(*x))
    assert "separate-softmaxes" not in recopt.optimize(made, target=target).report.counts()
