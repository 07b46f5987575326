"""CUDA C++ for operands of Hopper's products in shared memory: scaled, and split into two halves of 11 bits.

An operand lies in blocks of 8 columns: 16 bytes for each of its rows, one below the other. That is what `wgmma` calls
K-major without a swizzle; ldmatrix and stmatrix reach 8 rows of a block without conflicts of banks.
"""

from __future__ import annotations

# Bytes of 8 columns of a gate's weights for 64 units, with room: stores into four such blocks meet different banks.
BLOCK = 64 * 16 + 32

OPERANDS = r"""
// Of each half the larger size, as bits, which are in the order of the sizes; whether one of them is infinite or nan.
__device__ __forceinline__ u32 larger(u32 a, u32 b) {
  asm("max.u16x2 %0, %0, %1;" : "+r"(a) : "r"(b & 0x7fff7fff));
  return a;
}
__device__ __forceinline__ bool not_finite(u32 a) { return (a & 0xffff) >= 0x7c00 || a >> 16 >= 0x7c00; }

// Eight numbers, scaled and split, into a row of 16 bytes each.
__device__ __forceinline__ void split(char* high, char* low, const float4& a, const float4& b, float scale) {
  const uint2 w = halves(a.x * scale, a.y * scale), x = halves(a.z * scale, a.w * scale);
  const uint2 y = halves(b.x * scale, b.y * scale), z = halves(b.z * scale, b.w * scale);
  *(uint4*)high = make_uint4(w.x, x.x, y.x, z.x);
  *(uint4*)low = make_uint4(w.y, x.y, y.y, z.y);
}

__device__ __forceinline__ u32 size(const float4& a) {
  return max(max(size(a.x), size(a.y)), max(size(a.z), size(a.w)));
}
__device__ __forceinline__ float most_of(const float4& a) {
  return fmaxf(fmaxf(fabsf(a.x), fabsf(a.y)), fmaxf(fabsf(a.z), fabsf(a.w)));
}

// What the tensor cores are told of an operand: where it begins, bytes from 8 columns to the next 8.
__device__ __forceinline__ u64 described(const void* at, int line) {
  return (u64)(address(at) >> 4 & 0x3fff) | (u64)(line >> 4) << 16 | (u64)(128 >> 4) << 32;
}

// Weights [3 H, WIDTH] of 64 units. A warp has 16 of a gate; eight lanes read 128 bytes of a row.
template <int BY_16, int WIDTH>
__device__ __forceinline__ void fetch_weights(float4 (&x)[4][(BY_16 + 1) / 2], const float* w, int unit) {
  const int lane = threadIdx.x & 31, g = threadIdx.x >> 7;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < (BY_16 + 1) / 2; j++) {
      const int u = unit + 4 * i + lane / 8;
      x[i][j] = four(w + (g * H + u) * WIDTH, u < H ? 32 * j + lane % 8 * 4 : WIDTH, WIDTH);
    }
}

// The same, scaled and split: [3][high, low][columns / 8] of BLOCK. Infinite ones do not count for the scale.
template <int BY_16>
__device__ __forceinline__ void split_weights(char* to, float* undone, const float4 (&x)[4][(BY_16 + 1) / 2]) {
  constexpr int BY_32 = (BY_16 + 1) / 2;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, g = threadIdx.x >> 7;
  const int row = lane / 8, column = lane % 8 * 4;
  float top = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < BY_32; j++) top = fmaxf(top, most_of(x[i][j]));
  u32 most = warp_max(__float_as_uint(top));
  if (most == 0x7f800000) {
    most = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < BY_32; j++) most = max(most, size(x[i][j]));
    most = warp_max(most);
  }
  const float scale = scale_for(most);
  to += 4 * g * BY_16 * BLOCK + column / 8 * BLOCK + (warp * 16 + row) * 16 + lane % 2 * 8;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < BY_32; j++) {
      if (32 * j + 32 > 16 * BY_16 && column >= 16) continue;
      const uint2 a = halves(x[i][j].x * scale, x[i][j].y * scale), b = halves(x[i][j].z * scale, x[i][j].w * scale);
      char* const at = to + j * 4 * BLOCK + i * 64;
      *(uint2*)at = make_uint2(a.x, b.x);
      *(uint2*)(at + 2 * BY_16 * BLOCK) = make_uint2(a.y, b.y);
    }
  if (lane == 0) undone[g * 4 + warp] = inverse(scale);
}
"""
