"""Every spelling of attention, through torch.export and through both exporters: one operator, and the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from spellings.attention import NEAR_MISSES, SPELLINGS, Case
from spellings.export import BATCH, run_onnx, to_onnx, to_program

import recopt
from recopt.hosts.base import Node

BATCHES = (1, 3, 7)
# What describes tensors anew, and what makes a mask of lengths or ids.
BESIDE = set("""
    slice select reshape view permute transpose unsqueeze squeeze split chunk unbind stack cat expand to
    bitwise_not arange ge lt rsub mul matmul linear sym_size
    Slice Reshape Transpose Unsqueeze Squeeze Split Gather Concat Expand Cast Not Sub Mul Shape Range Less Neg
    GreaterOrEqual MatMul
""".split())
EXPORTERS = [
    pytest.param(exporter, name, id=f"{exporter}-{name}", marks=[pytest.mark.slow] if exporter == "dynamo" else [])
    for name, case in SPELLINGS.items()
    if case.onnx
    for exporter in ("torchscript", "dynamo")
]


def is_fused(node: Node) -> bool:
    return node.op == "recopt.attention.default" or node.op.startswith("recopt::Attention")


def check_one(result: recopt.Optimized, beside: tuple[str, ...]) -> None:
    """One fused operator, no softmax beside it."""
    ops = [n.op.removeprefix("aten.").split(".")[0] for n in result.host.nodes if not is_fused(n)]
    assert sum(map(is_fused, result.host.nodes)) == 1, ops
    plain = {op for op in ops if not op.startswith("recopt")}
    assert plain <= BESIDE | {*beside}, ops
    assert not result.report.undone


def check_numbers(case: Case, run: Callable[..., Any]) -> None:
    module = case.module()
    for batch in BATCHES:
        args = case.args(batch)
        with torch.no_grad():
            expected, found = module(*args), run(*args)
        expected, found = ((v if isinstance(v, (tuple, list)) else (v,)) for v in (expected, found))
        for e, f in zip(expected, found, strict=True):
            torch.testing.assert_close(torch.as_tensor(np.asarray(f)), e, equal_nan=True)


@pytest.mark.parametrize("name", SPELLINGS)
def test_torch(name: str) -> None:
    case = SPELLINGS[name]
    result = recopt.optimize(to_program(case.module(), case.args(BATCH)), target="cpu")
    check_one(result, case.beside)
    check_numbers(case, result)


@pytest.mark.parametrize(("exporter", "name"), EXPORTERS)
def test_onnx(exporter: str, name: str) -> None:
    case = SPELLINGS[name]
    file = to_onnx(case.module(), case.args(BATCH), dynamo=exporter == "dynamo")
    result = recopt.optimize(onnx.load_from_string(file), target="recopt")
    check_one(result, case.beside)
    optimized = result.to_proto().SerializeToString()
    check_numbers(case, lambda *args: run_onnx(optimized, args))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    case = NEAR_MISSES[name]
    result = recopt.optimize(to_program(case.module(), case.args(BATCH)), target="cpu")
    check_numbers(case, result)
    assert not any(is_fused(n) for n in result.host.nodes)
    assert not result.report.undone
    reasons = [r.reason for r in result.report.refusals if r.pattern == "attention"]
    assert any(case.reason in reason for reason in [*reasons, ""]) if not case.reason else any(
        case.reason in reason for reason in reasons
    ), reasons
