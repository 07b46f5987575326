"""Loops that hand states on from turn to turn, in both dialects: what a turn is handed, and the terms of what it makes.

    for t in range(count): state = f(state, x[t]);  rows[t] = g(state, x[t])

Counters, and what every turn hands on as it was given, are no states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy

from ..hosts.base import Node, Region, Value
from ..ir import sizes, tensor
from ..ir.normal import add, scale, substitute
from ..ir.rules import FLOATS
from ..ir.sizes import Size
from ..ir.tensor import ShapeError, Tensor, unravel
from ..ir.term import Axis, Fn, Poly, TooLarge, axis, coord, number, retype
from .base import Call, Items, Lifted, Opaque
from .onnx_loops import Seen, Turn, count_of, growth

Given = Callable[[Poly], Tensor]  # what the turn of a number is handed
FAR = 1 << 40  # more turns than any loop has
SCANS_ROWS = 9  # the opset from which on ONNX Scan has no batches of its own


@dataclass(frozen=True)
class State:
    """A value that turns hand on: in the body before and after a turn, in the graph before and after them all."""

    before: Value
    after: Value
    start: Value
    end: Value


@dataclass(frozen=True)
class Turns:
    """A loop of `count` turns. `rows`: values of the body that the turns lay side by side, each with the value of the
    graph, the dimension, and whether the last turn comes first; `listed`: those that they append to a sequence."""

    call: Call
    body: Region
    count: Size
    states: tuple[State, ...]
    handed: Mapping[Value, Given]
    rows: tuple[tuple[Value, Value, int, bool], ...] = ()
    listed: tuple[tuple[Value, Value], ...] = ()

    def term(self, value: Value, at: Poly, states: Mapping[Value, Tensor]) -> Tensor:
        """A value of the body in turn number `at`, over the states before it.
        Raises Opaque, ShapeError, TooLarge."""

        def operand(v: Value, turn: Poly) -> Tensor | None:
            given = self.handed.get(v)
            return states.get(v) if given is None else given(turn)

        return Turn(self.call, self.body, at, operand).tensor(value)

    def side_by_side(self, along: Axis, states: Mapping[Value, Tensor]) -> dict[Value, Tensor]:
        """The values of the graph that hold something of every turn, `along` for its number.
        Raises Opaque, ShapeError, TooLarge."""
        found: dict[Value, Tensor] = {}
        lifted = self.call.lifted
        for inner, value, dim, turned in self.rows:
            if lifted.host.users(value) or lifted.host.is_output(value):
                t = self.term(inner, _place(coord(along), self.count, turned), states)
                found[value] = Tensor((*t.dims[:dim], (along,), *t.dims[dim:]), t.body)
        for inner, sequence in self.listed:
            items = Items(((along, self.term(inner, coord(along), states)),))
            for user in lifted.host.users(sequence):
                joined = lifted.apply(user, {sequence: items}.__getitem__)[0]
                if not isinstance(joined, Tensor):
                    raise Opaque("a sequence that more is done with than to join it")
                found[user.outputs[0]] = joined
        return found


def turns_of(lifted: Lifted, node: Node) -> Turns:
    """A loop of the graph, turn by turn. Raises Opaque, ShapeError, TooLarge."""
    return _READERS[node.op](Call(node, lifted.host, lifted))


def _loop(c: Call) -> Turns:
    """ONNX Loop: the condition, the states, and what is laid side by side."""
    body = c.host.regions(c.node)["body"]
    trips, going, *starts = c.node.args
    turn, _, *before = body.inputs
    after, ends = body.outputs[1 : 1 + len(starts)], c.node.outputs[: len(starts)]
    seen = [_seen(c, v) for v in starts]
    steps = [growth(c, body, *item) for item in zip(before, after, seen, strict=True)]
    count = count_of(c, body, _number(c, trips), _number(c, going), seen, steps)
    lists = [n for n, s in enumerate(seen) if isinstance(s, Items)]
    listed = tuple((_appended(before[n], after[n], seen[n]), ends[n]) for n in lists)
    carried = list(zip(before, after, starts, ends, strict=True))
    states, handed = _told_apart(c, body, [item for n, item in enumerate(carried) if n not in lists])
    handed |= {turn: lambda at: Tensor((), at)} | _constants(body)
    made = zip(body.outputs[1 + len(starts) :], c.node.outputs[len(starts) :], strict=True)
    return Turns(c, body, count, states, handed, tuple((inner, v, 0, False) for inner, v in made), listed)


def _appended(before: Value, after: Value, start: Seen) -> Value:
    """What each turn appends to a sequence that was empty."""
    node = after.node
    plain = node is not None and node.op == "SequenceInsert" and len(node.args) == 2 and node.args[0] is before
    if node is None or not plain or not isinstance(start, Items) or start.parts:
        raise Opaque("a sequence that the loop does more with than append")
    appended: Value = node.args[1]
    return appended


def _onnx_scan(c: Call) -> Turns:
    """ONNX Scan: states, then sequences, each along a dimension and in a direction of its own."""
    if (c.host.opset or 0) < SCANS_ROWS:
        raise Opaque(f"a Scan of opset {c.host.opset}")
    body, given = c.host.regions(c.node)["body"], c.node.kwargs
    first = len(c.node.args) - given["num_scan_inputs"]
    dims, turned = (_each(given, f"scan_input_{what}", len(c.node.args) - first) for what in ("axes", "directions"))
    xs = [_tensor(c, v) for v in c.node.args[first:]]
    dims = [d % len(x.dims) for d, x in zip(dims, xs, strict=True)]
    count = xs[0].shape[dims[0]]
    states, handed = _told_apart(
        c, body, zip(body.inputs, body.outputs, c.node.args[:first], c.node.outputs, strict=False)
    )
    handed |= _constants(body)
    for v, x, dim, back in zip(body.inputs[first:], xs, dims, turned, strict=True):
        handed[v] = _along(x, dim, count, bool(back))
    made = list(zip(body.outputs[first:], c.node.outputs[first:], strict=True))
    dims, turned = (_each(given, f"scan_output_{what}", len(made)) for what in ("axes", "directions"))
    rows = []
    for (inner, v), dim, back in zip(made, dims, turned, strict=True):
        if dim < 0:
            if v.shape is None:
                raise Opaque("the output has no known shape")
            dim += len(v.shape)
        rows.append((inner, v, dim, bool(back)))
    return Turns(c, body, count, states, handed, tuple(rows))


def _constants(body: Region) -> dict[Value, Given]:
    """The weights that a body holds itself; what is one number is read as that."""
    held = {n.outputs[0]: np.asarray(*n.kwargs.values()) for n in body.nodes if n.op == "Constant"}
    weights = {v: w for v, w in held.items() if w.dtype.name in FLOATS and w.size and (w != w.flat[0]).any()}
    return {v: _always(tensor.leaf(v, w.shape, w.dtype.name)) for v, w in weights.items()}


def _each(given: Mapping[str, Any], name: str, count: int) -> list[int]:
    return list(given.get(name) or [0] * count)


def _torch_scan(c: Call) -> Turns:
    """torch's scan, along dimension 0 of its sequences."""
    _, starts, sequences, more = c.node.args
    (body,) = c.host.regions(c.node).values()
    n, m = len(starts), len(starts) + len(sequences)
    _picked(c, len(body.outputs))
    xs = [_tensor(c, v) for v in sequences]
    states, handed = _told_apart(c, body, zip(body.inputs, body.outputs, starts, c.node.outputs, strict=False))
    handed |= {v: _along(x, 0, x.shape[0], False) for v, x in zip(body.inputs[n:m], xs, strict=True)}
    handed |= {v: _always(_tensor(c, x)) for v, x in zip(body.inputs[m:], more, strict=True)}
    rows = tuple((inner, v, 0, False) for inner, v in zip(body.outputs[n:], c.node.outputs[n:], strict=True))
    return Turns(c, body, xs[0].shape[0], states, handed, rows)


