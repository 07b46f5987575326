"""Epilogue texts as ONNX nodes: the newest single operator that the opset has, else the shortest spelling.

The language is that of kernels/epilogue.py. Every value carries the product's dtype or is a bool; constants are scalars
of that dtype, stored once.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..errors import LowerError
from ..hosts.base import Value
from ..hosts.types.onnx import element_code, numpy_dtype
from .onnx_writer import Writer

Operand: TypeAlias = Value | float

# functions with an operator of their own: name -> (operator, first opset, attributes)
OPERATORS: dict[str, tuple[str, int, dict[str, object]]] = {
    "neg": ("Neg", 6, {}),
    "abs": ("Abs", 6, {}),
    "exp": ("Exp", 6, {}),
    "log": ("Log", 6, {}),
    "sqrt": ("Sqrt", 6, {}),
    "reciprocal": ("Reciprocal", 6, {}),
    "sigmoid": ("Sigmoid", 6, {}),
    "tanh": ("Tanh", 6, {}),
    "erf": ("Erf", 9, {}),
    "sin": ("Sin", 7, {}),
    "cos": ("Cos", 7, {}),
    "tan": ("Tan", 7, {}),
    "asin": ("Asin", 7, {}),
    "acos": ("Acos", 7, {}),
    "atan": ("Atan", 7, {}),
    "sinh": ("Sinh", 9, {}),
    "cosh": ("Cosh", 9, {}),
    "asinh": ("Asinh", 9, {}),
    "acosh": ("Acosh", 9, {}),
    "atanh": ("Atanh", 9, {}),
    "floor": ("Floor", 6, {}),
    "ceil": ("Ceil", 6, {}),
    "round": ("Round", 11, {}),
    "sign": ("Sign", 9, {}),
    "relu": ("Relu", 6, {}),
    "selu": ("Selu", 6, {}),
    "softsign": ("Softsign", 1, {}),
    "hardsigmoid": ("HardSigmoid", 6, {"alpha": 1 / 6, "beta": 0.5}),
    "gelu": ("Gelu", 20, {}),
    "gelu_tanh": ("Gelu", 20, {"approximate": "tanh"}),
    "mish": ("Mish", 18, {}),
    "hardswish": ("HardSwish", 14, {}),
}

# the others, and those above where the opset is older, in terms of each other
EXPANSIONS: dict[str, tuple[str, tuple[float, ...]]] = {  # name -> (text over h, a, b; defaults of a, b)
    "identity": ("h", ()),
    "gelu": ("0.5 * h * (1.0 + erf(h * 0.7071067811865476))", ()),
    "gelu_tanh": ("0.5 * h * (1.0 + tanh(0.7978845608028654 * (h + 0.044715 * h * h * h)))", ()),
    "mish": ("h * tanh(softplus(h))", ()),
    "hardswish": ("h * hardsigmoid(h)", ()),
    "silu": ("h * sigmoid(h)", ()),
    "relu6": ("clip(h, 0.0, 6.0)", ()),
    "log1p": ("log(h + 1.0)", ()),
    "expm1": ("exp(h) - 1.0", ()),
    "rsqrt": ("reciprocal(sqrt(h))", ()),
    "trunc": ("where(h < 0.0, ceil(h), floor(h))", ()),
    "logsigmoid": ("-softplus(-h)", ()),
    "tanhshrink": ("h - tanh(h)", ()),
    "celu": ("a * elu(h / a, 1.0)", (1.0,)),
    "hardtanh": ("clip(h, a, b)", (-1.0, 1.0)),
    "softshrink": ("h - clip(h, -a, a)", (0.5,)),
    "hardshrink": ("where(logical_or(h > a, h < -a), h, h * 0.0)", (0.5,)),
}

BINARY = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Div: "Div"}
COMPARE = {ast.Lt: "Less", ast.LtE: "LessOrEqual", ast.Gt: "Greater", ast.GtE: "GreaterOrEqual", ast.Eq: "Equal"}
FOLD: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


def parse(text: str) -> ast.expr:
    """`text` as a tree; "" and a function's bare name mean what they mean in kernels/epilogue.py."""
    text = text.strip() or "h"
    if text in OPERATORS or text in EXPANSIONS or text in {"elu", "leaky_relu", "softplus"}:
        text = f"{text}(h)"
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise LowerError(f"epilogue {text!r} is no expression") from error


def named(text: str) -> tuple[str, tuple[float, ...]] | None:
    """The function and the literals of an epilogue that is one call on h: "elu(h, 0.5)" -> ("elu", (0.5,))."""
    match parse(text):
        case ast.Call(func=ast.Name(id=name), args=[ast.Name(id="h"), *rest]):
            scalars = [_literal(tree) for tree in rest]
            return None if None in scalars else (name, tuple(s for s in scalars if s is not None))
    return None


