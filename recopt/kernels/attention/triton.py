"""The launcher of ``recopt::attention``'s Triton kernels: what fits them, and how it is cut into programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..devices import architecture, device_of, starts_early
from ..epilogue import compile_epilogue
from ..launching import Grid, TritonLaunch, early_options, planned
from ..leading import two_counters
from ..linear import HALF
from ..target_attention.triton import plain

MAX_WIDTH = 128
MAX_SINGLE = 1 << 14  # keys times width that one query's program holds


class Blocks(NamedTuple):
    """How a kernel runs: queries and keys a block, warps, pipeline stages; for single queries the rows a program."""

    queries: int
    keys: int
    warps: int
    stages: int = 1


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def choose(s: int, t: int, width: int) -> Blocks:
    """Blocks for s queries of t keys of a padded width."""
    if s == 1 and _power(t) * width <= MAX_SINGLE:
        size = _power(t) * width
        rows = max(1, 2048 // size)
        return Blocks(rows, _power(t), min(8, max(1, rows * size // 1024)))
    queries, keys = (16 if n <= 16 else 32 for n in (s, t))
    return Blocks(queries, keys, max(1, queries * keys // 512))


def fits(q: Tensor, k: Tensor, v: Tensor, params: Sequence[Tensor]) -> bool:
    """Whether the kernels take these operands: on Ampere or newer, float32 or half precision, D and E of at
    most 128, nothing empty."""
    if q.is_cuda and architecture(q.device.index) < 8:  # no TF32
        return False
    if q.dtype not in (torch.float32, *HALF) or not q.dtype == k.dtype == v.dtype:
        return False
    if max(q.shape[-1], v.shape[-1]) > MAX_WIDTH or min(*q.shape, *k.shape, *v.shape) == 0:
        return False
    return not any(p.dtype == torch.float64 for p in params)


_Plan = Callable[..., Tensor] | None
_plans: dict[Hashable, _Plan] = {}


def attention_triton(
    q: Tensor, k: Tensor, v: Tensor, score: str, params: Sequence[Tensor], unseen: str, blocks: Blocks | None = None
) -> Tensor | None:
    """`recopt::attention` in one launch; operands as there. None where they do not fit the kernels (`fits`), or where
    their leading dimensions take more than two counters.

    ``blocks`` forces a configuration. The first call at new shapes compiles or binds the kernel. Raises EpilogueError.
    """
    key = (
        score, unseen, blocks, q.device.index,
        tuple((t.shape, t.stride(), t.dtype, t.data_ptr() % 16) for t in (q, k, v, *params)),
    )  # fmt: skip
    plan = planned(_plans, key, lambda: _bind(q, k, v, score, params, unseen, blocks))
    if plan is None:
        return None
    with device_of(q):
        return plan(q, k, v, params)


def _bind(
    q: Tensor, k: Tensor, v: Tensor, score: str, params: Sequence[Tensor], unseen: str, blocks: Blocks | None
) -> _Plan:
    from . import kernels

    if not fits(q, k, v, params):
        return None
    lead = torch.broadcast_shapes(*(t.shape[:-2] for t in (q, k, v)))  # type: ignore[no-untyped-call]  # torch gives it no types
    counters = two_counters(lead, [(t, 2) for t in (q, k, v, *params)])
    if counters is None:
        return None
    (_, inner), found = counters
    tails = [tuple(0 if t.shape[at] == 1 else t.stride(at) for at in (-2, -1)) for t in (q, k, v, *params)]
    steps = [(*a, *b) for a, b in zip(found, tails, strict=True)]
    (s, d), (t, e) = q.shape[-2:], v.shape[-2:]
    rows = math.prod(lead)
    dp, ep = (max(16, _power(n)) for n in (d, e))
    function = compile_epilogue(score).triton_function()
    single = s == 1 and (blocks.queries < 16 if blocks else _power(t) * max(dp, ep) <= MAX_SINGLE)
    blocks = blocks or choose(s, t, max(dp, ep))
    numbers = (*steps[:3], inner, rows if single else s, t, d, e, function, unseen)
    early = single and starts_early(q.device)
    grid: Grid
    if single:
        kernel, grid = kernels.single_kernel, (-(-rows // blocks.queries), 1, 1)
        constants: tuple[Any, ...] = (blocks.queries, blocks.keys, dp, ep, early)
    else:
        kernel, grid = kernels.block_kernel, (rows, -(-s // blocks.queries), 1)
        constants = (q.dtype == torch.float32, blocks.queries, blocks.keys, dp, ep)
    launch = TritonLaunch(kernel, grid, num_warps=blocks.warps, num_stages=blocks.stages, **early_options(early))

    def run(q: Tensor, k: Tensor, v: Tensor, params: Sequence[Tensor]) -> Tensor:
        out = torch.empty((*lead, s, e), dtype=q.dtype, device=q.device)
        launch(q, k, v, out, tuple(map(plain, params)), tuple(steps[3:]), *numbers, *constants)
        return out

    return run
