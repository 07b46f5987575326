"""Every spelling computes what its reference does, on every road into the engine; near misses survive the roads too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .case import Case
from .export import BATCH, run_onnx, to_onnx, to_program
from .linear import NEAR_MISSES, SPELLINGS

BATCHES = (1, 3, BATCH)
Run = Callable[..., Any]


def _check(case: Case, run: Run) -> None:
    reference = case.reference().double()
    for batch in BATCHES:
        args = case.inputs(batch)
        with torch.no_grad():
            torch.testing.assert_close(run(*args), reference(*(arg.double() for arg in args)).float())


@pytest.mark.parametrize("name", SPELLINGS)
def test_eager(name: str) -> None:
    _check(SPELLINGS[name], SPELLINGS[name].module())


class _All(nn.Module):
    """Many cases of one shape as one module, since an export costs up to a second whatever its size."""

    def __init__(self, parts: list[Case]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part.module() for part in parts)

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(*args) for part in self.parts)


def _groups(size: int = 30) -> Iterator[tuple[str, ...]]:
    shapes: dict[tuple[int, int, tuple[str, ...]], list[str]] = {}
    for name, case in SPELLINGS.items():
        shapes.setdefault((case.rank, len(case.inputs(1)), case.exporters), []).append(name)
    for names in shapes.values():
        for i in range(0, len(names), size):
            yield tuple(names[i : i + size])


def _check_group(names: tuple[str, ...], run: Callable[..., Sequence[Any]]) -> None:
    with torch.no_grad():
        results = {batch: run(*SPELLINGS[names[0]].inputs(batch)) for batch in BATCHES}
    for i, name in enumerate(names):
        try:
            _check(SPELLINGS[name], lambda *args, i=i: torch.as_tensor(results[args[0].shape[0]][i]))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


GROUPS = list(_groups())


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: f"{names[0]}..")
def test_export(names: tuple[str, ...]) -> None:
    parts = [SPELLINGS[name] for name in names]
    program = to_program(_All(parts).eval(), parts[0].inputs(BATCH)).module()
    _check_group(names, program)


@pytest.mark.parametrize("exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "torchscript"])
@pytest.mark.parametrize("names", GROUPS, ids=lambda names: f"{names[0]}..")
def test_onnx(names: tuple[str, ...], exporter: str) -> None:
    parts = [SPELLINGS[name] for name in names]
    if exporter not in parts[0].exporters:
        pytest.skip("this exporter has no such operator")
    file = to_onnx(_All(parts).eval(), parts[0].inputs(BATCH), exporter == "dynamo")
    _check_group(names, lambda *args: run_onnx(file, args))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss_exports(name: str) -> None:
    near = NEAR_MISSES[name]
    program = to_program(near.module(), near.inputs(BATCH)).module()
    if near.random:
        return
    eager = near.module()
    for batch in BATCHES:
        torch.testing.assert_close(program(*near.inputs(batch)), eager(*near.inputs(batch)), equal_nan=True)
