"""Gated cells: the step of a recurrence as z * h + (1 - z) * tanh(..), with a reset gate inside, and what each gate's
pre-activation weighs."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ..hosts.base import Array, Value
from ..ir.normal import add, add_all, mul, normal_mono, read, scale, substitute, sum_over
from ..ir.rules import fn
from ..ir.tensor import Dim, Tensor, ravel, retyped
from ..ir.term import Atom, Axis, Coef, Fn, Mono, Poly, Read, axis, coord, monomial, number, single, walk
from ..lift.base import Lifted
from ..match import No, fold, is_data
from . import epilogue
from .epilogue import H
from .recurrence import PREVIOUS

SIGMOID = "sigmoid(h)"
MAX_ADDED = 4  # values between a pre-activation and the products that it adds up


@dataclass(frozen=True)
class Weighed:
    """A pre-activation: what it weighs of the inputs, the weights [H, H] on the state, the bias [H] of either."""

    inputs: tuple[tuple[Poly, Axis, Array], ...]  # a term over an axis, the axis, its weights [H, K]
    state: Array
    bias: Array
    state_bias: Array


@dataclass(frozen=True)
class Cell:
    """h = z * h + (1 - z) * n: the three gates, `keep`, z over H, its pre-activation, and whether the reset gate weighs
    the product of the state (`after`) or the state."""

    reset: Weighed
    update: Weighed
    candidate: Weighed
    keep: Poly
    after: bool


def cell_of(lifted: Lifted, step: Tensor) -> Cell | None:
    """The cell that a step over PREVIOUS is; None where it is nothing like one. Raises No where it nearly is."""
    if len(step.dims) != 2 or len(step.dims[0]) > 1 or len(step.dims[1]) != 1:
        return None
    (rows, (column,)) = step.dims
    here = read(PREVIOUS, (ravel(rows), coord(column)), step.dtype)
    body, choices = _unmasked(step.body, here)
    keep, candidate = _blend(body, here)
    if candidate is None:
        return None
    for condition, first in reversed(choices):  # where the state stays it is kept whole
        branches = [keep, number(1, keep.dtype)]
        keep = fn("where", [condition, *(branches if first else branches[::-1])], keep.dtype)
    # AGRU keeps as much as its attention says: no product of the state, so one of zeros stands in that gate
    update, outer = _inside(keep) if PREVIOUS in keep.leaves else (number(0, keep.dtype), add(keep, _pre(keep.dtype)))
    if outer.leaves == {H} and _sigmoid(outer) == -1:
        update, outer = scale(update, -1), fn("sigmoid", [_pre(outer.dtype)], outer.dtype)
    gate, parts = _reset(candidate.args[0], column)
    after = parts is not None
    reset, reset_outer = _inside(gate)
    sign = _sigmoid(reset_outer) if reset_outer.leaves == {H} else 0
    if sign == 0:
        raise No("the reset gate is no sigmoid: {}", reset_outer.text)
    weigh = _Weigher(lifted, rows, column)
    plain = parts or _without(candidate.args[0])
    return Cell(weigh(scale(reset, sign)), weigh(update), weigh(*plain), outer, after)


# --- the blend


def _unmasked(body: Poly, here: Poly) -> tuple[Poly, list[tuple[Poly, bool]]]:
    """What a step is where it counts, and the conditions under which it does: each, and whether it holds there."""
    choices: list[tuple[Poly, bool]] = []
    while isinstance(atom := body.atom, Fn) and atom.name == "where" and PREVIOUS not in atom.args[0].leaves:
        condition, one, other = atom.args
        if here not in (one, other):
            break
        choices.append((condition, other is here))
        body = one if other is here else other
    return body, choices


def _blend(body: Poly, here: Poly) -> tuple[Poly, Fn | None]:
    """z and n of z * h + (1 - z) * n; no n where it is no such blend."""
    kept: list[tuple[Coef, list[Atom]]] = []
    new: list[tuple[Coef, list[Atom]]] = []
    for mono in body.monos:
        others = [a for a in mono.atoms if a is not here.atom]
        if mono.axes or len(mono.atoms) - len(others) > 1:
            return body, None
        (new if len(others) == len(mono.atoms) else kept).append((mono.coef, others))
    keep = add_all([normal_mono(c, atoms, body.dtype) for c, atoms in kept], body.dtype)
    shared = [a for a in new[0][1] if all(a in atoms for _, atoms in new)] if new and kept else []
    found = [a for a in shared if isinstance(a, Fn) and a.name == "tanh" and PREVIOUS in a.leaves]
    if len(found) != 1:
        return keep, None
    shares = [normal_mono(c, [a for a in atoms if a is not found[0]], body.dtype) for c, atoms in new]
    if add(keep, *shares).number != 1:
        raise No("the shares of the state and of what is new do not add up to 1")
    return keep, found[0]


# --- the gates


def _pre(dtype: str) -> Poly:
    return read(H, (), dtype)


def _inside(gate: Poly) -> tuple[Poly, Poly]:
    """The pre-activation of a gate, and the gate over H."""
    found: dict[Poly, None] = {}
    for t in walk(gate):
        if isinstance(t, Fn):
            found |= {a: None for a in t.args if any(m.axes and _weighs_state(m) for m in a.monos)}
    if len(found) != 1:
        raise No("a gate is a function of {} products of the state", len(found))
    (product,) = found
    outer = _over(gate, product)
    if PREVIOUS in outer.leaves:
        raise No("a gate reads the state by itself")
    return product, outer


def _weighs_state(mono: Mono) -> bool:
    return any(isinstance(a, Read) and a.leaf is PREVIOUS for a in mono.atoms)


def _over(term: Poly, product: Poly) -> Poly:
    """A term with H in place of a product."""
    if term is product:
        return _pre(term.dtype)
    parts = []
    for mono in term.monos:
        if mono.axes or PREVIOUS not in mono.leaves:
            parts.append(monomial(mono, term.dtype))
            continue
        factors = [
            fn(a.name, [_over(x, product) for x in a.args], a.dtype, a.attrs)
            if isinstance(a, Fn)
            else single(a, a.dtype)
            for a in mono.atoms
        ]
        parts.append(scale(mul(number(1, term.dtype), *(retyped(f, term.dtype) for f in factors)), mono.coef))
    return add_all(parts, term.dtype)


def _sigmoid(outer: Poly) -> int:
    """1 for the sigmoid of H, -1 for that of -H, 0 for anything else."""

    def uniform(term: Poly) -> Array:
        raise No("a gate's constants vary along its columns: {}", term.text)

    text = epilogue.Printer(uniform).poly(outer)
    if epilogue.named(text) == SIGMOID:
        return 1
    return -1 if epilogue.named(re.sub(r"\bh\b", "(-1.0 * h)", text)) == SIGMOID else 0


_Parts = tuple[Poly, Poly, Poly]  # over the inputs, products of the state, a bias beside these


def _reset(term: Poly, column: Axis) -> tuple[Poly, _Parts | None]:
    """The reset gate in a candidate's pre-activation, and what it leaves of that where it weighs products of the
    state."""
    inputs: list[Poly] = []
    weighed: list[Poly] = []
    bias: list[Poly] = []
    gates: dict[Poly, bool] = {}
    for mono in term.monos:
        inner = [a for a in mono.atoms if isinstance(a, Fn) and PREVIOUS in a.leaves]
        if not inner:
            if _weighs_state(mono):
                raise No("the state enters the candidate past the reset gate")
            inputs.append(monomial(mono, term.dtype))
            continue
        if len(inner) > 1:
            raise No("several gates weigh the state")
        bound = [a for a in mono.axes if a in inner[0].axes_read]
        gate = substitute(single(inner[0], term.dtype), {a: coord(column) for a in bound})
        gates[gate] = not bound
        rest = normal_mono(mono.coef, [a for a in mono.atoms if a is not inner[0]], term.dtype)
        (weighed if mono.axes else bias).append(rest if not mono.axes else _summed(mono, rest))
    if len(gates) != 1:
        raise No("the candidate has {} reset gates", len(gates))
    ((gate, after),) = gates.items()
    if not after:
        return gate, None
    return gate, (add_all(inputs, term.dtype), add_all(weighed, term.dtype), add_all(bias, term.dtype))


def _summed(mono: Mono, rest: Poly) -> Poly:
    """`rest` summed over the axes of `mono`."""
    fresh = {a: axis(a.size) for a in mono.axes}
    return sum_over(substitute(rest, {a: coord(n) for a, n in fresh.items()}), fresh.values())


def _without(term: Poly) -> _Parts:
    """A candidate's pre-activation with the state itself where the reset gate weighs it."""
    inputs, weighed = [], []
    for mono in term.monos:
        inner = [a for a in mono.atoms if isinstance(a, Fn) and PREVIOUS in a.leaves]
        rest = normal_mono(mono.coef, [a for a in mono.atoms if a not in inner], term.dtype)
        if inner:
            weighed.append(_summed(mono, rest))
        else:
            inputs.append(monomial(mono, term.dtype))
    return add_all(inputs, term.dtype), add_all(weighed, term.dtype), number(0, term.dtype)


