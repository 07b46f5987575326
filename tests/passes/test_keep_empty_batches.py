"""Matrices that are turned before a product in ONNX: a batch of none runs where it ran before."""

from __future__ import annotations

import onnx
import pytest
import torch
from spellings.export import BATCH, run_onnx, to_onnx
from torch import Tensor, nn
from torch.testing import assert_close

import recopt


class Stacks(nn.Module):
    """Lookups, and columns, side by side as columns of matrices, and matrices that the model turns, before layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(30, 5), nn.Linear(3, 4)

    def forward(self, ids: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        rows = torch.stack([self.table(ids[:, n]) for n in range(3)], 2)
        columns = torch.stack([x[:, :5], x[:, 5:10].sin(), x[:, :5] * 2], 2)
        return self.layer(rows), self.layer(columns), rows.transpose(1, 2) @ x[:, :5].unsqueeze(-1)


@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
def test_an_empty_batch_runs(target: str) -> None:
    model = Stacks().eval()
    args = torch.randint(0, 30, (BATCH, 3), generator=torch.Generator().manual_seed(0)), torch.randn(BATCH, 12)
    result = recopt.optimize(onnx.load_from_string(to_onnx(model, args, dynamo=False)), target=target)
    assert "Einsum" in [node.op for node in result.host.nodes] and not result.report.undone
    for batch in (BATCH, 1, 0):
        given = tuple(a[:batch] for a in args)
        with torch.no_grad():
            for found, expected in zip(
                run_onnx(result.to_proto().SerializeToString(), given), model(*given), strict=True
            ):
                assert_close(torch.from_numpy(found), expected)
