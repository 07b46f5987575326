# mypy: ignore-errors
# Device code: Triton's compiler gives these functions their types, Python's cannot.
"""What the Gluon kernels of ``recopt::linear`` share: the split of an operand, the order of tiles, the exact product.

The arithmetic is that of the "split" precision in ``kernels``. All need K contiguous in x and w, and copies into
shared memory that are 16 bytes wide.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy


@gluon.jit
def cut(v):
    """What a tensor core keeps of a float32 operand: it ignores the lowest 13 bits."""
    return (v.to(gl.int32, bitcast=True) & -8192).to(gl.float32, bitcast=True)


@gluon.jit
def nearest(v):
    """v such that cutting its lowest 13 bits rounds the original to nearest."""
    return (v.to(gl.int32, bitcast=True) + 4096).to(gl.float32, bitcast=True)


@gluon.jit
def split_x(v):
    """The high part and the rest of x: see kernels._dot for the factor."""
    high = cut(v * 1.0003452669831)
    return high, nearest(v - high)


@gluon.jit
def rest_of_w(v):
    """What the tensor core ignores of w."""
    return nearest(v - cut(v))


@gluon.jit
def tile_of(pid, M, N, BM: gl.constexpr, BN: gl.constexpr):
    """The tile of a program: neighbours share tiles of w and x in L2."""
    tiles_m = gl.cdiv(M, BM)
    tiles_n = gl.cdiv(N, BN)
    width = 8 * tiles_n
    first = (pid // width) * 8
    height = min(tiles_m - first, 8)
    return first + (pid % width) % height, (pid % width) // height


@gluon.jit
def copy_block(x_at, w_at, x_smem, w_smem, stage, k, rk, K, mask_m, mask_n, EVEN_K: gl.constexpr):
    """Start the copies of the blocks at k of x and w into a stage."""
    if EVEN_K:
        async_copy.async_copy_global_to_shared(x_smem.index(stage), x_at + k, mask=mask_m)
        async_copy.async_copy_global_to_shared(w_smem.index(stage), w_at + k, mask=mask_n)
    else:
        mask_k = rk < K - k
        async_copy.async_copy_global_to_shared(x_smem.index(stage), x_at + k, mask=mask_m & mask_k)
        async_copy.async_copy_global_to_shared(w_smem.index(stage), w_at + k, mask=mask_n & mask_k)


@gluon.jit
def is_finite(h):
    """Whether all of h is: one multiplication and addition a value, where a comparison and a vote take four steps."""
    return gl.sum(gl.reshape(h * 0.0, [h.shape[0] * h.shape[1]]), 0) == 0.0


@gluon.jit
def all_finite(h):
    """The same by a comparison and a vote, by which small products end sooner: 1024 x 512 x 256 on an H200 in 6.26 us
    instead of 6.49, 256 x 256 x 256 in 2.65 instead of 2.77."""
    finite = gl.abs(h) < float("inf")
    return gl.min(gl.reshape(finite.to(gl.int32), [h.shape[0] * h.shape[1]]), 0) != 0


@gluon.jit
def repaired(h, x, w, b, m, n, mask_m, mask_n, K, sxm, swn, BIAS: gl.constexpr):
    """h = x w + b, but from float32's own products where it is not finite: rests were infinite, or overflowed."""
    exact = gl.zeros_like(h)
    if BIAS:
        exact += gl.load(b + n, mask=mask_n, other=0.0)
    for k in range(K):
        x_k = gl.load(x + m.to(gl.int64) * sxm + k, mask=mask_m, other=0.0)
        w_k = gl.load(w + n.to(gl.int64) * swn + k, mask=mask_n, other=0.0)
        exact += x_k * w_k
    return gl.where(gl.abs(h) < float("inf"), h, exact)
