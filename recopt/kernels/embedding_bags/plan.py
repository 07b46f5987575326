"""A layout bound to its tables: the records and the constants that the kernel of ``recopt::embedding_bags`` reads."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .config import Config
from .layout import Layout, Term
from .operands import Operands, check_operands, result_dtype

_NAMES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64", torch.int8: "int8",
    torch.uint8: "uint8", torch.int16: "int16", torch.int32: "int32", torch.int64: "int64", torch.bool: "int8",
}  # fmt: skip
_FIELDS = 28
_FEW = 4  # terms of a sum that are written one after the other in the code
Record = dict[str, int]
_ORDER = (
    "table", "height", "stride", "start", "width", "column", "ids", "ids_row", "ids_step", "ids_first", "count",
    "bounds", "size", "weights", "weights_row", "weights_step", "weights_first", "modulus", "shift", "pad", "low",
    "eps", "scales", "more", "terms", "kind", "over", "factor",
)  # fmt: skip


class Plan(NamedTuple):
    """What a launch needs besides its operands."""

    records: Tensor
    classes: tuple[tuple[Any, ...], ...]
    counts: tuple[int, ...]
    sizes: tuple[int, ...]  # flat ids whose number the kernel needs
    width: int
    dtype: torch.dtype


def supports(layout: Layout, o: Operands) -> bool:
    """Whether the kernel knows the operands' types, they are all on one device, and sizes fit its 32-bit counters."""
    tables = {t.source for t in layout.lookups}
    device = (o.tables or o.dense)[0].device
    named = [getattr(o, which)[n] for which, n in layout.slots]
    return (
        all(o.tables[n].stride(1) == 1 and o.tables[n].dtype in _NAMES for n in tables)
        and all(x.device == device for x in (*o.tables, *o.scales, *named))
        and all(x.dtype in _NAMES and x.numel() < 1 << 31 for x in named)
        and all(o.tables[n].shape[0] < 1 << 31 and o.tables[n].stride(0) < 1 << 27 for n in tables)
        and all(s.stride() == (2, 1) and s.dtype in (torch.float32, torch.float16) for s in o.scales)
        and all(o.ids[t.ids].dtype in (torch.int32, torch.int64) for t in layout.lookups)
        and all(o.ids[t.ids].stride(0) == 1 for t in layout.lookups if t.ragged)
        and all(o.weights[t.weights].stride(0) == 1 for t in layout.lookups if t.ragged and t.weights is not None)
        and all(o.offsets[n].stride(0) == 1 for which, n in layout.slots if which == "offsets")
    )


def make_plan(layout: Layout, o: Operands, rows: int, config: Config) -> Plan:
    """The tasks of a layout, those of one class side by side. Raises EmbeddingBagsError."""
    return _Binder(layout, o, rows, config).plan()


