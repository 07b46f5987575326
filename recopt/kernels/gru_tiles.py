"""The CUDA C++ of a recurrence of gated steps as one kernel, on the tensor cores at float32 accuracy.

A block owns one or two groups of 8 rows of the batch and all their steps; each warp makes 16 units of every group, from
weights that stay in its registers and states that pass through shared memory (see ``gru_exchange``). No barrier holds
the warps together: one that has made its part of a group goes on with the other group, so that the tensor cores are
busy while others make their gates. The products of the inputs are fetched two steps ahead of their use.

There is one exchange a group and step, or two where the reset gate comes before the product.
"""

from __future__ import annotations

TILES = r"""
#define WIDE (16 * WARPS)                       // units, filled up
#define LINE ((3 * H + 11) / 16 * 16 + 4)       // floats a row of staged inputs: 8 rows in different banks
#define STAGE (ROWS * (LINE + GATES))           // floats a group and step

extern "C" __global__ void __launch_bounds__(THREADS, 1)
recurrence(const float* __restrict__ inputs, const float* __restrict__ start, const float* __restrict__ wh,
           const float* __restrict__ bh, float* __restrict__ y,
           int batch, int steps, int row_stride, int step_stride, int start_stride GATE_ARGUMENTS) {
  extern __shared__ __align__(16) char shared[];
  float* const staged = (float*)shared;                           // [STAGES][GROUPS] of STAGE
  char* const states = (char*)(staged + STAGES * GROUPS * STAGE);  // [GROUPS][2] of STATE
  float* const biases = (float*)(states + GROUPS * 2 * STATE);    // [3][WIDE]
  u32* const scales = (u32*)(biases + 3 * WIDE);                  // [GROUPS][2][8], of pieces of states
  u64* const exchanged = (u64*)(scales + GROUPS * 2 * 8);         // [GROUPS][2]
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int first = blockIdx.x * GROUPS * ROWS, unit = warp * 16 + lane / 4, column = 2 * (lane % 4);

  // Rows that are not there stay zero, which is as good as any: no row depends on another.
  for (int i = threadIdx.x; i < STAGES * GROUPS * STAGE; i += THREADS) staged[i] = 0.0f;
  for (int i = threadIdx.x; i < 3 * WIDE; i += THREADS) {
    int u = i % WIDE;
    biases[i] = u < H ? bh[i / WIDE * H + u] : 0.0f;
  }
  if (threadIdx.x == 0)
    for (int i = 0; i < 2 * GROUPS; i++) start_barrier(address(exchanged + i), WARPS);
  __syncthreads();

  const float* next = inputs + (i64)(first + warp) * row_stride + lane * (BYTES / 4);
  auto fetch = [&](int t, int group) {  // of all groups of a step, in this order
    if (t < steps) {
      float* const to = staged + (t % STAGES * GROUPS + group) * STAGE;
      const float* from = next + (i64)group * ROWS * row_stride;
#pragma unroll
      for (int r = warp; r < ROWS; r += WARPS, from += (i64)WARPS * row_stride) {
        if (first + group * ROWS + r < batch)
#pragma unroll
          for (int c = 0; c < 3 * H * 4 / BYTES; c += 32)
            if (c + 32 <= 3 * H * 4 / BYTES || lane + c < 3 * H * 4 / BYTES)
              copy<BYTES>(address(to + r * LINE + (lane + c) * (BYTES / 4)), from + c * (BYTES / 4));
      }
#if GATES
      const float* const gate[] = GATE_POINTERS;
      const int rows[] = GATE_ROWS, times[] = GATE_STEPS;
      const int row = first + group * ROWS + lane;
      if (warp == WARPS - 1 && lane < ROWS && row < batch)
#pragma unroll
        for (int g = 0; g < GATES; g++)
          copy<4>(address(to + ROWS * LINE + g * ROWS + lane), gate[g] + (i64)row * rows[g] + (i64)t * times[g]);
#endif
      if (group == GROUPS - 1) next += step_stride;
    }
    copies_end();
  };
  for (int t = 0; t < 2; t++)
    for (int group = 0; group < GROUPS; group++) fetch(t, group);

  Weights<H_PIECES> high, low;
  const float undone = split<H_PIECES, H>(high, low, wh, unit);
  float h[GROUPS][TILES][4], z[GROUPS][TILES][4];
#pragma unroll
  for (int group = 0; group < GROUPS; group++)
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int r = first + group * ROWS + n * 8 + column + (i & 1), u = unit + 8 * (i >> 1);
        h[group][n][i] = STARTED && r < batch && u < H ? start[(i64)r * start_stride + u] : 0.0f;
      }

  auto exchange = [&](int group) {
    return Exchange{states + group * 2 * STATE, scales + group * 2 * 8, exchanged + group * 2, 0, warp, lane, warp};
  };
  // Makes known, with exchange e, that the inputs of the next step are here.
  auto publish = [&](int group, u32 e, float scale) {
    wait_for_copies<GROUPS>();
    exchange(group).publish(e, h[group], scale);
  };
  float scales_now[GROUPS];
#pragma unroll
  for (int group = 0; group < GROUPS; group++) publish(group, 0, scales_now[group] = 16384.0f);

  float* out = y + (i64)(first + column) * steps * H + unit;
  for (int t = 0; t < steps; t++, out += H) {
    auto input = [&](int group, int gate, int n, int i) {
      const float* const x = staged + (t % STAGES * GROUPS + group) * STAGE;
      return THERE(i) ? x[(n * 8 + column + (i & 1)) * LINE + gate * H + unit + 8 * (i >> 1)] : 0.0f;
    };
    auto bias = [&](int gate, int i) { return biases[gate * WIDE + unit + 8 * (i >> 1)]; };
    auto reset_gate = [&](int group, int n, int i, float sum) {
      return f_sigmoid(input(group, 0, n, i) + (sum + bias(0, i)));
    };
    auto update_gate = [&](int group, int n, int i, float sum) {
      const float* const p = staged + (t % STAGES * GROUPS + group) * STAGE + ROWS * LINE + n * 8 + column + (i & 1);
      float gates[GATES + 1];
#pragma unroll
      for (int g = 0; g < GATES; g++) gates[g] = p[g * ROWS];
      return keep(input(group, 1, n, i) + (sum + bias(1, i)), gates);
    };
    auto step = [&](int group, int n, int i, float candidate) {  // candidate: without its input
      const int r = group * ROWS + n * 8 + (i & 1);
      float& state = h[group][n][i];
      state = mixed(f_tanh(input(group, 2, n, i) + candidate), state, z[group][n][i]);
      if (first + column + r < batch && THERE(i)) out[(i64)r * steps * H + 8 * (i >> 1)] = state;
    };
#if AFTER
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
      const float scale = scales_now[group] = exchange(group).received(t, scales_now[group]);
      const float unscale = undone * inverse(scale);
      float sum[3][TILES][4];
      product<H_PIECES, 0, 3, TILES == 1 ? 2 : 1>(sum, high, low, exchange(group).at(t));
      fetch(t + 2, group);
#pragma unroll
      for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          z[group][n][i] = update_gate(group, n, i, sum[1][n][i] * unscale);
          const float candidate = sum[2][n][i] * unscale + bias(2, i);
          step(group, n, i, reset_gate(group, n, i, sum[0][n][i] * unscale) * candidate);
        }
      publish(group, t + 1, scale);
    }
#else
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
      const float scale = scales_now[group] = exchange(group).received(2 * t, scales_now[group]);
      const float unscale = undone * inverse(scale);
      float sum[2][TILES][4];
      product<H_PIECES, 0, 2, TILES == 1 ? 2 : 1>(sum, high, low, exchange(group).at(2 * t));
      fetch(t + 2, group);
#pragma unroll
      for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          sum[0][n][i] = reset_gate(group, n, i, sum[0][n][i] * unscale) * h[group][n][i];
          z[group][n][i] = update_gate(group, n, i, sum[1][n][i] * unscale);
        }
      exchange(group).publish(2 * t + 1, sum[0], scale);
    }
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
      const float scale = scales_now[group] = exchange(group).received(2 * t + 1, scales_now[group]);
      const float unscale = undone * inverse(scale);
      float sum[1][TILES][4];
      product<H_PIECES, 2, 1, TILES == 1 ? 3 : 2>(sum, high, low, exchange(group).at(2 * t + 1));
#pragma unroll
      for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) step(group, n, i, sum[0][n][i] * unscale + bias(2, i));
      publish(group, 2 * t + 2, scale);
    }
#endif
  }
}
"""
