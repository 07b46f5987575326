"""Softmax, however it is spelled: exp(S[t]) over its sum along t, and what such weights then average.

    sum_t exp(S[t]) * v[t] * 1/sum_t' exp(S[t'])

Divided before or after the product with v, with or without the maximum subtracted, in one operator or in five: all are
this term once the values between are opened. Factors that are 0 or 1, the same in both sums, are a mask:
exp(S[t]) * m[t] is the exponential of S where m holds and of -inf elsewhere; and so is a softmax of everything that is
masked and divided anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..hosts.base import Value
from ..ir.normal import add, add_all, mul, reduce, scale, substitute, sum_over
from ..ir.rules import FLOATS, WIDTH, fn
from ..ir.tensor import Tensor, retyped
from ..ir.term import Atom, Axis, Fn, Guard, Mono, Poly, Read, axis, coord, monomial, number, single
from ..lift.base import Lifted
from ..match import No, is_data

MAX_STORED = 1 << 20  # elements of a constant that are looked at for a mask


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
    others = [a for a in others if _condition(lifted, a) is None]
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
    "zero", or "clean" where every weight that is NaN counts 0; "scores" where there is none and scores are the weights;
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
    parts = _Parts(lifted, [_only(substitute(single(atom, atom.dtype), names)) for atom in mono.atoms])
    if not parts.exponents or not parts.totals or not along:
        return None
    below = _below(lifted, parts, along)
    score, sums = (add_all(p.exponents, parts.exponents[0].dtype) for p in (parts, below))
    # what does not vary along t cancels: the maximum that is subtracted, above all
    if _along(score, along) is not _along(sums, along):
        raise No("the softmax runs over another axis than the sum, or over other scores")
    # a number among them stays: with it the graph holds -10000 + 10000*m, without it nobody does
    whole_score = add(_along(score, along), _staying(lifted, score, along))
    unseen = "nan"
    if not below.masks.keys() <= parts.masks.keys():
        raise No("the sum that divides leaves out other weights than the average")
    for hidden in below.masks:
        whole_score = _hide(whole_score, hidden, parts.masks[hidden][1] is None)
    for hidden, (factor, weights) in parts.masks.items():
        if hidden in below.masks:
            continue
        if weights is None:
            parts.rest.append(factor)
        elif _is_nan(lifted, hidden, weights):
            unseen = "clean"
        elif _is_nothing(hidden, (whole_score,) if below.masks else (score, sums, whole_score), along):
            unseen = "zero"
        else:
            raise No("weights are set to 0 by {}", hidden.text)
    return Average(whole_score, along, tuple(parts.rest), mono.coef, unseen, frozenset(seen))


def _hide(score: Poly, hidden: Poly, multiplied: bool) -> Poly:
    """A score whose exponential is 0 where `hidden` holds; a 0 that is multiplied leaves what is NaN as it is."""
    nothing = number(-math.inf, score.dtype)
    if multiplied:
        return add(score, fn("where", [hidden, nothing, number(0, score.dtype)], score.dtype))
    return fn("where", [hidden, nothing, score], score.dtype)


def _below(lifted: Lifted, parts: _Parts, along: Sequence[Axis]) -> _Parts:
    """The factors of the sum that divides, over `along`. A softmax that is divided anew, by the sum of what a mask left
    of it, loses its own divisor."""
    for divisor, total in parts.totals.items():
        if [a.size for a in total.axes] != [a.size for a in along]:
            continue
        back = {a: coord(n) for a, n in zip(total.axes, along, strict=True)}
        below = _Parts(lifted, [_only(substitute(single(a, a.dtype), back)) for a in total.atoms])
        if {*parts.totals} - {divisor} == {*below.totals} and total.coef == 1 and not below.rest and below.exponents:
            return below
    if len(parts.totals) > 1:
        raise No("more than one sum of exponentials divides it")
    (total,) = parts.totals.values()
    if [a.size for a in total.axes] != [a.size for a in along]:
        raise No("the softmax runs over another axis than the sum")
    raise No("what divides it is no sum of exponentials alone")


class _Parts:
    """The factors of an average, or of a sum that divides one: exponents, sums that divide, what is averaged, and
    conditions that set it to 0, each with the factor that does so and, for a `where`, the weights there."""

    def __init__(self, lifted: Lifted, atoms: Sequence[Atom]) -> None:
        self.lifted = lifted
        self.exponents: list[Poly] = []
        self.totals: dict[Atom, Mono] = {}
        self.masks: dict[Poly, tuple[Atom, Poly | None]] = {}
        self.rest: list[Atom] = []
        for atom in atoms:
            self.add(atom)

    def add(self, atom: Atom) -> None:
        if isinstance(atom, Fn) and atom.name == "exp":
            x, totals = _without_log(atom.args[0])
            self.exponents.append(x)
            self.totals |= totals
        elif isinstance(atom, Fn) and atom.name == "reciprocal" and (sums := _sum_of_exps(atom.args[0])) is not None:
            self.totals[atom] = sums
        elif isinstance(atom, Fn) and atom.name == "where" and atom.args[1].number == 0 and _is_weight(atom.args[2]):
            self.masks[atom.args[0]] = atom, atom.args[2]
            for inner in atom.args[2].monos[0].atoms:
                self.add(inner)
        elif (hidden := _condition(self.lifted, atom)) is not None:
            self.masks[hidden] = atom, None
        else:
            self.rest.append(atom)


def _condition(lifted: Lifted, atom: Atom) -> Poly | None:
    """Under which condition a factor is 0, where it is 1 elsewhere."""
    if isinstance(atom, Fn) and atom.name == "cast" and atom.args[0].dtype == "bool":
        return fn("logical_not", [atom.args[0]], "bool")
    if isinstance(atom, Guard):
        return _outside(atom)
    if not isinstance(atom, Read) or not isinstance(atom.leaf, Value):
        return None
    if lifted.host.is_constant(atom.leaf):
        stored = lifted.host.constant(atom.leaf)
        zero = fn("eq", [single(atom, atom.dtype), number(0, atom.dtype)], "bool")
        return zero if stored.size <= MAX_STORED and ((stored == 0) | (stored == 1)).all() else None
    own = lifted.definition.get(atom.leaf)
    if own is None or atom.leaf in own.body.leaves:
        return None
    term = own.at(list(atom.index))
    if term.atom is not None:
        return _condition(lifted, term.atom)
    rest = add(number(1, term.dtype), scale(term, -1))  # 1 less such a factor is one
    found = None if rest.atom is None else _condition(lifted, rest.atom)
    return None if found is None else fn("logical_not", [found], "bool")


def _outside(guard: Guard) -> Poly:
    """That a place is not where a guard allows it."""
    least = None if guard.lo is None else fn("lt", [guard.index, number(guard.lo)], "bool")
    most = None if guard.hi is None else fn("le", [number(guard.hi), guard.index], "bool")
    ends = [end for end in (least, most) if end is not None]
    return ends[0] if len(ends) == 1 else fn("logical_or", ends, "bool")


def _is_weight(term: Poly) -> bool:
    """Whether a term is exponentials times other things, set to 0 somewhere or not."""
    return len(term.monos) == 1 and any(
        isinstance(a, Fn)
        and (a.name == "exp" or (a.name == "where" and a.args[1].number == 0 and _is_weight(a.args[2])))
        for a in term.monos[0].atoms
    )


def _sum_of_exps(term: Poly) -> Mono | None:
    return term.monos[0] if _is_weight(term) and term.monos[0].axes else None


def _without_log(x: Poly) -> tuple[Poly, dict[Atom, Mono]]:
    """exp(x - log(sum(exp(x)))), which a log-softmax leaves, as x and the sum that divides."""
    for mono in x.monos:
        atom = mono.atoms[0] if len(mono.atoms) == 1 and mono.coef == -1 and not mono.axes else None
        if isinstance(atom, Fn) and atom.name == "log" and (total := _sum_of_exps(atom.args[0])) is not None:
            rest = [monomial(m, x.dtype) for m in x.monos if m is not mono]
            return add_all(rest, x.dtype), {atom: total}
    return x, {}


def _along(score: Poly, along: Sequence[Axis]) -> Poly:
    """The part of the scores that varies along the axes of the softmax."""
    kept = [monomial(m, score.dtype) for m in score.monos if not m.axes_read.isdisjoint(along)]
    return add_all(kept, score.dtype) if kept else number(0, score.dtype)


def _staying(lifted: Lifted, score: Poly, along: Sequence[Axis]) -> Poly:
    """What a score adds to all along the axes and keeps: its number, and infinities, under which a row is NaN."""
    same = [m for m in score.monos if m.axes_read.isdisjoint(along)]
    kept = [m for m in same if not (m.atoms or m.axes) or _is_infinite(lifted, m)]
    return add(number(0, score.dtype), *(monomial(m, score.dtype) for m in kept))


def _is_infinite(lifted: Lifted, mono: Mono) -> bool:
    """Whether a constant that a term adds or chooses is infinite: a number, stored ones, where(mask, 0, -inf). Sums
    and maxima of data are not looked through."""
    if isinstance(mono.coef, float) and math.isinf(mono.coef):
        return True
    return any(_holds_infinity(lifted, a) for a in mono.atoms if not mono.axes or not is_data(lifted, a))


def _holds_infinity(lifted: Lifted, atom: Atom) -> bool:
    if isinstance(atom, Fn) and atom.dtype in FLOATS:
        return any(_is_infinite(lifted, m) for p in atom.args for m in p.monos)
    if not isinstance(atom, Read) or not isinstance(atom.leaf, Value) or atom.dtype not in FLOATS:
        return False
    return lifted.noted("holds infinity", atom.leaf, lambda value: _stores_infinity(lifted, value))


def _stores_infinity(lifted: Lifted, value: Value) -> bool:
    if lifted.host.is_constant(value):
        few = value.shape is not None and math.prod(map(int, value.shape)) <= MAX_STORED  # no table is read
        return few and value.dtype in FLOATS and bool(np.isinf(lifted.host.constant(value)).any())
    t = lifted.definition.get(value)
    return t is not None and value not in t.body.leaves and any(_is_infinite(lifted, m) for m in t.body.monos)


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
    """The weights of scores, with what `unseen` says of those that are all -inf; the scores where it says so."""
    if unseen == "scores":
        return score
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
            own = lifted.local(atom.leaf) if len(t.body.monos) > 1 else None
            if own is not None and len(own.body.monos) == 1:  # of a sum: as its own node computes it
                t = own
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
