"""The same chain on many columns of one tensor: found by what it computes, written once over all of them (ONNX)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from . import lower
from .errors import LowerError
from .hosts.base import Array, Host, Node, Value
from .ir.sizes import Size
from .moves import shortest
from .positions import MOST, Elements, Form, NotLayout, form_of, itself, through
from .relayout import Layouts, find
from .report import Rewrite
from .rewrite import Context

POINTWISE = frozenset(
    """Mod Add Sub Mul Div Pow Neg Abs Sign Floor Ceil Round Sqrt Reciprocal Exp Log Sin Cos Tanh Sigmoid Relu Erf
    Softplus Min Max Where Equal Greater Less GreaterOrEqual LessOrEqual And Or Not Xor BitShift BitwiseAnd BitwiseOr
    BitwiseXor BitwiseNot Cast IsNaN IsInf Clip""".split()
)
OPERATORS = POINTWISE | {"ReduceSum"}
ROUNDS = 16  # of chains on what other chains computed
FEWEST = 2  # columns


@dataclass(frozen=True, eq=False)
class Tree:
    """An operator over columns: `parts` are trees, constants of a row, or elements of a row of some value."""

    node: Node
    key: Hashable
    counts: tuple[int, ...]  # of a row
    parts: tuple[Tree | Array | Elements | Value | None, ...]
    nodes: int
    lanes: int = 0  # elements that are added up for one of these; 0: it is no sum

    @property
    def width(self) -> int:
        return int(np.prod(self.counts, dtype=np.int64))


@dataclass
class _Work:
    host: Host
    context: Context
    name: str
    found: Layouts
    lead: dict[Value, Size] = field(default_factory=dict)
    elements: dict[Value, Elements] = field(default_factory=dict)
    trees: dict[Node, Tree] = field(default_factory=dict)
    order: dict[Node, int] = field(default_factory=dict)
    done: set[Node] = field(default_factory=set)

    def run(self) -> bool:
        self.order = {node: n for n, node in enumerate(self.host.nodes)}
        self.elements = dict(self.found.deep)
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
            if node not in self.done and node.op in OPERATORS and not node.opaque and len(node.outputs) == 1:
                tree = self.total(node) if node.op == "ReduceSum" else self.tree(node)
                if tree is not None:
                    self.trees[node] = tree
                    inner.update(p.node for p in tree.parts if isinstance(p, Tree))
        found: dict[Hashable, list[Tree]] = {}
        for node, tree in self.trees.items():
            if node not in inner:
                found.setdefault(tree.key, []).append(tree)
        return [g for g in found.values() if len(g) >= FEWEST]

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
        parts: list[Tree | Array | Elements | Value | None] = []
        keys: list[Hashable] = []
        nodes = 1
        for n, arg in enumerate(node.args):
            if arg is None:
                parts.append(None)
                keys.append(None)
                continue
            if self.host.is_constant(arg):
                array = self.host.constant(arg)
                if node.op == "Clip" and n > 0:  # its bounds are numbers
                    parts.append(arg)
                    keys.append(("same", arg.dtype, array.tobytes()))
                    continue
                if array.ndim > len(counts) and not (array.ndim == len(counts) + 1 and array.shape[0] == 1):
                    return None
                array = array.reshape(array.shape[max(0, array.ndim - len(counts)) :])
                parts.append(np.broadcast_to(array, counts))
                keys.append(("constant", arg.dtype))
                continue
            below = self.trees.get(arg.node) if arg.node is not None else None
            if (
                below is not None
                and below.counts == counts
                and arg.shape == out.shape
                and len(self.host.users(arg)) == 1
                and not self.host.is_output(arg)
            ):
                parts.append(below)
                keys.append(below.key)
                nodes += below.nodes
                continue
            source = self.source(arg, size, counts)
            if source is None:
                return None
            parts.append(source)
            keys.append(("elements", id(source.sources[0][0])))
        if not any(isinstance(p, (Tree, Elements)) for p in parts):
            return None
        attributes = tuple(sorted((k, str(v)) for k, v in node.kwargs.items()))
        return Tree(node, (node.op, attributes, out.dtype, size, *keys), counts, tuple(parts), nodes)

    def total(self, node: Node) -> Tree | None:
        """A sum of integers along the last dimension of a tree, which no order changes: a bucket counts its bounds."""
        out, data = node.outputs[0], node.args[0]
        below, row = self.trees.get(data.node), self.row(out)
        axes = node.kwargs.get("axes") or (
            self.host.constant(node.args[1]).tolist()
            if len(node.args) > 1 and self.host.is_constant(node.args[1])
            else ()
        )
        if below is None or row is None or out.dtype not in ("int32", "int64") or not below.counts:
            return None
        kept = (1,) if node.kwargs.get("keepdims", 1) else ()
        if list(axes) not in ([-1], [len(below.counts)]) or row[1] != (*below.counts[:-1], *kept):
            return None
        if len(self.host.users(data)) != 1 or self.host.is_output(data) or below.lanes or below.counts[-1] < 2:
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
        source, order = own.sources[0]
        theirs = self.row(source)
        if theirs is None or theirs[0] != size or order != (0,):
            return None
        where = np.broadcast_to(own.where.reshape(row[1]), counts).reshape(-1)
        form = Form((size, 1), (1, where.size))
        return Elements(form, own.dtype, own.sources, np.zeros(where.size, np.int32), where)

    def write(self, group: Sequence[Tree]) -> bool:
        """Write a group once over all columns, where that leaves fewer nodes."""
        if sum(t.width for t in group) > MOST:
            return False
        slots = _slots(group[0])
        if group[0].nodes * len(group) <= group[0].nodes + slots + 1:  # the slices of operands become slices of results
            return False
        root = group[0].node.outputs[0]
        if not self.context.allows(self.name, root.name):
            return False
        first = min((t.node for t in group), key=self.order.__getitem__)
        try:
            with self.host.at(first):
                whole = self.stacked(group, root.name)
        except LowerError:
            return False
        begin = 0
        made = []
        for t in group:
            value = t.node.outputs[0]
            positions = np.arange(begin, begin + t.width)
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
        for dead in (n for t in group for n in _nodes(t)):
            self.done.add(dead)
        # layouts of what was replaced are layouts of the whole now
        moved = {t.node.outputs[0]: n for t, n in zip(group, made, strict=True)}
        for value, local in self.found.local.items():
            if any(leaf in moved for leaf, _ in local.sources):
                self.elements[value] = through(local, self.elements)
        names = tuple(n.name for t in group for n in _nodes(t))
        detail = f"{len(group)} columns of {group[0].nodes} operators"
        node = whole.node.name if whole.node else whole.name
        self.context.report.rewrites.append(
            Rewrite(self.name, "columns", root.name, names, (node,), 0.0, 0.0, float(len(group) - 1), None, detail)
        )
        return True

    def summed(self, group: Sequence[Tree], name: str) -> Value:
        """Sums over [rows, all columns, what is added up]. Raises LowerError."""
        first = group[0]
        below = [p for t in group for p in t.parts if isinstance(p, Tree)]
        data = self.stacked(below, name, first.lanes)
        out = first.node.outputs[0]
        assert data.shape is not None
        args, kwargs = [data], {"keepdims": 0, "axes": [2]}
        if len(first.node.args) > 1:
            args.append(self.host.share_constant(np.array([2], np.int64), name=f"{name}_axis"))  # type: ignore[attr-defined]  # an ONNX host
            del kwargs["axes"]
        shape = data.shape[:2]
        return self.host.call("ReduceSum", args, kwargs, name=f"{name}_columns", shape=shape, dtype=out.dtype, like=out)

    def stacked(self, group: Sequence[Tree], name: str, lanes: int = 0) -> Value:
        """The operators of a group over [rows, all columns], or [rows, columns, lanes]. Raises LowerError."""
        host, first = self.host, group[0]
        if first.lanes:
            return self.summed(group, name)
        width = sum(t.width for t in group)
        args: list[Value | None] = []
        for n, part in enumerate(first.parts):
            parts = [t.parts[n] for t in group]
            if isinstance(part, Tree):
                args.append(self.stacked([p for p in parts if isinstance(p, Tree)], name, lanes))
            elif part is None or isinstance(part, Value):
                args.append(part)
            elif isinstance(part, Elements):
                args.append(self.gathered([p for p in parts if isinstance(p, Elements)], name, lanes))
            else:
                row = np.concatenate([np.asarray(p).reshape(-1) for p in parts])
                same = row.size > 0 and row.tobytes() == row[:1].tobytes() * row.size
                row = row[:1] if same else row.reshape(-1, lanes) if lanes else row
                args.append(host.share_constant(row, name=f"{name}_columns"))  # type: ignore[attr-defined]  # an ONNX host
        out = first.node.outputs[0]
        assert out.shape is not None
        shape = (out.shape[0], width // lanes, lanes) if lanes else (out.shape[0], width)
        return host.call(
            first.node.op, args, first.node.kwargs, name=f"{name}_columns", shape=shape, dtype=out.dtype, like=out
        )

    def gathered(self, parts: Sequence[Elements], name: str, lanes: int) -> Value:
        where = np.concatenate([p.where for p in parts])
        first = parts[0]
        form = Form(first.form.opens, (1, where.size))
        if lanes:
            rows = where.reshape(-1, lanes)
            where = rows[:, 0] if (rows == rows[:, :1]).all() else where  # one element for all lanes
            form = Form((*first.form.opens, 1), (1, len(rows), where.size // len(rows)))
        plan = shortest(Elements(form, first.dtype, first.sources, np.zeros(where.size, np.int32), where))
        if plan is None:
            raise LowerError("columns that no layout operator gathers")
        from .lower.onnx_moves import moved

        return moved(self.host, plan, name, {})  # type: ignore[arg-type]  # an ONNX host


def _slots(tree: Tree) -> int:
    return sum(_slots(p) if isinstance(p, Tree) else isinstance(p, Elements) for p in tree.parts)


def _nodes(tree: Tree) -> list[Node]:
    return [*(n for p in tree.parts if isinstance(p, Tree) for n in _nodes(p)), tree.node]


def stack_columns(host: Host, context: Context, name: str) -> bool:
    """Write every chain that many columns share once. True where any is written."""
    if host.dialect != "onnx":
        return False
    if not any(n.op in POINTWISE for n in host.nodes):
        return False
    if not _Work(host, context, name, find(host, context)).run():
        return False
    context.lifted = None
    host.erase_dead()
    return True
