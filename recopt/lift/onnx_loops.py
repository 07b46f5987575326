"""ONNX loops whose turns do not depend on each other, and the sequences that they fill.

A turn may read its number, counters that go up by a constant, and everything around the loop; it may append to a
sequence. Then what the loop hands back is the body's term with one more axis, the number of the turn:

    for i in range(b): out.append(sum(rows[3*i : 3*i + 3]))   ->   out[i] = sum_l rows[3*i + l],  l < 3
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import sympy

from ..hosts.base import Node, Region, Value
from ..ir import ops, sizes, tensor
from ..ir.normal import add as add_terms
from ..ir.normal import scale
from ..ir.pieces import unguarded
from ..ir.ranges import value_range
from ..ir.rules import FLOATS, fn
from ..ir.sizes import Size
from ..ir.tensor import ShapeError, Tensor
from ..ir.term import Axis, Coord, Fn, Poly, TooLarge, axis, coord, number, retype
from .base import Call, Items, Opaque
from .onnx_common import Lift
from .onnx_sequences import listed, made
from .onnx_stretches import Stretches, reads_data

Seen = Tensor | Items

MAX_SINGLY = 64  # turns of a loop that are looked at one by one


def loop(c: Call, trips: Tensor | None, going: Tensor | None, *carried: Seen, **regions: object) -> list[Seen | None]:
    """The turns side by side. Raises Opaque where one depends on another, or their number on data."""
    if c.node not in c.host.nodes:
        raise Opaque("a loop inside of another")
    body = c.host.regions(c.node)["body"]
    turn, _condition, *handed = body.inputs
    _, *results = body.outputs
    steps = [growth(c, body, v, end, start) for v, end, start in zip(handed, results, carried, strict=False)]
    turns = count_of(c, body, trips, going, carried, steps)
    along = axis(turns)

    def operand(value: Value, at: Poly) -> Seen | None:
        """What turn number `at` is handed."""
        if value is turn:
            return Tensor((), at)
        if value not in handed:
            return None
        n = handed.index(value)
        start, step = carried[n], steps[n]
        if step is None or not isinstance(start, Tensor):
            raise Opaque("a turn of the loop needs what an earlier one computed")
        return start.with_body(add_terms(start.body, scale(at, step)))

    region = Turn(c, body, coord(along), operand)
    found: list[Seen | None] = []
    for n, value in enumerate(results):
        if n >= len(carried):
            t = region.stretches.resolved(region.tensor(value))
            found.append(Tensor(((along,), *t.dims), t.body))
        elif isinstance(carried[n], Items):
            found.append(_appended(region, handed[n], value, along, carried[n], turns))
        elif steps[n] is not None:
            found.append(operand(handed[n], number(turns)))
        else:
            found.append(None)
    return found


def sequence_map(c: Call, *given: Seen, **regions: object) -> list[Seen | None]:
    """The body once for each tensor of a sequence whose length the file says; other sequences go along with it."""
    if c.node not in c.host.nodes:
        raise Opaque("a loop inside of another")
    body, turns = c.host.regions(c.node)["body"], []
    columns = [listed(seen) if isinstance(seen, Items) else seen for seen in given]
    assert isinstance(columns[0], list)
    for n in range(len(columns[0])):
        fed = {v: seen[n] if isinstance(seen, list) else seen for v, seen in zip(body.inputs, columns, strict=True)}
        region = Turn(c, body, number(n), functools.partial(_fed, fed))
        turns.append([region.stretches.resolved(region.tensor(value)) for value in body.outputs])
    return [made([turn[n] for turn in turns]) for n in range(len(body.outputs))]


def _fed(given: Mapping[Value, Seen], value: Value, at: Poly) -> Seen | None:
    return given.get(value)


def _appended(region: Turn, before: Value, after: Value, along: Axis, start: Seen, turns: Size) -> Items:
    """A sequence that every turn appends one tensor to. Of a few turns each may be of another size."""
    node = after.node
    if not isinstance(start, Items) or node is None or node.op != "SequenceInsert" or len(node.args) != 2:
        raise Opaque("a sequence that the loop does more with than append")
    if node.args[0] is not before:
        raise Opaque("a sequence that the loop does more with than append")
    try:
        return Items((*start.parts, (along, region.stretches.resolved(region.tensor(node.args[1])))))
    except Opaque:
        if not isinstance(turns, int) or turns > MAX_SINGLY:
            raise
    each = (region.moved(number(n)) for n in range(turns))
    return Items((*start.parts, *((None, turn.stretches.resolved(turn.tensor(node.args[1]))) for turn in each)))


def growth(c: Call, body: Region, value: Value, after: Value, start: Seen) -> int | None:
    """What a counter grows by from turn to turn; None where a carried value is no counter."""
    if not isinstance(start, Tensor) or start.dtype in FLOATS or any(s != 1 for s in start.shape):
        return None
    before = tensor.leaf(value, start.shape, start.dtype)

    def operand(v: Value, _: Poly) -> Seen | None:
        return before if v is value else None

    try:
        grown = ops.sub(Turn(c, body, number(0), operand).tensor(after), before).body.number
    except (Opaque, ShapeError, TooLarge):
        return None
    return grown if isinstance(grown, int) else None


def count_of(
    c: Call,
    body: Region,
    trips: Tensor | None,
    going: Tensor | None,
    carried: Sequence[Seen],
    steps: Sequence[int | None],
) -> Size:
    """The number of turns: as told, or as long as a counter stays below a size."""
    told = None if trips is None else c.size(trips)
    _, kept, *handed = body.inputs
    goes_on = body.outputs[0]
    if _always(c, body, kept, goes_on):
        if told is None or not (going is None or c.lifted.known(going.at([number(0)] * len(going.dims))) == 1):
            raise Opaque("a loop of unknown length")
        return told
    if told is not None:
        raise Opaque("a loop that may end early")
    starts = {v: t for v, t, s in zip(handed, carried, steps, strict=True) if s == 1 and isinstance(t, Tensor)}
    counters = {v: tensor.leaf(v, t.shape, t.dtype) for v, t in starts.items()}
    condition = Turn(c, body, number(0), lambda v, _: counters.get(v)).tensor(goes_on).body.atom
    if not isinstance(condition, Fn) or condition.name != "lt":
        raise Opaque("a loop that does not end at a size")
    for value, start in starts.items():
        # The loop goes on after a turn while counter + 1 < stop, and began with the same question.
        passed = add_terms(condition.args[0], scale(counters[value].body, -1)).number
        stop, first = condition.args[1].number, start.body.number
        asked = ops.pointwise("lt", start, Tensor((), condition.args[1])).body
        if passed != 1 or going is None or going.body is not asked or not isinstance(first, int):
            continue
        if isinstance(stop, int):
            return max(stop - first, 0)
        if isinstance(stop, sympy.Expr):
            return sizes.size(stop - first)
    raise Opaque("a loop that does not end at a size")


def _always(c: Call, body: Region, kept: Value, value: Value) -> bool:
    """Whether a loop that has begun goes on: its condition is true, or passed on as it was."""
    begun = tensor.full((), 1, "bool")
    try:
        t = Turn(c, body, number(0), lambda v, _: begun if v is kept else None).tensor(value)
    except (Opaque, ShapeError, TooLarge):
        return False
    known = c.lifted.known(t.body)
    return known is not None and known != 0


@dataclass
class Turn:
    """The values of a sub-graph in one turn: those asked for, each computed once."""

    call: Call
    region: Region
    at: Poly  # the number of the turn
    given: Callable[[Value, Poly], Seen | None]
    around: Turn | None = None
    stretches: Stretches = field(default_factory=Stretches)
    found: dict[Value, Seen] = field(default_factory=dict)

    def tensor(self, value: Value) -> Tensor:
        """The term of a value. Raises Opaque."""
        seen = self.of(value)
        if not isinstance(seen, Tensor):
            raise Opaque("a sequence inside of a loop")
        return seen

    def of(self, value: Value) -> Seen:
        """What a value is. Raises Opaque, ShapeError, TooLarge."""
        if value not in self.found:
            given = self.given(value, self.at)
            self.found[value] = given if given is not None else self._computed(value)
        return self.found[value]

    def _computed(self, value: Value) -> Seen:
        node = value.node
        if node is not None and node in self.region.own:
            found: Seen | None = self._results(node)[value.index]
            if found is None:
                raise Opaque(f"{value.name} is not understood")
            return found
        if value in self.region.inputs:
            raise Opaque("a turn of the loop needs what an earlier one computed")
        if self.around is not None:
            return self.around.of(value)
        seen = self.call.lifted.items.get(value) or self.call.lifted.of(value)
        if seen is None:
            raise Opaque(f"{value.name} has no known rank")
        return seen

    def _results(self, node: Node) -> Sequence[Seen | None]:
        if node.op == "Constant":
            return [_constant(node)]
        if node.op == "Loop":
            return self._selected(node)
        if node.op == "If":
            return [self._branch(node, n) for n in range(len(node.outputs))]
        part = self._part(node) if node.op == "Slice" else None
        return [_plain(t) for t in self.call.lifted.apply(node, self.of)] if part is None else [part]

    def _selected(self, node: Node) -> Sequence[Seen | None]:
        """A loop over positions that appends those for which something holds to an empty tensor."""
        body, (trips, going, *carried) = node.kwargs["body"], node.args
        goes_on, *after = body.outputs
        if trips is not None or going is None or len(carried) != 2:
            raise Opaque("a loop inside of another")
        starts = [self.tensor(v) for v in carried]
        which = next((n for n, t in enumerate(starts) if t.shape == (0,)), None)
        if which is None or starts[1 - which].axes:
            raise Opaque("a loop inside of another")
        start = starts[1 - which]
        list_, counter = body.inputs[2 + which], body.inputs[3 - which]
        first = start.at([number(0)] * len(start.dims))
        place = axis(_extent(self, body, counter))
        at = retype(coord(place), first.dtype)
        given = {counter: start.with_body(at)}
        inside = Turn(self.call, body, at, lambda v, _: given.get(v), self, self.stretches)
        test = inside.kept(after[which], list_, counter)
        grown = inside.tensor(after[1 - which]).body
        condition, begun = (t.at([number(0)] * len(t.dims)).atom for t in (inside.tensor(goes_on), self.tensor(going)))
        if not isinstance(condition, Fn) or condition.name != "lt" or condition.args[0] is not grown:
            raise Opaque("a loop inside of another that does not end at a bound")
        end = condition.args[1]
        one = add_terms(grown, scale(at, -1)).number == 1
        if not one or place in end.axes_read or begun is not fn("lt", [first, end], "bool").atom:
            raise Opaque("a loop inside of another that does not go from bound to bound")
        value = node.outputs[which]
        found: list[Seen | None] = [None, None]
        found[which] = self.stretches.selected(value, first, end, place.size, place, test)
        return found

    def kept(self, after: Value, before: Value, counter: Value) -> Poly:
        """The condition under which a turn appends its counter to a tensor, which it else leaves alone."""
        node = after.node
        if node is None or node.op != "If":
            raise Opaque("a loop inside of another that does more than choose")
        test = self.tensor(node.args[0])
        appended, left = (node.kwargs[b].outputs[0] for b in ("then_branch", "else_branch"))
        while left is not before and left.node is not None and left.node.op == "Identity":
            left = left.node.args[0]
        made = appended.node
        plain = made is not None and made.op == "Concat" and len(made.args) == 2 and made.args[0] is before
        if left is not before or not plain or made is None:
            raise Opaque("a loop inside of another that does more than choose")
        inside = Turn(self.call, node.kwargs["then_branch"], self.at, lambda v, _: None, self, self.stretches)
        if inside.tensor(made.args[1]).body is not self.tensor(counter).body:
            raise Opaque("a loop inside of another that keeps more than positions")
        return test.at([number(0)] * len(test.dims))

    def _part(self, node: Node) -> Tensor | None:
        """A slice whose bounds are read from data; None where they are not."""
        given = [None if v is None else self.tensor(v) for v in node.args]
        x, start, end, axes, steps = (*given, None, None)[:5]
        if x is None or start is None or end is None or start.axes or end.axes:
            return None
        bounds = [t.at([number(0)] * len(t.dims)) for t in (start, end)]
        if not any(reads_data(self.call, p) for p in bounds):
            return None
        dims = [0] if axes is None else self.call.ints(axes)
        if len(dims) != 1 or not isinstance(dims[0], int) or (steps is not None and self.call.ints(steps) != [1]):
            raise Opaque("a slice of a length that data says")
        return self.stretches.part(x, dims[0] % len(x.dims), *bounds)

    def _branch(self, node: Node, n: int) -> Seen:
        """The branch that is taken in every turn; where one turn alone takes the other, it must mean the same there."""
        condition = self.tensor(node.args[0]).body
        known = self.call.lifted.known(condition)
        if known is not None:
            return self._inside(node, "then_branch" if known else "else_branch", self.at, n)
        if self.stretches.none(condition) is not None:
            return self._either(node, condition, n)
        only = _one_turn(condition, self.at)
        if only is None:
            return self._either(node, condition, n)
        otherwise = self._inside(node, "else_branch", self.at, n)
        if only == "none":
            return otherwise
        assert isinstance(only, Poly)
        if only.number is None or not sizes.at_least(only.number, 0):
            raise Opaque("a branch that the last turn alone takes")  # as of a last bag that ends where the ids do
        taken, passed = (self._inside(node, branch, only, n) for branch in ("then_branch", "else_branch"))
        same = isinstance(taken, Tensor) and isinstance(passed, Tensor) and taken.canonical() == passed.canonical()
        if not same:
            raise Opaque("a branch that one turn alone takes")
        return otherwise

    def _either(self, node: Node, condition: Poly, n: int) -> Seen:
        """The branches of a bag that is empty and of one that is not, as one term."""
        test = condition.atom
        if not isinstance(test, Fn) or test.name not in ("eq", "lt"):
            raise Opaque("a branch that data decides")
        otherwise = self._inside(node, "else_branch", self.at, n)
        taken = self._inside(node, "then_branch", self.at, n)
        empty = (self.stretches.between(test.args) or self.stretches.none(condition)) if test.name == "eq" else None
        if isinstance(taken, Tensor) and isinstance(otherwise, Tensor):
            if empty is not None:
                return self.stretches.unless_empty(empty, self.call, taken, otherwise)
            if test.name == "lt" and test.args[0].number == 0:
                return self.stretches.divided(test.args[1], taken, otherwise)
            if not taken.axes and not otherwise.axes and taken.dtype not in FLOATS:
                return ops.where(Tensor((), condition), taken, otherwise)
        raise Opaque("a branch that data decides")

    def _inside(self, node: Node, branch: str, at: Poly, n: int) -> Seen:
        """A result of a branch in a turn."""
        region = node.kwargs[branch]
        around = self if at is self.at else self.moved(at)
        inside = Turn(self.call, region, at, lambda v, _: None, around, self.stretches)
        return inside.of(region.outputs[n])

    def moved(self, at: Poly) -> Turn:
        """The same values in another turn."""
        around = None if self.around is None else self.around.moved(at)
        return Turn(self.call, self.region, at, self.given, around, self.stretches)


def _extent(turn: Turn, body: Region, counter: Value) -> Size:
    """The size of the dimension that a counter is a position of."""
    for node in body.nodes:
        if node.op == "Gather" and node.args[1] is counter and node.kwargs.get("axis", 0) == 0:
            return turn.tensor(node.args[0]).shape[0]
    raise Opaque("a loop inside of another")


def _plain(seen: Seen | None) -> Seen | None:
    """Bounds of bags, as concat(starts, [count])[i + 1], without the case of the last one."""
    if isinstance(seen, Tensor) and not seen.axes and seen.dtype in ("int64", "int32"):
        return seen.with_body(unguarded(seen.body))
    return seen


def _one_turn(condition: Poly, at: Poly) -> Poly | str | None:
    """The number of the one turn in which an equation holds; "none" where it never does, None where that is unknown."""
    atom = condition.atom
    if not isinstance(atom, Fn) or atom.name != "eq":
        return None
    difference = add_terms(atom.args[0], scale(atom.args[1], -1))
    low, high = value_range(difference)
    if (low is not None and sizes.at_least(low, 1)) or (high is not None and sizes.at_least(-1, high)):
        return "none"
    for sign in (1, -1):
        solved = add_terms(at, scale(difference, sign))
        if isinstance(at.atom, Coord) and solved.number is not None:
            return solved
    return None


def _constant(node: Node) -> Tensor:
    (array,) = node.kwargs.values()
    array = np.asarray(array)
    if array.size > 0 and (array == array.reshape(-1)[0]).all():
        return tensor.full(array.shape, array.reshape(-1)[0].item(), array.dtype.name)
    if array.ndim == 1 and 0 < array.size <= 8:
        return tensor.concat([tensor.full([1], v.item(), array.dtype.name) for v in array], 0)
    raise Opaque("a constant inside of a loop")


LOOPS: Mapping[str, Lift] = {"Loop": loop, "SequenceMap": sequence_map}
