"""Weights of a softmax that no average takes, in every spelling: one operator for CUDA, and the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx
import pytest
import torch
from spellings.export import BATCH, run_onnx
from torch import Tensor, nn

import recopt

from .harness import check_numbers

T, D = 31, 13
OPERATOR = "recopt.attention_weights.default"


class Spelled(nn.Module):
    """A spelling of the weights, used twice, so that no average takes them."""

    def __init__(self, spell: Callable[..., Tensor]) -> None:
        super().__init__()
        self.spell = spell

    def forward(self, *args: Tensor) -> Tensor:
        w = self.spell(*args)
        return torch.cat([w, w.cumsum(-1)], -1)


@dataclass(frozen=True)
class Case:
    """A spelling over keys [B, T, D], a query [B, D] and a length [B]."""

    spell: Callable[..., Tensor]
    params: int = 0
    reason: str = ""  # of a near miss

    def module(self) -> nn.Module:
        return Spelled(self.spell).eval()

    def args(self, batch: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(batch)
        length = torch.randint(1, T + 1, (batch,), generator=g)
        return torch.randn(batch, T, D, generator=g), torch.randn(batch, D, generator=g), length


def h(k: Tensor, q: Tensor) -> Tensor:
    return (k @ q.unsqueeze(-1)).squeeze(-1)


def seen(length: Tensor) -> Tensor:
    return torch.arange(T) < length.unsqueeze(1)


def by_hand(k: Tensor, q: Tensor, length: Tensor) -> Tensor:
    e = (torch.einsum("bd,btd->bt", q, k) / D**0.5).exp()
    return e / e.sum(1, keepdim=True)


def of_seen(k: Tensor, q: Tensor, length: Tensor) -> Tensor:
    e = (h(k, q) - h(k, q).amax(-1, True)).exp() * seen(length)
    return e / e.sum(-1, True)


SPELLINGS = {
    "plain": Case(lambda k, q, n: torch.softmax(h(k, q), -1)),
    "by hand": Case(by_hand),
    "turned": Case(lambda k, q, n: torch.softmax((q[:, None] @ k.transpose(1, 2)) * 0.3, -1)[:, 0]),
    "multiplied": Case(lambda k, q, n: torch.softmax((k * q[:, None]).sum(2, keepdim=True), 1).squeeze(-1)),
    "soft cap": Case(lambda k, q, n: torch.log_softmax(9.0 * torch.tanh(h(k, q)), -1).exp()),
    "filled": Case(lambda k, q, n: torch.softmax(h(k, q).masked_fill(~seen(n), -1e9), -1), params=2),
    "chosen": Case(lambda k, q, n: torch.where(torch.arange(T) >= n[:, None], -1e9, h(k, q)).softmax(-1), params=2),
    "past its end": Case(of_seen, params=2),
    "added": Case(lambda k, q, n: torch.softmax(h(k, q) + k[..., 0].sign(), -1), params=1),
}
NEAR_MISSES = {
    "keys that queries share": Case(lambda k, q, n: torch.softmax(q @ k[0].T, -1)),
    "over the rows": Case(lambda k, q, n: torch.softmax(h(k, q), 0)),
    "no product": Case(lambda k, q, n: torch.softmax(k[..., 0] + q[:, :1], -1)),
    "two products": Case(lambda k, q, n: torch.softmax(h(k, q) + h(k, q.sin()), -1), reason="several products"),
    "another softmax's sum": Case(lambda k, q, n: h(k, q).exp() / h(k, q.sin()).exp().sum(-1, True), reason="other"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_one_operator(name: str) -> None:
    case = SPELLINGS[name]
    result = recopt.optimize(case.module(), case.args(BATCH), target="cuda")
    assert not result.report.undone
    nodes = [node for node in result.host.nodes if not all(map(result.host.is_constant, node.outputs))]
    parts = ("recopt", "aten.mul", "aten.lt", "aten.exp", "aten.softmax")
    kinds = [node.op for node in nodes if node.op.startswith(parts)]
    assert kinds == [OPERATOR], (kinds, [r.reason for r in result.report.refusals])
    fused = next(node for node in nodes if node.op == OPERATOR)
    assert len(fused.inputs) == 2 + case.params
    assert all(v.shape != (v.shape[0], T) or v.dtype != "bool" for v in fused.inputs if v.shape)
    check_numbers(case, result)


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    case = NEAR_MISSES[name]
    result = recopt.optimize(case.module(), case.args(BATCH), target="cuda")
    assert "attention-weights" not in result.report.counts() and not result.report.undone
    reasons = [r.reason for r in result.report.refusals if r.pattern == "attention-weights"]
    assert not case.reason or any(case.reason in reason for reason in reasons), reasons
    check_numbers(case, result)


def test_a_cpu_is_left_alone() -> None:
    case = SPELLINGS["filled"]
    result = recopt.optimize(case.module(), case.args(BATCH), target="cpu")
    assert "attention-weights" not in result.report.counts()


def test_exported() -> None:
    case = SPELLINGS["filled"]
    args = case.args(BATCH)
    fast = recopt.optimize(case.module(), args, target="cuda")
    file = torch.onnx.export(
        fast.model, args, dynamo=True, custom_translation_table=recopt.onnx_translations(), verbose=False
    )
    assert file is not None
    text = file.model_proto.SerializeToString()
    onnx.checker.check_model(onnx.load_from_string(text))
    (out,) = run_onnx(text, args)
    torch.testing.assert_close(torch.from_numpy(out), case.module()(*args))
