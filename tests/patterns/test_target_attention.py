"""Every spelling of target attention, by torch.export and by both exporters: one operator, and the same numbers."""

from __future__ import annotations

import onnx
import pytest
import torch
from spellings.export import BATCH, run_onnx, to_onnx, to_program
from spellings.target_attention import NEAR_MISSES, SPELLINGS

import recopt
from recopt.hosts.base import Node

from .harness import check_numbers, check_refused, exporters

EXPORTERS = exporters(SPELLINGS)


def is_fused(node: Node) -> bool:
    return node.op == "recopt.target_attention.default" or node.op.startswith("recopt::TargetAttention")


def check_one(result: recopt.Optimized) -> None:
    """One fused operator, and no layer of the network beside it."""
    ops = [n.op for n in result.host.nodes]
    assert sum(map(is_fused, result.host.nodes)) == 1, ops
    left = {"MatMul", "Gemm", "aten.linear.default", "aten.bmm.default", "aten.matmul.default", "recopt.linear.default"}
    assert not left & set(ops) and not any(op.startswith("recopt::Linear") for op in ops), ops
    assert not result.report.undone


@pytest.mark.parametrize("name", SPELLINGS)
def test_torch(name: str) -> None:
    case = SPELLINGS[name]
    result = recopt.optimize(to_program(case.module(), case.args(BATCH)), target=case.target)
    check_one(result)
    check_numbers(case, result)


def test_a_functional_program() -> None:
    """Its BatchNorm has outputs that nothing reads and no term states."""
    case = SPELLINGS["dice"]
    program = to_program(case.module(), case.args(BATCH)).run_decompositions({})
    assert any("native_batch_norm" in str(node.target) for node in program.graph.nodes)
    result = recopt.optimize(program, target="cpu")
    check_one(result)
    check_numbers(case, result)


@pytest.mark.parametrize(("exporter", "name"), EXPORTERS)
def test_onnx(exporter: str, name: str) -> None:
    case = SPELLINGS[name]
    file = to_onnx(case.module(), case.args(BATCH), dynamo=exporter == "dynamo")
    result = recopt.optimize(onnx.load_from_string(file), target="recopt")
    check_one(result)
    optimized = result.to_proto().SerializeToString()
    check_numbers(case, lambda *args: run_onnx(optimized, args))


@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
@pytest.mark.parametrize("name", ["paper", "softmaxed", "several", "dice"])
def test_standard_operators(name: str, target: str) -> None:
    case = SPELLINGS[name]
    file = to_onnx(case.module(), case.args(BATCH), dynamo=False)
    result = recopt.optimize(onnx.load_from_string(file), target=target)
    assert result.report.counts()["target-attention"] == 1
    optimized = result.to_proto()
    onnx.checker.check_model(optimized, full_check=True)
    check_numbers(case, lambda *args: run_onnx(optimized.SerializeToString(), args))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    result = check_refused(NEAR_MISSES[name], "target-attention")
    assert not any(is_fused(n) for n in result.host.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "softmaxed", "turned", "dice"])
def test_an_optimized_module_exports(name: str) -> None:
    case = SPELLINGS[name]
    result = recopt.optimize(to_program(case.module(), case.args(BATCH)), target="cpu")
    program = torch.onnx.export(
        result.model, case.args(BATCH), dynamo=True, input_names=["x0", "x1", "x2"], verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},) * 3,
        custom_translation_table=recopt.onnx_translations(),
    )  # fmt: skip
    assert program is not None
    file = program.model_proto.SerializeToString()
    check_numbers(case, lambda *args: run_onnx(file, args))
