"""The CUDA C++ of embedding_bags_staged: what its macros mean stands there, where they are set."""

from .source_rows import ROWS

SOURCE = (
    ROWS
    + r"""
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
  int rows, width, units, all;  // units of bags (EVEN: elements from row to row of ids), of single and dense rows too
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
#if EVEN  // where ids lie needs no record: both are on their way at once
  i64 at = BEGIN + (i64)first * NEXT + (i64)r * given.units;
#else
  i64 at = (record[FIRST] & 0xffffffff) + r * unit.step;
#endif
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
)
