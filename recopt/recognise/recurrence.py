"""Recurrences: chains of values that are one function of the value before, of a position in a sequence and of weights.

A step is opened to a term over the state before it, which is a leaf of its own there; steps of a chain are then one
term with another position in it each, and are told from others by nothing else.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from ..hosts.base import Value
from ..ir.normal import add, add_all, guard, mul, read, scale, substitute, sum_over
from ..ir.rules import FLOATS, fn
from ..ir.sizes import Size
from ..ir.tensor import Tensor
from ..ir.term import (
    Atom,
    Axis,
    Coord,
    Fn,
    Guard,
    Interned,
    Leaf,
    Mono,
    Poly,
    Read,
    TooLarge,
    axis,
    coord,
    number,
    single,
    walk,
)
from ..lift.base import Lifted
from ..match import is_data
from .epilogue import Pre

PREVIOUS = Pre("h[t-1]")  # the state before a step
MAX_WALK = 48  # values between a state and the one before that are looked at
MAX_OPENED = 64  # values that are opened for one step
MAX_WEIGHT = 4096  # atoms in it, those within functions too
MAX_ADDED = 64  # terms in an opened value: a mixture of states has a few, a product of sums twice as many at each step
FAR = 1 << 20  # more steps than any chain has


@dataclass(frozen=True)
class Chain:
    """Values that are one function of the one before each, the last one last. `step` is over PREVIOUS and `position`,
    0 for the first state; `start` is the value before that, None for zeros."""

    states: tuple[Value, ...]
    start: Value | None
    step: Tensor
    position: Axis


def chain(lifted: Lifted, last: Value) -> Chain | None:
    """The longest chain that ends in `last`; None where not even two steps are alike."""
    states, step = [last], _step_of(lifted, last)
    if step is None:
        return None
    before, now = step
    general: Poly | None = None
    back = axis(FAR)  # steps before the last one
    while (found := _step_of(lifted, before)) is not None and found[1].dims == now.dims:
        if general is None:
            general = _general(found[1].body, now.body, back)
        if general is None or substitute(general, {back: number(len(states))}) is not found[1].body:
            break
        states.insert(0, before)
        before = found[0]
    if general is None:
        return None
    start: Value | None = before
    at_start = substitute(general, {back: number(len(states))}, _from_zero)
    # Its own state before is 0, if it is a step at all: one with a state before would open all that comes earlier.
    first = _opened(lifted, before, None, frozenset(general.leaves)) if _step_of(lifted, before) is None else None
    if first is not None and first.dims == now.dims and first.body is at_start:
        states.insert(0, before)
        start = None
    position = axis(len(states))
    body = substitute(general, {back: add(number(len(states) - 1), scale(coord(position), -1))})
    return Chain(tuple(states), start, now.with_body(body), position)


def _from_zero(atom: Atom) -> Poly | None:
    return number(0, atom.dtype) if isinstance(atom, Read) and atom.leaf is PREVIOUS else None


# --- one step


def _step_of(lifted: Lifted, value: Value) -> tuple[Value, Tensor] | None:
    """The state before `value`, and `value` over it; None where there is none."""
    key = ("a step of a recurrence", value)
    if key not in lifted.notes:
        before = previous(lifted, value)
        body = None if before is None else _opened(lifted, value, before, frozenset())
        lifted.notes[key] = None if body is None or PREVIOUS not in body.body.leaves else (before, body)
    return lifted.notes[key]  # type: ignore[return-value]  # what was put there


def previous(lifted: Lifted, value: Value) -> Value | None:
    """The nearest value of the same shape that `value` reads both in a sum over it and outside of one: where `value` is
    a step, the state before."""
    key = ("the state before", value)
    if key not in lifted.notes:
        lifted.notes[key] = _previous(lifted, value)
    return lifted.notes[key]  # type: ignore[return-value]  # what was put there


def _previous(lifted: Lifted, value: Value) -> Value | None:
    if not _blends(lifted, value):
        return None
    flags: dict[Value, int] = {value: 1}
    pending = [(-lifted.order[value], 0, value)]
    for count in range(MAX_WALK):
        if not pending:
            return None
        _, _, v = heapq.heappop(pending)
        if flags[v] == 3 and v is not value and _shape(lifted, v) == _shape(lifted, value) and v.dtype == value.dtype:
            return v
        own = lifted.local(v) if v.node is not None else None
        if own is None:
            continue
        for n, (leaf, where) in enumerate(_places(own.body, False).items()):
            if isinstance(leaf, Value) and leaf is not v and not lifted.host.is_constant(leaf):
                if leaf not in flags:
                    heapq.heappush(pending, (-lifted.order.get(leaf, 0), count * MAX_WALK + n, leaf))
                flags[leaf] = flags.get(leaf, 0) | where & 2 | (flags[v] if where & 1 else 0)
    return None


def _places(term: Poly, summed: bool) -> dict[Leaf, int]:
    """What a term reads: 1 for outside of all sums, 2 for inside of one, 3 for both."""
    found: dict[Leaf, int] = {}
    for mono in term.monos:
        inside = summed or bool(mono.axes)
        for atom in mono.atoms:
            parts = [_places(a, inside) for a in atom.args] if isinstance(atom, Fn) else []
            for leaf in atom.leaves:
                found[leaf] = found.get(leaf, 0) | (1 << inside if not parts else 0)
                for part in parts:
                    found[leaf] |= part.get(leaf, 0)
    return found


def _shape(lifted: Lifted, value: Value) -> tuple[Size, ...] | None:
    """The shape as far as terms show: exporters give every step sizes of its own."""
    t = lifted.term.get(value)
    return None if t is None else t.shape


def _blends(lifted: Lifted, value: Value) -> bool:
    """Whether a value adds up products of data, or chooses between two values: a cheap sign of a gate."""
    if value.dtype not in FLOATS or value.node is None or len(_shape(lifted, value) or ()) != 2:
        return False
    own = lifted.local(value)
    if own is None or any(m.axes for m in own.body.monos):
        return False
    atom = own.body.atom
    if isinstance(atom, Fn):
        return atom.name == "where"
    leaves = [u for u in own.body.leaves if isinstance(u, Value) and u is not value]
    inner = [lifted.local(u) for u in leaves if u.node is not None]
    bodies = [own.body, *(t.body for t in inner if t is not None)]
    return len(own.body.monos) > 1 and any(
        sum(is_data(lifted, a) for a in m.atoms) > 1 for body in bodies for m in body.monos
    )


def _opened(lifted: Lifted, value: Value, before: Value | None, stop: frozenset[Leaf]) -> Tensor | None:
    """`value` over the state `before`, over constants and over what stands still while steps go by: positions of
    tensors, or the leaves in `stop`. None where it cannot be told."""
    own: dict[Value, Tensor] = {}
    opened: dict[Value, Tensor] = {}
    weights: dict[Poly, int] = {}

    def moves(term: Interned) -> Value | None:
        """The value read there, if it is neither the state before nor a constant."""
        leaf = term.leaf if isinstance(term, Read) else None
        if not isinstance(leaf, Value) or leaf is before or leaf in stop or leaf.node is None:
            return None
        return None if lifted.host.is_constant(leaf) else leaf

    def stands(atom: Interned, leaf: Value) -> bool:
        return before is not None and _is_placed(lifted, atom, leaf) and not _follows(lifted, leaf, before)

    def put_in(atom: Atom) -> Poly | None:
        if isinstance(atom, Read) and atom.leaf is before:
            return read(PREVIOUS, atom.index, atom.dtype)
        leaf = moves(atom)
        if leaf is None or not isinstance(atom, Read):
            return None
        if stands(atom, leaf):
            return _seen(lifted, atom)
        return opened[leaf].at(list(atom.index)) if leaf in opened else None

    # The nearest first, and no recursion: in a graph without steps the values before have no end.
    pending = {value}
    while pending and len(own) < MAX_OPENED:
        u = max(pending, key=lambda v: lifted.order.get(v, 0))
        pending.remove(u)
        # A product with a first state of zeros: the step that takes its place computes it too, NaN and all.
        t = lifted.vanished.get(u) or lifted.local(u)
        if t is not None:
            own[u] = t
            read_there = ((a, moves(a)) for a in walk(t.body))
            fresh = {v for a, v in read_there if v is not None and v not in own and not stands(a, v)}
            pending |= {v for v in fresh if not _is_another(lifted, v, before)}
    try:
        for u in reversed(own):
            opened[u] = own[u].with_body(substitute(own[u].body, {}, put_in))
            if len(opened[u].body.monos) > MAX_ADDED or _weight(opened[u].body, weights) > MAX_WEIGHT:
                return None
    except TooLarge:
        return None
    return opened[value].canonical() if value in opened else None


def _weight(term: Poly, known: dict[Poly, int]) -> int:
    """The atoms of a term, those within atoms too, each as often as it is written."""
    if term not in known:
        inside = [p for m in term.monos for a in m.atoms for p in (a.args if isinstance(a, Fn) else _index(a))]
        known[term] = sum(len(m.atoms) for m in term.monos) + sum(_weight(p, known) for p in inside)
    return known[term]


def _index(atom: Atom) -> tuple[Poly, ...]:
    return atom.index if isinstance(atom, Read) else ()


def _is_another(lifted: Lifted, value: Value, before: Value | None) -> bool:
    """Whether a value is a state of another recurrence, in which it would never end to be opened."""
    earlier = previous(lifted, value)
    return earlier is not None and earlier is not before and previous(lifted, earlier) is not None


def _is_placed(lifted: Lifted, atom: Interned, leaf: Value) -> bool:
    """Whether a read is at one place of several along some dimension."""
    shape = _shape(lifted, leaf) or ()
    index = atom.index if isinstance(atom, Read) else ()
    return any(isinstance(p.number, int) and size != 1 for p, size in zip(index, shape, strict=False))


def _follows(lifted: Lifted, value: Value, before: Value) -> bool:
    """Whether a value is computed from another."""
    earliest = lifted.order.get(before, 0)
    pending, seen = [value], {value}
    while pending:
        v = pending.pop()
        if v is before:
            return True
        if v.node is not None and lifted.order.get(v, 0) > earliest:
            fresh = [u for u in v.node.inputs if u not in seen]
            seen.update(fresh)
            pending += fresh
    return False


def _seen(lifted: Lifted, atom: Read) -> Poly | None:
    """A read of what layout moves there; sums and products that the graph holds stay as they are."""
    t = lifted.term.get(atom.leaf) if isinstance(atom.leaf, Value) else None
    return None if t is None or not is_layout(t.body) else t.at(list(atom.index))


def is_layout(term: Poly) -> bool:
    """Whether a term is one read, or several in their places of a concat."""
    for mono in term.monos:
        reads = [a for a in mono.atoms if not isinstance(a, Guard)]
        apart = len(term.monos) == 1 or len(reads) < len(mono.atoms)
        if mono.axes or mono.coef != 1 or len(reads) != 1 or not isinstance(reads[0], Read) or not apart:
            return False
    return bool(term.monos)


# --- two steps as one


class _Differs(Exception):
    """The terms are no two places of one term."""


def _general(before: Poly, now: Poly, back: Axis) -> Poly | None:
    """The term over `back` that is `now` at 0 and `before` at 1: numbers that differ become places."""

    def poly(a: Poly, b: Poly) -> Poly:
        if a is b:
            return a
        if isinstance(a.number, int) and isinstance(b.number, int):
            return add(number(b.number, b.dtype), scale(place(b.dtype), a.number - b.number))
        if len(a.monos) != len(b.monos) or a.dtype != b.dtype:
            raise _Differs
        return add_all([mono(m, n, a.dtype) for m, n in zip(a.monos, b.monos, strict=True)], a.dtype)

    def place(dtype: str) -> Poly:
        if "int" not in dtype:
            raise _Differs
        found = coord(back)
        return found if found.dtype == dtype else fn("cast", [found], dtype)

    def mono(a: Mono, b: Mono, dtype: str) -> Poly:
        if a.axes != b.axes or a.coef != b.coef or len(a.atoms) != len(b.atoms):
            raise _Differs
        fresh = {x: coord(axis(x.size)) for x in a.axes}
        factors = [substitute(atom(x, y), fresh) for x, y in zip(a.atoms, b.atoms, strict=True)]
        bound = [p.atom.axis for p in fresh.values() if isinstance(p.atom, Coord)]
        return sum_over(scale(mul(number(1, dtype), *(_as(f, dtype) for f in factors)), a.coef), bound)

    def atom(a: Atom, b: Atom) -> Poly:
        if a is b:
            return single(a, a.dtype)
        if isinstance(a, Read) and isinstance(b, Read) and a.leaf is b.leaf and len(a.index) == len(b.index):
            return read(a.leaf, [poly(p, q) for p, q in zip(a.index, b.index, strict=True)], a.dtype)
        if isinstance(a, Fn) and isinstance(b, Fn) and _alike(a, b):
            return fn(a.name, [poly(p, q) for p, q in zip(a.args, b.args, strict=True)], a.dtype, a.attrs)
        if isinstance(a, Guard) and isinstance(b, Guard) and (a.lo, a.hi) == (b.lo, b.hi):
            return guard(poly(a.index, b.index), a.lo, a.hi)
        raise _Differs

    try:
        return poly(before, now)
    except (_Differs, TooLarge):
        return None


def _alike(a: Fn, b: Fn) -> bool:
    return (a.name, a.attrs, a.dtype, len(a.args)) == (b.name, b.attrs, b.dtype, len(b.args))


def _as(term: Poly, dtype: str) -> Poly:
    return term if term.dtype == dtype else add_all([term], dtype)
