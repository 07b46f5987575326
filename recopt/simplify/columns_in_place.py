"""Operators on some columns of a tensor beside others of it that stay as they are: written over all columns."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .. import lower
from ..cost import ON_CPU
from ..errors import LowerError
from ..hosts.base import Array, Host, Node, Value
from ..hosts.onnx import OnnxHost
from ..ir.sizes import nominal
from ..layout.moves import Plan, by_time
from ..layout.moves_check import agrees
from ..layout.positions import Elements, form_of
from ..layout.shortest import shortest
from ..lower.columns import neutral
from ..lower.onnx_columns import extremes, same_anywhere
from ..report import Rewrite
from ..rewrite import Context
from .relayout import Layouts, find

# Operators that take ONNX Runtime little on columns that they are not for: 0.3 ns a number.
CHEAP = frozenset("Add Sub Mul Div Neg Abs Sqrt Relu Max Min Clip Floor Ceil".split())
TYPES = ("float32", "float64", "int32", "int64")
OPERATOR = 1200.0  # ns
NUMBER = 0.3
ROW = 7.5  # ns of a row beside which a row of constants lies


@dataclass(frozen=True)
class _Chain:
    """Operators one after the other on columns of a source."""

    out: Value
    source: Value
    nodes: tuple[Node, ...]
    columns: tuple[int, ...]
    start: Plan  # what gathers the columns now


def write_in_place(host: Host, context: Context, name: str) -> bool:
    """Rewrite concats of an ONNX graph of columns of one tensor, of which some went through cheap operators. True
    where any is.

    before:  Gather(Concat(x [rows, 26], Clip(Slice(x, every second column), 0)), in their order)
    after:   Where(Less(x, c), c, x), where c is 0 and -inf in turns
    """
    if not isinstance(host, OnnxHost):
        return False
    found = find(host, context)
    changed = False
    for root in found.roots:
        wanted = found.deep[root]
        for source, chains in _chains(host, found, wanted).items():
            if _write(host, context, name, root, wanted, source, chains):
                changed = True
                break
    return context.settle(host, changed, merged=True)


def _width(value: Value) -> int:
    """The columns of [rows, columns]; 0 for another shape."""
    if value.shape is None or len(value.shape) != 2:
        return 0
    form = form_of(value.shape)
    return form.counts[1] if form.symbolic == (0,) and form.counts[0] == 1 else 0


def _chains(host: Host, found: Layouts, wanted: Elements) -> dict[Value, list[_Chain]]:
    """The sources of a value that are made of columns of one other value, by that; each column is in one at most."""
    chains: dict[Value, list[_Chain]] = {}
    for value, order in wanted.sources:
        chain = _chain(host, found, value) if order == (0,) and not host.is_output(value) else None
        if chain is None or not _keeps_zeros(host, chain):
            continue
        others = chains.setdefault(chain.source, [])
        if all(set(chain.columns).isdisjoint(other.columns) for other in others):
            others.append(chain)
    return chains


def _merged(host: Host, chains: Sequence[_Chain]) -> list[_Chain]:
    """Chains, of which those that do the same with the same numbers are one."""
    found: dict[Hashable, _Chain] = {}
    for chain in chains:
        held = [host.constant(a) for n in chain.nodes for a in n.args if _held(host, a)]
        same = all(a.size == 1 for a in held) and not any(n.op == "Where" for n in chain.nodes)
        steps = tuple((n.op, str(n.kwargs), *(a and _held(host, a) for a in n.args)) for n in chain.nodes)
        key: Hashable = (steps, *(a.tobytes() for a in held)) if same else chain.out
        first = found.get(key)
        found[key] = chain if first is None else replace(first, columns=first.columns + chain.columns)
    return list(found.values())


def _chain(host: Host, found: Layouts, out: Value) -> _Chain | None:
    nodes: list[Node] = []
    value, width = out, _width(out)
    while value not in found.deep and width:
        node = value.node
        alone = _is_alone(host, found, value) if value is out else len(host.users(value)) == 1
        step = _step(host, node) if node is not None and not node.opaque and alone else None
        if node is None or step is None or not same_anywhere(host, node) or not _rows(host, node, width):
            return None
        before = step
        if (before.shape, before.dtype) != (out.shape, out.dtype):
            return None
        nodes.insert(0, node)
        value = before
    own = found.deep.get(value)
    if own is None or not nodes or not own.single or own.sources[0][1] != (0,):
        return None
    source, columns, plan = own.sources[0][0], tuple(own.where.tolist()), shortest(own)
    fits = source.dtype == out.dtype and out.dtype in TYPES and _width(source) >= 2 and source.shape is not None
    if not fits or plan is None or len(set(columns)) < len(columns) or own.form.opens[0] != source.shape[0]:  # type: ignore[index]  # it fits
        return None
    return _Chain(out, source, tuple(nodes), columns, plan)


def _is_alone(host: Host, found: Layouts, value: Value) -> bool:
    """Whether only layouts read a value, and each of these but the last is read once."""
    after = [v for user in host.users(value) for v in user.outputs]
    return all(v in found.deep and (len(host.users(v)) == 1 or v in found.roots) for v in after)


def _step(host: Host, node: Node) -> Value | None:
    """What a cheap operator, or a choice between floats and a bound that they exceed, does something to."""
    floats = "float" in str(node.outputs[0].dtype)
    asked = node.args[0].node if node.op == "Where" and floats else None
    if asked is not None and asked.op in ("Less", "Greater"):
        bound, x = node.args[1], node.args[2]
        alone = len(host.users(node.args[0])) == 1 and set(host.users(x)) == {asked, node}
        fits = alone and isinstance(x, Value) and list(asked.args) == [x, bound] and host.is_constant(bound)
        return x if fits else None
    data: list[Value] = [a for a in node.args if a is not None and not host.is_constant(a)]
    if node.op == "Clip" and not lower.columns_of(host).arguments(node):
        return None
    if len(data) != 1 or node.op not in CHEAP or (node.op == "Div" and not floats):
        return None
    return data[0]


def _rows(host: Host, node: Node, width: int) -> bool:
    """Whether the constants of a node are numbers, or one for each column."""
    held = [host.constant(a) for a in node.args if a is not None and host.is_constant(a)]
    return all(a.size == 1 or (a.size == width == a.shape[-1]) for a in held)


def _write(
    host: OnnxHost,
    context: Context,
    name: str,
    root: Value,
    wanted: Elements,
    source: Value,
    chains: Sequence[_Chain],
) -> bool:
    width = _width(source)
    place = {chain.out: np.array(chain.columns) for chain in chains}
    touched = {c for chain in chains for c in chain.columns}
    sources = list(wanted.sources)
    stand_in = Value(source.name, source.shape, source.dtype)
    which, where = wanted.which.copy(), wanted.where.copy()
    for n, (value, _) in enumerate(sources):
        at = np.flatnonzero(wanted.which == n)
        if value in place:
            which[at], where[at] = len(sources), place[value][wanted.where[at]]
        elif value is source:
            at = at[[c not in touched for c in wanted.where[at].tolist()]]
            which[at] = len(sources)
    after = replace(wanted, sources=(*sources, (stand_in, (0,))), which=which, where=where, pieces=None)
    after = _used(after)
    plan, before = shortest(after, by_time), shortest(wanted, by_time, context.target in ON_CPU)
    if plan is None or before is None or not agrees(plan, after):
        return False
    if not _pays(host, before, plan, source, chains, context.target) or not context.allows(name, root.name):
        return False
    try:
        with host.at(root.node):  # type: ignore[arg-type]  # a root is computed
            whole = source
            for chain in _merged(host, chains):
                whole = _over_all(host, whole, chain, width)
            (new,) = lower.moves(host, [(root, plan, None)], {stand_in: whole})
    except LowerError:
        return False
    host.replace(root, new)
    gone = tuple(n.name for chain in chains for n in chain.nodes)
    made = (new.node.name if new.node else new.name,)
    context.report.rewrites.append(
        Rewrite(name, "in place", root.name, gone, made, 0.0, 0.0, 0.0, None, "columns in their place")
    )
    return True


def _used(elements: Elements) -> Elements:
    """Without sources of which nothing is read."""
    used = sorted(set(elements.which[elements.which >= 0].tolist()))
    new = np.array([used.index(n) if n in used else -1 for n in range(len(elements.sources))])
    which = np.where(elements.which < 0, -1, new[elements.which]).astype(np.int32)
    return replace(elements, sources=tuple(elements.sources[n] for n in used), which=which)


def _pays(host: Host, before: Plan, after: Plan, source: Value, chains: Sequence[_Chain], target: str) -> bool:
    """Whether that takes less time in ONNX Runtime on a CPU at the nominal batch, and no more operators."""
    rows, width = nominal((source.shape or (1,))[0]), _width(source)
    old = by_time(before)[0] + sum(by_time(chain.start)[0] + len(chain.nodes) for chain in chains)
    new = by_time(after)[0]
    nodes = before.nodes - after.nodes + sum(chain.start.nodes + len(chain.nodes) for chain in chains)
    for chain in _merged(host, chains):
        new += len(chain.nodes)
        nodes -= len(chain.nodes)
        zeros = [not b.all() for n in chain.nodes if n.op == "Clip" for b, _ in _bounds(host, n)]
        further = _masked(host, chain) + sum(zeros) + len(zeros) // 2
        rowed = [n for n in chain.nodes if n.op != "Clip" and _by_rows(host, n, _masked(host, chain))]
        beside = len(rowed) + sum(n.op == "Where" for n in rowed) + _masked(host, chain) + len(zeros) + 2 * sum(zeros)
        idle = len(chain.nodes) * (width - len(chain.columns)) * NUMBER
        new += further + (idle + beside * ROW) * rows / OPERATOR
        nodes -= further
    return new < old and (target == "ort-cpu" or nodes >= 0)


def _by_rows(host: Host, node: Node, masked: bool) -> bool:
    """Whether a node has a row of constants beside its data then."""
    held = [host.constant(a) for a in node.args if _held(host, a)]
    return bool(held) and not (masked and all(a.size == 1 for a in held))


def _held(host: Host, operand: Value | None) -> bool:
    return operand is not None and host.is_constant(operand)


def _masked(host: Host, chain: _Chain) -> bool:
    """Whether the other columns are chosen in the end, as not all operators have numbers that change nothing."""
    return any(node.op != "Clip" and _unchanging(host, node) is None for node in chain.nodes)


def _keeps_zeros(host: Host, chain: _Chain) -> bool:
    """Whether ONNX Runtime's choice gives what the chain computes: of what it takes first, it makes -0.0 to 0.0."""
    return "float" not in str(chain.out.dtype) or not _masked(host, chain) or chain.nodes[-1].op == "Abs"


