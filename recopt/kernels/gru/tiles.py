"""The CUDA C++ of a recurrence of gated steps as one kernel, on the tensor cores at float32 accuracy.

A block owns 8 or 16 rows of the batch and all their steps. A warp owns 16 units with the three gates of each: its
weights stay in its registers as sums of two halves of 11 bits each, and so does its part of the state in float32. What
a step passes on through shared memory is the state, split likewise; three products of halves make one of float32 (that
of both low ones is below its rounding). The products of the inputs are fetched two steps ahead of their use.

Halves reach from 2^-24 to 2^15, so weights and state are scaled by powers of two: the weights of a warp so that the
largest is in [2^14, 2^15), the state by 2^14 as long as it is below 2 everywhere, which a state that starts so never
leaves when its gates are between 0 and 1. The barrier of a step tells whether it left; then the scale shrinks.

A step has one barrier, or two where the reset gate comes before the product.
"""

from __future__ import annotations

TILES = r"""
#define WARPS ((H + 15) / 16)
#define WIDE (16 * WARPS)                       // units, filled up
#define ROWS (8 * TILES)
#define PITCH (WIDE + 8)                        // halves a row of a state: 8 rows in different banks
#define LINE ((3 * H + 11) / 16 * 16 + 4)       // floats a row of staged inputs, likewise
#define STAGE (ROWS * LINE + (GATES ? GATES * ROWS : 0))

__device__ __forceinline__ void read(u32 (&b)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void read_high(u32 (&b)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(b[0]), "=r"(b[1]) : "r"(at) : "memory");
}

typedef u32 Weights[3][WARPS][4];

// sum = weights of COUNT gates from FIRST on, times a state. `at`: this thread's row of it, for ldmatrix.
// The tensor cores round every sum towards zero. So the small products, those with a low half, are added up first or
// apart: a third of the steps at full size. Apart, where registers allow: sums that wait for each other idle.
template <int FIRST, int COUNT>
__device__ __forceinline__ void product(
    float (&sum)[COUNT][TILES][4], const Weights& high, const Weights& low, u32 at, float scale) {
  constexpr int CHAINS = COUNT * TILES > 3 ? 1 : COUNT * TILES == 3 ? 2 : 3;
  float part[CHAINS][COUNT][TILES][4];
#pragma unroll
  for (int c = 0; c < CHAINS; c++)
#pragma unroll
    for (int g = 0; g < COUNT; g++)
#pragma unroll
      for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) part[c][g][n][i] = 0.0f;
#pragma unroll
  for (int pass = CHAINS > 1; pass < 2; pass++)
#pragma unroll
    for (int k = 0; k < WARPS; k++) {
      u32 b[TILES][4];
#pragma unroll
      for (int n = 0; n < TILES; n++)
        if (CHAINS == 1 && pass)
          read_high(b[n], at + k * 32 + n * 16 * PITCH);  // all four halves would take registers that are not there
        else
          read(b[n], at + k * 32 + n * 16 * PITCH);
#pragma unroll
      for (int c = CHAINS == 1 && !pass; c < (CHAINS == 1 && pass ? 1 : 3); c++)
#pragma unroll
        for (int g = 0; g < COUNT; g++)
#pragma unroll
          for (int n = 0; n < TILES; n++)
            multiply(part[c < CHAINS ? c : CHAINS - 1][g][n], c == 2 ? low[FIRST + g][k] : high[FIRST + g][k],
                     b[n][c == 1 ? 2 : 0], b[n][c == 1 ? 3 : 1]);
    }
#pragma unroll
  for (int g = 0; g < COUNT; g++)
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float s = 0.0f;
#pragma unroll
        for (int c = CHAINS - 1; c >= 0; c--) s += part[c][g][n][i];
        sum[g][n][i] = s * scale;
      }
}

// Splits a state, times its scale, into shared memory. Whether a half cannot hold it.
__device__ __forceinline__ bool put(u16* to, const float (&h)[TILES][4], float scale) {
  bool over = false;
#pragma unroll
  for (int n = 0; n < TILES; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) {  // the two units
      float a = h[n][2 * i] * scale, b = h[n][2 * i + 1] * scale, x, y;
      u32 high = pack(a, b);
      unpack(high, x, y);
      u32 low = pack(a - x, b - y);
      u16* p = to + n * 8 * PITCH + 8 * i;
      p[0] = (u16)high, p[PITCH] = (u16)(high >> 16);
      p[ROWS * PITCH] = (u16)low, p[(ROWS + 1) * PITCH] = (u16)(low >> 16);
      float most = fmaxf(fabsf(h[n][2 * i]), fabsf(h[n][2 * i + 1]));
      over |= most * scale > 32768.0f && most < __int_as_float(0x7f800000);
    }
  return over;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
recurrence(const float* __restrict__ inputs, const float* __restrict__ start, const float* __restrict__ wh,
           const float* __restrict__ bh, float* __restrict__ y,
           int batch, int steps, int row_stride, int step_stride, int start_stride GATE_ARGUMENTS) {
  extern __shared__ __align__(16) char shared[];
  float* staged = (float*)shared;
  float* biases = staged + STAGES * STAGE;                 // [3][WIDE]
  u16* states = (u16*)(biases + 3 * WIDE);                 // [2][high, low][ROWS][PITCH]
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int first = blockIdx.x * ROWS, unit = warp * 16 + lane / 4, column = 2 * (lane % 4);
  const int here = batch - first < ROWS ? batch - first : ROWS;

  // Rows that are not there stay zero, which is as good as any: no row depends on another.
  for (int i = threadIdx.x; i < STAGES * STAGE; i += 32 * WARPS) staged[i] = 0.0f;
  __syncthreads();
  const float* next = inputs + (i64)(first + warp) * row_stride + lane * (BYTES / 4);
  auto fetch = [&](int t) {
    if (t < steps) {
      float* to = staged + t % STAGES * STAGE;
      const float* from = next;
#pragma unroll
      for (int r = 0; r < ROWS; r += WARPS, from += (i64)WARPS * row_stride)
        if (warp + r < here)
#pragma unroll
          for (int c = 0; c < 3 * H * 4 / BYTES; c += 32)
            if (c + 32 <= 3 * H * 4 / BYTES || lane + c < 3 * H * 4 / BYTES)
              copy<BYTES>(address(to + (warp + r) * LINE + (lane + c) * (BYTES / 4)), from + c * (BYTES / 4));
      next += step_stride;
#if GATES
      const float* const gate[] = GATE_POINTERS;
      const int rows[] = GATE_ROWS, times[] = GATE_STEPS;
      if (warp == WARPS - 1)
#pragma unroll
        for (int g = 0; g < GATES; g++)
          if (lane < here)
            copy<4>(address(to + ROWS * LINE + g * ROWS + lane),
                    gate[g] + (i64)(first + lane) * rows[g] + (i64)t * times[g]);
#endif
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  fetch(0);
  fetch(1);

  Weights high, low;
  float most = 0.0f;
#pragma unroll
  for (int g = 0; g < 3; g++)
#pragma unroll
    for (int k = 0; k < WARPS; k++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int u = unit + 8 * (i & 1), j = k * 16 + column + 8 * (i >> 1);
        const float* from = wh + (g * H + u) * H + j;
        float a = u < H && j < H ? from[0] : 0.0f, b = u < H && j + 1 < H ? from[1] : 0.0f;
        high[g][k][i] = __float_as_uint(a), low[g][k][i] = __float_as_uint(b);
        most = fmaxf(most, fmaxf(a - a == 0.0f ? fabsf(a) : 0.0f, b - b == 0.0f ? fabsf(b) : 0.0f));
      }
#pragma unroll
  for (int m = 16; m; m >>= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, m));
  const u32 exponent = min(268 - (__float_as_uint(most) >> 23), 227);
  const float scale = __uint_as_float(exponent << 23);
#pragma unroll
  for (int g = 0; g < 3; g++)
#pragma unroll
    for (int k = 0; k < WARPS; k++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float a = __uint_as_float(high[g][k][i]) * scale, b = __uint_as_float(low[g][k][i]) * scale, x, y;
        high[g][k][i] = pack(a, b);
        unpack(high[g][k][i], x, y);
        low[g][k][i] = pack(a - x, b - y);
      }

  for (int i = threadIdx.x; i < 3 * WIDE; i += 32 * WARPS) {
    int u = i % WIDE;
    biases[i] = u < H ? bh[i / WIDE * H + u] : 0.0f;
  }
  float h[TILES][4];
#pragma unroll
  for (int n = 0; n < TILES; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int r = n * 8 + column + (i & 1), u = unit + 8 * (i >> 1);
      h[n][i] = STARTED && r < here && u < H ? start[(i64)(first + r) * start_stride + u] : 0.0f;
    }

  constexpr int STATE = 2 * ROWS * PITCH;
  u16* const mine = states + column * PITCH + unit;  // where this thread writes
  const u32 at = address(states) + ((lane >> 4) * ROWS * PITCH + (lane & 7) * PITCH + (lane >> 3 & 1) * 8) * 2;
  float state_scale = 16384.0f, unscale = __uint_as_float((254 - exponent) << 23) / 16384.0f;
  auto publish = [&](u16* to) {
    while (__syncthreads_or(put(to, h, state_scale))) state_scale *= 0.00390625f, unscale *= 256.0f;
  };
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  publish(mine);

#define THERE(i) (H % 16 == 0 || unit + 8 * ((i) >> 1) < H)
#define INPUT(g, n, i) (THERE(i) ? x[((n) * 8 + ((i) & 1)) * LINE + (g) * H + 8 * ((i) >> 1)] : 0.0f)
  float* out = y + (i64)(first + column) * steps * H + unit;
  for (int t = 0; t < steps; t++, out += H) {
    const float* x = staged + t % STAGES * STAGE + column * LINE + unit;
    const float* p = staged + t % STAGES * STAGE + ROWS * LINE + column;
#define BIAS(g, i) biases[(g) * WIDE + unit + 8 * ((i) >> 1)]
#if AFTER
    float sum[3][TILES][4];
    product<0, 3>(sum, high, low, at + (t & 1) * STATE * 2, unscale);
    fetch(t + 2);
#define CANDIDATE sum[2]
#else
    float sum[2][TILES][4], candidate[1][TILES][4];
    product<0, 2>(sum, high, low, at, unscale);
    fetch(t + 2);
    float reset[TILES][4];
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        reset[n][i] = f_sigmoid(INPUT(0, n, i) + (sum[0][n][i] + BIAS(0, i))) * h[n][i];
    put(mine + STATE, reset, state_scale);
    __syncthreads();
    product<2, 1>(candidate, high, low, at + STATE * 2, unscale);
#define CANDIDATE candidate[0]
#endif
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int r = n * 8 + (i & 1);
        float gates[GATES + 1];
#pragma unroll
        for (int g = 0; g < GATES; g++) gates[g] = p[g * ROWS + r];
        float z = keep(INPUT(1, n, i) + (sum[1][n][i] + BIAS(1, i)), gates);
        float c = CANDIDATE[n][i] + BIAS(2, i);
#if AFTER
        c *= f_sigmoid(INPUT(0, n, i) + (sum[0][n][i] + BIAS(0, i)));
#endif
        c = f_tanh(INPUT(2, n, i) + c);
        h[n][i] = mixed(c, h[n][i], z);
        if (column + r < here && THERE(i)) out[(i64)r * steps * H + 8 * (i >> 1)] = h[n][i];
      }
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    publish(mine + (AFTER && !(t & 1) ? STATE : 0));
  }
}
"""
