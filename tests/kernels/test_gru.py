"""recopt::gru and recopt::augru: the operators' contract, against torch.nn.GRU and a step-by-step reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from recopt.hosts.fx_operators import AUGRU_OPERATOR, GRU_OPERATOR
from recopt.kernels.cuda_math import cuda_text
from recopt.kernels.epilogue import EpilogueError
from recopt.kernels.gru import KEEP, GruError, check_gru, gru, gru_torch
from recopt.kernels.gru import cpu as gru_cpu
from recopt.kernels.gru import native as gru_native
from recopt.kernels.gru.cuda import MAX_GATES, MAX_HIDDEN, MAX_INPUTS, choose, fits, gru_cuda
from recopt.kernels.gru.inputs import MAX_COLUMNS, input_products, shared
from recopt.kernels.gru.variants import Plan, Variant

DIEN = "1.0 - p0 * sigmoid(h)"


def operands(batch: int, steps: int, width: int, hidden: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Seeded x, h0, wi, wh, bi, bh."""
    g = torch.Generator().manual_seed(batch)
    shapes = [(batch, steps, width), (batch, hidden), (3 * hidden, width), (3 * hidden, hidden), (3 * hidden,)]
    return [torch.randn(*s, generator=g, dtype=torch.float64).to(dtype) for s in (*shapes, shapes[-1])]


def reference(
    x: Tensor, h: Tensor, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor, after: bool, attention: Tensor | None
) -> Tensor:
    states = []
    (ur, uz, un), (cr, cz, cn) = wh.chunk(3), bh.chunk(3)
    for t in range(x.shape[1]):
        ar, az, an = (x[:, t] @ wi.T + bi).chunk(3, -1)
        r, z = torch.sigmoid(ar + h @ ur.T + cr), torch.sigmoid(az + h @ uz.T + cz)
        if attention is not None:
            z = 1 - attention[:, t, None] * z
        n = torch.tanh(an + (r * (h @ un.T + cn) if after else (r * h) @ un.T + cn))
        h = z * h + (1 - z) * n
        states.append(h)
    return torch.stack(states, 1)


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("batch", "steps", "width", "hidden"), [(1, 1, 1, 1), (3, 7, 5, 16), (13, 11, 31, 40)])
def test_against_the_reference(after: bool, gated: bool, batch: int, steps: int, width: int, hidden: int) -> None:
    x, h0, *weights = operands(batch, steps, width, hidden)
    attention = torch.rand(batch, steps, dtype=torch.float64) if gated else None
    extra = () if attention is None else (DIEN, [attention])
    torch.testing.assert_close(gru(x, h0, *weights, after, *extra), reference(x, h0, *weights, after, attention))
    zero = torch.zeros_like(h0)
    torch.testing.assert_close(gru(x, None, *weights, after, *extra), reference(x, zero, *weights, after, attention))


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_large_products_on_a_cpu(after: bool, gated: bool) -> None:
    given = operands(160, 4, 31, 104)
    x, h0, *weights = [given[0], given[1], *(w / 10 for w in given[2:])]
    attention = torch.rand(160, 4, dtype=torch.float64) if gated else None
    narrow = [t.float() for t in (x, h0, *weights)]
    assert gru_cpu.fits(narrow[0], narrow[3], narrow)
    extra = () if attention is None else (DIEN, [attention.float()])
    y = gru(*narrow, after, *extra)
    torch.testing.assert_close(y, reference(x, h0, *weights, after, attention).float())
    with torch.enable_grad():
        assert gru(*[t.requires_grad_() for t in narrow], after, *extra).requires_grad