def _unchanging(host: Host, node: Node) -> tuple[tuple[int, ...], float] | None:
    """The operands of which a number leaves the other as it is, and that number; None where another is one: k - x."""
    if node.op == "Where":
        return (1,), -np.inf if node.args[0].node.op == "Less" else np.inf
    if node.op in ("Max", "Min") and len(node.args) == 2 and "float" in str(node.outputs[0].dtype):
        return (0, 1), -np.inf if node.op == "Max" else np.inf
    found = neutral(node)
    return found if found and all(n in found[0] for n, a in enumerate(node.args) if _held(host, a)) else None


def _over_all(host: OnnxHost, whole: Value, chain: _Chain, width: int) -> Value:
    """The operators of a chain over all columns, of which others stay as they are. Raises LowerError."""
    columns = lower.columns_of(host)
    value = whole
    for node in chain.nodes:
        name, free = node.outputs[0].name, _unchanging(host, node)
        if node.op == "Where":
            row = columns.constant(_row(host.constant(node.args[1]), chain, width, free[1] if free else 1), name)
            over = host.call(node.args[0].node.op, [value, row], name=name, shape=whole.shape, dtype="bool")
            value = host.call("Where", [over, row, value], name=name, shape=whole.shape, dtype=whole.dtype)
            continue
        if node.op == "Clip":
            rows = [columns.constant(_row(b, chain, width, f), name) for b, f in _bounds(host, node)]
            value = columns.call(node, [value, *rows], whole.shape or (), name)
            continue
        args: list[object] = []
        for n, arg in enumerate(node.args):
            if arg is None or not host.is_constant(arg):
                args.append(None if arg is None else value)
            elif host.constant(arg).size == 1 and _masked(host, chain):
                args.append(arg)
            else:
                fill = free[1] if free is not None and n in free[0] else 1
                args.append(columns.constant(_row(host.constant(arg), chain, width, fill), name))
        value = columns.call(node, args, whole.shape or (), name)
    if not _masked(host, chain):
        return value
    mask = np.isin(np.arange(width), chain.columns)
    condition = host.share_constant(mask, name=f"{chain.out.name}_columns")
    name = chain.out.name
    return host.call("Where", [condition, value, whole], name=name, shape=whole.shape, dtype=whole.dtype)


def _bounds(host: Host, node: Node) -> list[tuple[Array, float]]:
    """The bounds of a Clip, and those that change nothing."""
    dtype = str(node.outputs[0].dtype)
    free = (-np.inf, np.inf) if "float" in dtype else extremes(dtype)
    given = [*node.args[1:], None, None][:2]
    held = [np.array(e, dtype) if b is None else host.constant(b) for b, e in zip(given, extremes(dtype), strict=True)]
    return list(zip(held, free, strict=True))


def _row(held: Array, chain: _Chain, width: int, fill: float) -> Array:
    row = np.full(width, fill).astype(held.dtype)
    row[list(chain.columns)] = held.reshape(-1)
    return row
