"""What optional passes over embedding tables share: which tables they may change, and how places of the graph are
rewritten and proved, by running them before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import lower
from .cost import bags_cost
from .errors import VerifyError
from .fused import Bag, EmbeddingBags, Reshape, Spec, reading
from .hosts.base import Array, Host, Value
from .ir.rules import FLOATS
from .lift.base import Lifted, reads
from .match import Match, No, is_data, needless
from .patterns import embedding_bags
from .report import Refusal, Rewrite
from .rewrite import Context, Place, places
from .verify import Verdict, compare, shapes_of

NO_CONSTANT = "the table is no constant of the model"
BLOCK = 1 << 22  # elements of a table that are looked at at once: a whole one is never copied


def find(host: Host, context: Context, name: str) -> list[Place]:
    """The embedding bags of the graph, in its order. What only looks like a table is refused, under the pass's name."""
    if context.places is None or context.no_tables is None:
        lifted = context.terms_of(host)
        context.no_tables = _no_tables(lifted)
        if context.places is None:
            context.places = places(host, _matches(lifted))
    context.report.refusals += [Refusal(name, where, why) for where, why in context.no_tables]
    return in_order(host, context.places)


def in_order(host: Host, found: Iterable[Place]) -> list[Place]:
    """Places in the order of the graph."""
    order = {node: n for n, node in enumerate(host.nodes)}
    return sorted(found, key=lambda place: order[place.value.node] if place.value.node else -1)


def _matches(lifted: Lifted) -> list[tuple[Match, Value]]:
    found: list[tuple[Match, Value]] = []
    for root in embedding_bags.roots(lifted):
        try:
            match = embedding_bags.match(lifted, root)
        except No:
            continue
        found += [] if match is None else [(match, root)]
    return found


def _no_tables(lifted: Lifted) -> list[tuple[str, str]]:
    """The matrices that data names rows of, and that are no constants."""
    found: dict[Value, None] = {}
    for t in lifted.definition.values():
        for read in reads(t.body):
            table = read.leaf
            if not isinstance(table, Value) or table.dtype not in FLOATS or lifted.host.is_constant(table):
                continue
            if len(read.index) == 2 and is_data(lifted, read.index[0]) and not is_data(lifted, read.index[1]):
                found[table] = None
    return [(table.name, NO_CONSTANT) for table in found]


def bags_of(found: Iterable[Place]) -> dict[Value, list[Bag]]:
    """The bags that read each table."""
    tables: dict[Value, list[Bag]] = {}
    for place in found:
        for bag in place.spec.bags:
            tables.setdefault(bag.table.value, []).append(bag)
    return tables


class Fitness:
    """Says of each table of `found` whether it can be stored in another way."""

    def __init__(self, host: Host, found: Sequence[Place]) -> None:
        self.host = host
        self.inside = {node for place in found for node in place.nodes}
        stored = dict.fromkeys(v for node in host.nodes for v in node.inputs if v.node is None and host.is_constant(v))
        # On another device an array is a copy, whose place in memory says nothing.
        self.stored = [v for v in stored if v.dtype != "string"] if host.device in ("", "cpu") else []
        self.spans = np.array([_span(host.constant(v)) for v in self.stored]).reshape(-1, 2)

    def why_not(self, bags: Sequence[Bag]) -> str:
        """Why the table of these bags, all that read it, must stay as it is, "" where it need not."""
        host, view = self.host, bags[0].table
        table = view.value
        if any(bag.table.steps for bag in bags):
            return "the table is a part of another tensor"
        if not host.is_constant(table):
            return NO_CONSTANT
        if table.node is not None:
            return "the table is computed"
        others = [node.name for node in host.users(table) if node not in self.inside]
        if others or host.is_output(table):
            return f"{', '.join(others) or 'the caller'} needs the table too"
        if any(bag.stored or bag.parts or bag.remap for bag in bags):
            return "another pass stores the table already"
        if table.dtype != "float32":
            return f"the table is of {table.dtype}"
        start, stop = _span(host.constant(table))
        over = (self.spans[:, 0] < stop) & (self.spans[:, 1] > start)
        tied = sorted(self.stored[n].name for n in np.flatnonzero(over) if self.stored[n] is not table)
        return f"{', '.join(tied)} shares the table's memory" if tied else ""


def _span(array: Array) -> tuple[int, int]:
    """The addresses at which an array begins and ends."""
    start = array.ctypes.data
    reach = sum((size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True))
    return (start, start + reach + array.itemsize) if array.size else (start, start)


