"""Plain sums of bags on a GPU, with single rows and dense columns, in CUDA C++: what Triton cannot say costs a quarter.

A warp makes one bag, or a few in turn. Its ids are read side by side, checked once, and put into shared memory as
offsets of rows, four of which one load then hands to every thread: in Triton every thread reads and checks every id of
its own. Programs start in the order of the tables, few at a time, so that rows that are read again are still in the L2.
A warp that makes several short bags reads the ids of the next while the rows of one are on their way; long bags are
better made one by one, since the last to start are what the launch waits for. Of single rows that are few enough to be
read at once a thread reads one part: what a launch of one bag takes is two loads, and nothing must stand between them.

Rows wider than a slice are read slice by slice, one table's slice after the other: a narrow part of a large table fits
the L2. How much of a row a slice is, how many rows a thread has under way and how many warps a processor holds are
tuned: more of either hides more of the latency, and spreads what is in use over more tables.

The source, embedding_bags_source, is compiled by NVRTC through torch, at the first call. Where that cannot be had
(torch finds no CUDA toolkit), and for every other layout, Triton's kernel does the work: see ``staged``.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import struct
from typing import Any, NamedTuple

import torch

from ..devices import starts_early
from ..launching import BESIDE, LaunchConfig, driver
from .config import Staged
from .layout import Layout, Term
from .operands import Operands, check_operands, result_dtype, rows_of
from .source import SOURCE

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3, torch.int8: 4}
_HELD = 160  # ids of a bag that are held at once
_FEW = 8  # addresses that are arguments of the kernel; more go through memory
_THREADS = 1 << 18  # what 132 processors run at once
_CARVEOUT = 9  # CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
_HEAD = struct.Struct("QQQiiii")  # the argument of the kernel, before addresses of a few tensors
_One = ctypes.c_char_p * 1


class Launch(NamedTuple):
    """A compiled kernel with its records; called with what changes from call to call."""

    kernel: Any
    records: torch.Tensor
    units: int
    singles: int  # units of single rows and of dense columns
    warps: int
    bags: int
    early: bool
    flat: int = 0  # threads a single row, where a thread has one part of one row
    stride: int = 0  # of ids, where the kernel finds them without its records

    def __call__(self, out: torch.Tensor, dynamic: torch.Tensor | bytes) -> None:
        """Fill out [R, W] from ids, or from the addresses of several tensors of ids: those of a few as they are. Raises
        RuntimeError where the driver refuses."""
        rows, width = out.shape
        ids, own = (0, dynamic) if isinstance(dynamic, bytes) else (dynamic.data_ptr(), b"")
        units = self.stride or self.units, self.units + self.singles
        given = _HEAD.pack(self.records.data_ptr(), ids, out.data_ptr(), rows, width, *units) + own
        if self.units:
            programs = self.units * -(-rows // (self.warps * self.bags)) + self.singles * -(-rows // (self.warps * 32))
        elif self.flat:
            programs = -(-self.singles * rows * self.flat // (32 * self.warps))
        else:
            programs = -(-self.singles * -(-rows // 32) // self.warps)
        launch = _launch_config(programs, 32 * self.warps, out.get_device(), self.early)
        status = driver().cuLaunchKernelEx(ctypes.byref(launch), self.kernel.func, _One(given), None)
        if status:
            raise RuntimeError(f"embedding_bags: the launch failed with CUDA's error {status}")


def _launch_config(programs: int, threads: int, device: int, early: bool) -> LaunchConfig:
    """The launch on a device's current stream: the one made before for the same, which nobody writes to."""
    return _made_config(programs, threads, torch._C._cuda_getCurrentRawStream(device), early)


@functools.lru_cache(maxsize=1024)
def _made_config(programs: int, threads: int, stream: int, early: bool) -> LaunchConfig:
    grid, block = (programs, 1, 1), (threads, 1, 1)
    return LaunchConfig(grid, block, 0, stream, ctypes.pointer(BESIDE), int(early))


def few(layout: Layout) -> bool:
    """Whether ids lie in several tensors, but so few that their addresses are arguments: in memory they would have to
    be copied there, which a captured graph does at every replay."""
    return 1 < len(layout.slots) <= _FEW


