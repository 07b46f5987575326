"""The float64 evaluator: what a term computes, by numpy, for given leaves and sizes. Slow, plain and independent of
every host: it is what rewrites are proved against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sympy

from . import sizes
from .functions import FUNCTIONS
from .rules import FLOATS
from .tensor import Tensor
from .term import Atom, Axis, Coef, Coord, Fn, Guard, Leaf, Mono, Poly, Read, Reduce

Array = npt.NDArray[Any]
Leaves = Callable[[Leaf], Array]

_REDUCE: dict[str, Callable[..., Array]] = {"max": np.max, "min": np.min, "prod": np.prod, "any": np.any, "all": np.all}


def evaluate(t: Tensor, leaves: Leaves, symbols: Mapping[str, int] | None = None) -> Array:
    """The elements of `t`: float64, int64 or bool. `leaves` gives each leaf's array, `symbols` the symbolic sizes.
    Raises IndexError where a read leaves its tensor outside of any guard."""
    run = _Evaluation(leaves, {} if symbols is None else symbols)
    axes = t.axes
    value = run.poly(t.body, axes)
    full = np.broadcast_to(value, [run.extent(a) for a in axes])
    return full.reshape([sizes.evaluate(s, run.symbols) for s in t.shape])


_HUGE = 1e8  # from here on a coefficient drowns what is added before it cancels


def _largest_first(parts: list[Array]) -> list[Array]:
    """Summands in falling magnitude, element by element: -c + c*m + x -> x where m is 1, for a mask's huge c."""
    stacked = np.stack(np.broadcast_arrays(*parts))
    return list(np.take_along_axis(stacked, np.argsort(-np.abs(stacked), axis=0, kind="stable"), axis=0))


