"""Epilogues: a pointwise term over the pre-activation `h`, printed in the grammar of fused operators and, where it
computes a known function, under that function's name. A scalar function is known by what it computes, not by its
tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..hosts.base import Array
from ..ir.functions import FUNCTIONS
from ..ir.normal import add_all, normal_mono
from ..ir.rules import FLOATS
from ..ir.term import Atom, Fn, Guard, Interned, Mono, Poly, Read
from ..match import No


@dataclass(frozen=True)
class Pre:
    """The leaf that stands for the pre-activation."""

    name: str = "h"


H = Pre()

MAX_TEXT = 4096  # characters; what a term shares, its text repeats

# Negative, zero, tiny, huge, infinite, not a number.
_POINTS = np.concatenate([
    np.linspace(-12.0, 12.0, 193),
    [0.0, 1e-30, -1e-30, 1e-6, -1e-6, 25.0, -25.0, 90.0, -90.0, 1e4, -1e4, 1e30, -1e30, np.inf, -np.inf, np.nan],
])  # fmt: skip

_PLAIN = (
    "relu",
    "sigmoid",
    "tanh",
    "gelu",
    "gelu_tanh",
    "silu",
    "mish",
    "softplus",
    "selu",
    "hardswish",
    "hardsigmoid",
    "softsign",
    "abs",
    "exp",
)
_GATES = ("sigmoid", "tanh")
COMPARISONS = {"lt": "<", "le": "<=", "eq": "=="}
_OPERATORS = COMPARISONS | {"logical_xor": "!="}
_CHOICES = ("max", "min", "clip", "where")
_DECIDED = ("where", "logical_and", "logical_or", "logical_not")
_OF_INTEGERS = ("bitwise_and", "bitwise_or", "bitwise_xor", "shift_left", "shift_right")


@dataclass
class Printer:
    """Prints terms over H and per-channel constants; the constants become parameters `p0`, `p1`, ..."""

    fold: Callable[[Poly], Array]  # the [N] array of a per-channel constant term
    params: list[Array] = field(default_factory=list)
    known: dict[Poly, str] = field(default_factory=dict)

    def poly(self, term: Poly) -> str:
        """The text of a term. Raises No for a function that no epilogue has."""
        if any(mono.axes for mono in term.monos):
            raise No("a reduction in the epilogue")
        if (shared := _shared(term)) is not None:
            gate, inside, others = shared
            text = f"{self.atom(gate)} * ({self.poly(inside)})"
            return text if others.number == 0 else f"{self.poly(others)} + {text}"
        groups: dict[tuple[tuple[Atom, ...], tuple[Atom, ...]], list[Mono]] = {}
        for mono in term.monos:
            atoms = tuple(a for a in mono.atoms if reads_h(a))
            where: tuple[Atom, ...] = tuple(a for a in mono.atoms if isinstance(a, Guard)) if atoms else ()
            groups.setdefault((where, atoms), []).append(mono)
        parts = []
        for (where, atoms), monos in groups.items():
            rest = [[a for a in m.atoms if a not in atoms and a not in where] for m in monos]
            constant = add_all(
                [normal_mono(m.coef, own, term.dtype) for m, own in zip(monos, rest, strict=True)], term.dtype
            )
            factor = self.constant(constant)
            if factor == "0.0" or (factor == "-0.0" and (atoms or len(groups) > 1)):
                continue
            texts = [self.atom(a) for a in atoms]
            if factor != "1.0" or not texts:
                texts.insert(0, factor)
            text = " * ".join(texts)
            place = self.constant(normal_mono(1, where, term.dtype)) if where else "1.0"
            # what a guard hides may be infinite: it is left out, not multiplied by 0
            parts.append(text if place == "1.0" else f"where({place} > 0.5, {text}, 0.0)")
        text = " + ".join(parts) or "0.0"
        if len(text) > MAX_TEXT:
            raise No("the activation is too large")
        return text

    def constant(self, term: Poly) -> str:
        """A literal for a uniform constant, else a parameter."""
        if isinstance(term.number, (int, float)):
            return _literal(term.number)
        if term not in self.known:
            array = np.asarray(self.fold(term), dtype=np.float64).reshape(-1)
            if np.all(array == array[0]):
                self.known[term] = _literal(array[0].item())
            else:
                self.params.append(array)
                self.known[term] = f"p{len(self.params) - 1}"
        return self.known[term]

    def atom(self, atom: Atom) -> str:
        if isinstance(atom, Read):
            return "h"
        if not isinstance(atom, Fn):
            raise No("{} in the epilogue", atom.text)
        if atom.name == "cast" and atom.args[0].dtype == "bool" and atom.dtype in FLOATS:
            return f"where({self.poly(atom.args[0])}, 1.0, 0.0)"
        if atom.name == "cast":
            raise No(
                "dtype changes from {} to {} between the product and the activation", atom.args[0].dtype, atom.dtype
            )
        if atom.name == "isinf":
            return f"(abs({self.poly(atom.args[0])}) == inf)"
        if atom.name in _OF_INTEGERS:
            raise No("{} in the epilogue", atom.name)
        if atom.name in _DECIDED and (decided := self.decided(atom)) is not None:
            return decided
        if atom.name in _OPERATORS:
            return f"({self.poly(atom.args[0])} {_OPERATORS[atom.name]} {self.poly(atom.args[1])})"
        arguments = [self.poly(a) for a in atom.args] + [_literal(float(a)) for a in atom.attrs]  # type: ignore[arg-type]  # the attributes of a term's function are numbers
        if atom.name in _CHOICES and "-0.0" in arguments:
            raise No("a choice of -0.0, which functions by name take for 0")
        return f"{atom.name}({', '.join(arguments)})"

    def decided(self, atom: Fn) -> str | None:
        """The text of a choice that a uniform constant decides; None where every condition depends on something."""
        conditions = atom.args[:1] if atom.name == "where" else atom.args
        for n, condition in enumerate(conditions):
            text = "" if reads_h(condition) else self.constant(condition)
            if text not in ("0.0", "1.0"):
                continue
            if atom.name == "where":
                return self.poly(atom.args[1 if text == "1.0" else 2])
            if atom.name == "logical_not":
                return _literal(text == "0.0")
            return self.poly(atom.args[1 - n]) if (text == "1.0") == (atom.name == "logical_and") else text
        return None


def _shared(term: Poly) -> tuple[Fn, Poly, Poly] | None:
    """A gate that several terms are products of, its factor in them, and the other terms: without it Dice takes twice
    as many operators. Of a function without bounds the products may be infinite where the sum is not."""
    atoms = dict.fromkeys(a for m in term.monos for a in m.atoms)
    for gate in (a for a in atoms if isinstance(a, Fn) and a.name in _GATES and reads_h(a)):
        with_gate = [m for m in term.monos if m.atoms.count(gate) == 1]
        if len(with_gate) > 1:
            others = [normal_mono(m.coef, m.atoms, term.dtype) for m in term.monos if m not in with_gate]
            inside = [normal_mono(m.coef, [a for a in m.atoms if a is not gate], term.dtype) for m in with_gate]
            return gate, add_all(inside, term.dtype), add_all(others, term.dtype)
    return None


def reads_h(term: Interned) -> bool:
    """Whether a term depends on the pre-activation."""
    return H in term.leaves


def _literal(value: float) -> str:
    return repr(float(value))


def text_of(term: Poly, fold: Callable[[Poly], Array]) -> tuple[str, tuple[Array, ...]]:
    """The epilogue text of a term over H, and its per-channel parameters. Raises No."""
    printer = Printer(fold)
    text = printer.poly(term)
    if text == "h" or printer.params:
        return text, tuple(printer.params)
    return named(text) or text, ()


def varies(text: str) -> bool:
    """Whether an epilogue's text reads the pre-activation: a factor that is 0 takes it away."""
    return "h" in compile(text, "<epilogue>", "eval").co_names


