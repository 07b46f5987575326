"""recopt::pointwise: its text, its operators in torch, its kernel in Triton's interpreter and on a GPU."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import recopt.hosts.fx_operators  # noqa: F401  # defines the operator
from recopt.kernels.pointwise import PointwiseError, parse_program, pointwise, pointwise_torch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
TEXT = """pointwise 1
in x0 float32 s0 3
in x1 int64 4
out y0 float32 s0 5
out y1 int64 s0
loop y0 i0<s0 i1<3 [i0, 2 - i1]
t0: float32 = x0[i0, i1]
t1: float32 = lit(0.5)
t2: float32 = mul(t0, t1)
= t2
loop y0 i0<s0 i1<2 [i0, i1 + 3]
t0: int64 = x1[(i1 + 1) % 2]
t1: float32 = get(x0[i0, t0])
= t1
loop y1 i0<s0 [i0]
t0: int64 = at(3 * i0 + s0)
= t0"""
INT64 = st.integers(-(2**63), 2**63 - 1)


def test_a_text_reads_as_it_is_written() -> None:
    assert str(parse_program(TEXT)) == TEXT


def test_what_a_program_computes() -> None:
    x, ids = torch.arange(6.0).reshape(2, 3), torch.tensor([2, -1, 0, 0])
    y, places = pointwise([x, ids], TEXT)
    assert y.tolist() == [[1.0, 0.5, 0.0, 0.0, 2.0], [2.5, 2.0, 1.5, 0.0, 5.0]]  # outside of x is 0
    assert places.tolist() == [2, 5]


def test_the_operator_is_registered() -> None:
    x, ids = torch.rand(3, 3), torch.zeros(4, dtype=torch.int64)
    torch.library.opcheck(
        torch.ops.recopt.pointwise.default, ([x, ids], TEXT), test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("pointwise 1", "pointwise 2", "begins with"),
        ("mul(t0, t1)", "mul(t0)", "takes 2 values"),
        ("mul(t0, t1)", "mul(t0, t9)", "nothing defines t9"),
        ("mul(t0, t1)", "__import__(t0)", "no operator"),
        ("x0[i0, i1]", "x0[i0]", "no such element"),
        ("x0[i0, i1]", "x0[i0, f(i1)]", "is no index"),
        ("[i0, 2 - i1]", "[i0, i7]", "no axis"),
        ("t0: float32 = x0", "t0: float16 = x0", "x0 is float32"),
        ("out y1 int64 s0", "out y1 int32 s0", "y1 is int32"),
    ],
)
def test_a_text_outside_the_language_is_refused(old: str, new: str, why: str) -> None:
    with pytest.raises(PointwiseError, match=why):
        parse_program(TEXT.replace(old, new, 1))


def test_inputs_that_do_not_fit_are_refused() -> None:
    x, ids = torch.rand(2, 3), torch.zeros(4, dtype=torch.int64)
    for inputs in ([x], [x.double(), ids], [x[:, :2], ids], [x, ids[:3]]):
        with pytest.raises(PointwiseError):
            pointwise_torch(inputs, TEXT)


def of_two(op: str, a: int, b: int) -> int:
    """op of two int64 by a program."""
    head = "pointwise 1\nin x0 int64 2\nout y0 int64\nloop y0 []\nt0: int64 = x0[0]\nt1: int64 = x0[1]\n"
    (found,) = pointwise_torch([torch.tensor([a, b])], f"{head}t2: int64 = {op}(t0, t1)\n= t2")
    return int(found)


def wrapped(value: int) -> int:
    """An integer as int64 holds it."""
    return (value + 2**63) % 2**64 - 2**63


@given(INT64, INT64)
@settings(max_examples=60, deadline=None)
def test_integers_wrap_and_have_their_signs(a: int, b: int) -> None:
    assert of_two("mul", a, b) == wrapped(a * b)
    assert of_two("add", a, b) == wrapped(a + b)
    assert of_two("sub", a, b) == wrapped(a - b)
    assert of_two("xor", a, b) == a ^ b
    if b not in (0, -1):
        assert of_two("rem", a, b) == a % b
        assert of_two("floordiv", a, b) == a // b
        toward_zero = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        assert of_two("truncdiv", a, b) == toward_zero
        assert of_two("fmod", a, b) == a - b * toward_zero


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=9), st.floats(width=32), st.booleans())
@settings(max_examples=60, deadline=None)
def test_buckets_are_torchs(edges: list[float], x: float, right: bool) -> None:
    boundaries, value = torch.tensor(sorted(edges), dtype=torch.float32), torch.tensor([x])
    text = f"""pointwise 1
in x0 float32 1
in x1 float32 {len(edges)}
out y0 int64 1
loop y0 i0<1 [i0]
t0: float32 = x0[i0]
t1: int64 = bucket(t0, x1[0], {len(edges)}, {int(right)})
= t1"""
    (found,) = pointwise_torch([value, boundaries], text)
    assert found.item() == torch.bucketize(value, boundaries, right=right).item()
    if math.isnan(x):
        assert found.item() == len(edges)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def test_the_kernel_gives_torchs_bits(device: str) -> None:
    """Every case of spellings/pointwise.py, empty batches and strided inputs: see the script."""
    environment = dict(os.environ)
    if device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, str(Path(__file__).parent / "pointwise_agrees.py"), device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "cases agree" in done.stdout
