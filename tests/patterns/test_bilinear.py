"""Products with projected items, in every spelling: q is projected instead, and the same numbers come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx
import pytest
import torch
from spellings.export import BATCH, run_onnx, to_onnx, to_program
from torch import Tensor, nn

import recopt
from recopt.hosts.base import Host

from .harness import check_numbers, check_refused, exporters

T, H, D = 31, 24, 13  # items, their width, that of what they are projected to


class Unit(nn.Module):
    """A seeded projection, and a spelling of what is done with it."""

    def __init__(self, spell: Callable[..., Any], bias: bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.layer = nn.Linear(H, D, bias=bias)
        self.spell = spell

    def forward(self, *args: Tensor) -> Any:
        return self.spell(self.layer, *args)


@dataclass(frozen=True)
class Case:
    """A spelling over items [B, T, H] and q [B, D]."""

    spell: Callable[..., Any]
    bias: bool = False
    reason: str = ""  # of a near miss
    items: int = T

    def module(self) -> nn.Module:
        return Unit(self.spell, self.bias).eval()

    def args(self, batch: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(batch)
        return torch.randn(batch, self.items, H, generator=g), torch.randn(batch, D, generator=g)


def softmaxed(layer: nn.Linear, x: Tensor, q: Tensor) -> Tensor:
    scores = torch.matmul(layer(x), q.unsqueeze(-1)).squeeze(-1)
    return torch.softmax(scores / D**0.5, -1).cumsum(1)


SPELLINGS = {
    "matmul": Case(lambda f, x, q: torch.matmul(f(x), q.unsqueeze(-1)).squeeze(-1)),
    "softmaxed": Case(softmaxed),
    "summed": Case(lambda f, x, q: (f(x) * q[:, None]).sum(-1)),
    "turned": Case(lambda f, x, q: torch.bmm(q[:, None], f(x).transpose(1, 2))[:, 0]),
    "einsum": Case(lambda f, x, q: torch.einsum("bd,btd->bt", q, 0.5 * (x @ f.weight.T))),
    "several queries": Case(lambda f, x, q: (q[:, None] + torch.arange(3.0)[:, None]).sin() @ f(x).transpose(1, 2)),
    "three at once": Case(lambda f, x, q: torch.einsum("bth,dh,bd->tb", x, f.weight, q)),
    "pieces": Case(lambda f, x, q: (f(x.reshape(-1, H)).reshape(-1, T, D) * q.unsqueeze(1)).sum(2, keepdim=True)),
}
NEAR_MISSES = {
    "bias": Case(SPELLINGS["matmul"].spell, bias=True, reason="has a bias"),
    "projection read again": Case(lambda f, x, q: (f(x) * q[:, None]).sum(-1) + f(x).amax(-1), reason="another user"),
    "activation": Case(lambda f, x, q: (torch.tanh(f(x)) * q[:, None]).sum(-1)),
    "one item": Case(SPELLINGS["matmul"].spell, items=1),
    "more queries than items": Case(lambda f, x, q: f(x[:, :3]) @ (q[..., None] * torch.arange(40.0))),
    "a q for each item": Case(lambda f, x, q: (f(x) * (q[:, None] + x[..., :D])).sum(-1)),
}
EXPORTERS = exporters(SPELLINGS)


def check_one(host: Host, report: recopt.Report) -> None:
    """It was rewritten, nothing has as many items as T of width D, and no query has a product of its own."""
    assert report.counts().get("bilinear") == 1, [r.reason for r in report.refusals]
    assert not report.undone
    wide = [v.name for node in host.nodes for v in node.outputs if v.shape and v.shape[-2:] in ((T, D), (D, T))]
    assert not wide and all(len(v.shape or ()) < 4 for node in host.nodes for v in node.outputs)


@pytest.mark.parametrize("name", SPELLINGS)
def test_torch(name: str) -> None:
    case = SPELLINGS[name]
    result = recopt.optimize(to_program(case.module(), case.args(BATCH)), target="cpu")
    check_one(result.host, result.report)
    check_numbers(case, result)


@pytest.mark.parametrize(("exporter", "name"), EXPORTERS)
def test_onnx(exporter: str, name: str) -> None:
    case = SPELLINGS[name]
    file = to_onnx(case.module(), case.args(BATCH), dynamo=exporter == "dynamo")
    result = recopt.optimize(onnx.load_from_string(file), target="ort-cpu")
    check_one(result.host, result.report)
    optimized = result.to_proto()
    onnx.checker.check_model(optimized, full_check=True)
    check_numbers(case, lambda *args: run_onnx(optimized.SerializeToString(), args))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    check_refused(NEAR_MISSES[name], "bilinear")
