"""The CUDA C++ of a recurrence of gated steps together with the products of its inputs, on Hopper's tensor cores.

A cluster of one or two blocks owns 8 or 16 rows of the batch and all their steps. Half of its warps make steps, the
others the products of the inputs, some steps ahead: so that the tensor cores are busy while a step waits for its gates
and for the other block. A warp of either kind has 16 units with the three gates of each, whose weights stay in its
registers as sums of two halves of 11 bits each; three products of halves make one of float32 (that of both low ones is
below its rounding). Up to 64 units are one block's, up to 128 two blocks'.

Halves reach from 2^-24 to 2^15, so operands are scaled by powers of two: weights by the largest of a warp, inputs by
the largest of a row, both into [2^14, 2^15), and the state by 2^14 as long as it is below 2 everywhere, which a state
that starts so never leaves when its gates are between 0 and 1. A warp whose states outgrow that says so beside them.

What a step passes on is the state, split, in both blocks' shared memory: an exchange. Exchanges alternate between two
buffers with a barrier each. A warp that writes into one has waited for the exchange before, which all warps wrote after
they read what it overwrites; and of its barrier every phase has ended. There is one exchange a step, or two where the
reset gate comes before the product.

An operand's row lies in pieces of 16 columns, 64 bytes: for each i < 4 high and low halves of columns i and i + 8, then
of i + 4 and i + 12. A lane reads what it multiplies at once, and writes 8 bytes of what it made. Pieces of two rows
side by side and, in writing, of rows two apart are in different banks.
"""

from __future__ import annotations

