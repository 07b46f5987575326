"""The rules of pointwise functions: the normalising constructor `fn`, and one line or small function for each rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable

import numpy as np
import sympy

from . import sizes
from .functions import COMMUTATIVE, FUNCTIONS
from .normal import add, add_all, mul, poly, scale
from .ranges import value_range
from .term import Coef, Coord, Fn, Guard, Poly, monomial, number, raw_fn, single, walk

WIDTH = {
    "bool": 1,
    "int8": 8,
    "uint8": 8,
    "int16": 16,
    "int32": 32,
    "int64": 64,
    "float16": 16,
    "bfloat16": 16,
    "float32": 32,
    "float64": 64,
}
FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


def fn(name: str, args: Iterable[Poly], dtype: str, attrs: tuple[Hashable, ...] = ()) -> Poly:
    """name(args; attrs) in normal form."""
    operands = list(args)
    if name in SPELLED:
        return SPELLED[name](operands, dtype)
    if name in COMMUTATIVE:
        operands.sort(key=lambda p: p.text)
    folded = _fold(name, operands, dtype, attrs)
    if folded is None and name in RULES:
        folded = RULES[name](operands, dtype, attrs)
    return raw_fn(name, operands, dtype, attrs) if folded is None else folded


def _fold(name: str, args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
    """A function of numbers is a number."""
    values = [a.number for a in args]
    if any(v is None or isinstance(v, sympy.Expr) for v in values) or name == "cast":
        return None
    with np.errstate(all="ignore"):
        kind = [
            np.asarray(v, dtype=np.float64 if a.dtype in FLOATS else np.int64)
            for v, a in zip(values, args, strict=True)
        ]
        if name in ("floordiv", "mod") and not np.any(kind[1]):
            return None
        result = FUNCTIONS[name](*kind, *attrs).item()
    return None if isinstance(result, float) and np.isnan(result) else number(result, dtype)


def _cast(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
    """cast to what it is -> x; number -> number; a widening cast that is narrowed back -> x; int -> wider int -> any:
    one cast; int -> bool is x != 0."""
    (x,) = args
    if x.dtype == dtype:
        return x
    value = x.number
    if value is not None:
        if isinstance(value, sympy.Expr) or dtype in FLOATS:
            return number(value, dtype)
        if dtype == "bool":
            return number(int(value != 0), dtype)
        held = abs(value) < 2 ** (WIDTH[dtype] - 1) and (value >= 0 or dtype != "uint8")
        return number(int(value), dtype) if held else None
    atom = x.atom
    if isinstance(atom, (Guard, Coord)):
        return poly(x.monos, dtype)  # exact in every type
    if isinstance(atom, Fn) and atom.name == "cast":
        inner = atom.args[0]
        same_kind = (inner.dtype in FLOATS) == (atom.dtype in FLOATS)
        if same_kind and WIDTH[atom.dtype] > WIDTH[inner.dtype]:
            return fn("cast", [inner], dtype)
    return fn("ne", [x, number(0, x.dtype)], dtype) if dtype == "bool" and x.dtype not in FLOATS else None


def _reciprocal(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
    """1/(c*a*b) -> 1/c * 1/a * 1/b; 1/(1/x) -> x."""
    (x,) = args
    if len(x.monos) != 1 or x.monos[0].axes or any(isinstance(a, Guard) for a in x.monos[0].atoms):
        return None
    mono = x.monos[0]
    if len(mono.atoms) == 1 and isinstance(mono.atoms[0], Fn) and mono.atoms[0].name == "reciprocal":
        return scale(mono.atoms[0].args[0], _inverse(mono.coef))
    if len(mono.atoms) == 1 and mono.coef == 1:
        return None
    parts = [fn("reciprocal", [single(a, dtype)], dtype) for a in mono.atoms]
    return scale(mul(number(1, dtype), *parts), _inverse(mono.coef))


def _inverse(coef: Coef) -> Coef:
    return 1 / coef if isinstance(coef, sympy.Expr) else float(np.float64(1.0) / np.float64(coef))


def _split(x: Poly, divisor: sizes.Size) -> tuple[Poly, Poly]:
    """x = divisor*quotient + rest, with every monomial that divisor divides in the quotient."""
    quotient, rest = [], []
    for mono in x.monos:
        part = None if isinstance(mono.coef, float) else sizes.divide(mono.coef, divisor)
        if part is None:
            rest.append(monomial(mono, x.dtype))
        else:
            quotient.append(monomial(mono, x.dtype, part))
    return add_all(quotient, x.dtype), add_all(rest, x.dtype)


def _may_wrap(x: Poly) -> bool:
    """Whether an integer is a sum or product of data that may have wrapped around: 7*x % 7 is not 0 then."""
    if x.atom is not None or not x.leaves:
        return False
    low, high = value_range(x)
    if low is None or high is None:
        return True
    most = 1 << WIDTH[x.dtype] - 1
    return (isinstance(low, int) and low < -most) or (isinstance(high, int) and high >= most)


def _whole_divisor(by: Poly) -> sizes.Size | None:
    """The number that `by` is, where it is a positive integer."""
    divisor = by.number
    if by.dtype in FLOATS or divisor is None or isinstance(divisor, float) or not sizes.at_least(divisor, 1):
        return None
    return divisor


def _floordiv(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
    """As `_quotient` says, where x did not wrap around."""
    divisor = _whole_divisor(args[1])
    if divisor is None or (divisor != 1 and _may_wrap(args[0])):
        return None
    return _quotient(args[0], args[1], divisor, dtype)


def _mod(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
    """As `_remainder` says, where x did not wrap around; by a power of two, wherever that is."""
    divisor = _whole_divisor(args[1])
    power = isinstance(divisor, int) and divisor & (divisor - 1) == 0
    if divisor is None or (not power and _may_wrap(args[0])):
        return None
    return _remainder(args[0], args[1], divisor, dtype)


def divided(place: Poly, size: sizes.Size) -> tuple[Poly, Poly]:
    """place // size and place % size for a place in a tensor, which is too small to have wrapped around."""
    by = number(size)
    divisor = _whole_divisor(by) if _may_wrap(place) else None
    quotient = None if divisor is None else _quotient(place, by, divisor, "int64")
    remainder = None if divisor is None else _remainder(place, by, divisor, "int64")
    return quotient or fn("floordiv", [place, by], "int64"), remainder or fn("mod", [place, by], "int64")


