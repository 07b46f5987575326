"""Between which numbers the whole numbers of elements lie, operator by operator, as far as numbers, places, remainders
and the like show: what is read at such a place needs no look at the data."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, MutableMapping

import numpy as np

from ..ir.ranges import value_range
from .element import Element

Range = tuple[int, int]


def limits(dtype: str) -> Range:
    """The numbers that a type holds."""
    return (0, 1) if dtype == "bool" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


def whole_range(x: Element, known: Mapping[Element, Range], memo: MutableMapping[Element, Range]) -> Range:
    """The smallest and the largest number that an integer or a truth value can be; `known` are those of constants'
    elements."""
    if x not in memo:
        memo[x] = known.get(x) or _range(x, known, memo)
    return memo[x]


def _range(x: Element, known: Mapping[Element, Range], memo: MutableMapping[Element, Range]) -> Range:
    every = limits(x.dtype)
    if x.op == "lit":
        return int(x.args[0]), int(x.args[0])  # type: ignore[arg-type]  # a number
    if x.op == "at":
        low, high = value_range(x.index[0])
        return low if isinstance(low, int) else every[0], high if isinstance(high, int) else every[1]
    if x.op == "bucket":
        return 0, int(x.args[1])  # type: ignore[arg-type]  # how many boundaries
    args = [a for a in x.args if isinstance(a, Element)]
    if x.op == "where":
        args = args[1:]
    if x.op not in RANGES or any("float" in a.dtype for a in args):
        return every
    found = RANGES[x.op](*(whole_range(a, known, memo) for a in args))
    return found if found is not None and every[0] <= found[0] <= found[1] <= every[1] else every  # it may wrap around


def _of_ends(op: Callable[[int, int], int]) -> Callable[[Range, Range], Range]:
    """An operator that grows or falls with each operand."""

    def found(a: Range, b: Range) -> Range:
        ends = [op(p, q) for p in a for q in b]
        return min(ends), max(ends)

    return found


def _remainder(a: Range, b: Range) -> Range | None:
    if b[0] <= 0:
        return None
    return a if a[0] >= 0 and a[1] < b[0] else (0, b[1] - 1)


def _signed_remainder(a: Range, b: Range) -> Range | None:
    return None if b[0] <= 0 else (max(min(a[0], 0), 1 - b[1]), min(max(a[1], 0), b[1] - 1))


def _quotient(a: Range, b: Range) -> Range | None:
    return None if b[0] <= 0 else _of_ends(operator.floordiv)(a, b)


def _toward_zero(a: Range, b: Range) -> Range | None:
    return None if b[0] <= 0 else _of_ends(lambda p, q: p // q if p >= 0 else -(-p // q))(a, b)


def _both(a: Range, b: Range) -> Range | None:
    tops = [high for low, high in (a, b) if low >= 0]
    return (0, min(tops)) if tops else None


def _either(a: Range, b: Range) -> Range | None:
    return (0, (1 << max(a[1], b[1]).bit_length()) - 1) if a[0] >= 0 and b[0] >= 0 else None


def _shift(op: Callable[[int, int], int]) -> Callable[[Range, Range], Range | None]:
    return lambda a, b: _of_ends(op)(a, b) if b[0] >= 0 and b[1] < 64 else None


# a remainder by way of an inverse has two operands more
RANGES: dict[str, Callable[..., Range | None]] = {
    "add": _of_ends(operator.add), "sub": _of_ends(operator.sub), "mul": _of_ends(operator.mul),
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])), "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "rem": _remainder, "rem_by": lambda a, b, *_: _remainder(a, b), "fmod": _signed_remainder, "floordiv": _quotient,
    "truncdiv": _toward_zero,
    "and": _both, "or": _either, "xor": _either, "shr": _shift(operator.rshift), "shl": _shift(operator.lshift),
    "where": lambda a, b: (min(a[0], b[0]), max(a[1], b[1])), "cast": lambda a: a, "sign": lambda a: (-1, 1),
    "abs": lambda a: (max(a[0], -a[1], 0), max(-a[0], a[1])), "neg": lambda a: (-a[1], -a[0]),
}  # fmt: skip
