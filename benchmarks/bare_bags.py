# mypy: ignore-errors
"""The peer of embedding.py that a first try with Triton is: one program a bag, U rows at a time, through L1."""

import triton
import triton.language as tl


@triton.jit
def bare(tables, ids, out, ids_row, out_row, L: tl.constexpr, D: tl.constexpr, U: tl.constexpr, EVICT: tl.constexpr):
    bag, table = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows = tl.multiple_of(tl.load(tables + table).to(tl.pointer_type(tl.float32)), 16)
    u, d = tl.arange(0, U), tl.arange(0, D)
    acc = tl.zeros([U, D], tl.float32)
    for first in range(0, L, U):
        inside = first + u < L
        i = tl.load(ids + bag * ids_row + table * L + first + u, mask=inside, other=0)
        acc += tl.load(rows + i[:, None] * D + d[None, :], mask=inside[:, None], other=0, eviction_policy=EVICT)
    tl.store(out + bag * out_row + table * D + d, tl.sum(acc, 0))
