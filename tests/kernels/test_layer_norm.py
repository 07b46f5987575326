"""recopt::layer_norm: its operands, and its kernel in Triton's interpreter, and on a GPU if any."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_target_attention import needs_gpu, run

from recopt.kernels.layer_norm import LayerNormError, fits, layer_norm, layer_norm_torch, rms_norm


def test_operands_that_do_not_fit() -> None:
    x, g = torch.randn(3, 4), torch.ones(4)
    for operands in ((x, g[:3], g), (x, g, g.double()), (x[0, 0], g, g), (x, g[:, None], g[:, None])):
        with pytest.raises(LayerNormError):
            layer_norm(*operands, 1e-5)
    torch.testing.assert_close(layer_norm(x, g, g, 1e-5), layer_norm_torch(x, g, g, 1e-5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_rms_norm_is_that_of_torch(dtype: torch.dtype, eps: float) -> None:
    x, g = 9 * torch.randn(7, 3, 33, dtype=dtype) + 2, torch.rand(33, dtype=dtype)
    x[0, 0, 5], x[1], x[2] = torch.inf, 0.0, 1e-4
    torch.testing.assert_close(rms_norm(x, g, eps), F.rms_norm(x, (33,), g, eps), equal_nan=True)
    small, gain = x[2:4].clone().requires_grad_(), g.clone().requires_grad_()
    rms_norm(small, gain, eps).sum().backward()
    assert small.grad is not None and gain.grad is not None
    with pytest.raises(LayerNormError):
        rms_norm(x, g[:3], eps)


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
