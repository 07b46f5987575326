"""The CUDA C++ of a recurrence of gated steps as one kernel, on the tensor cores at float32 accuracy.

A block owns 8 or 16 rows of the batch and all their steps. A warp owns 16 units with the three gates of each: its
weights stay in its registers as sums of two halves of 11 bits each, and so does its part of the state in float32. What
a step passes on through shared memory is the state, split likewise; three products of halves make one of float32 (that
of both low ones is below its rounding). The products of the inputs are fetched two steps ahead of their use.

Halves reach from 2^-24 to 2^15, so weights and state are scaled by powers of two: the weights of a warp so that the
largest is in [2^14, 2^15), the state by 2^14 as long as it is below 2 everywhere, which a state that starts so never
leaves when its gates are between 0 and 1. If it leaves, the scale shrinks.

A step has one barrier, or two where the reset gate comes before the product. A barrier that counts would take three
times as long, so a state that outgrew its scale says so in shared memory.
"""

from __future__ import annotations

MATRICES = r"""
// Four matrices of 8 x 8 halves as products have them, or two; `at`: this thread's row of them.
__device__ __forceinline__ void read(u32 (&b)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void read_high(u32 (&b)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(b[0]), "=r"(b[1]) : "r"(at) : "memory");
}

// The other way, transposed: pairs of rows of one unit become pairs of units of one row.
__device__ __forceinline__ void write(u32 at, u32 a, u32 b, u32 c, u32 d) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
               :: "r"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
#else
  const u32 x[] = {a, b, c, d};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x[i]));
    const u32 to = __shfl_sync(~0u, at, i * 8 + (threadIdx.x & 31) / 4) + (threadIdx.x & 3) * 4;
    asm volatile("st.shared.u32 [%0], %1;" :: "r"(to), "r"(y) : "memory");
  }
#endif
}
"""

