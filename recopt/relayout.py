"""Rewrites layout chains of a host to the shortest known ones: where each is, what it costs, when it pays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from . import lower
from .elements import Elements, NotLayout, of_term, through
from .errors import LowerError
from .hosts.base import Host, Node, Value
from .match import needless
from .moves import Plan, shortest
from .moves_check import agrees
from .report import Refusal, Rewrite
from .rewrite import Context

OPERATORS = {
    "onnx": frozenset(
        """Identity Reshape Flatten Squeeze Unsqueeze Transpose Expand Tile Concat Slice Split Pad Gather GatherElements
        GatherND DepthToSpace SpaceToDepth Trilu com.microsoft::ExpandDims com.microsoft::GatherND
        com.microsoft::Trilu""".split()
    ),
    "aten": frozenset[str](),
}
SOURCES = 1024  # of one value


@dataclass
class Layouts:
    """The values of a graph that only re-read others."""

    local: dict[Value, Elements]  # over the operands of their nodes
    deep: dict[Value, Elements] = field(default_factory=dict)  # over what is no layout
    shallow: dict[Value, Elements] = field(default_factory=dict)  # over that, and over roots
    roots: list[Value] = field(default_factory=list)  # what others than layouts read, in order


def find(host: Host, context: Context) -> Layouts:
    """All layouts of a graph."""
    names = OPERATORS[host.dialect]
    nodes = [n for n in host.nodes if n.op in names and not n.opaque]
    found = Layouts({})
    if not nodes:
        return found
    lifted = context.terms_of(host)
    for node in nodes:
        for value in node.outputs:
            t = None if host.is_constant(value) or value.dtype in (None, "string") else lifted.local(value)
            if t is None or value.dtype is None:
                continue
            try:
                found.local[value] = of_term(lifted, t, value.dtype)
            except NotLayout:
                continue
    inside = {v.node for v in found.local}
    for value, local in found.local.items():
        readers = host.users(value)
        ends = host.is_output(value) or any(n not in inside for n in readers)
        try:
            found.deep[value] = _bounded(through(local, found.deep))
            found.shallow[value] = _bounded(through(local, _except(found, local)))
        except NotLayout:
            found.deep[value] = found.shallow[value] = local
            ends = True
        if ends:
            found.roots.append(value)
    return found


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
    found = find(host, context)
    now: dict[Value, Value] = {}
    changed = False
    for root in reversed(found.roots):
        changed |= _alone(host, context, name, found, root, now)
    left = [r for r in found.roots if r not in now]
    for group in _groups(found, left):
        if len(group) > 1:
            changed |= _together(host, context, name, found, group, now)
    if changed:
        context.lifted = None
        host.normalise()
    return changed


def _candidates(found: Layouts, root: Value) -> list[tuple[Plan, Elements]]:
    plans = []
    for elements in dict.fromkeys((found.deep[root], found.shallow[root])):
        plan = shortest(elements)
        if plan is not None:
            plans.append((plan, elements))
    return plans


def _alone(host: Host, context: Context, name: str, found: Layouts, root: Value, now: dict[Value, Value]) -> bool:
    """Rewrite one root where that alone makes the graph smaller."""
    best: tuple[int, Plan, Elements, tuple[Node, ...]] | None = None
    for plan, elements in _candidates(found, root):
        dead = needless(host, root, [now.get(v, v) for v in elements.leaves])
        try:
            saved = _count(host, dead) - lower.moves_written(host, [plan], now)
        except LowerError:
            continue
        if saved > 0 and (best is None or saved > best[0]):
            best = saved, plan, elements, dead
    if best is None:
        return False
    saved, plan, elements, dead = best
    return _write(host, context, name, [(root, plan, elements)], dead, saved, now)


def _together(
    host: Host, context: Context, name: str, found: Layouts, group: Sequence[Value], now: dict[Value, Value]
) -> bool:
    """Rewrite roots that share layouts where all of them together make the graph smaller."""
    chosen = []
    for root in group:
        plan = shortest(found.deep[root])
        if plan is None:
            return False
        chosen.append((root, plan, found.deep[root]))
    kept = [v for _, _, elements in chosen for v in elements.leaves]
    dead = needless(host, group[-1], kept, None, group[:-1])
    try:
        saved = _count(host, dead) - lower.moves_written(host, [plan for _, plan, _ in chosen], now)
    except LowerError:
        return False
    return saved > 0 and _write(host, context, name, chosen, dead, saved, now)


def _count(host: Host, nodes: Iterable[Node]) -> int:
    return sum(not all(host.is_constant(v) for v in n.outputs) for n in nodes)


def _write(
    host: Host,
    context: Context,
    name: str,
    chosen: Sequence[tuple[Value, Plan, Elements]],
    dead: Sequence[Node],
    saved: int,
    now: dict[Value, Value],
) -> bool:
    root = chosen[0][0]
    if not context.allows(name, root.name):
        return False
    for value, plan, elements in chosen:
        if not agrees(plan, elements):
            context.report.undone.append(Refusal(name, value.name, "the elements are not those of the original"))
            return False
    before = tuple(n.name for n in dead)
    detail = f"{len(dead)} layout operators are {len(dead) - saved}"
    made = lower.moves(host, [(value, plan) for value, plan, _ in chosen], now)
    for (value, _, _), new in zip(chosen, made, strict=True):
        now[value] = new
        host.replace(value, new)
    after = tuple(dict.fromkeys(v.node.name if v.node else v.name for v in made))
    host.erase_dead()
    context.report.rewrites.append(
        Rewrite(name, "layout", root.name, before, after, 0.0, 0.0, float(saved), None, detail)
    )
    return True


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
