"""Graphs and their differences as text: one node a line, in the words of its host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ..hosts.base import Host, Node, Value
from ..report import Report

SMALL = 8  # elements: an attribute tensor up to this is written out


def show(host: Host) -> str:
    """All of a graph: inputs, nodes, outputs.

    Gemm(x, w, b) -> `%out: float32[s0, 64] = Gemm(%x, %w, %b) {transB=1}`
    """
    lines = [f"input {_typed(value)}" for value in host.inputs]
    lines += [line(node) for node in host.nodes]
    return "\n".join([*lines, f"output {', '.join(map(repr, host.outputs))}"])


def line(node: Node) -> str:
    """One node: its outputs with their types, its operator, its arguments, its attributes."""
    return f"{', '.join(map(_typed, node.outputs)) or node.name} = {_call(node)}"


def diff(before: Host, after: Host, report: Report | None = None) -> str:
    """What was removed (-), added (+) and rewired (~) from `before` to `after`; "" when nothing was.

    Grouped by the rewrites of `report`; without one, by the values and weights that both graphs share. Nodes are the
    same where their outputs' names are: recopt keeps the names of all that it leaves.
    """
    old, new = _Graph(before), _Graph(after)
    shared = old.nodes.keys() & new.nodes.keys()
    kept = {key for key in shared if _call(old.nodes[key]) == _call(new.nodes[key])}
    rewired = {key for key in shared - kept if old.nodes[key].op == new.nodes[key].op}
    if report is not None:
        groups = list(_by_rewrite(report, old, new, kept))
        rewired -= {_key(node) for group in groups for node in (*group.removed, *group.added)}
    else:
        groups = _by_value(old, new, rewired, old.without(kept | rewired), new.without(kept | rewired))
    told = {_key(n) for g in groups for n in g.removed}, {_key(n) for g in groups for n in g.added}
    rest = _Group("elsewhere", old.without(kept | rewired | told[0]), new.without(kept | rewired | told[1]))
    parts = [str(group) for group in (*groups, rest) if group.removed or group.added]
    moved = [_rewired(old.nodes[key], new.nodes[key]) for key in old.nodes if key in rewired]
    parts += ["\n".join(["rewired", *moved])] if moved else []
    return "\n\n".join([f"{len(old.nodes)} nodes -> {len(new.nodes)} nodes", *parts]) if parts else ""


class _Graph:
    """A host's nodes by the name of their first output, which is unique in every host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.nodes = {_key(node): node for node in host.nodes}
        self.by_name = {node.name or _key(node): node for node in host.nodes}  # ONNX lets nodes go without a name
        self.producer = {value.name: node for node in host.nodes for value in node.outputs}

    def without(self, keys: set[str]) -> list[Node]:
        return [node for key, node in self.nodes.items() if key not in keys]

    def weights(self, node: Node) -> list[str]:
        """The names of the constants of rank 2 and more that `node` reads."""
        return [v.name for v in node.inputs if v.shape is not None and len(v.shape) > 1 and self.host.is_constant(v)]


@dataclass
class _Group:
    title: str
    removed: list[Node] = field(default_factory=list)
    added: list[Node] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [self.title, *(f"  - {line(n)}" for n in self.removed), *(f"  + {line(n)}" for n in self.added)]
        return "\n".join(lines)


def _by_rewrite(report: Report, old: _Graph, new: _Graph, kept: set[str]) -> Iterator[_Group]:
    told: set[int] = set()

    def take(names: Iterable[str], graph: _Graph) -> list[Node]:
        found = [graph.by_name[name] for name in names if name in graph.by_name]
        fresh = [node for node in found if id(node) not in told and _key(node) not in kept]
        told.update(map(id, fresh))
        return fresh

    for rewrite in report.rewrites:
        title = f"{rewrite.pattern}: {rewrite.operator} at %{rewrite.root}"
        title += f"\n  {rewrite.detail}" if rewrite.detail else ""
        yield _Group(title, take(rewrite.before, old), take(rewrite.after, new))


