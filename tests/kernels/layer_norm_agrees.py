"""Runs the kernel of recopt::layer_norm and rms_norm against float64: in Triton's interpreter, or on a GPU ("cuda")."""

from __future__ import annotations

import sys

import torch

from recopt.kernels.layer_norm import layer_norm_torch, layer_norm_triton, rms_norm_torch

# shape of x, of which its last two dimensions are turned round in storage
CASES = [
    ((37, 64), False), ((3, 5, 8), False), ((5,), False), ((1311, 17), False), ((7, 300), False), ((2, 9, 40), True),
    ((1, 512), False), ((6, 1), False),
]  # fmt: skip


def main(device: str) -> None:
    """Rows far from 0, rows that do not vary, weights that are steps of a larger tensor; poisoned results."""
    for shape, turned in CASES:
        x = 3.0 * torch.randn(shape) + 100.0 * torch.randn(*shape[:-1], 1)
        x.view(-1, shape[-1])[0] = 2.5
        g, b = torch.rand(shape[-1], 2)[:, 0] + 0.5, torch.randn(shape[-1])
        there = x.mT.contiguous().to(device).mT if turned else x.to(device)
        poison = torch.full(shape, torch.nan, device=device)
        del poison  # the allocator hands the same memory out next
        y = layer_norm_triton(there, g.to(device), b.to(device), 1e-5).cpu()
        exact, theirs = layer_norm_torch(x.double(), g.double(), b.double(), 1e-5), layer_norm_torch(x, g, b, 1e-5)
        # float32 holds numbers near 100 to 4e-6, and the mean no better
        assert (y - exact).abs().max() <= 2 * max(float((theirs - exact).abs().max()), 1e-6), (shape, turned)
        z = there.sin()  # its strides
        of_sum, added = ((there + z, None), (there, z))
        y, added_y = (layer_norm_triton(x, g.to(device), b.to(device), 1e-5, z) for x, z in (of_sum, added))
        assert torch.equal(y, added_y)
        y = layer_norm_triton(there, g.to(device), None, 1e-5).cpu()
        torch.testing.assert_close(y, rms_norm_torch(x.double(), g.double(), 1e-5).float())
    print(len(CASES), "cases agree")


if __name__ == "__main__":
    torch.manual_seed(0)
    if sys.argv[1] == "cpu":
        import interpreted  # noqa: F401 - makes the interpreter read scalars
    main(sys.argv[1])
