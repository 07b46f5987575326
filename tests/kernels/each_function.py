"""Every function of the epilogue language on its own, in Triton, against float64; a script of its own for a GPU."""

from __future__ import annotations

import sys

import torch

from recopt.kernels.epilogue import compile_epilogue
from recopt.kernels.functions import FUNCTIONS
from recopt.kernels.linear import linear_triton
from recopt.kernels.linear.config import Reduce

ENDS = torch.tensor([1.0, 0.5, 88.9, 2.5, 7654321.5, float("inf")])
GRID = torch.cat([torch.linspace(1e-3, 12, 160), torch.logspace(-8, 18, 60), ENDS])
POINTS = torch.cat([-GRID, GRID, torch.tensor([0.0, float("nan")])])

# the absolute error that is left where 1 + erf, 1 + tanh and h - tanh cancel
CANCELS = {"gelu": 2e-7, "gelu_tanh": 4e-7, "tanhshrink": 2e-7}


def check(device: str) -> None:
    """Each within 8 units of float32's rounding, or twice what torch's own float32 function is off there. h is x
    itself, since K is 1."""
    x, w = POINTS[:, None].to(device), torch.ones(2, 1, device=device)
    faults = []
    for name, f in FUNCTIONS.items():
        if name == "pow" and device == "cpu":  # the interpreter has no power of a negative number
            continue
        arguments = ["h", *["p0", "p1"][: f.arity - f.scalars - 1], *["0.25", "0.75"][: f.scalars]]
        call = f"{name}({', '.join(arguments)})"
        text = f"where({call}, 1.0, 0.0)" if f.boolean else call
        e = compile_epilogue(text)
        for second in (0.7, -1.3) if e.params else (0.0,):
            params = [torch.tensor([second], device=device), torch.tensor([0.6], device=device)][: e.params]
            rows = x[x.abs() < 3e8][:, None] if name in ("mod", "floordiv") else x  # a larger remainder is noise
            h = rows.expand(-1, 2)
            out = linear_triton(rows, w, None, text, params, Reduce(32, 2, 16)).double()
            exact = e.apply(h.double(), [p.double() for p in params])
            plain = e.apply(h, params).double()
            allowed = torch.maximum(8 * 2.0**-24 * exact.abs(), 2 * (plain - exact).abs()).nan_to_num(0.0, 0.0, 0.0)
            same = (out == exact.float().double()) | (out.isnan() & exact.isnan())
            wrong = ~same & ~((out - exact).abs() <= allowed + CANCELS.get(name, 1e-38))
            if wrong.any():
                found = [(f"at {a:.9g}: {b:.9g}, exactly {c:.9g}, plainly {d:.9g}") for a, b, c, d in
                         zip(*(v[wrong].tolist()[:4] for v in (h, out, exact, plain)), strict=True)]  # fmt: skip
                faults.append(f"{text}, p0 = {second}: {int(wrong.sum())} points\n    " + "\n    ".join(found))
    assert not faults, "\n" + "\n".join(faults)


if __name__ == "__main__":
    check(sys.argv[1])
    print(len(FUNCTIONS), "functions agree")
