"""Every case of spellings/pointwise.py by the kernel, in Triton's interpreter ("cpu") or on a GPU ("cuda"), bit for bit
against torch's operators on that device; test_pointwise.py starts it in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from interpreted import interpreter  # its repair of the interpreter
from spellings.pointwise import CASES, Module, inputs
from torch import Tensor

import recopt
from recopt.kernels.pointwise import pointwise_torch
from recopt.kernels.pointwise.triton import Tiling, pointwise_triton

# The interpreter has numpy's functions in the place of CUDA's, and cuts bfloat16 off where it should round; torch's
# root on a CPU is not rounded to nearest.
ROUNDED = {"pieces of many kinds joined", "half precision", "roots and signs", "curves"}


def check(name: str, device: str) -> None:
    found = recopt.optimize(Module(CASES[name]), inputs(4), target="cuda", verify="none")
    (node,) = [n for n in found.host.nodes if n.op == "recopt.pointwise.default"]
    fed = [v.name for v in found.host.inputs]
    exact = device == "cuda" or name not in ROUNDED
    for batch, tiling, strided in ((9, None, False), (0, None, False), (9, Tiling(4, 32, 1), True)):
        if strided and device == "cuda" and "columns" not in name:
            continue  # each compiles for a second there
        given = dict(zip(fed, inputs(batch, seed=batch), strict=True))
        operands = [
            (given[v.name] if v.name in given else torch.from_numpy(found.host.constant(v))).to(device)
            for v in node.args[0]
        ]
        expected = pointwise_torch(operands, node.args[1])
        read = [apart(t) for t in operands] if strided else operands
        tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {}
        for e, a in zip(expected, pointwise_triton(read, node.args[1], tiling), strict=True):
            torch.testing.assert_close(a, e, equal_nan=True, **tolerance)


def apart(t: Tensor) -> Tensor:
    """The same elements, every second one in memory."""
    wide = torch.zeros((*t.shape, 2), dtype=t.dtype, device=t.device)
    wide[..., 0] = t
    return wide[..., 0]


def check_many_boundaries(device: str) -> None:
    """Boundaries by halving, from all of their numbers, repeated ones too."""
    boundaries = torch.tensor(sorted([*range(-20, 20), 3, 3, 7])).float().to(device)
    x = torch.cat(
        [boundaries, boundaries + 0.5, torch.tensor([float("nan"), float("inf"), -float("inf")], device=device)]
    )
    for count in range(0, boundaries.shape[0] + 1, 1 if device == "cpu" else 21):
        for right in (0, 1):
            head = f"pointwise 1\nin x0 float32 {len(x)}\nin x1 float32 {len(boundaries)}\nout y0 int64 {len(x)}\n"
            body = (
                f"loop y0 i0<{len(x)} [i0]\nt0: float32 = x0[i0]\nt1: int64 = bucket(t0, x1[0], {count}, {right})\n= t1"
            )
            (found,) = pointwise_triton([x, boundaries], head + body)
            expected = torch.searchsorted(boundaries[:count], x, right=bool(right))
            torch.testing.assert_close(found, expected)


def main(device: str) -> None:
    failed = []
    for name in CASES:
        try:
            check(name, device)
        except Exception as error:  # one that fails must not hide the rest
            failed.append(f"{name}: {type(error).__name__}: {error}")
    check_many_boundaries(device)
    print("\n".join(failed) or f"{len(CASES)} cases agree")
    sys.exit(bool(failed))


if __name__ == "__main__":
    assert interpreter is not None
    main(sys.argv[1])
