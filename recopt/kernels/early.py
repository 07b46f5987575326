# mypy: ignore-errors
# Device code: Triton's compiler gives these functions their types, Python's cannot.
"""Kernels that start while the one before them drains (programmatic dependent launch, from Hopper on)."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_math import INTERPRETED

if not INTERPRETED.value:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def begin(EARLY: tl.constexpr):
    """An early launch waits here for the previous kernel's results, before it touches memory."""
    if EARLY:
        gdc_wait()


@triton.jit
def drain(EARLY: tl.constexpr):
    """Let the next kernel's programs start. Not sooner: they would crowd onto the processors that have room."""
    if EARLY:
        gdc_launch_dependents()
