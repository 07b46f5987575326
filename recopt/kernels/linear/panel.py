# mypy: ignore-errors
# Device code: Triton's compiler gives these functions their types, Python's cannot.
"""The small products of ``recopt::linear`` on Hopper, in Gluon: a tile whose warps divide K among them.

Here a launch lasts as long as its chain of latencies. All copies of x and w start at once, as far as the stages reach;
every warp multiplies its own parts of K with mma.sync, from registers alone, and the parts meet in shared memory. A
warp's tile is small, so it takes x and w out of shared memory 16 bytes at a time: lanes hold four neighbours of K, and
x and w permute K alike.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gluon import all_finite, copy_block, repaired, rest_of_w, split_x, tile_of
from .kernels import fetch


@gluon.jit(do_not_specialize=["M"])
def panel_kernel(
    x, w, b, out, operands, strides, M, N, K, sxm, swn,
    EPILOGUE: gl.constexpr, BIAS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr, PARTS: gl.constexpr, WM: gl.constexpr, WN: gl.constexpr, EVEN_K: gl.constexpr,
    EARLY: gl.constexpr,
):  # fmt: skip
    """One tile [BM, BN] of the output a program; PARTS x WM x WN warps, each BK of a block's PARTS * BK."""
    WARPS: gl.constexpr = PARTS * WM * WN
    WIDE: gl.constexpr = PARTS * BK
    STEP: gl.constexpr = 16
    mma: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [PARTS, WM, WN], [1, 16, 8])
    dot_x: gl.constexpr = gl.DotOperandLayout(0, mma, 4)
    dot_w: gl.constexpr = gl.DotOperandLayout(1, mma, 4)
    copy: gl.constexpr = gl.BlockedLayout([1, 1, 4], [1, 128 // BK, BK // 4], [PARTS, WM * WN, 1], [2, 1, 0])
    # Eight lanes that read 64 bytes of two rows each meet no bank twice.
    shared: gl.constexpr = gl.SwizzledSharedLayout(16, 1, BK // 16, [2, 1, 0])
    row: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, copy))
    tile_m, tile_n = tile_of(gl.program_id(0), M, N, BM, BN)
    rm = tile_m * BM + gl.arange(0, BM, layout=row)
    rn = tile_n * BN + gl.arange(0, BN, layout=row)
    part = gl.arange(0, PARTS, layout=gl.SliceLayout(1, gl.SliceLayout(2, copy)))[:, None, None] * BK
    rk = part + gl.arange(0, BK, layout=gl.SliceLayout(0, gl.SliceLayout(1, copy)))[None, None, :]
    x_at = x + rm.to(gl.int64)[None, :, None] * sxm + rk
    w_at = w + rn.to(gl.int64)[None, :, None] * swn + rk
    mask_m = (rm < M)[None, :, None] & (rk >= 0)
    mask_n = (rn < N)[None, :, None] & (rk >= 0)
    x_smem = gl.allocate_shared_memory(gl.float32, [STAGES, PARTS, BM, BK], shared)
    w_smem = gl.allocate_shared_memory(gl.float32, [STAGES, PARTS, BN, BK], shared)
    if EARLY:
        lines: gl.constexpr = gl.BlockedLayout([1, 1], [4, 8], [WARPS, 1], [1, 0])
        row_n = gl.minimum(tile_n * BN + gl.arange(0, BN, layout=gl.SliceLayout(1, lines)), N - 1)
        line = gl.minimum(gl.arange(0, 8, layout=gl.SliceLayout(0, lines)) * 32, K - 1)
        fetch(w + row_n.to(gl.int64)[:, None] * swn + line[None, :])
        gdc_wait()
    blocks = gl.cdiv(K, WIDE)
    for i in gl.static_range(STAGES):
        if i < blocks:
            copy_block(x_at, w_at, x_smem, w_smem, i, i * WIDE, rk, K, mask_m, mask_n, EVEN_K)
        async_copy.commit_group()
    # The next kernel's programs are few as well, and can start beside this one's.
    if EARLY:
        gdc_launch_dependents()
    VEC: gl.constexpr = max(1, min(4, BM * BN // (32 * WARPS)))
    LANES: gl.constexpr = min(32, BN // VEC)
    sums: gl.constexpr = gl.BlockedLayout([PARTS, 1, VEC], [1, 32 // LANES, LANES], [1, WARPS, 1], [2, 1, 0])
    flat: gl.constexpr = gl.SliceLayout(0, sums)
    m = (tile_m * BM + gl.arange(0, BM, layout=gl.SliceLayout(1, flat)))[:, None]
    n = (tile_n * BN + gl.arange(0, BN, layout=gl.SliceLayout(0, flat)))[None, :]
    m_ok = m < M
    n_ok = n < N
    if BIAS:
        # Loaded now: at the end it would cost a memory latency.
        bias = gl.load(b + n, mask=n_ok, other=0.0)
    acc = gl.zeros([PARTS, BM, BN], gl.float32, layout=mma)
    zero = gl.zeros([PARTS, BM, BN], gl.float32, layout=mma)
    for i in range(blocks):
        stage = i % STAGES
        async_copy.wait_group(STAGES - 1)
        gl.thread_barrier()
        for j in gl.static_range(BK // STEP):
            a = x_smem.index(stage).slice(j * STEP, STEP, dim=2).load(dot_x)
            c = w_smem.index(stage).slice(j * STEP, STEP, dim=2).permute((0, 2, 1)).load(dot_w)
            a_high, a_low = split_x(a)
            t = mma_v2(a_low, c, zero, input_precision="tf32")
            t = mma_v2(a_high, rest_of_w(c), t, input_precision="tf32")
            # The tensor core's own sums truncate: the block is added outside it.
            acc += mma_v2(a_high, c, t, input_precision="tf32")
        if i + STAGES < blocks:
            gl.thread_barrier()
            copy_block(x_at, w_at, x_smem, w_smem, stage, (i + STAGES) * WIDE, rk, K, mask_m, mask_n, EVEN_K)
        async_copy.commit_group()
    h = gl.sum(gl.convert_layout(acc, sums), 0)
    if BIAS:
        h += bias
    if not all_finite(h):
        h = repaired(h, x, w, b, m, n, m_ok, n_ok, K, sxm, swn, BIAS)
    h = EPILOGUE(h, operands, strides, n, n_ok)
    gl.store(out + m.to(gl.int64) * N + n, h, mask=m_ok & n_ok)
