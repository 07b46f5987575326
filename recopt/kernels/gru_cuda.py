"""The launcher of the CUDA C++ kernel of ``recopt::gru`` and ``recopt::augru``: what fits it, and how it is compiled.

The products of the inputs are one ``recopt::linear`` over all steps; the kernel of ``gru_rows`` or ``gru_tiles`` does
the rest. It is compiled by NVRTC through torch, once for each hidden size, kind of gate and number of rows a block.
Triton would not keep the weights in registers from step to step, and reading them again is what a step would cost.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .epilogue import compile_epilogue
from .gru_rows import FUNCTIONS, ROWS
from .gru_tiles import TILES
from .linear import _architecture, _processors, linear

MAX_HIDDEN = 128  # wider weights do not fit into the registers of one processor
MAX_GATES = 8
STAGES = 3
_KNOWN = set(re.findall(r"(?:float|bool) (f_\w+)\(", FUNCTIONS))


def fits(
    x: Tensor, h0: Tensor | None, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor, keep: str, gates: Sequence[Tensor]
) -> bool:
    """Whether the kernel takes these operands: float32 on Ampere or newer, at most 128 units, at least one of each
    size, and a gate of functions that the source has."""
    operands = [t for t in (x, h0, wi, wh, bi, bh) if t is not None]
    return (
        0 < wh.shape[1] <= MAX_HIDDEN
        and x.numel() > 0
        and all(t.is_cuda and t.dtype == torch.float32 for t in operands)
        and all(g.is_cuda and not g.is_complex() for g in gates)
        and len(gates) <= MAX_GATES
        and not torch.version.hip
        and _architecture(x.device.index) >= 8
        and cuda_text(keep) is not None
    )


@functools.lru_cache(maxsize=256)
def cuda_text(text: str) -> str | None:
    """The gate `text` in C++ over ``h`` and ``p[..]``; None where it calls what the source does not have."""
    source = compile_epilogue(text).triton_source
    if not set(re.findall(r"f_\w+", source)) <= _KNOWN or ".to(" in source:
        return None
    source = re.sub(r"\((-?[\d.]+(?:e[+-]?\d+)?)\)", r"(\1f)", source)
    bits = {"inf": "0x7f800000", "-inf": "0xff800000", "nan": "0x7fc00000"}
    source = re.sub(r'float\("(-?inf|nan)"\)', lambda m: f"__int_as_float({bits[m[1]]})", source)
    return re.sub(r"\bp(\d+)\b", r"p[\1]", source)


class Variant(NamedTuple):
    """What the source is compiled for: its macros."""

    hidden: int
    rows: int  # a block: 1 or 2 by multiply-adds, 8 or 16 on the tensor cores
    after: bool
    keep: str
    gates: int
    started: bool  # from a state that is given

    @property
    def threads(self) -> int:
        """How many threads a block has."""
        if self.rows >= 8:
            return 32 * -(-self.hidden // 16)
        return 32 * -(-(-(-self.hidden // self.units) * 4 * self.units) // 32)

    @property
    def units(self) -> int:
        """How many units of a state 4 times as many threads make together: more read less, and exchange more sums.

        Measured on an H100 at 128 units and 50 steps, 1, 2 and 4 of them in us: GRU 34, 36, 38 and AUGRU 49, 42, 43 at
        a row a block, 55, 56, 64 and 83, 69, 74 at two.
        """
        return 2 if self.hidden > 32 else 1

    @property
    def shared(self) -> int:
        """Bytes of shared memory that a block is given at its launch."""
        if self.rows < 8:
            return 0
        wide, line = -(-self.hidden // 16) * 16, (3 * self.hidden + 11) // 16 * 16 + 4
        return 4 * (STAGES * self.rows * (line + self.gates) + 3 * wide) + 2 * 2 * 2 * self.rows * (wide + 8)

    @property
    def source(self) -> str:
        """The whole text for the compiler."""
        numbers = range(self.gates)
        size = (
            {"ROWS": self.rows, "UNITS": self.units} if self.rows < 8 else {"TILES": self.rows // 8, "STAGES": STAGES}
        )
        macros = size | {
            "H": self.hidden, "AFTER": int(self.after), "GATES": self.gates, "KEEP": cuda_text(self.keep),
            "STARTED": int(self.started), "BYTES": 4 if self.hidden % 4 else 16,
            "GATE_ARGUMENTS": "".join(f", const float* g{n}, int r{n}, int s{n}" for n in numbers),
            "GATE_POINTERS": "{" + ", ".join(f"g{n}" for n in numbers) + "}",
            "GATE_ROWS": "{" + ", ".join(f"r{n}" for n in numbers) + "}",
            "GATE_STEPS": "{" + ", ".join(f"s{n}" for n in numbers) + "}",
        }  # fmt: skip
        text = "".join(f"#define {name} {value}\n" for name, value in macros.items())
        return text + FUNCTIONS + (ROWS if self.rows < 8 else TILES)


def rows_of(batch: int, processors: int) -> int:
    """Rows a block, so that all blocks run side by side while the batch lets them."""
    return next((rows for rows in (1, 2, 8) if -(-batch // rows) <= processors), 16)


@functools.cache
def _compile(device: int, variant: Variant) -> Any:
    """The kernel for a device; None where torch cannot compile CUDA C++, or a block has too little shared memory."""
    properties = torch.cuda.get_device_properties(device)
    if variant.shared > getattr(properties, "shared_memory_per_block_optin", 48 << 10):
        return None
    try:
        with torch.cuda.device(device):
            kernel = torch.cuda._compile_kernel(variant.source, "recurrence", nvcc_options=["-std=c++17"])
            kernel.set_shared_memory_config(variant.shared)
    except (AttributeError, ImportError, OSError):  # another torch, no toolkit, no NVRTC
        return None
    return kernel


def gru_cuda(
    x: Tensor, h0: Tensor | None, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor, after: bool,
    keep: str, gates: Sequence[Tensor], rows: int = 0,
) -> Tensor | None:  # fmt: skip
    """`recopt::gru` and `recopt::augru` as two launches; None where the kernel does not take the operands or cannot be
    compiled. The result is contiguous. `rows` a block, 1, 2, 8 or 16, are chosen where they are 0. No gradients. On the
    tensor cores a state that is infinite makes its row nan."""
    if not fits(x, h0, wi, wh, bi, bh, keep, gates):
        return None
    batch, steps, hidden = x.shape[0], x.shape[1], wh.shape[1]
    device = x.device.index
    rows = rows or rows_of(batch, _processors(device))
    variant = Variant(hidden, rows, after, keep, len(gates), h0 is not None)
    kernel = _compile(device, variant)
    if kernel is None:
        return None
    by_step = x.stride(0) < x.stride(1)
    inputs = linear(x.transpose(0, 1) if by_step else x, wi, bi)
    strides = inputs.transpose(0, 1).stride() if by_step else inputs.stride()
    start = bh if h0 is None else h0.expand(batch, hidden)
    start = start if start.stride(-1) == 1 else start.contiguous()
    weights = wh.contiguous()
    weights = weights if weights.data_ptr() % 16 == 0 else weights.clone()  # they are read 16 bytes at a time
    floats = [g.expand(batch, steps).float() for g in gates]
    y = torch.empty((batch, steps, hidden), dtype=x.dtype, device=x.device)
    args: list[Tensor | int] = [inputs, start, weights, bh.contiguous(), y, batch, steps, *strides[:2]]
    args.append(0 if h0 is None else start.stride(0))
    for g in floats:
        args += [g, *g.stride()]
    with torch.cuda.device(device):
        kernel((-(-batch // rows), 1, 1), (variant.threads, 1, 1), args, variant.shared)
    return y
