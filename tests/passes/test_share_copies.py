"""Joins of the same elements in the same order are one, on every road; others, and outputs, stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch
from spellings.export import run_onnx, to_onnx
from torch import Tensor, nn

import recopt
from recopt.hosts.base import Host

JOINS = {"Concat", "aten.cat.default", "aten.stack.default"}
Read = Callable[[list[Tensor]], tuple[Tensor, Tensor]]

# two joins of three tensors [B, 1, 4], which are one
SAME: dict[str, Read] = {
    "along the fields and along the columns": lambda e: (torch.cat(e, 1), torch.cat(e, -1)),
    "flattened": lambda e: (torch.stack([t[:, 0] for t in e], 1), torch.cat([t.flatten(1) for t in e], 1)),
    "in two steps": lambda e: (torch.cat(e, 1), torch.cat([torch.cat(e[:2], 2), e[2]], 2)),
    "with a dimension more": lambda e: (torch.cat([t.unsqueeze(2) for t in e], 2), torch.cat(e, 1)),
}
APART: dict[str, Read] = {
    "another order": lambda e: (torch.cat(e, 1), torch.cat(e[::-1], -1)),
    "rows turned": lambda e: (torch.cat(e, 1), torch.stack([t[:, 0] for t in e], 2)),
    "one more": lambda e: (torch.cat(e, 1), torch.cat([*e, e[0]], -1)),
    "along the batch": lambda e: (torch.cat(e, 0), torch.cat(e, 1)),
}


class Model(nn.Module):
    """A factorization machine and a layer over what two joins hold."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.read = read

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.read([torch.sin(x), torch.cos(x), torch.exp(x)])
        return torch.cumsum(a, 1), torch.cumsum(b, -1)


def optimized(model: nn.Module, x: Tensor, road: str) -> tuple[recopt.Optimized, Callable[[Tensor], list[Tensor]]]:
    if road == "cpu":
        result = recopt.optimize(model, (x,))
        return result, lambda t: list(result(t))
    file = onnx.load_from_string(to_onnx(model, (x,), dynamo=False))
    result = recopt.optimize(file, target=road)
    data = result.to_proto().SerializeToString()
    return result, lambda t: [torch.from_numpy(a) for a in run_onnx(data, (t.numpy(),))]


def joins(host: Host) -> int:
    return sum(n.op in JOINS for n in host.nodes)


@pytest.mark.parametrize("road", ["cpu", "portable"])
@pytest.mark.parametrize("name", [*SAME, *APART])
def test_joins_of_the_same_are_one(name: str, road: str) -> None:
    model = Model((SAME | APART)[name])
    result, run = optimized(model, torch.randn(3, 1, 4), road)
    assert not result.report.undone
    assert ("share-copies" in result.report.counts()) == (name in SAME), result.report
    if name in SAME:
        assert joins(result.host) == 1
    for batch in (1, 3, 0):
        x = torch.randn(batch, 1, 4)
        for found, expected in zip(run(x), model(x), strict=True):
            torch.testing.assert_close(found, expected)


class Fields(nn.Module):
    """Lookups that a sum over fields and a layer read, each by a concat of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, 8) for _ in range(5))
        self.layer = nn.Linear(40, 3)

    def forward(self, ids: Tensor) -> Tensor:
        rows = [table(ids[:, n : n + 1]) for n, table in enumerate(self.tables)]
        fields, flat = torch.cat(rows, 1), torch.cat(rows, -1).flatten(1)
        return self.layer(flat) + (fields.sum(1) ** 2 - (fields**2).sum(1)).sum(1, keepdim=True)


def test_lookups_that_two_read_are_one_operator() -> None:
    model, ids = Fields().eval(), torch.randint(0, 20, (4, 5))
    result = recopt.optimize(model, (ids,))
    ops = [n.op for n in result.host.nodes]
    assert ops.count("recopt.embedding_bags.default") == 1 and not {"aten.embedding.default", *JOINS} & {*ops}
    torch.testing.assert_close(result(ids), model(ids))


class Outputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = [torch.sin(x), torch.cos(x)]
        return torch.cat(parts, 1), torch.cat(parts, 2).view(-1, 8)


def test_outputs_stay_tensors_of_their_own() -> None:
    result = recopt.optimize(Outputs(), (torch.randn(3, 1, 4),))
    first, second = result(torch.randn(3, 1, 4))
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
