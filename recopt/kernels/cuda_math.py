"""CUDA C++ that several kernels share: what a text may call, and float32 as a sum of two halves for tensor cores."""

from __future__ import annotations

import functools
import re

import torch

from .epilogue import compile_epilogue

# What the source of a kernel may call, of its own exp, sigmoid and tanh; C compiles it too, on a CPU.
PLAIN = r"""
__device__ __forceinline__ float mixed(float a, float b, float share) {  // b itself at a share of 1, a at 0
  return share * b + (1.0f - share) * a;
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
"""

FUNCTIONS = (
    r"""
typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;
typedef unsigned long long u64;

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
"""
    + PLAIN
)

PTX = r"""
__device__ __forceinline__ u32 address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

template <int SIZE>
__device__ __forceinline__ void copy(u32 to, const float* from) {
  if constexpr (SIZE == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }

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

// Arrives there, but does not wait.
__device__ __forceinline__ void signal(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" :: "r"(barrier), "r"(threads) : "memory");
}
"""

# A half reaches from 2^-24 to 2^15, so operands are scaled by powers of two, their largest into [2^14, 2^15).
HALVES = r"""
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
"""

FOUR = r"""
#define PIECES(n) (((n) + 15) / 16)

// Four numbers of a row from column d on; 0 from column n on.
__device__ __forceinline__ float4 four(const float* p, int d, int n) {
  if (VECTORS) return d < n ? *(const float4*)(p + d) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  return make_float4(d < n ? p[d] : 0.0f, d + 1 < n ? p[d + 1] : 0.0f, d + 2 < n ? p[d + 2] : 0.0f,
                     d + 3 < n ? p[d + 3] : 0.0f);
}
"""

# Operands of products on 16 rows a warp: a lane has rows lane / 4 and 8 more, and of a matrix column lane / 4 of 8.
OPERANDS = (
    FOUR
    + r"""
#define TILES(n) (((n) + 7) / 8)

__device__ __forceinline__ float swapped(float x, int mask) { return __shfl_xor_sync(~0u, x, mask); }
__device__ __forceinline__ u32 quad_max(u32 x) {
  x = max(x, __shfl_xor_sync(~0u, x, 1));
  return max(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += swapped(x, 1);
  return x + swapped(x, 2);
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

template <int COUNT>
__device__ __forceinline__ float quad_scale(const float4 (&x)[COUNT]) {
  float all[4 * COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; i++)
    all[4 * i] = x[i].x, all[4 * i + 1] = x[i].y, all[4 * i + 2] = x[i].z, all[4 * i + 3] = x[i].w;
  return quad_scale(all);
}

// A lane's part of 8 columns of a matrix, all pieces of 16 of it: scaled and split. What undoes the scale.
template <int COUNT>
__device__ __forceinline__ float split(uint4* to, int step, const float4 (&w)[COUNT]) {
  const float scale = quad_scale(w);
#pragma unroll
  for (int s = 0; s < COUNT; s++) {
    const uint2 a = halves(w[s].x * scale, w[s].y * scale), b = halves(w[s].z * scale, w[s].w * scale);
    to[s * step] = make_uint4(a.x, b.x, a.y, b.y);  // pairs, as they are multiplied: no moves
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
    multiply(whole[j], high, b.x, b.y);
    multiply(rest[j], low, b.x, b.y);
    multiply(rest[j], high, b.z, b.w);
  }
}

// The rest of an infinite operand is nan: the whole product, which then is not finite, alone says what holds there.
__device__ __forceinline__ float together(float whole, float rest) { return whole + fmaxf(rest, -3.4e38f); }
"""
)

# How the source sees a parameter of a score.
MARKS = {torch.float32: "float", torch.bool: "unsigned char", torch.uint8: "unsigned char"}
_KNOWN = set(re.findall(r"(?:float|bool) (f_\w+)\(", FUNCTIONS))


@functools.lru_cache(maxsize=256)
def cuda_text(text: str) -> str | None:
    """`text` in C++ over ``h`` and ``p[..]``; None where it calls what the source does not have."""
    source = compile_epilogue(text).triton_source
    if not set(re.findall(r"f_\w+", source)) <= _KNOWN or ".to(" in source:
        return None
    source = re.sub(r"\((-?[\d.]+(?:e[+-]?\d+)?)\)", r"(\1f)", source)
    bits = {"inf": "0x7f800000", "-inf": "0xff800000", "nan": "0x7fc00000"}
    source = re.sub(r'float\("(-?inf|nan)"\)', lambda m: f"__int_as_float({bits[m[1]]})", source)
    return re.sub(r"\bp(\d+)\b", r"p[\1]", source)
