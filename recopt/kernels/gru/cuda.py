"""The launcher of the CUDA C++ kernels of ``recopt::gru`` and ``recopt::augru``: what fits them, how they are compiled.

On Hopper one kernel of ``cluster`` does all of a batch of a few hundred rows, one of ``pairs`` all of thousands. Else
the products of the inputs of all steps come first, and the kernel of ``rows`` or ``tiles`` does the rest: of many rows
by ``inputs``, of very few by a kernel of ``rows`` beside which the other one starts, and else as a ``recopt::linear``.
They are compiled by NVRTC through torch, once for each ``Variant``. Triton would not keep the weights where they are
from step to step, and reading them again is what a step would cost.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..cuda_math import cuda_text
from ..devices import architecture, processors
from ..launching import launch
from ..linear import linear
from .inputs import input_products
from .rows import AHEAD
from .variants import Plan, Variant

MAX_HIDDEN = 128  # wider weights do not fit into the registers of one processor, or of two
MAX_INPUTS = 128  # likewise, of a kernel that multiplies them
MAX_GATES = 8


def fits(
    x: Tensor, h0: Tensor | None, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor, keep: str, gates: Sequence[Tensor]
) -> bool:
    """Whether a kernel takes these operands: float32 on Ampere or newer, at most 128 units, at least one of each
    size, and a gate of functions that the source has."""
    operands = [t for t in (x, h0, wi, wh, bi, bh) if t is not None]
    return (
        0 < wh.shape[1] <= MAX_HIDDEN
        and x.numel() > 0
        and all(t.is_cuda and t.dtype == torch.float32 for t in operands)
        and all(g.is_cuda and not g.is_complex() for g in gates)
        and len(gates) <= MAX_GATES
        and not torch.version.hip
        and architecture(x.device.index) >= 8
        and cuda_text(keep) is not None
    )


def choose(batch: int, hidden: int, inputs: int, processors: int, architecture: int) -> Plan:
    """The plan by which all blocks run side by side while the batch lets them; `architecture`: 9 for Hopper.

    Measured on an H200, 50 steps, 128 units, in us with the products of the inputs as `recopt::linear`, GRU of 64 and
    AUGRU of 128 inputs:
    256 rows by 2 take 75 and 93, in clusters of 8 65 and 88; 512 by 8 95 and 121, in clusters 66 and 89; 1024 by 8 119
    and 155, in clusters of 16 123 and 176; 2048 by 16 201 and 257, in clusters 243 and 348. Of 64 units with 32 and 64
    inputs, 256 by 2 take 33 and 42, in clusters of 8 48 and 61; 2048 by 16 118 and 129, in clusters of 16 87 and 97.
    Since then 1024 by 8 take 97 and 114, by pairs of 16 98 and 118; 2048 by 16 175 and 198, by pairs of 32 117 and 146.
    """
    if batch <= processors:
        return Plan(1)
    if architecture >= 9 and inputs <= MAX_INPUTS:
        if hidden > 64 and batch <= processors // 2 * 8:
            return Plan(8, True)
        if hidden <= 64 and batch > 2 * processors:
            return Plan(8 if batch <= processors * 8 else 16, True)
        if hidden > 64 and batch > processors * 8 and architecture == 9:
            return Plan(32, True)
    return Plan(next((rows for rows in (2, 8) if -(-batch // rows) <= processors), 16))


@functools.cache
def _compile(device: int, variant: Variant, name: str = "recurrence") -> Any:
    """A kernel for a device; None where torch cannot compile CUDA C++, or a block has too little shared memory."""
    properties = torch.cuda.get_device_properties(device)
    if variant.shared > getattr(properties, "shared_memory_per_block_optin", 48 << 10):
        return None
    try:
        with torch.cuda.device(device):
            capability = "90a" if variant.paired else None
            kernel = torch.cuda._compile_kernel(
                variant.source, name, compute_capability=capability, nvcc_options=["-std=c++17"]
            )
            kernel.set_shared_memory_config(variant.shared)
    except (AttributeError, ImportError, OSError):  # another torch, no toolkit, no NVRTC
        return None
    return kernel


def _aligned(t: Tensor, *strides: int) -> int:
    """How many bytes of a tensor can be fetched at once: 16, or 4."""
    return 4 if any(n % 4 for n in strides) or t.data_ptr() % 16 else 16


def _added(a: Tensor, b: Tensor) -> Tensor:
    """`a` with `b` added to its first numbers."""
    return torch.cat([a[: len(b)] + b, a[len(b) :]]) if len(b) else a


def _product_blocks(rows: int) -> int:
    """Blocks of the kernel that multiplies inputs of so many rows: one for each gate and AHEAD of them."""
    return 3 * -(-rows // AHEAD)


def _products_beside(x: Tensor, w: Tensor, b: Tensor, variant: Variant, room: int) -> Tensor:
    """x [B, T, K] times w [3H, K] plus b, in an early kernel that lets the next one start. What that one reads before
    it waits must have been launched before this one, which for its part waits until all of that has ended. `room`: of
    the processors, so that the next one finds the others free."""
    (batch, steps, _), columns = x.shape, len(w)
    y = torch.empty((batch, steps, columns), dtype=x.dtype, device=x.device)
    kernel, blocks = _compile(x.device.index, variant, "products"), _product_blocks(batch * steps)
    warps = -(-variant.threads // 32 // (room // blocks))
    grid, block = (blocks, -(-variant.threads // (32 * warps)), 1), (32 * warps, 1, 1)
    with torch.cuda.device(x.device):
        launch(kernel, grid, block, [x, w, b, y, batch * steps, steps, x.stride(0), x.stride(1)], early=True)
    return y


def gru_cuda(
    x: Tensor, h0: Tensor | None, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor, after: bool,
    keep: str, gates: Sequence[Tensor], plan: Plan | None = None,
) -> Tensor | None:  # fmt: skip
    """`recopt::gru` and `recopt::augru` as one launch or two; None where no kernel takes the operands or can be
    compiled. The result is contiguous. `plan` forces how the batch is cut. No gradients. On the tensor cores a state
    that is infinite makes its row nan."""
    if not fits(x, h0, wi, wh, bi, bh, keep, gates):
        return None
    batch, steps, hidden = x.shape[0], x.shape[1], wh.shape[1]
    device = x.device.index
    plan = plan or choose(batch, hidden, x.shape[2], processors(device), architecture(device))
    start = bh if h0 is None else h0.expand(batch, hidden)
    start = start if start.stride(-1) == 1 else start.contiguous()
    # Before any product is launched: a kernel that starts early reads these at once.
    weights, of_state, of_inputs, bias = wh.contiguous(), bh.contiguous(), wi.contiguous(), bi.contiguous()
    hopper = architecture(device) == 9
    room = processors(device) - batch  # what is left of them beside the recurrence
    early = plan.rows == 1 and hopper and x.shape[2] <= MAX_INPUTS and _product_blocks(batch * steps) <= room
    args: list[Tensor | int]
    if plan.cluster or early:
        inputs = x if x.stride(-1) == 1 else x.contiguous()
        width, strides = x.shape[2], inputs.stride()
        fetched = min(_aligned(inputs, width, *strides[:2]), _aligned(of_inputs, width), _aligned(weights, hidden))
        args = [inputs, start, of_inputs, weights, bias]
    else:
        by_step = x.stride(0) < x.stride(1)
        ordered = x.transpose(0, 1) if by_step else x
        # What is added to the products of the state, but for what the reset gate multiplies, is added here.
        more = bh[: 0 if plan.rows < 8 else (2 if after else 3) * hidden]
        products = input_products(ordered, wi, bi, more, processors(device)) if hopper else None
        inputs = linear(ordered, wi, _added(bi, more)) if products is None else products
        strides = inputs.transpose(0, 1).stride() if by_step else inputs.stride()
        width, fetched = 0, _aligned(inputs, hidden)
        weights = weights if weights.data_ptr() % 16 == 0 else weights.clone()  # they are read 16 bytes at a time
        args = [inputs, start, weights]
    variant = Variant(hidden, width, plan, after, keep, len(gates), h0 is not None, fetched)
    kernel = _compile(device, variant)
    if kernel is None:
        return None
    if early:
        inputs = _products_beside(inputs, of_inputs, bias, variant, room)
        strides, args = inputs.stride(), [inputs, start, weights]
    floats = [g.expand(batch, steps).float() for g in gates]
    y = torch.empty((batch, steps, hidden), dtype=x.dtype, device=x.device)
    args += [of_state, y, batch, steps, *strides[:2], 0 if h0 is None else start.stride(0)]
    for g in floats:
        args += [g, *g.stride()]
    blocks = -(-batch // plan.rows) * variant.cluster
    with torch.cuda.device(device):
        launch(kernel, (blocks, 1, 1), (variant.threads, 1, 1), args, variant.shared, early)
    return y
