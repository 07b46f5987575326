"""Single lookups in many small tables of one width become one lookup in one table, in ONNX files for a CPU.

before:  T0[ids[:, 0]], T1[ids[:, 1]], .., side by side or added up
after:   T[ids + starts], T being the tables one after the other; ids outside of their own table stay an error

A node takes a microsecond, whatever it does. Beside one Gather a table, 26 of them, one Gather and what checks the ids
take 0.4 of the time at batch 1, 0.6 at 16 and 0.8 to 0.95 at 256, but 1.2 for eight tables at 256 and for one column
that is not added up (`benchmarks/merged_tables.py`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from recopt.cost import ON_CPU
from recopt.fused import Again, Bag, EmbeddingBags, Slice, View
from recopt.hosts.base import Host, Value
from recopt.rewrite import Context, Place
from recopt.tables import Change, Fitness, bags_of, in_order, rewrite

name = "merge-tables"
FEWEST = 20  # tables
NARROWEST = 8  # columns of rows side by side
LARGEST = 64 << 20  # bytes of the tables together, which are written anew


def run(host: Host, context: Context) -> bool:
    """Whether any tables were merged."""
    if host.dialect != "onnx" or context.target not in ON_CPU:
        return False
    places = [place for place in context.places or () if _reads_tables(place)]
    if not any(len(place.spec.bags) >= FEWEST for place in places):
        return False
    places = in_order(host, places)
    fitness = Fitness(host, places)
    fits = {table for table, bags in bags_of(places).items() if len(bags) == 1 and not fitness.why_not(bags)}
    changes = []
    for place in places:
        spec = _added(host, _beside(host, place.spec, fits), fits)
        if spec is not place.spec:
            count = len(place.spec.bags) - len(spec.bags) + 1
            changes.append(Change(place, spec, f"{count} tables one after the other"))
    return rewrite(host, context, name, changes)


def _reads_tables(place: Place) -> bool:
    """Whether the lookups of a place are its own, not a layout of what others look up."""
    read = {v for node in place.nodes for v in node.inputs}
    return all(bag.table.value in read for bag in place.spec.bags)


def _beside(host: Host, spec: EmbeddingBags, fits: set[Value]) -> EmbeddingBags:
    """`spec` with lookups side by side merged."""
    bags = [piece[0] if len(piece) == 1 else None for piece in spec.pieces]
    wide = [t if isinstance(t, Bag) and t.columns >= NARROWEST else None for t in bags]
    found = _runs(wide, fits)
    if not found:
        return spec
    pieces = list(spec.pieces)
    for first, stop in reversed(found):
        run = [bag for bag in wide[first:stop] if bag is not None]
        pieces[first:stop] = [(_merged(host, run, "row"),)]
    return replace(spec, pieces=tuple(pieces))


def _added(host: Host, spec: EmbeddingBags, fits: set[Value]) -> EmbeddingBags:
    """`spec` with lookups that add up merged."""
    pieces = []
    for piece in spec.pieces:
        column = {t: _column(t) for t in piece if isinstance(t, Bag)}
        bags = sorted((t for t, c in column.items() if c is not None), key=lambda t: column[t] or 0)
        found = _runs(bags, fits)
        for first, stop in found:
            whole = _merged(host, bags[first:stop], "sum")
            piece = (whole, *(t for t in piece if t not in bags[first:stop]))
        pieces.append(piece)
    return spec if tuple(pieces) == spec.pieces else replace(spec, pieces=tuple(pieces))


def _column(term: Bag | View | Again) -> int | None:
    """The column of a matrix that the ids of a plain single row are."""
    if not isinstance(term, Bag) or term.pool != "row" or term.count != 1 or len(term.ids.shape) != 2:
        return None
    plain = Bag(term.table, term.ids, "row", wraps=True)  # whatever else is said of a bag makes it another
    step = term.ids.steps[0] if len(term.ids.steps) == 1 else None
    cut = isinstance(step, Slice) and step.dim == 1 and step.step == 1 and len(term.ids.value.shape or ()) == 2
    return step.start if isinstance(step, Slice) and cut and replace(term, named=None) == plain else None


def _runs(bags: list[Bag] | list[Bag | None], fits: set[Value]) -> list[tuple[int, int]]:
    """Where bags read consecutive columns of one matrix, in order, and tables that fit together."""
    found, first = [], 0
    for stop in range(1, len(bags) + 1):
        if stop < len(bags) and _follows(bags[stop - 1], bags[stop], fits):
            continue
        run = [bag.table.value for bag in bags[first:stop] if bag is not None and bag.table.value in fits]
        size = sum(4 * int(np.prod(table.shape or ())) for table in run)
        if stop - first == len(run) >= FEWEST and size <= LARGEST:
            found.append((first, stop))
        first = stop
    return found


def _follows(one: Bag | None, other: Bag | None, fits: set[Value]) -> bool:
    if one is None or other is None or not {one.table.value, other.table.value} <= fits:
        return False
    before, after = _column(one), _column(other)
    if before is None or after != before + 1 or one.ids.value is not other.ids.value:
        return False
    return one.columns == other.columns


def _merged(host: Host, bags: list[Bag], pool: str) -> Bag:
    tables = [host.constant(bag.table.value) for bag in bags]
    value = host.add_constant(np.concatenate(tables), name=f"{bags[0].table.value.name}_and_others")
    counts = [len(table) for table in tables]
    starts = np.cumsum([0, *counts])
    ids = bags[0].ids
    first, rows = _column(bags[0]) or 0, ids.shape[0]
    part = () if (ids.value.shape or ())[1] == len(bags) else (Slice(1, first, first + len(bags)),)
    table = View(value, (int(starts[-1]), bags[0].columns))
    return replace(
        bags[0],
        table=table,
        ids=View(ids.value, (rows, len(bags)), part),
        pool=pool,
        named=None,
        stacked=tuple(int(n) for n in starts),
    )
