# mypy: ignore-errors
# Device code: Triton's compiler gives these functions their types, Python's cannot.
"""Triton kernels of ``recopt::linear``: a tiled one on the tensor cores and a reduction for products with few outputs.

float32 accuracy comes from three TF32 products a block of K (3xTF32): every operand is split into what the tensor core
keeps and the rest. Blocks of K are added in float32 outside the tensor core, whose own sums truncate.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..early import begin, drain
from ..triton_math import INTERPRETED

if not INTERPRETED.value:
    from triton.language.extra.cuda import gdc_launch_dependents


@triton.jit
def fetch(at):
    """Bring lines into L2, where memory is coherent: allowed before the previous kernel has written them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _fetch_rows(rows, K, BK: tl.constexpr):
    """K neighbouring columns of `rows` into L2."""
    SECTOR: tl.constexpr = 8  # float32s of the 32 bytes that a prefetch brings
    first = tl.arange(0, BK // SECTOR) * SECTOR
    for k in range(0, K, BK):
        fetch(rows[:, None] + tl.minimum(k + first, K - 1)[None, :])


@triton.jit
def _nearest(v):
    """v such that cutting its lowest 13 bits rounds the original to nearest."""
    return (v.to(tl.int32, bitcast=True) + 4096).to(tl.float32, bitcast=True)


@triton.jit
def _cut(v):
    """What a tensor core keeps of a float32 operand: it ignores the lowest 13 bits."""
    return (v.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def hand_in(acc, slots, at, mask, lock, part, size, SPLIT: tl.constexpr):
    """Write this program's part of a sum of SPLIT into its slot of ``size``; whether it is the last to come.

    Nobody waits, so nothing depends on which programs run side by side.
    """
    tl.store(slots + part * size + at, acc, mask=mask, cache_modifier=".cg")
    tl.debug_barrier()
    last = tl.atomic_add(lock, 1, sem="acq_rel") == SPLIT - 1
    # Nobody else comes: the next launch finds the count clean.
    tl.store(lock, 0, mask=last)
    return last


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr):
    """acc after one block of K."""
    if PRECISION == "split":
        # Were both operands cut as they are, the product of the rests, which is left out, would have a bias: scaling
        # by 1 + 2^-11.5 centres a's rest on zero (and keeps nan and inf, which rounding in integers does not).
        a_high = _cut(a * 1.0003452669831)
        a_low = _nearest(a - a_high)
        b_high = _cut(b)
        b_low = _nearest(b - b_high)
        if a.shape[0] >= 64 and not INTERPRETED:
            # wgmma reads b from shared memory as it was loaded and cuts it itself: only b_low is written there again.
            b_high = b
        block = tl.dot(a_low, b_high, input_precision="tf32")
        block = tl.dot(a_high, b_low, block, input_precision="tf32")
        # The tensor core's own sums truncate: the block is added outside it.
        acc += tl.dot(a_high, b_high, block, input_precision="tf32")
    elif PRECISION == "native":
        acc = tl.dot(a, b, acc)
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _product(
    a_at, b_at, mask_a, mask_b, step_a, step_b, start, stop, K,
    PRECISION: tl.constexpr, BK: tl.constexpr, EVEN_K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in tl.range(start, stop, BK, num_stages=STAGES):
        if EVEN_K:
            a = tl.load(a_at, mask=mask_a[:, None], other=0.0)
            b = tl.load(b_at, mask=mask_b[None, :], other=0.0)
        else:
            mask_k = tl.arange(0, BK) < K - k
            a = tl.load(a_at, mask=mask_a[:, None] & mask_k[None, :], other=0.0)
            b = tl.load(b_at, mask=mask_b[None, :] & mask_k[:, None], other=0.0)
        acc = _dot(a, b, acc, PRECISION)
        a_at += step_a
        b_at += step_b
    return acc


# No argument may be called `params`: the launcher that Triton generates uses the name itself.
# The batch varies from call to call: a kernel of its own for M = 1 or M % 16 == 0 would be compiled on request.
@triton.jit(do_not_specialize=["M"])
def tile_kernel(
    x, w, b, out, partial, locks, operands, strides, M, N, K, sxm, sxk, swn, swk,
    EPILOGUE: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr, GROUP: tl.constexpr,
    SWAP: tl.constexpr, EVEN_K: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One tile [BM, BN] of the output a program, K cut into SPLIT parts that the last program of a tile adds up.

    SWAP computes the tile transposed, so that N fills the tensor core's rows where M is small.
    """
    begin(EARLY)
    pid = tl.program_id(0)
    part = tl.program_id(1)
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    # Neighbouring programs share tiles of w and x in L2.
    width = GROUP * tiles_n
    first = (pid // width) * GROUP
    height = min(tiles_m - first, GROUP)
    tile_m = first + (pid % width) % height
    tile_n = (pid % width) // height
    rm = tile_m * BM + tl.arange(0, BM)
    rn = tile_n * BN + tl.arange(0, BN)
    per_part = tl.cdiv(tl.cdiv(K, BK), SPLIT) * BK
    start = part * per_part
    stop = min(K, start + per_part)
    rk = start + tl.arange(0, BK)
    mask_m = rm < M
    mask_n = rn < N
    x_row = x + rm.to(tl.int64) * sxm
    w_row = w + rn.to(tl.int64) * swn
    step_x = BK * sxk
    step_w = BK * swk
    if SWAP:
        a_at = w_row[:, None] + rk[None, :].to(tl.int64) * swk
        b_at = x_row[None, :] + rk[:, None].to(tl.int64) * sxk
        mask_a = mask_n
        mask_b = mask_m
        step_a = step_w
        step_b = step_x
        ROWS: tl.constexpr = BN
        COLUMNS: tl.constexpr = BM
    else:
        a_at = x_row[:, None] + rk[None, :].to(tl.int64) * sxk
        b_at = w_row[None, :] + rk[:, None].to(tl.int64) * swk
        mask_a = mask_m
        mask_b = mask_n
        step_a = step_x
        step_b = step_w
        ROWS: tl.constexpr = BM
        COLUMNS: tl.constexpr = BN
    acc = _product(
        a_at, b_at, mask_a, mask_b, step_a, step_b, start, stop, K, PRECISION, BK, EVEN_K, ROWS, COLUMNS, None
    )  # fmt: skip
    if PRECISION == "split" or PRECISION == "bf16x6" or PRECISION == "tf32x3":
        # The rest of an infinite operand is inf - inf, and rests can overflow: there the plain product says what holds.
        finite = tl.abs(acc) < float("inf")
        if tl.min(finite.to(tl.int32)) == 0:
            plain = _product(
                a_at, b_at, mask_a, mask_b, step_a, step_b, start, stop, K, "tf32", BK, EVEN_K, ROWS, COLUMNS, 1
            )  # fmt: skip
            acc = tl.where(finite, acc, plain)
    drain(EARLY)
    if SWAP:
        m = rm[None, :]
        n = rn[:, None]
        mask = mask_m[None, :] & mask_n[:, None]
        n_ok = mask_n[:, None]
    else:
        m = rm[:, None]
        n = rn[None, :]
        mask = mask_m[:, None] & mask_n[None, :]
        n_ok = mask_n[None, :]
    where_out = m.to(tl.int64) * N + n
    if SPLIT > 1:
        size = M.to(tl.int64) * N
        if not hand_in(acc, partial, where_out, mask, locks + pid, part, size, SPLIT):
            return
        acc = tl.zeros_like(acc)
        # One after the other: there may be 16, and registers for all would cost more than their latencies.
        for other in range(SPLIT):
            acc += tl.load(partial + other * size + where_out, mask=mask, other=0.0, cache_modifier=".cg")
    if BIAS:
        acc += tl.load(b + n, mask=n_ok, other=0.0).to(tl.float32)
    acc = EPILOGUE(acc, operands, strides, n, n_ok)
    tl.store(out + where_out, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def reduce_kernel(
    x, w, b, out, operands, strides, M, N, K, sxm, sxk, swn, swk,
    EPILOGUE: tl.constexpr, BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    EVEN_K: tl.constexpr, EARLY: tl.constexpr, FETCH: tl.constexpr,
):  # fmt: skip
    """BM x BN outputs a program, threads spread over K: for few outputs, whose time is the reading of w."""
    tiles_n = tl.cdiv(N, BN)
    pid = tl.program_id(0)
    rm = (pid // tiles_n) * BM + tl.arange(0, BM)
    rn = (pid % tiles_n) * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)[None, None, :]
    if FETCH:
        _fetch_rows(w + tl.minimum(rn, N - 1).to(tl.int64) * swn, K, BK)
    begin(EARLY)
    # Where w comes from L2, the next launch can fetch its own meanwhile.
    if FETCH:
        gdc_launch_dependents()
    mask_m = (rm < M)[:, None, None]
    mask_n = (rn < N)[None, :, None]
    # In three dimensions from the start: between layouts, Triton would move what is loaded through shared memory.
    x_at = x + (rm.to(tl.int64) * sxm)[:, None, None] + rk.to(tl.int64) * sxk
    w_at = w + (rn.to(tl.int64) * swn)[None, :, None] + rk.to(tl.int64) * swk
    n = rn[None, :]
    n_ok = n < N
    if BIAS:
        # Loaded now: at the end it would cost a memory latency.
        bias = tl.load(b + n, mask=n_ok, other=0.0).to(tl.float32)
    acc = tl.zeros((BM, BN, BK), tl.float32)
    for k in range(0, K, BK):
        if EVEN_K:
            x_block = tl.load(x_at, mask=mask_m, other=0.0)
            w_block = tl.load(w_at, mask=mask_n, other=0.0)
        else:
            mask_k = rk < K - k
            x_block = tl.load(x_at, mask=mask_m & mask_k, other=0.0)
            w_block = tl.load(w_at, mask=mask_n & mask_k, other=0.0)
        acc += x_block.to(tl.float32) * w_block.to(tl.float32)
        x_at += BK * sxk
        w_at += BK * swk
    drain(EARLY)
    h = tl.sum(acc, 2)
    if BIAS:
        h += bias
    h = EPILOGUE(h, operands, strides, n, n_ok)
    where_out = rm.to(tl.int64)[:, None] * N + n
    tl.store(out + where_out, h.to(out.dtype.element_ty), mask=(rm < M)[:, None] & n_ok)
