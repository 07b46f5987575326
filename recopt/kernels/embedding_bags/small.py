"""Layouts of ``recopt::embedding_bags`` as straight lines of torch calls, which are all that a small request costs.

A layout becomes the source of one function, once. Where it does not fit operands (large sums, which ``embedding_bag``
adds up faster) the function returns None, and where ids are wrong it raises: embedding_bags_torch then goes its way.

Ids may also be [*S, C] or [*S], where ``rank`` is how many dimensions S has, and weights, offsets and dense tensors
likewise; the result is [*S, W]. It is what a reshape to [R, W] would be taken back to. Or it is [*S, P, D], where it is
P rows of one width, ``apart``, and dense tensors are [*S, n, D].
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Tensor

from .ids import FUNCTIONS
from .layout import Term, parse_layout
from .small_calls import CALLS
from .small_ids import NoSource, Shapes
from .small_source import Source

Small: TypeAlias = Callable[..., Tensor | None]


@functools.lru_cache(maxsize=4096)
def small(text: str, rank: int = 1, apart: bool = False) -> Small | None:
    """The function of tables, ids, offsets, weights and dense tensors on the CPU that a layout is; None where it has
    none."""
    lines, names = _lines(text, rank, apart, {})
    return None if lines is None else _function(["def function(tables, ids, offsets, weights, dense):", *lines], names)


@functools.lru_cache(maxsize=4096)
def straight(
    text: str, operands: tuple[str, ...], rank: int, apart: bool, shapes: tuple[tuple[str, tuple[int | None, ...]], ...]
) -> Small | None:
    """The same of ``operands`` alone, "ids[0]", in that order, of which ``shapes`` knows some sizes. It returns None
    for wrong ids and operands on another device, too."""
    lines, names = _lines(text, rank, apart, dict(shapes))
    if lines is None:
        return None
    head = [f"def function({', '.join(operands)}):", f"if {operands[0]}.is_cuda: return None", "try:"]
    body = [*head, *("    " + line for line in lines), "except (IndexError, RuntimeError): return None"]
    return _function([_OPERAND.sub(r"\1_\2", line) for line in body], names)


_OPERAND = re.compile(r"\b(tables|ids|offsets|weights|dense)\[(\d+)\]")


def _lines(text: str, rank: int, apart: bool, shapes: Shapes) -> tuple[list[str] | None, dict[str, Any]]:
    layout = parse_layout(text)
    if not all(_fits(t) for t in layout.terms):
        return None, {}
    source = Source(layout, rank, apart, shapes)
    try:
        lines = source.lines()
    except NoSource:
        return None, {}
    return lines, {**FUNCTIONS, **CALLS, **source.constants}


def _function(lines: Sequence[str], names: dict[str, Any]) -> Small:
    code = compile("\n    ".join(lines), "<embedding bags>", "exec")
    exec(code, names)  # of a parsed layout: numbers and known functions
    found: Small = names["function"]
    return found


def _fits(t: Term) -> bool:
    if t.ragged:
        plain = replace(t, div=None).bare and not t.wraps
        return plain and t.pool == "sum" and t.div in (None, (1.0, 0.0)) and t.over is None
    return t.pool == "dense" or not (t.bits or t.once or t.inside)