# --- the weights


@dataclass
class _Weigher:
    """Takes pre-activations apart."""

    lifted: Lifted
    rows: Dim
    column: Axis

    def __call__(self, inputs: Poly, state: Poly | None = None, beside: Poly | None = None) -> Weighed:
        if state is None:
            own = [m for m in inputs.monos if _weighs_state(m)]
            state = add_all([monomial(m, inputs.dtype) for m in own], inputs.dtype)
            inputs = add_all([monomial(m, inputs.dtype) for m in inputs.monos if m not in own], inputs.dtype)
        size = int(self.column.size)  # of a state, which has weights
        total = np.zeros((size, size))
        for mono in state.monos:
            x, k, weights = self._product(mono, inputs.dtype)
            if x is not read(PREVIOUS, (ravel(self.rows), coord(k)), inputs.dtype) or k.size != size:
                raise No("the state is weighed as {}", x.text)
            total = total + weights
        found: dict[tuple[Poly, Axis], Array] = {}
        bias = np.zeros(size)
        for mono in self._spelled(inputs).monos:
            if not is_data(self.lifted, mono):
                bias = bias + self._vector(monomial(mono, inputs.dtype))
                continue
            x, k, weights = self._product(mono, inputs.dtype)
            found[x, k] = found.get((x, k), 0.0) + weights
        second = np.zeros(size) if beside is None else self._vector(beside)
        return Weighed(tuple((*key, w) for key, w in found.items()), total, bias, second)

    def _product(self, mono: Mono, dtype: str) -> tuple[Poly, Axis, Array]:
        """What a product weighs, over an axis, and its weights."""
        if len(mono.axes) != 1:
            raise No("{} is no product with weights", mono.text)
        k = Axis(self.column.id + 1, mono.axes[0].size)
        opened = substitute(normal_mono(mono.coef, mono.atoms, dtype), {mono.axes[0]: coord(k)}).monos[0]
        data = [a for a in opened.atoms if is_data(self.lifted, a)]
        rest = [a for a in opened.atoms if a not in data]
        weight = normal_mono(opened.coef, rest, dtype)
        if len(data) != 1 or self.column in data[0].axes_read or not weight.axes_read.isdisjoint(self.rows):
            raise No("{} is no product with weights", mono.text)
        return single(data[0], dtype), k, fold(self.lifted, Tensor(((self.column,), (k,)), weight))

    def _vector(self, term: Poly) -> Array:
        if not term.axes_read.isdisjoint(self.rows):
            raise No("a bias varies along the batch")
        return fold(self.lifted, Tensor(((self.column,),), term))

    def _spelled(self, inputs: Poly) -> Poly:
        """Products that the graph holds for all positions at once, spelled out, and what is added to them."""

        def inner(atom: Atom) -> Poly | None:
            if not isinstance(atom, Read) or not isinstance(atom.leaf, Value) or self.column not in atom.axes_read:
                return None
            own = self.lifted.definition.get(atom.leaf)
            sums = own is not None and all(isinstance(a, Read) for m in own.body.monos for a in m.atoms)
            return own.at(list(atom.index)) if own is not None and sums else None

        for _ in range(MAX_ADDED):
            bare = [m for m in inputs.monos if not m.axes and is_data(self.lifted, m)]
            if not bare:
                break
            spelled = [substitute(monomial(m, inputs.dtype), {}, inner) for m in bare]
            inputs = add_all(
                [*(monomial(m, inputs.dtype) for m in inputs.monos if m not in bare), *spelled], inputs.dtype
            )
        return inputs
