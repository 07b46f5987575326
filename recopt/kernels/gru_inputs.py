"""The products of a recurrence's inputs, of many steps and rows at once, by a CUDA C++ kernel on the tensor cores.

``recopt::linear`` does the same with TF32, whose products take twice the time. Here the weights lie in shared memory as
sums of two halves, split once a block; a warp takes 16 rows at a time, scaled by powers of two and split in registers.
Three products of halves make one of float32 (that of both low ones is below its rounding).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .cuda_math import FUNCTIONS, HALVES, OPERANDS, PTX
from .linear import _processors

WARPS = 12  # a block
MIN_ROWS = 1 << 14  # below, splitting the weights takes longer than it saves

INPUTS = r"""
#define PART 4  // tiles of 8 columns at a time: registers

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
products(const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ bias,
         float* __restrict__ y, int rows, int inner_rows, int outer_stride, int inner_stride) {
  extern __shared__ __align__(16) char shared[];
  uint4* const split_weights = (uint4*)shared;                                   // [pieces][tiles][32]
  float2* const columns = (float2*)(split_weights + PIECES(K) * TILES(N) * 32);  // what undoes the scale, the bias
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, column = lane % 4 * 2;
  for (int j = warp; j < TILES(N); j += WARPS) {
    float4 a[PIECES(K)];
    const int n = 8 * j + lane / 4;
#pragma unroll
    for (int p = 0; p < PIECES(K); p++) a[p] = four(w + (n < N ? n * K : 0), n < N ? 16 * p + 2 * column : K, K);
    const float undo = split(split_weights + j * 32 + lane, TILES(N) * 32, a);
    if (column == 0) columns[n] = make_float2(undo, n < N ? bias[n] : 0.0f);
  }
  __syncthreads();
  for (int tile = blockIdx.x * WARPS + warp; tile * 16 < rows; tile += gridDim.x * WARPS) {
    const int r0 = tile * 16 + lane / 4, r1 = r0 + 8;
    const float* const from = x + (i64)(r0 / inner_rows) * outer_stride + (i64)(r0 % inner_rows) * inner_stride;
    const float* const after = x + (i64)(r1 / inner_rows) * outer_stride + (i64)(r1 % inner_rows) * inner_stride;
    u32 high[PIECES(K)][4], low[PIECES(K)][4];
    float undo[2];
    {
      float4 a[PIECES(K)], b[PIECES(K)];
      float c[4 * PIECES(K)], d[4 * PIECES(K)];
#pragma unroll
      for (int p = 0; p < PIECES(K); p++) {
        a[p] = four(from, r0 < rows ? 16 * p + 2 * column : K, K);
        b[p] = four(after, r1 < rows ? 16 * p + 2 * column : K, K);
        c[4 * p] = a[p].x, c[4 * p + 1] = a[p].y, c[4 * p + 2] = a[p].z, c[4 * p + 3] = a[p].w;
        d[4 * p] = b[p].x, d[4 * p + 1] = b[p].y, d[4 * p + 2] = b[p].z, d[4 * p + 3] = b[p].w;
      }
      const float scale[2] = {quad_scale(c), quad_scale(d)};
#pragma unroll
      for (int p = 0; p < PIECES(K); p++) split(high[p], low[p], a[p], b[p], scale);
      undo[0] = inverse(scale[0]), undo[1] = inverse(scale[1]);
    }
    float* const to = y + (i64)r0 * N + column;
#pragma unroll 1
    for (int part = 0; part < TILES(N); part += PART) {
      float whole[PART][4] = {}, rest[PART][4] = {};
#pragma unroll
      for (int p = 0; p < PIECES(K); p++)
        product(whole, rest, high[p], low[p], split_weights + (p * TILES(N) + part) * 32 + lane, TILES(N) - part);
#pragma unroll
      for (int j = 0; j < PART; j++)
        if (part + j < TILES(N)) {
          const float4 c = *(const float4*)(columns + 8 * (part + j) + column);
#pragma unroll
          for (int i = 0; i < 4; i++)
            whole[j][i] = fmaf(together(whole[j][i], rest[j][i]) * undo[i / 2], i % 2 ? c.z : c.x, i % 2 ? c.w : c.y);
#pragma unroll
          for (int r = 0; r < 2; r++)
            if (r0 + 8 * r < rows) {
              float* const at = to + r * 8 * N + 8 * (part + j);
              if (N % 2 == 0 && 8 * (part + j) + column < N)
                *(float2*)at = make_float2(whole[j][2 * r], whole[j][2 * r + 1]);
              if (N % 2 && 8 * (part + j) + column < N) at[0] = whole[j][2 * r];
              if (N % 2 && 8 * (part + j) + column + 1 < N) at[1] = whole[j][2 * r + 1];
            }
        }
    }
  }
}
"""


def source(n: int, k: int, vectors: bool) -> str:
    """The whole text for the compiler: n columns of k inputs."""
    macros = f"#define N {n}\n#define K {k}\n#define WARPS {WARPS}\n#define VECTORS {int(vectors)}\n"
    return macros + FUNCTIONS + PTX + HALVES + OPERANDS + INPUTS


def shared(n: int, k: int) -> int:
    """Bytes of shared memory that a block is given at its launch."""
    return -(-n // 8) * (-(-k // 16) * 512 + 64)


@functools.cache
def _compile(device: int, n: int, k: int, vectors: bool) -> Any:
    """The kernel for a device; None where torch cannot compile CUDA C++, or a block has too little shared memory."""
    if shared(n, k) > getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 48 << 10):
        return None
    try:
        with torch.cuda.device(device):
            kernel = torch.cuda._compile_kernel(source(n, k, vectors), "products", nvcc_options=["-std=c++17"])
            kernel.set_shared_memory_config(shared(n, k))
    except (AttributeError, ImportError, OSError):  # another torch, no toolkit, no NVRTC
        return None
    return kernel


def input_products(x: Tensor, w: Tensor, b: Tensor) -> Tensor | None:
    """x w' + b, contiguous, of x [A, B, K], w [N, K] and b [N] in float32 on a GPU; None where there are too few rows
    for it to be faster, or no kernel."""
    outer, inner, k = x.shape
    if outer * inner < MIN_ROWS or x.stride(-1) != 1:
        return None
    vectors = not any(s % 4 for s in (k, *x.stride()[:2])) and not (x.data_ptr() | w.data_ptr()) % 16
    kernel = _compile(x.device.index, w.shape[0], k, vectors)
    if kernel is None:
        return None
    y = torch.empty((outer, inner, w.shape[0]), dtype=x.dtype, device=x.device)
    blocks = min(_processors(x.device.index), -(-outer * inner // (16 * WARPS)))
    args: list[Tensor | int] = [x, w.contiguous(), b.contiguous(), y, outer * inner, inner, *x.stride()[:2]]
    with torch.cuda.device(x.device.index):
        kernel((blocks, 1, 1), (32 * WARPS, 1, 1), args, shared(*w.shape))
    return y