@pytest.fixture(params=gru_native.MACHINES)
def in_c(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With the vectors of one kind of processor, which every newer one has too."""
    has = torch.backends.cpu.get_cpu_capability()
    if has not in gru_native.MACHINES or (request.param, has) == ("AVX512", "AVX2"):
        pytest.skip(f"the processor is {has}")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    gru_native._compiled.cache_clear()
    if gru_native._compiled(KEEP) is None:
        pytest.skip("no compiler")
    yield
    gru_native._compiled.cache_clear()


LENGTHS = "where(p1 < p0, sigmoid(h), 1.0)"


@pytest.mark.usefixtures("in_c")
@pytest.mark.parametrize("after", [True, False])
def test_one_call_of_c(after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of all sizes, whole and in part; sizes that no vector divides; inputs that lie by step; two threads. A
    step that a mask skips keeps the state bit for bit; huge inputs saturate, nan stays in its row."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for batch in (1, 3, 11, 31):
        given = operands(batch, 40, 37, 75)
        x, h0, *weights = [
            given[0].transpose(0, 1).contiguous().transpose(0, 1),
            given[1],
            *(w / 10 for w in given[2:]),
        ]
        lengths, places = torch.arange(batch)[:, None] % 7 * 10, torch.arange(40)[None]
        keep, gates = (KEEP, []) if after else (LENGTHS, [lengths, places])
        x[batch // 2, 7] = 1e30
        narrow = [t.float() for t in (x, h0, *weights)]
        assert gru_native.fits(*narrow, keep, gates)
        y = gru_native.gru_native(*narrow, after, keep, gates)
        torch.testing.assert_close(y, gru_torch(x, h0, *weights, after, keep, gates).float())
    narrow[0][1, 35, 0] = float("nan")
    y, whole = gru(narrow[0], None, *narrow[2:], after, keep, gates), gru_torch(x, None, *weights, after, keep, gates)
    torch.testing.assert_close(y[2:], whole[2:].float())
    assert y[1, :35].isfinite().all() and y[1, 35:].isnan().all() == after
    assert after or torch.equal(y[1, 10:], y[1, 9].expand(30, -1))


def test_what_c_takes() -> None:
    short, long = (operands(2, steps, 37, 75, torch.float32) for steps in (3, 40))
    gates = [torch.rand(2, 3)]
    assert not gru_native.fits(*short, DIEN, gates)
    assert not gru_native.fits(*(t.double() for t in long), KEEP, ())
    assert not gru_native.fits(*long, "sin(h)", ())
    with torch.enable_grad():
        assert not gru_native.fits(long[0], long[1].requires_grad_(), *long[2:], KEEP, ())
        assert gru(*long, False).requires_grad


def test_gates_broadcast() -> None:
    x, h0, *weights = operands(3, 4, 5, 6)
    lengths, places = torch.tensor([[1], [4], [2]]), torch.arange(4.0)[None]
    y = gru(x, h0, *weights, False, "where(p1 < p0, sigmoid(h), 1.0)", [lengths, places])
    assert torch.equal(y[0, 0], y[0, 3]) and torch.equal(y[2, 1], y[2, 3]) and not torch.equal(y[1, 2], y[1, 3])


@pytest.mark.parametrize("after", [True, False])
def test_gradients(after: bool) -> None:
    """What needs a gradient gets one: nothing that it needs is written over."""
    x, h0, *weights = (t.requires_grad_() for t in operands(2, 3, 4, 5))
    attention = torch.rand(2, 3, dtype=torch.float64)
    found = torch.autograd.grad(gru(x, h0, *weights, after, DIEN, [attention]).sum(), [x, h0, *weights])
    exact = torch.autograd.grad(reference(x, h0, *weights, after, attention).sum(), [x, h0, *weights])
    for f, e in zip(found, exact, strict=True):
        torch.testing.assert_close(f, e)


def test_operands_stay_as_they_are() -> None:
    given = operands(3, 4, 5, 6)
    before = [t.clone() for t in given]
    x, h0, *weights = given
    gru(x, h0, *weights, False, DIEN, [torch.rand(3, 4, dtype=torch.float64)])
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


@pytest.mark.parametrize("after", [True, False])
def test_the_operators(after: bool) -> None:
    x, h0, *weights = operands(3, 4, 5, 6, torch.float32)
    torch.library.opcheck(GRU_OPERATOR, (x, h0, *weights, after), test_utils=("test_schema", "test_faketensor"))
    gates = [torch.rand(3, 4)]
    torch.library.opcheck(
        AUGRU_OPERATOR, (x, None, *weights, after, DIEN, gates), test_utils=("test_schema", "test_faketensor")
    )


def test_refusals() -> None:
    x, h0, wi, wh, bi, bh = operands(3, 4, 5, 6)
    with pytest.raises(GruError, match="do not fit"):
        check_gru(x, h0, wi[:, 1:], wh, bi, bh, "sigmoid(h)", ())
    with pytest.raises(GruError, match="0 gates"):
        check_gru(x, h0, wi, wh, bi, bh, DIEN, ())
    with pytest.raises(EpilogueError):
        check_gru(x, h0, wi, wh, bi, bh, "nope(h)", ())


# --- the kernel on a GPU ---


def test_gates_in_cuda() -> None:
    assert cuda_text(DIEN) == "((1.0f) - (p[0] * f_sigmoid(h)))"
    assert (
        cuda_text("where(p0 > 1e-9, inf, -h)") == "f_where((p[0] > (1e-09f)), (__int_as_float(0x7f800000)), f_neg(h))"
    )
    assert cuda_text("sin(h)") is None and cuda_text("(h > 0.0) + h") is None


PLANS = [Plan(1), Plan(2), Plan(8), Plan(16), Plan(8, True), Plan(16, True), Plan(32, True)]


def test_what_the_kernels_take() -> None:
    """Never a CPU's operands; shared memory of any size they take is what a processor of Hopper has."""
    x, h0, *weights = operands(3, 4, 5, 6, torch.float32)
    assert not fits(x, h0, *weights, KEEP, ())
    variants = [Variant(h, MAX_INPUTS if p.cluster else 0, p, False, KEEP, MAX_GATES, True, 16)
                for h in range(1, MAX_HIDDEN + 1) for p in PLANS]  # fmt: skip
    assert max(v.shared for v in variants) <= 227 << 10
    assert shared(MAX_COLUMNS, MAX_INPUTS) <= 227 << 10


@pytest.mark.parametrize(
    ("batch", "hidden", "inputs", "architecture", "plan"),
    [
        (132, 128, 64, 9, Plan(1)), (133, 128, 64, 9, Plan(8, True)), (529, 128, 64, 9, Plan(8)),
        (264, 64, 64, 9, Plan(2)), (265, 64, 64, 9, Plan(8, True)), (1057, 64, 64, 9, Plan(16, True)),
        (264, 128, 64, 8, Plan(2)), (265, 128, 129, 9, Plan(8)), (1056, 128, 64, 9, Plan(8)),
        (1057, 128, 64, 9, Plan(32, True)), (1057, 128, 64, 10, Plan(16)), (9999, 128, 64, 8, Plan(16)),
    ],
)  # fmt: skip
def test_plans(batch: int, hidden: int, inputs: int, architecture: int, plan: Plan) -> None:
    assert choose(batch, hidden, inputs, 132, architecture) == plan


def on_gpu(batch: int, steps: int, width: int, hidden: int) -> list[Tensor]:
    """Operands of a network's size: weights over the root of their number."""
    x, h0, *weights = (t.cuda() for t in operands(batch, steps, width, hidden, torch.float32))
    return [x, h0, *(w * hidden**-0.5 for w in weights)]


def run(given: list[Tensor], after: bool, keep: str, gates: list[Tensor], plan: Plan, start: bool = True) -> Tensor:
    """What the kernel gives, from memory that was full of nan; its operands stay as they are."""
    x, h0, *weights = given
    before = [t.clone() for t in given]
    poison = torch.full((x.shape[0] * x.shape[1] * weights[1].shape[1],), torch.nan, device="cuda")
    del poison
    y = gru_cuda(x, h0 if start else None, *weights, after, keep, gates, plan)
    assert y is not None and y.is_contiguous()
    torch.testing.assert_close(given, before, rtol=0.0, atol=0.0, equal_nan=True)
    return y


@pytest.mark.gpu
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    ("batch", "steps", "width", "hidden"),
    [(1, 1, 1, 1), (5, 3, 7, 16), (17, 7, 5, 40), (17, 7, 99, 100), (33, 50, 64, 128)],
)
@pytest.mark.parametrize(("after", "gated"), [(True, False), (False, True)])
def test_on_a_gpu(plan: Plan, batch: int, steps: int, width: int, hidden: int, after: bool, gated: bool) -> None:
    given = on_gpu(batch, steps, width, hidden)
    attention = torch.rand(batch, steps, device="cuda") if gated else None
    wide = [t.double() for t in given]
    exact = reference(*wide, after, None if attention is None else attention.double())
    keep, gates = (KEEP, []) if attention is None else (DIEN, [attention])
    torch.testing.assert_close(run(given, after, keep, gates, plan), exact.float())
    by_step = [given[0].transpose(0, 1).contiguous().transpose(0, 1), *given[1:]]
    torch.testing.assert_close(run(by_step, after, keep, gates, plan), exact.float())


