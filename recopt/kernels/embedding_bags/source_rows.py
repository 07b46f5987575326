"""CUDA C++ that reads rows, adds them up and writes the sums: what is the same for bags and for single rows."""

ROWS = r"""
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

// What stands in a record, int64 each: see _unit.
enum { TABLE, HEIGHT, PITCH, LANES, SLICE, SLOT, FIRST, COUNT, COLUMN, SCALE, SCALES, FIELDS };
#define QUANTISED (TYPE >= 3)
#define ITEM (TYPE == 0 ? 4 : QUANTISED ? 1 : 2)
#define VALUES (WORD / ITEM)
#define WRITTEN (OUT == 0 ? 4 : 2)  // bytes of a value
#define HELD (32 * CHUNKS)
#if PASS_BY
#define PASS ".L1::no_allocate"
#else
#define PASS ""
#endif

__device__ __forceinline__ IDS read_id(const IDS* at) {  // each is read once: it need not push a row out of the L1
  IDS x;
  if (sizeof(IDS) == 8) {
    i64 y;
    asm volatile("ld.global.L1::no_allocate.b64 %0, [%1];" : "=l"(y) : "l"(at));
    x = (IDS)y;
  } else {
    int y;
    asm volatile("ld.global.L1::no_allocate.b32 %0, [%1];" : "=r"(y) : "l"(at));
    x = (IDS)y;
  }
  return x;
}

// What a thread reads of a row, and what the row's values are made of where it is quantised.
struct Part {
  u32 words[WORD / 4];
#if QUANTISED
  float scale, bias;
#endif
};

// Where one slice of a table lies, and how many ids a bag has.
struct Unit {
  const char* table;
  const char* scales;
  u64 height;
  i64 step, pitch;
  u32 apart;  // bytes from row to row
  int slice, count;
  float scale;
};

__device__ __forceinline__ Part read_row(const Unit& unit, const char* base, u32 row) {
  Part x;
  const char* at = base + (u64)row * unit.apart;
#if WORD == 16
  asm volatile("ld.global.nc" PASS ".v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.words[0]), "=r"(x.words[1]), "=r"(x.words[2]), "=r"(x.words[3]) : "l"(at));
#elif WORD == 8
  asm volatile("ld.global.nc" PASS ".v2.u32 {%0, %1}, [%2];" : "=r"(x.words[0]), "=r"(x.words[1]) : "l"(at));
#else
  asm volatile("ld.global.nc" PASS ".u32 %0, [%1];" : "=r"(x.words[0]) : "l"(at));
#endif
#if QUANTISED
  const char* pair = unit.scales + (u64)row * (2 * SCALED);
#if SCALED == 4
  asm volatile("ld.global.nc.v2.f32 {%0, %1}, [%2];" : "=f"(x.scale), "=f"(x.bias) : "l"(pair));
#else
  asm volatile("{.reg .f16 a, b; ld.global.nc.v2.b16 {a, b}, [%2]; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
               : "=f"(x.scale), "=f"(x.bias) : "l"(pair));
#endif
#endif
  return x;
}

// Sums of rows; of quantised ones their biases, which all columns share, apart.
struct Sum {
  float values[VALUES], biases;
};

__device__ __forceinline__ void clear(Sum& sum, float zero = 0.0f) {
#pragma unroll
  for (int k = 0; k < VALUES; k++) sum.values[k] = zero;
  sum.biases = 0.0f;
}

__device__ __forceinline__ void add(Sum& sum, const Part& x) {
  float* to = sum.values;
#pragma unroll
  for (int k = 0; k < WORD / 4; k++) {
    u32 word = x.words[k];
#if TYPE == 0
    to[k] += __uint_as_float(word);
#elif TYPE == 1
    float low, high;
    asm("{.reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
        : "=f"(low), "=f"(high) : "r"(word));
    to[2 * k] += low;
    to[2 * k + 1] += high;
#elif TYPE == 2
    to[2 * k] += __uint_as_float(word << 16);
    to[2 * k + 1] += __uint_as_float(word & 0xffff0000u);
#else
    // A byte behind 0x4b0000 is 2^23 and the byte: converting integers takes four times as long.
    if (TYPE == 4) word ^= 0x80808080u;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float value = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + j)) - (TYPE == 4 ? 8388736.0f : 8388608.0f);
      to[4 * k + j] += x.scale * value;
    }
#endif
  }
#if QUANTISED
  sum.biases += x.bias;
#endif
}

// N sums, a power of two, side by side.
template <int N>
__device__ __forceinline__ void write(char* at, const float* sum, float scale) {
#if OUT == 0
  if constexpr (N >= 4) {
#pragma unroll
    for (int k = 0; k < N; k += 4)
      __stcs((float4*)at + k / 4,
             make_float4(sum[k] * scale, sum[k + 1] * scale, sum[k + 2] * scale, sum[k + 3] * scale));
  } else if constexpr (N == 2) {
    __stcs((float2*)at, make_float2(sum[0] * scale, sum[1] * scale));
  } else {
    __stcs((float*)at, sum[0] * scale);
  }
#else
  u32 words[(N + 1) / 2];
#pragma unroll
  for (int k = 0; k < N; k += 2) {
    float low = sum[k] * scale, high = N > 1 ? sum[k + 1] * scale : 0.0f;
#if OUT == 1
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(words[k / 2]) : "f"(high), "f"(low));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(words[k / 2]) : "f"(high), "f"(low));
#endif
  }
  if constexpr (N >= 4) {
#pragma unroll
    for (int k = 0; k < N / 2; k += 2) __stcs((uint2*)at + k / 2, make_uint2(words[k], words[k + 1]));
  } else if constexpr (N == 2) {
    __stcs((u32*)at, words[0]);
  } else {
    __stcs((unsigned short*)at, (unsigned short)words[0]);
  }
#endif
}

// The sums of all rows of a warp from those of each thread, whose neighbours at M and less hold other columns: of
// two threads one takes the lower half of what they hold and one the upper, while there is more than one value.
template <int M, int L, int N>
__device__ __forceinline__ void gather(char* to, float* sum, float scale, bool writes) {
  int lane = threadIdx.x & 31;
  if constexpr (M < L) {
    if (writes) write<N>(to, sum, scale);
  } else if constexpr (N > 1) {
    bool upper = lane & M;
    float half[N / 2];
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
      float sent = upper ? sum[k] : sum[k + N / 2], kept = upper ? sum[k + N / 2] : sum[k];
      half[k] = kept + __shfl_xor_sync(~0u, sent, M);
    }
    gather<M / 2, L, N / 2>(to + (upper ? N / 2 * WRITTEN : 0), half, scale, writes);
  } else {
    float both[1] = {sum[0] + __shfl_xor_sync(~0u, sum[0], M)};
    gather<M / 2, L, 1>(to, both, scale, writes && !(lane & M));
  }
}
"""
