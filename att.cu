#define D 64
#define E 64
#define WARPS 4
#define KEY_TILES 7
#define VECTORS 1
#define COUNT_MARKS 0
#define UNSEEN_CLEAN 0
#define UNSEEN __int_as_float(0x7fc00000)

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
__device__ __forceinline__ float mixed(float a, float b, float share) {  // b itself at a share of 1, a at 0
  return share < 0.5f ? a + share * (b - a) : b - (1.0f - share) * (b - a);
}
__device__ __forceinline__ float f_neg(float x) { return -x; }
__device__ __forceinline__ float f_abs(float x) { return fabsf(x); }
__device__ __forceinline__ float f_max(float a, float b) { return a != a || a > b ? a : b; }
__device__ __forceinline__ float f_min(float a, float b) { return a != a || a < b ? a : b; }
__device__ __forceinline__ float f_relu(float x) { return f_max(x, 0.0f); }
__device__ __forceinline__ float f_clip(float x, float lo, float hi) { return f_min(f_max(x, lo), hi); }
__device__ __forceinline__ float f_relu6(float x) { return f_clip(x, 0.0f, 6.0f); }
__device__ __forceinline__ float f_prelu(float x, float slope) { return x > 0.0f ? x : slope * x; }
__device__ __forceinline__ float f_leaky_relu(float x, float slope) { return f_prelu(x, slope); }
__device__ __forceinline__ float f_elu(float x, float a) { return x > 0.0f ? x : a * expm1f(x); }
__device__ __forceinline__ float f_silu(float x) { return x / (1.0f + expf(-x)); }
__device__ __forceinline__ float f_erf(float x) { return erff(x); }
__device__ __forceinline__ float f_gelu(float x) { return x * 0.5f * (1.0f + erff(x * 0.70710678f)); }
__device__ __forceinline__ float f_hardsigmoid(float x) { return f_clip(x + 3.0f, 0.0f, 6.0f) / 6.0f; }
__device__ __forceinline__ float f_hardswish(float x) { return x * f_clip(x + 3.0f, 0.0f, 6.0f) / 6.0f; }
__device__ __forceinline__ float f_square(float x) { return x * x; }
__device__ __forceinline__ float f_where(bool c, float a, float b) { return c ? a : b; }
__device__ __forceinline__ bool f_logical_and(bool a, bool b) { return a && b; }
__device__ __forceinline__ bool f_logical_or(bool a, bool b) { return a || b; }
__device__ __forceinline__ bool f_logical_not(bool a) { return !a; }
__device__ __forceinline__ bool f_isnan(float x) { return x != x; }


__device__ __forceinline__ u32 address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

