"""The launcher of ``recopt::embedding_bags`` on a GPU: plans bound once, and what one call adds to them."""

from __future__ import annotations

import math
import os
import weakref
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..devices import starts_early
from ..launching import early_options
from . import table
from .config import Config, Staged
from .known import Known, described
from .layout import Layout, Term, parse_layout
from .operands import Operands, check_operands, rows_of
from .plain import embedding_bags_torch
from .plan import make_plan, supports
from .split import MOST_ROWS, in_parts
from .staged import Launch, dtype_of, few, staged, width_of


class _Call(NamedTuple):
    """What a call adds to a plan: operands, rows of the result, those that the layout's slots number, their addresses
    as int64."""

    o: Operands
    rows: int
    dynamic: list[Tensor]
    addresses: bytes


_Run = Callable[[_Call], Tensor]
_Key = tuple[Any, ...]
_plans: dict[_Key, list[tuple[Known, _Run]]] = {}
_MAX_PLANS = 1024
_MAX_ALIKE = 32  # plans of other tables under one layout
# Up to so many addresses that change from call to call are arguments of the kernel; more go through memory.
_MAX_ARGUMENTS = 64


def embedding_bags_triton(o: Operands, text: str, config: Config | Staged | None = None) -> Tensor:
    """One launch for the whole layout. The first call with some tables and shapes binds it; later ones only launch.

    ``config`` forces a configuration; without one it is the table's. What the kernel does not know goes the plain way,
    and what the kernel in CUDA C++ does not, Triton's.
    Raises EmbeddingBagsError. An id that its table does not hold stops the device with an assertion, as in torch.
    """
    layout = parse_layout(text)
    rows = rows_of(layout, o)
    if config is None and rows <= MOST_ROWS:
        joined = in_parts(text, o, rows, embedding_bags_triton)
        if joined is not None:
            return joined
    device = (o.tables or o.dense)[0].device
    # Everything that the records and the compiled kernel depend on. A plan dies with the first of its tables, so that
    # none is another's.
    dynamic = _dynamic(layout, o)
    assumed, addresses = described(dynamic, _lengths(layout, o, rows))
    key = text, config, rows.bit_length(), assumed, tuple(d.data_ptr() % 16 for d in o.dense)
    tables = (*o.tables, *o.scales) if o.scales else o.tables
    run = next((run for known, run in _plans.get(key, ()) if known.same(tables)), None)
    if run is None:
        check_operands(layout, o)
        run = _bind(layout, o, rows, config) if supports(layout, o) else _plainly(text)
        _keep(key, tables, run)
    call = _Call(o, rows, dynamic, addresses)
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return run(call)
    return run(call)


def _keep(key: _Key, tables: Sequence[Tensor], run: _Run) -> None:
    if len(_plans) >= _MAX_PLANS:
        _plans.clear()
    known = Known(tables)
    _plans[key] = [*_plans.get(key, [])[1 - _MAX_ALIKE :], (known, run)]
    for t in tables:
        weakref.finalize(t, _forget, key, known)


def _forget(key: _Key, known: Known) -> None:
    kept = [plan for plan in _plans.pop(key, ()) if plan[0] is not known]
    if kept:
        _plans[key] = kept


def _dynamic(layout: Layout, o: Operands) -> list[Tensor]:
    """The operands that the layout's slots number: all of them, as a rule."""
    every = [*o.ids, *o.offsets, *o.weights, *o.dense]
    return every if len(every) == len(layout.slots) else [getattr(o, which)[n] for which, n in layout.slots]


def _lengths(layout: Layout, o: Operands, rows: int) -> array[int]:
    """The rows that each of them is compared with: the result's, or those of the flat ids that it lies along."""
    lengths = array("q", [rows]) * len(layout.slots)
    if layout.flat:
        for n, slot in enumerate(layout.slots):
            if slot in layout.flat:
                lengths[n] = o.ids[layout.flat[slot]].shape[0]
    return lengths


def _plainly(text: str) -> _Run:
    return lambda call: embedding_bags_torch(*call.o, text)


def choose_config(layout: Layout, o: Operands, rows: int) -> Config:
    """The measured choice for the shape nearest to the term that reads most: its type, width, bag and batch."""
    return table.CHOICES[_nearest(layout, o, rows)]


def _nearest(layout: Layout, o: Operands, rows: int) -> tuple[int, int, int, int]:
    def read(t: Term) -> tuple[int, int, int]:
        stored = o.tables[t.source]
        count = 1 if t.pool == "row" or t.lookup else t.count or 32
        return count * stored.shape[1] * stored.dtype.itemsize, count, stored.shape[1]

    found = max((read(t) for t in layout.lookups), default=(0, 1, 64))
    item = found[0] // max(1, found[1] * found[2]) or 4
    here = (item, found[2], found[1], rows)
    return min(table.CHOICES, key=lambda shape: _distance(shape, here))