CLUSTER = r"""
#define WARPS ((H + 16 * CLUSTER - 1) / (16 * CLUSTER))        // of each kind, a block
#define THREADS (32 * WARPS)                                   // of each kind
#define H_PIECES (WARPS * CLUSTER)                             // of 16 units
#define X_PIECES ((K + 15) / 16)                               // of 16 inputs
#define PITCH(pieces) (64 * ((pieces) + ((pieces) % 2 ? 2 : 1)))  // bytes a row: an odd number of pieces
#define ROWS (8 * TILES)
#define LINE ((K + 3) / 4 * 4)                                 // floats a row of inputs as they are fetched
#define STATE (ROWS * PITCH(H_PIECES))
#define INPUT (ROWS * PITCH(X_PIECES))

__device__ __forceinline__ float part(const float4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Where in a row the halves of column `pair` % 8 + 16 * (pair / 8) and of that plus 8 are. Rows 4 to 7 of 8 are moved.
__device__ __forceinline__ int place(int row, int pair, int pitch) {
  return row * pitch + (row >> 2 & 1) * 64 + pair / 8 * 64 + pair % 4 * 16 + pair % 8 / 4 * 8;
}

template <int PIECES> using Weights = u32[3][PIECES][4];

// Splits this lane's part of w [3 H, WIDTH]: units `unit` and 8 more. What undoes the scale.
template <int PIECES, int WIDTH>
__device__ __forceinline__ float split(Weights<PIECES>& high, Weights<PIECES>& low, const float* w, int unit) {
  u32 most = 0;
#pragma unroll
  for (int g = 0; g < 3; g++)
#pragma unroll
    for (int k = 0; k < PIECES; k++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int u = unit + 8 * (i & 1), j = k * 16 + (threadIdx.x & 3) + 4 * (i >> 1);
        const float* from = w + (g * H + u) * WIDTH + j;
        const float a = u < H && j < WIDTH ? from[0] : 0.0f, b = u < H && j + 8 < WIDTH ? from[8] : 0.0f;
        high[g][k][i] = __float_as_uint(a), low[g][k][i] = __float_as_uint(b);
        most = max(most, max(size(a), size(b)));
      }
  const float scale = scale_for(warp_max(most));
#pragma unroll
  for (int g = 0; g < 3; g++)
#pragma unroll
    for (int k = 0; k < PIECES; k++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        uint2 x = halves(__uint_as_float(high[g][k][i]) * scale, __uint_as_float(low[g][k][i]) * scale);
        high[g][k][i] = x.x, low[g][k][i] = x.y;
      }
  return inverse(scale);
}

// sum = weights of COUNT gates from FIRST on, times a split operand; `at`: where in it this lane begins.
// The tensor cores round every sum towards zero. So the small products, those with a low half, are added up first or
// apart: a third of the steps at full size. Apart, where registers allow: sums that wait for each other idle.
template <int PIECES, int FIRST, int COUNT, int CHAINS>
__device__ __forceinline__ void product(
    float (&sum)[COUNT][TILES][4], const Weights<PIECES>& high, const Weights<PIECES>& low, const char* at) {
  float sums[CHAINS][COUNT][TILES][4] = {};
#pragma unroll
  for (int pass = CHAINS > 1; pass < 2; pass++)
#pragma unroll
    for (int k = 0; k < PIECES; k++) {
      uint4 b[TILES];
#pragma unroll
      for (int n = 0; n < TILES; n++) b[n] = *(const uint4*)(at + n * 8 * PITCH(PIECES) + k * 64);
#pragma unroll
      for (int c = CHAINS == 1 && !pass; c < (CHAINS == 1 && pass ? 1 : 3); c++)
#pragma unroll
        for (int g = 0; g < COUNT; g++)
#pragma unroll
          for (int n = 0; n < TILES; n++)
            multiply(sums[c < CHAINS ? c : CHAINS - 1][g][n], c == 2 ? low[FIRST + g][k] : high[FIRST + g][k],
                     c == 1 ? b[n].y : b[n].x, c == 1 ? b[n].w : b[n].z);
    }
#pragma unroll
  for (int g = 0; g < COUNT; g++)
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        sum[g][n][i] = 0.0f;
#pragma unroll
        for (int c = CHAINS - 1; c >= 0; c--) sum[g][n][i] += sums[c][g][n][i];
      }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(2 * THREADS, 1)
recurrence(const float* __restrict__ inputs, const float* __restrict__ start, const float* __restrict__ wi,
           const float* __restrict__ wh, const float* __restrict__ bi, const float* __restrict__ bh,
           float* __restrict__ y, int batch, int steps, int row_stride, int step_stride,
           int start_stride GATE_ARGUMENTS) {
  extern __shared__ __align__(16) char shared[];
  float4* const ring = (float4*)shared;                        // [SLOTS][3][TILES][THREADS]: products of inputs
  char* const states = (char*)(ring + SLOTS * 3 * TILES * THREADS);  // [2] of STATE
  char* const split_inputs = states + 2 * STATE;               // [2] of INPUT
  float* const raw = (float*)(split_inputs + 2 * INPUT);       // [STAGES][ROWS][LINE]
  float* const biases = raw + STAGES * ROWS * LINE;            // [3 and that of the state][16 WARPS]
  float* const unscales = biases + 4 * 16 * WARPS;             // [2][ROWS], of inputs; 0: a row that holds an infinity
  u32* const scales = (u32*)(unscales + 2 * ROWS);             // [2][8], of pieces of states
  u64* const exchanged = (u64*)(scales + 2 * 8);               // [2]
  u64* const made = exchanged + 2;                             // [SLOTS][WARPS]
  u64* const used = made + SLOTS * WARPS;                      // [SLOTS][WARPS]
  float* const marks = (float*)(used + SLOTS * WARPS);         // [SLOTS][WARPS][GATES][ROWS]

  const int lane = threadIdx.x & 31, warp = (threadIdx.x >> 5) % WARPS, thread = threadIdx.x % THREADS;
  const u32 rank = CLUSTER > 1 ? blockIdx.x % CLUSTER : 0;
  const int first = blockIdx.x / CLUSTER * ROWS, piece = rank * WARPS + warp;
  const int unit = piece * 16 + lane / 4, column = 2 * (lane % 4);
  const int here = batch - first < ROWS ? batch - first : ROWS;

  // Rows that are not there stay zero, which is as good as any: no row depends on another.
  for (int i = threadIdx.x; i < STAGES * ROWS * LINE; i += 2 * THREADS) raw[i] = 0.0f;
  for (int i = threadIdx.x; i < 4 * 16 * WARPS; i += 2 * THREADS) {
    const int g = i / (16 * WARPS), u = rank * WARPS * 16 + i % (16 * WARPS);
    if (g < 3)
      biases[i] = u < H ? bi[g * H + u] + (g < 2 || !AFTER ? bh[g * H + u] : 0.0f) : 0.0f;
    else
      biases[i] = u < H ? bh[2 * H + u] : 0.0f;
  }
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; i++) start_barrier(address(exchanged + i), WARPS);
    for (int i = 0; i < 2 * SLOTS * WARPS; i++) start_barrier(address(made + i), 1);
    barriers_started();
  }
  if (CLUSTER > 1) cluster_sync();
  __syncthreads();

  if (threadIdx.x >= THREADS) {  // products of inputs
    const float* next = inputs + (i64)(first + warp) * row_stride + lane * (BYTES / 4);
    auto fetch = [&](int t) {
      if (t < steps) {
        const float* from = next;
        for (int r = warp; r < here; r += WARPS, from += (i64)WARPS * row_stride)
#pragma unroll
          for (int c = 0; c < K * 4 / BYTES; c += 32)
            if (c + 32 <= K * 4 / BYTES || lane + c < K * 4 / BYTES)
              copy<BYTES>(address(raw + (t % STAGES * ROWS + r) * LINE + (lane + c) * (BYTES / 4)),
                          from + c * (BYTES / 4));
        next += step_stride;
      }
      copies_end();
    };
    fetch(0);
    fetch(1);
    Weights<X_PIECES> high, low;
    const float unscale = split<X_PIECES, K>(high, low, wi, unit);
    for (int t = 0; t < steps; t++) {
      wait_for_copies();
      __syncwarp();
      char* const to = split_inputs + t % 2 * INPUT;
#pragma unroll 2
      for (int r = warp; r < ROWS; r += WARPS) {
        constexpr int PAIRS = (X_PIECES * 8 + 31) / 32;
        const float* from = raw + (t % STAGES * ROWS + r) * LINE;
        float a[PAIRS], b[PAIRS];
        u32 most = 0;
#pragma unroll
        for (int m = 0; m < PAIRS; m++) {
          const int pair = lane + 32 * m, k = pair / 8 * 16 + pair % 8;
          a[m] = k < K ? from[k] : 0.0f, b[m] = k + 8 < K ? from[k + 8] : 0.0f;
          const u32 c = __float_as_uint(a[m]) & 0x7fffffff, d = __float_as_uint(b[m]) & 0x7fffffff;
          most = max(most, max(c <= 0x7f800000 ? c : 0, d <= 0x7f800000 ? d : 0));
        }
        most = warp_max(most);
        const bool infinite = most == 0x7f800000;
        const float scale = infinite ? 1.0f : scale_for(most);
#pragma unroll
        for (int m = 0; m < PAIRS; m++)
          if (lane + 32 * m < X_PIECES * 8)
            *(uint2*)(to + place(r, lane + 32 * m, PITCH(X_PIECES))) = halves(a[m] * scale, b[m] * scale);
        if (lane == 0) unscales[t % 2 * ROWS + r] = infinite ? 0.0f : inverse(scale);
      }
      __syncwarp();
      fetch(t + 2);
      sync(2, THREADS);
      const u32 slot = t % SLOTS;
#if GATES
      const float* const gate[] = GATE_POINTERS;
      const int rows[] = GATE_ROWS, times[] = GATE_STEPS;
      float mark[GATES];
      const int r = first + min(lane % ROWS, here - 1);
#pragma unroll
      for (int g = 0; g < GATES; g++) mark[g] = gate[g][(i64)r * rows[g] + (i64)t * times[g]];
#endif
      const float* const scaled = unscales + t % 2 * ROWS + column;
      float4* const slots = ring + slot * 3 * TILES * THREADS + thread;
      bool infinite = false;
      float sum[3][TILES][4];
      product<X_PIECES, 0, 3, TILES == 1 ? 2 : 1>(sum, high, low, to + place(lane / 4, lane % 4, PITCH(X_PIECES)));
      wait(address(used + slot * WARPS + warp), t / SLOTS + 1);
#pragma unroll
      for (int n = 0; n < TILES; n++) {
        const float2 s = *(const float2*)(scaled + n * 8);
        infinite |= s.x == 0.0f || s.y == 0.0f;
#pragma unroll
        for (int g = 0; g < 3; g++) {
          const float b = biases[g * 16 * WARPS + warp * 16 + lane / 4];
          const float c = biases[g * 16 * WARPS + warp * 16 + lane / 4 + 8];
          slots[(g * TILES + n) * THREADS] = make_float4(
              sum[g][n][0] * unscale * s.x + b, sum[g][n][1] * unscale * s.y + b,
              sum[g][n][2] * unscale * s.x + c, sum[g][n][3] * unscale * s.y + c);
        }
      }
      if (infinite)  // halves would make nan of it
#pragma unroll 1
        for (int i = 0; i < 3 * TILES * 4; i++) {
          const int g = i / (4 * TILES), n = i / 4 % TILES, r = n * 8 + i % 2, u = unit + i % 4 / 2 * 8;
          if (scaled[r] != 0.0f) continue;
          const float* x = inputs + (i64)(first + column + r) * row_stride + (i64)t * step_stride;
          float s = biases[g * 16 * WARPS + warp * 16 + lane / 4 + i % 4 / 2 * 8];
#pragma unroll 1
          for (int k = 0; k < K && u < H; k++) s = fmaf(wi[(g * H + u) * K + k], x[k], s);
          ((float*)(slots + (g * TILES + n) * THREADS))[i % 4] = s;
        }
#if GATES
#pragma unroll
      for (int g = 0; g < GATES; g++)
        if (lane < ROWS) marks[((slot * WARPS + warp) * GATES + g) * ROWS + lane] = mark[g];
#endif
      __syncwarp();
      if (lane == 0) arrive(address(made + slot * WARPS + warp), 0);
    }
  } else {  // steps
    Weights<H_PIECES> high, low;
    const float undone = split<H_PIECES, H>(high, low, wh, unit);
    const u32 far = CLUSTER > 1 ? elsewhere(address(shared), rank ^ 1) - address(shared) : 0;
    const int mine = place(column, 8 * piece + lane / 4, PITCH(H_PIECES));
    const int read = place(lane / 4, lane % 4, PITCH(H_PIECES));

    // Exchange e: v, times `scale` or less, into both blocks.
    auto publish = [&](u32 e, const float (&v)[TILES][4], float scale) {
      u32 most = 0;
#pragma unroll
      for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) most = max(most, size(v[n][i]));
      while (__any_sync(~0u, __uint_as_float(most) * scale > 32768.0f)) scale *= 0.00390625f;
      const u32 bar = address(exchanged + (e & 1));
      char* const to = states + (e & 1) * STATE + mine;
#pragma unroll
      for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const uint2 x = halves(v[n][i] * scale, v[n][i + 2] * scale);
          uint2* const at = (uint2*)(to + (n * 8 + i) * PITCH(H_PIECES));
          if (CLUSTER > 1) send(address(at) + far, x, bar + far);
          *at = x;
        }
      if (lane == 0) {
        u32* const at = scales + (e & 1) * 8 + piece;
        if (CLUSTER > 1) send(address(at) + far, __float_as_uint(scale), bar + far);
        *at = __float_as_uint(scale);
      }
      __syncwarp();
      if (lane == 0) arrive(bar, CLUSTER > 1 ? 512 * TILES + 4 : 0);
    };

    // Waits for exchange e; its scale.
    auto received = [&](u32 e) {
      wait(address(exchanged + (e & 1)), e >> 1);
      const u32* const all = scales + (e & 1) * 8;
      u32 least = all[0], most = all[0];
#pragma unroll
      for (int k = 1; k < H_PIECES; k++) least = min(least, all[k]), most = max(most, all[k]);
      if (least != most) {
#pragma unroll 1
        for (int k = warp; k < H_PIECES; k += WARPS) {
          const float ratio = __uint_as_float(least) * inverse(__uint_as_float(all[k]));
#pragma unroll 1
          for (int i = lane; i < ROWS * 8; i += 32) {
            uint2* const x = (uint2*)(states + (e & 1) * STATE + place(i / 8, k * 8 + i % 8, PITCH(H_PIECES)));
            float a, b, c, d;
            unpack(x->x, a, b);
            unpack(x->y, c, d);
            *x = halves((a + c) * ratio, (b + d) * ratio);
          }
        }
        sync(1, THREADS);
      }
      return __uint_as_float(least);
    };

#define THERE(i) (H % (16 * WARPS * CLUSTER) == 0 || unit + 8 * ((i) >> 1) < H)
    float h[TILES][4], z[TILES][4];
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int r = n * 8 + column + (i & 1), u = unit + 8 * (i >> 1);
        h[n][i] = STARTED && r < here && u < H ? start[(i64)(first + r) * start_stride + u] : 0.0f;
      }
    publish(0, h, 16384.0f);
    for (int t = 0; t < steps; t++) {
      const u32 slot = t % SLOTS, e = AFTER ? t : 2 * t;
      const float4* const from = ring + slot * 3 * TILES * THREADS + thread;
      const float* const p = marks + (slot * WARPS + warp) * GATES * ROWS + column;
      float scale = received(e), unscale = undone * inverse(scale);
      float candidate[1][TILES][4];
      const char* const at = states + (e & 1) * STATE + read;
      auto reset_gate = [&](int n, int i, float sum) { return f_sigmoid(part(from[n * THREADS], i) + sum * unscale); };
      auto update_gate = [&](int n, int i, float sum) {
        float gates[GATES + 1];
#pragma unroll
        for (int g = 0; g < GATES; g++) gates[g] = p[g * ROWS + n * 8 + (i & 1)];
        return keep(part(from[(TILES + n) * THREADS], i) + sum * unscale, gates);
      };
      if (AFTER) {
        float sum[3][TILES][4];
        product<H_PIECES, 0, 3, TILES == 1 ? 2 : 1>(sum, high, low, at);
        wait(address(made + slot * WARPS + warp), t / SLOTS);
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const float c = sum[2][n][i] * unscale + biases[3 * 16 * WARPS + warp * 16 + lane / 4 + 8 * (i >> 1)];
            candidate[0][n][i] = reset_gate(n, i, sum[0][n][i]) * c;
            z[n][i] = update_gate(n, i, sum[1][n][i]);
          }
      } else {
        float sum[2][TILES][4];
        product<H_PIECES, 0, 2, TILES == 1 ? 3 : 1>(sum, high, low, at);
        wait(address(made + slot * WARPS + warp), t / SLOTS);
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            sum[0][n][i] = reset_gate(n, i, sum[0][n][i]) * h[n][i];
            z[n][i] = update_gate(n, i, sum[1][n][i]);
          }
        publish(e + 1, sum[0], scale);
        scale = received(e + 1), unscale = undone * inverse(scale);
        product<H_PIECES, 2, 1, 3>(candidate, high, low, states + STATE + read);
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) candidate[0][n][i] *= unscale;
      }
      float* const out = y + ((i64)(first + column) * steps + t) * H + unit;
#pragma unroll
      for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          h[n][i] = mixed(f_tanh(part(from[(2 * TILES + n) * THREADS], i) + candidate[0][n][i]), h[n][i], z[n][i]);
          const int r = n * 8 + (i & 1);
          if (column + r < here && THERE(i)) out[(i64)r * steps * H + 8 * (i >> 1)] = h[n][i];
        }
      if (t + 1 < steps) publish(AFTER ? e + 1 : e + 2, h, scale);
      __syncwarp();
      if (lane == 0) arrive(address(used + slot * WARPS + warp), 0);
    }
  }
  if (CLUSTER > 1) cluster_sync();
}
"""
