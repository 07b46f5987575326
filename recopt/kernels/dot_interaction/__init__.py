"""recopt::dot_interaction: dot products of pairs of vectors that lie in the rows of a matrix, beside other columns.

    y[r] = beside[r], then for each pair p  sum_d x[r, start[first[p]] + d] * x[r, start[second[p]] + d],  then zeros

Which vectors and pairs there are is text: ``128 of 0 128 256 with 1.0 2.0 2.1`` says that vectors of 128 begin at
columns 0, 128 and 256, and that y has the products of the second with the first, of the third with both.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_VECTORS = 64  # more are not held at once
_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_TEXT = re.compile(r"(\d+) of ((?:\d+ )+)with((?: \d+\.\d+)+)")


class DotInteractionError(ValueError):
    """A text that says nothing, or an x that does not hold its vectors."""


@dataclass(frozen=True)
class Pairs:
    """Vectors of ``size`` values that begin at columns ``starts``, and pairs of them by number."""

    size: int
    starts: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        pairs = " ".join(f"{a}.{b}" for a, b in self.pairs)
        return f"{self.size} of {' '.join(map(str, self.starts))} with {pairs}"

    @property
    def columns(self) -> int:
        """How many columns x has at least."""
        return max(self.starts) + self.size


@functools.lru_cache(maxsize=1024)
def parse_pairs(text: str) -> Pairs:
    """The vectors and pairs of a text. Raises DotInteractionError."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise DotInteractionError(f"no pairs of vectors: {text[:80]!r}")
    size, starts = int(found[1]), tuple(map(int, found[2].split()))
    pairs = tuple((int(a), int(b)) for a, b in (p.split(".") for p in found[3].split()))
    if size == 0 or max(max(p) for p in pairs) >= len(starts):
        raise DotInteractionError(f"a pair of vectors that there are not: {text[:80]!r}")
    return Pairs(size, starts, pairs)


def check_operands(x: Tensor, beside: Tensor | None, text: str, zeros: int) -> tuple[int, int]:
    """The shape of y. Raises DotInteractionError unless x [R, K] holds the vectors and beside is [R, C]."""
    pairs = parse_pairs(text)
    if x.dim() != 2 or not x.is_floating_point() or x.shape[1] < pairs.columns:
        raise DotInteractionError(f"x is {x.dtype} {list(x.shape)}, need [R, at least {pairs.columns}]")
    if beside is not None and (beside.dim() != 2 or beside.shape[0] != x.shape[0] or beside.dtype != x.dtype):
        raise DotInteractionError(f"what stands beside is {beside.dtype} {list(beside.shape)}, x {list(x.shape)}")
    return x.shape[0], len(pairs.pairs) + zeros + (0 if beside is None else beside.shape[1])


def dot_interaction_torch(x: Tensor, beside: Tensor | None, text: str, zeros: int = 0) -> Tensor:
    """The reference: all products of the vectors, then those asked for. As `dot_interaction`."""
    pairs = parse_pairs(text)
    vectors = torch.stack([x.narrow(1, start, pairs.size) for start in pairs.starts], 1)
    first, second = _numbers(pairs.pairs, x.device)
    y = torch.bmm(vectors, vectors.transpose(1, 2))[:, first, second]
    if beside is None and not zeros:
        return y
    return torch.cat([*([] if beside is None else [beside]), y, y.new_zeros(y.shape[0], zeros)], 1)


@functools.cache
def _multiplies(device: torch.device) -> bool:
    """Whether a GPU's tensor cores take TF32."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


@functools.lru_cache(maxsize=256)
def _numbers(pairs: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        first, second = torch.tensor(pairs, device=device).unbind(1)
    return first, second


def dot_interaction(x: Tensor, beside: Tensor | None, text: str, zeros: int = 0) -> Tensor:
    """y [R, C + P + zeros] of x [R, K] and beside [R, C], in the type of x; see above. Raises DotInteractionError.

    On a GPU with TF32 one kernel, whose float32 products are exact to float32; for other types, many vectors, a pair
    that comes twice, or where gradients are asked for, torch's operators.
    """
    check_operands(x, beside, text, zeros)
    pairs = parse_pairs(text)
    recorded = torch.is_grad_enabled() and (x.requires_grad or (beside is not None and beside.requires_grad))
    distinct = len(set(pairs.pairs)) == len(pairs.pairs)
    small = distinct and len(pairs.starts) <= MOST_VECTORS
    if not x.is_cuda or x.dtype not in _TYPES or recorded or not small or not _multiplies(x.device):
        return dot_interaction_torch(x, beside, text, zeros)
    from .triton import dot_interaction_triton  # Triton is there where a GPU is

    beside = beside if beside is None or beside.stride(1) == 1 else beside.contiguous()
    return dot_interaction_triton(x if x.stride(1) == 1 else x.contiguous(), beside, text, zeros)
