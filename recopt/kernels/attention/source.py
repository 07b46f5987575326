"""The CUDA C++ of ``recopt::attention`` in float32, on the tensor cores at its accuracy.

A warp has 16 queries of one row and head. Its block's warps split 64 keys and values at a time into sums of two halves,
in shared memory, in the order in which lanes read them; weights stay in registers, where they are the left operand of
the second product. Three products of halves make one of float32 (that of both low ones is below its rounding): those
with a low half are added up apart, since the tensor cores round every sum towards zero, and because they alone are nan
where an operand is infinite. Queries, keys and columns of values are scaled by powers of two, so that halves hold them.
"""

from __future__ import annotations

ATTENTION = r"""
#define KEYS (8 * KEY_TILES)
#define MINUS_INFINITY __int_as_float(0xff800000)

__device__ __forceinline__ float power_of_e(float x) {  // of at most 0; the hardware's own
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, swapped(x, 1));
  return fmaxf(x, swapped(x, 2));
}

extern "C" __global__ void __launch_bounds__(BOUNDS)
attention(const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v, float* __restrict__ y,
          int inner_rows, int queries, int keys, int q_outer, int q_inner, int q_item, int k_outer, int k_inner,
          int k_item, int v_outer, int v_inner, int v_item, int y_outer, int y_inner, int y_item ARGUMENTS) {
  __shared__ uint4 split_keys[PIECES(D) * KEY_TILES * 32], split_values[PIECES(KEYS) * TILES(E) * 32];
  __shared__ float undo_keys[KEYS], undo_values[8 * TILES(E)];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, column = lane % 4 * 2;
  const i64 outer = blockIdx.x / inner_rows, inner = blockIdx.x % inner_rows;
  const int s0 = (blockIdx.y * WARPS + warp) * 16 + lane / 4;
  k += outer * k_outer + inner * k_inner, v += outer * v_outer + inner * v_inner;
  MARKS
#if __CUDA_ARCH__ >= 900  // nothing is read sooner: what reads is made of these
  asm volatile("griddepcontrol.wait;" : "+l"(q), "+l"(k), "+l"(v) POINTERS :: "memory");
#endif

  u32 high[PIECES(D)][4], low[PIECES(D)][4];
  float undo[2];
  {
    const float* const from = q + outer * q_outer + inner * q_inner;
    float4 a[PIECES(D)], b[PIECES(D)];
#pragma unroll
    for (int p = 0; p < PIECES(D); p++) {
      const int d = 16 * p + 2 * column;
      a[p] = four(from + (i64)s0 * q_item, s0 < queries ? d : D, D);
      b[p] = four(from + (i64)(s0 + 8) * q_item, s0 + 8 < queries ? d : D, D);
    }
    const float scale[2] = {quad_scale(a), quad_scale(b)};
#pragma unroll
    for (int p = 0; p < PIECES(D); p++) split(high[p], low[p], a[p], b[p], scale);
    undo[0] = inverse(scale[0]), undo[1] = inverse(scale[1]);
  }
  float total[TILES(E)][4] = {}, highest[2] = {MINUS_INFINITY, MINUS_INFINITY}, weight[2] = {};

  for (int first = 0; first < (ONCE ? 1 : keys); first += KEYS) {
    if (first) __syncthreads();
    for (int j = warp; j < KEY_TILES; j += WARPS) {
      float4 x[PIECES(D)];
      const int t = first + 8 * j + lane / 4;
#pragma unroll
      for (int p = 0; p < PIECES(D); p++) x[p] = four(k + (i64)t * k_item, t < keys ? 16 * p + 2 * column : D, D);
      const float scale = split(split_keys + j * 32 + lane, KEY_TILES * 32, x);
      if (column == 0) undo_keys[8 * j + lane / 4] = scale;
    }
    for (int j = warp; j < TILES(E); j += WARPS) {
      float4 x[PIECES(KEYS)];
      const int e = 8 * j + lane / 4;
      auto value = [&](int t) { return e < E && first + t < keys ? v[(i64)(first + t) * v_item + e] : 0.0f; };
#pragma unroll
      for (int p = 0; p < PIECES(KEYS); p++) {
        const int t = 16 * p + column;
        x[p] = make_float4(value(t), value(t + 1), value(t + 8), value(t + 9));
      }
      const float scale = split(split_values + j * 32 + lane, TILES(E) * 32, x);
      if (column == 0) undo_values[8 * j + lane / 4] = scale;
    }
    __syncthreads();

    float h[KEY_TILES][4] = {};
    {
      float rest[KEY_TILES][4] = {};
#pragma unroll
      for (int p = 0; p < PIECES(D); p++) product(h, rest, high[p], low[p], split_keys + p * KEY_TILES * 32 + lane);
#pragma unroll
      for (int j = 0; j < KEY_TILES; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          h[j][i] = together(h[j][i], rest[j][i]) * undo[i / 2] * undo_keys[8 * j + column + i % 2];
    }
    float above[2] = {highest[0], highest[1]}, kept[2];
#pragma unroll
    for (int j = 0; j < KEY_TILES; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int s = min(s0 + i / 2 * 8, queries - 1), t = first + 8 * j + column + i % 2;
        if (t < keys) {
          float p[COUNT_MARKS + 1];
          READ_MARKS
          h[j][i] = score(h[j][i], p);
        } else {
          h[j][i] = MINUS_INFINITY;
        }
        above[i / 2] = fmaxf(above[i / 2], h[j][i]);
      }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      above[r] = quad_max(above[r]);
      const float origin = above[r] == MINUS_INFINITY ? 0.0f : above[r];
      kept[r] = power_of_e(highest[r] - origin), highest[r] = above[r];
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < KEY_TILES; j++)
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; i++) h[j][i] = power_of_e(h[j][i] - origin), sum += h[j][i];
      weight[r] = (ONCE ? 0.0f : weight[r] * kept[r]) + quad_sum(sum);
    }

    // A weight is at most 1, so one scale does for all. Columns of the values come in two parts: registers.
    constexpr int PART = (TILES(E) + 1) / 2;
#pragma unroll
    for (int part = 0; part < TILES(E); part += PART) {
      float whole[PART][4] = {}, rest[PART][4] = {};
#pragma unroll
      for (int p = 0; p < PIECES(KEYS); p++) {
        constexpr float scale[2] = {16384.0f, 16384.0f};
        const bool two = 2 * p + 1 < KEY_TILES;
        const int a = 2 * p, b = two ? a + 1 : a;
        u32 above_half[4], below_half[4];
        split(above_half, below_half, make_float4(h[a][0], h[a][1], two ? h[b][0] : 0.0f, two ? h[b][1] : 0.0f),
              make_float4(h[a][2], h[a][3], two ? h[b][2] : 0.0f, two ? h[b][3] : 0.0f), scale);
        product(whole, rest, above_half, below_half, split_values + (p * TILES(E) + part) * 32 + lane, TILES(E) - part);
      }
#pragma unroll
      for (int j = 0; j < PART; j++)
        if (part + j < TILES(E))
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const float undo_value = undo_values[8 * (part + j) + column + i % 2];
            const float x = together(whole[j][i], rest[j][i]) * (1.0f / 16384.0f) * undo_value;
            total[part + j][i] = ONCE ? x : fmaf(total[part + j][i], kept[i / 2], x);
          }
    }
  }

#if __CUDA_ARCH__ >= 900  // not sooner: the next blocks would crowd onto the processors that have room
  asm volatile("griddepcontrol.launch_dependents;");
#endif
  float* const to = y + outer * y_outer + inner * y_inner + (i64)s0 * y_item + column;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const bool unknown = weight[r] != weight[r];
    const bool blind = unknown ? UNSEEN_CLEAN : highest[r] == MINUS_INFINITY;
    const float share = 1.0f / weight[r];
    if (s0 + 8 * r < queries)
#pragma unroll
      for (int j = 0; j < TILES(E); j++)
#pragma unroll
        for (int i = 0; i < 2; i++)
          if (8 * j + column + i < E)
            to[(i64)r * 8 * y_item + 8 * j + i] = blind ? UNSEEN : total[j][2 * r + i] * share;
  }
}
"""