@pytest.mark.gpu
@pytest.mark.parametrize("plan", PLANS)
def test_lengths_on_a_gpu(plan: Plan) -> None:
    """Steps past a length leave the state as it is, and a length of nothing the first one, which is zero."""
    given = on_gpu(17, 7, 5, 40)
    lengths, places = torch.arange(17, device="cuda")[:, None] % 8, torch.arange(7.0, device="cuda")[None]
    y = run(given, True, LENGTHS, [lengths, places], plan, start=False)
    whole = run(given, True, KEEP, [], plan, start=False)
    for b in range(17):
        n = b % 8
        torch.testing.assert_close(y[b, :n], whole[b, :n])
        assert torch.equal(y[b, n:], (y[b, n - 1] if n else torch.zeros_like(y[b, 0])).expand(7 - n, -1))


@pytest.mark.gpu
@pytest.mark.parametrize("plan", [Plan(16), Plan(16, True), Plan(32, True)])
@pytest.mark.parametrize("after", [True, False])
def test_states_that_grow_on_a_gpu(after: bool, plan: Plan) -> None:
    """A gate of 3 takes a state past what halves hold at their first scale, and a nan stays in its row. It makes of an
    error in the first step 3^11 times as much in the last: what float32 is good for is what steps in torch get."""
    x, h0, *weights = on_gpu(17, 12, 5, 40)
    x[3, 2, 1] = torch.nan
    given = [x, h0, *weights]
    keep, gates = "p0 + 0.0 * h", [torch.full((1, 1), 3.0, device="cuda")]
    y = run(given, after, keep, gates, plan)
    exact = gru(*(t.double() for t in given), after, keep, gates)
    steps = gru_torch(*given, after, keep, gates)
    assert y.abs().nan_to_num().max() > 1e4
    assert torch.equal(y.isnan(), exact.isnan()) and not y[:3].isnan().any()
    assert (y - exact).nan_to_num().norm() <= 3.0 * (steps - exact).nan_to_num().norm()


