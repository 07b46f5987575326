"""Regions of layout and pointwise operators as one `recopt::pointwise`.

    logs = log1p(x), hashed_i = (ids[:, i] * a + b_i) % n_i, y = cat(logs, stack(hashed))  ->  pointwise(x, ids)

What decides is what an element of an output is (layout/elements.py): a concat is cut into pieces along its axis, each
piece a loop, and pieces that do the same up to numbers (200 columns of one chain) become one loop with the numbers in
a table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from recopt.hosts.base import Array, Node, Value
from recopt.ir import sizes
from recopt.ir.rules import WIDTH
from recopt.ir.term import (
    Read,
    TooLarge,
    walk,
)
from recopt.kernels.pointwise import Line, Loop, Program
from recopt.layout import memory
from recopt.layout.element import Cut, Refine, TooLong, places
from recopt.layout.elements import JOINS, Elements
from recopt.layout.loops import AXIS, Form, form_of, loop_of, pieces
from recopt.lift.aten_composites import POINTWISE
from recopt.lift.base import Lifted
from recopt.match import No

name = "pointwise"
operator = "recopt::pointwise"

SMALL_TABLE = 4096  # elements of a constant that data may choose from
MAX_LINES = 3000  # of a program
MAX_LOOPS = 96  # each a branch of the kernel, which compiles for about 0.1 s
MAX_INPUTS = 128  # of a kernel
MAX_AGAIN = 16  # times that what there is to compute may be computed
REDUCTIONS = frozenset(
    "sum mean amax amin max min prod var std linalg_vector_norm any all layer_norm softmax _softmax".split()
)
JOINED = 128  # parts that torch's concat on a GPU takes in one launch
# Operators whose result is their input under another shape.
VIEWS = memory.VIEWS | memory.REGROUPS | {"aten.alias.default", "aten.detach.default"}


@dataclass(frozen=True)
class Spec:
    """`recopt::pointwise`: `outputs` by a program over `inputs`, values and packed constants."""

    inputs: tuple[Value | Array, ...]
    outputs: tuple[Value, ...]
    program: Program


# --- regions


def regions(lifted: Lifted, without: Collection[Node] = ()) -> list[tuple[list[Node], list[Value]]]:
    """What may become one operator each: nodes that are understood, and those of their values that others read.

    A node's level is how many operators that are not understood lie, one after the other, before it: nodes of a level
    can be computed together, whatever reads them. What only a later level reads belongs to that one, which launches
    anyway. Those of `without` count as not understood."""
    host = lifted.host
    every = Elements(lifted, host.nodes)
    level: dict[Value, int] = {}
    placed: dict[Node, int] = {}
    for node in host.nodes:
        below = max((level.get(v, 0) for v in node.inputs), default=0)
        key = name, node  # asked once, however often regions are looked for
        if key not in lifted.notes:
            lifted.notes[key] = _eligible(every, node)
        if node not in without and lifted.notes[key]:
            placed[node] = below
        elif not all(v.scalar or host.is_constant(v) for v in node.outputs):
            below += 1
        for value in node.outputs:
            level[value] = below
    levels: dict[int, list[Node]] = {}
    for node in reversed(placed):
        readers = [placed.get(u, 0) for v in node.outputs for u in host.users(v)]
        if readers and not any(map(host.is_output, node.outputs)):
            placed[node] = max(placed[node], min(readers))
    for node, at in placed.items():
        levels.setdefault(at, []).append(node)
    found = []
    for _, nodes in sorted(levels.items()):
        for group in _placed(lifted, nodes):
            kept, outputs = _outputs(lifted, group)
            if sum(map(launches, kept)) > 1 and outputs:
                found.append((kept, outputs))
    return found


def is_free(node: Node) -> bool:
    """Whether a node only reads its input under another shape."""
    return node.op in VIEWS and not memory.copies(node)


def launches(node: Node) -> int:
    """Kernels that torch launches for a node: its concat takes 128 parts at a time."""
    if is_free(node):
        return 0
    return -(-len(node.args[0]) // JOINED) if node.op in JOINS else 1


def _eligible(every: Elements, node: Node) -> bool:
    """Whether a node's results can be stated element by element, as far as the node itself shows."""
    if node.opaque or not node.outputs or any(v.scalar or v.shape is None for v in node.outputs):
        return False
    if any(v.dtype not in WIDTH for v in (*node.outputs, *(v for v in node.inputs if not v.scalar))):
        return False
    if all(every.host.is_constant(v) for v in node.outputs):
        return False
    if node.op in JOINS:
        return True
    if node.op in POINTWISE:
        if any(v.scalar for v in node.inputs):
            return False
        return _stated(every, node)
    return all(t is not None for t in every.layout(node)) and not _looks_up(every, node)