def _quotient(x: Poly, by: Poly, divisor: sizes.Size, dtype: str) -> Poly | None:
    """(c*q + r) // c -> q + r // c; r // c -> 0 where 0 <= r < c; (a*p + r) // ab -> p // b where 0 <= r < a;
    p // a // b -> p // ab; p % ab // a -> p // a % b."""
    if divisor == 1:
        return x
    quotient, rest = _split(x, divisor)
    if _within(rest, divisor):
        return quotient
    shared = _shared(rest, divisor)
    if shared is not None:
        _, coarse, _, left = shared
        return add(quotient, fn("floordiv", [coarse, number(left, by.dtype)], dtype))
    inner, factor = _divided(rest)
    if inner is not None and inner.name == "floordiv":
        product = sizes.mul(factor, divisor)
        if not isinstance(product, int) or product < 1 << WIDTH[by.dtype] - 1:
            return add(quotient, fn("floordiv", [inner.args[0], number(product, by.dtype)], dtype))
    elif inner is not None and (left := sizes.divide(factor, divisor)) is not None:
        outer = fn("floordiv", [inner.args[0], by], dtype)
        return add(quotient, fn("mod", [outer, number(left, by.dtype)], dtype))
    return add(quotient, raw_fn("floordiv", [rest, by], dtype)) if quotient.monos else None


def _remainder(x: Poly, by: Poly, divisor: sizes.Size, dtype: str) -> Poly | None:
    """(c*q + r) % c -> r % c; r % c -> r where 0 <= r < c; (a*p + r) % ab -> a*(p % b) + r where 0 <= r < a;
    p % ab % a -> p % a."""
    if divisor == 1:
        return number(0, dtype)
    quotient, rest = _split(x, divisor)
    if _within(rest, divisor):
        return rest
    shared = _shared(rest, divisor)
    if shared is not None:
        factor, coarse, fine, left = shared
        return add(scale(fn("mod", [coarse, number(left, by.dtype)], dtype), factor), fine)
    inner, factor = _divided(rest)
    if inner is not None and inner.name == "mod" and sizes.divide(factor, divisor) is not None:
        return fn("mod", [inner.args[0], by], dtype)
    return raw_fn("mod", [rest, by], dtype) if quotient.monos else None


