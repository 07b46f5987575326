"""ATen's pointwise operators and reductions of few elements that are several operators of kernels/pointwise.py."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from ..hosts.base import Node, Value
from ..ir.rules import FLOATS, WIDTH
from ..ir.term import number
from ..kernels.pointwise import COMPARISONS
from ..layout.element import Element, Index
from ..layout.elements import Elements
from ..match import No
from .aten_elements import SINGLE, Function, arguments, dtype_of, named, promoted_of, wide_of
from .aten_reductions import MAX_REDUCED, REDUCTIONS, folded, together

LARGEST = {
    "float16": 65504.0,
    "bfloat16": (2.0 - 2.0**-7) * 2.0**127,
    "float32": (2.0 - 2.0**-23) * 2.0**127,
    "float64": (2.0 - 2.0**-52) * 2.0**1023,
}
Step = Callable[..., Element]  # an operator of elements and numbers


def _steps(e: Elements, dtype: str) -> Step:
    """Operators of one type."""

    def step(op: str, *args: Element | float) -> Element:
        operands = [a if isinstance(a, Element) else e.literal(a, dtype) for a in args]
        return e.make(op, "bool" if op in COMPARISONS else dtype, *operands)

    return step


def _square(e: Elements, node: Node, index: Index) -> Element:
    x = e.operand(node.args[0], index, dtype_of(node))
    return e.make("mul", dtype_of(node), x, x)


def _reciprocal(e: Elements, node: Node, index: Index) -> Element:
    dtype = dtype_of(node)
    return e.make("div", dtype, e.operand(1.0, index, dtype), e.operand(node.args[0], index, dtype))


def _isinf(e: Elements, node: Node, index: Index) -> Element:
    x = e.operand(node.args[0], index)
    if x.dtype not in FLOATS:
        return e.literal(0, "bool")
    return e.make("eq", "bool", e.make("abs", x.dtype, x), e.literal(float("inf"), x.dtype))


def _nan_to_num(e: Elements, node: Node, index: Index) -> Element:
    x = e.operand(node.args[0], index)
    if x.dtype not in FLOATS:
        return x
    largest = LARGEST[x.dtype]
    default = {"nan": 0.0, "posinf": largest, "neginf": -largest}
    told = arguments(node, "nan posinf neginf")
    values = {k: v if told.get(k) is None else told[k] for k, v in default.items()}
    y = x
    for name, value in (("neginf", float("-inf")), ("posinf", float("inf"))):
        hit = e.make("eq", "bool", x, e.literal(value, x.dtype))
        y = e.make("where", x.dtype, hit, e.literal(values[name], x.dtype), y)
    return e.make("where", x.dtype, e.make("isnan", "bool", x), e.literal(values["nan"], x.dtype), y)


def _isfinite(e: Elements, node: Node, index: Index) -> Element:
    x = e.operand(node.args[0], index)
    if x.dtype not in FLOATS:
        return e.literal(1, "bool")
    return e.make("lt", "bool", e.make("abs", x.dtype, x), e.literal(float("inf"), x.dtype))


def _of_floats(body: Callable[..., Element], names: str = "", *defaults: float | None) -> Function:
    """A function of x and numbers, as steps."""

    def element(e: Elements, node: Node, index: Index) -> Element:
        dtype = dtype_of(node)
        if dtype not in ("float32", "float64"):
            raise No("{} of {}", node.op, dtype)
        told = arguments(node, names)
        numbers = [told.get(name, value) for name, value in zip(names.split(), defaults, strict=True)]
        return body(_steps(e, dtype), e.operand(node.args[0], index, dtype), *numbers)

    return element


def _softplus(step: Step, x: Element, beta: float, threshold: float) -> Element:
    scaled = step("mul", x, beta)
    curve = step("div", step("log1p", step("exp", scaled)), beta)
    return step("where", step("gt", scaled, threshold), x, curve)


def _logit(step: Step, x: Element, eps: float | None) -> Element:
    if eps is not None:
        x = step("min", step("max", x, eps), step("sub", 1.0, eps))
    return step("log", step("div", x, step("sub", 1.0, x)))


def _round(step: Step, x: Element, decimals: int) -> Element:
    there, back = ("mul", "div") if decimals >= 0 else ("div", "mul")
    return step(back, step("round", step(there, x, 10.0 ** abs(decimals))), 10.0 ** abs(decimals))


def _shifted(op: str) -> Function:
    """A shift by a tensor: one by more bits than there are, or by less than none, leaves the sign, or nothing."""

    def element(e: Elements, node: Node, index: Index) -> Element:
        dtype = dtype_of(node)
        if dtype not in ("int16", "int32", "int64"):
            raise No("{} of {}", node.op, dtype)
        step, last = _steps(e, dtype), WIDTH[dtype] - 1
        x, by = (e.operand(arg, index, dtype) for arg in node.args[:2])
        fits = e.make("and", "bool", step("ge", by, 0), step("le", by, last))
        moved = step(op, x, step("where", fits, by, last))
        return moved if op == "shr" else step("where", fits, moved, 0)

    return element


def _isin(e: Elements, node: Node, index: Index) -> Element:
    x, listed = node.args[:2]
    if not (isinstance(x, Value) and isinstance(listed, Value) and e.host.is_constant(listed)):
        raise No("{} of a list that is computed", node.op)
    array = e.host.constant(listed)
    if not 0 < array.size <= MAX_REDUCED:
        raise No("a list of {}", array.size)
    dtype = promoted_of(x, listed)
    at = e.operand(x, index, dtype)
    hits = [e.make("eq", "bool", at, e.cast(e.literal(n, array.dtype.name), dtype)) for n in array.ravel().tolist()]
    found = folded(e, "or", hits)
    return e.make("not", "bool", found) if arguments(node, "assume_unique invert", 2).get("invert") else found


def _truths(op: str) -> Function:
    """Whether any are, or all."""

    def element(e: Elements, node: Node, index: Index) -> Element:
        told = arguments(node, "dim keepdim")
        places = together(node, index, told.get("dim"), told.get("keepdim"))
        return e.cast(folded(e, op, [e.operand(node.args[0], p, "bool") for p in places]), dtype_of(node))

    return element


def _count_nonzero(e: Elements, node: Node, index: Index) -> Element:
    places = together(node, index, arguments(node, "dim").get("dim"), False)
    return folded(e, "add", [e.cast(e.operand(node.args[0], p, "bool"), "int64") for p in places])


def _running(e: Elements, node: Node, index: Index) -> Element:
    """Sums of the first few whole numbers: those of floats depend on the order."""
    x, axis, dtype = node.args[0], node.args[1], dtype_of(node)
    if not isinstance(x, Value) or not isinstance(axis, int) or dtype != "int64" or not index:
        raise No("{} of {}", node.op, dtype)
    axis %= len(index)
    step, here = _steps(e, dtype), e.make("at", dtype, index=(index[axis],))
    places = [(*index[:axis], *p[axis : axis + 1], *index[axis + 1 :]) for p in together(node, index, axis, True)]
    parts = [e.operand(x, p, dtype) for p in places]
    return folded(e, "add", [step("where", step("le", n, here), p, 0) for n, p in enumerate(parts)])


def _total(step: Step, parts: Sequence[Element]) -> Element:
    return functools.reduce(lambda a, b: step("add", a, b), parts)


def _squares_from_mean(step: Step, parts: Sequence[Element]) -> tuple[Element, Element]:
    """The mean of few, and the sum of the squares of how far they lie from it."""
    mean = step("div", _total(step, parts), len(parts))
    apart = [step("sub", p, mean) for p in parts]
    return mean, _total(step, [step("mul", a, a) for a in apart])


def _spread(root: bool) -> Function:
    """The variance of few, or its root."""

    def element(e: Elements, node: Node, index: Index) -> Element:
        dtype = dtype_of(node)
        told = arguments(node, "dim unbiased keepdim" if node.op.endswith(".dim") else "dim")
        unbiased = told.get("unbiased", True)
        correction = told.get("correction")
        less = float(unbiased is not False) if correction is None else correction
        places = together(node, index, told.get("dim"), told.get("keepdim"))
        step = _steps(e, wide_of(dtype))
        parts = [e.operand(node.args[0], p, wide_of(dtype)) for p in places]
        # from the first: equal numbers have none, as in torch, where a rounded mean would leave some
        _, squares = _squares_from_mean(step, [step("sub", p, parts[0]) for p in parts])
        found = step("div", squares, max(0.0, len(parts) - less))
        return e.cast(step("sqrt", found) if root else found, dtype)

    return element


def _layer_norm(e: Elements, node: Node, index: Index) -> Element:
    """`recopt::layer_norm` of few columns."""
    x, g, b, eps = node.args[:4]
    beside, dtype = arguments(node, "beside", 4).get("beside"), dtype_of(node)
    step = _steps(e, dtype)

    def at(place: Index) -> Element:
        own = e.operand(x, place, dtype)
        return own if beside is None else step("add", own, e.operand(beside, place, dtype))

    parts = [at(p) for p in together(node, index, len(index) - 1, True)]
    mean, squares = _squares_from_mean(step, parts)
    variance = step("div", squares, len(parts))
    assert isinstance(eps, float)
    y = step("div", step("sub", at(index), mean), step("sqrt", step("add", variance, eps)))
    return step("add", step("mul", y, e.operand(g, index, dtype)), e.operand(b, index, dtype))


def _softmax(e: Elements, node: Node, index: Index) -> Element:
    x, axis, *dtype = node.args
    if any(d not in (None, False) for d in (*dtype, *node.kwargs.values())) or not isinstance(axis, int):
        raise No("{} of another type", node.op)
    step = _steps(e, wide_of(dtype_of(node)))
    parts = [e.operand(x, p, wide_of(dtype_of(node))) for p in together(node, index, axis, True)]
    largest = folded(e, "max", parts)
    total = folded(e, "add", [step("exp", step("sub", p, largest)) for p in parts])
    own = step("exp", step("sub", e.operand(x, index, wide_of(dtype_of(node))), largest))
    return e.cast(step("div", own, total), dtype_of(node))


def _norm(e: Elements, node: Node, index: Index) -> Element:
    dtype, told = dtype_of(node), arguments(node, "ord dim keepdim dtype")
    if told.get("ord", 2) != 2 or told.get("dtype") is not None or dtype not in ("float32", "float64"):
        raise No("{} of another order or type", node.op)
    parts = [e.operand(node.args[0], p) for p in together(node, index, told.get("dim"), told.get("keepdim"))]
    return e.make("sqrt", dtype, folded(e, "add", [e.make("mul", dtype, p, p) for p in parts]))


def _written(e: Elements, node: Node, index: Index) -> tuple[list[Element], list[Index]]:
    """Of a scatter, whether each of few writes to this element, and where those lie."""
    x, axis, ids = node.args[:3]
    if not (isinstance(x, Value) and isinstance(ids, Value) and isinstance(axis, int) and x.shape and ids.shape):
        raise No("{} of no known shape", node.name)
    axis %= len(x.shape)
    few = ids.shape[axis]
    alike = all(a == b for d, (a, b) in enumerate(zip(x.shape, ids.shape, strict=True)) if d != axis)
    if not alike or not isinstance(few, int) or not 0 < few <= MAX_REDUCED:
        raise No("a scatter of {} into {}", ids.shape, x.shape)
    here = e.make("at", "int64", index=(index[axis],))
    places = [(*index[:axis], number(n), *index[axis + 1 :]) for n in range(few)]
    return [e.make("eq", "bool", e.operand(ids, p, "int64"), here) for p in places], places


def _scatter_value(e: Elements, node: Node, index: Index) -> Element:
    hits, _ = _written(e, node, index)
    dtype = dtype_of(node)
    value = e.literal(node.args[3], dtype)
    return e.make("where", dtype, folded(e, "or", hits), value, e.operand(node.args[0], index, dtype))


def _scatter_add(e: Elements, node: Node, index: Index) -> Element:
    hits, places = _written(e, node, index)
    dtype = dtype_of(node)
    if dtype not in ("float32", "float64", "int32", "int64"):
        raise No("{} of {}", node.op, dtype)
    step = _steps(e, dtype)
    parts = [step("where", hit, e.operand(node.args[3], p, dtype), 0) for hit, p in zip(hits, places, strict=True)]
    return folded(e, "add", [e.operand(node.args[0], index, dtype), *parts])


def _einsum(e: Elements, node: Node, index: Index) -> Element:
    """One that sums nothing: the product of two operands, or one operand, at the places that its letters name."""
    equation, operands = node.args[:2]
    assert isinstance(equation, str) and isinstance(operands, Sequence)
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    if not arrow or "." in equation or len(set(output)) < len(output) or not set(inputs) - {","} <= set(output):
        raise No("{} adds up, or does not say what it gives", equation)
    if len(operands) > 2:
        raise No("a product of {}", len(operands))
    place = dict(zip(output, index, strict=True))
    parts = [
        e.operand(x, tuple(place[c] for c in own), dtype_of(node)) for x, own in zip(operands, letters, strict=True)
    ]
    return folded(e, "mul", parts)


def _float_rows() -> dict[str, Function]:
    return {
        "aten.silu.default": _of_floats(lambda s, x: s("div", x, s("add", 1.0, s("exp", s("neg", x))))),
        "aten.softplus.default": _of_floats(_softplus, "beta threshold", 1.0, 20.0),
        "aten.leaky_relu.default": _of_floats(
            lambda s, x, slope: s("where", s("gt", x, 0.0), x, s("mul", x, slope)), "negative_slope", 0.01
        ),
        "aten.threshold.default": _of_floats(
            lambda s, x, limit, value: s("where", s("le", x, limit), value, x), "threshold value", None, None
        ),
        "aten.hardtanh.default": _of_floats(
            lambda s, x, low, high: s("min", s("max", x, low), high), "min_val max_val", -1.0, 1.0
        ),
        "aten.relu6.default": _of_floats(lambda s, x: s("min", s("max", x, 0.0), 6.0)),
        "aten.logit.default": _of_floats(_logit, "eps", None),
        "aten.frac.default": _of_floats(lambda s, x: s("sub", x, s("trunc", x))),
        "aten.round.decimals": _of_floats(_round, "decimals", 0),
    }


POINTWISE: dict[str, Function] = {
    **SINGLE,
    **REDUCTIONS,
    **_float_rows(),
    **named("square.default", _square),
    **named("reciprocal.default", _reciprocal),
    **named("isinf.default", _isinf),
    **named("isfinite.default", _isfinite),
    **named("nan_to_num.default", _nan_to_num),
    **named("__rshift__.Tensor bitwise_right_shift.Tensor", _shifted("shr")),
    **named("__lshift__.Tensor bitwise_left_shift.Tensor", _shifted("shl")),
    **named("isin.Tensor_Tensor", _isin),
    **named("any.default any.dim any.dims", _truths("or")),
    **named("all.default all.dim all.dims", _truths("and")),
    **named("count_nonzero.default count_nonzero.dim_IntList", _count_nonzero),
    **named("cumsum.default", _running),
    **named("var.dim var.correction", _spread(root=False)),
    **named("std.dim std.correction", _spread(root=True)),
    **named("softmax.int _softmax.default", _softmax),
    "recopt.layer_norm.default": _layer_norm,
    **named("linalg_vector_norm.default", _norm),
    **named("scatter.value", _scatter_value),
    **named("scatter_add.default", _scatter_add),
    **named("einsum.default", _einsum),
}
