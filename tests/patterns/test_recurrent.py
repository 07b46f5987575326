"""Every spelling of GRU and AUGRU, by torch.export and by both exporters: one operator, and the same numbers."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import onnx
import pytest
import torch
from spellings.export import BATCH, run_onnx, to_onnx, to_program
from spellings.recurrent import LOOPS, NEAR_MISSES, SPELLINGS, Case, over_again

import recopt
from recopt.hosts.base import Node

from .harness import check_numbers, check_refused, exporters

EXPORTERS = [*exporters(SPELLINGS), *(pytest.param("dynamo", name) for name in LOOPS)]  # of which the other knows none
CASES = SPELLINGS | LOOPS


def is_fused(node: Node) -> bool:
    return node.op in ("recopt.gru.default", "recopt.augru.default", "GRU") or node.op.startswith("recopt::Gru")


def check_fused(case: Case, result: recopt.Optimized) -> None:
    """As many operators as the case says, and nothing of a step beside them."""
    ops = [n.op for n in result.host.nodes]
    assert sum(map(is_fused, result.host.nodes)) == case.fused, (ops, [str(r) for r in result.report.refusals])
    assert not {"aten.sigmoid.default", "aten.tanh.default", "Sigmoid", "Tanh"} & set(ops), ops
    assert not result.report.undone


def run_file(file: bytes, args: tuple[Any, ...]) -> list[Any]:
    """The outputs of a file, which has those inputs alone that it reads."""
    names = [int(i.name[1:]) for i in onnx.load_from_string(file).graph.input]
    return run_onnx(file, tuple(args[n] for n in names))


@pytest.mark.parametrize("name", CASES)
def test_torch(name: str) -> None:
    case = CASES[name]
    result = recopt.optimize(to_program(case.module(), case.args(BATCH)), target="cpu")
    check_fused(case, result)
    check_numbers(case, result)


@pytest.mark.parametrize(("exporter", "name"), EXPORTERS)
def test_onnx(exporter: str, name: str) -> None:
    case = CASES[name]
    file = to_onnx(case.module(), case.args(BATCH), dynamo=exporter == "dynamo")
    result = recopt.optimize(onnx.load_from_string(file), target="recopt")
    check_fused(case, result)
    optimized = result.to_proto().SerializeToString()
    check_numbers(case, lambda *args: run_file(optimized, args))


@pytest.mark.parametrize("name", ["chunked", "hoisted", "dien_masked", "by_length"])
def test_more_than_ten_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions of one and of two digits, and sizes that an exporter makes up for every step."""
    monkeypatch.setattr("spellings.recurrent.T", 12)
    case = SPELLINGS[name]
    program = recopt.optimize(to_program(case.module(), case.args(BATCH)), target="cpu")
    file = recopt.optimize(
        onnx.load_from_string(to_onnx(case.module(), case.args(BATCH), dynamo=False)), target="recopt"
    )
    check_fused(case, program)
    check_fused(case, file)
    check_numbers(case, program)
    check_numbers(case, lambda *args: run_file(file.to_proto().SerializeToString(), args))


def test_many_turns() -> None:
    """What comes before a chain has no end that a step could be opened to."""
    case = Case(partial(over_again, turns=8), fused=8)
    result = recopt.optimize(to_program(case.module(), case.args(BATCH)), target="cpu")
    check_fused(case, result)
    check_numbers(case, result)


