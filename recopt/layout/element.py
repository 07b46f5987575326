"""An element of a value as an operator of others, what indices of elements are made of, and what cuts them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..hosts.base import Value
from ..ir import sizes
from ..ir.ranges import value_range
from ..ir.sizes import Size
from ..ir.term import Atom, Axis, Coord, Fn, Guard, Mono, Poly, Read, axis, coord, number, walk
from ..match import No

Number: TypeAlias = int | float
Index: TypeAlias = tuple[Poly, ...]


@dataclass(frozen=True, eq=False)
class Element:
    """A value of kernels/pointwise.py's language: `op` of `args`, or of `source` at `index`; equal ones are the same
    object. A source that is a text is the packed constants of that dtype."""

    op: str
    dtype: str
    args: tuple[Element | Number, ...] = ()
    source: Value | str | None = None
    index: Index = ()
    checked: bool = False

    @property
    def name(self) -> str:
        return f"e{id(self)}"


class TooLong(No):
    """What is to be computed of an element is more than a kernel should."""


class Cut(Exception):
    """A piece reads two parts of something along an axis: it is to be cut at places `at` of the axis."""

    def __init__(self, axis: Axis, at: Sequence[int]) -> None:
        self.axis, self.at = axis, tuple(at)


class Refine(Exception):
    """An axis is read by its quotient and its rest: it is two axes, the inner one of size `inner`."""

    def __init__(self, axis: Axis, inner: int) -> None:
        self.axis, self.inner = axis, inner


def within(index: Poly, size: Size) -> bool:
    """Whether an index lies inside by its form."""
    if any(isinstance(a, Read) for a in walk(index)):
        return False
    low, high = value_range(index)
    return (
        low is not None and high is not None and sizes.at_least(low, 0) and sizes.at_least(size, sizes.size(high + 1))
    )


def is_negative(condition: Element, x: Element) -> bool:
    """Whether a condition is that x is negative."""
    return condition.op == "lt" and condition.args[0] is x


def is_plain(place: Poly) -> bool:
    """Whether an index is made of places, elements, and quotients and rests of such by numbers."""
    for item in walk(place):
        if isinstance(item, Mono) and (item.axes or isinstance(item.coef, float)):
            return False
        if isinstance(item, Read) and not isinstance(item.leaf, Element):
            return False
        if isinstance(item, Fn) and item.name not in ("floordiv", "mod"):
            return False
        if isinstance(item, Atom) and not isinstance(item, (Coord, Read, Fn)):
            return False
    return True


def only_moves(body: Poly) -> bool:
    """Whether a term only chooses among elements, or is a number or a place."""
    if not any(isinstance(a, (Read, Guard)) for m in body.monos for a in m.atoms):
        return is_plain(body) or isinstance(body.number, (int, float))
    for m in body.monos:
        rest = [a for a in m.atoms if not isinstance(a, Guard)]
        if m.axes or len(rest) > 1 or not all(isinstance(a, Read) for a in rest) or (rest and m.coef != 1):
            return False
    return True


def places(shape: Sequence[Size]) -> Index:
    """Fresh axes along a shape, as an index."""
    return tuple(coord(axis(s)) if s != 1 else number(0) for s in shape)
