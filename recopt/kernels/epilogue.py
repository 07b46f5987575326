"""Epilogues: the text of a pointwise function of a linear's output, compiled to torch and to Triton.

The text is a Python expression over ``h`` (one element of the output before the epilogue), ``p0 .. pm`` (parameters per
output channel, each of shape ``[N]`` or ``[1]``), float literals (``inf`` and ``nan`` too), ``+ - * /``, unary ``-``,
single comparisons and calls of the functions in ``functions.py``. ``""``, ``"h"`` and ``"identity"`` mean none; a
bare function name such as ``"relu"`` means that function of ``h``.
NaN and infinities behave as in torch's own operators: ``max``, ``min``, ``relu`` and ``clip`` propagate NaN.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import linecache
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .functions import FUNCTIONS

_LONG = 4000  # characters of a text in which nothing is looked for that is used again

Apply = Callable[[Tensor, Sequence[Tensor]], Tensor]


class EpilogueError(ValueError):
    """An epilogue's text is outside the language, or its parameters do not fit it."""


_LOGICAL = ("logical_and", "logical_or", "logical_not")
_BINARY: dict[type[ast.operator], tuple[str, str | None]] = {
    ast.Add: ("+", "add_"),
    ast.Sub: ("-", "sub_"),
    ast.Mult: ("*", "mul_"),
    ast.Div: ("/", "div_"),
}
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip


@dataclass(frozen=True)
class _Value:
    """One sub-expression in every form: torch code that keeps ``h``, torch code that may overwrite it, Triton code."""

    pure: str
    inplace: str
    triton: str
    kind: str  # "literal", "param" (broadcast over rows) or "full" (h's shape)
    fresh: bool = False  # nobody else holds the tensor that `inplace` yields
    boolean: bool = False
    value: float | None = None
    flops: int = 0
    factors: tuple[_Value, _Value] | None = None  # whose product it is, the second of h's shape, the first a tensor


@dataclass(frozen=True)
class Epilogue:
    """A compiled epilogue.

    ``params`` is how many parameters the text names, ``flops`` the operations an element costs,
    ``apply(h, params)`` the function in torch, ``apply_(h, params)`` the same where ``h`` may be overwritten.
    ``triton_source`` is the body of a Triton function of ``h`` and ``p0 .. pm``; ``triton_function()`` compiles it.
    """

    text: str
    params: int
    flops: int
    apply: Apply
    apply_: Apply
    triton_source: str

    @property
    def identity(self) -> bool:
        """True where the epilogue returns ``h`` itself."""
        return self.flops == 0 and self.triton_source == "h"

    def check(self, params: Sequence[Tensor], channels: int, space: int = 0) -> None:
        """Raise EpilogueError unless ``params`` are as many as the text names, each of shape [channels] or [1]; or
        [channels, 1..] where h has ``space`` more dimensions after its channels."""
        fits = ((channels, *(1,) * space), (1,))
        if len(params) != self.params:
            raise EpilogueError(f"epilogue {self.text!r} takes {self.params} parameters, got {len(params)}")
        for i, p in enumerate(params):
            if tuple(p.shape) not in fits:
                raise EpilogueError(f"epilogue parameter p{i} has shape {tuple(p.shape)}, need {[*fits[0]]} or [1]")

    def triton_function(self) -> Any:
        """A Triton device function ``(h, operands, strides, n, mask) -> h``: loads the parameters and applies the text.

        ``operands`` is a tuple of pointers, ``strides`` their steps per channel, ``n`` the channels in h's rank.
        """
        return _triton_function(self.text)


def compile_epilogue(text: str) -> Epilogue:
    """Parse and compile an epilogue's text; cached. Raises EpilogueError with the place where the text is wrong."""
    if not isinstance(text, str):
        raise EpilogueError(f"an epilogue is a text, got {type(text).__name__}")
    return _compile(text)


