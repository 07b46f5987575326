"""CUDA C++ that the kernels of recurrences on the tensor cores share: weights in registers, and states that warps pass
to each other from step to step.

A warp has 16 units with the three gates of each, whose weights stay in its registers as sums of two halves of 11 bits
each; three products of halves make one of float32 (that of both low ones is below its rounding).

Halves reach from 2^-24 to 2^15, so operands are scaled by powers of two: weights by the largest of a warp into
[2^14, 2^15), and the state by 2^14 as long as it is below 2 everywhere, which a state that starts so never leaves when
its gates are between 0 and 1. A warp whose states outgrow that says so beside them.

What a step passes on is the state, split, in shared memory (of both blocks of a cluster): an exchange. Exchanges
alternate between two buffers with a barrier each. A warp that writes into one has waited for the exchange before, which
all warps wrote after they read what it overwrites; and of its barrier every phase has ended.

An operand's row lies in pieces of 16 columns, 64 bytes: for each i < 4 high and low halves of columns i and i + 8, then
of i + 4 and i + 12. A lane reads what it multiplies at once, and writes 8 bytes of what it made. Pieces of two rows
side by side and, in writing, of rows two apart are in different banks.
"""

from __future__ import annotations

EXCHANGE = r"""
#define WARPS ((H + 16 * CLUSTER - 1) / (16 * CLUSTER))        // with weights of a state, a block
#define THREADS (32 * WARPS)                                   // of these
#define H_PIECES (WARPS * CLUSTER)                             // of 16 units
#define PITCH(pieces) (64 * ((pieces) + ((pieces) % 2 ? 2 : 1)))  // bytes a row: an odd number of pieces
#define ROWS (8 * TILES)
#define STATE (ROWS * PITCH(H_PIECES))
#define THERE(i) (H % (16 * WARPS * CLUSTER) == 0 || unit + 8 * ((i) >> 1) < H)

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
        sum[g][n][i] = sums[CHAINS - 1][g][n][i];
#pragma unroll
        for (int c = CHAINS - 2; c >= 0; c--) sum[g][n][i] += sums[c][g][n][i];
      }
}

// The states of some rows, and where a lane of warp `piece` is in them.
struct Exchange {
  char* states;                   // [2] of STATE
  u32* scales;                    // [2][8], of pieces
  u64* barriers;                  // [2], of WARPS arrivals each
  u32 far;                        // from an address here to that in the other block
  int piece, lane, warp;

  // What to multiply in exchange e.
  __device__ __forceinline__ const char* at(u32 e) const {
    return states + (e & 1) * STATE + place(lane / 4, lane % 4, PITCH(H_PIECES));
  }

  // Exchange e: v, times `scale` or less, into both blocks.
  __device__ __forceinline__ void publish(u32 e, const float (&v)[TILES][4], float scale) const {
    float top = 0.0f;
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) top = fmaxf(top, fabsf(v[n][i]));
    if (__any_sync(~0u, top * scale > 32768.0f)) {  // too large, or infinite, which does not count
      u32 most = 0;
#pragma unroll
      for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) most = max(most, size(v[n][i]));
      while (__any_sync(~0u, __uint_as_float(most) * scale > 32768.0f)) scale *= 0.00390625f;
    }
    const u32 bar = address(barriers + (e & 1));
    char* const to = states + (e & 1) * STATE + place(2 * (lane % 4), 8 * piece + lane / 4, PITCH(H_PIECES));
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
  }

  // Waits for exchange e; its scale, which is that of the exchange before it or less.
  __device__ __forceinline__ float received(u32 e, float scale) const {
    wait(address(barriers + (e & 1)), e >> 1);
    const u32* const all = scales + (e & 1) * 8;
    u32 least = all[0], most = all[0];
    if (CLUSTER > 1) {  // there `scale` would take a register too many
#pragma unroll
      for (int k = 1; k < H_PIECES; k++) least = min(least, all[k]), most = max(most, all[k]);
    } else if (__any_sync(~0u, all[lane % 8 < H_PIECES ? lane % 8 : 0] != __float_as_uint(scale))) {
#pragma unroll 1
      for (int k = 0; k < H_PIECES; k++) least = min(least, all[k]);
      most = ~0u;
    } else {
      return scale;
    }
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
  }
};
"""
