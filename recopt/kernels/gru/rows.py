"""The CUDA C++ of a recurrence of gated steps as one kernel, for batches of a row or two for each processor.

A block owns one or two rows of the batch and all their steps. Its weights stay in its registers from the first step to
the last. Threads share a group of units, each with a part of the state, which they read from shared memory, and
exchange sums until each thread has those of one unit and row. Reading limits: 16 bytes a thread take four turns.

A step has one barrier, or two where the reset gate comes before the product.
"""

from __future__ import annotations

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
__device__ __forceinline__ void product(
    float (&sum)[COUNT], const Weights& w, const float* const (&state)[ROWS], int skip) {
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
    h = mixed(c, h, z);
    if (writes) states[AFTER && !(t & 1)][row][unit] = h;
    if (kept) *out = h;
    out += H;
    __syncthreads();
  }
}
"""
