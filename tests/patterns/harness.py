"""What a pattern's tests share: the nodes behind one output, many cases as one module, failures counted by case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from spellings.case import Case
from spellings.export import BATCH, run_onnx, to_program
from torch import Tensor, nn

import recopt
from recopt.hosts.base import Host, Node, Value

BATCHES = (1, 3, 7)
LAYOUT = {
    "aten.cat.default", "aten.slice.Tensor", "aten.permute.default", "aten.reshape.default", "aten.view.default",
    "Concat", "Slice", "Transpose", "Reshape", "Split", "Gather",
}  # fmt: skip


class All(nn.Module):
    """Cases as one module, since an export costs up to a second whatever its size: an output each, and inputs each, so
    that none shares a product with another."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        each = len(args) // len(self.parts)
        return tuple(part(*args[i * each : (i + 1) * each]) for i, part in enumerate(self.parts))


def groups(cases: Mapping[str, Case], size: int = 8) -> list[tuple[str, ...]]:
    """The names of cases that can be one module: same rank, same inputs, same exporters."""
    shapes: dict[tuple[int, int, tuple[str, ...]], list[str]] = {}
    for name, case in cases.items():
        shapes.setdefault((case.rank, len(case.inputs(1)), case.exporters), []).append(name)
    return [tuple(names[i : i + size]) for names in shapes.values() for i in range(0, len(names), size)]


def together(cases: Mapping[str, Case], names: Sequence[str]) -> nn.Module:
    """The cases `names` as one module."""
    return All([cases[name].module() for name in names]).eval()


def behind(host: Host, output: Value) -> list[Node]:
    """The nodes that compute an output, constant ones apart, in topological order."""
    seen: set[Node] = set()
    pending = [output]
    while pending:
        value = pending.pop()
        if value.node is not None and value.node not in seen and not host.is_constant(value):
            seen.add(value.node)
            pending += value.node.inputs
    return [node for node in host.nodes if node in seen]


def is_fused(node: Node) -> bool:
    """Whether a node is a fused linear."""
    return node.op == "recopt.linear.default" or node.op.startswith("recopt::Linear")


def leftovers(host: Host, output: Value, linears: int, layout: bool) -> str:
    """What is wrong with the nodes behind an output, "" where there are `linears` fused ones and nothing else (layout
    apart, where the case allows it)."""
    nodes = behind(host, output)
    ops = [n.op for n in nodes if not is_fused(n)]
    if sum(map(is_fused, nodes)) == linears and not [op for op in ops if not (layout and op in LAYOUT)]:
        return ""
    return f"{[n.op for n in nodes]}, wanted {linears} fused"


def allows_layout(case: Case) -> bool:
    """Whether the case's note says that its input is joined, or its result, by a concatenation."""
    return "concatenation" in case.note


def numbers(
    run: Callable[..., Any], names: Sequence[str], cases: Mapping[str, Case], references: Mapping[str, nn.Module]
) -> Iterator[tuple[str, str]]:
    """For each case whose output differs from its float64 reference: its name and how."""
    for batch in BATCHES:
        args = cases[names[0]].inputs(batch)
        with torch.no_grad():
            results = run(*args * len(names))
            for name, result in zip(names, results, strict=True):
                expected = references[name](*(arg.double() for arg in args)).float()
                try:
                    torch.testing.assert_close(torch.as_tensor(np.asarray(result)), expected)
                except AssertionError as error:
                    yield name, f"batch {batch}: {str(error).splitlines()[-1] if str(error) else error!r}"


def runner(result: recopt.Optimized) -> Callable[..., Sequence[Any]]:
    """The optimized model as a function; an ONNX model runs as `run_onnx` sets ONNX Runtime up."""
    if result.host.dialect != "onnx":
        return result
    file = result.to_proto().SerializeToString()
    return lambda *args: run_onnx(file, args)


def reasons(result: recopt.Optimized) -> list[str]:
    """Why places were refused, in words."""
    return [refusal.reason for refusal in result.report.refusals]


class Drawn(Protocol):
    """A case whose module and inputs are made from a seed."""

    def module(self) -> nn.Module: ...
    def args(self, batch: int) -> tuple[Tensor, ...]: ...


class Refused(Drawn, Protocol):
    """Such a case that must be refused, for the reason given, if any."""

    @property
    def reason(self) -> str: ...


def check_numbers(case: Drawn, run: Callable[..., Any]) -> None:
    """`run` gives what the case's module does, at several batch sizes; NaN where it gives NaN."""
    module = case.module()
    for batch in BATCHES:
        args = case.args(batch)
        with torch.no_grad():
            expected, found = module(*args), run(*args)
        expected, found = ((v if isinstance(v, (tuple, list)) else (v,)) for v in (expected, found))
        for e, f in zip(expected, found, strict=True):
            torch.testing.assert_close(torch.as_tensor(np.asarray(f)), e, equal_nan=True)


def check_refused(case: Refused, pattern: str) -> recopt.Optimized:
    """A near miss optimized for a CPU: it gives what its module does, nothing of it is undone, and where it names a
    reason, that is the pattern's."""
    result = recopt.optimize(to_program(case.module(), case.args(BATCH)), target="cpu")
    check_numbers(case, result)
    assert pattern not in result.report.counts() and not result.report.undone
    given = [refusal.reason for refusal in result.report.refusals if refusal.pattern == pattern]
    assert not case.reason or any(case.reason in reason for reason in given), given
    return result


def exporters(names: Iterable[str]) -> list[Any]:
    """Parameters (exporter, name): every case by both of torch's ONNX exporters."""
    return [
        pytest.param(exporter, name, id=f"{exporter}-{name}", marks=[pytest.mark.slow] if exporter == "dynamo" else [])
        for name in names
        for exporter in ("torchscript", "dynamo")
    ]
