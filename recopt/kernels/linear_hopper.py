# mypy: ignore-errors
# Device code: Triton's compiler gives these functions their types, Python's cannot.
"""The large products of ``recopt::linear`` on Hopper, in Gluon: 3xTF32 whose splitting hides behind the tensor core.

The arithmetic is that of the "split" precision in ``linear_kernels``. There a warp that has started a product of an
operand in registers cannot do anything else until that product has nearly ended, so copying and splitting add to the
time of the products. Here four warps copy blocks of K and split w, and two groups of four warps, half a block apart,
multiply. Needs K contiguous in x and w.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@gluon.jit
def _cut(v):
    return (v.to(gl.int32, bitcast=True) & -8192).to(gl.float32, bitcast=True)


@gluon.jit
def _nearest(v):
    return (v.to(gl.int32, bitcast=True) + 4096).to(gl.float32, bitcast=True)


@gluon.jit
def _copy_and_split(
    x, w, M, N, K, sxm, swn, tile_m, tile_n, x_smem, w_smem, low_smem, full, empty,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, LAG: gl.constexpr,
):  # fmt: skip
    """Fill the stages: x and w as they are, and the rest of w that the tensor core would cut."""
    copy: gl.constexpr = gl.BlockedLayout([1, 4], [128 // BK, BK // 4], [4, 1], [1, 0])
    rm = tile_m * BM + gl.arange(0, BM, layout=gl.SliceLayout(1, copy))
    rn = tile_n * BN + gl.arange(0, BN, layout=gl.SliceLayout(1, copy))
    rk = gl.arange(0, BK, layout=gl.SliceLayout(0, copy))
    mask_m = (rm < M)[:, None]
    mask_n = (rn < N)[:, None]
    x_at = x + rm.to(gl.int64)[:, None] * sxm + rk[None, :]
    w_at = w + rn.to(gl.int64)[:, None] * swn + rk[None, :]
    blocks = gl.cdiv(K, BK)
    for i in range(blocks + LAG):
        if i < blocks:
            stage = i % STAGES
            mbarrier.wait(empty.index(stage), ((i // STAGES) & 1) ^ 1)
            mask_k = (rk < K - i * BK)[None, :]
            async_copy.async_copy_global_to_shared(x_smem.index(stage), x_at, mask=mask_m & mask_k)
            async_copy.async_copy_global_to_shared(w_smem.index(stage), w_at, mask=mask_n & mask_k)
            x_at += BK
            w_at += BK
        async_copy.commit_group()
        if i >= LAG:
            ready = (i - LAG) % STAGES
            async_copy.wait_group(LAG)
            v = w_smem.index(ready).load(copy)
            low_smem.index(ready).store(_nearest(v - _cut(v)))
            fence_async_shared()
            gl.thread_barrier()
            mbarrier.arrive(full.index(ready), count=1)


@gluon.jit
def _multiply(
    x, w, b, out, operands, strides, M, N, K, sxm, swn, tile_m, tile_n, x_smem, w_smem, low_smem, full, empty,
    EPILOGUE: gl.constexpr, BIAS: gl.constexpr, HALF: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """64 rows of the tile: products, epilogue, output."""
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 8])
    dot: gl.constexpr = gl.DotOperandLayout(0, mma, 1)
    acc = gl.zeros([64, BN], gl.float32, layout=mma)
    zero = gl.zeros([64, BN], gl.float32, layout=mma)
    for i in range(gl.cdiv(K, BK)):
        stage = i % STAGES
        mbarrier.wait(full.index(stage), (i // STAGES) & 1)
        a = x_smem.index(stage).slice(HALF * 64, 64, 0).load(dot)
        # See linear_kernels._dot for the factor.
        a_high = _cut(a * 1.0003452669831)
        a_low = _nearest(a - a_high)
        w_block = w_smem.index(stage).permute((1, 0))
        low_block = low_smem.index(stage).permute((1, 0))
        t = warpgroup_mma(a_low, w_block, zero, use_acc=False, is_async=True)
        t = warpgroup_mma(a_high, low_block, t, is_async=True)
        t = warpgroup_mma(a_high, w_block, t, is_async=True)
        t, a_high, a_low = warpgroup_mma_wait(0, deps=[t, a_high, a_low])
        gl.thread_barrier()
        mbarrier.arrive(empty.index(stage), count=1)
        acc += t
    if EARLY:
        gdc_launch_dependents()
    m = (tile_m * BM + HALF * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, mma)))[:, None]
    n = (tile_n * BN + gl.arange(0, BN, layout=gl.SliceLayout(0, mma)))[None, :]
    n_ok = n < N
    # As in tile_kernel: where rests were infinite or overflowed, float32's own products say what holds.
    finite = gl.abs(acc) < float("inf")
    if gl.min(gl.min(finite.to(gl.int32), 1), 0) == 0:
        exact = zero
        for k in range(K):
            x_k = gl.load(x + m.to(gl.int64) * sxm + k, mask=m < M, other=0.0)
            w_k = gl.load(w + n.to(gl.int64) * swn + k, mask=n_ok, other=0.0)
            exact += x_k * w_k
        acc = gl.where(finite, acc, exact)
    if BIAS:
        acc += gl.load(b + n, mask=n_ok, other=0.0)
    acc = EPILOGUE(acc, operands, strides, n, n_ok)
    gl.store(out + m.to(gl.int64) * N + n, acc, mask=(m < M) & n_ok)


@gluon.jit(do_not_specialize=["M"])
def hopper_kernel(
    x, w, b, out, operands, strides, M, N, K, sxm, swn,
    EPILOGUE: gl.constexpr, BIAS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr, GROUP: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """One tile [128, BN] of the output a program."""
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
    low_smem = gl.allocate_shared_memory(gl.float32, [STAGES, BN, BK], shared)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    LAG: gl.constexpr = STAGES - 2
    zero_half: gl.constexpr = 0
    one_half: gl.constexpr = 1
    gl.warp_specialize(
        [
            (_multiply, (x, w, b, out, operands, strides, M, N, K, sxm, swn, tile_m, tile_n, x_smem, w_smem, low_smem,
                         full, empty, EPILOGUE, BIAS, zero_half, BM, BN, BK, STAGES, EARLY)),
            (_multiply, (x, w, b, out, operands, strides, M, N, K, sxm, swn, tile_m, tile_n, x_smem, w_smem, low_smem,
                         full, empty, EPILOGUE, BIAS, one_half, BM, BN, BK, STAGES, EARLY)),
            (_copy_and_split, (x, w, M, N, K, sxm, swn, tile_m, tile_n, x_smem, w_smem, low_smem, full, empty,
                               BM, BN, BK, STAGES, LAG)),
        ],
        [4, 4],
        [208, 96],
    )  # fmt: skip
