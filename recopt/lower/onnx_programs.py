"""Id programs (recognise/id_programs.py) as ONNX nodes."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from ..errors import LowerError

INT32, INT64 = 6, 7  # ONNX's numbers of types

# the functions that are one operator each; ONNX rounds quotients of whole numbers towards zero
OPERATORS = {
    "truncdiv": "Div", "mod": "Mod", "abs": "Abs", "max": "Max", "min": "Min", "eq": "Equal",
    "lt": "Less", "le": "LessOrEqual", "logical_and": "And", "logical_or": "Or", "logical_xor": "Xor",
    "logical_not": "Not", "bitwise_and": "BitwiseAnd", "bitwise_or": "BitwiseOr", "bitwise_xor": "BitwiseXor",
}  # fmt: skip


def written(
    text: str, ids: Any, call: Callable[..., Any], number: Callable[[int, Any], Any], made: dict[str, Any]
) -> Any:
    """A program of `ids` as nodes: `call(operator, *operands, **attributes)` appends one, `number(n, like)` gives a
    constant of the type of `like`. `made` is what was computed of the same ids before, which is not made twice. Raises
    LowerError for a function that ONNX does not have of signed numbers."""

    def visit(tree: ast.expr) -> Any:
        key = ast.unparse(tree)
        if key not in made:
            made[key] = build(tree)
        return made[key]

    def operands(trees: list[ast.expr]) -> list[Any]:
        """Numbers are of the type of what stands beside them, else of the ids as they are cast."""
        values = [None if _number(tree) is not None else visit(tree) for tree in trees]
        like = next((v for v in reversed(values) if v is not None), None)
        like = made.get("int64(i)", made.get("int32(i)", ids)) if like is None else like
        return [number(_number(t) or 0, like) if v is None else v for t, v in zip(trees, values, strict=True)]

    def build(tree: ast.expr) -> Any:
        match tree:
            case ast.Name(id="i"):
                return ids
            case ast.BinOp(left=left, op=ast.Add() | ast.Mult() as op, right=right):
                return call("Add" if isinstance(op, ast.Add) else "Mul", *operands([left, right]))
            case ast.Call(func=ast.Name(id="int64" | "int32" as name), args=[arg]):
                return call("Cast", visit(arg), to=INT64 if name == "int64" else INT32)
            case ast.Call(func=ast.Name(id="floordiv"), args=[left, right]):
                x, by = operands([left, right])
                return call("Div", call("Sub", x, call("Mod", x, by)), by)
            case ast.Call(func=ast.Name(id="shift_right"), args=[left, ast.Constant(value=int() as places)]):
                return visit(ast.Call(ast.Name("floordiv"), [left, ast.Constant(1 << places)], []))
            case ast.Call(func=ast.Name(id="min"), args=[inner, high]) if (bounds := _clip(inner, high)) is not None:
                x, low, top = operands(bounds)
                return call("Clip", x, low, top)
            case ast.Call(func=ast.Name(id="where"), args=[test, *args]):
                return call("Where", visit(test), *operands(args))
            case ast.Call(func=ast.Name(id=name), args=args) if name in OPERATORS:
                return call(OPERATORS[name], *operands(args))
        fixed = _number(tree)
        if fixed is not None:
            return number(fixed, ids)
        raise LowerError(f"no ONNX operators for the id program {text}")

    return visit(ast.parse(text, mode="eval").body)


def _number(tree: ast.expr) -> int | None:
    match tree:
        case ast.Constant(value=int() as number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as number)):
            return -number
    return None


def _clip(inner: ast.expr, high: ast.expr) -> list[ast.expr] | None:
    """x, LOW, HIGH of min(max(x, LOW), HIGH), in which either may come first."""
    if _number(inner) is not None:
        inner, high = high, inner
    top = _number(high)
    match inner:
        case ast.Call(func=ast.Name(id="max"), args=[x, low]):
            x, low = (low, x) if _number(x) is not None else (x, low)
            bottom = _number(low)
            if bottom is not None and top is not None and _number(x) is None and bottom <= top:
                return [x, low, high]
    return None
