"""The CUDA C++ of ``gru_cuda``: a recurrence of gated steps as one kernel, at float32 accuracy. Two ways.

``ROWS``: a block owns one or two rows of the batch and all their steps. Its weights stay in its registers from the first
step to the last. Threads share a group of units, each with a part of the state, which they read from shared memory, and
exchange sums until each thread has those of one unit and row. Reading is what limits: 16 bytes a thread take four turns.

``TILES``: a block owns 8 or 16 rows, on the tensor cores. A warp owns 16 units with the three gates of each: its weights
stay in its registers as sums of two halves of 11 bits each, and so does its part of the state in float32. What a step
passes on through shared memory is the state, split likewise; three products of halves make one of float32 (that of both
low ones is below its rounding). The products of the inputs are fetched two steps ahead of their use.

Halves reach from 2^-24 to 2^15, so weights and state are scaled by powers of two: the weights of a warp so that the
largest is in [2^14, 2^15), the state by 2^14 as long as it is below 2 everywhere, which a state that starts so never
leaves when its gates are between 0 and 1. The barrier of a step tells whether it left; then the scale shrinks.

A step has one barrier, or two where the reset gate comes before the product.
"""

from __future__ import annotations

FUNCTIONS = r"""
typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;

__device__ __forceinline__ float f_exp(float x) { return expf(x); }
__device__ __forceinline__ float f_sigmoid(float x) {  // within a unit in the last place of 1
  float e, y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.0f + e));
  return y;
}
__device__ __forceinline__ float f_tanh(float x) {
  float a = fabsf(x), s = x * x, e, y;
  float p = 62.0f / 2835 + s * (-1382.0f / 155925);
  p = x * (1.0f + s * (-1.0f / 3 + s * (2.0f / 15 + s * (-17.0f / 315 + s * p))));
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(a * -2.8853900817779268f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.0f + e));
  y = copysignf((1.0f - e) * y, x);
  return a < 0.35f ? p : y;
}
__device__ __forceinline__ float f_neg(float x) { return -x; }
__device__ __forceinline__ float f_abs(float x) { return fabsf(x); }
__device__ __forceinline__ float f_max(float a, float b) { return a != a || a > b ? a : b; }
__device__ __forceinline__ float f_min(float a, float b) { return a != a || a < b ? a : b; }
__device__ __forceinline__ float f_relu(float x) { return f_max(x, 0.0f); }
__device__ __forceinline__ float f_clip(float x, float lo, float hi) { return f_min(f_max(x, lo), hi); }
__device__ __forceinline__ float f_hardsigmoid(float x) { return f_clip(x + 3.0f, 0.0f, 6.0f) / 6.0f; }
__device__ __forceinline__ float f_square(float x) { return x * x; }
__device__ __forceinline__ float f_where(bool c, float a, float b) { return c ? a : b; }
__device__ __forceinline__ bool f_logical_and(bool a, bool b) { return a && b; }
__device__ __forceinline__ bool f_logical_or(bool a, bool b) { return a || b; }
__device__ __forceinline__ bool f_logical_not(bool a) { return !a; }
__device__ __forceinline__ bool f_isnan(float x) { return x != x; }

__device__ __forceinline__ float keep(float h, const float* p) { return KEEP; }

"""