def _while_loop(c: Call) -> Turns:
    """torch's while_loop, where a counter that stays below a size decides."""
    _, _, starts, more = c.node.args
    test, body = c.host.regions(c.node).values()
    n = len(starts)
    _picked(c, n)
    shared = [_always(_tensor(c, x)) for x in more]
    states, handed = _told_apart(c, body, zip(body.inputs, body.outputs, starts, c.node.outputs, strict=False))
    handed |= zip(body.inputs[n:], shared, strict=True)
    asked = {v: handed[inner] for v, inner in zip(test.inputs, body.inputs, strict=True) if inner in handed}
    turn = axis(FAR)
    condition = Turn(c, test, coord(turn), lambda v, at: asked[v](at) if v in asked else None).tensor(test.outputs[0])
    atom = condition.body.atom
    first = add(atom.args[0], scale(coord(turn), -1)).number if isinstance(atom, Fn) and atom.name == "lt" else None
    stop = atom.args[1].number if isinstance(atom, Fn) else None
    if not isinstance(first, int) or not isinstance(stop, (int, sympy.Expr)):
        raise Opaque("a loop that does not end at a size")
    count = max(stop - first, 0) if isinstance(stop, int) else sizes.size(stop - first)
    return Turns(c, body, count, states, handed)


def _picked(c: Call, count: int) -> None:
    if len(c.node.outputs) != count:
        raise Opaque("a loop whose results are read as a whole")