def _shared(x: Poly, divisor: sizes.Size) -> tuple[sizes.Size, Poly, Poly, sizes.Size] | None:
    """x = factor*coarse + fine with 0 <= fine < factor, and divisor = factor*left: the fine part decides nothing."""
    for mono in x.monos:
        factor = mono.coef
        if isinstance(factor, float) or factor == 1 or not mono.atoms or not sizes.at_least(factor, 2):
            continue
        left = sizes.divide(divisor, factor)
        if left is not None:
            coarse, fine = _split(x, factor)
            if _within(fine, factor):
                return factor, coarse, fine, left
    return None


def _divided(x: Poly) -> tuple[Fn | None, sizes.Size]:
    """The division or remainder that `x` is, and by which positive number; None where it is neither."""
    atom = x.atom
    if isinstance(atom, Fn) and atom.name in ("floordiv", "mod") and atom.dtype not in FLOATS:
        factor = atom.args[1].number
        if factor is not None and not isinstance(factor, float) and sizes.at_least(factor, 1):
            return atom, factor
    return None, 1


def _within(x: Poly, bound: sizes.Size) -> bool:
    low, high = value_range(x)
    return (
        low is not None and high is not None and sizes.at_least(low, 0) and sizes.at_least(bound, sizes.size(high + 1))
    )


