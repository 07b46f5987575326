"""recopt::attention in plain torch: every kind of score, shared rows, queries that see nothing, bad operands; its
kernels in Triton's interpreter, and on a GPU if there is one."""

from __future__ import annotations

import math

import pytest
import torch
from test_target_attention import needs_gpu, run
from torch import Tensor

from recopt.kernels.attention import AttentionError, attention
from recopt.kernels.attention.score import Affine, affine
from recopt.kernels.attention.triton import MAX_SINGLE, choose
from recopt.kernels.attention.weights import attention_weights
from recopt.kernels.epilogue import EpilogueError, compile_epilogue

PLANS = {
    "h": Affine(1.0),
    "0.5 * h": Affine(0.5),
    "0.5 * h + p0": Affine(0.5, (0,)),
    "p1 + 0.5 * h + p0": Affine(0.5, (1, 0)),
    "where(p0, -inf, 0.5 * h)": Affine(0.5, (), 0),
    "where(p0, 0.5 * h + p1, -inf)": Affine(0.5, (1,), 0, True),
    "where(p0, -1000.0, h)": Affine(1.0, (), 0, masked=-1000.0),
    "tanh(h)": None,
    "h * h": None,
    "h + h": None,
    "2.0 * p0 + h": None,
}
SCORES = ["h", "0.3 * h", "0.3 * h + p0", "where(p0, -inf, 0.3 * h)", "where(p0, -9.0, 0.3 * h)", "3.0 * tanh(h) + p0"]
SHAPES = [
    ((3, 2), 5, 7, 4, 6),
    ((3, 2), 64, 33, 8, 8),
    ((13,), 1, 9, 5, 3),
    ((5,), 20, 17, 4, 3),
    ((), 4, 4, 2, 2),
    ((9, 4), 33, 21, 8, 8),
]


def reference(q: Tensor, k: Tensor, v: Tensor, score: str, params: list[Tensor]) -> Tensor:
    q, k, v = q.double(), k.double(), v.double()
    h = torch.einsum("...sd,...td->...st", q, k)
    s = compile_epilogue(score).apply(h, [p.double() for p in params])
    return torch.softmax(s, -1) @ v


@pytest.mark.parametrize("score", PLANS)
def test_what_a_score_asks_for(score: str) -> None:
    assert affine(score) == PLANS[score]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(score: str, shape: tuple[tuple[int, ...], int, int, int, int]) -> None:
    lead, s, t, d, e = shape
    g = torch.Generator().manual_seed(s)
    q, k, v = (torch.randn(*lead, *size, generator=g) for size in ((s, d), (t, d), (t, e)))
    mask = (torch.rand(*(1 for _ in lead), s, t, generator=g) > 0.6).float()
    mask[..., 0] = 0.0
    params = [mask] if "p0" in score else []
    torch.testing.assert_close(attention(q, k, v, score, params, "nan"), reference(q, k, v, score, params).float())


@pytest.mark.parametrize("wide", [False, True])
def test_scores_as_weights(wide: bool) -> None:
    """A parameter of more rows than the products, products that gradients need."""
    q, k, v = torch.randn(2, 1, 5, 4), torch.randn(2, 1, 7, 4), torch.randn(2, 3, 7, 6)
    p = torch.rand(2, 3, 5, 7) if wide else torch.rand(7).expand(1, 1, 1, 7)
    exact = (torch.sigmoid(q.double() @ k.double().mT) * p.double()) @ v.double()
    for q.requires_grad in (False, True):
        y = attention(q, k, v, "sigmoid(h) * p0", [p], "scores")
        torch.testing.assert_close(y, exact.float())
    y.sum().backward()
    assert q.grad is not None


@pytest.mark.parametrize("heads", [1, 3])
def test_heads_that_share_keys(heads: int) -> None:
    """With a mask for all of them, or one for each."""
    q, k, v = torch.randn(2, 2, 3, 5, 4), torch.randn(2, 2, 1, 7, 4), torch.randn(2, 2, 1, 7, 6)
    p = torch.randn(2, 1, heads, 1, 7)
    y, exact = attention(q, k, v, "0.3 * h + p0", [p], "nan"), reference(q, k, v, "0.3 * h + p0", [p])
    torch.testing.assert_close(y, exact.float())


def test_keys_that_rows_share() -> None:
    q, k, v = torch.randn(4, 3, 50, 8), torch.randn(1, 3, 40, 8), torch.randn(4, 1, 40, 8)
    torch.testing.assert_close(attention(q, k, v, "0.3 * h", [], "nan"), reference(q, k, v, "0.3 * h", []).float())