def _stated(every: Elements, node: Node) -> bool:
    """Whether a pointwise node takes these arguments, asked of it alone."""
    alone = Elements(every.lifted, [node])
    try:
        for value in node.outputs:
            if every.host.is_output(value) or list(every.host.users(value)):
                alone.of(value, places(value.shape or ()))
    except (Cut, Refine):
        return True
    except (No, TooLarge):
        return False
    return True


def _looks_up(every: Elements, node: Node) -> bool:
    """Whether a node reads at places that data gives: of a table that is no small constant, that is a lookup."""
    for t in every.layout(node):
        assert t is not None
        for item in walk(t.body):
            if not isinstance(item, Read) or not isinstance(item.leaf, Value):
                continue
            by = {a.leaf for p in item.index for a in walk(p) if isinstance(a, Read)}
            if all(isinstance(v, Value) and every.host.is_constant(v) for v in by):
                continue
            shape = item.leaf.shape or ()
            size = sizes.product(shape)
            if not every.host.is_constant(item.leaf) or not isinstance(size, int) or size > SMALL_TABLE:
                return True
    return False


def _placed(lifted: Lifted, nodes: list[Node]) -> list[list[Node]]:
    """The nodes together where there is a place for one operator in the graph's order, else in connected parts."""
    if place(lifted, nodes) is not None:
        return [nodes]
    parts: dict[Node, list[Node]] = {}
    mine = set(nodes)
    for node in nodes:
        joined = [node]
        for value in node.inputs:
            if value.node in mine and parts[value.node] is not parts.get(node):
                part = parts[value.node]
                joined = part + [n for n in joined if n not in part]
                for n in joined:
                    parts[n] = joined
        if node not in parts:
            parts[node] = joined
    distinct = {id(p): p for p in parts.values()}
    return [p for p in distinct.values() if place(lifted, p) is not None]


def place(lifted: Lifted, nodes: Sequence[Node]) -> Node | None:
    """The node before which an operator in the place of `nodes` stands: after all that they read, before all that
    reads them. None where there is no such place."""
    host, order = lifted.host, {node: n for n, node in enumerate(lifted.host.nodes)}
    mine = set(nodes)
    last = max(
        (order[v.node] for n in nodes for v in n.inputs if v.node and v.node not in mine and v.node in order),
        default=-1,
    )
    users = [order[u] for n in nodes for v in n.outputs for u in host.users(v) if u not in mine and u in order]
    first = min(users, default=len(order))
    if first <= last:
        return None
    # the last of them that stands before every reader
    candidates = [n for n in nodes if last < order[n] <= first]
    if candidates:
        return max(candidates, key=lambda n: order[n])
    nexts = [n for n, at in order.items() if at == last + 1]
    return nexts[0] if nexts else None


def _outputs(lifted: Lifted, nodes: list[Node]) -> tuple[list[Node], list[Value]]:
    """What stays of a region when views that cost nothing stay views, and what others read of it."""
    host, kept = lifted.host, set(nodes)
    while True:
        outputs = [
            v
            for n in nodes
            if n in kept
            for v in n.outputs
            if host.is_output(v) or any(u not in kept for u in host.users(v))
        ]
        dropped = set()
        for v in outputs:
            node = v.node
            assert node is not None
            source = node.inputs[0] if node.inputs else None
            if not is_free(node) or source is None:
                continue
            read_inside = any(u in kept for w in node.outputs for u in host.users(w))
            whole = source in outputs or node.op not in ("aten.select.int", "aten.slice.Tensor")
            if source.node not in kept or (whole and not read_inside):
                dropped.add(node)
        if not dropped:
            return [n for n in nodes if n in kept], outputs
        kept -= dropped


class Refused(Exception):
    """A region that cannot be one operator, and the node that it is about, if one alone is."""

    def __init__(self, why: str, node: Node | None) -> None:
        super().__init__(why)
        self.node = node


