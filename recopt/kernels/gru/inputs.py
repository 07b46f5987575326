"""The products of a recurrence's inputs, of all rows and steps at once, on Hopper's tensor cores at float32 accuracy.

    y[r, n] = sum_k x[r, k] * w[n, k] + b[n]        K <= 128, N <= 384, as many r as fill the processors

Few columns, so that all of w, as sums of two halves of 11 bits each, stays in the shared memory of every processor, and
x goes from memory straight into the registers of those who multiply: three groups of four warps, which do not wait for
each other, each with 64 rows at a time. Three products of halves make one of float32 (that of both low ones is below
its rounding). Rows and columns are scaled by powers of two, their largest into [2^14, 2^15).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..cuda_hopper import WGMMA, wgmma
from ..cuda_math import FUNCTIONS, HALVES, OPERANDS, PTX

MAX_INPUTS = 128
MAX_COLUMNS = 384
GROUPS = 3

PRODUCTS = r"""
#define WIDTH ((N + 63) / 64 * 64)  // columns, filled up
#define PARTS (WIDTH / 64)
#define BLOCK (WIDTH * 16)          // bytes of 8 of K: for each column 8 halves

// Where column n stands among those that are multiplied: of 16 of these a lane gets four that lie side by side.
__device__ __forceinline__ int order(int n) { return n / 16 * 16 + n % 4 / 2 * 8 + n % 16 / 4 * 2 + n % 2; }