def _distance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    # A single row is another kernel than a bag, whatever the rest.
    alike = (a[2] == 1) == (b[2] == 1)
    return sum(abs(math.log(max(x, 1) / max(y, 1))) for x, y in zip(a, b, strict=True)) + (0.0 if alike else 100.0)


def _bind(layout: Layout, o: Operands, rows: int, config: Config | Staged | None) -> _Run:
    shape = _nearest(layout, o, rows)
    way = table.STAGED.get(shape, {}).get(layout.hint) if config is None else config
    if isinstance(way, Staged):
        launch = staged(layout, o, way) if (o.tables or o.dense)[0].is_cuda else None
        if launch is not None:
            return _bind_staged(layout, o, launch)
    return _bind_triton(layout, o, rows, config if isinstance(config, Config) else table.CHOICES[shape])


def _bind_staged(layout: Layout, o: Operands, launch: Launch) -> _Run:
    device = o.tables[0].device
    width, dtype = width_of(layout, o), dtype_of(layout, o)
    addresses = _Addresses(device) if len(layout.slots) > 1 and not few(layout) else None

    def run(call: _Call) -> Tensor:
        out = torch.empty((call.rows, width), dtype=dtype, device=device)
        if call.rows and addresses is not None:
            launch(out, addresses.of(call.addresses))
        elif call.rows:
            launch(out, call.addresses if few(layout) else call.dynamic[0])
        return out

    return run


def _bind_triton(layout: Layout, o: Operands, rows: int, config: Config) -> _Run:
    from .kernels import bags_kernel

    plan = make_plan(layout, o, rows, config)
    check = os.environ.get("RECOPT_UNCHECKED_IDS") != "1"
    bags = [c[0] for c in plan.classes]
    device = plan.records.device
    options: dict[str, Any] = {"num_warps": config.warps, "debug": check, "sanitize_overflow": False}
    options |= {"maxnreg": config.registers} if config.registers else {}
    addresses = _Addresses(device) if len(layout.slots) > _MAX_ARGUMENTS else None
    early = config.early and starts_early(device)
    options |= early_options(early)
    constants = (plan.classes, (addresses is not None, check, early))
    runners: dict[int, Any] = {}

    def run(call: _Call) -> Tensor:
        rows = call.rows
        out = torch.empty((rows, plan.width), dtype=plan.dtype, device=device)
        if rows == 0 or plan.width == 0:
            return out
        dynamic = tuple(call.dynamic) if addresses is None else (addresses.of(call.addresses),)
        sizes = tuple([call.o.ids[n].shape[0] for n in plan.sizes]) or (0,)
        args = (out, plan.records, dynamic, sizes, plan.counts, rows, plan.width, *constants)
        runner = runners.get(rows)
        if runner is not None:
            runner(*args)
            return out
        blocks = [-(-rows // b) for b in bags]
        grid = (blocks[0], plan.counts[0], 1)
        if len(bags) > 1:
            grid = (sum(n * b for n, b in zip(plan.counts, blocks, strict=True)), 1, 1)
        compiled = bags_kernel[grid](*args, **options)
        if compiled is not None:  # the interpreter compiles nothing
            runners[rows] = compiled[grid]
        return out

    return run


class _Addresses:
    """Addresses of many operands in device memory, copied there when they change; spare ones serve captured graphs."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.known: dict[tuple[bytes, int], tuple[Tensor, Tensor]] = {}
        self.captured: list[tuple[Tensor, Tensor]] = []
        self.spare: list[Tensor] = []

    def of(self, addresses: bytes) -> Tensor:
        """The addresses, int64 each, as a tensor that is valid on the current stream."""
        if self.device.type != "cuda":
            return _words(addresses)
        key = (addresses, torch.cuda.current_stream(self.device).cuda_stream)
        capturing = torch.cuda.is_current_stream_capturing()
        if not capturing and key in self.known:
            return self.known[key][1]
        words = _words(addresses)
        # Pinned memory cannot be had while a graph is captured, which moreover reads it at every replay.
        if capturing:
            staged = self.spare.pop()
        else:
            while len(self.spare) < 8:
                self.spare.append(torch.empty(len(words), dtype=torch.int64, pin_memory=True))
            staged = torch.empty(len(words), dtype=torch.int64, pin_memory=True)
        staged.copy_(words)
        found = staged, staged.to(self.device, non_blocking=True)
        if capturing:
            self.captured.append(found)
        else:
            if len(self.known) >= 256:
                torch.cuda.current_stream(self.device).synchronize()  # no copy still reads what is let go
                self.known.clear()
            self.known[key] = found
        return found[1]


def _words(addresses: bytes) -> Tensor:
    return torch.frombuffer(bytearray(addresses), dtype=torch.int64)