def match(lifted: Lifted, nodes: Sequence[Node], outputs: Sequence[Value]) -> Spec:
    """A region as one operator. Raises Refused where it cannot be."""
    elements = Elements(lifted, nodes)
    try:
        return _match(elements, outputs)
    except No as why:
        blamed = elements.refused[1] if elements.refused else None
        raise Refused(str(why), _last_reduction(elements) if isinstance(why, TooLong) else blamed) from None
    except TooLarge:
        raise Refused("a term of it is too large", None) from None
    except RecursionError:
        raise Refused("it is too deep", None) from None


def _match(elements: Elements, outputs: Sequence[Value]) -> Spec:
    groups: dict[object, list[Form]] = {}
    for n, value in enumerate(outputs):
        elements.memo.clear()
        for piece in pieces(elements, n, value):
            form = form_of(piece)
            groups.setdefault(form.key, []).append(form)
    if sum(len(forms[0].lines) for forms in groups.values()) > MAX_LINES or len(groups) > MAX_LOOPS:
        raise TooLong("its program would be longer than {} loops of {} lines in all", MAX_LOOPS, MAX_LINES)
    _check_work(elements, groups.values())
    made = [loop_of(elements, forms) for forms in groups.values()]
    constants = {dtype: np.concatenate(held) for dtype, held in elements.packed.items()}
    inputs: list[Value | Array] = []
    numbered: dict[Value | str, int] = {}
    for _, sources in made:
        for source in sources:
            if source != "" and source not in numbered:
                numbered[source] = len(inputs)
                inputs.append(constants[source] if isinstance(source, str) else source)
    if len(inputs) > MAX_INPUTS:
        raise No("it reads more than {} values", MAX_INPUTS)
    if not any(isinstance(v, Value) for v in inputs):
        raise No("it reads nothing")
    loops = []
    for loop, sources in made:
        lines = tuple(
            line if s == "" else Line(line.name, line.dtype, line.op, line.args, numbered[s], line.index, line.checked)
            for line, s in zip(loop.lines, sources, strict=True)
        )
        loops.append(Loop(loop.out, loop.axes, loop.place, lines, loop.result))
    program = Program(_heads(inputs), _heads(outputs), tuple(loops))
    bound = {s for _, shape in program.inputs for s in shape}
    inputs += dict.fromkeys(_sized(elements, s) for s in program.symbols if s not in bound)
    return Spec(tuple(inputs), tuple(outputs), Program(_heads(inputs), program.outputs, program.loops))


def _heads(values: Iterable[Value | Array]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Types and sizes of tensors, as a program states them."""
    return tuple((str(v.dtype), tuple(str(s).replace(" ", "") for s in v.shape or ())) for v in values)


def _sized(elements: Elements, symbol: str) -> Value:
    """An input of the graph that has a size: of what is filled with a number nothing else may be read."""
    for value in elements.host.inputs:
        if not value.scalar and value.dtype in WIDTH and symbol in map(str, value.shape or ()):
            return value
    raise No("size {} is no dimension of what the graph reads", symbol)


def _check_work(elements: Elements, groups: Iterable[Sequence[Form]]) -> None:
    """Raise TooLong where values that many elements share would be computed again for each: a reduction, mostly."""
    again = sum(len(forms) * _work(forms[0]) for forms in groups)
    once = sum(sizes.nominal(sizes.product(v.shape or ())) for node in elements.nodes for v in node.outputs)
    if again > MAX_AGAIN * once:
        raise TooLong("it would compute {:.0f} times as much as there is to compute", again / max(once, 1))


def _work(form: Form) -> float:
    """How many values are computed for a piece: the kernel computes what is the same along all but the first axis once
    for a row."""
    rows, *rest = [sizes.nominal(a.size) for a in form.piece.axes] or [1]
    others = [AXIS.format(n) for n in range(1, len(rest) + 1)]
    wide: set[str] = set()
    for line in form.lines:
        used = " ".join(map(str, (*line.index, *line.args)))
        if any(a in used for a in others) or wide & set(re.findall(r"t\d+", used)):
            wide.add(line.name)
    return rows * (len(form.lines) - len(wide) + math.prod(rest) * len(wide))


def _last_reduction(elements: Elements) -> Node | None:
    """The reduction that a region which would be too long ends at."""
    found = [n for n in elements.nodes if n.op.split(".")[1] in REDUCTIONS]
    return max(found, key=lambda n: elements.lifted.order[n.outputs[0]], default=None)
