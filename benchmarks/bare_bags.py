# mypy: ignore-errors
"""The peer of embedding.py that a first try with Triton is: one program a bag, U rows at a time, through L1."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from embedding import Workload


@triton.jit
def bare(
    tables, scales, ids, out, ids_row, out_row, first, step, column, apart,
    L: tl.constexpr, D: tl.constexpr, U: tl.constexpr, DTYPE: tl.constexpr, QUANTISED: tl.constexpr,
    EVICT: tl.constexpr,
):  # fmt: skip
    bag, table = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows = tl.multiple_of(tl.load(tables + table).to(tl.pointer_type(DTYPE)), 16)
    u, d = tl.arange(0, U), tl.arange(0, D)
    acc = tl.zeros([U, D], tl.float32)
    for begin in range(0, L, U):
        inside = begin + u < L
        i = tl.load(ids + bag * ids_row + first + table * step + begin + u, mask=inside, other=0)
        x = tl.load(rows + i[:, None] * D + d[None, :], mask=inside[:, None], other=0, eviction_policy=EVICT)
        if QUANTISED:
            pairs = tl.load(scales + table).to(tl.pointer_type(tl.float16)) + 2 * i
            scale = tl.load(pairs, mask=inside, other=0).to(tl.float32)
            bias = tl.load(pairs + 1, mask=inside, other=0).to(tl.float32)
            acc += x.to(tl.float32) * scale[:, None] + bias[:, None]
        else:
            acc += x.to(tl.float32)
    tl.store(out + bag * out_row + column + table * apart + d, tl.sum(acc, 0).to(out.dtype.element_ty))


def bare_kernel(
    tables: Sequence[Tensor], w: Workload, u: int, warps: int, scales: Sequence[Tensor] = ()
) -> Callable[[Tensor], Callable[[], Tensor]]:
    """The plain Triton start: a program a bag, [U, D] rows at a time, ids unchecked; tables that are alike are one
    launch."""
    at = [(0, 0)]  # the first id and the first column of each table
    for _, dim, length in w.tables:
        at.append((at[-1][0] + length, at[-1][1] + dim))
    period = next(p for p in range(1, len(w.tables)) if w.tables[p][1] == w.tables[0][1])
    pools = [list(pool) for _, pool in itertools.groupby(range(len(w.tables)), lambda n: w.tables[n][2])]
    groups = []
    for run in [pool[k::period] for pool in pools for k in range(min(period, len(pool)))]:
        _, dim, length = w.tables[run[0]]
        between = [b - a for a, b in zip(at[run[0]], at[run[0] + period], strict=True)]
        addresses = [torch.tensor([x[n].data_ptr() for n in run], device="cuda") for x in (tables, scales or tables)]
        steps = at[run[0]][0], between[0], at[run[0]][1], between[1]
        groups.append((len(run), dim, length, addresses, steps))
    kind = {torch.float32: tl.float32, torch.float16: tl.float16, torch.uint8: tl.uint8}[tables[0].dtype]
    dtype = torch.float32 if scales else tables[0].dtype

    def bind(ids: Tensor) -> Callable[[], Tensor]:
        def call() -> Tensor:
            out = torch.empty(w.batch, at[-1][1], device="cuda", dtype=dtype)
            for count, dim, length, (rows, pairs), steps in groups:
                bare[(w.batch, count)](
                    rows, pairs, ids, out, ids.stride(0), at[-1][1], *steps, L=length, D=dim,
                    U=min(u, 1 << (length - 1).bit_length()), DTYPE=kind, QUANTISED=bool(scales),
                    EVICT="evict_first" if dim == 32 else "", num_warps=warps,
                )  # fmt: skip
            return out

        return call

    return bind


def bare_calls(
    tables: Sequence[Tensor], w: Workload, requests: Sequence[Tensor], scales: Sequence[Tensor] = ()
) -> dict[str, list[Callable[[], Tensor]]]:
    """The plain Triton start in a few shapes of its programs."""
    shapes = ((16, 2), (32, 4), (16, 1), (32, 8)) if max(length for *_, length in w.tables) > 1 else ((1, 1), (1, 2))
    binds = {f"bare {u}, {warps}": bare_kernel(tables, w, u, warps, scales) for u, warps in shapes}
    return {name: [bind(i) for i in requests] for name, bind in binds.items()}
