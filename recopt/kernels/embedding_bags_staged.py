"""Plain sums of long bags on a GPU, in CUDA C++: what Triton cannot say costs a quarter of the time there.

A warp makes one bag. Its ids are read side by side, checked once, and put into shared memory as offsets of rows, four
of which one load then hands to every thread: in Triton every thread reads and checks every id of its own. Programs
start in the order of the tables, few at a time, so that rows that are read again are still in the L2.

Rows wider than a slice are read slice by slice, one table's slice after the other: a narrow part of a large table fits
the L2. How much of a row a slice is, how many rows a thread has under way and how many warps a processor holds are
tuned: more of either hides more of the latency, and spreads what is in use over more tables.

The source is compiled by NVRTC through torch, at the first call. Where that cannot be had (torch finds no CUDA
toolkit), and for every other layout, Triton's kernel does the work: see ``staged``.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any, ClassVar, NamedTuple

import torch

from .embedding_bags_config import Staged
from .embedding_bags_layout import Layout, Term
from .embedding_bags_operands import Operands, check_operands, result_dtype

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_CARVEOUT = 9  # CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT

SOURCE = r"""
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

// What stands in a record, int64 each: see _unit.
enum { TABLE, HEIGHT, STRIDE, LANES, SLICE, SLOT, FIRST, COUNT, COLUMN, SCALE, AFTER, FIELDS };
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
  u32 stride;
  int slice, count;
  float scale;
};

// One bag of rows of L * 16 bytes.
template <int L>
__device__ __forceinline__ void bag(const Unit& unit, const IDS* ids, char* to, u32* held) {
  constexpr int ROWS = 32 / L, QUAD = 4 * ROWS;
  int lane = threadIdx.x & 31, count = unit.count;
  const char* base = unit.table + (unit.slice * L + lane % L) * 16;
  float sum[VALUES];
#pragma unroll
  for (int k = 0; k < VALUES; k++) sum[k] = 0.0f;
  for (int first = 0; first < count; first += HELD) {
    int here = count - first < HELD ? count - first : HELD;
    IDS next[CHUNKS];
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) next[k] = lane + 32 * k < here ? read_id(ids + first + lane + 32 * k) : (IDS)0;
    if (first) __syncwarp();
    bool bad = false;
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
      bad |= lane + 32 * k < here && (u64)(i64)next[k] >= unit.height;
      held[lane + 32 * k] = (u32)next[k] * unit.stride;
    }
#if CHECK
    if (__any_sync(~0u, bad)) __assertfail("embedding_bags: an id is not in its table", "", 0, "", 1);
#endif
    __syncwarp();
    const u32* own = held + lane / L * 4;
    int n = 0;
    for (; n + QUAD * QUADS <= here; n += QUAD * QUADS) {
      uint4 x[4 * QUADS];
#pragma unroll
      for (int j = 0; j < QUADS; j++) {
        uint4 at = *(const uint4*)(own + n + j * QUAD);
        x[4 * j] = read_row(base, at.x);
        x[4 * j + 1] = read_row(base, at.y);
        x[4 * j + 2] = read_row(base, at.z);
        x[4 * j + 3] = read_row(base, at.w);
      }
#pragma unroll
      for (int j = 0; j < 4 * QUADS; j++) add(sum, x[j]);
    }
    for (; n < here; n += QUAD) {
      uint4 x[4];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int k = n + j * ROWS + lane / L;
        x[j] = make_uint4(0, 0, 0, 0);
        if (k < here) x[j] = read_row(base, held[k]);
      }
#pragma unroll
      for (int j = 0; j < 4; j++) add(sum, x[j]);
    }
  }
#pragma unroll
  for (int m = L; m < 32; m <<= 1)
#pragma unroll
    for (int k = 0; k < VALUES; k++) sum[k] += __shfl_xor_sync(~0u, sum[k], m);
  if (lane < L) write(to + (unit.slice * L + lane) * VALUES * (OUT == 0 ? 4 : 2), sum, unit.scale);
}

struct Arguments {  // as in the launcher
  const i64* records;
  const void* dynamic;
  char* out;
  int rows, width;
};

extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) bags(const Arguments given) {
  __shared__ __align__(16) u32 held[WARPS][HELD];
  int warp = threadIdx.x >> 5, r = blockIdx.x * WARPS + warp;
  if (r >= given.rows) return;
  const i64* __restrict__ record = given.records + (i64)blockIdx.y * FIELDS;
  Unit unit = {(const char*)record[TABLE], (u64)record[HEIGHT], (u32)record[STRIDE],
               (int)record[SLICE], (int)record[COUNT], __int_as_float((int)record[SCALE])};
  int lanes = (int)record[LANES];
  i64 at = (record[FIRST] & 0xffffffff) + r * (record[FIRST] >> 32);
#if !DIRECT
  i64 slot = record[SLOT];
#endif
#if AHEAD
  i64 after = record[AFTER];
#endif
  char* to = given.out + ((i64)r * given.width + record[COLUMN]) * (OUT == 0 ? 4 : 2);
#if EARLY  // until here only constants were read: what the kernel before this one writes is not among them
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#if DIRECT
  const IDS* ids = (const IDS*)given.dynamic + at;
#else
  const IDS* ids = ((const IDS* const*)given.dynamic)[slot] + at;
#endif
#if AHEAD
  // The ids of the table that comes next, which the device's memory would be long in sending then.
  int ahead = (threadIdx.x & 31) * 128;
  if (ahead < after) {
    const char* next = (const char*)(ids + unit.count) + ahead;
    asm volatile("prefetch.global.L2 [%0];" :: "l"(next));
  }
#endif
#define WAY(L) if constexpr ((WAYS & L) != 0) if (lanes == L) bag<L>(unit, ids, to, held[warp]);
  WAY(2) WAY(4) WAY(8) WAY(16) WAY(32)
#if EARLY  // not sooner: the next programs would crowd onto the processors that have room
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
"""


class _Arguments(ctypes.Structure):
    """The argument of the kernel."""

    _fields_: ClassVar = [
        ("records", ctypes.c_uint64), ("dynamic", ctypes.c_uint64), ("out", ctypes.c_uint64),
        ("rows", ctypes.c_int), ("width", ctypes.c_int),
    ]  # fmt: skip


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute, of whose value of 64 bytes one number is set."""

    _fields_: ClassVar = [
        ("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_int * 15)
    ]  # fmt: skip


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_: ClassVar = [
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(_Attribute)), ("count", ctypes.c_uint),
    ]  # fmt: skip


_BESIDE = _Attribute(6, 0, 1)  # programmatic stream serialization: start while the kernel before drains


class Launch(NamedTuple):
    """A compiled kernel with its records; called with what changes from call to call."""

    kernel: Any
    records: torch.Tensor
    units: int
    warps: int
    early: bool

    def __call__(self, out: torch.Tensor, dynamic: torch.Tensor) -> None:
        """Fill out [R, W] from ids, or from the addresses of several tensors of ids. Raises RuntimeError where the
        driver refuses."""
        rows, width = out.shape
        given = _Arguments(self.records.data_ptr(), dynamic.data_ptr(), out.data_ptr(), rows, width)
        stream = torch.cuda.current_stream(out.device).cuda_stream
        grid, block = (-(-rows // self.warps), self.units, 1), (32 * self.warps, 1, 1)
        launch = _LaunchConfig(grid, block, 0, stream, ctypes.pointer(_BESIDE), int(self.early))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(given))
        status = _driver().cuLaunchKernelEx(ctypes.byref(launch), self.kernel.func, pointers, None)
        if status:
            raise RuntimeError(f"embedding_bags: the launch failed with CUDA's error {status}")


def _driver() -> Any:
    return torch.cuda._utils._get_gpu_runtime_library()


def eligible(layout: Layout, o: Operands) -> bool:
    """Whether every piece is the sum or mean of one bag of fixed length, in rows of 2, 4 .. 32 words of 16 bytes."""
    if not all(len(piece) == 1 and _plain(piece[0], o) for piece in layout.pieces):
        return False
    ids = [o.ids[t.ids] for t in layout.lookups]
    dtype = result_dtype(layout, [t.dtype for t in o.tables], [])
    widths = layout.widths([t.shape[1] for t in o.tables], [])
    return (
        len({i.dtype for i in ids}) == 1
        and len({o.tables[t.source].dtype for t in layout.lookups}) == 1
        and sum(widths) * dtype.itemsize % 16 == 0
        and max(i.stride(0) * max(1, i.shape[0]) for i in ids) < 1 << 31
    )


def _plain(t: Term, o: Operands) -> bool:
    if t.pool != "sum" or t.bits or t.ragged or t.lengths is not None or t.weights is not None or t.pad is not None:
        return False
    if t.wide or t.inside or t.over is not None:
        return False
    table, ids = o.tables[t.source], o.ids[t.ids]
    item = table.dtype.itemsize
    words = table.shape[1] * item // 16
    return (
        not (t.modulus or t.shift or t.wraps)
        and table.dtype in _TYPES
        and ids.dtype in (torch.int32, torch.int64)
        and (ids.dim() == 1 or ids.stride(1) == 1)
        and table.stride(1) == 1
        and table.data_ptr() % 16 == 0
        and table.shape[1] * item % 16 == 0
        and table.stride(0) * item % 16 == 0
        and table.shape[0] * table.stride(0) * item // 16 < 1 << 32
        and words & (words - 1) == 0
        and 2 <= words <= 32
    )


def staged(layout: Layout, o: Operands, config: Staged) -> Launch | None:
    """The launch of a layout bound to its tables; None where it is not of this kind, or CUDA C++ cannot be compiled.

    Raises EmbeddingBagsError where the operands do not fit.
    """
    check_operands(layout, o)
    if not eligible(layout, o):
        return None
    units, column, ways = [], 0, 0
    slots = {slot: n for n, slot in enumerate(layout.slots)}
    for k, t in enumerate(layout.lookups):
        table = o.tables[t.source]
        words = table.shape[1] * table.dtype.itemsize // 16
        lanes = min(words, config.slice // 16)
        after = 0 if k + 1 == len(layout.lookups) else _adjacent(t, layout.lookups[k + 1], o)
        slot = slots["ids", t.ids]
        units += [_unit(t, o, slot, lanes, n, column, 0 if n else after) for n in range(words // lanes)]
        ways |= lanes
        column += table.shape[1]
    first = layout.lookups[0]
    table, ids = o.tables[first.source], o.ids[first.ids]
    early = config.early and _is_hopper(table.device)
    options = {
        "TYPE": _TYPES[table.dtype],
        "OUT": _TYPES[result_dtype(layout, [t.dtype for t in o.tables], [])],
        "IDS": "int" if ids.dtype == torch.int32 else "i64",
        "CHUNKS": min(5, -(-max(t.count for t in layout.lookups) // 32)),
        "AHEAD": int(config.ahead), "WARPS": config.warps, "QUADS": config.quads, "BLOCKS": config.blocks,
        "DIRECT": int(len(layout.slots) == 1), "EARLY": int(early),
        "CHECK": int(os.environ.get("RECOPT_UNCHECKED_IDS") != "1"), "WAYS": ways,
    }  # fmt: skip
    kernel = _compile(table.device.index, tuple(f"-D{name}={value}" for name, value in options.items()))
    if kernel is None or len(units) > 65535:
        return None
    return Launch(kernel, torch.tensor(units, dtype=torch.int64).to(table.device), len(units), config.warps, early)


def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


def _adjacent(t: Term, following: Term, o: Operands) -> int:
    """Bytes of ids of the following term that begin where those of ``t`` end, in the same tensor."""
    alike = following.ids == t.ids and following.first == t.first + t.count
    return following.count * o.ids[t.ids].element_size() if alike else 0


def _unit(t: Term, o: Operands, slot: int, lanes: int, n: int, column: int, after: int) -> list[int]:
    """The record of one slice of one piece; ``after`` is how many bytes of ids behind its own are read next."""
    table, ids = o.tables[t.source], o.ids[t.ids]
    low, eps = t.div or (0.0, 0.0)
    scale = t.factor if t.div is None else t.factor / (max(float(t.count), low) + eps)
    bits = int(torch.tensor(scale, dtype=torch.float32).view(torch.int32))
    return [
        table.data_ptr(), table.shape[0], table.stride(0) * table.dtype.itemsize // 16, lanes, n, slot,
        ids.stride(0) << 32 | t.first, t.count, column, bits, after,
    ]  # fmt: skip


@functools.cache
def _compile(device: int, options: tuple[str, ...]) -> Any:
    """The kernel for a device; None where torch cannot compile CUDA C++ or the device is older than sm_80."""
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        with torch.cuda.device(device):
            kernel = torch.cuda._compile_kernel(SOURCE, "bags", nvcc_options=["-std=c++17", *options])
            # Little shared memory leaves the most to the L1.
            _driver().cuFuncSetAttribute(kernel.func, _CARVEOUT, 8)
    except (AttributeError, ImportError, OSError):  # another torch, no toolkit, no NVRTC
        return None
    return kernel
