"""What looks like a linear and is none, through torch.export and the exporters; the wrong results that peers give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from spellings import onnx as files
from spellings.case import NearMiss
from spellings.export import BATCH, run_onnx, to_onnx, to_program
from spellings.linear import NEAR_MISSES
from spellings.onnx_build import w
from torch import Tensor

import recopt

from .harness import BATCHES, reasons, runner

EXPORTED = [
    pytest.param(exporter, name, id=f"{exporter}-{name}", marks=[pytest.mark.slow] if exporter == "dynamo" else [])
    for name, near in NEAR_MISSES.items()
    for exporter in near.exporters
]


def _check(near: NearMiss, result: recopt.Optimized, original: Callable[..., Any]) -> None:
    if near.random:
        ops = {n.op for n in result.host.nodes}
        assert any("ropout" in op or "and" in op for op in ops), ops
        return
    if near.reason:
        assert any(near.reason in reason for reason in reasons(result)), reasons(result)
    run = runner(result)
    for batch in BATCHES:
        args = near.inputs(batch)
        with torch.no_grad():
            expected, actual = original(*args), run(*args)
        expected = (expected,) if isinstance(expected, Tensor) else expected
        actual = (actual,) if isinstance(actual, Tensor) else actual
        for was, now in zip(expected, actual, strict=True):
            torch.testing.assert_close(torch.as_tensor(now), torch.as_tensor(was), equal_nan=True)


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_torch(name: str) -> None:
    near = NEAR_MISSES[name]
    result = recopt.optimize(to_program(near.module(), near.inputs(BATCH)), verify="none")
    _check(near, result, near.module())


@pytest.mark.parametrize(("exporter", "name"), EXPORTED)
def test_onnx(exporter: str, name: str) -> None:
    near = NEAR_MISSES[name]
    try:
        file = to_onnx(near.module(), near.inputs(BATCH), exporter == "dynamo")
    except (torch.onnx.errors.OnnxExporterError, AssertionError) as error:
        pytest.skip(f"the exporter refuses it: {(str(error).splitlines() or [repr(error)])[0]}")
    result = recopt.optimize(onnx.load_from_string(file), target="recopt", verify="none")
    # the exporter's own mistakes (in-place writes through a view) are not ours: the file is what must stay as it was
    _check(near, result, lambda *args: run_onnx(file, args))


# Wrong results seen in peers, by name.


def _ops(name: str) -> list[str]:
    model = files.ONNX_NEAR_MISSES[name].model()
    result = recopt.optimize(model, target="recopt", verify="none")
    x = files.inputs(model, 3)
    was, now = (run_onnx(file.SerializeToString(), (x,)) for file in (model, result.to_proto()))
    for a, b in zip(was, now, strict=True):
        torch.testing.assert_close(b, a)
    return [n.op for n in result.host.nodes if n.op.startswith("recopt::")]


@pytest.mark.parametrize("flags", ["00", "01", "10", "11"])
def test_trans_flags_flipped_without_swapping_operands(flags: str) -> None:
    """On a square weight a flag too many is no shape error: it is a wrong number."""
    assert len(_ops(f"square_{flags}")) == 1


@pytest.mark.parametrize("name", ["gemm_00@17", "gemm_01@17", "gemm_10@17", "gemm_11@17"])
def test_scale_that_is_not_the_default_dropped(name: str) -> None:
    """alpha and beta other than 1, under every pair of flags."""
    model = files.ONNX_SPELLINGS[name]()
    result = recopt.optimize(model, target="portable", verify="none")
    x = files.inputs(model, 3)
    expected = torch.from_numpy(files.reference(name, x)).float()
    torch.testing.assert_close(torch.from_numpy(run_onnx(result.to_proto().SerializeToString(), (x,))[0]), expected)
    plain = F.relu(torch.from_numpy(x) @ w("w").float().T + w("b").float())
    assert not torch.allclose(plain, expected)


@pytest.mark.parametrize("name", ["square_left", "square_result_transposed"])
def test_operand_permuted_into_transposed_layout(name: str) -> None:
    """[K, K] fits both ways; only one is right."""
    _ops(name)


@pytest.mark.parametrize("name", ["product_returned", "sum_returned", "product_read_twice"])
def test_value_with_another_user_removed(name: str) -> None:
    _ops(name)


@pytest.mark.parametrize("name", ["bias_widens", "bias_along_rows"])
def test_bias_of_higher_rank_folded_in(name: str) -> None:
    assert not any("relu" in op for op in _ops(name))


def test_one_reason_is_given_once() -> None:
    """y = Relu(z), z = Add(h, b): the bias stops both, and the place where the linear would have ended says so."""
    result = recopt.optimize(files.ONNX_NEAR_MISSES["bias_along_rows"].model(), target="recopt", verify="none")
    assert [(r.where, r.reason) for r in result.report.refusals] == [
        ("y", "the bias varies along a batch axis (size 5)")
    ]