# --- what a turn is handed


def _told_apart(
    c: Call, body: Region, carried: Iterable[tuple[Value, Value, Value, Value]]
) -> tuple[tuple[State, ...], dict[Value, Given]]:
    """The states of what is handed on, as State has it, and what counters and values that stay hand to each turn."""
    states: list[State] = []
    handed: dict[Value, Given] = {}
    for item in (State(*parts) for parts in carried):
        start = _tensor(c, item.start)
        step = growth(c, body, item.before, item.after, start)
        if step is not None:
            handed[item.before] = _counted(start, step)
        elif _stays(c, body, item, start):
            handed[item.before] = _always(start)
        elif isinstance(item.start, Value):
            states.append(item)
        else:
            raise Opaque("a number that turns change")
    return tuple(states), handed


def _stays(c: Call, body: Region, item: State, start: Tensor) -> bool:
    """Whether every turn hands on what it was handed."""
    before = tensor.leaf(item.before, start.shape, start.dtype)
    try:
        after = Turn(c, body, number(0), lambda v, _: before if v is item.before else None).tensor(item.after)
    except (Opaque, ShapeError, TooLarge):
        return False
    return after.canonical() == before.canonical()


def _counted(start: Tensor, step: int) -> Given:
    return lambda at: start.with_body(add(start.body, scale(retype(at, start.dtype), step)))


def _always(t: Tensor) -> Given:
    return lambda at: t


def _along(x: Tensor, dim: int, count: Size, turned: bool) -> Given:
    """The places along a dimension, one after the other, the last one first where `turned`."""
    if sizes.size(x.shape[dim] - count) != 0:
        raise Opaque("sequences of several lengths")

    def given(at: Poly) -> Tensor:
        places = unravel(_place(at, count, turned), [a.size for a in x.dims[dim]])
        rest = (*x.dims[:dim], *x.dims[dim + 1 :])
        return Tensor(rest, substitute(x.body, dict(zip(x.dims[dim], places, strict=True))))

    return given


def _place(at: Poly, count: Size, turned: bool) -> Poly:
    return add(number(sizes.size(count - 1)), scale(at, -1)) if turned else at


def _seen(c: Call, item: object) -> Seen:
    """What a value, or a number, of the graph is."""
    if not isinstance(item, Value):
        return tensor.scalar(c.size(item), "int64")
    seen = c.lifted.items.get(item) or c.lifted.of(item)
    if seen is None:
        raise Opaque(f"{item.name} has no known rank")
    return seen


def _tensor(c: Call, item: object) -> Tensor:
    seen = _seen(c, item)
    if not isinstance(seen, Tensor):
        raise Opaque("a sequence that goes through a loop")
    return seen


def _number(c: Call, item: Value | None) -> Tensor | None:
    return None if item is None else _tensor(c, item)


_READERS: Mapping[str, Callable[[Call], Turns]] = {
    "Loop": _loop,
    "Scan": _onnx_scan,
    "higher_order.scan": _torch_scan,
    "higher_order.while_loop": _while_loop,
}
LOOPS = tuple(_READERS)