@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
@pytest.mark.parametrize("name", ["joined", "chunked", "first_state", "sequence", "in_the_middle"])
def test_the_standard_operator(name: str, target: str) -> None:
    """For a batch that is known to be small, where it is faster than the steps."""
    case = SPELLINGS[name]
    any_batch = onnx.load_from_string(to_onnx(case.module(), case.args(BATCH), dynamo=False))
    refused = recopt.optimize(any_batch, target=target).report.refusals
    assert any("at the nominal batch" in r.reason for r in refused if r.pattern == "gru")
    fixed, args = io.BytesIO(), case.args(BATCH)
    names = [f"x{n}" for n in range(len(args))]
    torch.onnx.export(case.module(), args, fixed, dynamo=False, input_names=names, opset_version=17)  # type: ignore[arg-type]  # a file
    result = recopt.optimize(onnx.load_from_string(fixed.getvalue()), target=target)
    assert [n.op for n in result.host.nodes].count("GRU") == 1
    optimized = result.to_proto()
    onnx.checker.check_model(optimized, full_check=True)
    with torch.no_grad():
        expected = case.module()(*args)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for found, exact in zip(run_file(optimized.SerializeToString(), args), expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(found), exact)


@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
@pytest.mark.parametrize("name", ["by_length", "dien_masked"])
def test_gates_in_standard_operators(name: str, target: str) -> None:
    """Written step by step, where that is shorter than what it replaces."""
    case = SPELLINGS[name]
    file = to_onnx(case.module(), case.args(BATCH), dynamo=False)
    result = recopt.optimize(onnx.load_from_string(file), target=target)
    made = result.report.counts().get("gru", 0)
    reasons = [r.reason for r in result.report.refusals if r.pattern == "gru"]
    assert made == 1 or any("as short as" in reason or "nominal batch" in reason for reason in reasons)
    check_numbers(case, lambda *args: run_file(result.to_proto().SerializeToString(), args))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    result = check_refused(NEAR_MISSES[name], "gru")
    assert not any(is_fused(n) for n in result.host.nodes)


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({"batch_first": True}, 1),
        ({"bias": False}, 1),
        ({"num_layers": 2, "batch_first": True, "dropout": 0.1}, 2),
        ({"bidirectional": True, "bias": False}, 2),
        ({"num_layers": 3, "bidirectional": True}, 6),
    ],
)
def test_layers(options: dict[str, Any], fused: int) -> None:
    """Each layer and direction of torch's own is one operator, and only layout is left."""
    module = torch.nn.GRU(5, 16, **options).eval()
    x, h0 = torch.randn(6, 6, 5), torch.randn(fused, 6, 16)
    program = torch.export.export(module, (x, h0), strict=False)
    result = recopt.optimize(program, target="cpu")
    ops = [n.op for n in result.host.nodes]
    assert ops.count("recopt.gru.default") == fused
    left = {"recopt.gru", *(f"aten.{op}" for op in "flip cat slice permute reshape select index".split())}
    assert {op.rpartition(".")[0] for op in ops} <= left
    assert not result.report.undone and result.report.rewrites[0].error is not None
    with torch.no_grad():
        for found, expected in zip(result(x, h0), module(x, h0), strict=True):
            torch.testing.assert_close(found, expected)


def test_layers_in_training() -> None:
    module = torch.nn.GRU(5, 16, 2, batch_first=True).train()
    program = torch.export.export(module, (torch.randn(4, 6, 5),), strict=False)
    result = recopt.optimize(program, target="cuda")
    assert not result.report.rewrites
    assert any("2 layers, training" in r.reason for r in result.report.refusals if r.pattern == "gru")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dien", "by_length", "sequence", "first_state"])
def test_exported_again(name: str) -> None:
    case = SPELLINGS[name]
    result = recopt.optimize(to_program(case.module(), case.args(BATCH)), target="cpu")
    args = case.args(BATCH)
    exported = torch.onnx.export(
        result.model,
        args,
        dynamo=True,
        dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in args),
        custom_translation_table=recopt.onnx_translations(),
        input_names=[f"x{n}" for n in range(len(args))],
        verbose=False,
    )
    assert exported is not None
    file = exported.model_proto.SerializeToString()
    check_numbers(case, lambda *args: run_file(file, args))
    nothing = tuple(x[:0] for x in args)  # at which ONNX Runtime's own GRU ends the process
    expected = case.module()(*nothing)
    for found, wanted in zip(
        run_file(file, nothing), expected if isinstance(expected, tuple) else (expected,), strict=True
    ):
        assert found.shape == wanted.shape
