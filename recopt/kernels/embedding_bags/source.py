"""The CUDA C++ of embedding_bags_staged: what its macros mean stands there, where they are set."""

SOURCE = r"""
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

// What stands in a record, int64 each: see _unit.
enum { TABLE, HEIGHT, STRIDE, LANES, SLICE, SLOT, FIRST, COUNT, COLUMN, SCALE, FIELDS };
#define ITEM (TYPE == 0 ? 4 : 2)
#define VALUES (16 / ITEM)
#define HELD (32 * CHUNKS)

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

__device__ __forceinline__ uint4 read_row(const char* base, u32 offset) {
  uint4 x;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(base + (u64)offset * 16));
  return x;
}

__device__ __forceinline__ void read_quad(uint4* x, const char* base, const u32* offsets) {
  uint4 at = *(const uint4*)offsets;
  x[0] = read_row(base, at.x);
  x[1] = read_row(base, at.y);
  x[2] = read_row(base, at.z);
  x[3] = read_row(base, at.w);
}

__device__ __forceinline__ void add(float (&sum)[VALUES], uint4 x) {
  u32 words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int k = 0; k < 4; k++) {
#if TYPE == 0
    sum[k] += __uint_as_float(words[k]);
#elif TYPE == 1
    float low, high;
    asm("{.reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
        : "=f"(low), "=f"(high) : "r"(words[k]));
    sum[2 * k] += low;
    sum[2 * k + 1] += high;
#else
    sum[2 * k] += __uint_as_float(words[k] << 16);
    sum[2 * k + 1] += __uint_as_float(words[k] & 0xffff0000u);
#endif
  }
}

__device__ __forceinline__ void write(char* at, const float (&sum)[VALUES], float scale) {
#if OUT == 0
#pragma unroll
  for (int k = 0; k < VALUES; k += 4)
    __stcs((float4*)at + k / 4,
           make_float4(sum[k] * scale, sum[k + 1] * scale, sum[k + 2] * scale, sum[k + 3] * scale));
#else
  u32 words[VALUES / 2];
#pragma unroll
  for (int k = 0; k < VALUES; k += 2) {
    float low = sum[k] * scale, high = sum[k + 1] * scale;
#if OUT == 1
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(words[k / 2]) : "f"(high), "f"(low));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(words[k / 2]) : "f"(high), "f"(low));
#endif
  }
#pragma unroll
  for (int k = 0; k < VALUES / 2; k += 2) __stcs((uint2*)at + k / 2, make_uint2(words[k], words[k + 1]));
#endif
}

// Where one slice of a table lies, and how many ids a bag has.
struct Unit {
  const char* table;
  u64 height;
  i64 step, pitch;
  u32 stride;
  int slice, count;
  float scale;
};

__device__ __forceinline__ void fetch(IDS (&next)[CHUNKS], const IDS* ids, int count) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int k = 0; k < CHUNKS; k++) next[k] = lane + 32 * k < count ? read_id(ids + lane + 32 * k) : (IDS)0;
}

__device__ __forceinline__ void check(bool bad) {
#if CHECK
  if (__any_sync(~0u, bad)) __assertfail("embedding_bags: an id is not in its table", "", 0, "", 1);
#endif
}

// Bags of rows of L * 16 bytes, one after the other; ids come while the rows before them do.
template <int L>
__device__ __forceinline__ void bags_of(const Unit& unit, const IDS* ids, char* to, int bags, u32* held) {
  constexpr int ROWS = 32 / L, QUAD = 4 * ROWS, STEP = QUAD * QUADS;
  constexpr int REST = 4 * TAIL < (MOST + ROWS - 1) / ROWS ? 4 * TAIL : (MOST + ROWS - 1) / ROWS;
  int lane = threadIdx.x & 31, count = unit.count;
  const char* base = unit.table + (unit.slice * L + lane % L) * 16;
  to += (unit.slice * L + lane % L) * VALUES * (OUT == 0 ? 4 : 2);
  IDS next[CHUNKS];
  fetch(next, ids, count);
#pragma unroll 1
  for (int b = 0; b < (BAGS == 1 ? 1 : bags); b++) {
    float sum[VALUES];
#pragma unroll
    for (int k = 0; k < VALUES; k++) sum[k] = 0.0f;
#pragma unroll 1
    for (int first = 0; first < (MOST > HELD ? count : 1); first += HELD) {
      int here = count - first < HELD ? count - first : HELD;
      if (b || first) __syncwarp();
      bool bad = false;
#pragma unroll
      for (int k = 0; k < CHUNKS; k++) {
        bad |= lane + 32 * k < here && (u64)(i64)next[k] >= unit.height;
        held[lane + 32 * k] = (u32)next[k] * unit.stride;
      }
      check(bad);
      __syncwarp();
      if (MOST > HELD && first + HELD < count) {
        fetch(next, ids + first + HELD, count - first - HELD);
      } else if (BAGS > 1 && b + 1 < bags) {
        ids += unit.step;
        fetch(next, ids, count);
      }
      const u32* own = held + lane / L * 4;
      int n = 0;
#pragma unroll 1
      for (; MOST >= STEP && n + STEP <= here; n += STEP) {
        uint4 x[4 * QUADS];
#pragma unroll
        for (int j = 0; j < QUADS; j++) read_quad(x + 4 * j, base, own + n + j * QUAD);
#pragma unroll
        for (int j = 0; j < 4 * QUADS; j++) add(sum, x[j]);
      }
#pragma unroll 1
      for (; n < here; n += REST * ROWS) {
        uint4 x[REST];
#pragma unroll
        for (int j = 0; j < REST; j++) {
          int k = n + j * ROWS + lane / L;
          x[j] = make_uint4(0, 0, 0, 0);
          if (k < here) x[j] = read_row(base, held[k]);
        }
#pragma unroll
        for (int j = 0; j < REST; j++) add(sum, x[j]);
      }
    }
#pragma unroll
    for (int m = L; m < 32; m <<= 1)
#pragma unroll
      for (int k = 0; k < VALUES; k++) sum[k] += __shfl_xor_sync(~0u, sum[k], m);
    if (lane < L) write(to, sum, unit.scale);
    to += unit.pitch;
  }
}

// Single rows of L * 16 bytes, of as many bags as a warp has threads.
template <int L>
__device__ __forceinline__ void rows_of(const Unit& unit, const IDS* ids, char* to, int bags, u32* held) {
  constexpr int ROWS = 32 / L, ONCE = L < 4 * QUADS ? L : 4 * QUADS;
  int lane = threadIdx.x & 31;
  const char* base = unit.table + (unit.slice * L + lane % L) * 16;
  to += (unit.slice * L + lane % L) * VALUES * (OUT == 0 ? 4 : 2);
  IDS id = lane < bags ? read_id(ids + lane * unit.step) : (IDS)0;
  check(lane < bags && (u64)(i64)id >= unit.height);
  held[lane] = (u32)id * unit.stride;
  __syncwarp();
#pragma unroll 1
  for (int n = lane / L; n < 32; n += ROWS * ONCE) {
    uint4 x[ONCE];
#pragma unroll
    for (int j = 0; j < ONCE; j++)
      if (n + j * ROWS < bags) x[j] = read_row(base, held[n + j * ROWS]);
#pragma unroll
    for (int j = 0; j < ONCE; j++) {
      float sum[VALUES];
#pragma unroll
      for (int k = 0; k < VALUES; k++) sum[k] = 0.0f;
      add(sum, x[j]);
      if (n + j * ROWS < bags) write(to + (n + j * ROWS) * unit.pitch, sum, unit.scale);
    }
  }
}

struct Arguments {  // as in the launcher
  const i64* records;
  const void* dynamic;
  char* out;
  int rows, width, units;
};

extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) bags(const Arguments given) {
  __shared__ __align__(16) u32 held[WARPS][HELD];
  // A program makes bags of one unit; those of single rows come last.
  u32 block = blockIdx.x, each = WARPS * BAGS, blocks = (given.rows + each - 1) / each, first = 0;
  bool single = false;
#if SINGLES
  single = block >= given.units * blocks;
  if (single) {
    block -= given.units * blocks;
    first = given.units;
    each = WARPS * 32;
    blocks = (given.rows + each - 1) / each;
  }
#endif
  const i64* __restrict__ record = given.records + (i64)(first + block / blocks) * FIELDS;
  int warp = threadIdx.x >> 5, r = block % blocks * each + warp * (each / WARPS), left = given.rows - r;
  if (left <= 0) return;
  Unit unit = {(const char*)record[TABLE], (u64)record[HEIGHT], record[FIRST] >> 32,
               given.width * (OUT == 0 ? 4ll : 2ll), (u32)record[STRIDE], (int)record[SLICE], (int)record[COUNT],
               __int_as_float((int)record[SCALE])};
  int lanes = (int)record[LANES];
  i64 at = (record[FIRST] & 0xffffffff) + r * unit.step;
#if !DIRECT
  i64 slot = record[SLOT];
#endif
  char* to = given.out + r * unit.pitch + record[COLUMN] * (OUT == 0 ? 4 : 2);
#if DIRECT && AHEAD
  // Into the L2 alone, where what the kernel before still writes is seen.
  int begin = (threadIdx.x & 31) * 128, last = (unit.count - 1) * (int)sizeof(IDS);
  if (begin < last + 128) {
    const char* own = (const char*)((const IDS*)given.dynamic + at) + min(begin, last);
    asm volatile("prefetch.global.L2 [%0];" :: "l"(own));
  }
#endif
#if EARLY  // until here only constants were read: what the kernel before this one writes is not among them
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#if EARLY == 2  // where all run at once and leave no room, the next programs take the place of those that end
  asm volatile("griddepcontrol.launch_dependents;");
#endif
#if DIRECT
  const IDS* ids = (const IDS*)given.dynamic + at;
#else
  const IDS* ids = ((const IDS* const*)given.dynamic)[slot] + at;
#endif
#define WAY(L) if constexpr ((WAYS & L) != 0) if (lanes == L) bags_of<L>(unit, ids, to, min(left, BAGS), held[warp]);
#define ROW(L) if constexpr ((SINGLES & L) != 0) if (lanes == L) rows_of<L>(unit, ids, to, min(left, 32), held[warp]);
#if SINGLES
  if (single) {
    ROW(1) ROW(2) ROW(4) ROW(8) ROW(16) ROW(32)
  } else
#endif
  {
    WAY(1) WAY(2) WAY(4) WAY(8) WAY(16) WAY(32)
  }
#if EARLY == 1  // not sooner: the next programs would crowd onto the processors that have room
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
"""
