"""Every form of layout by both hosts: the fewest operators, the same elements, nothing seen of it in torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail as RuntimeException
from spellings.export import BATCH, run_onnx, to_onnx, to_program
from spellings.layout import FORMS, LAUNCHES, NOT_SCRIPTED, WIDTH
from torch import Tensor, nn

import recopt
from recopt.layout.memory import copies


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


@pytest.mark.parametrize(
    ("name", "dynamo"), [(n, dynamo) for n in FORMS for dynamo in (False, True) if dynamo or n not in NOT_SCRIPTED]
)
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


@pytest.mark.parametrize("name", FORMS)
def test_cuda_takes_one_kernel(name: str) -> None:
    spell = FORMS[name][0]
    result = recopt.optimize(to_program(Spelled(spell), (example(BATCH),)), target="cuda")
    left = [n for n in result.host.nodes if not n.op.startswith("aten._assert_")]
    products = name.startswith("triangle")  # before the layout, which is what is taken
    assert not result.report.undone and sum(map(copies, left)) == 1 + products, [n.op for n in left]
    assert torch.equal(result(example(3)), spell(example(3)))


def test_outputs_do_not_share_what_they_did_not() -> None:
    def spell(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x.abs()
        return torch.cat([y[:, :9], y[:, 9:]], 1), y[:, :3], torch.stack(list(x.exp().unbind(1)), 1)  # type: ignore[return-value]

    result = recopt.optimize(to_program(Spelled(spell), (example(BATCH),)))  # type: ignore[arg-type]  # three outputs
    whole, part, other = result(example(3))
    expected = part.clone()
    whole.zero_()
    assert torch.equal(part, expected) and torch.equal(other, example(3).exp())
    assert [n.op for n in result.host.nodes].count("aten.clone.default") == 1


@pytest.mark.parametrize("host", ["torch", "onnx"])
def test_what_is_zero_for_most_is_not_for_all(host: str) -> None:
    def spell(x: Tensor) -> Tensor:
        return torch.cat([x[:, :2] * 0.0, x[:, 2:4] - x[:, 2:4], 0.0 / x[:, 4:6], x[:, 6:]], 1)

    x = example(3)
    x[:, :6] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 0.0, -1.0])
    if host == "torch":
        found = recopt.optimize(to_program(Spelled(spell), (example(BATCH),)))(x)
    else:
        file = recopt.optimize(onnx.load_from_string(to_onnx(Spelled(spell), (example(BATCH),), False))).to_proto()
        found = torch.as_tensor(run_onnx(file.SerializeToString(), (x,))[0])
    assert torch.equal(found.isnan(), spell(x).isnan())
    torch.testing.assert_close(1 / found, 1 / spell(x), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_whole_numbers_wrap_around(target: str) -> None:
    def spell(x: Tensor) -> Tensor:
        a, b = x[:, 0], x[:, 1]
        divided = [
            a * 7 % 7,
            (b + 7) % 7,
            (a << 48) >> 56,
            b * 8 // 8,
            (a << 3) & 7,
            (b + 14) // 7,
            a // 5 // 7,
            b % 99 % 11,
        ]
        return torch.stack([*divided, a * 7 % 7 + b], 1)

    ends = torch.tensor([2**63 - 1, -(2**63), -1, 0, 1, 2**62 + 5])
    x = torch.stack([ends, ends.flip(0)], 1)
    result = recopt.optimize(to_program(Spelled(spell), (x,)), target=target)
    assert not result.report.undone and torch.equal(result(x), spell(x))
