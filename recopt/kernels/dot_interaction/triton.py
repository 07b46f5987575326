# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""The Triton kernel of ``recopt::dot_interaction``: a program makes all products of the vectors of one row at once, in
tensor cores (float32 as three products of TF32), and writes those that are asked for where they belong."""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..devices import starts_early
from ..early import begin, drain
from ..launching import early_options
from . import parse_pairs


@triton.jit
def dots_kernel(
    x, beside, y, starts, places, x_row, beside_row, C, P, width, COUNT: tl.constexpr, SIZE: tl.constexpr,
    HELD: tl.constexpr, STEP: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """beside [.., C] or None; P products; starts [HELD], multiples of ALIGN; places [HELD, HELD]: which of the P a
    product is, or -1; y [.., width]."""
    n = tl.arange(0, HELD)
    d = tl.arange(0, STEP)
    start = tl.load(starts + n) // ALIGN * ALIGN  # so that the compiler sees what divides it
    place = tl.load(places + n[:, None] * HELD + n[None, :])
    row = tl.program_id(0).to(tl.int64)
    at = x + row * x_row + start[:, None]
    products = tl.zeros([HELD, HELD], tl.float32)
    begin(EARLY)
    for first in tl.static_range(0, SIZE, STEP):
        inside = (n < COUNT)[:, None] & (first + d < SIZE)[None, :]
        v = tl.load(at + (first + d)[None, :], mask=inside, other=0)
        products = tl.dot(v, tl.trans(v), products, input_precision=PRECISION)
    y += row * width
    tl.store(y + C + place, products.to(y.dtype.element_ty), mask=place >= 0)
    c = tl.arange(0, 128)
    if beside is not None:
        for first in range(0, C, 128):
            here = first + c < C
            tl.store(y + first + c, tl.load(beside + row * beside_row + first + c, mask=here), mask=here)
    for first in range(C + P, width, 128):
        tl.store(y + first + c, tl.zeros([128], y.dtype.element_ty), mask=first + c < width)
    drain(EARLY)


def dot_interaction_triton(x: Tensor, beside: Tensor | None, text: str, zeros: int = 0) -> Tensor:
    """As `dot_interaction`, of tensors whose columns lie side by side."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            return dot_interaction_triton(x, beside, text, zeros)
    pairs = parse_pairs(text)
    starts, places = _tables(text, x.device)
    before, beside_row = (0, 0) if beside is None else (beside.shape[1], beside.stride(0))
    width = before + len(pairs.pairs) + zeros
    y = torch.empty((x.shape[0], width), dtype=x.dtype, device=x.device)
    if x.shape[0] == 0:
        return y
    early = starts_early(x.device)
    warps, most = _tile(x.shape[0])
    step = max(16, min(most, triton.next_power_of_2(pairs.size)))
    align = math.gcd(16 // x.element_size(), *pairs.starts)
    dots_kernel[(x.shape[0],)](
        x, beside, y, starts, places, x.stride(0), beside_row, before, len(pairs.pairs), width, len(pairs.starts),
        pairs.size, len(starts), step, align, "tf32x3", early, num_warps=warps, **early_options(early),
    )  # fmt: skip
    return y


def _tile(rows: int) -> tuple[int, int]:
    """Warps of a row and values of a vector at once, measured for 27 vectors of 128 on an H200: every warp takes apart
    what it multiplies by itself, which matters where rows are many, 17.8 us for 35 with four warps at 2048."""
    if rows >= 1024:
        return 1, 32
    return (2, 64) if rows >= 64 else (4, 64)


@functools.lru_cache(maxsize=256)
def _tables(text: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where vectors begin and products go, on the device."""
    pairs = parse_pairs(text)
    held = max(16, triton.next_power_of_2(len(pairs.starts)))
    with torch.inference_mode(False):
        starts = torch.zeros(held, dtype=torch.int32)
        starts[: len(pairs.starts)] = torch.tensor(pairs.starts)
        places = torch.full((held, held), -1, dtype=torch.int32)
        first, second = torch.tensor(pairs.pairs).unbind(1)
        places[first, second] = torch.arange(len(pairs.pairs), dtype=torch.int32)
        return starts.to(device), places.to(device)
