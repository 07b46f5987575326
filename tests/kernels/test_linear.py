"""recopt::linear: the torch path, the Triton kernels in Triton's interpreter, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recopt.kernels.epilogue import EpilogueError, compile_epilogue
from recopt.kernels.linear import (
    LinearError,
    _is_wide,
    bytes_moved,
    choose_config,
    flops,
    linear,
    linear_torch,
    linear_triton,
    table,
)
from recopt.kernels.linear.config import Group, Hopper, Panel, Reduce, Tile

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DICE = "h * sigmoid(p0 * (h - p1))"


@settings(max_examples=60, deadline=None)
@given(
    lead=st.lists(st.integers(0, 5), max_size=3), n=st.integers(0, 9), k=st.integers(0, 9), bias=st.booleans(),
    transposed=st.booleans(), text=st.sampled_from(["", "relu", "gelu", "p0 * h", DICE]),
)  # fmt: skip
def test_linear_on_cpu_is_product_bias_epilogue(
    lead: list[int], n: int, k: int, bias: bool, transposed: bool, text: str
) -> None:
    x, b = torch.randn(*lead, k), torch.randn(n) if bias else None
    w = torch.randn(k, n).t() if transposed else torch.randn(n, k)
    params = [torch.randn(n), torch.randn(1)][: compile_epilogue(text).params]
    h = x.double() @ w.double().t() + (0.0 if b is None else b.double())
    expected = compile_epilogue(text).apply(h, [p.double() for p in params]).float()
    out = linear(x, w, b, text, params)
    assert out.shape == (*lead, n)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_linear_keeps_dtype(dtype: torch.dtype) -> None:
    x, w, b = torch.randn(3, 4, dtype=dtype), torch.randn(5, 4, dtype=dtype), torch.randn(5, dtype=dtype)
    torch.testing.assert_close(linear(x, w, b, "relu"), torch.relu(F.linear(x, w, b)))


def test_linear_does_not_touch_its_operands_and_has_a_gradient() -> None:
    x, w, b = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True), torch.randn(5)
    kept = [t.clone() for t in (x, w, b)]
    linear_torch(x, w, b, "sigmoid(h) * h").sum().backward()
    assert all(torch.equal(a, c) for a, c in zip((x, w, b), kept, strict=True))
    assert w.grad is not None
    assert torch.isfinite(w.grad).all()


@pytest.mark.parametrize(
    ("x", "w", "b", "why"),
    [
        ((3, 4), (5, 3), None, "needs x"),
        ((), (5, 3), None, "needs x"),
        ((3, 4), (4,), None, "needs x"),
        ((3, 4), (5, 4), (4,), "bias of shape"),
        ((3, 4), (5, 4), (1, 5), "bias of shape"),
    ],
)
def test_operands_that_do_not_fit_are_refused(
    x: tuple[int, ...], w: tuple[int, ...], b: tuple[int, ...] | None, why: str
) -> None:
    with pytest.raises(LinearError, match=why):
        linear(torch.ones(x), torch.ones(w), None if b is None else torch.ones(b))


def test_mixed_dtypes_and_missing_parameters_are_refused() -> None:
    with pytest.raises(LinearError, match="one dtype"):
        linear(torch.ones(3, 4), torch.ones(5, 4, dtype=torch.float64), None)
    with pytest.raises(EpilogueError, match="takes 1 parameters"):
        linear(torch.ones(3, 4), torch.ones(5, 4), None, "prelu(h, p0)")


def test_cost_counts_each_operand_once() -> None:
    assert flops(2, 3, 5, "relu") == 2 * 2 * 3 * 5 + 2 * 3 * 2
    assert bytes_moved(2, 3, 5, params=1) == 4 * (10 + 15 + 6 + 6)


@pytest.mark.parametrize("rows", [table.ROWS, table.NARROW])
def test_table_is_whole_and_never_chooses_plain_tf32(rows: dict[tuple[int, int], tuple[int, ...]]) -> None:
    assert set(rows) == {(i, j) for i in range(len(table.N)) for j in range(len(table.K))}
    assert all(len(row) == len(table.M) for row in rows.values())
    assert {i for row in rows.values() for i in row} <= set(range(len(table.CONFIGS)))
    assert not any(isinstance(c, Tile) and c.precision == "tf32" for c in table.CONFIGS)


@given(st.integers(1, 1 << 22), st.integers(1, 1 << 16), st.integers(1, 1 << 16))
def test_every_shape_has_a_choice(m: int, n: int, k: int) -> None:
    config = choose_config(m, n, k)
    assert config is None or isinstance(config, Tile | Reduce | Panel | Group | Hopper)
    narrow = choose_config(m, n, k, wide=False)
    assert narrow is None or isinstance(narrow, Tile | Reduce)


@pytest.mark.parametrize(
    ("x", "w", "wide"),
    [
        (torch.ones(3, 8), torch.ones(5, 8), True),
        (torch.ones(2, 3, 8), torch.ones(5, 8), True),
        (torch.ones(3, 7), torch.ones(5, 7), False),
        (torch.ones(3, 16)[:, ::2], torch.ones(5, 8), False),
        (torch.ones(3, 8), torch.ones(8, 5).t(), False),
        (torch.ones(3, 9)[:, 1:], torch.ones(5, 8), False),
        (torch.ones(3, 12)[:, 1:9], torch.ones(5, 8), False),
    ],
)
def test_wide_copies_need_aligned_rows(x: torch.Tensor, w: torch.Tensor, wide: bool) -> None:
    assert _is_wide(x, w) == wide


def test_kernels_in_the_interpreter() -> None:
    """Odd shapes, both layouts, split K, swapped operands, parameters, inf and nan: see interpreted.py."""
    script = Path(__file__).parent / "interpreted.py"
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cases agree" in done.stdout


@gpu
@needs_gpu
def test_gpu_functions_agree_with_float64() -> None:
    script = Path(__file__).parent / "each_function.py"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run([sys.executable, str(script), "cuda"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


GPU_CONFIGS = [
    None, Tile(128, 128, 32, 8), Tile(64, 64, 32), Tile(64, 64, 32, split=4), Tile(16, 64, 32, 4, 3, 2, True),
    Tile(32, 32, 64),
    Tile(64, 32, 32, precision="bf16x6"), Reduce(1, 2, 256, 1), Reduce(4, 4, 128), Reduce(1, 1, 512, 1, True),
    Tile(64, 64, 32, early=True),
]  # fmt: skip

# More and fewer stages than the blocks of K; one and several tiles a program; one and several parts of K.
GLUON_CONFIGS = [
    Panel(32, 16), Panel(16, 16, 32, 2, 4), Panel(64, 32, 32, 2, 2, 2, 1, True), Panel(16, 32, 16, 3, 1, 1, 2),
    Group(64), Group(64, 2, 104, True), Group(32, 2, 80), Group(16, 4, 80, True),
    Group(128, 2, early=True), Group(128, 3), Group(128, 2, early=True, split=2), Group(128, 3, split=4),
    Group(64, split=3), Group(32, 2, 80, True, 4), Group(16, 4, 80, split=8),
    Hopper(128), Hopper(64, stages=6), Hopper(64, stages=3), Hopper(128, early=True),
]  # fmt: skip


@gpu
@needs_gpu
@pytest.mark.parametrize("config", GPU_CONFIGS)
@pytest.mark.parametrize("layout", ["nk", "kn", "strided"])
def test_gpu_kernels_agree_with_float64(config: Tile | Reduce | None, layout: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 11, 781, device="cuda")
    w, b = torch.randn(1311, 781, device="cuda") / 28, torch.randn(1311, device="cuda")
    if layout == "kn":
        w = w.t().contiguous().t()
    if layout == "strided":
        x = torch.randn(7, 11, 2 * 781, device="cuda")[..., ::2]
    params = [torch.rand(1311, device="cuda"), torch.rand(1, device="cuda")]
    out = linear(x, w, b, DICE, params) if config is None else linear_triton(x, w, b, DICE, params, config)
    exact = linear_torch(x.double(), w.double(), b.double(), DICE, [p.double() for p in params])
    torch.testing.assert_close(out, exact.float())


@gpu
@needs_gpu
@pytest.mark.parametrize("config", GLUON_CONFIGS)
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        (300, 784, 1312),
        (1000, 500, 2000),
        (128, 128, 32),
        (4000, 132, 36),
        (200, 260, 300),
        (33, 20, 16),
        (9000, 512, 96),
    ],
)
def test_gpu_gluon_kernels_agree_with_float64(config: Panel | Group | Hopper, m: int, n: int, k: int) -> None:
    torch.manual_seed(0)
    x, w, b = torch.randn(m, k, device="cuda"), torch.randn(n, k, device="cuda") / k**0.5, torch.randn(n, device="cuda")
    params = [torch.rand(n, device="cuda"), torch.rand(1, device="cuda")]
    exact = linear_torch(x.double(), w.double(), b.double(), DICE, [p.double() for p in params]).float()
    # Several times: a missing barrier shows as a moving result.
    for _ in range(5):
        torch.testing.assert_close(linear_triton(x, w, b, DICE, params, config), exact)


@gpu
@needs_gpu
def test_gpu_rows_that_overlap() -> None:
    row, w = torch.randn(1, 256, device="cuda"), torch.randn(256, 256, device="cuda") / 16
    windows = torch.randn(4 * 300 + 256, device="cuda").as_strided((300, 256), (4, 1))
    for x in (row.expand(300, 256), windows):
        exact = (x.double() @ w.double().t()).float()
        torch.testing.assert_close(linear_triton(x, w, None, "", (), Hopper(128)), exact)


@gpu
@needs_gpu
@pytest.mark.parametrize("k", [64, 256, 1024, 2048])
@pytest.mark.parametrize("uniform", [False, True])
def test_gpu_error_is_no_larger_than_exact_float32s(k: int, uniform: bool) -> None:
    torch.manual_seed(0)
    draw = torch.rand if uniform else torch.randn
    x, w, b = draw(1024, k, device="cuda"), draw(1024, k, device="cuda"), draw(1024, device="cuda")
    exact = F.linear(x.double(), w.double(), b.double())
    ours, theirs = ((t - exact).norm() / exact.norm() for t in (linear(x, w, b), F.linear(x, w, b)))
    assert ours <= 1.02 * theirs


@gpu
@needs_gpu
def test_gpu_infinities_and_nans_are_torchs() -> None:
    x, w, b = (torch.randn(s, device="cuda") for s in ((128, 256), (256, 256), (256,)))
    w /= 16
    x[3, 5], x[7, 9], w[11, 5], w[13, 2], x[20, 30], w[40, 30] = float("inf"), float("nan"), 0, -float("inf"), 3e38, 1e5
    # The bits of the nan that the GPU's own arithmetic makes.
    x[9, 9] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    exact = F.linear(x.double(), w.double(), b.double()).float()
    for config in (*GPU_CONFIGS[1:], *GLUON_CONFIGS):
        torch.testing.assert_close(linear_triton(x, w, b, "", (), config), exact, equal_nan=True)


@gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gpu_half_precision(dtype: torch.dtype) -> None:
    x, w = torch.randn(65, 130, device="cuda", dtype=dtype), torch.randn(33, 130, device="cuda", dtype=dtype) / 11
    exact = torch.relu(x.double() @ w.double().t())
    for config in (Tile(64, 32, 32), Tile(16, 64, 64, swap=True), Reduce(4, 4, 128)):
        torch.testing.assert_close(linear_triton(x, w, None, "relu", (), config), exact.to(dtype))


SPLIT_CONFIGS = [Tile(64, 32, 32, 4, 3, 4, False, "split", True), Group(32, 2, 80, True, 4)]


@gpu
@needs_gpu
@pytest.mark.parametrize("config", SPLIT_CONFIGS)
def test_gpu_graph_replays_split_products(config: Tile | Group) -> None:
    x, w, b = (torch.randn(s, device="cuda") for s in ((64, 1024), (256, 1024), (256,)))
    expected = linear_triton(x, w, b, "relu", (), config)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first = linear_triton(x, w, b, "relu", (), config)
        second = linear_triton(x, w, b, "relu", (), config)
    for _ in range(20):
        first.fill_(float("nan"))
        graph.replay()
        assert torch.equal(first, expected)
        assert torch.equal(second, expected)


@gpu
@needs_gpu
@pytest.mark.parametrize("config", [Reduce(4, 1, 512, 4, True), Reduce(4, 4, 64, 1, True), Reduce(4, 16, 16, 1, True)])
def test_gpu_early_launches_read_what_the_kernel_before_writes(config: Reduce) -> None:
    """They bring rows of w into L2 before that kernel has ended: here w is its result."""
    c, d, x, z = (torch.randn(s, device="cuda") for s in ((250, 64), (520, 64), (3, 520), (4, 250)))
    graph = torch.cuda.CUDAGraph()
    for tensor in (x, d, z):
        tensor.div_(16)

    def chain() -> tuple[torch.Tensor, torch.Tensor]:
        w = linear_triton(c, d, None, "", (), Reduce(4, 4, 64, 1, True))
        return linear_triton(x, w, None, "", (), config), linear_triton(z, w.t(), None, "", (), config)

    chain()
    with torch.cuda.graph(graph):
        rows, columns = chain()
    for _ in range(20):
        c.normal_()
        graph.replay()
        w = c.double() @ d.double().t()
        torch.testing.assert_close(rows, (x.double() @ w.t()).float())
        torch.testing.assert_close(columns, (z.double() @ w).float())


@gpu
@needs_gpu
@pytest.mark.parametrize("config", SPLIT_CONFIGS)
def test_gpu_split_products_on_two_streams(config: Tile | Group) -> None:
    x, w, b = (torch.randn(s, device="cuda") for s in ((512, 1024), (256, 1024), (256,)))
    expected = linear_triton(x, w, b, "relu", (), config)
    torch.cuda.synchronize()
    results = []
    streams = [torch.cuda.Stream() for _ in range(2)]
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(linear_triton(x, w, b, "relu", (), config))
    torch.cuda.synchronize()
    assert all(torch.equal(result, expected) for result in results)


@gpu
@needs_gpu
@pytest.mark.parametrize(("m", "n", "k"), [(0, 5, 7), (5, 0, 7), (5, 7, 0), (1, 1, 1)])
def test_gpu_empty_shapes(m: int, n: int, k: int) -> None:
    x, w, b = torch.randn(m, k, device="cuda"), torch.randn(n, k, device="cuda"), torch.randn(n, device="cuda")
    torch.testing.assert_close(linear(x, w, b, "relu"), torch.relu(F.linear(x, w, b)))


@gpu
@needs_gpu
@pytest.mark.parametrize(
    "text",
    """exp(h)|log1p(abs(h))|expm1(h)|tanh(h)|gelu|gelu_tanh|silu|mish|softplus|erf(h)|sin(h)|cos(h)|round(h)|elu|selu|celu
