"""recopt::gru and recopt::augru on a CPU as one call of C, for rows whose steps are short.

A step's operators in torch cost more than its arithmetic at small batches, and at large ones they read and write what
no cache holds. The C of `source` is compiled once for each gate (`cpu_math`).

Its time over theirs (from 64 rows on those of `cpu` where they fit), one core of an AMD EPYC with AVX-512, busy, 50
steps of 128 units, GRU of 64 and AUGRU of 128 inputs: 0.25 and 0.21 at batch 1, 0.22 and 0.19 at 4, 0.12 and 0.14 at
16, 0.42 and 0.48 at 64, 0.60 and 0.88 at 256, 0.91 and 0.75 at 1024.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..cpu_math import MACHINES, compiled, run_rows
from ..cuda_math import cuda_text
from .cpu import KEEP
from .source import PACK, SOURCE

# Multiplications a row from which the compiler is called, which takes two seconds, for a gate that is not the GRU's
# own: that one is compiled for all. On 4 steps of 8 units it takes half the time of torch's, on 20 of 32 a fifth.
WORTH = 100_000
MAX_GATES = 8


def fits(
    x: Tensor, h0: Tensor | None, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor, keep: str, gates: Sequence[Tensor]
) -> bool:
    """Whether operands are float32 on a CPU, worth to call a compiler, and there is one; not for a gradient, nor for a
    trace, which would not see C."""
    hidden, operands = wh.shape[1], [t for t in (x, h0, wi, wh, bi, bh) if t is not None]
    return (
        x.numel() > 0
        and torch._C._get_tracing_state() is None
        and (keep == KEEP or x.shape[1] * wh.shape[0] * (hidden + x.shape[2]) >= WORTH)
        and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in operands)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in (*operands, *gates)))
        and len(gates) <= MAX_GATES
        and not any(g.is_complex() for g in gates)
        and _compiled(keep) is not None
    )


@functools.lru_cache(maxsize=256)
def _compiled(keep: str) -> Any:
    """The module in C for a gate; None where the gate calls what it does not have, or there is no compiler."""
    text = cuda_text(keep)
    return None if text is None else compiled("recopt_gru", SOURCE, {"GATES": MAX_GATES, "KEEP": text, "METHODS": PACK})


def gru_native(
    x: Tensor, h0: Tensor | None, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor, after: bool,
    keep: str, gates: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """What `gru.gru_torch` computes of operands that fit; the result lies as [T, B, H]."""
    module, (vector, block, _) = _compiled(keep), MACHINES[torch.backends.cpu.get_cpu_capability()]
    (batch, steps, width), hidden, tile = x.shape, wh.shape[1], 2 * vector
    x = x if x.stride(2) == 1 else x.contiguous()
    start = x.new_empty((0, 1)) if h0 is None else h0.expand(batch, hidden)
    start = start if start.stride(1) == 1 else start.contiguous()
    wi, wh = wi.contiguous(), wh.contiguous()
    (bi, bn), (bs, un) = ((b[: 2 * hidden], b[2 * hidden :]) for b in (bi, bh))
    bias = torch.cat([bi + bs, bn, un] if after else [bi + bs, bn + un])
    weights = x.new_empty(3 * -(-hidden // tile) * tile * (width + hidden))
    module.pack(weights.data_ptr(), wi.data_ptr(), wh.data_ptr(), width, hidden)
    y = x.new_empty((steps, batch, hidden))
    floats = [g.expand(batch, steps).float() for g in gates]
    words = [0 if h0 is None and t is start else t.data_ptr() for t in (x, start, weights, bias, y)]
    words += [batch, steps, width, hidden, *x.stride()[:2], start.stride(0), int(after), len(floats)]
    for g in floats:
        words += [g.data_ptr(), *g.stride()]
    run_rows(module, words, batch, block)
    return y.transpose(0, 1)
