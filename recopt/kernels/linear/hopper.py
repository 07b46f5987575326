# mypy: ignore-errors
# Device code: Triton's compiler gives these functions their types, Python's cannot.
"""The large products of ``recopt::linear`` on Hopper, in Gluon: 3xTF32 whose splitting hides behind the tensor core.

The arithmetic is that of the "split" precision in ``kernels``. There a warp that has started a product of an
operand in registers cannot do anything else until that product has nearly ended, so copying and splitting add to the
time of the products. Here one warp starts the copies of blocks of K, four split w, and two groups of four warps, half a
block apart, multiply. A program takes one tile after another, and the copies run ahead into the next one while a tile
is finished. The hardware copies whole blocks: 128 threads that copied took 165 us where this takes 141, 2048 to a side.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gluon import is_finite, repaired, rest_of_w, split_x, tile_of

SHARED = gl.constexpr(gl.NVMMASharedLayout(128, 32, 2))


def blocks_of(like: Tensor, rows: int, columns: int) -> Callable[[Tensor], TensorDescriptor]:
    """What describes blocks [rows, columns] of any matrix with the shape and strides of ``like`` to the hardware."""
    fields = dict(vars(TensorDescriptor.from_tensor(like, [rows, columns], SHARED.value)))
    # Nothing here keeps a tensor alive.
    del fields["base"]

    def of(matrix: Tensor) -> TensorDescriptor:
        # The checks of a new one, which ``like`` has passed, would take microseconds a launch.
        blocks = TensorDescriptor.__new__(TensorDescriptor)
        vars(blocks).update(fields, base=matrix)
        return blocks

    return of


@gluon.jit
def _stage(count, STAGES: gl.constexpr):
    """Where block number ``count`` of this program lies, and the parity of that stage's uses."""
    count = count.to(gl.uint32)
    return (count % STAGES).to(gl.int32), ((count // STAGES) & 1).to(gl.int32)


@gluon.jit
def _copy(
    b, x_blocks, w_blocks, M, N, K, x_smem, w_smem, bias_smem, landed, empty, bias_landed,
    BIAS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr,
    EARLY: gl.constexpr,
):  # fmt: skip
    """Fill the stages with x and w as they are, and zeros beyond them."""
    line: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    blocks = gl.cdiv(K, BK)
    tiles = gl.cdiv(M, BM) * gl.cdiv(N, BN)
    programs = gl.num_programs(0)
    count = 0
    if EARLY:
        # Here and not before the groups part: that takes a while, in which the kernel before can end.
        gdc_wait()
    for tile in range(gl.program_id(0), tiles, programs):
        tile_m, tile_n = tile_of(tile, M, N, BM, BN)
        for i in range(blocks):
            stage, parity = _stage(count, STAGES)
            mbarrier.wait(empty.index(stage), parity ^ 1)
            mbarrier.expect(landed.index(stage), (BM + BN) * BK * 4)
            tma.async_copy_global_to_shared(x_blocks, [tile_m * BM, i * BK], landed.index(stage), x_smem.index(stage))
            tma.async_copy_global_to_shared(w_blocks, [tile_n * BN, i * BK], landed.index(stage), w_smem.index(stage))
            if BIAS:  # noqa: SIM102 - the compiler decides the first condition
                if i == 0:
                    # The place is free: the groups read the bias there before they gave this block's place back.
                    place, _ = _stage(tile // programs, STAGES)
                    n = tile_n * BN + gl.arange(0, BN, layout=line)
                    async_copy.async_copy_global_to_shared(bias_smem.index(place), b + n, mask=n < N)
                    async_copy.mbarrier_arrive(bias_landed.index(place), increment_count=False)
            count += 1
    async_copy.commit_group()
    async_copy.wait_group(0)


@gluon.jit
def _split(
    M, N, K, w_smem, low_smem, landed, full,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The rest of w that the tensor core would cut, by warps whose fences have no copies under way to wait for."""
    copy: gl.constexpr = gl.BlockedLayout([1, 4], [128 // BK, BK // 4], [4, 1], [1, 0])
    tiles = gl.cdiv(M, BM) * gl.cdiv(N, BN)
    turns = gl.cdiv(tiles - gl.program_id(0), gl.num_programs(0))
    for count in range(turns * gl.cdiv(K, BK)):
        stage, parity = _stage(count, STAGES)
        mbarrier.wait(landed.index(stage), parity)
        low_smem.index(stage).store(rest_of_w(w_smem.index(stage).load(copy)))
        fence_async_shared()
        gl.thread_barrier()
        mbarrier.arrive(full.index(stage), count=1)


@gluon.jit
def _multiply(
    x, w, b, out, operands, strides, M, N, K, sxm, swn, x_smem, w_smem, low_smem, bias_smem, full, empty,
    bias_landed, EPILOGUE: gl.constexpr, BIAS: gl.constexpr, HALF: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """64 rows of every tile: products, epilogue, output."""
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 8])
    dot: gl.constexpr = gl.DotOperandLayout(0, mma, 1)
    blocks = gl.cdiv(K, BK)
    tiles = gl.cdiv(M, BM) * gl.cdiv(N, BN)
    programs = gl.num_programs(0)
    count = 0
    if EARLY:
        gdc_wait()
    zero = gl.zeros([64, BN], gl.float32, layout=mma)
    for tile in range(gl.program_id(0), tiles, programs):
        acc = gl.zeros([64, BN], gl.float32, layout=mma)
        if BIAS:
            place, parity = _stage(tile // programs, STAGES)
            mbarrier.wait(bias_landed.index(place), parity)
            acc += bias_smem.index(place).load(gl.SliceLayout(0, mma))[None, :]
        for _ in range(blocks):
            stage, parity = _stage(count, STAGES)
            mbarrier.wait(full.index(stage), parity)
            a_high, a_low = split_x(x_smem.index(stage).slice(HALF * 64, 64, 0).load(dot))
            w_block = w_smem.index(stage).permute((1, 0))
            low_block = low_smem.index(stage).permute((1, 0))
            t = warpgroup_mma(a_low, w_block, zero, use_acc=False, is_async=True)
            t = warpgroup_mma(a_high, low_block, t, is_async=True)
            t = warpgroup_mma(a_high, w_block, t, is_async=True)
            t, a_high, a_low = warpgroup_mma_wait(0, deps=[t, a_high, a_low])
            gl.thread_barrier()
            mbarrier.arrive(empty.index(stage), count=1)
            acc += t
            count += 1
        if EARLY:  # noqa: SIM102 - as above
            if tile + programs >= tiles:
                gdc_launch_dependents()
        tile_m, tile_n = tile_of(tile, M, N, BM, BN)
        # One look for all pieces: the warps of a group meet for it.
        finite = is_finite(acc)
        _finish(acc, finite, x, w, b, out, operands, strides, M, N, K, sxm, swn, tile_m * BM + HALF * 64, tile_n * BN,
                EPILOGUE, BIAS)  # fmt: skip


@gluon.jit
def _finish(
    acc, finite, x, w, b, out, operands, strides, M, N, K, sxm, swn, first_m, first_n,
    EPILOGUE: gl.constexpr, BIAS: gl.constexpr,
):  # fmt: skip
    """Epilogue and output of a piece of a tile, cut into halves until its way through shared memory has room."""
    ROWS: gl.constexpr = acc.shape[0]
    COLUMNS: gl.constexpr = acc.shape[1]
    if COLUMNS > 64:
        left, right = gl.split(gl.permute(gl.reshape(acc, [ROWS, 2, COLUMNS // 2]), (0, 2, 1)))
        _finish(left, finite, x, w, b, out, operands, strides, M, N, K, sxm, swn, first_m, first_n, EPILOGUE, BIAS)
        next_n = first_n + COLUMNS // 2
        _finish(right, finite, x, w, b, out, operands, strides, M, N, K, sxm, swn, first_m, next_n, EPILOGUE, BIAS)
    else:
        rows: gl.constexpr = gl.BlockedLayout([1, 4], [128 // COLUMNS, COLUMNS // 4], [4, 1], [1, 0])
        h = gl.convert_layout(acc, rows)
        m = (first_m + gl.arange(0, ROWS, layout=gl.SliceLayout(1, rows)))[:, None]
        n = (first_n + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, rows)))[None, :]
        m_ok = m < M
        n_ok = n < N
        if not finite:
            h = repaired(h, x, w, b, m, n, m_ok, n_ok, K, sxm, swn, BIAS)
        h = EPILOGUE(h, operands, strides, n, n_ok)
        gl.store(out + m.to(gl.int64) * N + n, h, mask=m_ok & n_ok)


@gluon.jit(do_not_specialize=["M"])
def hopper_kernel(
    x, w, b, out, x_blocks, w_blocks, operands, strides, M, N, K, sxm, swn,
    EPILOGUE: gl.constexpr, BIAS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """Tiles [128, BN] of the output."""
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    x_smem = gl.allocate_shared_memory(gl.float32, [STAGES, BM, BK], SHARED)
    w_smem = gl.allocate_shared_memory(gl.float32, [STAGES, BN, BK], SHARED)
    low_smem = gl.allocate_shared_memory(gl.float32, [STAGES, BN, BK], SHARED)
    # As many as stages: a program can be that many tiles ahead of the epilogue.
    bias_smem = gl.allocate_shared_memory(gl.float32, [STAGES, BN], plain)
    landed = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    bias_landed = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(landed.index(i), count=1)
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
        mbarrier.init(bias_landed.index(i), count=32)
    zero_half: gl.constexpr = 0
    one_half: gl.constexpr = 1
    gl.warp_specialize(
        [
            (_multiply, (x, w, b, out, operands, strides, M, N, K, sxm, swn, x_smem, w_smem, low_smem, bias_smem,
                         full, empty, bias_landed, EPILOGUE, BIAS, zero_half, BM, BN, BK, STAGES, EARLY)),
            (_multiply, (x, w, b, out, operands, strides, M, N, K, sxm, swn, x_smem, w_smem, low_smem, bias_smem,
                         full, empty, bias_landed, EPILOGUE, BIAS, one_half, BM, BN, BK, STAGES, EARLY)),
            (_split, (M, N, K, w_smem, low_smem, landed, full, BM, BN, BK, STAGES)),
            (_copy, (b, x_blocks, w_blocks, M, N, K, x_smem, w_smem, bias_smem, landed, empty, bias_landed,
                     BIAS, BM, BN, BK, STAGES, EARLY)),
        ],
        [4, 4, 1],
        [224, 40, 24],
    )  # fmt: skip
