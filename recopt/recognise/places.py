"""Operands of attention: the values of a graph that hold a term as [rows.., last..], and scores as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..fused import View
from ..hosts.base import Array, Value
from ..ir import sizes
from ..ir.normal import add_all, normal_mono, substitute
from ..ir.tensor import Dim, Tensor
from ..ir.term import Atom, Axis, Fn, Interned, Mono, Poly, Read, number, single
from ..lift.base import Lifted
from ..match import No, fold, is_data
from .epilogue import COMPARISONS, Printer
from .operands import stored_as
from .views import Held, held_by, joined, regroup


@dataclass(frozen=True)
class Place:
    """Where the operands lie: before the root, over its row dimensions, and not computed from `products`."""

    lifted: Lifted
    root: Value
    products: frozenset[Value]
    rows: tuple[Dim, ...]

    def view(self, term: Poly, last: Sequence[Dim], what: str, source: Value | None = None, head: Dim = ()) -> View:
        """A host value, or `source`, that holds a term as [rows.., *last], size 1 where it does not vary, with the
        fewest steps; or with the axes of a head before the last ones."""
        own = term.axes_read
        target = [tuple(a for a in dim if a in own) for dim in (*self.rows, *last)]
        if own != {a for dim in target for a in dim}:
            raise No("{} vary along another axis too", what)
        options = []
        for held in self._held(term, [*target, (*head, *target[-1])]):
            if source not in (None, held.value):
                continue
            if self._follows(held.value):
                raise No("{} depend on the scores", what)
            steps = (*held.steps, *regroup(held.dims, target))
            options.append((len(steps), self.lifted.order.get(held.value, 0), held.value, steps))
        if not options:
            raise No("no value of the graph holds {}: {}", what, term.text)
        _, _, value, steps = min(options, key=lambda o: o[:2])
        return View(value, tuple(sizes.product(a.size for a in d) for d in target), steps)

    def _held(self, term: Poly, target: Sequence[Dim]) -> Iterator[Held]:
        """The values that hold a term, as it is read and as users see what it reads; those too whose dimensions are as
        `target` joins them."""
        before = self.lifted.order[self.root]
        for body in dict.fromkeys((term, self._seen(term))):
            yield from held_by(self.lifted, body, list(dict.fromkeys(a for dim in target for a in dim)), before)
            joint, apart = joined(body, target)
            if apart:
                for held in held_by(self.lifted, joint, [a for a in joint.axes_read], before):
                    dims = tuple(tuple(b for a in dim for b in apart.get(a, (a,))) for dim in held.dims)
                    yield replace(held, dims=dims)

    def _seen(self, term: Poly) -> Poly:
        """A term with what it reads as users see that, so that other values of the graph may hold it too."""

        def inner(atom: Atom) -> Poly | None:
            known = self.lifted.term.get(atom.leaf) if isinstance(atom, Read) and isinstance(atom.leaf, Value) else None
            return None if known is None or not isinstance(atom, Read) else known.at(list(atom.index))

        return substitute(term, {}, inner)

    def _follows(self, value: Value) -> bool:
        """Whether a value is computed from the product that the scores are made of."""
        first = min((self.lifted.order[p] for p in self.products), default=0)
        pending, seen = [value], {value}
        while pending:
            v = pending.pop()
            if v in self.products:
                return True
            if v.node is not None and self.lifted.order.get(v, 0) > first:
                fresh = [u for u in v.node.inputs if u not in seen]
                seen.update(fresh)
                pending += fresh
        return False


def together(dim: Sequence[Axis], operands: Sequence[Interned]) -> list[Dim]:
    """The axes of a dimension, together where every operand reads all or none of them."""
    joint: list[Dim] = []
    for a in dim:
        if joint and all((a in t.axes_read) == (joint[-1][-1] in t.axes_read) for t in operands):
            joint[-1] = (*joint[-1], a)
        else:
            joint.append((a,))
    return joint


class ScoreText(Printer):
    """Prints a score; what is no number becomes an operand that broadcasts to [rows.., *last]."""

    def __init__(self, place: Place, last: Sequence[Dim], compares: bool = False) -> None:
        super().__init__(lambda term: np.zeros(0))
        self.place, self.last, self.compares = place, last, compares
        self.operands: list[Array | View] = []

    def constant(self, term: Poly) -> str:
        """A literal, or an operand that holds the whole term, or an expression of such."""
        if isinstance(term.number, (int, float)):
            return repr(float(term.number))
        if term not in self.known and self.compares and (text := self._compared(term)) is not None:
            self.known[term] = text
        if term not in self.known:
            try:
                self.operands.append(self._operand(term))
                self.known[term] = f"p{len(self.operands) - 1}"
            except No as why:
                self.known[term] = self._parts(term, why)
        return self.known[term]

    def _operand(self, term: Poly) -> Array | View:
        place = self.place
        target = tuple(tuple(a for a in dim if a in term.axes_read) for dim in (*place.rows, *self.last))
        whole = Tensor(target, term)
        if is_data(place.lifted, term) or not all(isinstance(size, int) for size in whole.shape):
            return place.view(term, self.last, "the mask or bias")  # a causal mask of any length, say
        return stored_as(fold(place.lifted, whole), "float32")

    def _compared(self, term: Poly) -> str | None:
        """A comparison of a number of each key with one of each row, a length say, as such: as an operand of all rows
        and keys it would have to be written first. None where it is no such, or float32 might decide otherwise."""
        atom, lifted = term.atom, self.place.lifted
        if isinstance(atom, Read) and isinstance(atom.leaf, Value) and term.dtype == "bool":
            own = lifted.definition.get(atom.leaf)
            made = None if own is None or atom.leaf in own.body.leaves else own.at(list(atom.index))
            return None if made is None else self._compared(made)
        if not isinstance(atom, Fn) or atom.name not in (*COMPARISONS, "logical_not"):
            return None
        if atom.name == "logical_not":
            text = self._compared(atom.args[0])
            return None if text is None else f"logical_not({text})"
        numbers = [a for a in atom.args if not is_data(lifted, a) and "int" in a.dtype]
        keys = {a for dim in self.last for a in dim}
        if len(numbers) != 1 or any(not keys.isdisjoint(a.axes_read) for a in atom.args if a is not numbers[0]):
            return None
        try:
            stored = [self._operand(a) for a in atom.args]
        except No:
            return None
        # float32 rounds what they are compared with, which changes nothing while they are far below its last one
        if any(not isinstance(s, View) and np.abs(s).max() >= 1 << 23 for s in stored):
            return None
        a, b = map(self.constant, atom.args)
        return f"({a} {COMPARISONS[atom.name]} {b})"

    def _parts(self, term: Poly, why: No) -> str:
        """A term that no value holds, of terms that some do."""
        if term.number is not None or (term.atom is not None and not isinstance(term.atom, Fn)):
            raise why
        texts, monos = self._held_with_numbers(term)
        # the largest first: of -1e38 + bias + 1e38 * seen, which is (1 - seen) * -1e38 + bias, the bias is to be left
        for mono in sorted(monos, key=lambda m: -abs(m.coef) if isinstance(m.coef, (int, float)) else 0):
            if mono.axes:
                raise why
            factors = [self.atom(a) if isinstance(a, Fn) else self.constant(single(a, a.dtype)) for a in mono.atoms]
            if mono.coef != 1 or not factors:
                factors.insert(0, self.constant(number(mono.coef, term.dtype)))
            texts.append(" * ".join(factors))
        return f"({' + '.join(texts)})"

    def _held_with_numbers(self, term: Poly) -> tuple[list[str], list[Mono]]:
        """An operand that is a term's numbers and some of its data, as (1 - seen) * -1e9 in a sum with a bias; and the
        monomials that are left."""
        numbers = [m for m in term.monos if not m.atoms and not m.axes]
        for leaves in dict.fromkeys(m.leaves for m in term.monos if m not in numbers) if numbers else ():
            own = [m for m in term.monos if m in numbers or m.leaves == leaves]
            whole = add_all([normal_mono(m.coef, m.atoms, term.dtype) for m in own], term.dtype)
            if len(own) == len(term.monos) or any(m.axes for m in own):
                continue
            try:
                self.operands.append(self._operand(whole))
            except No:
                continue
            self.known[whole] = f"p{len(self.operands) - 1}"
            return [self.known[whole]], [m for m in term.monos if m not in own]
        return [], list(term.monos)