def _by_value(old: _Graph, new: _Graph, rewired: set[str], removed: list[Node], added: list[Node]) -> list[_Group]:
    """Nodes that replace each other, guessed: a node with a weight of its own starts a group, any other joins its
    producer's; groups join that share a weight or whose results take each other's place."""
    sets = _Sets([*removed, *added])
    by_weight: dict[str, Node] = {}
    for graph, nodes in ((old, removed), (new, added)):
        for node in nodes:
            weights = graph.weights(node)
            for weight in weights:
                sets.join(node, by_weight.setdefault(weight, node))
            producers = [graph.producer[v.name] for v in node.inputs if v.name in graph.producer]
            for producer in [p for p in producers if p in sets][:1] if not weights else []:
                sets.join(node, producer)
    for u, v in _counterparts(old, new, rewired):
        a, b = old.producer.get(u.name), new.producer.get(v.name)
        if a is not None and b is not None and a in sets and b in sets:
            sets.join(a, b)
    groups: dict[int, _Group] = {}
    for node in removed:
        groups.setdefault(sets.root(node), _Group("")).removed.append(node)
    for node in added:
        groups.setdefault(sets.root(node), _Group("")).added.append(node)
    for group in groups.values():
        group.title = f"{_operators(group.removed)} -> {_operators(group.added)}"
    return list(groups.values())


def _counterparts(old: _Graph, new: _Graph, rewired: set[str]) -> Iterator[tuple[Value, Value]]:
    yield from zip(old.host.outputs, new.host.outputs, strict=False)
    for key in old.nodes.keys() & new.nodes.keys():
        yield from zip(old.nodes[key].outputs, new.nodes[key].outputs, strict=False)
    for key in rewired:
        yield from zip(old.nodes[key].inputs, new.nodes[key].inputs, strict=False)


class _Sets:
    """Disjoint sets of nodes."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.parent = {id(node): id(node) for node in nodes}

    def __contains__(self, node: Node) -> bool:
        return id(node) in self.parent

    def root(self, node: Node) -> int:
        at = id(node)
        while self.parent[at] != at:
            self.parent[at] = at = self.parent[self.parent[at]]
        return at

    def join(self, a: Node, b: Node) -> None:
        self.parent[self.root(b)] = self.root(a)


def _key(node: Node) -> str:
    return node.outputs[0].name if node.outputs else node.name


def _rewired(old: Node, new: Node) -> str:
    pairs = [(_argument(a), _argument(b)) for a, b in zip(old.inputs, new.inputs, strict=False)]
    for name in sorted(old.kwargs.keys() | new.kwargs.keys()):
        was, now = (f"{name}={_argument(n.kwargs[name])}" if name in n.kwargs else "nothing" for n in (old, new))
        pairs.append((was, now))
    changes = dict.fromkeys(f"{was} -> {now}" for was, now in pairs if was != now)
    return f"  ~ {line(new)}  ({', '.join(changes) or f'was {_call(old)}'})"


def _operators(nodes: list[Node]) -> str:
    counts = Counter(node.op for node in nodes)
    return ", ".join(f"{n} {op}" if n > 1 else op for op, n in counts.items()) or "nothing"


def _call(node: Node) -> str:
    attributes = ", ".join(f"{name}={_argument(value)}" for name, value in sorted(node.kwargs.items()))
    return f"{node.op}({', '.join(map(_argument, node.args))})" + (f" {{{attributes}}}" if attributes else "")


def _typed(value: Value) -> str:
    if value.dtype is None:
        return f"%{value.name}"
    if value.scalar:
        return f"%{value.name}: {value.dtype}"
    sizes = "?" if value.shape is None else ", ".join(map(str, value.shape))
    return f"%{value.name}: {value.dtype}[{sizes}]"


def _argument(item: object) -> str:
    if isinstance(item, Value):
        return f"%{item.name}"
    if item is None:
        return "_"
    if isinstance(item, str):
        return f'"{item}"'
    if isinstance(item, (tuple, list)):
        return f"[{', '.join(map(_argument, item))}]"
    if isinstance(item, np.ndarray):
        return _argument(item.tolist()) if item.size <= SMALL else f"{item.dtype}{list(item.shape)}"
    if isinstance(item, float):
        with np.errstate(over="ignore"):
            short = np.float32(item)  # ONNX keeps attributes as float32: 1e-05, not 9.99999974737875e-06
        return str(short) if float(short) == item else str(item)
    return str(item)