class _Evaluation:
    """Every term is computed as an array over a given list of axes, with extent 1 where it does not read one."""

    def __init__(self, leaves: Leaves, symbols: Mapping[str, int]) -> None:
        self.leaves, self.symbols = leaves, symbols
        self.cache: dict[tuple[object, tuple[Axis, ...], bool], Array] = {}
        self.guarded = False  # inside a product with a guard, whose value where the guard is 0 does not count

    def extent(self, axis: Axis) -> int:
        return sizes.evaluate(axis.size, self.symbols)

    def number(self, coef: Coef) -> int | float:
        if isinstance(coef, sympy.Expr):
            value = coef.subs({s: self.symbols[s.name] for s in coef.free_symbols})
            return int(value) if value.is_Integer else float(value)
        return coef

    def poly(self, term: Poly, axes: Sequence[Axis]) -> Array:
        key = (term, tuple(axes), self.guarded)
        if key not in self.cache:
            carrier = np.float64 if term.dtype in FLOATS else np.int64
            with np.errstate(all="ignore"):
                parts = [self.mono(mono, axes, carrier) for mono in term.monos]
                if any(isinstance(m.coef, float) and abs(m.coef) > _HUGE for m in term.monos):
                    parts = _largest_first(parts)
                # nothing is 0.0, and nothing changes what it is added to, -0.0 too
                result = sum(parts, start=np.full([1] * len(axes), -0.0 if parts else 0.0, dtype=carrier))
            self.cache[key] = result.astype(bool) if term.dtype == "bool" else result
        return self.cache[key]

    def mono(self, mono: Mono, axes: Sequence[Axis], carrier: type) -> Array:
        inner = [*axes, *mono.axes]
        mask: Array | None = None
        factors, outside = [], self.guarded
        # The shorter first: the index of a longer one may lie outside of what it reads where a shorter one is 0.
        for guard in sorted((a for a in mono.atoms if isinstance(a, Guard)), key=lambda g: len(g.text)):
            inside = self.guard(guard, inner)
            mask, self.guarded = inside if mask is None else mask & inside, True
        shift = self.softmax_shift(mono, inner)
        for atom in mono.atoms:
            if isinstance(atom, Guard):
                continue
            value = self.atom(atom, inner) if shift is None else self.shifted(atom, inner, shift)
            value = value.astype(carrier)
            if mask is not None:
                value = np.where(mask, value, carrier(0))
            factors.append(value)
        self.guarded = outside
        coef = self.number(mono.coef)
        if carrier is np.int64 and isinstance(coef, int):  # products of numbers wrap around, as their data does
            coef = (coef + 2**63) % 2**64 - 2**63
        if mask is not None and isinstance(coef, float) and not math.isfinite(coef):
            # infinity times what a guard rules out is 0 too: torch.full([3, 3], -inf).triu(1)
            factors.append(np.where(mask, carrier(coef), carrier(0)))
            coef = 1
        elif mask is not None and not factors:
            factors.append(mask.astype(carrier))
        product = self.contract(factors, len(axes), [self.extent(a) for a in mono.axes], carrier)
        return product * coef

    def contract(self, factors: list[Array], free: int, bound: list[int], carrier: type) -> Array:
        """The product of factors, summed over the trailing axes."""
        if not factors:
            return np.full([1] * free, int(np.prod(bound, dtype=np.int64)), dtype=carrier)
        if not bound:
            result = factors[0]
            for f in factors[1:]:
                result = result * f
            return result
        # einsum over the axes that each factor really has; those that none has multiply or stay 1
        operands: list[Any] = []
        letters = list(range(free + len(bound)))
        present: set[int] = set()
        for f in factors:
            own = [n for n in letters if f.shape[n] != 1]
            present.update(own)
            operands += [f.reshape([f.shape[n] for n in own]), own]
        kept = [n for n in range(free) if n in present]
        result = np.einsum(*operands, kept, optimize=True)
        missing = [bound[n - free] for n in range(free, free + len(bound)) if n not in present]
        shape = iter(result.shape)
        full = result.reshape([next(shape) if n in present else 1 for n in range(free)])
        return np.asarray(full * carrier(np.prod(missing, dtype=np.int64)))

    def softmax_shift(self, mono: Mono, axes: Sequence[Axis]) -> Array | None:
        """For exp(a) / sum(exp(b)): the largest b, which both subtract so that neither overflows; else None."""
        exponents = [a for a in mono.atoms if isinstance(a, Fn) and a.name == "exp"]
        totals = [t for t in (_sum_of_exps(a, "reciprocal") for a in mono.atoms) if t is not None]
        return self.largest(totals[0], axes) if len(exponents) == 1 and len(totals) == 1 else None

    def largest(self, total: Mono, axes: Sequence[Axis]) -> Array:
        """The largest exponent in a sum of exponentials, over its own axes; 0 where none is finite."""
        inner = [*axes, *total.axes]
        (exponential,) = total.atoms
        assert isinstance(exponential, Fn)
        top = np.max(self.poly(exponential.args[0], inner), axis=tuple(range(len(axes), len(inner))))
        return np.asarray(np.where(np.isfinite(top), top, 0.0))

    def shifted(self, atom: Atom, axes: Sequence[Axis], shift: Array) -> Array:
        """An atom of a softmax with every exponent less by `shift`."""
        if isinstance(atom, Fn) and atom.name == "exp":
            return np.asarray(np.exp(self.poly(atom.args[0], axes) - shift))
        total = _sum_of_exps(atom, "reciprocal")
        return self.atom(atom, axes) if total is None else 1.0 / self.scaled_total(total, axes, shift)

    def scaled_total(self, total: Mono, axes: Sequence[Axis], shift: Array) -> Array:
        """A sum of exponentials, every exponent less by `shift`."""
        inner = [*axes, *total.axes]
        (exponential,) = total.atoms
        assert isinstance(exponential, Fn)
        exponents = self.poly(exponential.args[0], inner) - shift.reshape([*shift.shape, *[1] * len(total.axes)])
        full = np.broadcast_to(exponents, [*exponents.shape[: len(axes)], *(self.extent(a) for a in total.axes)])
        return np.asarray(np.exp(full).sum(tuple(range(len(axes), len(inner)))) * self.number(total.coef))

    def guard(self, atom: Guard, axes: Sequence[Axis]) -> Array:
        index = self.poly(atom.index, axes)
        inside: Array = np.ones([1] * len(axes), dtype=bool)
        if atom.lo is not None:
            inside = inside & (index >= self.number(atom.lo))
        if atom.hi is not None:
            inside = inside & (index < self.number(atom.hi))
        return inside

    def atom(self, atom: Atom, axes: Sequence[Axis]) -> Array:
        if isinstance(atom, Coord):
            n = list(axes).index(atom.axis)
            shape = [1] * len(axes)
            shape[n] = self.extent(atom.axis)
            return np.arange(shape[n]).reshape(shape)
        if isinstance(atom, Read):
            return self.read(atom, axes)
        if isinstance(atom, Fn):
            total = _sum_of_exps(atom, "log")
            if total is not None:
                top = self.largest(total, axes)
                return top + np.log(self.scaled_total(total, axes, top))
            args = [self.poly(p, axes) for p in atom.args]
            if atom.name == "cast":
                return FUNCTIONS["cast"](args[0], atom.dtype)
            return FUNCTIONS[atom.name](*args, *atom.attrs)
        assert isinstance(atom, Reduce)
        inner = [*axes, *atom.axes]
        body = self.poly(atom.body, inner)
        full = np.broadcast_to(body, [*body.shape[: len(axes)], *(self.extent(a) for a in atom.axes)])
        return _REDUCE[atom.op](full, axis=tuple(range(len(axes), len(inner))))

    def read(self, atom: Read, axes: Sequence[Axis]) -> Array:
        source = self.leaves(atom.leaf)
        carrier = np.float64 if atom.dtype in FLOATS else bool if atom.dtype == "bool" else np.int64
        plain = [p.atom.axis if isinstance(p.atom, Coord) else None for p in atom.index]
        if None not in plain and len(set(plain)) == len(plain) and all(
            self.extent(a) == source.shape[n] for n, a in enumerate(plain) if a is not None
        ):  # a transpose: no gather  # fmt: skip
            order = sorted(range(len(plain)), key=lambda n: list(axes).index(plain[n]))  # type: ignore[arg-type]  # only axes are left here
            shape = [1] * len(axes)
            for n in order:
                shape[list(axes).index(plain[n])] = source.shape[n]  # type: ignore[arg-type]  # only axes are left here
            return source.astype(carrier, copy=False).transpose(order).reshape(shape)
        index = [self.poly(p, axes) for p in atom.index]
        for n, position in enumerate(index):
            outside = (position < 0) | (position >= source.shape[n])
            if outside.any():
                if not self.guarded:
                    raise IndexError(f"{atom.text} reads outside of {source.shape} in dimension {n}")
                index[n] = np.where(outside, 0, position)
        if not index:
            return source.astype(carrier, copy=False).reshape([1] * len(axes))
        return source[tuple(index)].astype(carrier, copy=False)  # what is read alone: a table may be larger than memory


def _sum_of_exps(atom: Atom, function: str) -> Mono | None:
    """The sum in function(coef * sum(exp(..))), else None."""
    if not (isinstance(atom, Fn) and atom.name == function and len(atom.args[0].monos) == 1):
        return None
    mono = atom.args[0].monos[0]
    inner = mono.atoms[0] if len(mono.atoms) == 1 else None
    return mono if mono.axes and isinstance(inner, Fn) and inner.name == "exp" else None