def _literal(tree: ast.expr) -> float | None:
    match tree:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -float(number)
    return None


def emit(host: Writer, text: str, h: Value, params: Sequence[Value], name: str) -> Value:
    """Append the nodes of `text` of `h`. Raises LowerError outside the language."""
    names: dict[str, Operand] = {"h": h, "inf": math.inf, "nan": math.nan}
    names |= {f"p{i}": value for i, value in enumerate(params)}
    emitter = Emitter(host, h, name, names)
    return emitter.tensor(emitter.visit(parse(text)))


@dataclass
class Emitter:
    host: Writer
    like: Value  # of the shape and dtype that the results have
    name: str
    names: dict[str, Operand]

    def visit(self, tree: ast.expr) -> Operand:
        match tree:
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.Name(id=name) if name in self.names:
                return self.names[name]
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.visit(operand)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                value = self.visit(operand)
                return self.op("Neg", self.tensor(value)) if isinstance(value, Value) else -value
            case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
                a, b = self.visit(left), self.visit(right)
                if not isinstance(a, Value) and not isinstance(b, Value):
                    return FOLD[type(op)](a, b)
                return self.op(BINARY[type(op)], self.tensor(a), self.tensor(b))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self.compare(op, self.tensor(self.visit(left)), self.tensor(self.visit(right)))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self.apply(name, [self.visit(argument) for argument in arguments])
        raise LowerError(f"epilogue: {ast.unparse(tree)!r} is not in the language")

    def apply(self, name: str, args: Sequence[Operand]) -> Operand:
        opset = self.host.opset
        if name in OPERATORS and opset >= OPERATORS[name][1] and len(args) == 1:
            op, _, attributes = OPERATORS[name]
            return self.op(op, self.tensor(args[0]), **attributes)
        if name == "silu" and opset >= 24:
            return self.op("Swish", self.tensor(args[0]))
        if name in EXPANSIONS:
            text, defaults = EXPANSIONS[name]
            values = [*args, *defaults[len(args) - 1 :]]
            if len(values) == 1 + len(defaults):
                return self.sub(text, **dict(zip("hab", values, strict=False)))
        elif name in SPECIAL and SPECIAL[name][0] <= len(args) <= SPECIAL[name][1]:
            return SPECIAL[name][2](self, *args)
        raise LowerError(f"epilogue: no function {name!r} of {len(args)} arguments")

    def compare(self, op: ast.cmpop, a: Value, b: Value) -> Value:
        if isinstance(op, ast.NotEq):
            return self.op("Not", self.op("Equal", a, b))
        if isinstance(op, (ast.LtE, ast.GtE)) and self.host.opset < 12:
            strict = "Less" if isinstance(op, ast.LtE) else "Greater"
            return self.op("Or", self.op(strict, a, b), self.op("Equal", a, b))  # Not(a > b) would be true of NaN
        if type(op) not in COMPARE:
            raise LowerError(f"epilogue: no comparison {type(op).__name__}")
        return self.op(COMPARE[type(op)], a, b)

    def sub(self, text: str, **scope: Operand) -> Operand:
        """The nodes of `text` over the names in `scope`."""
        return Emitter(self.host, self.like, self.name, scope).visit(parse(text))

    def op(self, op: str, *args: Value, **attributes: object) -> Value:
        boolean = op in COMPARE.values() or op in {"Not", "And", "Or", "IsNaN"}
        dtype = "bool" if boolean else self.like.dtype
        shape = next((v.shape for v in args if v.shape == self.like.shape), None)
        return self.host.call(op, args, attributes, name=f"{self.name}_{op}", shape=shape, dtype=dtype, like=self.like)

    def tensor(self, value: Operand) -> Value:
        """`value` as a tensor of the product's dtype."""
        if not isinstance(value, Value):
            return self.host.share_constant(np.array(value, numpy_dtype(self.dtype)), name=f"{self.name}_scalar")
        if value.dtype != "bool":
            return value
        to = element_code(self.dtype)
        name = f"{self.name}_Cast"
        shape, like = value.shape, self.like
        return self.host.call("Cast", [value], {"to": to}, name=name, shape=shape, dtype=self.dtype, like=like)

    def condition(self, value: Operand) -> Value:
        """`value` as a bool tensor: whether it is not zero."""
        if isinstance(value, Value) and value.dtype == "bool":
            return value
        return self.op("Not", self.op("Equal", self.tensor(value), self.tensor(0.0)))

    @property
    def dtype(self) -> str:
        return self.like.dtype or "float32"

    def attribute(self, value: Operand) -> float | None:
        """`value` where a float32 attribute holds it as well as the product's dtype does."""
        if isinstance(value, Value) or (self.dtype == "float64" and float(np.float32(value)) != value):
            return None
        return value


