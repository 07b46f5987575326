"""Id programs of ``recopt::embedding_bags``: ids that are whole-number functions of the ids given, and which count.

A program is a Python expression over ``i``, one id: whole numbers, ``+`` and ``*``, comparisons and remainders as
functions, see ``FUNCTIONS``; without spaces. It is computed in the type of the ids, as torch does. What programs and
masks say is computed before the lookups, once for all terms that say the same, and the layout that is left has neither
but for the mask of a maximum.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .layout import EmbeddingBagsError, Layout, Term, parse_layout
from .operands import Operands

Compute: TypeAlias = Callable[[Tensor], Tensor]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "floordiv": torch.floor_divide,
    "truncdiv": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "mod": torch.remainder,
    "abs": torch.abs,
    "max": torch.maximum,
    "min": torch.minimum,
    "where": torch.where,
    "eq": lambda a, b: a == b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "logical_not": torch.logical_not,
    "bitwise_and": lambda a, b: a & b,
    "bitwise_or": lambda a, b: a | b,
    "bitwise_xor": lambda a, b: a ^ b,
    "shift_left": lambda a, b: a << b,
    "shift_right": lambda a, b: a >> b,
    "int64": Tensor.long,
    "int32": Tensor.int,
}


# Comparisons of a tensor with a number on its right; with the number on its left; what holds where they do not.
_TESTS = {"eq": ("eq", "eq"), "lt": ("lt", "gt"), "le": ("le", "ge")}
_OPPOSITE = {"eq": "ne", "lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}
_METHODS = {"max": "clamp_min", "min": "clamp_max", "floordiv": "floor_divide"}


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> ast.expr:
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as wrong:
        raise EmbeddingBagsError(f"no id program: {text!r}") from wrong
    known = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.BinOp, ast.Add, ast.Mult, ast.UnaryOp, ast.USub)
    for node in ast.walk(tree):
        number = isinstance(node, ast.Constant) and type(node.value) is int
        named = not isinstance(node, ast.Name) or node.id == "i" or node.id in FUNCTIONS
        if not (number or isinstance(node, known)) or not named:
            raise EmbeddingBagsError(f"no id program: {text!r}")
    return tree.body


def remainder(by: int, number: Callable[[int], str] = repr) -> str:
    """Python's remainder, behind what is divided; by a power of two a quarter of the time as its lowest bits."""
    return f".bitwise_and({number(by - 1)})" if by & (by - 1) == 0 and by > 0 else f".remainder({number(by)})"


_CLAMP = re.compile(r"min\((-?\d+),max\((-?\d+),i\)\)|max\((-?\d+),min\((-?\d+),i\)\)")
_WITHIN = re.compile(r"logical_and\((?:lt\((-?\d+),i\),lt\(i,(-?\d+)\)|lt\(i,(-?\d+)\),lt\((-?\d+),i\))\)")


def clamp_of(text: str) -> tuple[int, int] | None:
    """The least and the largest number of a program that keeps ids between two of 32 bits; None where it is none."""
    found = _CLAMP.fullmatch(text)
    if found is None:
        return None
    high, low, other_low, other_high = found.groups()
    low, high = (int(low), int(high)) if low else (int(other_low), int(other_high))
    return (low, high) if -(2**31) < low <= high < 2**31 else None


def keeps(program: str, live: str) -> bool:
    """Whether those ids are live that a program which clamps them leaves as they are."""
    bounds, found = clamp_of(program), _WITHIN.fullmatch(live)
    if bounds is None or found is None:
        return False
    below, above, other_above, other_below = found.groups()
    below, above = (below, above) if below else (other_below, other_above)
    return (int(below) + 1, int(above) - 1) == bounds


@dataclass(frozen=True)
class _Words:
    """What an expression says for the ids, for what it computes and for a number beside a tensor."""

    ids: str
    let: Callable[[str], str]
    number: Callable[[int], str]


