# mypy: ignore-errors
# Device code: Triton's compiler gives these functions their types, Python's cannot.
"""The large products of ``recopt::linear`` on Hopper, in Gluon: 3xTF32 with the splitting under the tensor core's work.

As the "split" precision of ``linear_kernels``, which waits for each product in turn. Here a block's three products run
while the next block is split. Needs K contiguous in x and w.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@gluon.jit
def _cut(v):
    return (v.to(gl.int32, bitcast=True) & -8192).to(gl.float32, bitcast=True)


@gluon.jit
def _nearest(v):
    return (v.to(gl.int32, bitcast=True) + 4096).to(gl.float32, bitcast=True)


@gluon.jit
def _fetch(x_smem, w_smem, x_at, w_at, mask_m, mask_n, rk, block, stage, BK: gl.constexpr, K):
    """Start copying one block of K into a stage; beyond K nothing is read and zeros are written."""
    mask_k = (rk < K - block * BK)[None, :]
    async_copy.async_copy_global_to_shared(x_smem.index(stage), x_at + block * BK, mask=mask_m[:, None] & mask_k)
    async_copy.async_copy_global_to_shared(w_smem.index(stage), w_at + block * BK, mask=mask_n[:, None] & mask_k)
    async_copy.commit_group()


@gluon.jit
def hopper_kernel(
    x, w, b, out, operands, strides, M, N, K, sxm, swn,
    EPILOGUE: gl.constexpr, BIAS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr, GROUP: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """One tile [BM, BN] of the output a program."""
    WARPS: gl.constexpr = gl.num_warps()
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BN, 8])
    dot: gl.constexpr = gl.DotOperandLayout(0, mma, 1)
    copy: gl.constexpr = gl.BlockedLayout([1, 4], [128 // BK, BK // 4], [WARPS, 1], [1, 0])
    shared: gl.constexpr = gl.NVMMASharedLayout(128, 32, 2)
    if EARLY:
        gdc_wait()
    pid = gl.program_id(0)
    tiles_m = gl.cdiv(M, BM)
    tiles_n = gl.cdiv(N, BN)
    width = GROUP * tiles_n
    first = (pid // width) * GROUP
    height = min(tiles_m - first, GROUP)
    tile_m = first + (pid % width) % height
    tile_n = (pid % width) // height

    x_smem = gl.allocate_shared_memory(gl.float32, [STAGES, BM, BK], shared)
    w_smem = gl.allocate_shared_memory(gl.float32, [STAGES, BN, BK], shared)
    low_smem = gl.allocate_shared_memory(gl.float32, [2, BN, BK], shared)
    rows: gl.constexpr = gl.SliceLayout(1, copy)
    rm = tile_m * BM + gl.arange(0, BM, layout=rows)
    rn = tile_n * BN + gl.arange(0, BN, layout=rows)
    rk = gl.arange(0, BK, layout=gl.SliceLayout(0, copy))
    mask_m = rm < M
    mask_n = rn < N
    x_at = x + rm.to(gl.int64)[:, None] * sxm + rk[None, :]
    w_at = w + rn.to(gl.int64)[:, None] * swn + rk[None, :]
    blocks = gl.cdiv(K, BK)
    for i in gl.static_range(STAGES - 1):
        _fetch(x_smem, w_smem, x_at, w_at, mask_m, mask_n, rk, i, i, BK, K)

    acc = gl.zeros([BM, BN], gl.float32, layout=mma)
    zero = gl.zeros([BM, BN], gl.float32, layout=mma)
    async_copy.wait_group(STAGES - 2)
    a = x_smem.index(0).load(dot)
    a_high = _cut(a * 1.0003452669831)
    a_low = _nearest(a - a_high)
    v = w_smem.index(0).load(copy)
    low_smem.index(0).store(_nearest(v - _cut(v)))
    for i in range(blocks):
        fence_async_shared()
        w_block = w_smem.index(i % STAGES).permute((1, 0))
        low_block = low_smem.index(i % 2).permute((1, 0))
        t = warpgroup_mma(a_low, w_block, zero, use_acc=False, is_async=True)
        t = warpgroup_mma(a_high, low_block, t, is_async=True)
        t = warpgroup_mma(a_high, w_block, t, is_async=True)
        # The stage of block i - 1 is free: every warp waited for its products before the barrier on low_smem.
        ahead = i + STAGES - 1
        _fetch(x_smem, w_smem, x_at, w_at, mask_m, mask_n, rk, ahead, ahead % STAGES, BK, K)
        async_copy.wait_group(STAGES - 2)
        a = x_smem.index((i + 1) % STAGES).load(dot)
        v = w_smem.index((i + 1) % STAGES).load(copy)
        low_smem.index((i + 1) % 2).store(_nearest(v - _cut(v)))
        # x is split only now: written while products run, their registers would make ptxas run each by itself (C7513).
        t, a_high, a_low = warpgroup_mma_wait(0, deps=[t, a_high, a_low])
        a_high = _cut(a * 1.0003452669831)
        a_low = _nearest(a - a_high)
        acc += t
    async_copy.wait_group(0)
    if EARLY:
        gdc_launch_dependents()
    # As in tile_kernel: where rests were infinite or overflowed, the plain product says what holds.
    finite = gl.abs(acc) < float("inf")
    if gl.min(gl.min(finite.to(gl.int32), 1), 0) == 0:
        plain = zero
        for i in range(blocks):
            gl.thread_barrier()
            _fetch(x_smem, w_smem, x_at, w_at, mask_m, mask_n, rk, i, 0, BK, K)
            async_copy.wait_group(0)
            fence_async_shared()
            plain = warpgroup_mma(x_smem.index(0).load(dot), w_smem.index(0).permute((1, 0)), plain)
        acc = gl.where(finite, acc, plain)
    m = (tile_m * BM + gl.arange(0, BM, layout=gl.SliceLayout(1, mma)))[:, None]
    n = (tile_n * BN + gl.arange(0, BN, layout=gl.SliceLayout(0, mma)))[None, :]
    n_ok = n < N
    if BIAS:
        acc += gl.load(b + n, mask=n_ok, other=0.0)
    acc = EPILOGUE(acc, operands, strides, n, n_ok)
    gl.store(out + m.to(gl.int64) * N + n, acc, mask=(m < M) & n_ok)
