"""Hand-made ONNX files of the linear family: every one is a fused node, and runs; what looks like one is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from spellings import onnx as spellings
from spellings.export import run_onnx

import recopt
from recopt.hosts.base import Host, Node

from .harness import BATCHES, is_fused, reasons

# Stored 8-bit weights stay 8 bits wide in a file for any runtime; a file of fused nodes has no room for their scales.
CASES = {name: spellings.ONNX_SPELLINGS[name] for name in spellings.ONNX_SPELLINGS if "constants" not in name}
SLOW = {name: spellings.ONNX_SPELLINGS[name] for name in spellings.ONNX_SPELLINGS if name not in CASES}


def _computed(host: Host) -> list[Node]:
    return [n for n in host.nodes if not all(host.is_constant(v) for v in n.outputs)]


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_spelling(name: str) -> None:
    model = spellings.ONNX_SPELLINGS[name]()
    result = recopt.optimize(model, target="recopt", verify="rewrites")
    assert not result.report.undone
    nodes = _computed(result.host)
    layout = {"Reshape"} if "gemm_reshape_zero_add" in name else set()  # y is [B,1,N], a linear's is [B,N]
    assert [is_fused(n) for n in nodes if n.op not in layout] == [True], [n.op for n in nodes]
    _check(name, result)


def _check(name: str, result: recopt.Optimized) -> None:
    file = result.to_proto()
    onnx.checker.check_model(file, full_check=True)
    for batch in BATCHES:
        x = spellings.inputs(file, batch)
        expected = spellings.reference(name, x).astype(np.float32)
        torch.testing.assert_close(run_onnx(file.SerializeToString(), (x,))[0], expected)


@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
@pytest.mark.parametrize("name", [name for name in CASES if "@17" in name])
def test_targets(name: str, target: str) -> None:
    model = spellings.ONNX_SPELLINGS[name]()
    result = recopt.optimize(model, target=target, verify="none")
    before = recopt.optimize(model, passes=["clean-up"], verify="none")
    assert len(_computed(result.host)) <= len(_computed(before.host))
    _check(name, result)


@pytest.mark.parametrize("target", ["portable", "recopt"])
@pytest.mark.parametrize("name", spellings.ONNX_NEAR_MISSES)
def test_near_miss(name: str, target: str) -> None:
    near = spellings.ONNX_NEAR_MISSES[name]
    model = near.model()
    result = recopt.optimize(model, target=target, verify="none")
    if near.random:
        assert {"Dropout", "RandomNormalLike"} & {n.op for n in result.host.nodes}
        return
    if near.reason:
        assert any(near.reason in reason for reason in reasons(result)), reasons(result)
    for batch in BATCHES:
        x = spellings.inputs(model, batch)
        expected = run_onnx(model.SerializeToString(), (x,))
        for was, now in zip(expected, run_onnx(result.to_proto().SerializeToString(), (x,)), strict=True):
            torch.testing.assert_close(now, was)