class _Binder:
    def __init__(self, layout: Layout, o: Operands, rows: int, config: Config) -> None:
        self.layout, self.o, self.rows, self.config = layout, o, rows, config
        self.widths = check_operands(layout, o)
        self.dtype = result_dtype(layout, [t.dtype for t in o.tables], [d.dtype for d in o.dense])
        self.slots = {slot: n for n, slot in enumerate(layout.slots)}
        flat = dict.fromkeys(t.ids for t in layout.lookups if t.ragged and not t.last)
        self.sizes = {n: k for k, n in enumerate(flat)}
        self.tasks: dict[tuple[Any, ...], list[tuple[Record, list[Record]]]] = {}

    def plan(self) -> Plan:
        column = 0
        for piece, width in zip(self.layout.pieces, self.widths, strict=True):
            cuts = {*range(0, width, self.config.columns), width}
            for t in piece:
                if t.pool == "row":
                    cuts |= {*range(0, width, width // t.count)}
            ends = sorted(cuts)
            for begin, end in itertools.pairwise(ends):
                self._task(piece, begin, end, column + begin)
            column += width
        # The longest programs first: what is left at the end is short.
        classes = sorted(self.tasks, key=lambda c: (c[5][0][0] == "dense", c[5][0][13]))
        records = [record for c in classes for record, _ in self.tasks[c]]
        for n, (record, more) in enumerate([task for c in classes for task in self.tasks[c]]):
            record["more"] = len(records) - n
            records += more
        numbers = [[record.get(name, 0) for name in _ORDER] for record in records]
        device = (self.o.tables or self.o.dense)[0].device
        return Plan(
            torch.tensor(numbers, dtype=torch.int64).to(device), tuple(classes),
            tuple(len(self.tasks[c]) for c in classes), tuple(self.sizes), column, self.dtype,
        )  # fmt: skip

    def _task(self, piece: Sequence[Term], begin: int, end: int, column: int) -> None:
        columns = 1 << (end - begin - 1).bit_length()
        place: Record = {"width": end - begin, "column": column}
        total = sum(self.widths)
        store = _alignment(16 // self.dtype.itemsize, total, column, end - begin)
        kinds: list[tuple[Any, ...]] = []
        more: list[Record] = []
        straight: tuple[int, ...] | None = None  # few terms: which kind each is of; none where they are many
        if len(piece) == 1:
            record = self._record(piece[0], begin) | place
            kinds = [self._kind(piece[0], record)]
        else:
            first = next((t for t in piece if self._is_wide(t, t)), None)
            wide = [t for t in piece if first is not None and self._is_wide(t, first)]
            wide = wide if len(wide) > 1 else []
            more = [self._record(t, begin) | {"count": 1} for t in wide]
            if wide:
                flags = (any(r["modulus"] for r in more), True, any(r["pad"] >= 0 for r in more), False, True, 1)
                assert first is not None
                names = _NAMES[self.o.tables[first.source].dtype], 0, _NAMES[self.o.ids[first.ids].dtype]
                kinds.append(("wide", *names, False, False, False, "", "", *flags))
            others = [t for t in piece if not any(t is w for w in wide)]
            for t in others:
                record = self._record(t, begin)
                kind = self._kind(t, record)
                if kind not in kinds:
                    kinds.append(kind)
                more.append(record | {"kind": kinds.index(kind)})
            record = place | {"terms": len(wide), "kind": len(others)}
            straight = () if wide or len(others) > _FEW else tuple(r["kind"] for r in more)
        bags, at_once = self._tile(piece, columns, kinds)
        hints = (self.config.evict, self.config.modifier, self.config.stages)
        steps = self._steps(piece, at_once)
        key = (
            bags, at_once, columns, columns == end - begin, store, tuple(kinds), *hints, *steps, self._length(piece),
            straight,
        )  # fmt: skip
        self.tasks.setdefault(key, []).append((record, more))

    def _is_wide(self, t: Term, like: Term) -> bool:
        """Whether a term is a row, as it is, of a table and ids of the same types as another's."""
        if t.pool == "dense" or not t.lookup or t.weights is not None or t.bits or t.wraps:
            return False
        if t.inside or t.factor != 1:
            return False
        tables, ids = self.o.tables, self.o.ids
        return tables[t.source].dtype == tables[like.source].dtype and ids[t.ids].dtype == ids[like.ids].dtype

    def _tile(self, piece: Sequence[Term], columns: int, kinds: Sequence[tuple[Any, ...]]) -> tuple[int, int]:
        """Bags of a program, and ids of each that are read at once."""
        single = all(k[0] == "dense" or k[13] for k in kinds) and kinds[0][0] != "wide"
        threads = 32 * self.config.warps
        if single:
            bags = max(1, threads * self.config.row_values // columns)
            return min(bags, 1 << (max(self.rows, 1) - 1).bit_length(), 256), 1
        tile = max(1, threads * self.config.bag_values // columns)
        most = max(64 if t.ragged else len(piece) if t.lookup else t.count for t in piece)
        at_once = min(tile, self.config.at_once, 1 << (most - 1).bit_length())
        bags = min(max(1, tile // at_once), 1 << (max(self.rows, 1) - 1).bit_length())
        return bags, at_once

    def _steps(self, piece: Sequence[Term], at_once: int) -> tuple[int, int]:
        """Which steps there are: (0, 1) only such as every bag fills, (1, 2) only one that none does, (0, 2) both."""
        t = piece[0]
        if len(piece) > 1 or t.ragged or t.lengths is not None:
            return 0, 2
        count = 1 if t.pool in ("dense", "row") else t.count
        return int(count < at_once), 1 + (count % at_once > 0)

    def _length(self, piece: Sequence[Term]) -> int:
        """The ids of a bag, where it is a constant of the code; 0: it stands in the records."""
        t = piece[0]
        if len(piece) > 1 or t.pool in ("dense", "row") or t.ragged or t.lengths is not None:
            return 0
        found = {t.count for p in self.layout.pieces for t in p if t.pool not in ("dense", "row") and not t.ragged}
        return t.count if len(found) <= 2 else 0

    def _record(self, t: Term, begin: int) -> Record:
        """Where one term's operands lie, from column ``begin`` of its piece on."""
        o = self.o
        if t.pool == "dense":
            x = o.dense[t.source]
            step = x.stride(1) if x.dim() > 1 else 1
            return {
                "ids": self.slots["dense", t.source], "ids_row": x.stride(0), "ids_step": step,
                "ids_first": begin * step, "modulus": t.every,
            }  # fmt: skip
        table, i = o.tables[t.source], o.ids[t.ids]
        wide = t.width(table.shape[1]) // (t.count if t.pool == "row" else 1)
        which, start = divmod(begin, wide) if t.pool == "row" else (0, begin)
        step = i.stride(1) if i.dim() > 1 else 1
        record: Record = {
            "table": table.data_ptr(), "height": table.shape[0], "stride": table.stride(0),
            "start": start,
            "ids": self.slots["ids", t.ids], "ids_row": i.stride(0), "ids_step": step,
            "ids_first": (t.first + which) * step, "count": 1 if t.pool == "row" else t.count,
            "modulus": t.modulus, "shift": t.shift, "pad": -1 if t.pad is None else t.pad,
        }  # fmt: skip
        bounds = t.offsets if t.offsets is not None else t.lengths
        if bounds is not None:
            record["bounds"] = self.slots["offsets", bounds]
        if t.ragged and not t.last:
            record["size"] = self.sizes[t.ids]
        if t.weights is not None:
            w = o.weights[t.weights]
            step = w.stride(1) if w.dim() > 1 else 1
            record |= {
                "weights": self.slots["weights", t.weights], "weights_row": w.stride(0), "weights_step": step,
                "weights_first": (t.weights_first + which) * step,
            }  # fmt: skip
        if t.div is not None:
            record["low"], record["eps"] = map(_word, t.div)
        if t.over is not None:
            record["over"] = self.slots["offsets", t.over]
        if t.pool == "max":
            record["low"] = _word(t.otherwise)
        record["factor"] = _word(t.factor)
        if t.bits:
            record["scales"] = o.scales[self.layout.quantised[t.source]].data_ptr()
        return record

    def _kind(self, t: Term, record: Record) -> tuple[Any, ...]:
        """What is constant in the code of a term."""
        o = self.o
        if t.pool == "dense":
            repeats = t.every > 0
            x = o.dense[t.source]
            item = x.dtype.itemsize
            align = 0
            if record["ids_step"] == 1 and x.data_ptr() % item == 0:
                align = _alignment(16 // item, x.data_ptr() // item, x.stride(0), record["ids_first"])
            return ("dense", _NAMES[x.dtype], 0, "", *(False,) * 3, "", "", repeats, *(False,) * 3, True, align)
        table = o.tables[t.source]
        item = table.dtype.itemsize
        align = _alignment(16 // item, table.data_ptr() // item, table.stride(0), record["start"])
        bounds = t.offsets if t.offsets is not None else t.lengths
        pool = "sum" if t.pool == "row" or (t.lookup and t.pad is None) else t.pool
        # A row that is its own average needs no count; a padded one gives zeros either way.
        divided = t.div is not None and not t.lookup
        moved = (t.shift != 0) + 2 * t.wraps + 4 * t.inside
        return (
            pool, _NAMES[table.dtype], t.bits, _NAMES[o.ids[t.ids].dtype], t.ragged, t.last, t.lengths is not None,
            "" if bounds is None else _NAMES[o.offsets[bounds].dtype],
            "" if t.weights is None else _NAMES[o.weights[t.weights].dtype],
            t.modulus > 0, moved, t.pad is not None, divided, t.pool == "row" or t.lookup,
            align if table.data_ptr() % item == 0 else 1, t.factor != 1,
            "" if t.over is None else _NAMES[o.offsets[t.over].dtype],
            _NAMES[o.scales[self.layout.quantised[t.source]].dtype] if t.bits else "",
        )  # fmt: skip


def _word(value: float) -> int:
    """The bits of a float64."""
    (word,) = struct.unpack("<q", struct.pack("<d", value))
    return int(word)


def _alignment(most: int, *numbers: int) -> int:
    """The largest power of two up to ``most`` that divides all numbers."""
    return math.gcd(most, *numbers)