def named(text: str) -> str | None:
    """The catalogue's text for an epilogue without parameters, by evaluating it; None for a function that it does not
    hold."""
    values = compute(text, _POINTS, ())
    return next((known for known, candidate in _catalogue(values) if _same(values, candidate)), None)


def _catalogue(values: Array) -> list[tuple[str, Array]]:
    """Candidates with the parameters that `values` suggest."""
    x = _POINTS
    with np.errstate(all="ignore"):
        found = [(f"{name}(h)", FUNCTIONS[name](x)) for name in _PLAIN]

        def at(point: float) -> float:
            return float(values[int(np.argmin(np.abs(x[:193] - point)))])

        slope, low, high = -at(-1.0), float(values[x == -1e4][0]), float(values[x == 1e4][0])
        if np.isfinite(slope):
            found.append((f"leaky_relu(h, {slope!r})", np.where(x >= 0, x, slope * x)))
        if np.isfinite(low) and np.isfinite(high) and low < high:
            found.append((f"clip(h, {low!r}, {high!r})", np.clip(x, low, high)))
        if np.isfinite(low) and low < 0:
            found.append((f"elu(h, {-low!r})", np.where(x > 0, x, -low * np.expm1(np.minimum(x, 0)))))
    return found


def _same(values: Array, candidate: Array) -> bool:
    """Equal at every point, infinities and NaN included: what a spelling does there is part of what it means."""
    with np.errstate(all="ignore"):
        close = np.abs(values - candidate) <= 2e-7 * np.maximum(np.abs(values), 1e-6)
    return bool(np.all(close | (values == candidate) | (np.isnan(values) & np.isnan(candidate))))


def compute(text: str, h: Array, params: Sequence[Array]) -> Array:
    """The epilogue `text` in float64, by numpy: the reference for what is written into graphs."""
    names: dict[str, object] = {**FUNCTIONS, "inf": np.inf, "nan": np.nan, "h": h}
    names |= {f"p{n}": p for n, p in enumerate(params)}
    with np.errstate(all="ignore"):
        # the text comes from this module alone; without builtins it can call nothing but the functions
        result: Array = eval(compile(text, "<epilogue>", "eval"), {"__builtins__": {}}, names)
    return np.broadcast_to(result, h.shape)


__all__ = ["H", "Pre", "compute", "named", "reads_h", "text_of", "varies"]