TILES = r"""
#define WARPS ((H + 15) / 16)
#define WIDE (16 * WARPS)                       // units, filled up
#define ROWS (8 * TILES)
#define PITCH (WIDE + 8)                        // halves a row of a state: 8 rows in different banks
#define LINE ((3 * H + 11) / 16 * 16 + 4)       // floats a row of staged inputs, likewise
#define STAGE (ROWS * LINE + (GATES ? GATES * ROWS : 0))

__device__ __forceinline__ u32 address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ u32 pack(float a, float b) {
  u32 x;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(b), "f"(a));
  return x;
}

__device__ __forceinline__ void unpack(u32 x, float& a, float& b) {
  asm("{.reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(a), "=f"(b) : "r"(x));
}

template <int SIZE>
__device__ __forceinline__ void copy(u32 to, const float* from) {
  if constexpr (SIZE == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void read(u32 (&b)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(at) : "memory");
}

typedef u32 Weights[3][WARPS][4];

// sum = weights of COUNT gates from FIRST on, times a state. `at`: this thread's row of it, for ldmatrix.
// The tensor cores round every sum towards zero. So the small products, those with a low half, are added up first or
// apart: a third of the steps at full size. Apart, where registers allow: sums that wait for each other leave them idle.
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
      for (int n = 0; n < TILES; n++) read(b[n], at + k * 32 + n * 16 * PITCH);
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
        h[n][i] = c + z * (h[n][i] - c);
        if (column + r < here && THERE(i)) out[(i64)r * steps * H + 8 * (i >> 1)] = h[n][i];
      }
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    publish(mine + (AFTER && !(t & 1) ? STATE : 0));
  }
}
"""