def _elu(e: Emitter, h: Operand, a: Operand = 1.0) -> Operand:
    alpha = e.attribute(a)
    if alpha is not None:
        return e.op("Elu", e.tensor(h), alpha=alpha)
    return e.sub("where(h > 0.0, h, a * expm1(h))", h=h, a=a)


def _leaky_relu(e: Emitter, h: Operand, a: Operand = 0.01) -> Operand:
    slope = e.attribute(a)
    return e.op("PRelu", e.tensor(h), e.tensor(a)) if slope is None else e.op("LeakyRelu", e.tensor(h), alpha=slope)


def _softplus(e: Emitter, h: Operand, beta: Operand = 1.0, threshold: Operand = 20.0) -> Operand:
    if beta == 1.0 and isinstance(threshold, float) and threshold >= 20.0:
        return e.op("Softplus", e.tensor(h))  # equals h to the last bit of float32 beyond 20
    smooth = e.sub("softplus(h * b) / b", h=h, b=beta)
    if isinstance(threshold, float) and threshold >= 20.0:
        return smooth
    return e.sub("where(h * b > t, h, s)", h=h, b=beta, t=threshold, s=smooth)


def _clip(e: Emitter, h: Operand, low: Operand, high: Operand) -> Operand:
    if isinstance(low, Value) or isinstance(high, Value):
        return e.op("Min", e.op("Max", e.tensor(h), e.tensor(low)), e.tensor(high))
    bounds = [None if math.isinf(bound) else e.tensor(bound) for bound in (low, high)]
    return e.host.call(
        "Clip", [e.tensor(h), *bounds], name=f"{e.name}_Clip", shape=e.like.shape, dtype=e.dtype, like=e.like
    )


def _mod(e: Emitter, h: Operand, a: Operand) -> Operand:
    """The remainder with the divisor's sign; ONNX has that of C, with the dividend's."""
    if e.host.opset < 10:
        return e.sub("h - a * floor(h / a)", h=h, a=a)
    r = e.op("Mod", e.tensor(h), e.tensor(a), fmod=1)
    return e.sub("where(logical_and(r != 0.0, (r < 0.0) != (a < 0.0)), r + a, r)", r=r, a=a)


# the larger may be zero or infinite; squares of what it scales cannot overflow
_HYPOT = "where(logical_or(m == 0.0, m == inf), m, m * sqrt(h / m * (h / m) + a / m * (a / m)))"
_ATAN2 = (
    f"where(h == 0.0, where(a < 0.0, {math.pi}, 0.0 * a), "
    f"atan(h / a) + where(a < 0.0, where(h < 0.0, -{math.pi}, {math.pi}), 0.0))"
)


def _hypot(e: Emitter, h: Operand, a: Operand) -> Operand:
    return e.sub(_HYPOT, h=h, a=a, m=e.sub("max(abs(h), abs(a))", h=h, a=a), inf=math.inf)


SPECIAL: dict[str, tuple[int, int, Callable[..., Operand]]] = {  # name -> (fewest arguments, most, how)
    "elu": (1, 2, _elu),
    "leaky_relu": (1, 2, _leaky_relu),
    "softplus": (1, 3, _softplus),
    "clip": (3, 3, _clip),
    "prelu": (2, 2, lambda e, h, p: e.op("PRelu", e.tensor(h), e.tensor(p))),
    "pow": (2, 2, lambda e, a, b: e.op("Pow", e.tensor(a), e.tensor(b))),
    "atan2": (2, 2, lambda e, h, a: e.sub(_ATAN2, h=h, a=a)),
    "hypot": (2, 2, _hypot),
    "mod": (2, 2, _mod),
    "floordiv": (2, 2, lambda e, h, a: e.sub("round((h - r) / a)", h=h, a=a, r=_mod(e, h, a))),
    "max": (2, 2, lambda e, a, b: e.op("Max", e.tensor(a), e.tensor(b))),
    "min": (2, 2, lambda e, a, b: e.op("Min", e.tensor(a), e.tensor(b))),
    "where": (3, 3, lambda e, c, a, b: e.op("Where", e.condition(c), e.tensor(a), e.tensor(b))),
    "logical_and": (2, 2, lambda e, a, b: e.op("And", e.condition(a), e.condition(b))),
    "logical_or": (2, 2, lambda e, a, b: e.op("Or", e.condition(a), e.condition(b))),
    "logical_not": (1, 1, lambda e, a: e.op("Not", e.condition(a))),
    "isnan": (1, 1, lambda e, a: e.op("IsNaN", e.tensor(a))),
}


def parameters(text: str) -> int:
    """How many parameters an epilogue names."""
    names = {node.id for node in ast.walk(parse(text)) if isinstance(node, ast.Name)}
    return sum(name[0] == "p" and name[1:].isdecimal() for name in names)
