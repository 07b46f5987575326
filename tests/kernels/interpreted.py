"""Runs the linear kernels in Triton's interpreter against float64; started by test_linear.py in its own process."""

from __future__ import annotations

import each_function
import torch
import triton.runtime.interpreter as interpreter

from recopt.kernels.epilogue import compile_epilogue
from recopt.kernels.linear import linear_triton
from recopt.kernels.linear.config import Config, Reduce, Tile

_patch = interpreter._patch_lang_tensor


def _patched(tensor, scope):
    # Triton 3.6 reads a scalar as int(array of one), which numpy 2.4 refuses.
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patched
DICE = "h * sigmoid(p0 * (h - p1))"
CASES: list[tuple[int, int, int, Config, str, str, torch.dtype, bool]] = [
    (37, 45, 53, Tile(16, 16, 16), "relu", "nk", torch.float32, True),
    (37, 45, 53, Tile(16, 32, 16, split=3), "gelu", "kn", torch.float32, False),
    (5, 45, 64, Tile(16, 32, 32, swap=True), "p0 * h + (1.0 - p0) * h * p1", "nk", torch.float32, True),
    (17, 13, 40, Tile(16, 16, 16, 4, 3, 2, True, "tf32x3"), DICE, "strided", torch.float32, True),
    (33, 45, 53, Tile(32, 32, 32), DICE, "nk", torch.float16, True),
    (3, 45, 53, Reduce(2, 4, 32), "leaky_relu(h, 0.1)", "nk", torch.float32, True),
    (1, 45, 64, Reduce(1, 4, 64), DICE, "kn", torch.bfloat16, True),
    (4, 1, 7, Reduce(4, 1, 16), "sigmoid", "nk", torch.float32, True),
]
TEXTS = """exp(h)
log1p(abs(h))|expm1(h)|tanh(h)|gelu_tanh|mish|softplus(h, 2.0, 3.0)|round(h)|selu|elu(h, 0.5)|sign(h)
celu(h, 0.5)|logsigmoid|hardswish|clip(h, -0.5, 0.5)|pow(h, 3.0)|softsign|where(logical_or(h > 1.0, isnan(h)), p0, -h)
softshrink|hardshrink|(h > 0.0) * h|prelu(h, p1) + p0|where(h > 0, 0.1, 0.3)|relu6|tanhshrink|min(h, p0)"""
CASES += [
    (9, 16, 8, Reduce(4, 16, 16), text, "nk", torch.float32, True) for text in TEXTS.replace("\n", "|").split("|")
]


def check(m: int, n: int, k: int, config: Config, text: str, layout: str, dtype: torch.dtype, bias: bool) -> None:
    x, w = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    if layout == "kn":
        w = w.t().contiguous().t()
    if layout == "strided":
        x = torch.randn(m, 2 * k).to(dtype)[:, ::2]
    b = torch.randn(n).to(dtype) if bias else None
    e = compile_epilogue(text)
    params = [torch.rand(n), torch.rand(1)][: e.params]
    out = linear_triton(x, w, b, text, params, config)
    h = x.double() @ w.double().t() + (0.0 if b is None else b.double())
    exact = e.apply(h, [p.double() for p in params]).to(dtype)
    torch.testing.assert_close(out, exact, msg=lambda s: f"{config} {text}\n{s}")


def check_special() -> None:
    """Infinite and nan operands give what float64 gives: the split's inf - inf leaves no trace."""
    x, w = torch.randn(16, 32), torch.randn(16, 32)
    x[3, 5], x[7, 9], w[11, 5], w[13, 2] = float("inf"), float("nan"), 0.0, -float("inf")
    for config in (Tile(16, 16, 16), Tile(16, 16, 16, split=2), Reduce(4, 4, 16)):
        out = linear_triton(x, w, None, "relu", (), config)
        exact = torch.relu(x.double() @ w.double().t()).float()
        torch.testing.assert_close(out, exact, equal_nan=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    for case in CASES:
        check(*case)
    check_special()
    each_function.check("cpu")
    print(len(CASES) + 1, "cases agree")
