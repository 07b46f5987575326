"""Softmax, however it is spelled: exp(S[t]) over its sum along t, and what such weights then average.

    sum_t exp(S[t]) * v[t] * 1/sum_t' exp(S[t'])

Divided before or after the product with v, with or without the maximum subtracted, in one operator or in five: all are
this term once the values between are opened.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .hosts.base import Value
from .ir.rules import FLOATS, WIDTH, fn
from .ir.tensor import Tensor, retyped
from .ir.term import (
    Atom,
    Axis,
    Coef,
    Fn,
    Mono,
    Poly,
    Read,
    add,
    add_all,
    axis,
    coord,
    monomial,
    mul,
    number,
    reduce,
    single,
    substitute,
    sum_over,
)
from .lift.base import Lifted
from .match import No, is_data

# --- values that are made of exponentials


def weighs(lifted: Lifted, value: Value) -> bool:
    """Whether a value is exponentials, their sums, or the one over the other: weights of a softmax or parts of them."""
    return _kind(lifted, value) == "weights"


def averages(lifted: Lifted, value: Value) -> bool:
    """Whether a value sums data under such weights."""
    return _kind(lifted, value) == "average"


def _kind(lifted: Lifted, value: Value) -> str:
    return lifted.noted("softmax", value, lambda v: _kind_by_term(lifted, v))


def _kind_by_term(lifted: Lifted, value: Value) -> str:
    t = lifted.definition.get(value)
    if t is None or t.dtype not in FLOATS or lifted.host.is_constant(value):
        return ""
    found = _kind_of(lifted, t)
    if not found and len(t.body.monos) > 1 and (own := lifted.local(value)) is not None:
        return _kind_of(lifted, own)  # an average of a sum, which is distributed
    return found


def _kind_of(lifted: Lifted, t: Tensor) -> str:
    kinds = {_kind_of_mono(lifted, m) for m in t.body.monos}
    return "" if "" in kinds else "average" if "average" in kinds else "".join(kinds)


def _kind_of_mono(lifted: Lifted, mono: Mono) -> str:
    kinds = [_kind_of_atom(lifted, a) for a in mono.atoms]
    others = [a for a, kind in zip(mono.atoms, kinds, strict=True) if not kind]
    if "average" in kinds:  # divided by the sum of its weights, or moved
        return "average" if all(k in ("average", "divisor") for k in kinds) else ""
    if "weights" not in kinds and "divisor" not in kinds:
        return ""
    if not others:
        return "weights"
    if "weights" not in kinds:
        return ""
    shared = any(not a.axes_read.isdisjoint(mono.axes) for a in others if is_data(lifted, a))
    return "average" if shared else ""


def _kind_of_atom(lifted: Lifted, atom: Atom) -> str:
    if isinstance(atom, Read):
        return _kind(lifted, atom.leaf) if isinstance(atom.leaf, Value) and not _moved_by_data(lifted, atom) else ""
    if not isinstance(atom, Fn):
        return ""
    if atom.name == "exp":
        return "weights" if is_data(lifted, atom) else ""
    if atom.name == "reciprocal":
        kinds = {_kind_of_mono(lifted, m) for m in atom.args[0].monos}
        return "divisor" if kinds == {"weights"} else ""
    if atom.name == "cast" and atom.args[0].dtype in FLOATS:
        return "".join({_kind_of_mono(lifted, m) for m in atom.args[0].monos})
    if atom.name == "where" and atom.args[1].number == 0:
        return "".join({_kind_of_mono(lifted, m) for m in atom.args[2].monos})
    return ""


def _moved_by_data(lifted: Lifted, read: Read) -> bool:
    return any(is_data(lifted, p) for p in read.index)


# --- the average that a value is


@dataclass(frozen=True)
class Average:
    """sum over `along` of softmax(score) * coef * rest; `unseen` is what a softmax over nothing but -inf gives: "nan",
    "zero", or "clean" where every weight that is NaN counts 0;
    `opened` are the values between that were seen through."""

    score: Poly
    along: tuple[Axis, ...]
    rest: tuple[Atom, ...]
    coef: float
    unseen: str
    opened: frozenset[Value]


def average(lifted: Lifted, term: Poly) -> Average | None:
    """A term as an average under a softmax. None where there is no softmax in it, No where there nearly is one."""
    seen: set[Value] = set()
    whole = _open(lifted, term, seen)
    if len(whole.monos) != 1 or not isinstance(whole.monos[0].coef, (int, float)):
        return None
    mono = whole.monos[0]
    along = tuple(axis(a.size) for a in mono.axes)
    names = {a: coord(n) for a, n in zip(mono.axes, along, strict=True)}
    parts = _Parts(lifted)
    for atom in mono.atoms:
        parts.add(_only(substitute(single(atom, atom.dtype), names)))
    if not parts.exponents or not parts.totals:
        return None
    if len(parts.totals) > 1:
        raise No("more than one sum of exponentials divides it")
    score = add_all(parts.exponents, parts.exponents[0].dtype)
    (total,) = parts.totals
    if not along:
        return None
    if [a.size for a in total.axes] != [a.size for a in along]:
        raise No("the softmax runs over another axis than the sum")
    exponents = [a for a in total.atoms if isinstance(a, Fn) and a.name == "exp"]
    if len(exponents) < len(total.atoms) or total.coef != 1:
        raise No("what divides it is no sum of exponentials alone")
    back = {a: coord(n) for a, n in zip(total.axes, along, strict=True)}
    below = add_all([substitute(a.args[0], back) for a in exponents], score.dtype)
    # what does not vary along t cancels: the maximum that is subtracted, above all
    if _along(score, along) is not _along(below, along):
        raise No("the softmax runs over another axis than the sum, or over other scores")
    # a number among them stays: with it the graph holds -10000 + 10000*m, without it nobody does
    whole_score = add(_along(score, along), number(_number(score), score.dtype))
    unseen = "nan"
    for hidden, weights in parts.hidden:
        if _is_nan(lifted, hidden, weights):
            unseen = "clean"
        elif _is_nothing(hidden, (score, below, whole_score), along):
            unseen = "zero"
        else:
            raise No("weights are set to 0 by {}", hidden.text)
    return Average(whole_score, along, tuple(parts.rest), mono.coef, unseen, frozenset(seen))


class _Parts:
    """The factors of an average: exponents, sums that divide, conditions that set it to 0, and what is averaged."""

    def __init__(self, lifted: Lifted) -> None:
        self.lifted = lifted
        self.exponents: list[Poly] = []
        self.totals: list[Mono] = []
        self.hidden: list[tuple[Poly, Poly]] = []  # conditions, and the weights that they set to 0
        self.rest: list[Atom] = []

    def add(self, atom: Atom) -> None:
        if isinstance(atom, Fn) and atom.name == "exp":
            x, total = _without_log(atom.args[0])
            self.exponents.append(x)
            self.totals += total
        elif isinstance(atom, Fn) and atom.name == "reciprocal" and (sums := _sum_of_exps(atom.args[0])) is not None:
            self.totals.append(sums)
        elif isinstance(atom, Fn) and atom.name == "where" and atom.args[1].number == 0 and _is_weight(atom.args[2]):
            self.hidden.append((atom.args[0], atom.args[2]))
            for inner in atom.args[2].monos[0].atoms:
                self.add(inner)
        else:
            self.rest.append(atom)


def _is_weight(term: Poly) -> bool:
    return len(term.monos) == 1 and any(isinstance(a, Fn) and a.name == "exp" for a in term.monos[0].atoms)


def _sum_of_exps(term: Poly) -> Mono | None:
    mono = term.monos[0] if len(term.monos) == 1 else None
    found = mono is not None and mono.axes and any(isinstance(a, Fn) and a.name == "exp" for a in mono.atoms)
    return mono if found else None


def _without_log(x: Poly) -> tuple[Poly, list[Mono]]:
    """exp(x - log(sum(exp(x)))), which a log-softmax leaves, as x and the sum that divides."""
    for mono in x.monos:
        atom = mono.atoms[0] if len(mono.atoms) == 1 and mono.coef == -1 and not mono.axes else None
        if isinstance(atom, Fn) and atom.name == "log" and (total := _sum_of_exps(atom.args[0])) is not None:
            rest = [monomial(m, x.dtype) for m in x.monos if m is not mono]
            return add_all(rest, x.dtype), [total]
    return x, []


def _along(score: Poly, along: Sequence[Axis]) -> Poly:
    """The part of the scores that varies along the axes of the softmax."""
    kept = [monomial(m, score.dtype) for m in score.monos if not m.axes_read.isdisjoint(along)]
    return add_all(kept, score.dtype) if kept else number(0, score.dtype)


def _number(score: Poly) -> Coef:
    """The number that a score adds."""
    return next((m.coef for m in score.monos if not m.atoms and not m.axes), 0)


def _is_nothing(condition: Poly, scores: Sequence[Poly], along: Sequence[Axis]) -> bool:
    """Whether a condition says that every score is -inf."""
    return any(condition is reduce("all", along, fn("eq", [s, number(-math.inf, s.dtype)], "bool")) for s in scores)


def _is_nan(lifted: Lifted, condition: Poly, weights: Poly) -> bool:
    """Whether a condition says that the weights are NaN."""
    atom = condition.atom
    if isinstance(atom, Read) and isinstance(atom.leaf, Value) and atom.leaf in lifted.definition:
        atom = _open(lifted, lifted.definition[atom.leaf].at(list(atom.index)), set()).atom
    return isinstance(atom, Fn) and atom.name == "isnan" and atom.args[0] is weights


def _only(term: Poly) -> Atom:
    assert term.atom is not None
    return term.atom


def softmax(score: Poly, along: Sequence[Axis], unseen: str) -> Poly:
    """The weights of scores, with what `unseen` says of those that are all -inf."""
    exponential = fn("exp", [score], score.dtype)
    weights = mul(exponential, fn("reciprocal", [sum_over(exponential, along)], score.dtype))
    if unseen == "nan":
        return weights
    if unseen == "clean":
        return fn("where", [fn("isnan", [weights], "bool"), number(0, score.dtype), weights], score.dtype)
    hidden = reduce("all", along, fn("eq", [score, number(-math.inf, score.dtype)], "bool"))
    return fn("where", [hidden, number(0, score.dtype), weights], score.dtype)


# --- opening


def _open(lifted: Lifted, term: Poly, seen: set[Value]) -> Poly:
    """`term` with the values that are parts of a softmax put in, and widening to compute it left out."""

    def inner(atom: Atom) -> Poly | None:
        if isinstance(atom, Fn) and atom.name == "cast" and _is_weight(atom.args[0]):
            return retyped(atom.args[0], atom.dtype)  # weights are rounded once, in the type of what they weigh
        if not isinstance(atom, Read) or not isinstance(atom.leaf, Value):
            return None
        kind = "weights" if _is_logarithm(lifted, atom.leaf) else _kind_of_atom(lifted, atom)
        if kind == "weights" or (kind == "average" and moved):
            seen.add(atom.leaf)
            t = lifted.definition[atom.leaf]
            if kind == "average" and len(t.body.monos) > 1:  # of a sum: as its own node computes it
                t = lifted.local(atom.leaf) or t
            return _open(lifted, t.at(list(atom.index)), seen)
        return None

    # an average of what was averaged is one of data; one that is divided, or laid out anew, is the same average
    moved = not any(_kind_of_atom(lifted, a) in ("", "weights") for m in term.monos for a in m.atoms)
    return substitute(term, {}, inner)


def _is_logarithm(lifted: Lifted, value: Value) -> bool:
    """Whether a value is the logarithm of weights, x - log(sum(exp(x))), or of their sum."""
    t = lifted.definition.get(value)
    lines = [] if t is None else [m.atoms[0] for m in t.body.monos if len(m.atoms) == 1 and not m.axes]
    logs = [a.args[0] for a in lines if isinstance(a, Fn) and a.name == "log"]
    return any({_kind_of_mono(lifted, m) for m in x.monos} == {"weights"} for x in logs)


def is_wider(cast: Fn) -> bool:
    """Whether a cast goes from a float to one that holds it exactly."""
    source = cast.args[0].dtype
    if source not in FLOATS or cast.dtype not in FLOATS or {source, cast.dtype} == {"float16", "bfloat16"}:
        return False
    return WIDTH[cast.dtype] >= WIDTH[source]
