"""The epilogue language: every function agrees with torch, in place and not; what is outside it is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recopt.kernels.epilogue import EpilogueError, compile_epilogue
from recopt.kernels.functions import FUNCTIONS

EDGES = torch.tensor([-math.inf, -1e30, -90, -3, -1, -0.3, -1e-30, 0, 1e-30, 0.3, 1, 2.5, 30, 1e30, math.inf, math.nan])

# text -> what torch's own operators make of h, p0 and p1
MEANINGS = {
    "": lambda h, p, q: h,
    "h": lambda h, p, q: h,
    "identity(h)": lambda h, p, q: h,
    "relu": lambda h, p, q: torch.relu(h),
    "relu(h)": lambda h, p, q: torch.relu(h),
    "max(h, 0.0)": lambda h, p, q: torch.clamp(h, min=0.0),
    "min(1.0, h)": lambda h, p, q: torch.clamp(h, max=1.0),
    "max(h, p0)": lambda h, p, q: torch.maximum(h, p),
    "gelu": lambda h, p, q: F.gelu(h),
    "gelu_tanh(h)": lambda h, p, q: F.gelu(h, approximate="tanh"),
    "h / (1.0 + exp(-h))": lambda h, p, q: h / (1.0 + torch.exp(-h)),
    "leaky_relu(h, 0.01)": lambda h, p, q: F.leaky_relu(h, 0.01),
    "leaky_relu(h, -0.5)": lambda h, p, q: F.leaky_relu(h, -0.5),
    "elu(h, 0.7)": lambda h, p, q: F.elu(h, 0.7),
    "clip(h, -1, 1.5)": lambda h, p, q: h.clamp(-1.0, 1.5),
    "clip(h, 0.0, inf)": lambda h, p, q: h.clamp(min=0.0),
    "prelu(h, p0)": lambda h, p, q: torch.where(h > 0, h, p * h),
    "softplus(h, 2.0, 15.0)": lambda h, p, q: F.softplus(h, 2.0, 15.0),
    "p0 * h + (1.0 - p0) * h * p1": lambda h, p, q: p * h + (1.0 - p) * h * q,
    "h * sigmoid(p0 * (h - p1))": lambda h, p, q: h * torch.sigmoid(p * (h - q)),
    "where(h > 0, 0.1, 0.3)": lambda h, p, q: torch.where(h > 0, torch.full_like(h, 0.1), torch.full_like(h, 0.3)),
    "where(h > 0, h, -h)": lambda h, p, q: h.abs(),
    "where(logical_and(h > -1.0, h < 1.0), h, sign(h))": lambda h, p, q: torch.where((h > -1) & (h < 1), h, h.sign()),
    "where(logical_or(isnan(h), h == 0.0), 7.0, h)": lambda h, p, q: torch.where(h.isnan() | (h == 0), 7.0, h),
    "where(logical_not(h), 3.0, h)": lambda h, p, q: torch.where(h == 0, 3.0, h),
    "(h > 0.0) * h": lambda h, p, q: (h > 0) * h,
    "pow(h, 2.0) - pow(h, 3)": lambda h, p, q: h * h - h**3,
    "0.5 * (h + abs(h))": lambda h, p, q: 0.5 * (h + h.abs()),
    "h - exp(1.0)": lambda h, p, q: h - math.e,
    "p1 - h": lambda h, p, q: q - h,
    "2.0 / h": lambda h, p, q: 2.0 / h,
}  # fmt: skip


def _apply(text: str, h: Tensor, *params: Tensor) -> Tensor:
    e = compile_epilogue(text)
    e.check(params[: e.params], h.shape[-1])
    kept = e.apply(h.clone(), params[: e.params])
    torch.testing.assert_close(e.apply_(h.clone(), params[: e.params]), kept, rtol=0, atol=0, equal_nan=True)
    return kept


@pytest.mark.parametrize("text", MEANINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_text_means_what_torch_computes(text: str, dtype: torch.dtype) -> None:
    h = torch.stack([EDGES, EDGES.flip(0)]).to(dtype)
    p, q = torch.linspace(-1, 1, 16, dtype=dtype), torch.linspace(2, 3, 16, dtype=dtype)
    torch.testing.assert_close(_apply(text, h, p, q), MEANINGS[text](h, p, q).to(dtype), equal_nan=True)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_applies(name: str) -> None:
    f = FUNCTIONS[name]
    arguments = ["h", *["p0", "p1"][: f.arity - f.scalars - 1], *["0.25", "0.75"][: f.scalars]]
    call = f"{name}({', '.join(arguments)})"
    text = f"where({call}, 1.0, 0.0)" if f.boolean else call
    out = _apply(text, torch.linspace(0.1, 0.9, 8).repeat(3, 1), torch.rand(8), torch.rand(1))
    assert out.shape == (3, 8)
    assert out.dtype == torch.float32
    assert compile_epilogue(text).flops > 0


def test_text_without_a_change_of_h_is_the_identity() -> None:
    assert all(compile_epilogue(t).identity for t in ("", "h", "identity", " identity(h) "))
    assert not compile_epilogue("relu").identity


def test_apply_leaves_h_alone_and_a_wider_parameter_does_not_widen() -> None:
    h = torch.randn(4, 8, dtype=torch.float16)
    before = h.clone()
    out = compile_epilogue("relu(h) * p0").apply(h, [torch.ones(8)])
    assert torch.equal(h, before)
    assert out.dtype == torch.float16


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("h h", "invalid syntax"),
        ("(h", "never closed"),
        ("1.0", "does not depend on h"),
        ("p0", "does not depend on h"),
        ("h > 0", "truth value"),
        ("h < 1 < 2", "Compare"),
        ("h and h", "BoolOp"),
        ("h ** 2", "BinOp"),
        ("foo(h)", "unknown function 'foo'"),
        ("relu(h, 1.0)", "takes 1 arguments, got 2"),
        ("clip(h)", "takes 3 arguments, got 1"),
        ("leaky_relu(h, p0)", "takes literals from argument 2 on"),
        ("x", "unknown name 'x'"),
        ("p01 * h", "unknown name 'p01'"),
        ("h.data", "Attribute"),
        ("h[0]", "Subscript"),
        ("lambda: h", "Lambda"),
        ("__import__('os')", "unknown function"),
        ("relu(h=h)", "Call"),
        ("'h'", "Constant"),
        ("True * h", "unknown literal"),
        ("h / (1.0 < 2.0)", "comparison of two literals"),
        ("-" * 100_000 + "h", "cannot be parsed"),
        ("(" * 500 + "h" + ")" * 500, "too many nested"),
    ],
)
def test_text_outside_the_language_is_refused(text: str, why: str) -> None:
    with pytest.raises(EpilogueError, match=why):
        compile_epilogue(text)


@pytest.mark.parametrize("params", [[], [torch.ones(3)], [torch.ones(4, 1)], [torch.ones(4), torch.ones(4)]])
def test_parameters_that_do_not_fit_are_refused(params: list[Tensor]) -> None:
    with pytest.raises(EpilogueError, match=r"p0|takes 1 parameters"):
        compile_epilogue("h * p0").check(params, 4)


UNARY = ("relu", "sigmoid", "tanh", "abs", "neg", "silu")
_leaf = st.sampled_from(["h", "h", "p0", "0.5", "2.0"])
_tree = st.recursive(
    _leaf,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from("+-*"), inner, inner).map(lambda t: f"({t[1]} {t[0]} {t[2]})"),
        st.tuples(st.sampled_from(UNARY), inner).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(st.sampled_from(["max", "min"]), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
        st.tuples(inner, inner, inner).map(lambda t: f"where({t[0]} > h, {t[1]}, {t[2]})"),
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(_tree)
def test_random_text_evaluates_as_its_own_torch_code(text: str) -> None:
    text = f"h + {text}"
    h, p = torch.randn(3, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)

    def pair(op):
        return lambda a, b: op(torch.as_tensor(a, dtype=h.dtype), torch.as_tensor(b, dtype=h.dtype))

    def single(op):
        return lambda a: op(torch.as_tensor(a, dtype=h.dtype))

    functions = (torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.neg, F.silu)
    namespace = {f.__name__: single(f) for f in functions} | {"max": pair(torch.maximum), "min": pair(torch.minimum)}
    namespace["where"] = lambda c, a, b: torch.where(c, *(torch.as_tensor(v, dtype=h.dtype) for v in (a, b)))
    expected = eval(text, namespace | {"h": h, "p0": p})
    torch.testing.assert_close(_apply(text, h, p), expected)
