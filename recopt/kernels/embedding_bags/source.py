"""The CUDA C++ of embedding_bags_staged: what its macros mean stands there, where they are set."""

SOURCE = r"""
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

__device__ __forceinline__ void fetch(IDS (&next)[CHUNKS], const IDS* ids, int count) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int k = 0; k < CHUNKS; k++) next[k] = lane + 32 * k < count ? read_id(ids + lane + 32 * k) : (IDS)0;
}

__device__ __forceinline__ void check(bool bad) {
#if CHECK
  if (__builtin_expect(FLAT ? bad : __any_sync(~0u, bad), 0))
    __assertfail("embedding_bags: an id is not in its table", "", 0, "", 1);
#endif
}

// Bags of rows of L parts, one after the other; ids come while the rows before them do.
template <int L>
__device__ __forceinline__ void bags_of(const Unit& unit, const IDS* ids, char* to, int bags, u32* held) {
  constexpr int ROWS = 32 / L, QUAD = 4 * ROWS, STEP = QUAD * QUADS;
  constexpr int REST = 4 * TAIL < (MOST + ROWS - 1) / ROWS ? 4 * TAIL : (MOST + ROWS - 1) / ROWS;
  int lane = threadIdx.x & 31, count = unit.count;
  const char* base = unit.table + (unit.slice * L + lane % L) * WORD;
  to += (unit.slice * L + lane % L) * VALUES * WRITTEN;
  IDS next[CHUNKS];
  fetch(next, ids, count);
#pragma unroll 1
  for (int b = 0; b < (BAGS == 1 ? 1 : bags); b++) {
    Sum sum;
    clear(sum);
#pragma unroll 1
    for (int first = 0; first < (MOST > HELD ? count : 1); first += HELD) {
      int here = count - first < HELD ? count - first : HELD;
      if (b || first) __syncwarp();
      bool bad = false;
#pragma unroll
      for (int k = 0; k < CHUNKS; k++) {
        bad |= lane + 32 * k < here && (u64)(i64)next[k] >= unit.height;
        held[lane + 32 * k] = (u32)next[k];
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
        Part x[4 * QUADS];
#pragma unroll
        for (int j = 0; j < QUADS; j++) {
          uint4 rows = *(const uint4*)(own + n + j * QUAD);
          x[4 * j] = read_row(unit, base, rows.x);
          x[4 * j + 1] = read_row(unit, base, rows.y);
          x[4 * j + 2] = read_row(unit, base, rows.z);
          x[4 * j + 3] = read_row(unit, base, rows.w);
        }
#pragma unroll
        for (int j = 0; j < 4 * QUADS; j++) add(sum, x[j]);
      }
#pragma unroll 1
      for (; n < here; n += REST * ROWS) {
        Part x[REST];
#pragma unroll
        for (int j = 0; j < REST; j++) {
          int k = n + j * ROWS + lane / L;
          x[j] = Part{};
          if (k < here) x[j] = read_row(unit, base, held[k]);
        }
#pragma unroll
        for (int j = 0; j < REST; j++) add(sum, x[j]);
      }
    }
#if QUANTISED
#pragma unroll
    for (int k = 0; k < VALUES; k++) sum.values[k] += sum.biases;
#endif
    gather<16, L, VALUES>(to, sum.values, unit.scale, true);
    to += unit.pitch;
  }
}

// A row as it is: -0.0 stays what it is when it is added to -0.0.
__device__ __forceinline__ Sum single(const Part& x) {
  Sum sum;
  clear(sum, -0.0f);
  add(sum, x);
#if QUANTISED
#pragma unroll
  for (int k = 0; k < VALUES; k++) sum.values[k] += sum.biases;
#endif
  return sum;
}

// Single rows of L parts, of as many bags as a warp has threads.
template <int L>
__device__ __forceinline__ void rows_of(const Unit& unit, const IDS* ids, char* to, int bags, u32* held) {
  constexpr int ROWS = 32 / L, ONCE = L < 4 * QUADS ? L : 4 * QUADS;
  int lane = threadIdx.x & 31;
  const char* base = unit.table + (unit.slice * L + lane % L) * WORD;
  to += (unit.slice * L + lane % L) * VALUES * WRITTEN;
  IDS id = lane < bags ? read_id(ids + lane * unit.step) : (IDS)0;
  check(lane < bags && (u64)(i64)id >= unit.height);
  held[lane] = (u32)id;
  __syncwarp();
#pragma unroll 1
  for (int n = lane / L; n < 32; n += ROWS * ONCE) {
    Part x[ONCE];
#pragma unroll
    for (int j = 0; j < ONCE; j++)
      if (n + j * ROWS < bags) x[j] = read_row(unit, base, held[n + j * ROWS]);
#pragma unroll
    for (int j = 0; j < ONCE; j++) {
      if (n + j * ROWS < bags) write<VALUES>(to + (n + j * ROWS) * unit.pitch, single(x[j]).values, unit.scale);
    }
  }
}

// One part of a single row; the check of its id waits until it is on its way.
__device__ __forceinline__ void part_of(const Unit& unit, const IDS* ids, const char* base, char* to) {
  IDS id = read_id(ids);
  bool bad = (u64)(i64)id >= unit.height;
  Part x = read_row(unit, base, CHECK && bad ? 0 : (u32)id);
  check(bad);
  write<VALUES>(to, single(x).values, unit.scale);
}

// Dense columns of as many rows as a warp has threads, in parts of 16 bytes.
__device__ __forceinline__ void copy(const Unit& unit, const char* from, char* to, int lanes, int rows) {
  int lane = threadIdx.x & 31, part = (unit.slice * lanes + lane % lanes) * 16, step = 32 / lanes;
#pragma unroll 1
  for (int first = lane / lanes; first < rows; first += 4 * step) {
    uint4 x[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (first + j * step < rows) x[j] = __ldcs((const uint4*)(from + (u64)(first + j * step) * unit.apart + part));
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (first + j * step < rows) __stcs((uint4*)(to + (first + j * step) * unit.pitch + part), x[j]);
  }
}

struct Arguments {  // as in the launcher
  const i64* records;
  const void* dynamic;
  char* out;
  int rows, width, units, all;  // units of bags, those of single rows and dense columns too
#if OWN
  const IDS* own[OWN];  // where ids lie in a few tensors
#endif
};

extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) bags(const __grid_constant__ Arguments given) {
  __shared__ __align__(16) u32 held[WARPS][HELD];
  // A program makes bags of one unit; those of single rows come last. Where there is nothing else, each warp has a unit
  // of its own, so that a batch of one fills programs too: beside bags that would cost registers.
  u32 warp = threadIdx.x >> 5, first = 0;
#if EARLY == 3  // the next kernel comes as far as its own wait, whatever this one waits for
  asm volatile("griddepcontrol.launch_dependents;");
#endif
#if WAYS
  u32 block = blockIdx.x, each = WARPS * BAGS, blocks = (given.rows + each - 1) / each;
#if SINGLES || COPIES
  bool one = block >= given.units * blocks;
  if (one) {
    block -= given.units * blocks;
    first = given.units;
    each = WARPS * 32;
    blocks = (given.rows + each - 1) / each;
  }
#endif
  int r = block % blocks * each + warp * (each / WARPS);
#elif FLAT  // few bags: a thread reads one part of one row, whatever the table
  u32 block = (blockIdx.x * WARPS * 32 + threadIdx.x) / FLAT, blocks = 1;
  int r = block / given.all;
  block %= given.all;
#else
  bool one = true;
  u32 block = blockIdx.x * WARPS + warp, blocks = (given.rows + 31) / 32;
  int r = block % blocks * 32;
#endif
  int left = given.rows - r;
  first += block / blocks;
  if (left <= 0 || first >= given.all) return;
  const i64* __restrict__ record = given.records + (i64)first * FIELDS;
  Unit unit = {(const char*)record[TABLE], (const char*)record[SCALES], (u64)record[HEIGHT], record[FIRST] >> 32,
               given.width * (i64)WRITTEN, (u32)record[PITCH], (int)record[SLICE], (int)record[COUNT],
               __int_as_float((int)record[SCALE])};
  int lanes = (int)record[LANES];
  i64 at = (record[FIRST] & 0xffffffff) + r * unit.step;
#if !DIRECT
  i64 slot = record[SLOT];
#endif
  char* to = given.out + r * unit.pitch + record[COLUMN] * WRITTEN;
#if DIRECT
  const IDS* ids = (const IDS*)given.dynamic + at;
#elif OWN
  const IDS* ids = given.own[slot] + at;
#endif
#if AHEAD && (DIRECT || OWN)
  // Into the L2 alone, where what the kernel before still writes is seen.
  int begin = (threadIdx.x & 31) * 128, last = (unit.count - 1) * (int)sizeof(IDS);
  if (begin < last + 128) asm volatile("prefetch.global.L2 [%0];" :: "l"((const char*)ids + min(begin, last)));
#endif
#if FLAT && FLAT != SINGLES  // of several widths
  if (threadIdx.x % FLAT >= lanes) return;
#endif
#if FLAT
  int part = unit.slice * lanes + threadIdx.x % FLAT;
  const char* base = unit.table + part * WORD;
  to += part * VALUES * WRITTEN;
  asm volatile("" : "+l"(base), "+l"(to));  // computed by now
#endif
#if EARLY  // until here only constants were read: what the kernel before this one writes is not among them
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#if EARLY == 2  // where all run at once and leave no room, the next programs take the place of those that end
  asm volatile("griddepcontrol.launch_dependents;");
#endif
#if !DIRECT && !OWN
  const IDS* ids = ((const IDS* const*)given.dynamic)[slot] + at;
#endif
#define WAY(L) if constexpr ((WAYS & L) != 0) if (lanes == L) bags_of<L>(unit, ids, to, min(left, BAGS), held[warp]);
#define ROW(L) if constexpr ((SINGLES & L) != 0) if (lanes == L) rows_of<L>(unit, ids, to, min(left, 32), held[warp]);
#if COPIES
  if (first >= given.all - COPIES) {
    copy(unit, (const char*)ids + (u64)r * unit.apart, to, lanes, min(left, 32));
  } else
#endif
#if FLAT
  part_of(unit, ids, base, to);
#elif SINGLES
  if (one) {
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