def _shift_right(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
    """x >> k -> x // 2**k."""
    x, places = args[0], args[1].number
    if type(places) is not int or not 0 <= places < WIDTH.get(dtype, 0) - 1:
        return None
    return fn("floordiv", [x, number(1 << places, args[1].dtype)], dtype)


def _shift_left(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
    """x << k -> x * 2**k."""
    x, places = args[0], args[1].number
    return scale(x, 1 << places) if type(places) is int and 0 <= places < WIDTH.get(dtype, 0) - 1 else None


def _bitwise_and(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
    """x & (2**k - 1) -> x % 2**k, of negative numbers too."""
    for x, mask in (args, args[::-1]):
        ones = mask.number
        if type(ones) is int and ones > 0 and ones & (ones + 1) == 0 and ones.bit_length() < WIDTH.get(dtype, 0) - 1:
            return fn("mod", [x, number(ones + 1, mask.dtype)], dtype)
    return None


def _where(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
    """where(true, a, b) -> a; where(c, a, a) -> a."""
    condition = args[0].number
    if condition is not None:
        return args[1] if condition else args[2]
    return args[1] if args[1] is args[2] else None


def _less(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
    """x < y of integers whose ranges lie apart -> true, false. A size that is no axis of what is asked may be 0."""
    if any(a.dtype in FLOATS or _may_wrap(a) for a in args):  # x < x + 1 is false of the largest number
        return None
    difference = add(args[0], scale(args[1], -1))
    low, high = value_range(difference)
    there = {s for a in walk(difference) if isinstance(a, Coord) for s in sizes.symbols_of(a.axis.size)}
    named = {s for bound in (low, high) if bound is not None for s in sizes.symbols_of(bound)} - there
    if high is not None and sizes.at_least(-1, high, named):
        return number(1, dtype)
    return number(0, dtype) if low is not None and sizes.at_least(low, 0, named) else None


def _less_or_equal(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
    """x <= 4 -> x < 5, 5 <= x -> 4 < x of integers."""
    x, y = args
    if x.dtype in FLOATS or y.dtype in FLOATS:
        return None
    if type(y.number) is int and y.number < 1 << 31:  # the largest number of a type has no successor
        return fn("lt", [x, number(y.number + 1, y.dtype)], dtype)
    if type(x.number) is int and x.number > -1 << 31:
        return fn("lt", [number(x.number - 1, x.dtype), y], dtype)
    return None


def _not(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
    """not not x -> x; not x < y -> y <= x, not x <= y -> y < x of integers, of which none is NaN."""
    atom = args[0].atom
    if not isinstance(atom, Fn):
        return None
    if atom.name in ("lt", "le") and not {p.dtype for p in atom.args} & FLOATS:
        return fn("le" if atom.name == "lt" else "lt", atom.args[::-1], dtype)
    return atom.args[0] if atom.name == "logical_not" else None


def _equal(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
    """x == true -> x, x == false -> not x."""
    for x, truth in (args, args[::-1]):
        if x.dtype == truth.dtype == "bool" and truth.number is not None:
            return x if truth.number else fn("logical_not", [x], dtype)
    return None


def _unlike(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
    """x xor false -> x, x xor true -> not x."""
    for x, truth in (args, args[::-1]):
        if x.dtype == truth.dtype == "bool" and truth.number is not None:
            return fn("logical_not", [x], dtype) if truth.number else x
    return None


def _idempotent(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
    """max(x, x) -> x."""
    return args[0] if args[0] is args[1] else None


def _bounded(limit: float) -> Callable[[list[Poly], str, tuple[Hashable, ...]], Poly | None]:
    """min(x, inf) -> x and max(x, -inf) -> x."""

    def rule(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
        for x, bound in (args, args[::-1]):
            if isinstance(bound.number, float) and bound.number == limit:
                return x
        return _idempotent(args, dtype, attrs)

    return rule


def _power(args: list[Poly], dtype: str) -> Poly:
    """x**2 -> x*x, x**0.5 -> sqrt(x), x**-1 -> 1/x, 2**x -> exp(x*log(2)), ..."""
    x, exponent, base = args[0], args[1].number, args[0].number
    if isinstance(base, (int, float)) and exponent is None and 0 < base < math.inf and base != 1 and dtype in FLOATS:
        return fn("exp", [scale(args[1], math.log(base))], dtype)  # 1**x is 1 even where x is NaN
    if exponent == 0.5:
        return fn("sqrt", [x], dtype)
    if exponent == -0.5:
        return fn("reciprocal", [fn("sqrt", [x], dtype)], dtype)
    if exponent == -1:
        return fn("reciprocal", [x], dtype)
    if exponent in (1, 2, 3, 4):
        return mul(*[x] * int(exponent))
    return _fold("pow", args, dtype, ()) or raw_fn("pow", args, dtype)


def _classified(name: str) -> Callable[[list[Poly], str, tuple[Hashable, ...]], Poly | None]:
    """isnan and isinf of a float that is only widened -> of the float."""

    def rule(args: list[Poly], dtype: str, attrs: tuple[Hashable, ...]) -> Poly | None:
        atom = args[0].atom
        if not isinstance(atom, Fn) or atom.name != "cast" or atom.args[0].dtype not in FLOATS:
            return None
        inner = atom.args[0]
        return fn(name, [inner], dtype) if fn("cast", [args[0]], inner.dtype) is inner else None

    return rule


RULES: dict[str, Callable[[list[Poly], str, tuple[Hashable, ...]], Poly | None]] = {
    "cast": _cast,
    "reciprocal": _reciprocal,
    "floordiv": _floordiv,
    "mod": _mod,
    "shift_right": _shift_right,
    "shift_left": _shift_left,
    "bitwise_and": _bitwise_and,
    "where": _where,
    "lt": _less,
    "le": _less_or_equal,
    "logical_not": _not,
    "logical_xor": _unlike,
    "eq": _equal,
    "isnan": _classified("isnan"),
    "isinf": _classified("isinf"),
    "max": _bounded(-float("inf")),
    "min": _bounded(float("inf")),
}

# Names that are other names: before -> after.
SPELLED: dict[str, Callable[[list[Poly], str], Poly]] = {
    "neg": lambda a, t: scale(a[0], -1),  # -x -> -1*x
    "div": lambda a, t: mul(a[0], fn("reciprocal", [a[1]], t)),  # x/y -> x * 1/y
    "rsqrt": lambda a, t: fn("reciprocal", [fn("sqrt", a, t)], t),
    "square": lambda a, t: mul(a[0], a[0]),
    "gt": lambda a, t: fn("lt", a[::-1], t),  # x>y -> y<x
    "ge": lambda a, t: fn("le", a[::-1], t),
    "ne": lambda a, t: fn("logical_not", [fn("eq", a, t)], t),
    "pow": _power,
}
