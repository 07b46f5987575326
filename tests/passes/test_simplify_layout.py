"""Every form of layout by both hosts: the fewest operators, the same elements, nothing seen of it in torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnxruntime.capi.onnxruntime_pybind11_state import Fail as RuntimeException
from spellings.export import BATCH, run_onnx, to_onnx, to_program
from spellings.layout import FORMS, LAUNCHES, WIDTH
from torch import Tensor, nn

import recopt
from recopt.relayout import copies


class Spelled(nn.Module):
    """A form as a module."""

    def __init__(self, spell: Callable[..., Tensor]) -> None:
        super().__init__()
        self.spell = spell

    def forward(self, *args: Tensor) -> Tensor:
        return self.spell(*args)


def example(batch: int) -> Tensor:
    """Elements that are all different, so that none can stand for another."""
    return torch.arange(batch * WIDTH, dtype=torch.float32).reshape(batch, WIDTH) / 7


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_onnx(name: str, dynamo: bool) -> None:
    spell, fewest, _ = FORMS[name]
    file = to_onnx(Spelled(spell), (example(BATCH),), dynamo)
    result = recopt.optimize(onnx.load_from_string(file), target="portable")
    assert result.report.nodes_after <= fewest, [n.op for n in result.host.nodes]
    assert not result.report.undone
    optimized = result.to_proto().SerializeToString()
    onnx.checker.check_model(onnx.load_from_string(optimized), full_check=True)
    for x in map(example, (1, 3, 0)):
        try:
            expected = run_onnx(file, (x,))[0]
        except RuntimeException:  # a -1 beside an empty batch
            assert len(x) == 0
            continue
        np.testing.assert_array_equal(run_onnx(optimized, (x,))[0], expected)


@pytest.mark.parametrize("name", FORMS)
def test_torch(name: str) -> None:
    spell = FORMS[name][0]
    result = recopt.optimize(to_program(Spelled(spell), (example(BATCH),)))
    assert not result.report.undone and result.report.nodes_after <= result.report.nodes_before
    left = [n for n in result.host.nodes if not n.op.startswith("aten._assert_")]
    assert sum(map(copies, left)) == LAUNCHES[name], [n.op for n in left]
    for batch in (1, 3, 0):
        x = example(batch)
        try:
            expected = spell(x)
        except RuntimeError:  # likewise
            assert batch == 0
            continue
        found = result(x)
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride() or found.is_contiguous()


def test_zeros_at_the_end_of_what_is_joined() -> None:
    """What lies inside them is looked at by itself, with the places where the graph joined it."""
    spell = Spelled(lambda x: F.pad(torch.cat([x[:, 2:4].abs(), x[:, 7:8].sin()], 1), (0, 1)))
    program = recopt.optimize(to_program(spell, (example(BATCH),)))
    file = recopt.optimize(onnx.load_from_string(to_onnx(spell, (example(BATCH),), dynamo=False)))
    assert not program.report.undone and not file.report.undone
    torch.testing.assert_close(program(example(3)), spell(example(3)))
