"""Runs the kernels of recopt::attention against float64: in Triton's interpreter, or on a GPU ("cuda")."""

from __future__ import annotations

import sys

import torch
from test_attention import reference

from recopt.kernels.attention import attention_torch
from recopt.kernels.attention.halves import attention_halves
from recopt.kernels.attention.triton import Blocks, attention_triton
from recopt.kernels.attention.weights import weights_torch, weights_triton

# (leading dimensions, S, T, D, E, score, dtype, blocks)
SCORES = [
    "0.3 * h", "0.3 * h + p0", "where(p0, -inf, 0.3 * h)", "where(p0 > 0.5, -9.0, h)", "3.0 * tanh(h) + p0",
    "max(h, 0.0) - p0 + p1",
]  # fmt: skip
SHAPES: list[tuple[tuple[int, ...], int, int, int, int, Blocks | None]] = [
    ((3, 2), 5, 7, 4, 6, None),
    ((2,), 21, 33, 36, 17, Blocks(16, 16, 4)),
    ((2, 2), 40, 19, 8, 8, Blocks(32, 32, 4)),
    ((5, 2), 1, 21, 8, 12, None),
    ((3,), 1, 50, 36, 36, Blocks(2, 64, 4)),
    ((3,), 1, 50, 36, 36, Blocks(16, 32, 4)),
    ((), 70, 40, 16, 16, None),
    ((3, 1), 50, 50, 64, 64, None),
    ((2, 2), 130, 150, 64, 40, None),  # of the kernel on halves; too slow in the interpreter
]
# On a GPU each takes a second to compile: an added mask and a hidden one everywhere, the others in one shape of each
# kernel.
EVERYWHERE, ELSEWHERE = SCORES[1:3], (SHAPES[1], SHAPES[3])


def check(lead: tuple[int, ...], s: int, t: int, d: int, e: int, score: str, blocks: Blocks | None, device: str,
          dtype: torch.dtype = torch.float32, halves: bool = False) -> None:  # fmt: skip
    """Heads second in q's and k's storage, values shared by all rows, p0 by heads; a query that sees nothing."""
    q, k = (torch.randn(*lead[:1], n, *lead[1:], d).to(dtype).movedim(1, -2) if lead else torch.randn(n, d).to(dtype)
            for n in (s, t))  # fmt: skip
    v = torch.randn(*((1,) * len(lead)), t, e).to(dtype)
    p0 = (torch.rand(*lead[:1], *((1,) * (len(lead) - 1)), s, t) > 0.6).float()
    p0[..., 0] = 0.0
    blind = score.startswith("where(p0, -inf") and bool(lead)
    if blind:
        p0[0, ..., 0, :] = 1.0
    p1 = torch.randn(*((1,) * (len(lead) + 1)), t)
    params = [p for n, p in enumerate((p0, p1)) if f"p{n}" in score]
    exact = reference(q, k, v, score, params)
    if blind:
        params = [p0.bool()]
    for unseen in ("nan", "zero", "clean") if blind else ("nan",):
        there = (*(x.to(device) for x in (q, k, v)), score, [p.to(device) for p in params], unseen)
        out = attention_halves(*there) if halves else attention_triton(*there, blocks)
        assert out is not None
        assert out.is_contiguous()
        expected = exact if unseen == "nan" else exact.nan_to_num(0.0)
        tolerance = {"rtol": 1.3e-6, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 2e-2}
        torch.testing.assert_close(
            out.cpu().double(), expected, equal_nan=True, msg=lambda m: f"{lead} {s} {t} {score}\n{m}", **tolerance
        )
        if halves:
            poison = torch.full_like(out, torch.nan)
            del poison  # the allocator hands the same memory out next
            as_queries = attention_halves(*there, as_queries=True)
            assert as_queries is not None
            assert as_queries.movedim(-2, 1).is_contiguous() or len(lead) < 2
            torch.testing.assert_close(as_queries, out, rtol=0.0, atol=0.0, equal_nan=True)


def check_clean(device: str) -> None:
    """A score of nan makes every weight of its query nan: they count 0 where that is asked for."""
    for s, kernel in ((1, attention_triton), (5, attention_triton), (5, attention_halves)):
        if device == "cpu" and kernel is attention_halves:
            continue
        q, k, v = (torch.randn(3, n, 8, device=device) for n in (s, 20, 20))
        q[1, 0] = torch.nan
        out = kernel(q, k, v, "h", [], "clean")
        assert out is not None
        expected = attention_torch(q.double(), k.double(), v.double(), "h", [], "clean")
        torch.testing.assert_close(out.double(), expected, rtol=1.3e-6, atol=1e-5)
        assert not out[1, 0].any()


def check_weights(device: str) -> None:
    """Weights of one query a row, one row for each program and several, shared queries, a length beside numbers of the
    keys; rows that see nothing."""
    for lead, t, d in (((3,), 50, 36), ((130, 2), 7, 5), ((), 33, 64)):
        q, k = torch.randn(*lead[:-1], *(1 for _ in lead[-1:]), d), torch.randn(*lead, t, d)
        length = torch.randint(0, t + 1, (*lead, 1))
        length.view(-1)[0] = 0
        places = torch.arange(t).float().expand(*q.shape[:-1], t)
        for score, params in (("3.0 * tanh(h)", ()), ("where(p0 < p1, 0.3 * h, -inf)", (places, length))):
            for unseen in ("nan", "zero", "clean") if params else ("nan",):
                there = [x.to(device) for x in (q, k, *params)]
                poison = torch.full((*lead, t), torch.nan, device=device)
                del poison  # the allocator hands the same memory out next
                y = weights_triton(*there[:2], score, there[2:], unseen)
                assert y is not None
                exact = weights_torch(q.double(), k.double(), score, params, unseen).float()
                torch.testing.assert_close(y.cpu(), exact, equal_nan=True)


def main(device: str) -> None:
    """Shapes with scores; half precision on one of each kernel."""
    shapes = SHAPES if device == "cuda" else SHAPES[:-1]
    cases = [(shape, score) for shape in shapes for score in SCORES if score in EVERYWHERE or shape in ELSEWHERE]
    for (lead, s, t, d, e, blocks), score in cases:
        check(lead, s, t, d, e, score, blocks, device)
        if device == "cuda":
            check(lead, s, t, d, e, score, None, device, halves=True)
    dtypes = (torch.float16, torch.bfloat16) if device == "cuda" else (torch.float16,)
    for dtype in dtypes:
        for lead, s, t, d, e, blocks in (SHAPES[1], SHAPES[3]):
            check(lead, s, t, d, e, SCORES[1], blocks, device, dtype)
    check_clean(device)
    check_weights(device)
    print(len(cases) + 1 + 2 * len(dtypes), "cases agree")


if __name__ == "__main__":
    torch.manual_seed(0)
    if sys.argv[1] == "cpu":
        import interpreted  # noqa: F401 - makes the interpreter read scalars
    main(sys.argv[1])