logsigmoid|hardswish|pow(h, 3.0)|pow(abs(h), 0.3)|sqrt(abs(h))|rsqrt(abs(h))|log(abs(h))|reciprocal(h)|sigmoid|softsign
""".strip()
    .replace("\n", "|")
    .split("|"),
)
def test_gpu_functions_agree_with_torch(text: str) -> None:
    special = torch.tensor([-80.0, 80.0, 1e-6, -1e-6, float("inf"), float("nan")])
    values = torch.cat([torch.linspace(-20, 20, 4001), special])
    h = values[:, None].cuda()
    one = torch.ones(1, 1, device="cuda")
    out = linear_triton(h, one, None, text, (), Reduce(16, 1, 16))
    expected = compile_epilogue(text).apply(h.double(), []).float()
    torch.testing.assert_close(out, expected, equal_nan=True)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("space", [(5,), (5, 3), (1, 1), (2, 3, 4)])
def test_channels_second(space: tuple[int, ...], device: str) -> None:
    x, w, b, p = torch.randn(3, 781, *space), torch.randn(40, 781) / 28, torch.randn(40), torch.rand(40)
    ones = (1,) * len(space)
    rows = x.double().flatten(2).mT @ w.double().T + b.double()
    expected = torch.where(rows > 0, rows, rows * p.double()).mT.reshape(3, 40, *space).float()
    shaped = [t.to(device) for t in (x, w.view(40, 781, *ones), b, p.view(40, *ones))]
    y = linear(*shaped[:3], "where(h > 0, h, h * p0)", shaped[3:])
    torch.testing.assert_close(y.cpu(), expected)


def test_channels_second_refused() -> None:
    with pytest.raises(LinearError, match="over space"):
        linear(torch.randn(3, 8, 5), torch.randn(4, 8, 3), None)
    with pytest.raises(LinearError, match="over space"):
        linear(torch.randn(3, 5, 8), torch.randn(4, 8, 1), None)
