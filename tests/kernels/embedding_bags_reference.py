"""What a layout of ``recopt::embedding_bags`` means, written out in float64, and operands for one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from recopt.kernels.embedding_bags.layout import Layout, Term, parse_layout
from recopt.kernels.embedding_bags.operands import Operands, result_dtype, rows_of


def reference(o: Operands, text: str) -> Tensor:
    """One bag after the other, one id after the other."""
    layout = parse_layout(text)
    pieces = []
    for piece in layout.pieces:
        terms = [torch.stack([_row(t, layout, o, r) for r in range(rows_of(layout, o))]) for t in piece]
        pieces.append(torch.stack(terms).sum(0))
    dtype = result_dtype(layout, [t.dtype for t in o.tables], [d.dtype for d in o.dense])
    return torch.cat(pieces, 1).to(dtype)


def _row(t: Term, layout: Layout, o: Operands, r: int) -> Tensor:
    if t.pool == "dense":
        return o.dense[t.source][r % t.every if t.every else r].double().reshape(-1)
    ids = o.ids[t.ids]
    if t.offsets is not None:
        bounds = [*o.offsets[t.offsets].tolist(), *([] if t.last else [ids.shape[0]])]
        where = list(range(bounds[r], bounds[r + 1]))
        names = [int(ids[n]) for n in where]
        weights = [1.0 if t.weights is None else float(o.weights[t.weights][n]) for n in where]
        shown = [t.mask is None or bool(o.weights[t.mask][n]) != t.unmask for n in where]
    else:
        count = t.count if t.lengths is None else min(t.count, max(0, int(o.offsets[t.lengths][r])))
        ids = ids if ids.dim() > 1 else ids[:, None]
        names = [int(ids[r, t.first + k]) for k in range(count)]
        weights = [1.0] * count
        if t.weights is not None:
            w = o.weights[t.weights] if o.weights[t.weights].dim() > 1 else o.weights[t.weights][:, None]
            weights = [float(w[r, t.weights_first + k]) for k in range(count)]
        shown = [t.mask is None or bool(o.weights[t.mask][r, t.mask_first + k]) != t.unmask for k in range(count)]
    shown = [s and (not t.live or bool(_computed(t.live, n))) for s, n in zip(shown, names, strict=True)]
    names = [int(_computed(t.program, n)) if t.program else n for n in names]
    names = [(n % t.modulus if t.modulus else n) + t.shift for n in names]
    names = [n + len(o.tables[t.source]) if t.wraps and n < 0 else n for n in names]
    there = [n != t.pad and (not t.inside or 0 <= n < len(o.tables[t.source])) for n in names]
    live = [a and b for a, b in zip(there, shown, strict=True)]
    names = [n if alive or not t.inside else 0 for n, alive in zip(names, live, strict=True)]
    rows = [_values(t, layout, o, n) * w * alive for n, w, alive in zip(names, weights, live, strict=True)]
    if t.pool == "row":
        return torch.cat(rows) * t.factor
    rows = [row for row, alive in zip(rows, live, strict=True) if alive]
    total = _values(t, layout, o, 0) * 0
    if t.pool == "max":
        return torch.stack(rows).amax(0) if rows else total + t.otherwise
    for row in rows:
        total = total + row
    if t.div is None:
        return total * t.factor
    n = sum(w for w, alive in zip(weights, live, strict=True) if alive)
    if t.over is not None:
        n = float(o.offsets[t.over][r])
    return total / (max(n, t.div[0]) + t.div[1]) * t.factor


def _computed(program: str, i: int) -> int | bool:
    """An id program of one id."""
    names = {
        "floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b, "max": max, "lt": lambda a, b: a < b,
        "eq": lambda a, b: a == b, "where": lambda c, a, b: a if c else b, "truncdiv": lambda a, b: int(a / b),
        "shift_right": lambda a, b: a >> b, "bitwise_xor": lambda a, b: a ^ b, "abs": abs,
        "logical_not": lambda a: not a, "logical_and": lambda a, b: a and b, "int64": int,
    }  # fmt: skip
    return eval(program, {**names, "i": i})  # type: ignore[no-any-return]  # a number


def _values(t: Term, layout: Layout, o: Operands, row: int) -> Tensor:
    stored = o.tables[t.source][row]
    if t.bits == 4:
        stored = torch.stack([stored & 15, stored >> 4], 1).flatten()[: t.values or None]
    values = stored.double()
    if t.bits:
        scale, bias = o.scales[layout.quantised[t.source]][row].double()
        values = values * scale + bias
    return values


def operands(text: str, rows: int = 5, dim: int = 7, seed: int = 0, ids: torch.dtype = torch.int64) -> Operands:
    """Random operands for a layout: tables of 11 to 40 rows, of float32 and float16 unless they are quantised."""
    torch.manual_seed(seed)
    layout = parse_layout(text)
    counts = layout.operands
    terms = layout.lookups
    width = max([t.first + t.count for t in terms], default=1)
    summed = {n for piece in layout.pieces if len(piece) > 1 for n in [t.source for t in piece if t.pool == "dense"]}
    tables, scales = [], []
    for n in range(counts["tables"]):
        high = 11 + 7 * n % 29
        use = next((t for t in terms if t.source == n), None)
        if use is not None and use.bits:
            columns = dim if use.bits == 8 else (use.values + 1) // 2 or dim
            table = torch.randint(0, 256, (high, columns + 9), dtype=torch.uint8)[:, :columns]
            tables.append(table.view(torch.int8) if use.bits == 8 and n % 2 else table)
            scales.append(torch.randn(high, 2, dtype=torch.float16 if n % 3 == 1 else torch.float32))
        else:
            tables.append(torch.randn(high, dim, dtype=torch.float16 if n % 3 == 2 else torch.float32))
    ids_, offsets, weights = [], [torch.zeros(0)] * counts["offsets"], [torch.zeros(0)] * counts["weights"]
    for n in range(counts["ids"]):
        uses = [t for t in terms if t.ids == n]
        flat = any(t.ragged for t in uses)
        high = min([11 - t.shift for t in uses if not t.modulus], default=1 << 20)
        below = all(t.modulus or t.wraps for t in uses) and len(uses) > 0
        low = max([-11 - t.shift for t in uses if not t.modulus], default=-high) if below else 0
        if uses and all(t.inside for t in uses):
            low, high = low - 9, high + 50
        shape = (4 * rows,) if flat else (rows, width + 1)
        ids_.append(torch.randint(low, high, shape, dtype=ids))
        for t in uses:
            if t.weights is not None:
                drawn = torch.rand(shape[0]) if flat else torch.rand(rows, t.weights_first + t.count + 1)
                weights[t.weights] = drawn if t.weights % 2 == 0 else drawn > 0.5
                if not flat and weights[t.weights].shape[1] < width + 12:
                    weights[t.weights] = torch.rand(rows, width + 12)
            if t.mask is not None:
                weights[t.mask] = torch.rand(shape[0] if flat else (rows, width + 12)) > 0.5
    for t in terms:
        if t.offsets is not None:
            cuts = torch.randint(0, max(4 * rows, 1), (max(rows - 1, 0),)).sort().values
            ends = torch.tensor([4 * rows] * t.last, dtype=torch.int64)
            offsets[t.offsets] = torch.cat([torch.zeros(min(rows, 1), dtype=torch.int64), cuts, ends])
        if t.lengths is not None:
            offsets[t.lengths] = torch.randint(0, t.count + 2, (rows,))
        if t.over is not None and t.over != t.lengths:
            offsets[t.over] = torch.rand(rows) + 0.5
    dense = [torch.randn(rows, dim) if n % 2 == 0 or n in summed else torch.randn(rows) for n in range(counts["dense"])]
    for t in layout.terms:
        if t.every:
            dense[t.source] = torch.randn(t.every, dim)
    return Operands(tables, ids_, offsets, weights, dense, scales)


def check_stops_the_device(script: str) -> None:
    """A program that says "in range" and then reads a row that is none ends there, in a process of its own: what stands
    on a device after that can no longer be used."""
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert "in range" in done.stdout
    assert done.returncode != 0
    assert "assert" in done.stderr
