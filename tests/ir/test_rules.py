"""Each rule of the normal form: where it fires, and where it must not."""

from __future__ import annotations

import numpy as np
import pytest

from recopt.ir import ops, tensor
from recopt.ir.evaluate import evaluate
from recopt.ir.functions import FUNCTIONS
from recopt.ir.normal import add, guard, mul, scale, sum_over
from recopt.ir.rules import divided, fn
from recopt.ir.show import show
from recopt.ir.term import Axis, Poly, TooLarge, axis, coord, number, single

from .pairs import N, Source, agree, same, source, value

X, Y = source("x", N, 6), source("y", N, 6)
IDS = source("ids", N, dtype="int64", high=50)
x, y, ids = X.body, Y.body, IDS.body
FLAG = fn("lt", [x, y], "bool")
ROW, COLUMN = axis(6), axis(4)


def c(n: object, dtype: str = "float32") -> Poly:
    return number(n, dtype)  # type: ignore[arg-type]


def f(name: str, *args: Poly, dtype: str = "float32") -> Poly:
    return fn(name, args, dtype)


def cast(a: Poly, dtype: str) -> Poly:
    return fn("cast", [a], dtype)


def div(a: Poly, b: Poly) -> Poly:
    return fn("floordiv", [a, b], "int64")


def mod(a: Poly, b: Poly) -> Poly:
    return fn("mod", [a, b], "int64")