TILES = r"""
#define WARPS ((H + 15) / 16)
#define WIDE (16 * WARPS)                       // units, filled up
#define ROWS (8 * TILES)
#define PITCH (WIDE + 8)                        // halves a row of a state: 8 rows in different banks
#define LINE ((3 * H + 11) / 16 * 16 + 4)       // floats a row of staged inputs, likewise
#define STAGE (ROWS * LINE + (GATES ? GATES * ROWS : 0))
#define STATE (4 * ROWS * PITCH)                // bytes of a state: high and low halves

typedef u32 Weights[3][WARPS][4];

// Weights of COUNT gates from FIRST on, times a state. `at`: this thread's row of it, for ldmatrix.
// The tensor cores round every sum towards zero. So the small products, those with a low half, are added up first or
// apart: a third of the steps at full size. Apart, where registers allow: sums that wait for each other idle.
template <int FIRST, int COUNT>
__device__ __forceinline__ void product(
    float (&sum)[COUNT][TILES][4], const Weights& high, const Weights& low, u32 at) {
  constexpr int CHAINS = COUNT * TILES > 3 ? 1 : COUNT * TILES == 3 ? 2 : 3;
  float part[CHAINS][COUNT][TILES][4] = {};
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
        sum[g][n][i] = part[CHAINS - 1][g][n][i];
#pragma unroll
        for (int c = CHAINS - 2; c >= 0; c--) sum[g][n][i] += part[c][g][n][i];
      }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
recurrence(const float* __restrict__ inputs, const float* __restrict__ start, const float* __restrict__ wh,
           const float* __restrict__ bh, float* __restrict__ y,
           int batch, int steps, int row_stride, int step_stride, int start_stride GATE_ARGUMENTS) {
  extern __shared__ __align__(16) char shared[];
  float* staged = (float*)shared;
  float* biases = staged + STAGES * STAGE;         // [WIDE], of what the reset gate multiplies
  const u32 states = address(biases + WIDE);       // [2] of STATE: [high, low][ROWS][PITCH]
  volatile int* grown = (volatile int*)((char*)(biases + WIDE) + 2 * STATE);  // [2]: whether a step's state outgrew
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
    copies_end();
  };
  fetch(0);
  fetch(1);

  Weights high, low;
  u32 most = 0;
#pragma unroll
  for (int g = 0; g < 3; g++)
#pragma unroll
    for (int k = 0; k < WARPS; k++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int u = unit + 8 * (i & 1), j = k * 16 + column + 8 * (i >> 1);
        const float* from = wh + (g * H + u) * H + j;
        float a = 0.0f, b = 0.0f;
        if (H % 2 == 0 && u < H && j < H) {  // weights begin at a multiple of 16 bytes
          const float2 both = *(const float2*)from;
          a = both.x, b = both.y;
        } else if (u < H && j < H) {
          a = from[0], b = j + 1 < H ? from[1] : 0.0f;
        }
        high[g][k][i] = __float_as_uint(a), low[g][k][i] = __float_as_uint(b);
        most = max(most, max(size(a), size(b)));
      }
  const float weights_scale = scale_for(warp_max(most));
#pragma unroll
  for (int g = 0; g < 3; g++)
#pragma unroll
    for (int k = 0; k < WARPS; k++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        uint2 x = halves(__uint_as_float(high[g][k][i]) * weights_scale, __uint_as_float(low[g][k][i]) * weights_scale);
        high[g][k][i] = x.x, low[g][k][i] = x.y;
      }

  for (int u = threadIdx.x; u < WIDE; u += 32 * WARPS) biases[u] = u < H ? bh[2 * H + u] : 0.0f;
  float h[TILES][4];
#pragma unroll
  for (int n = 0; n < TILES; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int r = n * 8 + column + (i & 1), u = unit + 8 * (i >> 1);
      h[n][i] = STARTED && r < here && u < H ? start[(i64)(first + r) * start_stride + u] : 0.0f;
    }
  if (threadIdx.x < 2) grown[threadIdx.x] = 0;
  __syncthreads();

  const u32 at = states + ((lane >> 4) * ROWS * PITCH + (lane & 7) * PITCH + (lane >> 3 & 1) * 8) * 2;
  float scale = 16384.0f, unscale = inverse(weights_scale) / 16384.0f;
  auto put = [&](const float (&v)[TILES][4], int buffer) {
#pragma unroll
    for (int n = 0; n < TILES; n++) {
      const uint2 a = halves(v[n][0] * scale, v[n][1] * scale), b = halves(v[n][2] * scale, v[n][3] * scale);
      write(at + buffer * STATE + n * 16 * PITCH + warp * 32, a.x, b.x, a.y, b.y);
    }
  };
  auto outgrown = [&]() {  // whether a half cannot hold a state that is finite
    float most = 0.0f;
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) most = fmaxf(most, fabsf(fmaf(h[n][i], 0.0f, h[n][i])));
    return most * scale > 32768.0f;
  };
  auto shrink = [&](int t, int buffer) {
    do {
      scale *= 0.00390625f, unscale *= 256.0f;
      put(h, buffer);
    } while (__syncthreads_or(outgrown()));
    if (threadIdx.x == 0) grown[t & 1] = 0;
    __syncthreads();
  };
  wait_for_copies();
  put(h, 0);
  if (outgrown()) grown[0] = 1;
  __syncthreads();

#define THERE(i) (H % 16 == 0 || unit + 8 * ((i) >> 1) < H)
#define INPUT(g, n, i) (THERE(i) ? x[((n) * 8 + ((i) & 1)) * LINE + (g) * H + 8 * ((i) >> 1)] : 0.0f)
  float* out = y + (i64)(first + column) * steps * H + unit;
  for (int t = 0; t < steps; t++, out += H) {
    const float* x = staged + t % STAGES * STAGE + column * LINE + unit;
    const float* p = staged + t % STAGES * STAGE + ROWS * LINE + column;
    const int before = AFTER ? t & 1 : 0, after = AFTER ? before ^ 1 : 0;
    float sum[AFTER ? 3 : 2][TILES][4];
    for (;;) {
      const int over = grown[t & 1];  // known when the product is, which is made again
      product<0, AFTER ? 3 : 2>(sum, high, low, at + before * STATE);
      if (!over) break;
      __syncthreads();
      shrink(t, before);
    }
    fetch(t + 2);
    auto reset_gate = [&](int n, int i) { return f_sigmoid(fmaf(sum[0][n][i], unscale, INPUT(0, n, i))); };
#if !AFTER
    float reset[TILES][4], candidate[1][TILES][4];
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) reset[n][i] = reset_gate(n, i) * h[n][i];
    put(reset, 1);
    __syncthreads();
    product<2, 1>(candidate, high, low, at + STATE);
#endif
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int r = n * 8 + (i & 1);
        float gates[GATES + 1];
#pragma unroll
        for (int g = 0; g < GATES; g++) gates[g] = p[g * ROWS + r];
        const float z = keep(fmaf(sum[1][n][i], unscale, INPUT(1, n, i)), gates);
#if AFTER
        const float c = reset_gate(n, i) * fmaf(sum[2][n][i], unscale, biases[unit + 8 * (i >> 1)]) + INPUT(2, n, i);
#else
        const float c = fmaf(candidate[0][n][i], unscale, INPUT(2, n, i));
#endif
        h[n][i] = mixed(f_tanh(c), h[n][i], z);
        if (column + r < here && THERE(i)) out[(i64)r * steps * H + 8 * (i >> 1)] = h[n][i];
      }
    put(h, after);
    if (outgrown()) grown[(t + 1) & 1] = 1;
    wait_for_copies();
    __syncthreads();
  }
}
"""