def written(
    text: str, ids: str, negated: bool = False, let: Callable[[str], str] = str, number: Callable[[int], str] = repr
) -> str:
    """A program as an expression over torch tensors and FUNCTIONS, where `ids` are the ids; of a condition what it is
    not, where `negated`. `let` names what an expression computes, `number` a number. Raises EmbeddingBagsError."""
    return _written(_parsed(text), negated, _Words(ids, let, number))


def _written(node: ast.expr, negated: bool, words: _Words) -> str:
    """A number on one side is torch's own scalar operator, which makes no tensor of it."""
    let = words.let
    if isinstance(node, ast.BinOp):
        if (found := _fmod(node)) is not None:
            return let(f"{_written(found[0], False, words)}.fmod({words.number(found[1])})")
        left, right = (_written(side, False, words) for side in (node.left, node.right))
        return f"({left} {'+' if isinstance(node.op, ast.Add) else '*'} {right})"
    if isinstance(node, ast.Name):
        return words.ids
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return words.number(ast.literal_eval(node))
    name = node.func.id
    if (bounds := clamp_of(ast.unparse(node).replace(" ", ""))) is not None:  # 1.0 us for 1.7
        low, high = map(words.number, bounds)
        return let(f"{words.ids}.clamp({low}, {high})")
    if name == "logical_not":
        return _written(node.args[0], not negated, words)
    if negated and name in ("logical_and", "logical_or"):
        inner = ", ".join(_written(a, True, words) for a in node.args)
        return let(f"{'logical_or' if name == 'logical_and' else 'logical_and'}({inner})")
    args = [_written(a, False, words) for a in node.args]
    fixed = [not any(isinstance(n, ast.Name) and n.id == "i" for n in ast.walk(a)) for a in node.args]
    if name in _TESTS and fixed != [True, True]:
        test = _TESTS[name][fixed[0]]
        return let(f"{args[fixed[0]]}.{_OPPOSITE[test] if negated else test}({args[not fixed[0]]})")
    if name == "mod" and isinstance(by := node.args[1], ast.Constant) and isinstance(by.value, int) and not fixed[0]:
        text = f"{args[0]}{remainder(by.value, words.number)}"
    elif name in _METHODS and sum(fixed) == 1 and (fixed[1] or name in ("max", "min")):
        text = f"{args[fixed[0]]}.{_METHODS[name]}({args[not fixed[0]]})"
    else:
        text = f"{name}({', '.join(args)})"
    return let(f"logical_not({text})" if negated else text)


def _fmod(node: ast.BinOp) -> tuple[ast.expr, int] | None:
    """What is divided, and by what, where a sum is the remainder of a quotient that is cut: truncdiv(i,7)*-7+i."""
    match node:
        case ast.BinOp(
            left=ast.BinOp(
                left=ast.Call(func=ast.Name(id="truncdiv"), args=[x, ast.Constant(value=int(by))]),
                op=ast.Mult(),
                right=ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(back))),
            ),
            op=ast.Add(),
            right=whole,
        ) if by == back and ast.dump(x) == ast.dump(whole):
            return x, by
    return None


@functools.lru_cache(maxsize=4096)
def compile_program(text: str) -> Compute:
    """A program as a function of a tensor of ids. Raises EmbeddingBagsError."""
    function: Compute = eval(f"lambda i: {written(text, 'i')}", {"__builtins__": {}, **FUNCTIONS})
    return function


@dataclass(frozen=True)
class _Source:
    """Columns of an id tensor and a program of them; of flat ids, or of ids [R], all."""

    ids: int
    program: str
    first: int
    count: int  # 0: flat

    def __call__(self, o: Operands, made: dict[_Source, Tensor]) -> Tensor:
        """The values, once for all that ask."""
        if self not in made:
            i = o.ids[self.ids]
            if self.count and i.dim() > 1 and i.shape[1] != self.count:
                i = i.narrow(1, self.first, self.count)
            made[self] = compile_program(self.program)(i)
        return made[self]


