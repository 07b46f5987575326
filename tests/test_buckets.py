"""Step functions of data are known by what they count, however they are spelled."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from spellings.case import Plain
from spellings.export import BATCH, run_onnx, to_onnx
from torch import Tensor

import recopt

EDGES = torch.tensor([-1.5, -0.5, 0.0, 0.25, 0.25, 1.0, 2.5])
MANY = torch.linspace(-2, 2, 31)
SOME = torch.tensor([-0.0, 1.0, 2.5])
FOUR = (-2.0, -0.0, 0.5, 1.0)
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "bucketize": lambda x: torch.bucketize(x, EDGES),
    "bucketize to the right": lambda x: torch.bucketize(x, EDGES, right=True),
    "many edges": lambda x: torch.bucketize(x, MANY),
    "one edge": lambda x: torch.bucketize(x, EDGES[:1]),
    "summed comparisons": lambda x: (x.unsqueeze(-1) > EDGES).sum(-1),
    "those that are not above": lambda x: (~(x.unsqueeze(-1) <= EDGES)).long().sum(-1),
    "counted from the other end": lambda x: 7 - (x[..., None] < EDGES).long().sum(-1),
    "comparisons one by one": lambda x: (x > -0.0).long() + (x > 1).long() + (x > 2.5).long(),
    "nested choices": lambda x: functools.reduce(
        lambda y, n: torch.where(x < FOUR[n], n, y), (3, 2, 1, 0), torch.full_like(x, 4, dtype=torch.int64)
    ),
    "edges in front": lambda x: (x >= EDGES[:, None, None]).long().sum(0),
}
NEAR_MISSES: dict[str, Callable[[Tensor], Tensor]] = {
    "edges of their own for each column": lambda x: (x.unsqueeze(-1) > EDGES[:6, None] + SOME).sum(-1),
    "edges that are data": lambda x: (x.unsqueeze(-1) > x[:, None, :3]).sum(-1),
    "several elements are counted": lambda x: (x > 0).long().sum(1, keepdim=True),
    "counts of eight bits": lambda x: (x > 0).to(torch.uint8) + (x > 1).to(torch.uint8),
    "rises and falls": lambda x: (x > 0).long() - (x > 1).long(),
    "above at one edge and not at another": lambda x: (x > 0).long() + (x >= 1).long(),
    "data counts too": lambda x: (x > 0).long() + x.long(),
    "what NaN is is between": lambda x: (x > 0).long() + (~(x <= 1)).long(),
}
X = torch.cat(
    [EDGES, torch.nextafter(EDGES, torch.tensor(9.0)), torch.nextafter(EDGES, torch.tensor(-9.0)),
     torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45, 3e38]), torch.zeros(3)]
).reshape(-1, 6)  # fmt: skip


def optimized(spell: Callable[[Tensor], Tensor], dynamo: bool) -> tuple[bytes, recopt.Optimized]:
    file = to_onnx(Plain(spell), (torch.randn(BATCH, 6),), dynamo)
    return file, recopt.optimize(onnx.load_from_string(file))


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_five_operators(name: str, dynamo: bool) -> None:
    file, result = optimized(FORMS[name], dynamo)
    assert result.report.nodes_after <= 5, [n.op for n in result.host.nodes]
    rewritten = result.to_proto().SerializeToString()
    for x in (X, X[:1], X[:0]):
        np.testing.assert_array_equal(run_onnx(rewritten, (x,))[0], run_onnx(file, (x,))[0])


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_stay(name: str) -> None:
    file, result = optimized(NEAR_MISSES[name], dynamo=True)
    assert not any(v.endswith("_count") for n in result.host.nodes for v in [n.name])
    np.testing.assert_array_equal(run_onnx(result.to_proto().SerializeToString(), (X,))[0], run_onnx(file, (X,))[0])


@pytest.mark.parametrize("dynamo", [False, True])
def test_each_element_keeps_its_own(dynamo: bool) -> None:
    """A slice of a dimension that a reshape merged does not count along the outer part of it."""
    file, result = optimized(lambda x: (x.reshape(-1, 2, 3) > 0.5).reshape(-1, 6)[:, :2].long() + 2 - 2, dynamo)
    rewritten = result.to_proto().SerializeToString()
    x = torch.arange(12.0).reshape(2, 6) - 3
    np.testing.assert_array_equal(run_onnx(rewritten, (x,))[0], run_onnx(file, (x,))[0])


def test_what_follows_a_comparison_for_long_is_not_spelled_out() -> None:
    """Each softmax repeats the one before it four times: over the data, the last would be of 4**14 terms."""

    def spell(x: Tensor) -> Tensor:
        x = torch.where(x.isnan(), 0.0, x)
        for _ in range(14):
            x = torch.softmax(x * x.roll(1, -1), -1)
        return (x > 0.25).long()

    file, result = optimized(spell, dynamo=False)
    np.testing.assert_array_equal(run_onnx(result.to_proto().SerializeToString(), (X,))[0], run_onnx(file, (X,))[0])