extern "C" __global__ void __launch_bounds__(128 * GROUPS, 1)
products(const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ bias,
         const float* __restrict__ more, float* __restrict__ y,
         int mores, int rows, int inner_rows, int outer_stride, int inner_stride) {
  extern __shared__ __align__(128) char shared[];
  char* const weights = shared;                                      // [pieces of 16][high, low][2] of BLOCK
  float2* const columns = (float2*)(shared + PIECES(K) * 4 * BLOCK);  // what undoes the scale, the bias
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, column = lane % 4 * 2, place = warp % 4 * 16 + lane / 4;

  // Tiles of 64 rows, one for each group at a time; those that are left over at the end are shared out by 64 columns.
  const int tiles = (rows + 63) / 64, groups = gridDim.x * GROUPS, group = blockIdx.x + gridDim.x * (warp / 4);
  const int even = tiles / groups * groups;
  auto tile_of = [&](int turn) { return turn < even ? turn : even + (turn - even) / PARTS; };
  auto row = [&](int r) { return x + (i64)(r / inner_rows) * outer_stride + (i64)(r % inner_rows) * inner_stride; };
  auto prefetch = [&](int turn) {
    const int r = tile_of(turn) * 64 + place, k = lane % 4 * 32;
    if (k < K && r < rows) asm volatile("prefetch.global.L2 [%0];" ::"l"(row(r) + k));
    if (k < K && r + 8 < rows) asm volatile("prefetch.global.L2 [%0];" ::"l"(row(r + 8) + k));
  };
  prefetch(group);
  for (int j = warp; j < WIDTH / 8; j += 4 * GROUPS) {
    const int n = 8 * j + lane / 4;
    float4 a[PIECES(K)];
#pragma unroll
    for (int p = 0; p < PIECES(K); p++) a[p] = four(w + (n < N ? n * K : 0), n < N ? 16 * p + 2 * column : K, K);
    const float scale = quad_scale(a);
#pragma unroll
    for (int p = 0; p < PIECES(K); p++) {
      const uint2 c = halves(a[p].x * scale, a[p].y * scale), d = halves(a[p].z * scale, a[p].w * scale);
      u32* const to = (u32*)(weights + p * 4 * BLOCK + order(n) * 16 + column * 2);
      to[0] = c.x, to[BLOCK / 4] = d.x, to[2 * BLOCK / 4] = c.y, to[3 * BLOCK / 4] = d.y;
    }
    const float b = (n < N ? bias[n] : 0.0f) + (n < mores ? more[n] : 0.0f);
    if (column == 0) columns[order(n)] = make_float2(inverse(scale), b);
  }
  show();
  __syncthreads();

  const u64 first = address(weights) >> 4 | (u64)(BLOCK >> 4) << 16 | (u64)(128 >> 4) << 32;
  for (int turn = group; tile_of(turn) < tiles; turn += groups) {
    const bool shares = turn >= even;
    const int begin = shares ? (turn - even) % PARTS * 64 : 0, end = shares ? begin + 64 : WIDTH;
    const int r0 = tile_of(turn) * 64 + place, r1 = r0 + 8;
    u32 high[PIECES(K)][4], low[PIECES(K)][4];
    float undo[2];
    {
      const float* const from = row(r0);
      const float* const below = row(r1);
      float4 a[PIECES(K)], b[PIECES(K)];
      float c[4 * PIECES(K)], d[4 * PIECES(K)];
#pragma unroll
      for (int p = 0; p < PIECES(K); p++) {
        a[p] = four(from, r0 < rows ? 16 * p + 2 * column : K, K);
        b[p] = four(below, r1 < rows ? 16 * p + 2 * column : K, K);
      }
#pragma unroll
      for (int p = 0; p < PIECES(K); p++) {
        c[4 * p] = a[p].x, c[4 * p + 1] = a[p].y, c[4 * p + 2] = a[p].z, c[4 * p + 3] = a[p].w;
        d[4 * p] = b[p].x, d[4 * p + 1] = b[p].y, d[4 * p + 2] = b[p].z, d[4 * p + 3] = b[p].w;
      }
      const float scale[2] = {quad_scale(c), quad_scale(d)};
#pragma unroll
      for (int p = 0; p < PIECES(K); p++) split(high[p], low[p], a[p], b[p], scale);
      undo[0] = inverse(scale[0]), undo[1] = inverse(scale[1]);
    }
    prefetch(turn + groups);
    float* const to = y + (i64)r0 * N;
#pragma unroll 1
    for (int part = begin; part < end; part += 64) {
      float whole[8][4], rest[8][4];
      const u64 at = first + part;  // 16 bytes a column
      products_begin();
#pragma unroll
      for (int p = 0; p < PIECES(K); p++) {
        multiply(whole, high[p], at + p * 4 * BLOCK / 16, p > 0);
        multiply(rest, low[p], at + p * 4 * BLOCK / 16, p > 0);
        multiply(rest, high[p], at + (p * 4 + 2) * BLOCK / 16, 1);
      }
      products_sent();
      products_left<0>();
      ready(whole), ready(rest);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const int n = part + 8 * j;
        const float4 d = *(const float4*)(columns + n + column);
#pragma unroll
        for (int i = 0; i < 4; i++)
          whole[j][i] = fmaf(together(whole[j][i], rest[j][i]) * undo[i / 2], i % 2 ? d.z : d.x, i % 2 ? d.w : d.y);
        if (j % 2 == 0 && N % 4 == 0) continue;
        const int c = part + 16 * (j / 2) + 4 * (lane % 4) + (N % 4 ? 2 * (j % 2) : 0);
#pragma unroll
        for (int r = 0; r < 2; r++) {
          float* const out = to + r * 8 * N + c;
          const bool there = r0 + 8 * r < rows && c < N;
          const float v = whole[j][2 * r], w = whole[j][2 * r + 1];
          if (N % 4 == 0 && there) *(float4*)out = make_float4(whole[j - 1][2 * r], whole[j - 1][2 * r + 1], v, w);
          if (N % 4 == 2 && there) *(float2*)out = make_float2(v, w);
          if (N % 2 && there) out[0] = v;
          if (N % 2 && there && c + 1 < N) out[1] = w;
        }
      }
    }
  }
}
"""


def source(columns: int, inputs: int, vectors: bool) -> str:
    """The whole text for the compiler; `vectors`: rows of x and w begin at multiples of 16 bytes."""
    macros = {"N": columns, "K": inputs, "VECTORS": int(vectors), "GROUPS": GROUPS}
    text = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    return text + FUNCTIONS + PTX + HALVES + OPERANDS + WGMMA + wgmma(8, True) + PRODUCTS


def shared(columns: int, inputs: int) -> int:
    """Bytes of shared memory that a block is given at its launch."""
    width = -(-columns // 64) * 64
    return -(-inputs // 16) * 64 * width + 8 * width


@functools.cache
def _compile(device: int, columns: int, inputs: int, vectors: bool) -> Any:
    """The kernel for a device, which is Hopper; None where torch cannot compile CUDA C++."""
    try:
        with torch.cuda.device(device):
            text = source(columns, inputs, vectors)
            kernel = torch.cuda._compile_kernel(text, "products", compute_capability="90a", nvcc_options=["-std=c++17"])
            kernel.set_shared_memory_config(shared(columns, inputs))
    except (AttributeError, ImportError, OSError):  # another torch, no toolkit, no NVRTC
        return None
    return kernel


def input_products(x: Tensor, w: Tensor, b: Tensor, more: Tensor, processors: int) -> Tensor | None:
    """x [.., .., K] times w [N, K] plus b [N], and plus `more` [<= N] in the first columns, float32 on Hopper; None
    where the shape does not fit or nothing can be compiled. The result is contiguous."""
    outer, inner, inputs = x.shape
    columns = w.shape[0]
    if not (inputs <= MAX_INPUTS and columns <= MAX_COLUMNS and outer * inner >= 64 * GROUPS * processors):
        return None
    x = x if x.stride(-1) == 1 else x.contiguous()
    w = w.contiguous()
    aligned = inputs % 4 == 0 and x.stride(0) % 4 == x.stride(1) % 4 == 0 and (x.data_ptr() | w.data_ptr()) % 16 == 0
    kernel = _compile(x.device.index, columns, inputs, aligned)
    if kernel is None:
        return None
    y = torch.empty((outer, inner, columns), dtype=x.dtype, device=x.device)
    args = [x, w, b.contiguous(), more.contiguous(), y, len(more), outer * inner, inner, *x.stride()[:2]]
    with torch.cuda.device(x.device):
        kernel((processors, 1, 1), (128 * GROUPS, 1, 1), args, shared(columns, inputs))
    return y
