"""Rewrites layout chains of a host to the shortest known ones: where each is, what it costs, when it pays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from .. import lower
from ..cost import ON_CPU
from ..errors import LowerError
from ..fused import Permute, Reshape
from ..hosts.base import Host, Node, Value
from ..layout.memory import COPIES, REGROUPS, VIEWS, copies, is_fresh, plan_copies
from ..layout.moves import Cost as PlanCost
from ..layout.moves import Join, Plan, by_nodes, by_time
from ..layout.moves_check import agrees
from ..layout.positions import CASTS, Elements, NotLayout, itself, of_term, through, uncast
from ..layout.shortest import shortest
from ..lower.columns import unchanged
from ..match import needless
from ..report import Refusal, Rewrite
from ..rewrite import Context

OPERATORS: dict[str, frozenset[str]] = {
    "onnx": frozenset(
        """Identity Reshape Flatten Squeeze Unsqueeze Transpose Expand Tile Concat Slice Split Pad Gather GatherElements
        GatherND Einsum DepthToSpace SpaceToDepth Trilu com.microsoft::ExpandDims com.microsoft::GatherND
        com.microsoft::Trilu Cast Dropout SequenceAt ConcatFromSequence ScatterND ScatterElements""".split()
    ),
    "aten": VIEWS | REGROUPS | COPIES | (CASTS - {"Cast"}),
}
SOURCES = 1024  # of one value
CLONE = "aten.clone.default"


@dataclass
class Layouts:
    """The values of a graph that only re-read others."""

    local: dict[Value, Elements]  # over the operands of their nodes
    deep: dict[Value, Elements] = field(default_factory=dict)  # over what is no layout
    shallow: dict[Value, Elements] = field(default_factory=dict)  # over that, and over roots
    roots: list[Value] = field(default_factory=list)  # what others than layouts read, in order


def find(host: Host, context: Context) -> Layouts:
    """All layouts of a graph, found once while it is as it is."""
    names = OPERATORS[host.dialect]
    nodes = [n for n in host.nodes if not n.opaque and (_moves(n, names) or unchanged(host, n) is not None)]
    if context.target == "cpu":
        nodes = [n for n in nodes if not _are_ids(host, n)]
    found = Layouts({})
    if not nodes:
        return found
    lifted = context.terms_of(host)
    kept = lifted.notes.get("layouts")
    if isinstance(kept, Layouts):
        return kept
    lifted.notes["layouts"] = found
    for node in nodes:
        for value in (*node.inputs, *node.outputs):
            seen = lifted.term.get(value)
            if seen is not None and value.node is not None:
                value.shape = seen.shape  # a size that the graph computes, and the terms know
        for value in node.outputs:
            if host.is_constant(value) or value.dtype is None or value.dtype == "string":
                continue
            same = unchanged(host, node) if node.op not in names else None
            if node.op in CASTS or same is not None:
                source = same or node.inputs[0]
                with contextlib.suppress(NotLayout):
                    own = found.deep.get(source) or itself(source)
                    whole = same or (node.op == "Cast" and own.dtype == value.dtype)  # torch's may move or copy
                    found.local[value] = found.deep[value] = own if whole else uncast(own, value.dtype)
                continue
            for t in (lifted.local(value), lifted.definition.get(value)):  # indices may be computed from sizes
                if t is None:
                    continue
                with contextlib.suppress(NotLayout):
                    found.local[value] = of_term(lifted, t, value.dtype)
                    break
            if value in found.local:
                try:
                    found.deep[value] = _bounded(through(found.local[value], found.deep))
                except NotLayout:
                    found.deep[value] = found.local[value]
    inside = {v.node for v in found.local}
    for value, local in found.local.items():
        readers = host.users(value)
        ends = host.is_output(value) or any(n not in inside for n in readers)
        try:
            found.shallow[value] = _bounded(through(local, _except(found, local)))
        except NotLayout:
            found.shallow[value] = local
        if ends:
            found.roots.append(value)
    return found


def _are_ids(host: Host, node: Node) -> bool:
    """Whether a node of torch takes elements for embedding bags alone, which read them faster side by side than where
    they lie: every second of five ids 2.6 us, 4.2 of a slice."""
    bags = "recopt.embedding_bags.default"
    readers = host.users(node.outputs[0])
    return node.op == "aten.index_select.default" and bool(readers) and all(n.op == bags for n in readers)


def _moves(node: Node, names: frozenset[str]) -> bool:
    """Whether a node is a layout operator; one that asks for an order in memory is not."""
    return node.op in names and "channels_last" not in str(node.kwargs.get("memory_format"))


def _except(found: Layouts, local: Elements) -> dict[Value, Elements]:
    """What is known of the sources that are no roots."""
    roots = set(found.roots)
    return {v: found.shallow[v] for v in local.leaves if v in found.shallow and v not in roots}


def _bounded(elements: Elements) -> Elements:
    if len(elements.sources) > SOURCES:
        raise NotLayout
    return elements


def relayout(host: Host, context: Context, name: str) -> bool:
    """Write the shorter ones. True where any is written."""
    if writes_in_place(host):
        return False
    found = find(host, context)
    if host.dialect == "onnx" and _without_idle(host, context, name, found):
        found = find(host, context)
    work = _Work(host, context, name, found)
    for root in reversed(found.roots):
        work.alone(root)
    for group in _groups(found, [r for r in found.roots if r not in work.now]):
        if len(group) > 1:
            work.together(group)
    if not work.now:
        return False
    return context.settle(host, True, merged=True)


def _without_idle(host: Host, context: Context, name: str, found: Layouts) -> bool:
    """Read past layouts that leave a value as it is, as a Flatten of two dimensions does. Whether there are any."""
    idle = [v for v, local in found.local.items() if not host.is_output(v) and _is_idle(v, local)]
    idle = [v for v in idle if context.allows(name, v.name)]
    whole: dict[Value, Value] = {}
    for value in idle:
        assert value.node is not None
        (source,) = found.local[value].leaves
        whole[value] = whole.get(source, source)
        host.replace(value, whole[value])
        context.report.rewrites.append(
            Rewrite(name, "nothing", value.name, (value.node.name,), (), 0.0, 0.0, 1.0, None, "leaves a value as it is")
        )
    return context.settle(host, bool(idle))


def _is_idle(value: Value, local: Elements) -> bool:
    source = local.leaves[0] if local.single else None
    if source is None or (source.shape, source.dtype) != (value.shape, value.dtype):
        return False
    return local.sources[0][1] == tuple(range(len(local.form.symbolic))) and bool(
        (local.where == np.arange(local.form.total)).all()
    )


def writes_in_place(host: Host) -> bool:
    """Whether a node may see which tensors share memory; one that only asserts something does not."""
    return host.dialect == "aten" and any(n.opaque and not n.op.startswith("aten._assert_") for n in host.nodes)


Cost = tuple[int, int]  # kernels and nodes; in ONNX each node is a kernel


@dataclass(frozen=True)
class _Choice:
    """How a root could be written."""

    root: Value
    plan: Plan
    elements: Elements
    finish: str | None  # an operator after the plan


@dataclass
class _Work:
    """Rewrites of one graph, whose nodes go all at once in the end."""

    host: Host
    context: Context
    name: str
    found: Layouts
    now: dict[Value, Value] = field(default_factory=dict)  # what roots are made by now
    gone: set[Node] = field(default_factory=set)  # nodes that nothing needs any more

    @property
    def cost(self) -> PlanCost:
        """In torch views are free, and what copies is not; in files each node counts, and for `ort-cpu` its time, as
        for `portable` where results stand beside each other, not inputs alone."""
        if self.host.dialect == "onnx":
            if self.context.target == "portable":
                return lambda plan: (by_time if _joins_results(plan) else by_nodes)(plan)
            return by_time if self.context.target == "ort-cpu" else by_nodes
        return lambda plan: (plan_copies(plan), plan.nodes, *plan.cost)

    @property
    def turns(self) -> bool:
        """Whether ONNX Runtime on a CPU is to run it."""
        return self.host.dialect == "onnx" and self.context.target in ON_CPU

    def alone(self, root: Value) -> None:
        """Rewrite one root where that alone makes the graph smaller."""
        best: tuple[Cost, _Choice, list[Node]] | None = None
        for elements in dict.fromkeys((self.found.deep[root], self.found.shallow[root])):
            plan = shortest(elements, self.cost, self.turns)
            if plan is None:
                continue
            dead = self.dead([root], elements.leaves)
            choice = self.finished(root, plan, elements, dead)
            try:
                saved = self.saved(dead, [choice]) if choice else (0, 0)
            except LowerError:
                continue
            if choice is not None and pays(saved) and (best is None or saved > best[0]):
                best = saved, choice, dead
        if best is not None:
            self.write([best[1]], best[2], best[0])

    def together(self, group: Sequence[Value]) -> None:
        """Rewrite roots that share layouts where all of them together make the graph smaller."""
        choices = []
        kept = [v for root in group for v in self.found.deep[root].leaves]
        dead = self.dead(group, kept)
        for root in group:
            plan = shortest(self.found.deep[root], self.cost, self.turns)
            choice = None if plan is None else self.finished(root, plan, self.found.deep[root], dead)
            if choice is None:
                return
            choices.append(choice)
        bare = [c.plan.source for c in choices if not c.plan.moves and not c.finish and self.host.is_output(c.root)]
        if self.host.dialect == "aten" and len(set(map(id, bare))) < len(bare):
            return  # of two that are one tensor one would have to be copied
        try:
            saved = self.saved(dead, choices)
        except LowerError:
            return
        if pays(saved):
            self.write(choices, dead, saved)

    def dead(self, roots: Sequence[Value], kept: Sequence[Value]) -> list[Node]:
        """What nothing needs once these roots are made of `kept`, what is gone already apart."""
        return dead_nodes(self.host, roots, {*kept, *(self.now.get(v, v) for v in kept)}, self.gone)

    def finished(self, root: Value, plan: Plan, elements: Elements, dead: Sequence[Node]) -> _Choice | None:
        """A choice that keeps what can be seen of a tensor of torch: whose memory it is, and that it is contiguous
        where some operator made it so. None where nothing but views would take the place of views."""
        if self.host.dialect == "onnx" or is_fresh(plan):
            return _Choice(root, plan, elements, None)
        if not any(map(self.copies, dead)):
            return None if self.host.is_output(root) and not plan.moves else _Choice(root, plan, elements, None)
        if not self.host.is_output(root):
            strides = not all(self.takes(n, plan, root) for n in self.host.users(root))
            return _Choice(root, plan, elements, "aten.contiguous.default" if strides else None)
        return _Choice(root, plan, elements, None if self.is_new(plan, dead) else CLONE)

    def copies(self, node: Node) -> bool:
        """Whether a node of the graph moves elements."""
        return copies(node) and not (node.op in REGROUPS and self.host.is_view(node))

    def takes(self, node: Node, plan: Plan, root: Value) -> bool:
        """Whether a node of torch takes a plan as it lies: recopt's do, and pointwise operators what was computed or
        given, turned where the original was. A slice is copied first: the sine of 256 rows of 12 of 24 numbers takes
        9 us, and 6 with the copy."""
        source = plan.source
        turned = all(isinstance(m, (Permute, Reshape)) for m in plan.moves) and not self.host.is_contiguous(root)
        given = isinstance(source, Value) and (source.node is None or self.computes(source.node))
        whole = given and (turned or not plan.moves)
        return node.op.startswith("recopt.") or (whole and self.computes(node))

    def is_new(self, plan: Plan, dead: Sequence[Node]) -> bool:
        """Whether a plan is a tensor that an operator computed, and that no other output shares."""
        value = plan.source
        if plan.moves or isinstance(value, Join) or value.node is None or self.host.is_output(value):
            return False
        readers = [n for n in self.host.users(value) if n not in dead and n not in self.gone]
        return value not in self.now.values() and all(map(self.computes, [value.node, *readers]))

    def computes(self, node: Node) -> bool:
        """Whether a node of torch surely makes a tensor of its own."""
        return lower.columns_of(self.host).stacks(node) and node.op not in CASTS

    def saved(self, dead: Sequence[Node], choices: Sequence[_Choice]) -> Cost:
        """Raises LowerError."""
        written = sum(lower.moves_written(self.host, c.plan, self.now) + (c.finish is not None) for c in choices)
        if self.host.dialect == "onnx":
            slow = sum(self.cost(c.plan)[0] - c.plan.nodes for c in choices)  # gathers like several operators
            return len(dead) - written - int(slow), len(dead) - written
        kernels = sum(plan_copies(c.plan) + (c.finish == CLONE or bool(c.finish and c.plan.moves)) for c in choices)
        return sum(map(self.copies, dead)) - kernels, len(dead) - written

    def write(self, choices: Sequence[_Choice], dead: Sequence[Node], saved: Cost) -> None:
        """Write and account for it, where the elements are proved to be the same."""
        root, report = choices[0].root, self.context.report
        if not self.context.allows(self.name, root.name):
            return
        wrong = next((c.root for c in choices if not agrees(c.plan, c.elements)), None)
        if wrong is not None:
            report.undone.append(Refusal(self.name, wrong.name, "the elements are not those of the original"))
            return
        made = lower.moves(self.host, [(c.root, c.plan, c.finish) for c in choices], self.now)
        for choice, new in zip(choices, made, strict=True):
            self.now[choice.root] = new
            self.host.replace(choice.root, new)
        self.gone.update(dead)
        after = tuple(dict.fromkeys(v.node.name if v.node else v.name for v in made))
        before = tuple(n.name for n in dead)
        detail = f"{len(dead)} layout operators are {len(dead) - saved[1]}"
        report.rewrites.append(
            Rewrite(self.name, "layout", root.name, before, after, 0.0, 0.0, float(saved[0]), None, detail)
        )


def dead_nodes(host: Host, roots: Sequence[Value], needed: Iterable[Value], gone: Set[Node]) -> list[Node]:
    """What nothing needs once roots are made of `needed`, what is `gone` already and constants apart; the last root's
    node first."""
    *others, root = roots
    dead = needless(host, root, needed, also=others, gone=gone)
    return [n for n in reversed(dead) if not all(host.is_constant(v) for v in n.outputs)]


def _joins_results(plan: Plan) -> bool:
    """Whether a plan puts what nodes computed beside each other."""
    parts = plan.source.parts if isinstance(plan.source, Join) else ()
    return any(isinstance(p.source, Value) and p.source.node is not None for p in parts)


def pays(saved: Cost) -> bool:
    """Whether something is saved and nothing is paid for it."""
    return saved > (0, 0) and min(saved) >= 0


def _groups(found: Layouts, roots: Sequence[Value]) -> list[list[Value]]:
    """Roots by the layouts that they share."""
    owner: dict[Value, Value] = {}

    def top(v: Value) -> Value:
        while owner.setdefault(v, v) is not v:
            owner[v] = owner[owner[v]]
            v = owner[v]
        return v

    for value, local in found.local.items():
        for leaf in local.leaves:
            if leaf in found.local:
                owner[top(value)] = top(leaf)
        if value.node is not None and value.node.outputs[0] is not value and value.node.outputs[0] in found.local:
            owner[top(value)] = top(value.node.outputs[0])
    groups: dict[Value, list[Value]] = {}
    for root in roots:
        groups.setdefault(top(root), []).append(root)
    return list(groups.values())
