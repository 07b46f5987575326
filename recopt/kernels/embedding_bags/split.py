"""Few long bags cut into parts, so that one history of 100 000 ids is read by the whole GPU and not by one program.

A fixed bag becomes pieces side by side, each of some of its ids; bags of flat ids become more bags, by offsets between
theirs, computed on the device. Either way the operator itself runs on the parts, and torch adds them up.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .layout import Layout, Term, parse_layout
from .operands import Operands, result_dtype

MOST_ROWS = 64
_LONG = 2048  # ids of a bag from which cutting pays for the launches that it adds
_PART = 512  # ids of a part at least
_PROGRAMS = 1056  # enough for a GPU: 8 on each of 132 processors


def in_parts(text: str, o: Operands, rows: int, run: Callable[[Operands, str], Tensor]) -> Tensor | None:
    """The pieces of a layout side by side by ``run`` on parts of its bags; None where nothing is worth cutting.

    Results of 16 bits are left alone, whose parts would be rounded one by one.
    """
    layout = parse_layout(text)
    if not 0 < rows <= MOST_ROWS or not layout.lookups:
        return None
    # Small requests come here each time: what costs little is asked first.
    if layout.flat:
        longest = max(o.ids[n].shape[0] for n in layout.flat.values()) // rows
        if longest < _LONG or not _wide(layout, o) or not all(len(p) == 1 and _ragged(p[0]) for p in layout.pieces):
            return None
        parts = min(longest // _PART, -(-_PROGRAMS // (rows * len(layout.pieces))))
        return _flat(layout, o, rows, parts, run) if parts > 1 else None
    cut = _cut(text, rows)
    return _join(layout, o, run(o, cut[0]), cut[1]) if cut is not None and _wide(layout, o) else None


def _wide(layout: Layout, o: Operands) -> bool:
    return result_dtype(layout, [t.dtype for t in o.tables], [d.dtype for d in o.dense]).itemsize >= 4


def _ragged(t: Term) -> bool:
    return (
        t.ragged
        and t.pool == "sum"
        and t.over is None
        and not t.inside
        and (t.div is None or (t.pad is None and t.weights is None))
    )


def _flat(layout: Layout, o: Operands, rows: int, parts: int, run: Callable[[Operands, str], Tensor]) -> Tensor:
    offsets, lengths = list(o.offsets), {}
    share = torch.arange(parts, device=o.ids[0].device)
    for t in layout.lookups:
        assert t.offsets is not None
        given = o.offsets[t.offsets]
        end = given[-1:] if t.last else torch.full_like(given[:1], o.ids[t.ids].shape[0])
        begin = given[:rows].long()
        lengths[t] = torch.cat([begin[1:], end.long()]) - begin
        between = (begin[:, None] + lengths[t][:, None] * share // parts).reshape(-1)
        offsets[t.offsets] = torch.cat([between, end.long()]) if t.last else between
    plain = Layout(tuple((replace(p[0], div=None),) for p in layout.pieces))
    out = run(o._replace(offsets=offsets), str(plain))
    out = out.reshape(rows, parts, -1).sum(1)
    pieces = torch.split(out, layout.widths([t.shape[1] for t in o.tables], []), 1)
    return torch.cat([_divided(x, p[0], lengths[p[0]][:, None]) for x, p in zip(pieces, layout.pieces, strict=True)], 1)


@functools.lru_cache(maxsize=1024)
def _cut(text: str, rows: int) -> tuple[str, tuple[int, ...]] | None:
    """The layout with long bags cut, and the parts of each piece; None where there is no such bag."""
    layout = parse_layout(text)
    most = -(-_PROGRAMS // (rows * len(layout.pieces)))
    pieces: list[tuple[Term, ...]] = []
    parts = []
    for piece in layout.pieces:
        t = piece[0]
        count = min(t.count // _PART, most) if len(piece) == 1 and t.count >= _LONG and _fixed(t) else 1
        parts.append(max(1, count))
        if parts[-1] == 1:
            pieces.append(piece)
            continue
        bounds = [t.count * n // count for n in range(count + 1)]
        for begin, end in itertools.pairwise(bounds):
            at = 0 if t.weights is None else t.weights_first + begin
            pieces.append((replace(t, first=t.first + begin, count=end - begin, weights_first=at, div=None),))
    return (str(Layout(tuple(pieces))), tuple(parts)) if max(parts) > 1 else None


def _fixed(t: Term) -> bool:
    # What counts is known without the ids: a part may be empty of ids that count, and is no maximum then.
    counted = t.pad is None and not t.inside and t.otherwise == 0 and (t.weights is None or t.div is None)
    return (
        t.lengths is None
        and t.over is None
        and ((t.pool == "sum" and (counted or t.div is None)) or (t.pool == "max" and counted))
    )


def _join(layout: Layout, o: Operands, out: Tensor, parts: Sequence[int]) -> Tensor:
    columns = [x.shape[1] if x.dim() > 1 else 1 for x in o.dense]
    widths = layout.widths([t.shape[1] for t in o.tables], columns)
    pieces = []
    blocks = torch.split(out, [n * w for n, w in zip(parts, widths, strict=True)], 1)
    for x, piece, n in zip(blocks, layout.pieces, parts, strict=True):
        if n > 1:
            x = x.reshape(x.shape[0], n, -1)
            x = x.amax(1) if piece[0].pool == "max" else _divided(x.sum(1), piece[0], piece[0].count)
        pieces.append(x)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


def _divided(x: Tensor, t: Term, n: Tensor | int) -> Tensor:
    if t.div is None:
        return x
    low, eps = t.div
    return x / (torch.clamp(n, min=low).to(x.dtype) + eps if isinstance(n, Tensor) else max(n, low) + eps)