ROWS = r"""
#define PARTS (4 * UNITS)                        // threads that share UNITS units, each a part of the state
#define GROUPS ((H + UNITS - 1) / UNITS)
#define WARPS ((GROUPS * PARTS + 31) / 32)
#define ROUNDS ((H + 4 * PARTS - 1) / (4 * PARTS))
#define WIDE (4 * PARTS * ROUNDS)
#define OWN (ROWS * UNITS)                       // sums a gate that a group adds up

typedef float Weights[3][UNITS][ROUNDS][4];

// Products of COUNT gates from FIRST on with the states, added up by the threads of a group so that each gets those of
// one unit and row: in every exchange it keeps half of its sums, until one is left, and sends the others. What it keeps
// comes first, since its units and rows are in the order in which they differ from its own.
template <int FIRST, int COUNT>
__device__ __forceinline__ void product(float (&sum)[COUNT], const Weights& w, const float* const (&state)[ROWS], int skip) {
  float all[UNITS][ROWS][COUNT];
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int k = 0; k < ROUNDS; k++) {
      float4 x = *(const float4*)(state[r] + skip + 4 * PARTS * k);
#pragma unroll
      for (int u = 0; u < UNITS; u++)
#pragma unroll
        for (int g = 0; g < COUNT; g++) {
          float s = w[FIRST + g][u][k][0] * x.x;
          if (k) s = fmaf(w[FIRST + g][u][k][0], x.x, all[u][r][g]);
          s = fmaf(w[FIRST + g][u][k][1], x.y, s);
          s = fmaf(w[FIRST + g][u][k][2], x.z, s);
          all[u][r][g] = fmaf(w[FIRST + g][u][k][3], x.w, s);
        }
    }
  float* flat = &all[0][0][0];
#pragma unroll
  for (int n = OWN, mask = PARTS / 2; mask; mask >>= 1) {
    const int left = n > 1 ? n / 2 : 1, shift = n > 1 ? left * COUNT : 0;
#pragma unroll
    for (int i = 0; i < OWN * COUNT; i++)
      if (i < left * COUNT) flat[i] += __shfl_xor_sync(~0u, flat[i + shift], mask);
    n = left;
  }
#pragma unroll
  for (int g = 0; g < COUNT; g++) sum[g] = flat[g];
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
recurrence(const float* __restrict__ inputs, const float* __restrict__ start, const float* __restrict__ wh,
           const float* __restrict__ bh, float* __restrict__ y,
           int batch, int steps, int row_stride, int step_stride, int start_stride GATE_ARGUMENTS) {
  __shared__ __align__(16) float states[2][ROWS][WIDE];
  const int part = threadIdx.x % PARTS, first = threadIdx.x / PARTS * UNITS;
  const int place = part * OWN / PARTS;                           // of this thread's sums: its unit, then its row
  const int turn = place / ROWS, row = place % ROWS, unit = first + turn;
  const int at = min((int)blockIdx.x * ROWS + row, batch - 1);   // a row that is not there is read as the last
  const bool there = unit < H, writes = there && part % (PARTS / OWN) == 0;
  const bool kept = writes && (int)blockIdx.x * ROWS + row < batch;
  Weights w;
#pragma unroll
  for (int g = 0; g < 3; g++)
#pragma unroll
    for (int u = 0; u < UNITS; u++)
#pragma unroll
      for (int k = 0; k < ROUNDS; k++) {
        const int line = first + (u ^ turn), column = 4 * (PARTS * k + part);
        const float* from = wh + (g * H + line) * H + column;
        if (BYTES == 16) {
          float4 x = line < H && column < H ? *(const float4*)from : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
          w[g][u][k][0] = x.x, w[g][u][k][1] = x.y, w[g][u][k][2] = x.z, w[g][u][k][3] = x.w;
        } else {
#pragma unroll
          for (int j = 0; j < 4; j++) w[g][u][k][j] = line < H && column + j < H ? from[j] : 0.0f;
        }
      }
  float bias[3];
#pragma unroll
  for (int g = 0; g < 3; g++) bias[g] = there ? bh[g * H + unit] : 0.0f;
  for (int i = threadIdx.x; i < 2 * ROWS * WIDE; i += 32 * WARPS) (&states[0][0][0])[i] = 0.0f;
  __syncthreads();
  float h = STARTED && there ? start[(i64)at * start_stride + unit] : 0.0f;
  if (writes) states[0][row][unit] = h;
  const float* before[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) before[r] = &states[0][r ^ row][4 * part];
  const float* from = inputs + (i64)at * row_stride + unit;
  float* out = y + (i64)at * steps * H + unit;
  float next[3] = {};
  if (there)
#pragma unroll
    for (int g = 0; g < 3; g++) next[g] = from[g * H];
#if GATES
  const float* gate[] = GATE_POINTERS;
  const int rows[] = GATE_ROWS, times[] = GATE_STEPS;
  float following[GATES];
#pragma unroll
  for (int g = 0; g < GATES; g++) gate[g] += (i64)at * rows[g], following[g] = *gate[g];
#endif
  __syncthreads();
  for (int t = 0; t < steps; t++) {
    float x[3], gates[GATES + 1];
#pragma unroll
    for (int g = 0; g < 3; g++) x[g] = next[g] + (g < 2 || !AFTER ? bias[g] : 0.0f);
#if GATES
#pragma unroll
    for (int g = 0; g < GATES; g++) gates[g] = following[g];
#endif
    if (t + 1 < steps) {
      from += step_stride;
      if (there)
#pragma unroll
        for (int g = 0; g < 3; g++) next[g] = from[g * H];
#if GATES
#pragma unroll
      for (int g = 0; g < GATES; g++) gate[g] += times[g], following[g] = *gate[g];
#endif
    }
#if AFTER
    float sum[3];
    product<0, 3>(sum, w, before, (t & 1) * ROWS * WIDE);
    float z = keep(x[1] + sum[1], gates);
    float c = f_tanh(x[2] + f_sigmoid(x[0] + sum[0]) * (sum[2] + bias[2]));
#else
    float sum[2], candidate[1];
    product<0, 2>(sum, w, before, 0);
    if (writes) states[1][row][unit] = f_sigmoid(x[0] + sum[0]) * h;
    float z = keep(x[1] + sum[1], gates);
    __syncthreads();
    product<2, 1>(candidate, w, before, ROWS * WIDE);
    float c = f_tanh(x[2] + candidate[0]);
#endif
    h = c + z * (h - c);
    if (writes) states[AFTER && !(t & 1)][row][unit] = h;
    if (kept) *out = h;
    out += H;
    __syncthreads();
  }
}
"""
