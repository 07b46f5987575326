"""Linears whose channels come second, [B, K, space..]: 1x1 convolutions and their spellings, one operator that moves
neither x nor y."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spellings.export import run_onnx
from torch import Tensor, nn
from torch.testing import assert_close

import recopt

K, N = 24, 40
BATCHES = (1, 3, 7)


class Model(nn.Module):
    """The weights of all cases, and one of them."""

    def __init__(self, spell: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2, self.conv3 = nn.Conv1d(K, N, 1), nn.Conv2d(K, N, 1, bias=False), nn.Conv3d(K, N, 1)
        self.one, self.norm, self.prelu = nn.Conv1d(K, 1, 1), nn.BatchNorm2d(N), nn.PReLU(N)
        for parameter in (self.norm.weight, self.norm.bias, self.prelu.weight):
            nn.init.uniform_(parameter, 0.1, 0.9)
        self.spell = spell

    def forward(self, x: Tensor) -> Tensor:
        return self.spell(self, x)


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "conv1d": (lambda m, x: m.conv1(x), (5,)),
    "conv1d_relu": (lambda m, x: F.relu(m.conv1(x)), (5,)),
    "conv1d_to_one": (lambda m, x: torch.sigmoid(m.one(x)), (5,)),
    "conv2d_norm_relu": (lambda m, x: F.relu(m.norm(m.conv2(x))), (5, 3)),
    "conv2d_prelu": (lambda m, x: m.prelu(m.conv2(x)), (5, 3)),
    "conv2d_of_one": (lambda m, x: F.gelu(m.conv2(x)), (1, 1)),
    "conv3d": (lambda m, x: F.silu(m.conv3(x)), (2, 3, 4)),
    "weight_first": (lambda m, x: F.relu(m.conv1.weight[:, :, 0] @ x + m.conv1.bias[:, None]), (5,)),
    "einsum": (lambda m, x: F.gelu(torch.einsum("nk,bkt->bnt", m.conv1.weight[:, :, 0], x)), (5,)),
}


@pytest.mark.parametrize("name", CASES)
def test_one_operator(name: str, tmp_path: Path) -> None:
    spell, space = CASES[name]
    model = Model(spell).eval()
    result = recopt.optimize(model, (torch.randn(4, K, *space),))
    assert [n.op for n in result.host.nodes] == ["recopt.linear.default"]
    result.save(tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch in BATCHES:
        x = torch.randn(batch, K, *space)
        expected = model(x).detach()
        assert result(x).is_contiguous()  # as a convolution writes it
        assert_close(result(x), expected)
        assert_close(loaded(x), expected)


def test_between_layers() -> None:
    """The second reads what the first wrote, as it lies."""
    model = nn.Sequential(nn.Conv1d(K, N, 1), nn.ReLU(), nn.Conv1d(N, 8, 1)).eval()
    result = recopt.optimize(model, (torch.randn(4, K, 5),))
    assert [n.op for n in result.host.nodes] == ["recopt.linear.default"] * 2


def test_two_of_one_input() -> None:
    """They are not joined: a slice of the joint result would lie otherwise than the original's."""
    model = Model(lambda m, x: F.relu(m.conv1(x)) + torch.sigmoid(m.one(x)))
    result = recopt.optimize(model.eval(), (torch.randn(4, K, 5),))
    assert [n.op for n in result.host.nodes] == ["recopt.linear.default"] * 2 + ["aten.add.Tensor"]


def test_to_onnx() -> None:
    model = Model(CASES["conv2d_norm_relu"][0]).eval()
    x = torch.randn(4, K, 5, 3)
    program = torch.onnx.export(
        recopt.optimize(model, (x,)).model,
        (x,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        custom_translation_table=recopt.onnx_translations(),
        verbose=False,
    )
    assert program is not None
    assert [n.op_type for n in program.model_proto.graph.node] == ["Conv", "Relu"]
    x = torch.randn(3, K, 5, 3)
    assert_close(
        torch.from_numpy(run_onnx(program.model_proto.SerializeToString(), (x.numpy(),))[0]), model(x).detach()
    )


def test_compiled() -> None:
    model = Model(CASES["conv2d_prelu"][0]).eval()
    result = recopt.optimize(model, (torch.randn(4, K, 5, 3),))
    compiled = torch.compile(result.model, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, K, 5, 3)
    assert_close(compiled(x), model(x))
