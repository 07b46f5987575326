"""recopt::layer_norm: y[.., d] = (x[.., d] - mean_d x) / sqrt(variance_d x + eps) * g[d] + b[d], and recopt::rms_norm:
y[.., d] = x[.., d] / sqrt(mean_d x^2 + eps) * g[d]; or of the sum of x and what stands beside it, a residual.

torch's own kernel gives each row a block, which rows of 64 leave mostly idle: narrow float32 rows on a GPU are many to
a program here (``kernels``). Else a layer normalisation is torch's; its RMS normalisation is no kernel on a CPU but
seven operators, which five do in 0.7 to 0.8 of their time at 50 to 12800 rows of 64.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import device_of, starts_early
from ..launching import early_options

NARROW = 512  # columns; wider rows keep a block of torch's kernel busy
_TILE = 4096  # numbers that a program holds


class LayerNormError(ValueError):
    """Operands that do not fit each other."""


def bytes_moved(rows: int, width: int, itemsize: int = 4) -> int:
    """The fewest bytes it moves: x, g and b read once, y written once."""
    return itemsize * (2 * rows * width + 2 * width)


def flops(rows: int, width: int) -> int:
    """Floating-point operations: a mean, a variance, the result."""
    return rows * (7 * width + 4)


def check_layer_norm(x: Tensor, g: Tensor, b: Tensor, beside: Tensor | None = None) -> None:
    """Raise LayerNormError unless x is [.., D], what is `beside` it too, g and b [D], of one dtype."""
    if beside is not None and (beside.dtype != x.dtype or len(beside.shape) != len(x.shape)):
        raise LayerNormError(f"{x.dtype} {tuple(x.shape)} beside {beside.dtype} {tuple(beside.shape)}")
    if beside is not None and any(bool(n != m) for n, m in zip(x.shape, beside.shape, strict=True)):
        raise LayerNormError(f"{tuple(x.shape)} beside {tuple(beside.shape)}")
    if x.dim() == 0 or g.dim() != 1 or g.shape != b.shape or bool(x.shape[-1] != g.shape[0]):
        raise LayerNormError(f"operands of shapes {[tuple(t.shape) for t in (x, g, b)]} do not fit each other")
    if not x.dtype == g.dtype == b.dtype:
        raise LayerNormError(f"operands of {x.dtype}, {g.dtype} and {b.dtype}")


def layer_norm_torch(x: Tensor, g: Tensor, b: Tensor, eps: float) -> Tensor:
    """The same in torch's operator."""
    return F.layer_norm(x, g.shape, g, b, eps)


def rms_norm_torch(x: Tensor, g: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean of x^2 + eps) * g in torch's operators."""
    if x.is_cuda or x.dtype not in (torch.float32, torch.float64) or _needs_gradient(x, g):
        return F.rms_norm(x, g.shape, g, eps)
    norm = torch.linalg.vector_norm(x, 2, -1, True)
    scale = torch.addcmul(_number(eps, x.dtype), norm, norm, value=1 / x.shape[-1]).rsqrt_()
    return torch.mul(x, scale).mul_(g)


@functools.lru_cache(maxsize=256)
def _number(value: float, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype)


def _needs_gradient(*operands: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in operands)


def fits(x: Tensor, *weights: Tensor) -> bool:
    """Whether the kernel takes these operands and is the faster: narrow rows of float32, none of which needs a
    gradient."""
    narrow = x.dtype == torch.float32 and 0 < x.shape[-1] <= NARROW and x.numel() > 0
    return narrow and not _needs_gradient(x, *weights)


def layer_norm_triton(x: Tensor, g: Tensor, b: Tensor | None, eps: float, beside: Tensor | None = None) -> Tensor:
    """The same in one launch, early on Hopper, for float32; the result lies in order. Without b an RMS
    normalisation."""
    from .kernels import layer_norm_kernel

    rows, width = math.prod(x.shape[:-1]), x.shape[-1]
    flat = x.reshape(rows, width)
    more = None if beside is None else beside.reshape(rows, width)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tile, columns, warps = _blocks(rows, width)
    centred, b = b is not None, g if b is None else b
    steps = (*flat.stride(), *(flat if more is None else more).stride(), g.stride(0), b.stride(0))
    early = starts_early(x.device)
    with device_of(x):
        layer_norm_kernel[(-(-rows // tile), 1, 1)](
            flat, g, b, more, y, *steps, rows, width, eps, tile, columns, centred, early,
            num_warps=warps, **early_options(early),
        )  # fmt: skip
    return y


@functools.lru_cache(maxsize=4096)
def _blocks(rows: int, width: int) -> tuple[int, int, int]:
    """Rows a program, columns padded, warps: fewer rows where programs would leave processors idle."""
    columns = 1 << (width - 1).bit_length()
    tile = max(1, _TILE // columns)
    while tile > 4 and -(-rows // tile) < 264:
        tile //= 2
    return tile, columns, max(1, min(4, tile * columns // 256))


def layer_norm(x: Tensor, g: Tensor, b: Tensor, eps: float, beside: Tensor | None = None) -> Tensor:
    """x [.., D], or x and as much `beside` it added up, with each row's mean taken off, over the root of its variance
    and eps, by g [D] and b [D].

    Raises LayerNormError for operands that do not fit each other.
    """
    check_layer_norm(x, g, b, beside)
    if x.is_cuda and fits(x, g, b, *_given(beside)):
        return layer_norm_triton(x, g, b, eps, beside)
    return layer_norm_torch(x if beside is None else x + beside, g, b, eps)


def rms_norm(x: Tensor, g: Tensor, eps: float, beside: Tensor | None = None) -> Tensor:
    """x [.., D], or the sum of x and as much `beside` it, over the root of each row's mean square and eps, by g [D].

    Raises LayerNormError for operands that do not fit each other.
    """
    check_layer_norm(x, g, g, beside)
    if x.is_cuda and fits(x, g, *_given(beside)):
        return layer_norm_triton(x, g, None, eps, beside)
    return rms_norm_torch(x if beside is None else x + beside, g, eps)


def _given(beside: Tensor | None) -> tuple[Tensor, ...]:
    return () if beside is None else (beside,)
