"""Runs the kernel of recopt::target_attention against float64: in Triton's interpreter, or on a GPU ("cuda")."""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from torch import Tensor

from recopt.kernels.target_attention import target_attention_torch
from recopt.kernels.target_attention.halves import target_attention_halves
from recopt.kernels.target_attention.triton import Unit, target_attention_triton


class Case(NamedTuple):
    """A unit: leading dimensions, items, D, hidden widths, text, which of Wq, Wk, Wp there are, and how it is run."""

    lead: tuple[int, ...]
    items: int
    d: int
    widths: tuple[int, ...]
    text: str
    unit: Unit = Unit(16)
    softmax: bool = False
    first: str = "qkp"
    shared: bool = False  # one history for all rows
    values: int = 0  # the width of values of their own; 0: the values are the history
    dtype: torch.dtype = torch.float32
    special: bool = False  # infinities in the history
    seen: tuple[int, int] | None = None  # the items that a mask shows, drawn where it is None


DICE = "h * sigmoid(p0 * (h - p1))"
MASK = "where(p0, h, 0.0)"
CASES = [
    Case((3,), 21, 36, (80, 40), f"{DICE}; prelu(h, p0); h; {MASK}"),
    Case((5,), 10, 17, (24,), f"relu; sigmoid; {MASK}", shared=True),
    Case((2, 2), 40, 16, (20, 8), f"relu; {DICE}; h; where(p0, h * 0.25, -inf)", softmax=True),
    Case((2,), 50, 16, (20,), f"tanh; h; {MASK}", Unit(16, 4, 3)),
    Case((2,), 70, 16, (20,), "tanh; h; where(p0, h, -inf)", Unit(16, 4, 4), softmax=True),
    Case((3,), 50, 16, (20,), "tanh; h; where(p0, 0.5, h)", Unit(16)),
    Case((2, 3), 40, 16, (20,), "tanh; h; where(p0, where(h > 0.0, h, 0.0), 0.0)", Unit(16, 4, 3), seen=(9, 20)),
    Case((2, 3), 40, 16, (20,), "tanh; h; where(p0, h, -inf)", Unit(16, 4, 3), softmax=True, seen=(17, 18)),
    Case((2, 3), 40, 16, (20,), "tanh; h; where(p0, h, 0.0)", Unit(16, 4, 2), seen=(5, 5)),
    Case((3,), 9, 8, (33, 16, 9), "relu; gelu; silu; tanh; h * 2.0", first="kp", values=5),
    Case((3,), 9, 8, (16,), "relu; h; h", first="qk"),
    Case((3,), 9, 8, (16,), "1.0 / (h + 9.0); h; exp(h)", first="p"),  # a function of nothing that is infinite
    Case((3,), 21, 36, (80, 40), f"{DICE}; relu; h; {MASK}", dtype=torch.float16),
    Case((3,), 21, 36, (40,), f"relu; h; {MASK}", dtype=torch.bfloat16, softmax=True),
    Case((2,), 20, 16, (20, 20), "relu; clip(h, -1.0, 1.0); h; h", special=True),
]
TEAMS = (2, 4, 6, 12)
WIDE = [
    Case((300,), 100, 64, (80, 40), f"{DICE}; {DICE}; h; {MASK}"),
    Case((1700,), 33, 64, (96, 96), f"{DICE}; relu; h; {MASK}", shared=True),
    Case((300,), 70, 36, (20,), "tanh; h; where(p0, h, -inf)", softmax=True, shared=True, seen=(21, 60)),
    Case((7,), 200, 64, (80, 40), "relu; relu; h; where(p0, h, -inf)", softmax=True, values=17),
]


def operands(case: Case) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Random operands of a case; masks are drawn, one item of each row seen."""
    t, d = case.items, case.d
    q = torch.randn(*case.lead, d)
    k = torch.randn(*((1,) * len(case.lead) if case.shared else case.lead), t, d)
    k = k.expand(*case.lead, t, d)
    if case.special:
        k = k.clone()
        k[0, 3, 5], k[1, 7, 2] = torch.inf, -torch.inf
    v = torch.randn(*case.lead, t, case.values) if case.values else k
    n = case.widths[0]
    weights = [torch.randn(n, d) / d**0.5 if name in case.first else torch.zeros(0) for name in "qkp"]
    weights.append(torch.randn(n))
    for a, b in zip(case.widths, (*case.widths[1:], 1), strict=True):
        weights += [torch.randn(b, a) / a**0.5, torch.randn(b)]
    params: list[Tensor] = []
    for text, width in zip(case.text.split(";"), (*case.widths, 1), strict=False):
        params += [torch.rand(width), torch.rand(1)][: text.count("p0 ") + ("p0)" in text) + ("p1" in text)]
    if "p0" in case.text.split(";")[-1]:
        seen = torch.rand(*case.lead, t) > 0.4
        seen[..., t // 2] = True
        if case.seen:
            seen = torch.zeros(*case.lead, t, dtype=torch.bool)
            seen[..., case.seen[0] : case.seen[1]] = True
        params.append(seen)
    cast = [x.to(case.dtype) for x in (q, k, v, *weights)]
    same = cast[1].expand(*case.lead, t, d) if not case.shared else k[:1].to(case.dtype).expand(*case.lead, t, d)
    return cast[0], same, cast[2] if case.values else same, cast[3:], params


def check(case: Case, device: str, team: int = 0) -> None:
    """Within assert_close of float64; half precision within what rounding the layers to it costs torch itself. A team
    of warps is that of the kernel on halves."""
    q, k, v, weights, params = operands(case)
    exact = target_attention_torch(
        q.double(), k.double(), v.double(), [w.double() for w in weights],
        [p if p.dtype == torch.bool else p.double() for p in params], case.text, case.softmax,
    )  # fmt: skip
    k_there = k.to(device)
    there = (q.to(device), k_there, k_there if v is k else v.to(device))
    weights, params = [w.to(device) for w in weights], [p.to(device) for p in params]
    poison = torch.full((*case.lead, v.shape[-1]), torch.nan, device=device, dtype=case.dtype)
    del poison  # the allocator hands the same memory out next
    if team:
        out = target_attention_halves(*there, weights, params, case.text, case.softmax, team)
    else:
        out = target_attention_triton(*there, weights, params, case.text, case.softmax, case.unit)
    assert out is not None, case
    assert out.dtype == case.dtype
    wide = {} if case.dtype == torch.float32 else {"rtol": 4e-2, "atol": 4e-2}
    if case.dtype == torch.float16:
        wide = {"rtol": 4e-3, "atol": 4e-3}
    torch.testing.assert_close(
        out.cpu().double(),
        exact,
        equal_nan=True,
        msg=lambda m: f"{case}\n{m}",
        **(wide or {"rtol": 1.3e-6, "atol": 1e-5}),
    )


def main(device: str) -> None:
    """Every case, twice on a GPU: a missing barrier shows as a moving result."""
    # The interpreter multiplies bfloat16's bits as integers.
    cases = [c for c in CASES if device != "cpu" or c.dtype != torch.bfloat16]
    for case in cases:
        for _ in range(1 if device == "cpu" else 2):
            check(case, device)
    halves = [c for c in (*CASES, *WIDE) if device != "cpu" and c.dtype == torch.float32]
    for n, case in enumerate(halves):
        for _ in range(2):
            check(case, device, TEAMS[n % len(TEAMS)])
    print(len(cases) + len(halves), "cases agree")


if __name__ == "__main__":
    torch.manual_seed(0)
    if sys.argv[1] == "cpu":
        import interpreted  # noqa: F401 - makes the interpreter read scalars
    main(sys.argv[1])