def eligible(layout: Layout, o: Operands) -> bool:
    """Whether every piece is a row, or the sum or mean of one bag of fixed length, of floats or of 8 bits, in rows of
    whole words of 16 bytes that are 1, 2, 4 .. 32 parts, or dense columns, in whole words of the result's type."""
    if not layout.lookups or any(len(piece) > 1 for piece in layout.pieces):
        return False
    dtype = dtype_of(layout, o)
    if not all(_dense(t, o, dtype) if t.pool == "dense" else _plain(t, o) for t in layout.terms):
        return False
    ids = [o.ids[t.ids] for t in layout.lookups]
    part = _part(layout, o)
    parts = [o.tables[t.source].shape[1] * o.tables[t.source].dtype.itemsize // part for t in layout.lookups]
    return (
        len({i.dtype for i in ids}) == 1
        and len({o.tables[t.source].dtype for t in layout.lookups}) == 1
        and width_of(layout, o) * dtype.itemsize % 16 == 0
        and all(n & (n - 1) == 0 and 1 <= n <= 32 for n in parts)
        and len({s.dtype for s in o.scales}) <= 1
        and all(s.data_ptr() % (2 * s.itemsize) == 0 for s in o.scales)
        and max(i.stride(0) * max(1, i.shape[0]) for i in ids) < 1 << 31
    )


def dtype_of(layout: Layout, o: Operands) -> torch.dtype:
    """The result's type."""
    return result_dtype(layout, [t.dtype for t in o.tables], [x.dtype for x in o.dense])


def width_of(layout: Layout, o: Operands) -> int:
    """Columns of the result."""
    return sum(layout.widths([t.shape[1] for t in o.tables], [x.shape[1] if x.dim() > 1 else 1 for x in o.dense]))


def _dense(t: Term, o: Operands, dtype: torch.dtype) -> bool:
    x = o.dense[t.source]
    pitch = x.stride(0) * x.itemsize
    words = x.dim() == 2 and x.stride(1) == 1 and x.shape[1] * x.itemsize % 16 == 0
    return not t.every and words and x.dtype == dtype and x.data_ptr() % 16 == pitch % 16 == 0 and pitch < 1 << 32


def _plain(t: Term, o: Operands) -> bool:
    if (
        not ((t.pool == "sum" and t.count) or (t.pool == "row" and t.count == 1))
        or t.bits == 4
        or t.ragged
        or t.lengths is not None
        or t.weights is not None
        or t.pad is not None
    ):
        return False
    if t.wide or t.inside or t.over is not None:
        return False
    table, ids = o.tables[t.source], o.ids[t.ids]
    item = table.dtype.itemsize
    return (
        not (t.modulus or t.shift or t.wraps)
        and table.dtype in _TYPES
        and (t.bits > 0) == (item == 1)
        and ids.dtype in (torch.int32, torch.int64)
        and (ids.dim() == 1 or ids.stride(1) == 1)
        and table.stride(1) == 1
        and table.data_ptr() % 16 == 0
        and table.shape[1] * item % 16 == 0
        and table.stride(0) * item % 16 == 0
        and table.shape[0] < 1 << 32
        and table.stride(0) * item < 1 << 32
    )


def staged(layout: Layout, o: Operands, config: Staged) -> Launch | None:
    """The launch of a layout bound to its tables; None where it is not of this kind, or CUDA C++ cannot be compiled,
    or a flat one is asked for and there is more than single rows, or more of them than threads run at once.

    Raises EmbeddingBagsError where the operands do not fit.
    """
    check_operands(layout, o)
    if not eligible(layout, o):
        return None
    units: list[list[int]] = []
    rows: list[list[int]] = []
    dense: list[list[int]] = []
    column, ways, singles = 0, 0, 0
    slots = {slot: n for n, slot in enumerate(layout.slots)}
    part = _part(layout, o)
    for t in layout.terms:
        if t.pool == "dense":
            dense += _copies(o.dense[t.source], slots["dense", t.source], column)
            column += o.dense[t.source].shape[1]
            continue
        table = o.tables[t.source]
        words = table.shape[1] * table.dtype.itemsize // part
        lanes = min(words, config.slice // part)
        scales = o.scales[layout.quantised[t.source]].data_ptr() if t.bits else 0
        slices = [_unit(t, o, slots["ids", t.ids], lanes, n, column, scales) for n in range(words // lanes)]
        if t.count == 1:
            rows, singles = rows + slices, singles | lanes
        else:
            units, ways = units + slices, ways | lanes
        column += table.shape[1]
    longest = max(t.count for t in layout.lookups)
    first = layout.lookups[0]
    table, ids = o.tables[first.source], o.ids[first.ids]
    flat = 1 << max(0, singles.bit_length() - 1) if config.flat else 0  # parts of the widest
    if flat and (units or dense or flat * len(rows) * rows_of(layout, o) > _THREADS):
        return None
    starts = [t.first for t in layout.lookups]
    gap = starts[-1] - starts[-2] if len(starts) > 1 else 0
    even = len(starts) == len(rows) and starts == [starts[0] + n * gap for n in range(len(rows))]
    even = even and flat > 0 and len(slots) == 1
    early = config.early if starts_early(table.device) else 0
    options = {
        "TYPE": _TYPES[table.dtype], "WORD": part, "PASS_BY": int(config.pass_by),
        "SCALED": max((s.itemsize for s in o.scales), default=4),
        "OUT": _TYPES[dtype_of(layout, o)],
        "IDS": "int" if ids.dtype == torch.int32 else "i64",
        "CHUNKS": -(-min(longest, _HELD) // 32),
        "AHEAD": int(config.ahead), "WARPS": config.warps, "QUADS": config.quads, "BLOCKS": config.blocks,
        "BAGS": config.bags, "MOST": min(longest, _HELD + 1),
        "DIRECT": int(len(layout.slots) == 1), "OWN": len(layout.slots) if few(layout) else 0, "EARLY": int(early),
        "CHECK": int(os.environ.get("RECOPT_UNCHECKED_IDS") != "1"), "WAYS": ways, "SINGLES": singles,
        "COPIES": len(dense), "FLAT": flat, "EVEN": int(even), "BEGIN": starts[0] * even, "NEXT": gap * even,
        # What is left of a short bag is read at once: a long one has less left than it costs.
        "TAIL": config.quads if longest < 64 else 1,
    }  # fmt: skip
    kernel = _compile(table.device.index, tuple(f"-D{name}={value}" for name, value in options.items()))
    if kernel is None:
        return None
    records = torch.tensor(units + rows + dense, dtype=torch.int64).to(table.device)
    stride = ids.stride(0) if even else 0
    return Launch(
        kernel, records, len(units), len(rows) + len(dense), config.warps, config.bags, bool(early), flat, stride
    )


def _part(layout: Layout, o: Operands) -> int:
    """Bytes of a row that a thread reads: fewer of short quantised rows, so that fewer sums meet at the end."""
    tables = [o.tables[t.source] for t in layout.lookups]
    widest = max(t.shape[1] for t in tables) if all(t.dtype.itemsize == 1 for t in tables) else 128
    return 16 if widest >= 128 else 8 if widest > 32 else 4


def _copies(x: torch.Tensor, slot: int, column: int) -> list[list[int]]:
    """The records of dense columns: slices of as many words of 16 bytes as a warp reads of a row."""
    words = x.shape[1] * x.itemsize // 16
    lanes = math.gcd(words, 32)
    return [[0, 0, x.stride(0) * x.itemsize, lanes, n, slot, 0, 1, column, 0, 0] for n in range(words // lanes)]


def _unit(t: Term, o: Operands, slot: int, lanes: int, n: int, column: int, scales: int) -> list[int]:
    """The record of one slice of one piece."""
    table, ids = o.tables[t.source], o.ids[t.ids]
    low, eps = t.div or (0.0, 0.0)
    scale = t.factor if t.div is None else t.factor / (max(float(t.count), low) + eps)
    bits = int(torch.tensor(scale, dtype=torch.float32).view(torch.int32))
    return [
        table.data_ptr(), table.shape[0], table.stride(0) * table.dtype.itemsize, lanes, n, slot,
        ids.stride(0) << 32 | t.first, t.count, column, bits, scales,
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
            driver().cuFuncSetAttribute(kernel.func, _CARVEOUT, 8)
    except (AttributeError, ImportError, OSError):  # another torch, no toolkit, no NVRTC
        return None
    return kernel
