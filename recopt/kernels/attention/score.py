"""What a score of ``recopt::attention`` asks for, read from its text."""

from __future__ import annotations

import ast
import functools
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Affine:
    """A score that is scale * h + the sum of `added` parameters, or `masked` where `hidden` holds."""

    scale: float
    added: tuple[int, ...] = ()
    hidden: int | None = None  # a parameter: masked where it is not 0
    shown: bool = False  # the other way about: masked where it is 0
    masked: float = -math.inf


@functools.lru_cache(maxsize=1024)
def affine(score: str) -> Affine | None:
    """A score as a scale, what is added and where it is masked; None for any other function."""
    tree = ast.parse(score.strip() or "h", mode="eval").body
    match tree:
        case ast.Call(func=ast.Name(id="where"), args=[ast.Name(id=p), a, b]) if p != "h":
            for hidden, inner, shown in ((a, b, False), (b, a, True)):
                found, masked = _sum(inner), _number(hidden)
                if masked is not None and found is not None:
                    return Affine(found.scale, found.added, int(p[1:]), shown, masked)
            return None
    return _sum(tree)


def has_operator(plan: Affine | None) -> bool:
    """Whether `scaled_dot_product_attention` computes a score: what it masks is -inf."""
    return plan is not None and plan.masked == -math.inf


def _sum(tree: ast.expr) -> Affine | None:
    match tree:
        case ast.Name(id="h"):
            return Affine(1.0)
        case ast.Name(id=name) if name[0] == "p":
            return Affine(0.0, (int(name[1:]),))
        case ast.BinOp(left=left, op=ast.Mult(), right=ast.Name(id="h")) if (scale := _number(left)) is not None:
            return Affine(scale)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            a, b = _sum(left), _sum(right)
            if a is not None and b is not None and 0.0 in (a.scale, b.scale):
                return Affine(a.scale + b.scale, a.added + b.added)
    return None


def _number(tree: ast.expr) -> float | None:
    match tree:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id="inf"):
            return math.inf
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _number(operand)
            return None if inner is None else -inner
    return None
