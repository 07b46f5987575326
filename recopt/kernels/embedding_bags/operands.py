"""The operands of ``recopt::embedding_bags``: what they are called, whether they fit a layout, what comes of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .layout import EmbeddingBagsError, Layout, Term


class Operands(NamedTuple):
    """The operator's lists of tensors."""

    tables: Sequence[Tensor]
    ids: Sequence[Tensor]
    offsets: Sequence[Tensor]
    weights: Sequence[Tensor]
    dense: Sequence[Tensor]
    scales: Sequence[Tensor]


def rows_of(layout: Layout, o: Operands) -> int:
    """R, from the first operand that tells."""
    for t in layout.terms:
        if t.pool == "dense" and not t.every:
            return o.dense[t.source].shape[0]
        if t.pool != "dense" and t.offsets is None:
            return o.ids[t.ids].shape[0]
    for t in layout.terms:
        if t.offsets is not None:
            return o.offsets[t.offsets].shape[0] - int(t.last)
    raise EmbeddingBagsError(f"nothing says how many rows there are: {layout}")


def check_operands(layout: Layout, o: Operands) -> list[int]:
    """The width of each piece. Raises EmbeddingBagsError unless the operands fit the layout."""
    for name, least in layout.operands.items():
        if len(getattr(o, name)) < least:
            raise EmbeddingBagsError(f"the layout names {least} {name}, {len(getattr(o, name))} are given")
    for t in layout.lookups:
        if o.tables[t.source].dim() != 2 or o.ids[t.ids].dim() not in ((1,) if t.ragged else (1, 2)):
            raise EmbeddingBagsError(f"{t}: a table is [rows, D], ids are [R, C] or flat")
        if o.tables[t.source].dtype.is_floating_point == (t.bits > 0):
            raise EmbeddingBagsError(f"{t}: a table of {o.tables[t.source].dtype} is not stored so")
        if t.wide and o.tables[t.source].dtype.itemsize != 2:
            raise EmbeddingBagsError(f"{t}: a table of {o.tables[t.source].dtype} has no rows of 16 bits")
        if t.bits and o.scales[layout.quantised[t.source]].shape != (o.tables[t.source].shape[0], 2):
            raise EmbeddingBagsError(f"{t}: scales are [rows, 2]")
    r = rows_of(layout, o)
    for t in layout.terms:
        _check_rows(t, o, r)
    return layout.widths([_columns(t) for t in o.tables], [_columns(d) for d in o.dense])


def _columns(t: Tensor) -> int:
    return t.shape[1] if t.dim() > 1 else 1


def _check_rows(t: Term, o: Operands, r: int) -> None:
    def fits(what: str, x: Tensor, rows: int, columns: int = 1) -> None:
        if x.dim() not in (1, 2) or x.shape[0] != rows or _columns(x) < columns:
            raise EmbeddingBagsError(f"{t}: {what} of shape {list(x.shape)}, need [{rows}, at least {columns}]")

    if t.pool == "dense":
        return fits("dense", o.dense[t.source], t.every or r)
    if t.offsets is not None:
        fits("offsets", o.offsets[t.offsets], r + int(t.last))
    else:
        fits("ids", o.ids[t.ids], r, t.first + t.count)
    if t.lengths is not None:
        fits("lengths", o.offsets[t.lengths], r)
    if t.over is not None:
        fits("denominators", o.offsets[t.over], r)
    each = o.ids[t.ids].shape[0] if t.ragged else r
    if t.weights is not None:
        fits("weights", o.weights[t.weights], each, 1 if t.ragged else t.weights_first + t.count)
    if t.mask is not None:
        fits("a mask", o.weights[t.mask], each, 1 if t.ragged else t.mask_first + t.count)


def result_dtype(layout: Layout, tables: Sequence[torch.dtype], dense: Sequence[torch.dtype]) -> torch.dtype:
    """Torch's promotion over the tables, of which quantised ones hold float32, and the dense tensors."""
    found = [
        torch.float32 if t.bits or t.wide else (dense if t.pool == "dense" else tables)[t.source] for t in layout.terms
    ]
    return functools.reduce(torch.promote_types, found)
