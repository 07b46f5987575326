"""What lines of torch calls share: named expressions, kept numbers, and the ids of a layout's terms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from .ids import remainder, written
from .layout import Layout, Term

Shapes: TypeAlias = Mapping[str, Sequence[int | None]]  # of operands, "ids[0]", as far as they are known


class NoSource(Exception):
    """A layout that has no such function."""


class Words:
    """The ids of one layout, as lines. An expression is computed once, however many terms say it."""

    def __init__(self, layout: Layout, rank: int, apart: bool, shapes: Shapes) -> None:
        self.layout, self.rank, self.apart, self.shapes = layout, rank, apart, shapes
        self.constants: dict[str, Tensor] = {}
        self._lines: list[str] = []
        self._guards: dict[str, None] = {}
        self._names: dict[str, str] = {}
        self._spans: dict[tuple[int, str], tuple[int, int]] = {}
        for t in layout.lookups:
            for text in {t.program, t.live} - {""}:
                low, high = self._spans.get((t.ids, text), (t.first, t.first + t.count))
                self._spans[t.ids, text] = min(low, t.first), max(high, t.first + t.count)

    def let(self, expression: str) -> str:
        """The name of what an expression computes."""
        if expression.isidentifier():
            return expression
        if expression not in self._names:
            self._names[expression] = f"v{len(self._names)}"
            self._lines.append(f"{self._names[expression]} = {expression}")
        return self._names[expression]

    def number(self, x: float, dtype: torch.dtype = torch.float64) -> str:
        """A number beside a tensor of its kind, as a tensor that is kept: torch makes one of it at every call, which is
        a quarter of `i * 13` at batch 1 and half of `rows * 0.5`."""
        if abs(x) >= 2**31:  # which a tensor of 32 bits would not refuse
            return number_of(x)
        name = f"n{x!r}{'' if dtype == torch.float64 else '_32'}".translate(_NAMED)
        if name not in self.constants:
            with torch.inference_mode(False):
                self.constants[name] = torch.tensor(x, dtype=torch.int64 if isinstance(x, int) else dtype)
        return name

    def _unless(self, condition: str) -> None:
        line = f"if {condition}: return None"
        if line not in self._lines:
            self._lines.append(line)

    @staticmethod
    def _none() -> str:
        raise NoSource

    def _take_apart(self, terms: Sequence[Term]) -> None:
        """Single columns of one id tensor, all at once where they are more than two: 67 us for 26, not 97."""
        for (ids, program, single), group in itertools.groupby(terms, self._column_of):
            found = list(dict.fromkeys(t.first for t in group))
            if not single or len(found) <= 2:
                continue
            matrix, base = self._matrix(ids, program)
            names = [f"c{len(self._names)}_{n}" for n in range(len(found))]
            self._lines.append(f"{', '.join(names)} = columns({matrix}, {tuple(n - base for n in found)}, {self.rank})")
            for name, n in zip(names, found, strict=True):
                self._names[self._single(matrix, n - base, program)] = name

    @staticmethod
    def _column_of(t: Term) -> tuple[int, str, bool]:
        return (-1, "", False) if t.pool == "dense" else (t.ids, t.program, t.count == 1)

    def _matrix(self, ids: int, program: str, negated: bool = False) -> tuple[str, int]:
        """An id tensor, or a program of the columns of it that any term reads, and the first column."""
        if not program:
            return f"ids[{ids}]", 0
        low, high = self._spans[ids, program]
        given = self._cut(f"ids[{ids}]", low, high - low)
        return self.let(written(program, given, negated, self.let, self.number)), low

    def _single(self, matrix: str, first: int, program: str) -> str:
        column = f"{matrix}.select(-1, {first})"
        known = self.shapes.get(matrix)
        if known is not None and not program:
            return matrix if len(known) == self.rank else column
        return column if program else f"{matrix} if {matrix}.dim() == {self.rank} else {column}"

    def _cut(self, matrix: str, first: int, count: int) -> str:
        """Columns of a tensor; one without a dimension of its own."""
        if count == 1:
            return self.let(self._single(matrix, first, ""))
        part = f"{matrix}.narrow(-1, {first}, {count})"
        if self.shapes.get(matrix, (None,))[-1] == count:
            return matrix
        return self.let(part if first else f"{matrix} if {matrix}.size(-1) == {count} else {part}")

    def _given(self, t: Term, program: str, negated: bool = False) -> str:
        """The columns of a term, or a program of them: [*S, count], or [*S] for one."""
        matrix, base = self._matrix(t.ids, program, negated)
        if not program:
            return matrix if t.ragged else self._cut(matrix, t.first, t.count)
        low, high = self._spans[t.ids, program]
        if high - low == t.count:
            return matrix
        single = self._single(matrix, t.first - base, program)
        return self.let(single if t.count == 1 else f"{matrix}.narrow(-1, {t.first - base}, {t.count})")

    def _rows(self, run: Sequence[Term]) -> str:
        """The rows of its table that a run of terms names: those of columns side by side."""
        t = run[0]
        joint = joint_of(run)
        x = self._given(joint, t.program)
        moduli, shifts = {u.modulus for u in run}, [u.shift for u in run for _ in range(max(u.count, 1))]
        if len(moduli) > 1 or max(t.modulus, *map(abs, shifts)) > 2**31 - 1:
            self._none()
        if t.modulus:
            x = self.let(f"{x}{remainder(t.modulus, self.number)}")
        if len(set(shifts)) > 1:
            x = self.let(f"{x} + {self._constant(tuple(shifts))}")
        elif shifts[0]:
            x = self.let(f"{x} + {self.number(shifts[0])}")
        # torch counts from the end where a tensor is indexed; a pad is told by the row that is meant
        return self.let(f"wrapped({x}, tables[{t.source}])") if t.wraps and t.pad is not None else x

    @staticmethod
    def _read(t: Term, x: str) -> str:
        """The rows that ids name."""
        table = f"tables[{t.source}]"
        rows = f"{table}[{x}]" if t.wraps and t.pad is None else f"embedding({table}, {x})"
        return f"{rows}.float()" if t.wide else rows

    def _constant(self, numbers: tuple[int, ...]) -> str:
        name = "k" + "_".join(map(str, numbers)).replace("-", "m")
        if name not in self.constants:
            with torch.inference_mode(False):
                self.constants[name] = torch.tensor(numbers, dtype=torch.int64)
        return name


def joint_of(run: Sequence[Term]) -> Term:
    """A run as one term, whatever moves its ids."""
    return run[0] if len(run) == 1 else replace(run[0], count=sum(t.count for t in run), shift=0)


_NAMED = str.maketrans({"-": "m", ".": "p", "+": ""})


def number_of(x: float) -> str:
    return f"float('{x}')" if math.isinf(x) else repr(x)