@pytest.mark.gpu
@pytest.mark.parametrize("plan", [Plan(16), Plan(16, True), Plan(32, True)])
def test_infinite_inputs_on_a_gpu(plan: Plan) -> None:
    """They open or close gates, and nothing else."""
    given = on_gpu(17, 7, 20, 100)
    given[0][5, 2, 3], given[0][16, 0, 7] = torch.inf, -torch.inf
    exact = reference(*(t.double() for t in given), True, None)
    torch.testing.assert_close(run(given, True, KEEP, [], plan), exact.float())


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("outer", "inner", "inputs", "columns"),
    [(700, 71, 33, 45), (260, 99, 128, 384), (7, 9999, 64, 300), (512, 50, 5, 6)],
)
def test_products_of_inputs_on_a_gpu(outer: int, inner: int, inputs: int, columns: int) -> None:
    """In place of what was nan, of rows of any size, an infinite one among them, and of rows by step."""
    g = torch.Generator().manual_seed(inputs)
    shapes = ((outer, inner, inputs), (columns, inputs), (columns,), (columns // 3,))
    x, w, b, more = (torch.randn(s, generator=g).cuda() for s in shapes)
    x *= torch.exp(3 * torch.randn((outer, inner, 1), generator=g)).cuda()
    x[3, 7, 1], x[5, 6, 0] = torch.inf, torch.nan
    both = b.double() + torch.cat([more, more.new_zeros(columns - len(more))]).double()
    exact = x.double() @ w.double().T + both
    finite = exact.isfinite()
    for given in (
        x,
        x.transpose(0, 1).contiguous().transpose(0, 1),
        torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x),
    ):
        poison = torch.full_like(exact, torch.nan, dtype=torch.float32)
        del poison
        y = input_products(given, w, b, more, 132)
        assert y is not None and y.is_contiguous()
        assert torch.equal(y[~finite].nan_to_num(7.0), exact[~finite].float().nan_to_num(7.0))
        error, scale = (y - exact)[finite], x.double().abs() @ w.double().abs().T + both.abs()
        assert (error.abs() <= 1e-6 * scale[finite]).all()
        assert (error / scale[finite]).square().mean().sqrt() <= 2.0**-24


@pytest.mark.gpu
@pytest.mark.parametrize("plan", [Plan(1), Plan(8), Plan(8, True), Plan(32, True)])
@pytest.mark.parametrize("moved", [2, 3])
def test_weights_at_any_address(plan: Plan, moved: int) -> None:
    given = on_gpu(5, 3, 8, 16)
    whole = run(given, False, KEEP, [], plan)
    given[moved] = torch.cat([given[moved].new_zeros(1), given[moved].flatten()])[1:].view_as(given[moved])
    assert given[moved].data_ptr() % 16 and torch.equal(run(given, False, KEEP, [], plan), whole)


@pytest.mark.gpu
@pytest.mark.parametrize("after", [True, False])
def test_the_operators_on_a_gpu(after: bool) -> None:
    x, h0, *weights = on_gpu(3, 4, 5, 6)
    kinds = ("test_schema", "test_faketensor")
    torch.library.opcheck(GRU_OPERATOR, (x, h0, *weights, after), test_utils=kinds)
    gates = [torch.rand(3, 4, device="cuda")]
    torch.library.opcheck(AUGRU_OPERATOR, (x, None, *weights, after, DIEN, gates), test_utils=kinds)
    torch.library.opcheck(AUGRU_OPERATOR, (x, None, *weights, after, "sin(h) + p0", gates), test_utils=kinds)
