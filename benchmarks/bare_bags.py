# mypy: ignore-errors
"""The peer of embedding.py that a first try with Triton is: one program a bag, U rows at a time, through L1."""

import triton
import triton.language as tl


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
