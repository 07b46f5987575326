# mypy: ignore-errors
# Device code: Triton's compiler gives these functions their types, Python's cannot.
"""The middling products of ``recopt::linear`` on Hopper, in Gluon: a tile whose groups of four warps divide K.

A tile of 64 rows keeps every processor busy where one of 128 would not. Each group copies, splits and multiplies its
own blocks of K with wgmma and waits for no other; while one splits, another keeps the tensor core busy. The groups
meet once, in shared memory, and each finishes its share of the rows. Where tiles are fewer than processors, several
programs divide K once more, and the last of them to come finishes the tile.
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

from .gluon import all_finite, copy_block, repaired, rest_of_w, split_x, tile_of
from .kernels import hand_in


@gluon.jit
def rows_at(x, rows, step):
    """Where rows of x begin; brings their first lines into L2, so that compilers do not put the addresses off until
    they are needed, after the wait: on an H200 256 x 1024 x 256 takes 4.20 us instead of 4.36, 1024 x 512 x 512 9.42
    instead of 9.79."""
    fours = rows.to(gl.int64) * (step // 4)
    text: gl.constexpr = "prefetch.global.L2 [$2]; mov.b64 $0, $1;"
    return 4 * gl.inline_asm_elementwise(text, "=l,l,l", [fours, x + 4 * fours], dtype=gl.int64, is_pure=False, pack=1)


@gluon.jit
def _copy(
    x, w, M, N, K, sxm, swn, tile_m, tile_n, first, blocks, x_smem, w_smem, full, empty,
    BN: gl.constexpr, STAGES: gl.constexpr, SPLIT: gl.constexpr, EVEN_K: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """Copy the blocks of K, in turn for each part. A part's own fences would wait for the copies under way."""
    copy: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [4, 1], [1, 0])
    rm = tile_m * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, copy))
    rn = tile_n * BN + gl.arange(0, BN, layout=gl.SliceLayout(1, copy))
    rk = gl.arange(0, 32, layout=gl.SliceLayout(0, copy))[None, :]
    if SPLIT == 1:  # else they are slower: 1024 x 512 x 2048 on an H200 28.1 us instead of 27.1
        x_at = x + rows_at(x, gl.minimum(rm, M - 1), sxm)[:, None] + rk
        w_at = w + rows_at(w, gl.minimum(rn, N - 1), swn)[:, None] + rk
    else:
        x_at = x + rm.to(gl.int64)[:, None] * sxm + rk
        w_at = w + rn.to(gl.int64)[:, None] * swn + rk
    mask_m = (rm < M)[:, None] & (rk >= 0)
    mask_n = (rn < N)[:, None] & (rk >= 0)
    if EARLY:
        gdc_wait()
    for i in range(blocks):
        turn = i // 2
        stage = i % 2 * STAGES + turn % STAGES
        mbarrier.wait(empty.index(stage), ((turn // STAGES) & 1) ^ 1)
        copy_block(x_at, w_at, x_smem, w_smem, stage, (first + i) * 32, rk, K, mask_m, mask_n, EVEN_K)
        async_copy.mbarrier_arrive(full.index(stage), increment_count=False)
    async_copy.commit_group()
    async_copy.wait_group(0)


@gluon.jit
def _part(
    x, w, b, out, partial, locks, operands, strides, M, N, K, sxm, swn, tile_m, tile_n, all_blocks,
    x_smem, w_smem, low_smem, full, empty, done,
    EPILOGUE: gl.constexpr, BIAS: gl.constexpr, PART: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
    SPLIT: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """Every second block of the program's K, then half of the rows of the output."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    last: gl.constexpr = gl.BlockedLayout([1, 4], [128 // BN, BN // 4], [4, 1], [1, 0])
    m = (tile_m * 64 + PART * 32 + gl.arange(0, 32, layout=gl.SliceLayout(1, last)))[:, None]
    n = (tile_n * BN + gl.arange(0, BN, layout=gl.SliceLayout(0, last)))[None, :]
    m_ok = m < M
    n_ok = n < N
    if BIAS:
        # Loaded now: at the end it would cost a memory latency.
        bias = gl.load(b + n, mask=n_ok, other=0.0)
    copied: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [4, 1], [1, 0])
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 8])
    dot: gl.constexpr = gl.DotOperandLayout(0, mma, 1)
    acc = gl.zeros([64, BN], gl.float32, layout=mma)
    zero = gl.zeros([64, BN], gl.float32, layout=mma)
    blocks = (all_blocks - PART + 1) // 2
    for i in range(blocks):
        stage = PART * STAGES + i % STAGES
        low = PART * 2 + i % 2
        mbarrier.wait(full.index(stage), (i // STAGES) & 1)
        low_smem.index(low).store(rest_of_w(w_smem.index(stage).load(copied)))
        fence_async_shared()
        gl.thread_barrier()
        a_high, a_low = split_x(x_smem.index(stage).load(dot))
        w_block = w_smem.index(stage).permute((1, 0))
        low_block = low_smem.index(low).permute((1, 0))
        t = warpgroup_mma(a_low, w_block, zero, use_acc=False, is_async=True)
        t = warpgroup_mma(a_high, low_block, t, is_async=True)
        t = warpgroup_mma(a_high, w_block, t, is_async=True)
        t, a_high, a_low = warpgroup_mma_wait(0, deps=[t, a_high, a_low])
        if i + STAGES < blocks:
            gl.thread_barrier()
            mbarrier.arrive(empty.index(stage), count=1)
        acc += t
    # The sums lie where this part's rests of w were, once all of its warps have multiplied by them.
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(4, 1, 8, [1, 0])
    sums = low_smem._reinterpret(gl.float32, [2, 64, BN], swizzled)
    gl.thread_barrier()
    sums.index(PART).store(acc)
    gl.thread_barrier()
    mbarrier.arrive(done, count=1)
    mbarrier.wait(done, 0)
    h = sums.index(0).slice(PART * 32, 32, 0).load(last) + sums.index(1).slice(PART * 32, 32, 0).load(last)
    at = m.to(gl.int64) * N + n
    size = M.to(gl.int64) * N
    if SPLIT > 1:
        # The halves of a tile do not wait for each other: each has a count of its own.
        lock = locks + gl.program_id(0) * 2 + PART
        finish = hand_in(h, partial, at, m_ok & n_ok, lock, gl.program_id(1), size, SPLIT)
    else:
        finish = True
    if finish:
        if SPLIT > 1:
            # In the order of the parts: whoever comes last, the sum is the same. All loads are under way at once.
            h = gl.load(partial + at, mask=m_ok & n_ok, other=0.0, cache_modifier=".cg")
            for other in gl.static_range(1, SPLIT):
                h += gl.load(partial + other * size + at, mask=m_ok & n_ok, other=0.0, cache_modifier=".cg")
        if BIAS:
            h += bias
        if SPLIT == 1:
            # Written before it is looked at: the vote of four warps takes no time then.
            gl.store(out + at, EPILOGUE(h, operands, strides, n, n_ok), mask=m_ok & n_ok)
        finite = all_finite(h)
        if not finite:
            h = repaired(h, x, w, b, m, n, m_ok, n_ok, K, sxm, swn, BIAS)
        if SPLIT > 1 or not finite:
            gl.store(out + at, EPILOGUE(h, operands, strides, n, n_ok), mask=m_ok & n_ok)


@gluon.jit(do_not_specialize=["M"])
def group_kernel(
    x, w, b, out, partial, locks, operands, strides, M, N, K, sxm, swn,
    EPILOGUE: gl.constexpr, BIAS: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
    REGISTERS: gl.constexpr, SPLIT: gl.constexpr, EVEN_K: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """One tile [64, BN] of the output a program, or SPLIT programs: two groups of four warps that multiply, one that
    copies."""
    shared: gl.constexpr = gl.NVMMASharedLayout(128, 32, 2)
    tile_m, tile_n = tile_of(gl.program_id(0), M, N, 64, BN)
    first = 0
    blocks = gl.cdiv(K, 32)
    if SPLIT > 1:
        first = blocks * gl.program_id(1) // SPLIT
        blocks = blocks * (gl.program_id(1) + 1) // SPLIT - first
    x_smem = gl.allocate_shared_memory(gl.float32, [2 * STAGES, 64, 32], shared)
    w_smem = gl.allocate_shared_memory(gl.float32, [2 * STAGES, BN, 32], shared)
    low_smem = gl.allocate_shared_memory(gl.float32, [4, BN, 32], shared)
    full = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], mbarrier.MBarrierLayout())
    done = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2 * STAGES):
        mbarrier.init(full.index(i), count=128)
        mbarrier.init(empty.index(i), count=1)
    mbarrier.init(done, count=2)
    p0: gl.constexpr = 0
    p1: gl.constexpr = 1
    gl.warp_specialize(
        [
            (_part, (x, w, b, out, partial, locks, operands, strides, M, N, K, sxm, swn, tile_m, tile_n, blocks,
                     x_smem, w_smem, low_smem, full, empty, done, EPILOGUE, BIAS, p0, BN, STAGES, SPLIT, EARLY)),
            (_part, (x, w, b, out, partial, locks, operands, strides, M, N, K, sxm, swn, tile_m, tile_n, blocks,
                     x_smem, w_smem, low_smem, full, empty, done, EPILOGUE, BIAS, p1, BN, STAGES, SPLIT, EARLY)),
            (_copy, (x, w, M, N, K, sxm, swn, tile_m, tile_n, first, blocks, x_smem, w_smem, full, empty,
                     BN, STAGES, SPLIT, EVEN_K, EARLY)),
        ],
        [4, 4],
        # What the copies leave of the program's registers, to the products.
        [REGISTERS * 5 // 4 // 8 * 8, 3 * REGISTERS - 2 * (REGISTERS * 5 // 4 // 8 * 8)],
    )  # fmt: skip
