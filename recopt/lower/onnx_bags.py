"""Fused embedding bags as ONNX nodes: a Gather and a reduction a bag, one Concat; for `recopt` one node around them."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from ..errors import LowerError
from ..fused import Again, Bag, EmbeddingBags, Stored, View
from ..hosts.base import Value
from ..hosts.onnx import OnnxHost
from ..ir.sizes import product
from .onnx import folded
from .onnx_bag import POOLS, Nodes, along, is_weighed, offsets_of, rows_of, scales_of
from .onnx_ids import alone, column, computed, given, ids_of, is_cut, mask_of, plain, single, together
from .onnx_layout import apply, expand, view
from .onnx_ragged import Ragged
from .onnx_writer import Writer

# Tables of one width are not stacked under one Gather: with ids that must be refused as before it takes 0.8 to 1.4
# times as long at the nominal batch (benchmarks/merged_tables.py), and every table would be written anew.
JOINT = 200  # numbers of a row for each of several bags that are quicker to copy than a reduction: 20 us of 256 rows


def embedding_bags(host: Writer, spec: EmbeddingBags, target: str) -> Value:
    """Append the nodes of `spec` at the host's insertion point and return its value. Raises LowerError."""
    spec = single(together(_plain(host, spec)))
    write = _function if target == "recopt" else _nodes
    return apply(host, write(host, spec, target), spec.steps, spec.name)


def _plain(host: Writer, spec: EmbeddingBags) -> EmbeddingBags:
    """`spec` with ids that name rows themselves."""

    def read(table: View, ids: View, stored: Stored | None) -> Value:
        scales = stored.scales.value if stored and stored.scales else None
        operands = view(host, table, spec.name), ids.value, scales
        return rows_of(host, spec, operands, ids, stored, (*ids.shape, table.shape[1]))

    def term(item: Bag | View | Again) -> Bag | View | Again:
        return plain(host, item, spec.name, read) if isinstance(item, Bag) else item

    return replace(spec, pieces=tuple(tuple(map(term, piece)) for piece in spec.pieces))


def _nodes(host: Writer, spec: EmbeddingBags, target: str) -> Value:
    return _side_by_side(host, spec, _operands(host, spec), target)


def _function(host: Writer, spec: EmbeddingBags, target: str) -> Value:
    """One node `recopt::EmbeddingBags_*`; its function is shared by all that read and pool alike."""
    operands = _operands(host, spec)
    numbers, starts = {v: n for n, v in enumerate(operands)}, given(spec)

    def told(term: Bag | View | Again) -> object:
        if not isinstance(term, Bag):
            return numbers[term]
        stored = term.stored or Stored(32, term.columns)
        read = (
            term.table,
            starts[term],
            term.weights,
            offsets_of(term),
            term.lengths,
            scales_of(term),
            term.over,
            mask_of(term),
        )
        rows = (
            term.modulus,
            term.shift,
            term.pad,
            term.above,
            term.of_row,
            term.below,
            term.div,
            term.last,
            term.factor,
            term.unmask,
            term.program,
            term.live,
            term.ids.steps if starts[term] != ids_of(term) else (),
        )
        ranks = len(term.ids.shape), alone(term)
        shape = term.pool, term.otherwise, term.least, term.taken, term.count, term.columns, ranks, stored.bits
        return shape, rows, [v and numbers[v] for v in read]

    types = [v.dtype or spec.dtype for v in operands.values()]
    text = repr((types, [[told(term) for term in piece] for piece in spec.pieces]))
    name = f"EmbeddingBags_{hashlib.sha1(text.encode()).hexdigest()[:8]}"

    def body(inner: OnnxHost, values: list[Value]) -> Value:
        return _side_by_side(inner, spec, dict(zip(operands, values, strict=True)), target)

    op = host.define(name, types, body)
    return host.call(op, list(operands.values()), name=spec.name, shape=spec.shape, dtype=spec.dtype)


def _operands(host: Writer, spec: EmbeddingBags) -> dict[View | Again, Value]:
    """What is read, each view once."""
    starts = given(spec)
    parts = [
        (bag.table, starts[bag], bag.weights, offsets_of(bag), bag.lengths, scales_of(bag), bag.over, mask_of(bag))
        for bag in spec.bags
    ]
    read = [v for part in parts for v in part if v]
    dense = [term for piece in spec.pieces for term in piece if isinstance(term, View)]
    tables = {bag.table: folded(host, bag.table, bag.table.steps, spec.name) for bag in spec.bags if bag.table.steps}
    fixed = [(term, piece) for piece in spec.pieces for term in piece if isinstance(term, Again)]
    found: dict[View | Again, Value] = {term: _fixed(host, spec, term, len(piece) == 1) for term, piece in fixed}
    return found | {item: tables.get(item) or column(host, item, spec.name) for item in dict.fromkeys((*dense, *read))}


def _fixed(host: Writer, spec: EmbeddingBags, term: Again, alone: bool) -> Value:
    """Numbers that broadcast to [rows.., C], or have that shape where they stand alone. Raises LowerError where the
    dimensions do not repeat them."""
    count, width = term.rows.shape
    shape = next((s for n in range(len(spec.shape)) if product(s := spec.shape[n:-1]) == count), None)
    if shape is None:
        raise LowerError(f"{spec.name}: {count} rows repeat within a dimension")
    whole = term.rows.reshape([*shape, width]) if count > 1 else term.rows.reshape(width)
    rows = host.share_constant(whole.astype(spec.dtype), name=f"{spec.name}_rows")
    return expand(host, rows, spec.shape[:-1], spec.name) if alone else rows


