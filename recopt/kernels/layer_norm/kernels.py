# mypy: ignore-errors
# Device code: Triton's compiler gives these functions their types, Python's cannot.
"""The kernel of ``recopt::layer_norm`` and ``recopt::rms_norm``: a tile of whole rows a program, read once."""

from __future__ import annotations

import triton
import triton.language as tl

from ..early import begin, drain


@triton.jit(do_not_specialize=["rows"])
def layer_norm_kernel(
    x, g, b, beside, y, x_row, x_column, beside_row, beside_column, g_step, b_step, rows, width, eps,
    TILE: tl.constexpr, COLUMNS: tl.constexpr, CENTRED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Rows [TILE, COLUMNS] of x, with those `beside` it added unless it is None, and of y; the variance of what is left
    of the mean, not of squares: nothing cancels. Where not CENTRED no mean is taken off, and b is not read."""
    r = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)[:, None]
    c = tl.arange(0, COLUMNS)[None, :]
    there = (r < rows) & (c < width)
    begin(EARLY)
    h = tl.load(x + r * x_row + c * x_column, mask=there, other=0.0)
    if beside is not None:
        h += tl.load(beside + r * beside_row + c * beside_column, mask=there, other=0.0)
    drain(EARLY)
    gain = tl.load(g + c * g_step, mask=c < width, other=0.0)
    # Rounded to nearest: rows that do not vary have nothing left, where an error would be multiplied by 1 / sqrt(eps).
    count = tl.zeros((TILE,), tl.float32) + width
    if CENTRED:
        h = tl.where(there, h - tl.div_rn(tl.sum(h, 1), count)[:, None], 0.0)
    result = h * (1.0 / tl.sqrt_rn(tl.div_rn(tl.sum(h * h, 1), count) + eps))[:, None] * gain
    if CENTRED:
        result += tl.load(b + c * b_step, mask=c < width, other=0.0)
    tl.store(y + r * width + c, result, mask=there)
