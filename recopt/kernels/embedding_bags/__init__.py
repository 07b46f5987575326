"""``recopt::embedding_bags``: every lookup of a model, pooled and side by side, in torch and as one launch.

``embedding_bags`` is the operator, ``embedding_bags_torch`` its plain-torch twin, which is also its CPU path. What it
computes is a text, the layout: see ``layout``. On a GPU the choice of how to launch comes from
``table``, measured once and shipped: nothing is ever tuned at request time. Ids are checked against
their tables; ``RECOPT_UNCHECKED_IDS=1`` in the environment leaves that out on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .ids import resolved
from .layout import EmbeddingBagsError, Layout, Term, parse_layout
from .operands import Operands, check_operands, result_dtype, rows_of
from .plain import embedding_bags_torch

__all__ = [
    "EmbeddingBagsError", "Operands", "bytes_moved", "check_operands", "embedding_bags", "embedding_bags_torch",
    "flops", "hinted", "parse_layout", "result_dtype", "rows_of",
]  # fmt: skip


def flops(layout: str, tables: Sequence[Tensor], ids: Sequence[Tensor]) -> int:
    """Floating-point operations: one for each value added to a bag, one more where it is weighted or quantised."""
    total = 0
    for t in parse_layout(layout).lookups:
        each = (t.pool != "row") + (t.weights is not None) + 2 * (t.bits > 0)
        total += _reads(t, ids) * _values(t, tables) * each
    return total


def bytes_moved(
    layout: str, tables: Sequence[Tensor], ids: Sequence[Tensor], dense: Sequence[Tensor] = (), unique: bool = False,
    scales: Sequence[Tensor] = (),
) -> int:  # fmt: skip
    """Bytes of ids, rows (each read, or with ``unique`` each row of a table once), dense tensors and the result.

    ``unique`` looks at the ids; without it only shapes are used. Weights, lengths and offsets are not counted; scales
    that are not given count as float32.
    """
    parsed = parse_layout(layout)
    read = sum(d.numel() * d.element_size() for d in dense)
    row_bytes = [t.shape[1] * t.element_size() for t in tables]
    for source, k in parsed.quantised.items():
        row_bytes[source] += 2 * (scales[k].itemsize if scales else 4)
    seen: dict[int, list[Tensor]] = {}
    for t in parsed.lookups:
        table = tables[t.source]
        read += _reads(t, ids) * ids[t.ids].element_size()
        if unique:
            seen.setdefault(t.source, []).append(read_rows(t, ids) % table.shape[0])
        else:
            read += _reads(t, ids) * row_bytes[t.source]
    for source, rows in seen.items():
        read += int(torch.cat([r.long() for r in rows]).bincount().count_nonzero()) * row_bytes[source]
    widths = parsed.widths([t.shape[1] for t in tables], [d.shape[1] if d.dim() > 1 else 1 for d in dense])
    dtype = result_dtype(parsed, [t.dtype for t in tables], [d.dtype for d in dense])
    return read + sum(widths) * _bags(parsed, ids, dense) * dtype.itemsize


def read_rows(t: Term, ids: Sequence[Tensor]) -> Tensor:
    """The rows that a term names, flat, what lengths cut off included; counted from the end they are negative."""
    i = ids[t.ids]
    if not t.ragged and i.dim() > 1:
        i = i.narrow(1, t.first, t.count)
    i = i.reshape(-1)
    return (i % t.modulus if t.modulus else i) + t.shift


HINTED = 64  # ids of a bag from which a hint is worth having


def hinted(layout: str, ids: Sequence[Tensor]) -> str:
    """The layout with a hint at each fixed bag of HINTED ids and more, from example ids [R, C]: ``hot`` where at least
    a quarter of a bag's ids stand in it already, ``cold`` where less than an eighth do, none in between.

    Of 150 ids under Zipf 1.2 over 500 000 rows half repeat, under Zipf 1.0 a fifth, under Zipf 0.9 a twelfth. Reads the
    ids: not for the time of a request.
    """
    pieces = []
    for piece in parse_layout(layout).pieces:
        terms = []
        for t in piece:
            hint = ""
            if t.pool != "dense" and t.count >= HINTED and ids[t.ids].dim() > 1:
                rows = ids[t.ids].narrow(1, t.first, t.count).sort(1).values
                repeated = float((rows.diff(dim=1) == 0).double().mean())
                hint = "hot" if repeated >= 0.25 else "cold" if repeated < 0.125 else ""
            terms.append(replace(t, hint=hint))
        pieces.append(tuple(terms))
    return str(Layout(tuple(pieces)))


def _reads(t: Term, ids: Sequence[Tensor]) -> int:
    return ids[t.ids].shape[0] * (1 if t.ragged else t.count)


def _values(t: Term, tables: Sequence[Tensor]) -> int:
    return t.width(tables[t.source].shape[1]) // (t.count if t.pool == "row" else 1)


def _bags(layout: Layout, ids: Sequence[Tensor], dense: Sequence[Tensor]) -> int:
    for t in layout.terms:
        if not t.ragged:
            return (dense[t.source] if t.pool == "dense" else ids[t.ids]).shape[0]
    return 0  # flat ids alone do not say how many bags they fill


def embedding_bags(
    tables: Sequence[Tensor], ids: Sequence[Tensor], offsets: Sequence[Tensor], weights: Sequence[Tensor],
    dense: Sequence[Tensor], scales: Sequence[Tensor], layout: str,
) -> Tensor:  # fmt: skip
    """The pieces of ``layout`` side by side, [R, W].

    tables [rows, D]; ids [R, C] or flat, int32 or int64; offsets (of flat ids, or lengths) [R] or [R + 1]; weights
    [R, C] or flat; dense [R, C]; scales [rows, 2], float32 or float16, of quantised tables. The result has torch's
    promotion of the tables' and dense tensors' types. Raises EmbeddingBagsError; IndexError or RuntimeError for an id
    that its table does not hold.
    """
    if not (tables or dense)[0].is_cuda:
        return embedding_bags_torch(tables, ids, offsets, weights, dense, scales, layout)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*tables, *weights, *dense)):
        return embedding_bags_torch(tables, ids, offsets, weights, dense, scales, layout)
    from .launch import embedding_bags_triton  # Triton is there where a GPU is

    o, first = Operands(tables, ids, offsets, weights, dense, scales), resolved(layout)
    if first is not None:
        o, layout = first.operands(o), first.text
    if parse_layout(layout).masked:  # of a maximum: the kernel knows no masks
        return embedding_bags_torch(*o, layout)
    return embedding_bags_triton(o, layout)