def _side_by_side(
    host: Writer | OnnxHost, spec: EmbeddingBags, values: Mapping[View | Again, Value], target: str
) -> Value:
    spec, values = computed(host, spec, values)
    if _is_of_columns(spec):
        return _beside(host, spec, values)
    pieces = []
    for alike, group in groupby(spec.pieces, _alike):
        found = list(group)
        if alike is not None and len(found) > 1 and _row(found) <= JOINT * len(found):
            pieces.append(_joint(host, spec, found, values))
            continue
        pieces += [_piece(host, spec, piece, values, target) for piece in found]
    if len(pieces) == 1:
        return pieces[0]
    axis = {"axis": len(spec.shape) - 1}
    return host.call("Concat", pieces, axis, name=spec.name, shape=spec.shape, dtype=spec.dtype)


Piece = tuple[Bag | View | Again, ...]


def _alike(piece: Piece) -> Hashable:
    """What pieces have in common whose rows are pooled alike and all count; None of others."""
    bag = piece[0]
    if len(piece) > 1 or not isinstance(bag, Bag) or bag.pool not in POOLS or bag.offsets is not None:
        return None
    plainly = not is_weighed(bag) and bag.div is None and bag.factor == 1
    return (bag.pool, bag.ids.shape) if plainly else None


def _row(pieces: Sequence[Piece]) -> int:
    """Numbers that are pooled for a row of the result."""
    return sum(bag.count * bag.columns for piece in pieces for bag in piece if isinstance(bag, Bag))


def _joint(
    host: Writer | OnnxHost, spec: EmbeddingBags, pieces: Sequence[Piece], values: Mapping[View | Again, Value]
) -> Value:
    """Rows side by side, pooled as one."""
    nodes = [Nodes(host, spec, bag, values) for piece in pieces for bag in piece if isinstance(bag, Bag)]
    first, width = nodes[0], sum(n.bag.columns for n in nodes)
    shape, axis = (*first.bag.ids.shape, width), len(first.rows)
    rows = first.call("Concat", [n.rows_of_all() for n in nodes], shape, axis=axis + 1)
    return first.reduce(POOLS[first.bag.pool], rows, axis, (*first.rows, width))


def _piece(
    host: Writer | OnnxHost, spec: EmbeddingBags, piece: Piece, values: Mapping[View | Again, Value], target: str
) -> Value:
    """The sum of a piece's terms. A factor of all multiplies it once, and rows of cut columns lose their dimension in
    their sum."""
    factors = {t.factor if isinstance(t, Bag) and t.pool != "max" else 1.0 for t in piece}
    factor = factors.pop() if len(piece) > 1 and len(factors) == 1 else 1.0
    if factor != 1:
        piece = tuple(replace(t, factor=1.0) for t in piece if isinstance(t, Bag))
    cut = [t for t in piece if isinstance(t, Bag) and is_cut(t)]
    cut = cut if len(cut) > 1 and len(spec.shape) == 2 else []  # of four dimensions the sum takes twice as long
    terms = [
        values[t] if not isinstance(t, Bag) else _bag(host, spec, t, values, target) for t in piece if t not in cut
    ]
    if cut:
        wide = _sum(host, spec, [Nodes(host, spec, t, values).rows_of_all() for t in cut])
        terms.append(along(host, spec, "Squeeze", wide, -2, (*spec.shape[:-1], cut[0].width)))
    total = _sum(host, spec, terms)
    if factor == 1:
        return total
    by = host.share_constant(np.array(factor, spec.dtype), name=f"{spec.name}_constant")
    return host.call("Mul", [total, by], name=spec.name, shape=total.shape, dtype=spec.dtype)


def _sum(host: Writer | OnnxHost, spec: EmbeddingBags, terms: Sequence[Value]) -> Value:
    """The sum of terms; of many of one type by one node."""
    if len(terms) < 3 or spec.dtype not in ("float32", "float64"):  # others ONNX Runtime cannot add so
        joint = terms[0]
        for term in terms[1:]:
            joint = host.call("Add", [joint, term], name=spec.name, shape=joint.shape, dtype=spec.dtype)
        return joint
    return host.call("Sum", terms, name=spec.name, shape=terms[0].shape, dtype=spec.dtype)


def _is_of_columns(spec: EmbeddingBags) -> bool:
    """Whether all is single rows of cut columns, and dense columns."""
    terms = [piece[0] for piece in spec.pieces if len(piece) == 1]
    bags = [t for t in terms if isinstance(t, Bag)]
    single = all(bag.pool == "row" and bag.count == 1 and not alone(bag) for bag in bags)
    return single and len(bags) > 1 and len(terms) == len(spec.pieces)


def _beside(host: Writer | OnnxHost, spec: EmbeddingBags, values: Mapping[View | Again, Value]) -> Value:
    """Rows [rows.., 1, D] side by side, without the dimension between in the end."""
    *rows, width = spec.shape
    pieces = []
    for (term,) in spec.pieces:
        if isinstance(term, Bag):
            pieces.append(Nodes(host, spec, term, values).rows_of_all())
        else:
            part = values[term]
            wide = None if part.shape is None else (*part.shape[:-1], 1, part.shape[-1])
            pieces.append(along(host, spec, "Unsqueeze", part, -2, wide))
    shape = (*rows, 1, width)
    joint = host.call("Concat", pieces, {"axis": len(rows) + 1}, name=spec.name, shape=shape, dtype=spec.dtype)
    return along(host, spec, "Squeeze", joint, -2, spec.shape)


def _bag(
    host: Writer | OnnxHost, spec: EmbeddingBags, bag: Bag, values: Mapping[View | Again, Value], target: str
) -> Value:
    nodes = (Nodes if bag.offsets is None else Ragged)(host, spec, bag, values)
    return nodes.side_by_side() if bag.pool == "row" else nodes.pooled(target)