@dataclass(frozen=True)
class _Shown:
    """Which of a term's ids count, times their weights where they have any."""

    term: Term
    live: _Source | None

    def __call__(self, o: Operands, made: dict[_Source, Tensor]) -> Tensor:
        t = self.term
        tests = []
        if self.live is not None:
            tests.append(_columns(self.live(o, made), t.first - self.live.first, t))
        if t.mask is not None:
            given = _columns(o.weights[t.mask], t.mask_first, t).bool()
            tests.append(given.logical_not() if t.unmask else given)
        if t.lengths is not None and t.pool == "max":
            places = torch.arange(t.count, device=o.ids[t.ids].device)
            tests.append(places < o.offsets[t.lengths][:, None])
        shown = functools.reduce(torch.logical_and, tests)
        if t.weights is None or t.pool == "max":
            return shown
        w = _columns(o.weights[t.weights], t.weights_first, t)
        return torch.where(shown, w, torch.zeros((), dtype=w.dtype, device=w.device))


def _columns(x: Tensor, first: int, t: Term) -> Tensor:
    if t.ragged:
        return x
    return x[:, None] if x.dim() < 2 else x.narrow(1, first, t.count)


class Resolved:
    """A layout without programs, and without masks but those of maxima, and the operands that it reads: what is
    computed stands behind those that are given."""

    def __init__(self, layout: Layout) -> None:
        self._most = layout.operands
        self._spans: dict[tuple[int, str, bool], tuple[int, int]] = {}
        for t in layout.lookups:
            for text in {t.program, t.live} - {""}:
                low, high = self._spans.get((t.ids, text, t.ragged), (t.first, t.first + t.count))
                self._spans[t.ids, text, t.ragged] = min(low, t.first), max(high, t.first + t.count)
        self._ids: dict[_Source, int] = {}
        self._shown: dict[_Shown | _Source, int] = {}
        self.layout = Layout(tuple(tuple(map(self._term, piece)) for piece in layout.pieces))
        self.text = str(self.layout)

    def _source(self, t: Term, program: str) -> _Source:
        low, high = self._spans[t.ids, program, t.ragged]
        return _Source(t.ids, program, low, high - low)

    def _term(self, t: Term) -> Term:
        largest = t.pool == "max"
        if t.live or (t.mask is not None and (not largest or t.lengths is not None)):
            live = self._source(t, t.live) if t.live else None
            alone = t.mask is None and (t.weights is None or largest) and not (largest and t.lengths is not None)
            # columns of one matrix, where nothing else says which ids count
            part = live if live is not None and alone else _Shown(replace(t, program="", hint=""), live)
            first = t.first - part.first if isinstance(part, _Source) else 0
            slot = self._shown.setdefault(part, self._most["weights"] + len(self._shown))
            if largest:
                t = replace(t, live="", mask=slot, mask_first=first, unmask=False, lengths=None)
            else:
                t = replace(t, live="", mask=None, unmask=False, mask_first=0, weights=slot, weights_first=first)
        if t.program:
            source = self._source(t, t.program)
            slot = self._ids.setdefault(source, self._most["ids"] + len(self._ids))
            t = replace(t, program="", ids=slot, first=t.first - source.first)
        return t

    def operands(self, o: Operands) -> Operands:
        """`o` with what programs and masks compute of it."""
        made: dict[_Source, Tensor] = {}
        return o._replace(
            ids=[*o.ids[: self._most["ids"]], *[source(o, made) for source in self._ids]],
            weights=[*o.weights[: self._most["weights"]], *[part(o, made) for part in self._shown]],
        )


@functools.lru_cache(maxsize=4096)
def resolved(text: str) -> Resolved | None:
    """What there is to compute before the lookups of a layout; None where that is nothing."""
    layout = parse_layout(text)
    needed = any(
        t.program or t.live or (t.mask is not None and (t.pool != "max" or t.lengths is not None))
        for t in layout.lookups
    )
    return Resolved(layout) if needed else None
