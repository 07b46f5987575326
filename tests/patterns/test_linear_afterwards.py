"""What an optimized model is good for: exported, compiled and optimized again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from spellings.export import BATCH, run_onnx, to_onnx
from torch import Tensor, nn
from torch.testing import assert_close

import recopt
from recopt.cost import product_flops
from recopt.hosts.fx import FxHost
from recopt.ir.sizes import NOMINAL
from recopt.lift import lift


class Model(nn.Module):
    """A plain layer, BatchNorm under a PReLU of several slopes, an activation without a name, a layer without bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.prelu = nn.BatchNorm1d(16), nn.PReLU(16)
        self.a, self.b, self.c, self.d = (
            nn.Linear(8, 16),
            nn.Linear(16, 6),
            nn.Linear(6, 5),
            nn.Linear(5, 3, bias=False),
        )
        for parameter in (self.norm.weight, self.norm.bias, self.prelu.weight):
            nn.init.uniform_(parameter, 0.1, 0.9)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.prelu(self.norm(self.a(x))))
        h = self.c(h + torch.sin(h) ** 2)
        return self.d(nn.functional.silu(h))


@pytest.fixture(scope="module")
def optimized() -> recopt.Optimized:
    result = recopt.optimize(Model().eval(), (torch.randn(BATCH, 8),))
    assert result.report.counts() == {"linear": 4}
    return result


def test_the_pieces_of_a_concat_are_work_where_they_lie() -> None:
    """Counted whole for each piece, a product over a concat costs more than one that multiplies by zeros."""

    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(4 * 8, 5))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (torch.cat([x, y], 1)[:, None] * x[:, :, None]).flatten(1) @ self.w

    host = FxHost.capture(Crossed(), (torch.ones(3, 4), torch.ones(3, 4)))
    meaning = lift(host).definition[host.outputs[0]]
    assert len(meaning.body.monos) == 2 and product_flops(meaning) == 2 * NOMINAL * 32 * 5


def test_to_onnx(optimized: recopt.Optimized) -> None:
    program = torch.onnx.export(
        optimized.model,
        (torch.randn(BATCH, 8),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        custom_translation_table=recopt.onnx_translations(),
        verbose=False,
    )
    assert program is not None
    file = program.model_proto
    onnx.checker.check_model(file, full_check=True)
    assert {node.domain for node in file.graph.node} == {""}
    for batch in (1, 3):
        x = torch.randn(batch, 8)
        assert_close(torch.from_numpy(run_onnx(file.SerializeToString(), (x,))[0]), Model().eval()(x).detach())
    again = recopt.optimize(file, target="recopt")
    assert again.report.counts() == {"linear": 4}
    assert again.host.count_nodes() == 4


def test_compiled(optimized: recopt.Optimized) -> None:
    compiled = torch.compile(optimized.model, backend="aot_eager", fullgraph=True)
    for batch in (2, 5):
        x = torch.randn(batch, 8)
        assert_close(compiled(x), Model().eval()(x))


AHEAD = """
import sys, torch, recopt
from patterns.test_linear_afterwards import Model
model, x = Model().eval(), torch.randn(4, 8)
program = recopt.optimize(model, (x,)).model
shapes = ({0: torch.export.Dim("batch")},)
exported = torch.export.export(program, (x,), dynamic_shapes=shapes, strict=False)
package = torch._inductor.aoti_compile_and_package(exported, package_path=sys.argv[1])
for batch in (3, 5):
    x = torch.randn(batch, 8)
    torch.testing.assert_close(torch._inductor.aoti_load_package(package)(x), model(x))
"""


@pytest.mark.slow
def test_compiled_ahead_of_time(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", AHEAD, str(tmp_path / "model.pt2")],
        env={**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}"},
        cwd=tests,  # not the root, where another `patterns` lies
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_again_in_torch(optimized: recopt.Optimized) -> None:
    again = recopt.optimize(optimized.model, (torch.randn(BATCH, 8),))
    assert again.report.rewrites == []
    assert [n.op for n in again.host.nodes] == [n.op for n in optimized.host.nodes]


@pytest.mark.parametrize("target", ["portable", "ort-cpu", "ort-cuda", "recopt"])
def test_again_in_onnx(target: str) -> None:
    file = onnx.load_from_string(to_onnx(Model().eval(), (torch.randn(BATCH, 8),), dynamo=False))
    once = recopt.optimize(file, target=target, verify="none")
    assert once.report.rewrites
    twice = recopt.optimize(once.to_proto(), target=target, verify="none")
    assert twice.report.rewrites == []
    assert recopt.diff(once.host, twice.host) == ""


def test_equal_slopes() -> None:
    """PReLU as it starts: a constant for every channel, and the same."""
    result = recopt.optimize(nn.Sequential(nn.Linear(8, 16), nn.PReLU(16)).eval(), (torch.randn(BATCH, 8),))
    assert result.report.counts() == {"linear": 1}
    assert [n.op for n in result.host.nodes] == ["recopt.linear.default"]
