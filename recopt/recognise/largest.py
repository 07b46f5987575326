"""The maximum of rows of which some do not count, however they are hidden.

max_l where(live, rows, V)                        V in their place: -inf, or a number below them all
max_l rows - V * (1 - live)                       V taken off them
where(0 < sum_l live, max_l .., W)                W where none counts
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.normal import add, scale
from ..ir.rules import FLOATS, fn
from ..ir.term import Atom, Axis, Fn, Poly, Reduce, monomial


@dataclass(frozen=True)
class Largest:
    """max over `axes` of the product `rows`, under conditions that all have to hold."""

    axes: tuple[Axis, ...]
    rows: tuple[Atom, ...]
    live: tuple[Poly, ...] = ()
    hidden: float = float("-inf")  # in the place of rows that do not count
    taken: bool = False  # it is added to them instead
    count: Poly | None = None  # how many count, where that is asked: without any the maximum is `empty`
    empty: float = 0.0


def largest(atom: Atom) -> Largest | None:
    """What a maximum is made of; None where an atom is none, or of several terms."""
    if isinstance(atom, Reduce):
        return _reduced(atom) if atom.op == "max" else None
    if not isinstance(atom, Fn) or atom.name != "where" or atom.dtype not in FLOATS:
        return None
    condition, found, empty = atom.args
    test, inner = condition.atom, found.atom
    if not isinstance(inner, Reduce) or not isinstance(test, Fn) or test.name != "lt" or test.args[0].number != 0:
        return None
    whole = largest(inner)
    value = empty.number
    if whole is None or whole.taken or whole.hidden != float("-inf") or not isinstance(value, (int, float)):
        return None
    return Largest(whole.axes, whole.rows, whole.live, count=test.args[1], empty=float(value))


def _reduced(atom: Reduce) -> Largest | None:
    monos = atom.body.monos
    if len(monos) == 1:
        if monos[0].axes or monos[0].coef != 1:
            return None
        atoms = monos[0].atoms
        only = atoms[0] if len(atoms) == 1 else None
        if not isinstance(only, Fn) or only.name != "where":
            return Largest(atom.axes, atoms)
        condition, a, b = only.args
        for rows, hidden, live in ((a, b, condition), (b, a, _not(condition))):
            parts = _product(rows)
            if parts is not None and isinstance(hidden.number, (int, float)):
                return Largest(atom.axes, parts, tuple(all_of(live)), float(hidden.number))
        return None
    return _taken_off(atom)


def _taken_off(atom: Reduce) -> Largest | None:
    """rows - C + C * live, and rows - C * hidden."""
    body = atom.body
    masks = [m for m in body.monos if not m.axes and len(m.atoms) == 1 and _condition(m.atoms[0]) is not None]
    if len(masks) != 1 or not isinstance(masks[0].coef, (int, float)):
        return None
    condition, coef = _condition(masks[0].atoms[0]), float(masks[0].coef)
    assert condition is not None
    rest = add(body, scale(monomial(masks[0], body.dtype), -1))
    constant = sum(float(m.coef) for m in rest.monos if not m.atoms and not m.axes)
    rows = _product(add(*(monomial(m, body.dtype) for m in rest.monos if m.atoms))) if rest.monos else None
    if rows is None or constant != (-coef if coef > 0 else 0.0):
        return None
    live = condition if coef > 0 else _not(condition)
    return Largest(atom.axes, rows, tuple(all_of(live)), -abs(coef), taken=True)


def _product(term: Poly) -> tuple[Atom, ...] | None:
    single = len(term.monos) == 1 and not term.monos[0].axes and term.monos[0].coef == 1
    return term.monos[0].atoms or None if single else None


def _condition(atom: Atom) -> Poly | None:
    return atom.args[0] if isinstance(atom, Fn) and atom.name == "cast" and atom.args[0].dtype == "bool" else None


def _not(condition: Poly) -> Poly:
    return fn("logical_not", [condition], "bool")


def all_of(condition: Poly) -> list[Poly]:
    """The conditions that a conjunction is made of."""
    atom = condition.atom
    if isinstance(atom, Fn) and atom.name == "logical_and":
        return [c for arg in atom.args for c in all_of(arg)]
    inner = atom.args[0].atom if isinstance(atom, Fn) and atom.name == "logical_not" else None
    if isinstance(inner, Fn) and inner.name == "logical_or":
        return [c for arg in inner.args for c in all_of(_not(arg))]
    return [condition]
