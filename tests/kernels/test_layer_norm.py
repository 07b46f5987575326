"""recopt::layer_norm: its operands, and its kernel in Triton's interpreter, and on a GPU if any."""

from __future__ import annotations

import pytest
import torch
from test_target_attention import needs_gpu, run

from recopt.kernels.layer_norm import LayerNormError, fits, layer_norm, layer_norm_torch


def test_operands_that_do_not_fit() -> None:
    x, g = torch.randn(3, 4), torch.ones(4)
    for operands in ((x, g[:3], g), (x, g, g.double()), (x[0, 0], g, g), (x, g[:, None], g[:, None])):
        with pytest.raises(LayerNormError):
            layer_norm(*operands, 1e-5)
    torch.testing.assert_close(layer_norm(x, g, g, 1e-5), layer_norm_torch(x, g, g, 1e-5))


def test_what_the_kernel_takes() -> None:
    g = torch.ones(64)
    assert fits(torch.randn(3, 64), g, g)
    assert not fits(torch.randn(3, 64).half(), g.half(), g.half())
    assert not fits(torch.randn(0, 64), g, g)
    assert not fits(torch.randn(3, 1024), torch.ones(1024), torch.ones(1024))
    assert not fits(torch.randn(3, 64, requires_grad=True), g, g)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def test_kernel_agrees_with_float64(device: str) -> None:
    """Odd widths, strides, rows far from 0: see the script."""
    run("layer_norm_agrees.py", device)
