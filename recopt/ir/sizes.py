"""Sizes of axes: Python integers or sympy polynomials in positive integer symbols (the batch is nearly always one)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cache, lru_cache
from typing import TypeAlias

import sympy

Size: TypeAlias = int | sympy.Expr
NOMINAL = 256  # what a symbol counts as where alternatives are ranked


@cache
def symbol(name: str) -> sympy.Symbol:
    """The size called `name`: a positive integer that is known only when the model runs."""
    return sympy.Symbol(name, integer=True, positive=True)


def size(value: object) -> Size:
    """`value` in canonical form: an int wherever it is one, else an expanded sympy expression."""
    if isinstance(value, int):
        return int(value)
    expr = _expand(sympy.sympify(value))
    return int(expr) if expr.is_Integer else expr


@lru_cache(maxsize=65536)
def _expand(expr: sympy.Expr) -> sympy.Expr:
    return sympy.expand(expr)


@lru_cache(maxsize=65536)
def mul(a: Size, b: Size) -> Size:
    """a * b."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return size(a * b)


@lru_cache(maxsize=65536)
def add(a: Size, b: Size) -> Size:
    """a + b."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return size(a + b)


def product(sizes: Iterable[Size]) -> Size:
    """The product of `sizes`; 1 for none."""
    result: Size = 1
    for item in sizes:
        result = mul(result, item)
    return result


@lru_cache(maxsize=65536)
def divide(a: Size, b: Size) -> Size | None:
    """a / b where that is a whole size for every value of the symbols (by its form), else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b != 0 and a % b == 0 else None
    if b == 0:
        return None
    quotient = sympy.expand(sympy.cancel(sympy.sympify(a) / b))
    whole = quotient.as_numer_denom()[1] == 1  # a fraction left in any coefficient shows in the denominator
    return size(quotient) if whole else None


def evaluate(value: Size, symbols: Mapping[str, int]) -> int:
    """`value` with every symbol replaced by its number. Raises KeyError for a symbol that has none."""
    if isinstance(value, int):
        return value
    return int(value.subs({s: symbols[s.name] for s in value.free_symbols}))


def at_least(a: Size, b: Size, maybe_none: Collection[sympy.Symbol] = ()) -> bool:
    """Whether a >= b for every value of the symbols, as far as its form shows: they are at least 1, and those of
    `maybe_none` at least 0 (of a batch that decides something, where there may be no element to ask about)."""
    if isinstance(a, int) and isinstance(b, int):
        return a >= b
    difference = size(a - b)
    if isinstance(difference, int):
        return difference >= 0
    shifted = size(
        difference.subs(
            {
                s: sympy.Symbol(s.name, integer=True, nonnegative=True) + (0 if s in maybe_none else 1)
                for s in difference.free_symbols
            }
        )
    )
    return shifted >= 0 if isinstance(shifted, int) else bool(shifted.is_nonnegative)


def symbols_of(a: Size) -> frozenset[sympy.Symbol]:
    """The symbols of a size."""
    return frozenset() if isinstance(a, int) else frozenset(a.free_symbols)


@lru_cache(maxsize=65536)
def nominal(size: Size) -> float:
    """A size with every symbol at the nominal batch."""
    if isinstance(size, int):
        return float(size)
    return float(size.subs({s: NOMINAL for s in size.free_symbols}))
