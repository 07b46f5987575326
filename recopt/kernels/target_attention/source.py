"""The CUDA C++ of ``recopt::target_attention`` in float32, on the tensor cores at its accuracy.

A team of warps takes a row, and each of its warps tiles of 16 items; those of a history that all rows have in common
are split once, into shared memory, where there is room. The row's own first layer, Wk + diag(q) Wp, lies there too, as
sums of two halves, in the order in which lanes read it, and so do the further layers' matrices, once for all rows.
Layers' results stay in registers: those of one are the left operand of the next. Three products of halves make one of
float32 (that of both low ones is below its rounding): those with a low half are added up apart, since the tensor cores
round every sum towards zero, and because they alone are nan where an operand is infinite.

Items' and results' rows are scaled by powers of two, and so is each column of a matrix, so that halves hold them.
"""

from __future__ import annotations

UNIT = r"""
#define WARPS (TEAM * TEAMS)
#define THREADS (32 * WARPS)
#define N1P (8 * TILES(N1))
#define FIRST (PIECES(D) * TILES(N1) * 32)  // uint4s or float4s of a first layer's matrix
#define DP (16 * PIECES(D))
#define COLUMNS ((E + 63) / 64)  // pairs of columns of the values that a lane has

__device__ __forceinline__ float shuffled(float x, int lane) { return __shfl_sync(~0u, x, lane); }

__device__ __forceinline__ void team_sync(int team) {
  if (TEAM == 1)
    __syncwarp();
  else
    sync(1 + team, 32 * TEAM);
}

// A layer's results: sums without their scales, and the bias.
template <int COUNT>
__device__ __forceinline__ void finish(
    float (&whole)[COUNT][4], const float (&rest)[COUNT][4], const float (&scale)[2], const float2* columns, int lane) {
  const float undo[2] = {inverse(scale[0]), inverse(scale[1])};
#pragma unroll
  for (int j = 0; j < COUNT; j++)
    {
      const float4 c = *(const float4*)(columns + j * 8 + lane % 4 * 2);  // of both: what undoes the scale, the bias
#pragma unroll
      for (int i = 0; i < 4; i++)
        whole[j][i] = fmaf(together(whole[j][i], rest[j][i]) * undo[i / 2], i % 2 ? c.z : c.x, i % 2 ? c.w : c.y);
    }
}

// The next layer over `h`, which has N columns.
template <int N, int COUNT>
__device__ __forceinline__ void layer(
    float (&y)[COUNT][4], const float (&h)[TILES(N)][4], const uint4* w, const float2* columns, int lane) {
  float scale[2], rest[COUNT][4];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float x[2 * TILES(N)];
#pragma unroll
    for (int j = 0; j < TILES(N); j++) x[2 * j] = h[j][2 * r], x[2 * j + 1] = h[j][2 * r + 1];
    scale[r] = quad_scale(x);
  }
#pragma unroll
  for (int j = 0; j < COUNT; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) y[j][i] = rest[j][i] = 0.0f;
#pragma unroll
  for (int s = 0; s < PIECES(N); s++) {
    const bool two = 2 * s + 1 < TILES(N);
    const int k = 2 * s, m = two ? k + 1 : k;
    u32 high[4], low[4];
    split(high, low, make_float4(h[k][0], h[k][1], two ? h[m][0] : 0.0f, two ? h[m][1] : 0.0f),
          make_float4(h[k][2], h[k][3], two ? h[m][2] : 0.0f, two ? h[m][3] : 0.0f), scale);
    product(y, rest, high, low, w + s * COUNT * 32 + lane);
  }
  finish(y, rest, scale, columns, lane);
}

// The layer's function; 0 in columns past its width, whatever the function makes of nothing.
#define APPLY(F, N, PARAMS, h, params)                                                                \
  _Pragma("unroll") for (int j = 0; j < TILES(N); j++) {                                              \
    float2 both[PARAMS + 1];                                                                          \
    _Pragma("unroll") for (int m = 0; m < PARAMS; m++)                                                \
        both[m] = *(const float2*)((params) + m * 8 * TILES(N) + j * 8 + lane % 4 * 2);               \
    _Pragma("unroll") for (int i = 0; i < 2; i++) {                                                   \
      float p[PARAMS + 1];                                                                            \
      _Pragma("unroll") for (int m = 0; m < PARAMS; m++) p[m] = i ? both[m].y : both[m].x;            \
      const bool there = (N) % 8 == 0 || j * 8 + lane % 4 * 2 + i < (N);                              \
      h[j][i] = there ? F(h[j][i], p) : 0.0f, h[j][2 + i] = there ? F(h[j][2 + i], p) : 0.0f;         \
    }                                                                                                 \
  }

// A matrix [N, K] in shared memory, as `layer` reads it, with its scales and bias.
template <int N, int K>
__device__ __forceinline__ void prepare(uint4* to, float2* columns, const float* w, const float* bias) {
  const int lane = threadIdx.x & 31, t = lane % 4;
  for (int j = threadIdx.x >> 5; j < TILES(N); j += WARPS) {
    const int n = 8 * j + lane / 4;
    float4 x[PIECES(K)];
#pragma unroll
    for (int s = 0; s < PIECES(K); s++) {
      const int k = 16 * s + 2 * t;
      const float* from = w + n * K + k;
      x[s] = make_float4(n < N && k < K ? from[0] : 0.0f, n < N && k + 1 < K ? from[1] : 0.0f,
                         n < N && k + 8 < K ? from[8] : 0.0f, n < N && k + 9 < K ? from[9] : 0.0f);
    }
    const float undo = split(to + j * 32 + lane, TILES(N) * 32, x);
    if (t == 0) columns[n] = make_float2(undo, n < N ? bias[n] : 0.0f);
  }
}

// A lane's part of item t, which `from` points at, and of the one 8 below; nothing of items from stop on.
__device__ __forceinline__ void load(
    float4 (&x)[PIECES(D)], float4 (&z)[PIECES(D)], const float* from, int step, int t, int stop, int lane) {
#pragma unroll
  for (int s = 0; s < PIECES(D); s++) {
    const int d = 16 * s + lane % 4 * 4;
    x[s] = four(from, t < stop ? d : D, D);
    z[s] = four(from + 8 * (i64)step, t + 8 < stop ? d : D, D);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
unit(const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v, float* __restrict__ y,
     int rows, int inner_rows, int items, int q_outer, int q_inner, int q_column, int k_outer, int k_inner, int k_item,
     int v_outer, int v_inner, int v_item, const float* __restrict__ wq, const float* __restrict__ wk,
     const float* __restrict__ wp ARGUMENTS) {
  extern __shared__ __align__(16) char shared[];
  uint4* const own = (uint4*)shared;                             // [TEAMS][pieces][tiles][32]
  float4* const given = (float4*)(own + TEAMS * FIRST);          // Wk, Wp, Wq: [3][pieces][tiles][32]
  float2* const columns = (float2*)(given + (TARGET ? 3 : 2) * FIRST);             // [TEAMS][N1P]
  float* const targets = (float*)(columns + TEAMS * N1P);        // [TEAMS][DP]
  float* const sums = targets + TEAMS * DP;                      // [WARPS][64 COLUMNS + 4]
  char* const rest = (char*)(sums + WARPS * (64 * COLUMNS + 4));
  LAYOUT

  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, team = warp / TEAM;
  // The last members have fewer tiles, so those of different teams are not on the same scheduler.
  const int member = (warp + (4 % TEAM ? 0 : team * TEAM / 4)) % TEAM;
  // Unrolled: all that is read comes at once.
#pragma unroll
  for (int turn = 0; turn < (FIRST + THREADS - 1) / THREADS; turn++) {
    const int i = turn * THREADS + threadIdx.x;
    if (i >= FIRST) continue;
    const int n = i / 32 % TILES(N1) * 8 + i % 32 / 4, d = i / 32 / TILES(N1) * 16 + i % 4 * 4;
    const float4 nothing = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    given[i] = ITEM && n < N1 ? four(wk + n * D, d, D) : nothing;
    given[i + FIRST] = PRODUCT && n < N1 ? four(wp + n * D, d, D) : nothing;
    if (TARGET) given[i + 2 * FIRST] = n < N1 ? four(wq + n * D, d, D) : nothing;
  }
  PREPARE
  if (COMMON)
    for (int tile = warp; 16 * tile < items; tile += WARPS) {
      float4 x[PIECES(D)], z[PIECES(D)];
      const int t0 = 16 * tile + lane / 4;
      load(x, z, k + (i64)t0 * k_item, k_item, t0, items, lane);
      const float scale[2] = {quad_scale(x), quad_scale(z)};
      if (lane % 4 == 0) scales[t0] = scale[0], scales[t0 + 8] = scale[1];
#pragma unroll
      for (int s = 0; s < PIECES(D); s++) {
        u32 high[4], low[4];
        split(high, low, x[s], z[s], scale);
        uint4* const to = history + (tile * PIECES(D) + s) * 64 + lane;
        to[0] = make_uint4(high[0], high[1], high[2], high[3]), to[32] = make_uint4(low[0], low[1], low[2], low[3]);
      }
    }
  __syncthreads();

  uint4* const w1 = own + team * FIRST;
  float2* const first = columns + team * N1P;
  float* const target = targets + team * DP;
  for (int row = blockIdx.x * TEAMS + team; row < rows; row += gridDim.x * TEAMS) {
    const i64 outer = row / inner_rows, inner = row % inner_rows;
    const float* const k_row = k + outer * k_outer + inner * k_inner;
    const float* const v_row = v + outer * v_outer + inner * v_inner;
    MARKS
    auto marked = [&](int t, float (&p)[COUNT_MARKS + 1]) { READ_MARKS };

    for (int d = member * 32 + lane; d < DP; d += 32 * TEAM)
      target[d] = d < D ? q[outer * q_outer + inner * q_inner + (i64)d * q_column] : 0.0f;
    // Items before left and from right on have scores that are the same whatever the network says.
    int left = 0, right = items;
    if (SKIPS) {
      u32 before = 0, after = 0;
      for (int t = lane; t < items; t += 32) {
        float p[COUNT_MARKS + 1];
        marked(t, p);
        if (needed(1.0f, p) != 0.0f) before = max(before, (u32)(items - t)), after = (u32)(t + 1);
      }
      left = items - (int)warp_max(before), right = max((int)warp_max(after), left);
      if (COMMON) left -= left % 16;
    }
    team_sync(team);
    for (int j = member; j < TILES(N1); j += TEAM) {
      float4 x[PIECES(D)];
      const int n = j * 8 + lane / 4;
      const float bias = n < N1 ? b1[n] : 0.0f;
      float dots[4] = {};
#pragma unroll
      for (int s = 0; s < PIECES(D); s++) {
        const int at = (s * TILES(N1) + j) * 32 + lane;
        const float4 a = given[at], b = given[at + FIRST], t = *(const float4*)(target + s * 16 + lane % 4 * 4);
        x[s] = a;
        if (PRODUCT)
          x[s] = make_float4(fmaf(b.x, t.x, a.x), fmaf(b.y, t.y, a.y), fmaf(b.z, t.z, a.z), fmaf(b.w, t.w, a.w));
        if (TARGET) {
          const float4 c = given[at + 2 * FIRST];
          dots[0] = fmaf(c.x, t.x, dots[0]), dots[1] = fmaf(c.y, t.y, dots[1]);
          dots[2] = fmaf(c.z, t.z, dots[2]), dots[3] = fmaf(c.w, t.w, dots[3]);
        }
      }
      const float more = quad_sum(dots[0] + dots[1] + (dots[2] + dots[3]));
      const float undo = split(w1 + j * 32 + lane, TILES(N1) * 32, x);
      if (lane % 4 == 0) first[n] = make_float2(undo, bias + more);
    }
    team_sync(team);

    float total[COLUMNS][2] = {}, highest = __int_as_float(0xff800000), weight = 0.0f;
    // Adds the values of 16 items; a lane has the scores of items lane / 4 and 8 more.
    auto pool = [&](int t, int stop, float a, float b) {
      const int t0 = t + lane / 4;
      if (SOFTMAX) {
        a = t0 < stop ? a : __int_as_float(0xff800000), b = t0 + 8 < stop ? b : __int_as_float(0xff800000);
        float above = a != a || a > b ? a : b;
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {
          const float other = swapped(above, mask);
          above = above != above || above > other ? above : other;
        }
        above = highest > above ? highest : above;
        const float origin = above == __int_as_float(0xff800000) ? 0.0f : above, kept = expf(highest - origin);
        a = expf(a - origin), b = expf(b - origin), highest = above;
        float more = a + b;
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) more += swapped(more, mask);
        weight = weight * kept + more;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) total[c][0] *= kept, total[c][1] *= kept;
      }
      const float* from = v_row + (i64)t * v_item + 2 * lane;
#pragma unroll
      for (int i = 0; i < 16; i++, from += v_item) {
        const float s = shuffled(i < 8 ? a : b, i % 8 * 4);
        if (t + i < stop)
#pragma unroll
          for (int c = 0; c < COLUMNS; c++) {
            const int e = 64 * c + 2 * lane;
            if (VECTORS && E % 2 == 0) {
              if (e < E) {
                const float2 x = *(const float2*)(from + 64 * c);
                total[c][0] = fmaf(s, x.x, total[c][0]), total[c][1] = fmaf(s, x.y, total[c][1]);
              }
            } else {
              if (e < E) total[c][0] = fmaf(s, from[64 * c], total[c][0]);
              if (e + 1 < E) total[c][1] = fmaf(s, from[64 * c + 1], total[c][1]);
            }
          }
      }
    };

    for (int t = left + 16 * member; t < right; t += 16 * TEAM) {
      const int t0 = t + lane / 4;
      float4 x[PIECES(D)], z[PIECES(D)];
      float scale[2];
      if (COMMON) {
        scale[0] = scales[t0], scale[1] = scales[t0 + 8];
      } else {
        load(x, z, k_row + (i64)t0 * k_item, k_item, t0, right, lane);
        scale[0] = quad_scale(x), scale[1] = quad_scale(z);
      }
      float h1[TILES(N1)][4] = {};
      {
        float low_sums[TILES(N1)][4] = {};
#pragma unroll
        for (int s = 0; s < PIECES(D); s++) {
          u32 high[4], low[4];
          if (COMMON) {
            const uint4* const from = history + (t / 16 * PIECES(D) + s) * 64 + lane;
            const uint4 a = from[0], b = from[32];
            high[0] = a.x, high[1] = a.y, high[2] = a.z, high[3] = a.w;
            low[0] = b.x, low[1] = b.y, low[2] = b.z, low[3] = b.w;
          } else {
            split(high, low, x[s], z[s], scale);
          }
          product(h1, low_sums, high, low, w1 + s * TILES(N1) * 32 + lane);
        }
        finish(h1, low_sums, scale, first, lane);
      }
      float s[2] = {};
      NETWORK
      float p[COUNT_MARKS + 1], o[COUNT_MARKS + 1];
      marked(min(t0, items - 1), p);
      marked(min(t0 + 8, items - 1), o);
      const float bias = *last_bias;
      const float a = last(quad_sum(s[0]) + bias, LAST_PARAMS), b = last(quad_sum(s[1]) + bias, LAST_PARAMS);
      pool(t, right, score(a, p), score(b, o));
    }
    if (SKIPS)
#pragma unroll 1
      for (int side = 0; side < 2; side++)
        for (int t = (side ? right : 0) + 16 * member, stop = side ? items : left; t < stop; t += 16 * TEAM) {
          float p[COUNT_MARKS + 1], o[COUNT_MARKS + 1];
          marked(min(t + lane / 4, items - 1), p);
          marked(min(t + lane / 4 + 8, items - 1), o);
          pool(t, stop, score(0.0f, p), score(0.0f, o));
        }

    float* const mine = sums + warp * (64 * COLUMNS + 4);
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) *(float2*)(mine + 64 * c + 2 * lane) = make_float2(total[c][0], total[c][1]);
    if (lane == 0) mine[64 * COLUMNS] = highest, mine[64 * COLUMNS + 1] = weight;
    team_sync(team);
    for (int e = member * 32 + lane; e < E; e += 32 * TEAM) {
      float sum = 0.0f, top = __int_as_float(0xff800000), all = 0.0f;
#pragma unroll
      for (int m = 0; m < TEAM; m++) {
        const float* const part = sums + (team * TEAM + m) * (64 * COLUMNS + 4);
        if (SOFTMAX) {
          const float high = part[64 * COLUMNS], above = high > top || high != high ? high : top;
          const float origin = above == __int_as_float(0xff800000) ? 0.0f : above;
          const float kept = expf(top - origin), added = expf(high - origin);
          sum = sum * kept + part[e] * added, all = all * kept + part[64 * COLUMNS + 1] * added, top = above;
        } else {
          sum += part[e];
        }
      }
      y[(i64)row * E + e] = SOFTMAX ? sum / all : sum;
    }
  }
}
"""