def fixed_ids(host: Host, bags: Iterable[Bag]) -> str:
    """Why the ids of bags cannot be given other names, "" where they can."""
    for bag in bags:
        conditions = bag.live or bag.mask is not None or (bag.program and host.dialect == "aten")
        if conditions or bag.below or bag.above or bag.of_row or isinstance(bag.shift, tuple):
            return "ids under conditions, or that each column moves"
        if bag.wraps and host.dialect == "aten":
            return "negative ids count from the end"
    return ""


def blocks(table: Array) -> Iterable[tuple[int, Array]]:
    """The rows of a table by blocks, with the first row's number."""
    rows = max(BLOCK // max(table.shape[1], 1), 1)
    for start in range(0, table.shape[0], rows):
        yield start, table[start : start + rows]


def with_bags(spec: EmbeddingBags, new: Callable[[Bag], Bag]) -> EmbeddingBags:
    """`spec` with `new` of each bag."""
    pieces = tuple(tuple(new(t) if isinstance(t, Bag) else t for t in piece) for piece in spec.pieces)
    return replace(spec, pieces=pieces)


@dataclass(frozen=True)
class Change:
    """What a place becomes. `bound` is the largest absolute error of each column, None where the numbers stay."""

    place: Place
    spec: EmbeddingBags
    detail: str
    bound: Array | None = None


def rewrite(host: Host, context: Context, name: str, changes: Sequence[Change]) -> bool:
    """Write the changes, run all that changed before and after, and take back what disagrees. True where any stays."""
    changes = [c for c in changes if context.allows(name, c.place.value.name)]
    context.lifted = None if changes else context.lifted
    proves = context.verify and bool(context.inputs) and bool(changes)
    before = host.tap([c.place.value for c in changes]) if proves else None
    roots = [c.place.value.name for c in changes]
    moved: dict[Value, Value] = {}

    for change in changes:
        old = change.place.value
        assert old.node is not None
        with host.at(old.node):
            new = lower.write(host, reading(change.spec, moved), context.target)
        host.replace(old, new)
        moved[old] = new
    verdicts: Sequence[Verdict | None] = [None] * len(changes)
    if before is not None:
        after = host.tap([moved[c.place.value] for c in changes])
        verdicts = _verdicts(before, after, changes, context.inputs)
    kept: dict[Value, Change] = {}
    for change, root, verdict in zip(changes, roots, verdicts, strict=True):
        old = change.place.value
        if verdict is None or verdict.ok:
            kept[old] = change
            context.report.rewrites.append(_account(name, change, root, moved[old], verdict))
        else:
            host.replace(moved.pop(old), old)
            why = f"disagrees with what it replaces: {verdict.reproducer}"
            context.report.undone.append(Refusal(name, root, why))
    host.erase_dead()
    for place in context.places or ():
        made = kept.get(place.value)
        place.spec = _bags(reading(made.spec if made else place.spec, moved))
        if made:
            place.value = moved[place.value]
            place.nodes = needless(host, place.value, [view.value for view in place.spec.views])
    return bool(kept)


def _bags(spec: Spec) -> EmbeddingBags:
    assert isinstance(spec, EmbeddingBags)
    return spec


def _account(name: str, change: Change, root: str, value: Value, verdict: Verdict | None) -> Rewrite:
    saved = bags_cost(change.place.spec, 0) - bags_cost(change.spec, 0)
    before = tuple(node.name for node in change.place.nodes)
    after = (value.node.name if value.node else value.name,)
    error = None if verdict is None else verdict.error
    bound = None if change.bound is None else float(change.bound.max(initial=0.0))
    amounts = saved.bytes, saved.flops, saved.launches
    return Rewrite(name, embedding_bags.operator, root, before, after, *amounts, error, change.detail, bound)


def _verdicts(
    before: Host, after: Host, changes: Sequence[Change], inputs: Sequence[Sequence[Array]]
) -> Sequence[Verdict]:
    worst = [Verdict(0.0, 0.0)] * len(changes)
    for feed in inputs:
        expected = before.run(feed)
        try:
            actual = after.run(feed)
        except VerifyError as why:
            return [Verdict(float("inf"), float("inf"), f"does not run: {why}")] * len(changes)
        for n, change in enumerate(changes):
            found = compare(actual[n], expected[n], None, allowed=_allowed(change, expected[n].shape))
            where = f"inputs {shapes_of(feed)}: relative error {found.error:.1e}"
            worst[n] = max(worst[n], replace(found, reproducer=where), key=lambda verdict: verdict.excess)
    return worst


def _allowed(change: Change, shape: Sequence[int]) -> Array | float:
    """The bound of each element of a place's value."""
    if change.bound is None:
        return 0.0
    if not all(isinstance(step, Reshape) for step in change.spec.steps):
        return float(change.bound.max(initial=0.0))
    return np.resize(change.bound, shape)  # repeated row after row
