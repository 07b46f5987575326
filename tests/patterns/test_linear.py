"""Every spelling of the linear family through torch.export and both ONNX exporters, and every near miss."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import onnx
import pytest
from spellings.export import BATCH, to_onnx, to_program
from spellings.linear import SPELLINGS
from torch import Tensor, nn

import recopt

from .harness import allows_layout, behind, groups, leftovers, numbers, runner, together

GROUPS = groups(SPELLINGS)
FEW = {name: SPELLINGS[name] for i, name in enumerate(SPELLINGS) if i % 36 == 0}  # the dynamo exporter takes its time
TARGETS = ("portable", "ort-cpu", "ort-cuda", "recopt")

# (exporter, names): all of what TorchScript carries, and of dynamo's, which takes minutes, all only when asked
ROADS = [
    *[pytest.param("torchscript", names, id=f"torchscript-{names[0]}") for names in GROUPS],
    *[pytest.param("dynamo", names, id=f"dynamo-few-{names[0]}") for names in groups(FEW)],
    *[pytest.param("dynamo", names, id=f"dynamo-{names[0]}", marks=pytest.mark.slow) for names in GROUPS],
]


def _inputs(names: Sequence[str]) -> tuple[Tensor, ...]:
    return tuple(x for name in names for x in SPELLINGS[name].inputs(BATCH))


@functools.cache
def _reference(name: str) -> nn.Module:
    return SPELLINGS[name].reference().double()


@functools.cache
def _file(exporter: str, names: tuple[str, ...]) -> onnx.ModelProto:
    if exporter not in SPELLINGS[names[0]].exporters:
        pytest.skip("this exporter has no such operator")
    return onnx.load_from_string(to_onnx(together(SPELLINGS, names), _inputs(names), exporter == "dynamo"))


def _check_structure(result: recopt.Optimized, names: Sequence[str]) -> None:
    wrong = {}
    for name, output in zip(names, result.host.outputs, strict=True):
        case = SPELLINGS[name]
        if name.startswith("second_user"):
            continue  # below
        why = leftovers(result.host, output, case.linears, allows_layout(case))
        if why:
            wrong[name] = why
    assert not wrong


def _check_numbers(result: recopt.Optimized, names: Sequence[str]) -> None:
    references = {name: _reference(name) for name in names}
    assert not dict(numbers(runner(result), names, SPELLINGS, references))


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_torch(names: tuple[str, ...]) -> None:
    program = to_program(together(SPELLINGS, names), _inputs(names))
    result = recopt.optimize(program, verify="rewrites")
    assert not result.report.undone
    _check_structure(result, names)
    _check_numbers(result, names)


@pytest.mark.parametrize(("exporter", "names"), ROADS)
def test_onnx(exporter: str, names: tuple[str, ...]) -> None:
    result = recopt.optimize(_file(exporter, names), target="recopt", verify="rewrites")
    assert not result.report.undone
    _check_structure(result, names)
    _check_numbers(result, names)


@pytest.mark.parametrize("target", ["portable", "ort-cpu", "ort-cuda"])
@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_targets(names: tuple[str, ...], target: str) -> None:
    before = recopt.optimize(_file("torchscript", names), passes=["clean-up"], verify="none")
    after = recopt.optimize(_file("torchscript", names), target=target, verify="shapes")
    counts = {
        name: (len(behind(before.host, was)), len(behind(after.host, now)))
        for name, was, now in zip(names, before.host.outputs, after.host.outputs, strict=True)
    }
    assert not {name: count for name, count in counts.items() if count[1] > count[0]}
    if target != "ort-cuda":  # whose operators the CPU does not have
        _check_numbers(after, names)