@pytest.mark.parametrize("size", [5, 60])
@pytest.mark.parametrize(("unseen", "left"), [("nan", math.nan), ("zero", 0.0), ("clean", 0.0)])
def test_a_query_that_sees_nothing(size: int, unseen: str, left: float) -> None:
    q, k, v = (torch.randn(9, 2, size, 4) for _ in range(3))
    hidden = torch.zeros(9, 1, 1, size, dtype=torch.bool)
    hidden[1] = True
    y = attention(q, k, v, "where(p0, -inf, h)", [hidden], unseen)
    assert torch.equal(y[1].nan_to_num(7.0), torch.full_like(y[1], left).nan_to_num(7.0))
    assert y[0].isfinite().all()


@pytest.mark.parametrize("score", ["h + p0", "where(p0, h, -inf)"])
def test_a_mask_of_an_empty_batch(score: str) -> None:
    q, mask = torch.randn(0, 2, 5, 4), torch.ones(0, 1, 1, 5, dtype=torch.bool if "where" in score else torch.float32)
    assert attention(q, q, q, score, [mask], "nan").shape == q.shape


def test_half_precision_softmax_is_wide() -> None:
    # Products small enough that their own rounding to half precision is less than the tolerance.
    q, k, v = (torch.randn(20, 1, 3, 8).half() * size for size in (0.5, 0.5, 1.0))
    y = attention(q, k, v, "20.0 * tanh(0.05 * h)", [], "nan")
    assert y.dtype == torch.float16
    torch.testing.assert_close(y, reference(q, k, v, "20.0 * tanh(0.05 * h)", []).half(), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(("rows", "s"), [(2, 5), (2, 50), (300, 5)])
def test_the_operator_lies_as_its_fake_kernel_says(rows: int, s: int) -> None:
    """What Inductor relies on; torch's own attention lies as the queries do."""
    operator = torch.ops.recopt.attention.default
    q, k, v = (torch.randn(rows, s, 4, 8).transpose(1, 2) for _ in range(3))
    torch.library.opcheck(operator, (q, k, v, "0.3 * h", [], "nan"), test_utils=("test_faketensor",))
    assert operator(q, k, v, "0.3 * h", [], "nan").is_contiguous()


def test_weights_are_those_of_an_average() -> None:
    q, k, mask = torch.randn(5, 1, 8), torch.randn(5, 9, 8), torch.rand(5, 1, 9) > 0.5
    score, values = "where(p0, 0.3 * h, -inf)", torch.eye(9).expand(5, 9, 9)
    weights = attention_weights(q[:, 0], k, score, [mask[:, 0]], "zero")
    torch.testing.assert_close(weights[:, None], attention(q, k, values, score, [mask], "zero"))
    operator = torch.ops.recopt.attention_weights.default
    torch.library.opcheck(operator, (q[:, 0], k, "h", [], "nan"), test_utils=("test_faketensor",))
    for operands in ((q, k), (q[:, 0, :3], k), (q[:, 0].double(), k)):
        with pytest.raises(AttentionError):
            attention_weights(*operands, "h", [], "nan")


def test_operands_that_do_not_fit() -> None:
    q, k, v = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 6)
    for operands in ((q, k[..., :3], v), (q, k, v[:, :4]), (q[0], k, v), (q, k.double(), v)):
        with pytest.raises(AttentionError):
            attention(*operands, "h", [], "nan")
    with pytest.raises(EpilogueError):
        attention(q, k, v, "p0", [torch.ones(1, 1, 1)], "nan")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def test_kernels_agree_with_float64(device: str) -> None:
    """Short and single queries, shared values, masks by head, queries that see nothing: see the script."""
    run("attention_agrees.py", device)


@pytest.mark.parametrize("s", [1, 2, 10, 50, 64, 200])
@pytest.mark.parametrize("t", [1, 10, 50, 100, 200, 300])
def test_every_shape_has_blocks(s: int, t: int) -> None:
    queries, keys, warps, _ = choose(s, t, 64)
    assert all(n & (n - 1) == 0 for n in (queries, keys, warps))
    assert warps <= 8
    if s == 1 and t <= MAX_SINGLE // 64:  # all keys at once
        assert t <= keys < 2 * t
    else:
        assert queries >= 16
        assert keys >= 16
