"""The same chain on many columns of one tensor: found by what it computes, written once over all of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .. import lower
from ..cost import ON_CPU
from ..errors import LowerError
from ..hosts.base import Array, Host, Node, Value
from ..ir import tensor
from ..ir.sizes import Size
from ..layout.buckets import Bucket, buckets, cone
from ..layout.moves import Plan, by_nodes, by_time
from ..layout.positions import MOST, Elements, Form, NotLayout, form_of, itself, of_term, through
from ..layout.shortest import shortest
from ..lower.columns import Columns, Fixed, Number
from ..report import Rewrite
from ..rewrite import Context
from .column_times import OPERATOR, gathering, lanes_of, saved
from .column_trees import Tree, distinct, fitted, keeps_apart, key_of, nodes_of, reads_of, skeleton, slots
from .relayout import Layouts, find, writes_in_place

ROUNDS = 16  # of chains on what other chains computed
FEWEST = 2  # columns
TALLEST = 200  # operators of a tree: what follows is another, of a later round


@dataclass
class _Work:
    host: Host
    context: Context
    name: str
    found: Layouts
    columns: Columns
    buckets: dict[Value, Bucket]
    elements: dict[Value, Elements] = field(default_factory=dict)
    trees: dict[Node, Tree] = field(default_factory=dict)
    order: dict[Node, int] = field(default_factory=dict)
    done: set[Node] = field(default_factory=set)
    layouts: dict[Value, list[tuple[int, Value]]] = field(default_factory=dict)  # of a value, with their order
    left: float = np.inf  # of the time that what is written now saves, for gathers
    several: bool = False  # whether that reads more columns than it makes
    places: Array | None = None  # of the columns of a group among those, where some are the same
    kept: Array | None = None  # the columns of what is written now, where some are the same

    def run(self) -> bool:
        self.order = {node: n for n, node in enumerate(self.host.nodes)}
        self.elements = dict(self.found.deep)
        for n, (value, local) in enumerate(self.found.local.items()):
            for leaf, _ in local.sources:
                self.layouts.setdefault(leaf, []).append((n, value))
        for value, bucket in self.buckets.items():  # what counts boundaries is one operator
            self.done.update(n for n in cone(self.host, value, {bucket.source}) if n is not value.node)
        changed = False
        for _ in range(ROUNDS):
            groups = [g for g in self.groups() if self.write(g)]
            if not groups:
                break
            changed = True
        return changed

    def groups(self) -> list[list[Tree]]:
        """Chains of one form over the same tensors, where nothing reads on in the same way."""
        self.trees.clear()
        inner: set[Node] = set()
        for node in self.order:
            if node in self.done or node.opaque or len(node.outputs) != 1:
                continue
            tree = self.tree_of(node)
            if tree is not None:
                self.trees[node] = tree
                inner.update(p.node for p in tree.parts if isinstance(p, Tree))
        found: dict[Hashable, list[Tree]] = {}
        for node, tree in self.trees.items():
            if node not in inner:
                found.setdefault(tree.key, []).append(tree)
        return [g for g in self.joined(found.values()) if len(g) >= FEWEST or g[0].bucket is not None]

    def joined(self, groups: Iterable[list[Tree]]) -> list[list[Tree]]:
        """Groups, those of few columns that lack operators of many (x % 10 beside (x + n) % 10) in the larger one, with
        numbers that change nothing."""
        alike: dict[Hashable, list[list[Tree]]] = {}
        for group in groups:
            alike.setdefault(skeleton(group[0]), []).append(group)
        found = []
        for some in alike.values():
            model = max(some, key=lambda g: (sum(t.width for t in g), g[0].nodes))
            for group in some:
                fitting = [] if group is model else [fitted(t, t.counts, model[0]) for t in group]
                if fitting and all(isinstance(t, Tree) for t in fitting):
                    model += [t for t in fitting if isinstance(t, Tree)]
                elif group is not model:
                    found.append(group)
            found.append(sorted(model, key=lambda t: self.position(t.out)))
        return found

    def position(self, value: Value) -> int:
        """Where a value is computed."""
        assert value.node is not None
        return self.order[value.node]

    def tree_of(self, node: Node) -> Tree | None:
        if node.outputs[0] in self.buckets:
            return self.counted(node, self.buckets[node.outputs[0]])
        if self.columns.sum_axes(node) is not None:
            return self.total(node)
        if self.columns.stacks(node) or self.columns.spreads(node):
            return self.tree(node)
        return None

    def row(self, value: Value) -> tuple[Size, tuple[int, ...]] | None:
        """The open size in front, and what a row of it is."""
        if value.shape is None or not value.shape or isinstance(value.shape[0], int):
            return None
        form = form_of(value.shape)
        if form.symbolic != (0,) or form.counts[0] != 1 or not 0 < form.total <= MOST:
            return None
        return form.opens[0], form.counts[1:]

    def tree(self, node: Node) -> Tree | None:
        out = node.outputs[0]
        row = self.row(out)
        if row is None or self.host.is_constant(out):
            return None
        size, counts = row
        taken = counts[:-1] if self.columns.spreads(node) else counts
        parts: list[Tree | Array | Elements | Fixed | Number | None] = []
        keys: list[Hashable] = []
        for arg in self.columns.arguments(node):
            part = self.operand(arg, out, size, taken) if isinstance(arg, Value) else arg
            if isinstance(arg, Value) and part is None:
                return None
            parts.append(part)
            keys.append(key_of(part))
        if not any(isinstance(p, (Tree, Elements)) for p in parts):
            return None
        attributes = tuple(sorted((k, str(v)) for k, v in node.kwargs.items()))
        key = (node.op, attributes, out.dtype, size, len(counts) - len(taken) and counts[-1], *keys)  # HEAD, and parts
        return Tree(node, key, counts, tuple(parts), 1 + sum(p.nodes for p in parts if isinstance(p, Tree)))

    def operand(self, arg: Value, out: Value, size: Size, counts: tuple[int, ...]) -> Tree | Array | Elements | None:
        """A tensor that an operator reads, as columns that are broadcast to `counts`."""
        if self.host.is_constant(arg):
            array = self.host.constant(arg)
            if array.ndim > len(counts) and not (array.ndim == len(counts) + 1 and array.shape[0] == 1):
                return None
            array = array.reshape(array.shape[max(0, array.ndim - len(counts)) :])
            return np.broadcast_to(array, counts)
        number = self.columns.filled(arg)
        if number is not None and self.row(arg) == (size, counts):
            return np.broadcast_to(number, counts)
        below = self.trees.get(arg.node) if arg.node is not None else None
        alone = len(self.host.users(arg)) == 1 and not self.host.is_output(arg)
        alone = alone and below is not None and below.nodes < TALLEST
        if below is not None and below.counts == counts and self.row(arg) == (size, counts) and alone:
            return below
        return self.source(arg, size, counts)

    def counted(self, node: Node, bucket: Bucket) -> Tree | None:
        """What counts boundaries, as one operator on what it is said of."""
        out, row = node.outputs[0], self.row(node.outputs[0])
        if row is None or len(bucket.edges) > self.columns.most_edges:
            return None
        if not self.columns.can_count(bucket.right, bucket.nan_above):
            return None
        try:
            own = through(of_term(self.context.terms_of(self.host), bucket.x, str(bucket.x.dtype)), self.elements)
            if not own.single:
                own = of_term(self.context.terms_of(self.host), bucket.x, str(bucket.x.dtype))
        except NotLayout:
            return None
        source = self.of_row(own, row[0])
        if source is None or source.where.size != int(np.prod(row[1], dtype=np.int64)):
            return None
        nodes = len(cone(self.host, out, {bucket.source}))
        key = ("counted", bucket.right, bucket.nan_above, out.dtype, row[0], key_of(source))
        return Tree(node, key, row[1], (source,), nodes, bucket=bucket)

    def total(self, node: Node) -> Tree | None:
        """A sum of integers along the last dimension of a tree, which no order changes: a bucket counts its bounds."""
        out, data = node.outputs[0], node.args[0]
        below, row = self.trees.get(data.node), self.row(out)
        axes, keeps = self.columns.sum_axes(node) or ([], False)
        if below is None or row is None or out.dtype not in ("int32", "int64") or not below.counts:
            return None
        if axes not in ([-1], [len(below.counts)]) or row[1] != (*below.counts[:-1], *((1,) if keeps else ())):
            return None
        if len(self.host.users(data)) != 1 or self.host.is_output(data) or below.counts[-1] < 2:
            return None
        if not keeps_apart(below, self.columns):
            return None
        key = ("sum", below.counts[-1], below.key)
        return Tree(node, key, row[1], (below,), below.nodes + 1, below.counts[-1])

    def source(self, value: Value, size: Size, counts: tuple[int, ...]) -> Elements | None:
        """What a row of an operand reads, repeated to what it is broadcast to."""
        row = self.row(value)
        if row is None or row[0] != size or len(row[1]) > len(counts):
            return None
        try:
            own = self.elements.get(value) or itself(value)
        except NotLayout:
            return None
        if not own.single or len(row[1]) != len(counts):
            own = itself(value)
        if len(row[1]) != len(counts):  # it would be broadcast along the open size
            return None
        found = self.of_row(own, size)
        if found is None:
            return None
        where = np.broadcast_to(found.where.reshape(row[1]), counts).reshape(-1)
        return replace(found, form=Form((size, 1), (1, where.size)), which=np.zeros(where.size, np.int32), where=where)

    def of_row(self, own: Elements, size: Size) -> Elements | None:
        """Elements that are of the same row of one value each, as a row."""
        source, order = own.sources[0]
        theirs = self.row(source)
        if not own.single or theirs is None or theirs[0] != size or order != (0,):
            return None
        return replace(own, form=Form((size, 1), (1, own.where.size)), pieces=None)

    def write(self, group: Sequence[Tree]) -> bool:
        """Write a group once over all columns, where that leaves fewer nodes."""
        if sum(t.width for t in group) > MOST:
            return False
        most = max(t.nodes for t in group)
        after = most if group[0].bucket is None else self.columns.counting
        if sum(t.nodes for t in group) <= after + slots(group[0]) + (
            len(group) > 1
        ):  # operands' slices become results'
            return False
        root, self.several = group[0].out, slots(group[0]) > 1
        if not self.context.allows(self.name, root.name):
            return False
        whole = self.whole(group, after, 0)
        if whole is None and self.context.target in ON_CPU and (lanes := lanes_of(group)):
            whole = self.whole(group, after, lanes)
        if whole is None:
            return False
        places = np.arange(sum(t.width for t in group)) if self.places is None else self.places
        begin = 0
        made = []
        for t in group:
            value = t.out
            positions = places[begin : begin + t.width]
            begin += t.width
            assert value.shape is not None and value.dtype is not None
            piece = Elements(
                form_of(value.shape), value.dtype, ((whole, (0,)),), np.zeros(t.width, np.int32), positions
            )
            plan = shortest(piece)
            assert plan is not None
            (new,) = lower.moves(self.host, [(value, plan, None)], {})
            self.host.replace(value, new)
            self.elements[value] = self.elements[new] = piece
            made.append(new)
        for dead in (n for t in group for n in nodes_of(t)):
            self.done.add(dead)
        # layouts of what was replaced are layouts of the whole now
        moved = {t.out: n for t, n in zip(group, made, strict=True)}
        for _, value in sorted({layout for old in moved for layout in self.layouts.get(old, ())}):
            self.elements[value] = through(self.found.local[value], self.elements)
        names = tuple(n.name for t in group for n in nodes_of(t))
        detail = f"{len(group)} columns of {most} operators"
        node = whole.node.name if whole.node else whole.name
        self.context.report.rewrites.append(
            Rewrite(self.name, "columns", root.name, names, (node,), 0.0, 0.0, float(len(group) - 1), None, detail)
        )
        return True

    def whole(self, group: Sequence[Tree], after: int, lanes: int) -> Value | None:
        """A group written over all columns, in `after` operators; None where that takes longer on a CPU."""
        if self.context.target in ON_CPU:
            self.left = saved(self.host, self.found, group, after, lanes)
        if self.context.target == "portable":  # a node less counts as much again
            self.left += (sum(t.nodes for t in group) - after) * OPERATOR
        if self.left < 0:
            return None
        self.kept, self.places = (None if lanes else self.shared(group)) or (None, None)
        first = min((t.out for t in group), key=self.position).node
        assert first is not None
        try:
            with self.host.at(first):
                return self.stacked(group, group[0].out.name, lanes)
        except LowerError:
            return None

    def stacked(self, group: Sequence[Tree], name: str, lanes: int = 0) -> Value:
        """The operators of a group over [rows, all columns], or [rows, columns, lanes]. Raises LowerError."""
        first, out = group[0], group[0].node.outputs[0]
        assert out.shape is not None and out.dtype is not None
        if first.bucket is not None:
            x = self.gathered([p for t in group for p in t.parts if isinstance(p, Elements)], name, 0)
            edges = [t.bucket.edges.astype(x.dtype) for t in group if t.bucket is not None for _ in range(t.width)]
            return self.columns.counted(x, edges, first.bucket.right, first.bucket.nan_above, out.dtype, name)
        if first.lanes:
            below = [p for t in group for p in t.parts if isinstance(p, Tree)]
            return self.columns.summed(first.node, self.stacked(below, name, first.lanes), name)
        args = [self.argument(group, n, name, lanes) for n in range(len(first.parts))]
        width = sum(t.width for t in group) if self.kept is None else len(self.kept)
        shape = (out.shape[0], width // lanes, lanes) if lanes else (out.shape[0], width)
        return self.columns.call(first.node, args, shape, name)

    def argument(self, group: Sequence[Tree], n: int, name: str, lanes: int) -> object:
        """Argument n of the operators of a group, over all columns. Raises LowerError."""
        parts, first = [t.parts[n] for t in group], group[0].parts[n]
        if isinstance(first, Tree):
            return self.stacked([p for p in parts if isinstance(p, Tree)], name, lanes)
        if isinstance(first, Elements):
            return self.gathered([p for p in parts if isinstance(p, Elements)], name, lanes)
        if first is None or isinstance(first, Fixed):
            return first and first.value
        if isinstance(first, Number):
            numbers = [p.value for p in parts if isinstance(p, Number)]
            if len({repr(v) for v in numbers}) == 1:
                return first.value
            row = np.repeat(np.array(numbers, first.dtype), [t.width for t in group])
        else:
            row = np.concatenate([np.asarray(p).reshape(-1) for p in parts])
        row = row if self.kept is None else row[self.kept]
        same = row.size > 0 and row.tobytes() == row[:1].tobytes() * row.size
        return self.columns.constant(row[:1] if same else row.reshape(-1, lanes) if lanes else row, name)

    def shared(self, group: Sequence[Tree]) -> tuple[Array, Array] | None:
        """What `distinct` finds, where the columns without the repeated ones are read by fewer operators."""
        if slots(group[0]) != 1 or not all(keeps_apart(t, self.columns) for t in group):
            return None
        found = distinct(group)
        if found is None:
            return None
        reads = reads_of(group)
        where = np.concatenate([p.where for p in reads])
        few, all_ = (self.plan(reads[0], w, 0) for w in (where[found[0]], where))
        return found if few is not None and (all_ is None or few.cost[0] < all_.cost[0]) else None

    def gathered(self, parts: Sequence[Elements], name: str, lanes: int) -> Value:
        where = np.concatenate([p.where for p in parts])
        plan = self.plan(parts[0], where if self.kept is None else where[self.kept], lanes)
        if plan is None:
            raise LowerError("columns that no layout operator gathers")
        self.left -= gathering(plan)
        if self.left < 0:
            raise LowerError("columns that take longer to gather than what is saved")
        return self.columns.gathered(plan, name)

    def plan(self, first: Elements, where: Array, lanes: int) -> Plan | None:
        """How columns of one value are read."""
        form = Form(first.form.opens, (1, where.size))
        if lanes:
            rows = where.reshape(-1, lanes)
            where = rows[:, 0] if (rows == rows[:, :1]).all() else where  # one element for all lanes
            form = Form((*first.form.opens, 1), (1, len(rows), where.size // len(rows)))
        wanted = Elements(form, first.dtype, first.sources, np.zeros(where.size, np.int32), where)
        timed = self.context.target == "ort-cpu" and self.several  # of one value, what follows may be turned with it
        return shortest(wanted, by_time if timed else by_nodes, timed)


def _edges_of(columns: Columns, nodes: Iterable[Node]) -> dict[Value, Bucket]:
    """The operators that count boundaries by themselves."""
    found: dict[Value, Bucket] = {}
    for node in nodes:
        counts = columns.counts_edges(node)
        if counts is None:
            continue
        x, edges, right = counts
        if x.shape is not None and x.dtype is not None:
            found[node.outputs[0]] = Bucket(tensor.leaf(x, x.shape, x.dtype), x, edges, right, nan_above=True)
    return found


def stack_columns(host: Host, context: Context, name: str) -> bool:
    """Write every chain that many columns share once. True where any is written."""
    columns = lower.columns_of(host)
    if not any(columns.stacks(n) or columns.counts_edges(n) is not None for n in host.nodes):
        return False
    if writes_in_place(host):
        return False
    found = find(host, context)
    counts = buckets(context.terms_of(host), found.local) if host.dialect == "onnx" else _edges_of(columns, host.nodes)
    if not _Work(host, context, name, found, columns, counts).run():
        return False
    return context.settle(host, True)