EIGHT, THREE, ONE, DOZENS = (c(n, "int64") for n in (8, 3, 1, 24))
SMALL = fn("lt", [ids, EIGHT], "bool")
i, j = coord(ROW), coord(COLUMN)
INT32, HALF = cast(ids, "int32"), cast(x, "float16")
FIRES: dict[str, tuple[Poly, Poly]] = {
    "cast to its own type": (cast(x, "float32"), x),
    "cast of a number": (cast(c(2.7), "int64"), c(2, "int64")),
    "cast of a number to bool": (cast(c(2.7), "bool"), c(1, "bool")),
    "widened and narrowed back": (cast(cast(x, "float64"), "float32"), x),
    "wider integers on the way": (cast(cast(cast(ids, "int32"), "int64"), "float32"), cast(INT32, "float32")),
    "isnan of a widened float": (f("isnan", cast(x, "float64"), dtype="bool"), f("isnan", x, dtype="bool")),
    "1/(2x)": (f("reciprocal", scale(x, 2)), scale(f("reciprocal", x), 0.5)),
    "1/(xy)": (f("reciprocal", mul(x, y)), mul(f("reciprocal", x), f("reciprocal", y))),
    "1/(1/x)": (f("reciprocal", f("reciprocal", x)), x),
    "x * 1/x": (mul(x, f("reciprocal", x)), c(1)),
    "ids >> 3": (f("shift_right", ids, THREE, dtype="int64"), div(ids, EIGHT)),
    "ids << 3": (f("shift_left", ids, THREE, dtype="int64"), scale(ids, 8)),
    "ids & 7": (f("bitwise_and", ids, c(7, "int64"), dtype="int64"), mod(ids, EIGHT)),
    "ids <= 7": (f("le", ids, c(7, "int64"), dtype="bool"), SMALL),
    "8 <= ids": (f("le", EIGHT, ids, dtype="bool"), f("gt", ids, c(7, "int64"), dtype="bool")),
    "not ids < 8": (f("logical_not", SMALL, dtype="bool"), f("ge", ids, EIGHT, dtype="bool")),
    "x // 1": (div(ids, ONE), ids),
    "(8i + j) // 8": (div(add(scale(i, 8), j), EIGHT), i),
    "(8i + ids) // 8": (divided(add(scale(i, 8), ids), 8)[0], add(i, div(ids, EIGHT))),
    "(9i + ids) % 9": (divided(add(scale(i, 9), ids), 9)[1], mod(ids, c(9, "int64"))),
    "ids // 3 // 8": (div(div(ids, THREE), EIGHT), div(ids, DOZENS)),
    "ids % 24 // 8": (div(mod(ids, DOZENS), EIGHT), mod(div(ids, EIGHT), THREE)),
    "x % 1": (mod(ids, ONE), c(0, "int64")),
    "(8i + j) % 8": (mod(add(scale(i, 8), j), EIGHT), j),
    "ids % 24 % 8": (mod(mod(ids, DOZENS), EIGHT), mod(ids, EIGHT)),
    "8*(ids // 8) + ids % 8": (add(scale(div(ids, EIGHT), 8), mod(ids, EIGHT)), ids),
    "where(true, x, y)": (f("where", c(1, "bool"), x, y), x),
    "where(false, x, y)": (f("where", c(0, "bool"), x, y), y),
    "where(c, x, x)": (f("where", FLAG, x, x), x),
    "not not": (f("logical_not", f("logical_not", FLAG, dtype="bool"), dtype="bool"), FLAG),
    "max(x, x)": (f("max", x, x), x),
    "max(x, -inf)": (f("max", x, c(-np.inf)), x),
    "min(inf, x)": (f("min", c(np.inf), x), x),
    "max is commutative": (f("max", x, y), f("max", y, x)),
    "x > y": (f("gt", x, y, dtype="bool"), f("lt", y, x, dtype="bool")),
    "x >= y": (f("ge", x, y, dtype="bool"), f("le", y, x, dtype="bool")),
    "x != y": (f("ne", x, y, dtype="bool"), f("logical_not", f("eq", y, x, dtype="bool"), dtype="bool")),
    "-x": (f("neg", x), scale(x, -1)),
    "x / y": (f("div", x, y), mul(x, f("reciprocal", y))),
    "rsqrt": (f("rsqrt", x), f("reciprocal", f("sqrt", x))),
    "square": (f("square", x), mul(x, x)),
    "x ** 0.5": (f("pow", x, c(0.5)), f("sqrt", x)),
    "x ** -1": (f("pow", x, c(-1)), f("reciprocal", x)),
    "x ** 3": (f("pow", x, c(3)), mul(x, x, x)),
    "numbers": (f("exp", c(0)), c(1)),
    "x - x": (add(x, scale(x, -1)), c(0)),
    "0.1x + 0.2x - 0.3x": (add(scale(x, 0.1), scale(x, 0.2), scale(x, -0.3)), c(0)),
    "distribution": (mul(add(x, y), add(x, scale(y, -1))), add(mul(x, x), scale(mul(y, y), -1))),
    "a guard that always holds": (guard(i, 0, 6), c(1, "int64")),
    "a guard that never holds": (guard(i, 6, None), c(0, "int64")),
    "guards of one index": (mul(guard(i, 1, 5), guard(i, 3, None)), guard(i, 3, 5)),
    "guards that touch": (add(guard(i, 1, 3), guard(i, 3, 5)), guard(i, 1, 5)),
    "a guard on a shifted index": (guard(add(i, c(2, "int64")), 3, 5), guard(i, 1, 3)),
}  # fmt: skip
DIFFER: dict[str, tuple[Poly, Poly]] = {
    "through a narrower type": (cast(cast(x, "float16"), "float32"), x),
    "isinf of a narrowed float": (f("isinf", HALF, dtype="bool"), f("isinf", x, dtype="bool")),
    "through an integer": (cast(cast(x, "int64"), "float32"), x),
    "through a bool": (cast(cast(ids, "bool"), "int64"), ids),
    "half to bfloat and back": (cast(cast(HALF, "bfloat16"), "float32"), cast(HALF, "float32")),
    "1/(x + y)": (f("reciprocal", add(x, y)), add(f("reciprocal", x), f("reciprocal", y))),
    "floor division of floats": (f("floordiv", add(scale(x, 8), y), c(8)), add(x, f("floordiv", y, c(8)))),
    "ids // 8": (div(ids, EIGHT), c(0, "int64")),
    "8*ids // 8, which wraps around": (div(scale(ids, 8), EIGHT), ids),
    "9*ids % 9, which wraps around": (mod(scale(ids, 9), c(9, "int64")), c(0, "int64")),
    "6*ids % 9 // 3, which wraps around": (div(mod(scale(ids, 6), c(9, "int64")), THREE), mod(scale(ids, 2), THREE)),
    "ids < ids + 1": (fn("lt", [ids, add(ids, ONE)], "bool"), c(1, "bool")),
    "from int8 through uint8": (cast(cast(cast(ids, "int8"), "uint8"), "int32"), cast(cast(ids, "int8"), "int32")),
    "ids // -3": (div(ids, c(-3, "int64")), scale(div(ids, THREE), -1)),
    "ids % 8 % 3": (mod(mod(ids, EIGHT), THREE), mod(ids, THREE)),
    "7*(ids // 8) + ids % 8": (add(scale(div(ids, EIGHT), 7), mod(ids, EIGHT)), ids),
    "(8i + ids) % 8": (mod(add(scale(i, 8), ids), EIGHT), ids),
    "where(c, x, y)": (f("where", FLAG, x, y), f("where", FLAG, y, x)),
    "not": (f("logical_not", FLAG, dtype="bool"), FLAG),
    "not x < y of floats": (f("logical_not", FLAG, dtype="bool"), f("ge", x, y, dtype="bool")),  # NaN
    "ids & 6": (f("bitwise_and", ids, c(6, "int64"), dtype="int64"), mod(ids, c(7, "int64"))),
    "max(x, inf)": (f("max", x, c(np.inf)), x),
    "min(x, 0)": (f("min", x, c(0)), x),
    "x < y": (FLAG, f("lt", y, x, dtype="bool")),
    "x ** 2.5": (f("pow", x, c(2.5)), mul(x, x)),
    "0 // 0": (div(c(0, "int64"), c(0, "int64")), c(0, "int64")),
    "log(-1) is no number": (f("log", c(-1)), c(0)),
    "a small rest that is no rounding": (add(scale(x, 1.0), scale(x, -0.999999)), c(0)),
    "guards apart": (add(guard(i, 1, 2), guard(i, 3, 5)), guard(i, 1, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", FIRES)
def test_rule_fires(name: str) -> None:
    spelled, wanted = FIRES[name]
    assert spelled is wanted, f"{spelled.text} is not {wanted.text}"


@pytest.mark.parametrize("name", DIFFER)
def test_rule_must_not_fire(name: str) -> None:
    one, other = DIFFER[name]
    assert one is not other


@pytest.mark.parametrize("divisor", [1, 3, 8, 24])
@pytest.mark.parametrize("outer", [1, 3, 8])
def test_divisions_mean_what_they_did(divisor: int, outer: int) -> None:
    """Negative positions included: floor division and its remainder."""
    t = source("n", 101, dtype="int64")
    array = np.arange(-50, 51)
    for first, second in [("floordiv", "floordiv"), ("mod", "floordiv"), ("mod", "mod"), ("floordiv", "mod")]:
        term = f(second, f(first, t.body, c(divisor, "int64"), dtype="int64"), c(outer, "int64"), dtype="int64")
        plain = FUNCTIONS[second](FUNCTIONS[first](array, divisor), outer)
        np.testing.assert_array_equal(evaluate(t.with_body(term), lambda leaf: array), plain)


def test_a_one_hot_sum_is_a_lookup() -> None:
    table = source("t", 50, 4)
    found = ops.matmul(ops.one_hot(IDS, 50, "float32"), table)
    assert "eq(" not in show(found) and "sum" not in show(found)
    agree((found, value(table)[value(IDS)]))
    unequal = ops.matmul(ops.cast(ops.pointwise("ne", tensor.unsqueeze(IDS, 1), tensor.iota(50)), "float32"), table)
    assert "sum" in show(unequal)


def test_sums_over_guards_shrink() -> None:
    padded = ops.total(tensor.pad(X, 1, 3, 2), [1])
    same(padded, ops.total(X, [1]))
    assert "[" in show(tensor.pad(X, 1, 3, 2)) and "<=" in show(tensor.pad(X, 1, 3, 2))


def test_sums_of_what_does_not_depend_on_the_axis_multiply() -> None:
    wide = tensor.expand(tensor.unsqueeze(X, 1), [N, 7, 6])
    same(ops.total(wide, [1]), ops.times(X, 7))
    same(ops.reduction("max", wide, [1]), X)
    assert show(ops.reduction("prod", wide, [1])) != show(X)


def test_a_maximum_over_stacked_pieces_is_their_maximum() -> None:
    stacked = ops.reduction("max", tensor.stack([X, Y], 0), [0])
    same(stacked, ops.pointwise("max", X, Y))
    agree((stacked, np.maximum(value(X), value(Y))))


def test_neighbouring_elements_are_one_range() -> None:
    pieces = [tensor.select(X, 1, n) for n in range(6)]
    same(tensor.stack(pieces, 1), X)
    same(tensor.stack(pieces[::-1], 1), tensor.flip(X, [1]))
    agree((tensor.stack([pieces[n] for n in (0, 5, 2)], 1), value(X)[:, [0, 5, 2]]))
    apart = tensor.stack([pieces[0], tensor.select(Y, 1, 1)], 1)
    agree((apart, np.stack([value(X)[:, 0], value(Y)[:, 1]], 1)))


def test_large_products_are_refused() -> None:
    many = add(*(source(f"a{n}", N, 6).at([coord(axis(N)), number(n % 6)]) for n in range(40)))
    with pytest.raises(TooLarge):
        mul(many, many)


def test_bound_axes_are_not_captured() -> None:
    """A sum inside a function inside a sum over an axis of the same size."""
    inner = ops.pointwise("exp", ops.total(X, [1], keepdim=True))
    outer = ops.total(ops.multiply(X, inner), [1])
    agree((outer, (value(X) * np.exp(value(X).sum(1, keepdims=True))).sum(1)))
    nested = ops.total(ops.multiply(outer, outer), [0])
    agree((nested, (value(outer) ** 2).sum()))


def test_equal_terms_are_one_object() -> None:
    again = tensor.leaf(Source("x", value(X).shape, value(X)), (N, 6), "float32").canonical()
    assert again.body is X.canonical().body
    assert single(again.body.monos[0].atoms[0], "float32") is again.body


def test_a_guard_is_met_by_an_equal_axis() -> None:
    """Axes are equal by their parts: the one that a term holds may be another object than the one that is summed."""
    inside = guard(coord(Axis(4, 7)), 2, 3)
    assert sum_over(inside, [Axis(4, 7)]) is number(1)
