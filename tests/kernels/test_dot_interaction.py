"""recopt::dot_interaction: its text, its operators in torch, its kernel in Triton's interpreter and on a GPU."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import recopt.hosts.fx_operators  # noqa: F401  # defines the operator
from recopt.kernels.dot_interaction import (
    DotInteractionError,
    Pairs,
    check_operands,
    dot_interaction,
    dot_interaction_torch,
    parse_pairs,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
BELOW = tuple((i, j) for i in range(27) for j in range(i))
CASES = {
    "DLRM": Pairs(128, tuple(range(0, 27 * 128, 128)), BELOW),
    "all with all": Pairs(13, tuple(range(3, 8 * 13, 13)), tuple((i, j) for i in range(8) for j in range(8))),
    "others with the first": Pairs(16, (0, 32, 16, 7), ((1, 0), (2, 0), (3, 0))),
    "many": Pairs(5, tuple(range(0, 64 * 5, 5)), tuple((i, i - 1) for i in range(1, 64))),
    "of one value": Pairs(1, (4, 9), ((1, 0),)),
    "long": Pairs(300, (0, 300, 600), ((0, 1), (2, 1), (2, 2))),
}


def exact(x: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """The products in float64, one after the other."""
    vectors = [x[:, start : start + pairs.size].double() for start in pairs.starts]
    return torch.stack([(vectors[a] * vectors[b]).sum(1) for a, b in pairs.pairs], 1)


@pytest.mark.parametrize("name", CASES)
def test_texts_and_the_plain_operators(name: str) -> None:
    pairs = CASES[name]
    assert parse_pairs(str(pairs)) == pairs
    x = torch.randn(3, pairs.columns + 5, dtype=torch.float64)
    torch.testing.assert_close(dot_interaction(x, None, str(pairs)), exact(x, pairs))
    beside = torch.randn(3, 4, dtype=torch.float64)
    want = torch.cat([beside, exact(x, pairs), torch.zeros(3, 2, dtype=torch.float64)], 1)
    torch.testing.assert_close(dot_interaction(x, beside, str(pairs), 2), want)
    assert check_operands(x, beside, str(pairs), 2) == want.shape


@pytest.mark.parametrize("text", ["", "0 of 0 with 0.0", "4 of 0 with 0.1", "4 of with 0.0", "4 of 0 with"])
def test_texts_that_say_nothing(text: str) -> None:
    with pytest.raises(DotInteractionError):
        parse_pairs(text)


@pytest.mark.parametrize(
    ("x", "beside"),
    [
        (torch.ones(2, 7), None),
        (torch.ones(8), None),
        (torch.ones(2, 8, dtype=torch.int64), None),
        (torch.ones(2, 8), torch.ones(3, 8)),
        (torch.ones(2, 8), torch.ones(2, 8).half()),
    ],
)
def test_tensors_that_do_not_fit(x: torch.Tensor, beside: torch.Tensor | None) -> None:
    with pytest.raises(DotInteractionError):
        torch.ops.recopt.dot_interaction(x, beside, "4 of 0 4 with 1.0", 0)


def test_the_kernel_in_the_interpreter() -> None:
    script = (
        "import interpreted, torch; from test_dot_interaction import CASES, exact\n"
        "from recopt.kernels.dot_interaction.triton import dot_interaction_triton as run\n"
        "torch.manual_seed(1)\n"
        "for pairs in CASES.values():\n"
        "    x, beside = torch.randn(2, pairs.columns + 6)[:, 3:], torch.randn(2, 150)[:, 1:]\n"
        "    want = exact(x, pairs).float()\n"
        "    torch.testing.assert_close(run(x, None, str(pairs)), want, rtol=1e-5, atol=5e-5)\n"
        "    want = torch.cat([beside, want, torch.zeros(2, 3)], 1)\n"
        "    torch.testing.assert_close(run(x, beside, str(pairs), 3), want, rtol=1e-5, atol=5e-5)\n"
    )
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, str(Path(__file__).parents[2]), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_gpu_agrees_with_float64(name: str, dtype: torch.dtype) -> None:
    pairs = CASES[name]
    for rows in (1, 7, 781):
        x = torch.randn(rows, pairs.columns + 8, device="cuda").to(dtype)
        for part in (x, x[:, 1:], x.t().contiguous().t()):
            beside = torch.randn(rows, 150, device="cuda").to(dtype)[:, 1:]
            poison = torch.full((rows, len(pairs.pairs) + 152), float("nan"), device="cuda", dtype=dtype)
            del poison
            out = dot_interaction(part, beside, str(pairs), 3)
            assert out.dtype == dtype
            want = torch.cat([beside.double(), exact(part, pairs), torch.zeros(rows, 3, device="cuda")], 1)
            # Three products of TF32: as far from float64 as float32's own sums of so many values near 1 are.
            tolerance = {"rtol": 1e-5, "atol": 5e-5} if dtype == torch.float32 else {}
            torch.testing.assert_close(out, want.to(dtype), **tolerance)
    x = torch.randn(5, pairs.columns, device="cuda").to(dtype)
    x[1, pairs.starts[0]], x[2, pairs.starts[-1]] = math.inf, math.nan
    torch.testing.assert_close(
        dot_interaction(x, None, str(pairs)), exact(x, pairs).to(dtype), equal_nan=True, rtol=1e-2, atol=1e-2
    )
    with torch.enable_grad():
        x = torch.randn(4, pairs.columns, device="cuda", requires_grad=True)
        assert dot_interaction(x, None, str(pairs)).requires_grad
    torch.testing.assert_close(
        dot_interaction_torch(x, None, str(pairs)), exact(x, pairs).float(), rtol=1e-5, atol=5e-5
    )
