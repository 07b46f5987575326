"""The launcher of ``recopt::attention``'s CUDA C++ kernel: what fits it, and its source for a score.

It is compiled by NVRTC through torch, once for each score and size of heads. Triton splits every operand again for
every product and moves it between layouts; what a block has split here, all its warps read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..cuda_math import FUNCTIONS, HALVES, MARKS, OPERANDS, PTX, cuda_text
from ..devices import architecture, device_of
from ..launching import cuda_kernel, launch, planned
from ..leading import two_counters
from .source import ATTENTION

MAX_WIDTH = 64  # of heads and values
MAX_WARPS = 8  # a block
KEY_TILES = 8  # of 8 keys, at a time
RESIDENT_WARPS = 16  # of a processor, where heads are so wide that the compiler would take more than 128 registers


class Block(NamedTuple):
    """One kernel: what its source depends on."""

    warps: int
    key_tiles: int
    once: bool  # whether these are all keys: nothing is kept for others
    width: int
    values: int  # their width
    score: str
    unseen: str
    marks: tuple[str, ...]  # types of the score's parameters
    vectors: bool  # whether queries and keys are aligned

    @property
    def source(self) -> str:
        """The whole text for the compiler."""
        wide = max(self.width, self.values) > 32
        macros = {
            "D": self.width, "E": self.values, "WARPS": self.warps, "KEY_TILES": self.key_tiles,
            "ONCE": int(self.once), "BOUNDS": f"32 * WARPS, {RESIDENT_WARPS // self.warps}" if wide else "32 * WARPS",
            "VECTORS": int(self.vectors), "COUNT_MARKS": len(self.marks), "UNSEEN_CLEAN": int(self.unseen == "clean"),
            "UNSEEN": "__int_as_float(0x7fc00000)" if self.unseen == "nan" else "0.0f",
        }  # fmt: skip
        text = "".join(f"#define {name} {value}\n" for name, value in macros.items())
        text += FUNCTIONS + PTX + HALVES + OPERANDS
        text += (
            f"__device__ __forceinline__ float score(float h, const float* p) {{ return {cuda_text(self.score)}; }}\n"
        )
        marks = list(enumerate(self.marks))
        of_marks = {
            "ARGUMENTS": "".join(
                f",\n          const {m}* g{n}, int o{n}, int i{n}, int u{n}, int t{n}" for n, m in marks
            ),
            "  MARKS\n": "".join(f"  const {m}* mark{n} = g{n} + outer * o{n} + inner * i{n};\n" for n, m in marks),
            "POINTERS": "".join(f', "+l"(mark{n})' for n, _ in marks),
            "READ_MARKS": "".join(f"p[{n}] = (float)mark{n}[(i64)s * u{n} + (i64)t * t{n}]; " for n, _ in marks),
        }
        body = ATTENTION
        for name, part in of_marks.items():
            body = body.replace(name, part)
        return text + body


def fits(q: Tensor, k: Tensor, v: Tensor, score: str, params: Sequence[Tensor]) -> bool:
    """Whether the kernel takes these operands: float32 on Ampere or newer, D and E of at most 64, a head's columns next
    to each other, nothing empty, a score of functions that the source has."""
    return (
        q.is_cuda
        and not torch.version.hip
        and architecture(q.device.index) >= 8
        and all(t.dtype == torch.float32 and t.stride(-1) == 1 for t in (q, k, v))
        and max(q.shape[-1], v.shape[-1]) <= MAX_WIDTH
        and min(*q.shape, *k.shape, *v.shape) > 0
        and all(p.dtype in MARKS for p in params)
        and cuda_text(score) is not None
    )


_Plan = Callable[..., Tensor] | None
_plans: dict[Hashable, _Plan] = {}


def attention_halves(
    q: Tensor, k: Tensor, v: Tensor, score: str, params: Sequence[Tensor], unseen: str, as_queries: bool = False
) -> Tensor | None:
    """`recopt::attention` in one launch; operands as there. None where they do not fit the kernel (`fits`), where their
    leading dimensions take more than two counters, or where it cannot be compiled. ``as_queries``: where heads lie
    beside each other in q, so they do in the result, which else is contiguous."""
    turned = as_queries and q.dim() > 2 and 0 < q.stride(-3) < q.stride(-2)
    key = (
        score, unseen, turned, q.device.index,
        tuple((t.shape, t.stride(), t.dtype, t.data_ptr() % 16) for t in (q, k, v, *params)),
    )  # fmt: skip
    plan = planned(_plans, key, lambda: _bind(q, k, v, score, params, unseen, turned))
    return None if plan is None else plan(q, k, v, params)


def _empty(lead: Sequence[int], s: int, e: int, turned: bool, like: Tensor) -> Tensor:
    """[lead.., s, e] where the last of `lead` lies inside of s, if `turned`."""
    if not turned:
        return like.new_empty((*lead, s, e))
    return like.new_empty((*lead[:-1], s, lead[-1], e)).transpose(-3, -2)


def _bind(q: Tensor, k: Tensor, v: Tensor, score: str, params: Sequence[Tensor], unseen: str, turned: bool) -> _Plan:
    if not fits(q, k, v, score, params):
        return None
    lead = torch.broadcast_shapes(*(t.shape[:-2] for t in (q, k, v)))  # type: ignore[no-untyped-call]  # torch gives it no types
    (s, d), (t, e) = q.shape[-2:], v.shape[-2:]
    y = _empty(lead, s, e, turned, q)
    counters = two_counters(lead, [(x, 2) for x in (q, k, v, y, *params)])
    if counters is None:
        return None if not turned else _bind(q, k, v, score, params, unseen, False)
    (_, inner), (q_steps, k_steps, v_steps, y_steps, *of_marks) = counters
    steps = [*q_steps, q.stride(-2), *k_steps, k.stride(-2)]
    aligned = d % 4 == 0 and not any(n % 4 for n in steps) and not any(x.data_ptr() % 16 for x in (q, k))
    tiles = -(-s // 16)
    blocks = -(-tiles // MAX_WARPS)
    warps, types = -(-tiles // blocks), tuple(MARKS[p.dtype] for p in params)
    key_tiles = min(KEY_TILES, -(-t // 8))
    block = Block(warps, key_tiles, t <= 8 * key_tiles, d, e, score, unseen, types, aligned)
    device, rows = q.device.index, math.prod(lead)
    kernel = cuda_kernel(device, block.source, "attention")
    if kernel is None:
        return None
    numbers = [inner, s, t, *steps, *v_steps, v.stride(-2), *y_steps, y.stride(-2)]
    tails = [[0 if p.shape[at] == 1 else p.stride(at) for at in (-2, -1)] for p in params]

    def run(q: Tensor, k: Tensor, v: Tensor, params: Sequence[Tensor]) -> Tensor:
        y = _empty(lead, s, e, turned, q)
        args: list[Tensor | int] = [q, k, v, y, *numbers]
        for p, at, tail in zip(params, of_marks, tails, strict=True):
            args += [p, *at, *tail]
        with device_of(q):
            launch(kernel, (rows, blocks, 1), (32 * block.warps, 1, 1), args, early=architecture(device) >= 9)
        return y

    return run