template <int SIZE>
__device__ __forceinline__ void copy(u32 to, const float* from) {
  if constexpr (SIZE == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ u32 pack(float a, float b) {
  u32 x;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(b), "f"(a));
  return x;
}

__device__ __forceinline__ void unpack(u32 x, float& a, float& b) {
  asm("{.reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(a), "=f"(b) : "r"(x));
}

__device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 warp_max(u32 x) { return __reduce_max_sync(~0u, x); }

__device__ __forceinline__ void sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" :: "r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ float power(u32 exponent) { return __uint_as_float(exponent << 23); }
__device__ __forceinline__ float inverse(float power_of_two) {
  return power(254 - (__float_as_uint(power_of_two) >> 23));
}
__device__ __forceinline__ float scale_for(u32 most) { return power(min(268 - (most >> 23), 227)); }

// The bits of |x|, which are in the order of the numbers; 0 where it is not finite.
__device__ __forceinline__ u32 size(float x) {
  const u32 bits = __float_as_uint(x) & 0x7fffffff;
  return bits < 0x7f800000 ? bits : 0;
}

// a and b, which are scaled, as (high of both, low of both).
__device__ __forceinline__ uint2 halves(float a, float b) {
  uint2 x;
  float c, d;
  x.x = pack(a, b);
  unpack(x.x, c, d);
  x.y = pack(a - c, b - d);
  return x;
}

#define TILES(n) (((n) + 7) / 8)
#define PIECES(n) (((n) + 15) / 16)

__device__ __forceinline__ float swapped(float x, int mask) { return __shfl_xor_sync(~0u, x, mask); }
__device__ __forceinline__ u32 quad_max(u32 x) {
  x = max(x, __shfl_xor_sync(~0u, x, 1));
  return max(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += swapped(x, 1);
  return x + swapped(x, 2);
}

// Four numbers of a row from column d on; 0 from column n on.
__device__ __forceinline__ float4 four(const float* p, int d, int n) {
  if (VECTORS) return d < n ? *(const float4*)(p + d) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  return make_float4(d < n ? p[d] : 0.0f, d + 1 < n ? p[d + 1] : 0.0f, d + 2 < n ? p[d + 2] : 0.0f,
                     d + 3 < n ? p[d + 3] : 0.0f);
}

// The power of two for COUNT numbers of each lane of four. Infinite ones, which do not count, are rare.
template <int COUNT>
__device__ __forceinline__ float quad_scale(const float (&x)[COUNT]) {
  float top = 0.0f;
#pragma unroll
  for (int i = 0; i < COUNT; i++) top = fmaxf(top, fabsf(x[i]));
  u32 most = quad_max(__float_as_uint(top));
  if (__any_sync(~0u, most == 0x7f800000)) {
    most = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) most = max(most, size(x[i]));
    most = quad_max(most);
  }
  return scale_for(most);
}

__device__ __forceinline__ u32 size(const float4& x) {
  return max(max(size(x.x), size(x.y)), max(size(x.z), size(x.w)));
}

// A lane's part of 8 columns of a matrix, all pieces of 16 of it: scaled and split. What undoes the scale.
template <int COUNT>
__device__ __forceinline__ float split(uint4* to, int step, const float4 (&w)[COUNT]) {
  u32 most = 0;
#pragma unroll
  for (int s = 0; s < COUNT; s++) most = max(most, size(w[s]));
  const float scale = scale_for(quad_max(most));
#pragma unroll
  for (int s = 0; s < COUNT; s++) {
    const uint2 a = halves(w[s].x * scale, w[s].y * scale), b = halves(w[s].z * scale, w[s].w * scale);
    to[s * step] = make_uint4(a.x, a.y, b.x, b.y);
  }
  return inverse(scale);
}

// The left operand of a piece: a row's numbers at 4 columns, and those of the row 8 below.
__device__ __forceinline__ void split(
    u32 (&high)[4], u32 (&low)[4], const float4& a, const float4& b, const float (&scale)[2]) {
  const uint2 x = halves(a.x * scale[0], a.y * scale[0]), y = halves(b.x * scale[1], b.y * scale[1]);
  const uint2 z = halves(a.z * scale[0], a.w * scale[0]), w = halves(b.z * scale[1], b.w * scale[1]);
  high[0] = x.x, high[1] = y.x, high[2] = z.x, high[3] = w.x;
  low[0] = x.y, low[1] = y.y, low[2] = z.y, low[3] = w.y;
}

// Adds the product of a piece to the sums of all columns that are there, those of the low halves to the rests.
template <int COUNT>
__device__ __forceinline__ void product(float (&whole)[COUNT][4], float (&rest)[COUNT][4], const u32 (&high)[4],
                                        const u32 (&low)[4], const uint4* w, int there = COUNT) {
#pragma unroll
  for (int j = 0; j < COUNT; j++) {
    if (j >= there) continue;
    const uint4 b = w[j * 32];
    multiply(whole[j], high, b.x, b.z);
    multiply(rest[j], low, b.x, b.z);
    multiply(rest[j], high, b.y, b.w);
  }
}

// The rest of an infinite operand is nan: the whole product alone says what holds there.
__device__ __forceinline__ float together(float whole, float rest) { return whole + (rest == rest ? rest : 0.0f); }
__device__ __forceinline__ float score(float h, const float* p) { return ((0.125f) * h); }

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

extern "C" __global__ void __launch_bounds__(32 * WARPS)
attention(const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v, float* __restrict__ y,
          int inner_rows, int queries, int keys, int q_outer, int q_inner, int q_item, int k_outer, int k_inner,
          int k_item, int v_outer, int v_inner, int v_item ) {
  __shared__ uint4 split_keys[PIECES(D) * KEY_TILES * 32], split_values[PIECES(KEYS) * TILES(E) * 32];
  __shared__ float undo_keys[KEYS], undo_values[8 * TILES(E)];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, column = lane % 4 * 2;
  const i64 outer = blockIdx.x / inner_rows, inner = blockIdx.x % inner_rows;
  const int s0 = (blockIdx.y * WARPS + warp) * 16 + lane / 4;
  k += outer * k_outer + inner * k_inner, v += outer * v_outer + inner * v_inner;

  u32 high[PIECES(D)][4], low[PIECES(D)][4];
  float undo[2];
  {
    const float* const from = q + outer * q_outer + inner * q_inner;
    float4 a[PIECES(D)], b[PIECES(D)];
    u32 most = 0, more = 0;
#pragma unroll
    for (int p = 0; p < PIECES(D); p++) {
      const int d = 16 * p + 2 * column;
      a[p] = four(from + (i64)s0 * q_item, s0 < queries ? d : D, D);
      b[p] = four(from + (i64)(s0 + 8) * q_item, s0 + 8 < queries ? d : D, D);
      most = max(most, size(a[p])), more = max(more, size(b[p]));
    }
    const float scale[2] = {scale_for(quad_max(most)), scale_for(quad_max(more))};
#pragma unroll
    for (int p = 0; p < PIECES(D); p++) split(high[p], low[p], a[p], b[p], scale);
    undo[0] = inverse(scale[0]), undo[1] = inverse(scale[1]);
  }
  float total[TILES(E)][4] = {}, highest[2] = {MINUS_INFINITY, MINUS_INFINITY}, weight[2] = {};

  for (int first = 0; first < keys; first += KEYS) {
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
      weight[r] = weight[r] * kept[r] + quad_sum(sum);
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
            total[part + j][i] = fmaf(total[part + j][i], kept[i / 2], x);
          }
    }
  }

  float* const to = y + ((i64)blockIdx.x * queries + s0) * E + column;
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
            to[(i64)r * 8 * E + 8 * j + i] = blind ? UNSEEN : total[j][2 * r + i] * share;
  }
}