@functools.lru_cache(maxsize=1024)
def _compile(text: str) -> Epilogue:
    parser = _Parser(text)
    value, count = parser.run()
    if value.kind != "full":
        raise EpilogueError(f"epilogue {text!r} does not depend on h")
    if value.boolean:
        raise EpilogueError(f"epilogue {text!r} yields a truth value: write where(..., 1.0, 0.0)")
    pure, inplace = (_torch_function(parser.steps(form), getattr(value, form), text) for form in ("pure", "inplace"))
    return Epilogue(text, count, value.flops, pure, inplace, value.triton)


def _scalar(value: float, h: Tensor) -> Tensor:
    return torch.scalar_tensor(value, dtype=h.dtype)


def _truth(p: Tensor) -> Tensor:
    return p if p.dtype == torch.bool and not p.is_cuda else p != 0.0


def _torch_function(steps: Sequence[str], code: str, text: str) -> Apply:
    namespace: dict[str, Any] = {"inf": math.inf, "nan": math.nan, "f_scalar": _scalar, "f_addcmul": torch.addcmul}
    namespace["f_truth"] = _truth
    for name, fn in FUNCTIONS.items():
        namespace[f"f_{name}"] = fn.torch
        namespace[f"f_{name}_"] = fn.inplace
    source = "\n    ".join(["def body(h, p):", *steps, f"return {code}"])
    exec(compile(source, f"<epilogue {text}>", "exec"), namespace)
    body = namespace["body"]

    def apply(h: Tensor, params: Sequence[Tensor]) -> Tensor:
        out: Tensor = body(h, params)
        # A parameter of a wider dtype widens the result; the operator's dtype is x's.
        return out if out.dtype == h.dtype else out.to(h.dtype)

    return apply


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.params = 0
        self.uses_of_h = 0
        self.uses: dict[str, int] = {}  # of sub-expressions, those inside of equal ones counted once
        self.shared: dict[str, tuple[_Value, str]] = {}  # those used again, in order, and what torch code calls them

    def count(self, node: ast.expr) -> None:
        key = ast.dump(node)
        self.uses[key] = self.uses.get(key, 0) + 1
        if self.uses[key] == 1:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self.count(child)

    def steps(self, form: str) -> list[str]:
        """Lines of torch code that compute what is used again, each once."""
        return [f"{name} = {getattr(value, form)}" for value, name in self.shared.values()]

    def fail(self, why: str, node: ast.AST | None = None) -> EpilogueError:
        at = f" at column {node.col_offset + 1}" if isinstance(node, ast.expr) else ""
        return EpilogueError(f"epilogue {self.text!r}{at}: {why}")

    def run(self) -> tuple[_Value, int]:
        text = self.text.strip()
        if text in ("", "identity", "identity(h)"):
            text = "h"
        elif text in FUNCTIONS:
            text = f"{text}(h)"
        try:
            tree = ast.parse(text, mode="eval")
            self.uses_of_h = sum(isinstance(n, ast.Name) and n.id == "h" for n in ast.walk(tree))
            if len(text) < _LONG:
                self.count(tree.body)
            value = self.expr(tree.body)
            if len(value.triton) > 100_000:
                raise self.fail("the expression is too large")
        except SyntaxError as e:
            raise EpilogueError(f"epilogue {self.text!r} at column {e.offset}: {e.msg}") from None
        except (RecursionError, MemoryError, ValueError) as e:
            if isinstance(e, EpilogueError):
                raise
            raise EpilogueError(f"epilogue of {len(self.text)} characters cannot be parsed: {e}") from None
        return value, self.params

    def literal(self, value: float) -> _Value:
        text = repr(float(value))
        special = f'float("{text}")' if text.lstrip("-") in ("inf", "nan") else text
        return _Value(f"({text})", f"({text})", f"({special})", "literal", value=float(value))

    def expr(self, node: ast.expr) -> _Value:
        key = ast.dump(node) if isinstance(node, (ast.BinOp, ast.Compare, ast.Call)) and self.uses else ""
        if self.uses.get(key, 0) < 2:
            return self.alone(node)
        if key not in self.shared:
            value = self.alone(node)
            if value.value is not None:
                return value
            self.shared[key] = value, f"t{len(self.shared)}"
        value, name = self.shared[key]
        return replace(value, pure=name, inplace=name, fresh=False, factors=None)

    def alone(self, node: ast.expr) -> _Value:
        match node:
            case ast.Constant(value=bool()) | ast.Constant(value=None):
                raise self.fail(f"unknown literal {node.value!r}", node)
            case ast.Constant(value=int() | float() as v):
                return self.literal(v)
            case ast.Name(id=name):
                return self.name(name, node)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.call("neg", [operand], node)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.expr(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return self.binary(type(op), self.number(left), self.number(right), node)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
                return self.compare(_COMPARE[type(op)], self.number(left), self.number(right), node)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self.call(name, args, node)
        raise self.fail(f"{type(node).__name__} is not part of the epilogue language", node)

    def name(self, name: str, node: ast.expr) -> _Value:
        if name == "h":
            return _Value("h", "h", "h", "full", fresh=self.uses_of_h == 1)
        if name in ("inf", "nan"):
            return self.literal(float(name))
        if re.fullmatch(r"p(0|[1-9]\d{0,2})", name):
            self.params = max(self.params, int(name[1:]) + 1)
            return _Value(f"p[{name[1:]}]", f"p[{name[1:]}]", name, "param")
        raise self.fail(f"unknown name {name!r}", node)

    def number(self, node: ast.expr) -> _Value:
        """The value of ``node`` as a float: a truth value counts as 0.0 or 1.0, as in torch."""
        v = self.expr(node)
        if not v.boolean:
            return v
        triton = f"{v.triton}.to(tl.float32)"
        return _Value(f"{v.pure}.to(h.dtype)", f"{v.inplace}.to(h.dtype)", triton, v.kind, True, flops=v.flops)

    def binary(self, op: type[ast.operator], a: _Value, b: _Value, node: ast.expr) -> _Value:
        sign, method = _BINARY[op]
        if a.value is not None and b.value is not None:
            return self.folded(lambda x, y: eval(f"x {sign} y", {"x": x, "y": y}), [a.value, b.value], node)
        kind = "full" if "full" in (a.kind, b.kind) else "param"
        inplace = f"({a.inplace} {sign} {b.inplace})"
        if a.fresh and a.kind == "full":
            inplace = f"{a.inplace}.{method}({b.inplace})"
        elif b.fresh and b.kind == "full" and sign in "+*":
            inplace = f"{b.inplace}.{method}({a.inplace})"
        pure, factors = f"({a.pure} {sign} {b.pure})", None
        product, other = (b, a) if b.factors is not None else (a, b)
        if sign == "+" and product.factors is not None and other.value is None:
            x, y = product.factors
            pure = f"f_addcmul({other.pure}, {x.pure}, {y.pure})"
            method = (
                f"{other.inplace}.addcmul_(" if other.fresh and other.kind == "full" else f"f_addcmul({other.inplace}, "
            )
            inplace = f"{method}{x.inplace}, {y.inplace})"
        elif sign == "*" and a.value is b.value is None and kind == "full":
            factors = (b, a) if b.kind == "param" else (a, b)
        triton = f"({a.triton} {sign} {b.triton})"
        cost = (1 if kind == "full" else 0) + a.flops + b.flops
        return _Value(pure, inplace, triton, kind, kind == "full", flops=cost, factors=factors)

    def compare(self, sign: str, a: _Value, b: _Value, node: ast.expr) -> _Value:
        if a.value is not None and b.value is not None:
            raise self.fail("a comparison of two literals", node)
        kind = "full" if "full" in (a.kind, b.kind) else "param"
        return _Value(
            f"({a.pure} {sign} {b.pure})", f"({a.inplace} {sign} {b.inplace})", f"({a.triton} {sign} {b.triton})",
            kind, kind == "full", True, flops=1 + a.flops + b.flops,
        )  # fmt: skip

    def folded(self, fn: Callable[..., Any], values: list[float], node: ast.expr) -> _Value:
        try:
            out = fn(*(torch.tensor(v, dtype=torch.float64) for v in values))
        except (RuntimeError, TypeError) as e:
            raise self.fail(f"cannot be evaluated: {e}", node) from None
        return self.literal(float(out))

    def call(self, name: str, nodes: list[ast.expr], node: ast.expr) -> _Value:
        fn = FUNCTIONS.get(name)
        if name == "identity" and len(nodes) == 1:
            return self.expr(nodes[0])
        if fn is None:
            raise self.fail(f"unknown function {name!r}", node)
        if not fn.arity - len(fn.defaults) <= len(nodes) <= fn.arity:
            raise self.fail(f"{name} takes {fn.arity} arguments, got {len(nodes)}", node)
        args = [self.argument(name, i, n) for i, n in enumerate(nodes)]
        args += [self.literal(v) for v in fn.defaults[len(nodes) - fn.arity :] if len(args) < fn.arity]
        for a in args[fn.arity - fn.scalars :]:
            if a.value is None:
                raise self.fail(f"{name} takes literals from argument {fn.arity - fn.scalars + 1} on", node)
        variable = [a for a in args if a.value is None]
        if not variable:
            tensors = fn.arity - fn.scalars
            values = [a.value for a in args if a.value is not None]
            return self.folded(lambda *v: fn.torch(*v[:tensors], *map(float, v[tensors:])), values, node)
        if name == "where" and len(variable) == 1:
            # Two Python numbers would give torch's default dtype, whatever h's is.
            args[1] = replace(args[1], pure=f"f_scalar({args[1].value}, h)", inplace=f"f_scalar({args[1].value}, h)")
        if name == "pow" and args[1].value in _POWERS:
            return self.power(args[0], _POWERS[args[1].value])
        kind = "full" if any(a.kind == "full" for a in variable) else "param"
        overwrite = fn.inplace is not None and args[0].fresh and args[0].kind == "full" and not args[0].boolean
        inplace = f"f_{name}{'_' if overwrite else ''}({', '.join(a.inplace for a in args)})"
        return _Value(
            f"f_{name}({', '.join(a.pure for a in args)})", inplace, f"f_{name}({', '.join(a.triton for a in args)})",
            kind, kind == "full", fn.boolean, flops=(fn.flops if kind == "full" else 0) + sum(a.flops for a in args),
        )  # fmt: skip

    def argument(self, name: str, i: int, node: ast.expr) -> _Value:
        if name not in _LOGICAL and (name, i) != ("where", 0):
            return self.number(node)
        v = self.expr(node)
        if v.boolean:
            return v
        if v.value is not None:
            raise self.fail(f"argument {i + 1} of {name} is a literal", node)
        truth = self.compare("!=", v, self.literal(0.0), node)
        if v.kind == "full":
            return truth
        return replace(truth, pure=f"f_truth({v.pure})", inplace=f"f_truth({v.inplace})")  # a mask is one already

    def power(self, base: _Value, name: str) -> _Value:
        cost = base.flops + (1 if base.kind == "full" else 0)
        torch_code = {v: k for k, v in _POWERS.items()}[name]
        pure, inplace = f"f_pow({base.pure}, {torch_code})", f"f_pow({base.inplace}, {torch_code})"
        return _Value(pure, inplace, f"f_{name}({base.triton})", base.kind, base.kind == "full", flops=cost)


# Exponents that Triton computes exactly by products or a root.
_POWERS: dict[float | None, str] = {2.0: "square", 3.0: "cube", 0.5: "sqrt", -1.0: "reciprocal", -0.5: "rsqrt"}


@functools.lru_cache(maxsize=1024)
def _triton_function(text: str) -> Any:
    import triton
    import triton.language as tl

    from . import triton_math

    epilogue = compile_epilogue(text)
    loads = [
        f"    p{i} = tl.load(operands[{i}] + n * strides[{i}], mask=mask, other=0.0).to(tl.float32)\n"
        for i in range(epilogue.params)
    ]
    name = "epilogue_" + hashlib.sha256(text.encode()).hexdigest()[:12]
    source = f"def {name}(h, operands, strides, n, mask):\n{''.join(loads)}    return {epilogue.triton_source}\n"
    filename = f"<recopt {name}>"
    # Triton reads a function's source through inspect, which finds it here; no entry without a time stamp is dropped.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {k: v for k, v in vars(triton_math).items() if k.startswith("f_")}
    namespace |= {"tl": tl, "__name__": __name__}
    exec(compile(source, filename, "exec"), namespace)
    return triton.jit(namespace[name])
