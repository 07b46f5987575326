"""recopt::pointwise: tensors whose elements are pointwise functions of elements of others, as a program in index
notation.

    pointwise 1
    in x0 float32 s0 13
    in x1 int64 s0 26
    out y0 float32 s0 39
    loop y0 i0<s0 i1<13 [i0, i1]
    t0: float32 = x0[i0, i1]
    t1: float32 = log1p(t0)
    = t1
    loop y0 i0<s0 i1<26 [i0, 13 + i1]
    t0: int64 = x1[i0, i1]
    t1: int64 = lit(1000)
    t2: int64 = rem(t0, t1)
    t3: float32 = cast(t2)
    = t3

A loop gives a part of an output: its axes, where an element goes, and how it is computed, one operator a line. Sizes
are numbers or polynomials in symbols that the shapes of inputs bind. An index is made of axes, symbols, whole numbers,
``+ - * // %`` and values ``t``, which must be integers; ``get(x[..])`` is 0 where an index lies outside. ``at(i)`` is
an index as a value, ``lit(v)`` a number, ``bucket(t, x[start], n, right)`` how many of the n boundaries that begin at
``start`` lie below ``t`` (or at it, where right). Operands of an operator have one type, that of the result where it
is no comparison; half precision is computed in float32 and rounded once an operator. Integers wrap around.
``rem_by(t, n, factor, shift)`` is ``rem(t, n)`` of int64 by n > 1, with what makes the quotient without a division
(math.py).
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

VERSION = "pointwise 1"
HALF = ("float16", "bfloat16")
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", *HALF, "float32", "float64")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "isnan")
_INDEX_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.USub, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Pow,
    ast.Name, ast.Load, ast.Constant,
)  # fmt: skip


class PointwiseError(ValueError):
    """A program outside the language, or operands that do not fit it."""


@dataclass(frozen=True)
class Line:
    """One value of a loop: `op` of `args` (names of values, or for lit a number), of `dtype`; loads and at have an
    `index`, and with it the input `source`; `checked` where it may lie outside. A bucket's `index` is the first
    boundary's."""

    name: str
    dtype: str
    op: str
    args: tuple[str | float | int, ...] = ()
    source: int = -1
    index: tuple[str, ...] = ()
    checked: bool = False

    def __str__(self) -> str:
        read = f"x{self.source}[{', '.join(self.index)}]"
        if self.op == "load":
            text = f"get({read})" if self.checked else read
        elif self.op == "bucket":
            text = f"bucket({self.args[0]}, {read}, {self.args[1]}, {self.args[2]})"
        else:
            text = f"{self.op}({', '.join(map(str, self.args or self.index))})"
        return f"{self.name}: {self.dtype} = {text}"


@dataclass(frozen=True)
class Loop:
    """A part of output `out`: sizes of its axes i0.., where an element goes, its lines, the value."""

    out: int
    axes: tuple[str, ...]
    place: tuple[str, ...]
    lines: tuple[Line, ...]
    result: str

    def __str__(self) -> str:
        axes = " ".join(f"i{n}<{size}" for n, size in enumerate(self.axes))
        head = f"loop y{self.out} {axes} [{', '.join(self.place)}]"
        return "\n".join([head, *map(str, self.lines), f"= {self.result}"])


@dataclass(frozen=True)
class Program:
    """Inputs and outputs as (dtype, sizes), and loops. `str` and `parse_program` are inverse to each other."""

    inputs: tuple[tuple[str, tuple[str, ...]], ...]
    outputs: tuple[tuple[str, tuple[str, ...]], ...]
    loops: tuple[Loop, ...]

    def __str__(self) -> str:
        heads = [f"in x{n} {dtype} {' '.join(sizes)}".rstrip() for n, (dtype, sizes) in enumerate(self.inputs)]
        heads += [f"out y{n} {dtype} {' '.join(sizes)}".rstrip() for n, (dtype, sizes) in enumerate(self.outputs)]
        return "\n".join([VERSION, *heads, *map(str, self.loops)])

    @functools.cached_property
    def symbols(self) -> tuple[str, ...]:
        """The symbols of its sizes, sorted."""
        sizes = [s for _, shape in (*self.inputs, *self.outputs) for s in shape] + [
            s for p in self.loops for s in p.axes
        ]
        return tuple(sorted({w for s in sizes for w in re.findall(r"[A-Za-z_]\w*", s)}))


# --- text


@functools.lru_cache(maxsize=256)
def parse_program(text: str) -> Program:
    """The program of a text. Raises PointwiseError with the line that is wrong."""
    lines = text.split("\n")
    if lines[0].strip() != VERSION:
        raise PointwiseError(f"a program begins with {VERSION!r}, not {lines[0][:40]!r}")
    heads: dict[str, list[tuple[str, tuple[str, ...]]]] = {"in": [], "out": []}
    loops: list[Loop] = []
    at = 1
    while at < len(lines):
        words = lines[at].split()
        try:
            if words and words[0] in heads:
                letter = "x" if words[0] == "in" else "y"
                if words[1] != f"{letter}{len(heads[words[0]])}" or words[2] not in DTYPES:
                    raise PointwiseError("tensors are numbered in order and have a dtype")
                for size in words[3:]:
                    _check_index(size)
                heads[words[0]].append((words[2], tuple(words[3:])))
                at += 1
            elif words and words[0] == "loop":
                end = next(n for n in range(at, len(lines)) if lines[n].startswith("= "))
                loops.append(_loop(lines[at : end + 1]))
                at = end + 1
            elif not words:
                at += 1
            else:
                raise PointwiseError("neither in, out nor loop")
        except (PointwiseError, StopIteration, SyntaxError, IndexError, ValueError, AttributeError) as why:
            raise PointwiseError(f"line {at + 1}, {lines[at][:80]!r}: {why}") from None
    program = Program(tuple(heads["in"]), tuple(heads["out"]), tuple(loops))
    _check(program)
    return program


def _loop(lines: Sequence[str]) -> Loop:
    found = re.fullmatch(r"loop y(\d+)((?: i\d+<\S+)*) \[(.*)\]", lines[0].rstrip())
    if found is None:
        raise PointwiseError("a loop reads: loop y0 i0<size .. [place]")
    axes = tuple(a.partition("<")[2] for a in found[2].split())
    body = tuple(_line(text) for text in lines[1:-1])
    return Loop(int(found[1]), axes, _indices(found[3]), body, lines[-1][2:].strip())


def _indices(text: str) -> tuple[str, ...]:
    parts = tuple(p.strip() for p in text.split(",")) if text.strip() else ()
    for part in parts:
        _check_index(part)
    return parts


@functools.lru_cache(maxsize=4096)
def _check_index(text: str) -> None:
    for node in ast.walk(ast.parse(text, mode="eval")):
        if not isinstance(node, _INDEX_NODES) or (isinstance(node, ast.Constant) and type(node.value) is not int):
            raise PointwiseError(f"{text!r} is no index")


_READ = r"x(\d+)\[(.*)\]"


def _line(text: str) -> Line:
    found = re.fullmatch(r"(t\d+): (\w+) = (.*)", text.strip())
    if found is None or found[2] not in DTYPES:
        raise PointwiseError(f"{text!r} is no value of a known type")
    name, dtype, rest = found.groups()
    if read := re.fullmatch(_READ, rest):
        return Line(name, dtype, "load", (), int(read[1]), _indices(read[2]))
    if read := re.fullmatch(rf"get\({_READ}\)", rest):
        return Line(name, dtype, "load", (), int(read[1]), _indices(read[2]), True)
    if read := re.fullmatch(rf"bucket\((t\d+), {_READ}, (\d+), ([01])\)", rest):
        return Line(name, dtype, "bucket", (read[1], int(read[4]), int(read[5])), int(read[2]), _indices(read[3]))
    if read := re.fullmatch(r"at\((.*)\)", rest):
        return Line(name, dtype, "at", (), -1, _indices(read[1]))
    if read := re.fullmatch(r"lit\((.*)\)", rest):
        return Line(name, dtype, "lit", (_number(read[1]),))
    call = re.fullmatch(r"(\w+)\((.*)\)", rest)
    if call is None or call[1] not in OPERATORS:
        raise PointwiseError(f"{rest!r} is no operator of the language")
    args = tuple(a.strip() for a in call[2].split(","))
    if len(args) != OPERATORS[call[1]][0] or not all(re.fullmatch(r"t\d+", a) for a in args):
        raise PointwiseError(f"{call[1]} takes {OPERATORS[call[1]][0]} values")
    return Line(name, dtype, call[1], args)


def _number(text: str) -> float | int:
    if text in ("True", "False"):
        return int(text == "True")
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)


def _check(program: Program) -> None:
    """Raise PointwiseError for names that nothing defines and types that do not fit."""
    for loop in program.loops:
        known: dict[str, str] = {}
        axes = {f"i{n}" for n in range(len(loop.axes))} | set(program.symbols)
        if not 0 <= loop.out < len(program.outputs) or len(loop.place) != len(program.outputs[loop.out][1]):
            raise PointwiseError(f"a loop over y{loop.out}, which has no such place")
        for line in loop.lines:
            for text in line.index:
                _check_names(text, axes, known)
            if line.op in ("load", "bucket"):
                if not 0 <= line.source < len(program.inputs) or len(line.index) != len(program.inputs[line.source][1]):
                    raise PointwiseError(f"{line}: x{line.source} has no such element")
                if line.op == "load" and line.dtype != program.inputs[line.source][0]:
                    raise PointwiseError(f"{line}: x{line.source} is {program.inputs[line.source][0]}")
            for arg in line.args if line.op != "lit" else ():
                if isinstance(arg, str) and arg not in known:
                    raise PointwiseError(f"{line}: nothing defines {arg}")
            known[line.name] = line.dtype
        _check_names(", ".join(loop.place), axes, known)
        if known.get(loop.result) != program.outputs[loop.out][0]:
            raise PointwiseError(f"y{loop.out} is {program.outputs[loop.out][0]}, {loop.result} is not")


def _check_names(text: str, axes: set[str], known: Mapping[str, str]) -> None:
    for name in re.findall(r"[A-Za-z_]\w*", text):
        if name not in axes and "int" not in known.get(name, ""):
            raise PointwiseError(f"{name} in index {text!r} is no axis, size or integer")


# --- sizes


def bind(program: Program, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """The symbols' values, from the shapes of inputs. Raises PointwiseError for inputs that do not fit."""
    if len(inputs) != len(program.inputs):
        raise PointwiseError(f"{len(inputs)} inputs for a program of {len(program.inputs)}")
    symbols: dict[str, Any] = {}
    for tensor, (dtype, sizes) in zip(inputs, program.inputs, strict=True):
        if tensor.dim() != len(sizes) or tensor.dtype != getattr(torch, dtype):
            raise PointwiseError(f"an input {tensor.dtype} of {tensor.dim()} dimensions for {dtype} {sizes}")
        for size, have in zip(sizes, tensor.shape, strict=True):
            if size.isidentifier():
                symbols.setdefault(size, have)
    for tensor, (_, sizes) in zip(inputs, program.inputs, strict=True):
        for size, have in zip(sizes, tensor.shape, strict=True):
            if not (have == evaluate(size, symbols)):
                raise PointwiseError(f"an input of shape {tuple(tensor.shape)} for {sizes}")
    return symbols


def evaluate(text: str, names: Mapping[str, Any]) -> Any:
    """An index or a size, its names as given."""
    try:
        return eval(_code(text), {"__builtins__": {}}, dict(names))
    except NameError as error:
        raise PointwiseError(f"{text!r}: {error}") from None


@functools.lru_cache(maxsize=16384)
def _code(text: str) -> Any:
    _check_index(text)
    return compile(text, "<index>", "eval")


def shapes(program: Program, symbols: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The outputs' shapes."""
    return [tuple(evaluate(s, symbols) for s in sizes) for _, sizes in program.outputs]


# --- in torch's operators


def _toward_zero(a: Tensor, b: Tensor) -> Tensor:
    """a / b toward zero. Of integers by operators that torch's ONNX exporter does not take through floats."""
    if a.is_floating_point():
        return torch.div(a, b, rounding_mode="trunc")
    quotient = torch.floor_divide(a, b)
    return quotient + ((quotient * b != a) & ((a < 0) != (b < 0)))


def _fmod(a: Tensor, b: Tensor) -> Tensor:
    """What is left of a, with its sign; likewise."""
    if a.is_floating_point():
        return torch.fmod(a, b)
    rest = torch.remainder(a, b)
    return torch.where((rest != 0) & ((a < 0) != (b < 0)), rest - b, rest)


def _bucket(x: Tensor, boundaries: Tensor, right: bool) -> Tensor:
    """How many boundaries (in the last dimension) lie below x, NaN being above all."""
    at = x.unsqueeze(-1)
    return (~(boundaries > at if right else boundaries >= at)).sum(-1)


# name -> (operands, the function of tensors)
OPERATORS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "add": (2, torch.add), "sub": (2, torch.sub), "mul": (2, torch.mul), "div": (2, torch.div),
    "floordiv": (2, torch.floor_divide), "truncdiv": (2, _toward_zero),
    "rem": (2, torch.remainder), "rem_by": (4, lambda a, b, factor, shift: torch.remainder(a, b)),
    "fmod": (2, _fmod), "neg": (1, torch.neg), "abs": (1, torch.abs),
    "min": (2, torch.minimum), "max": (2, torch.maximum), "pow": (2, torch.pow),
    "and": (2, torch.bitwise_and), "or": (2, torch.bitwise_or), "xor": (2, torch.bitwise_xor),
    "not": (1, torch.bitwise_not), "shl": (2, torch.bitwise_left_shift), "shr": (2, torch.bitwise_right_shift),
    "eq": (2, torch.eq), "ne": (2, torch.ne), "lt": (2, torch.lt), "le": (2, torch.le), "gt": (2, torch.gt),
    "ge": (2, torch.ge), "isnan": (1, torch.isnan), "where": (3, torch.where), "cast": (1, lambda a: a),
    "floor": (1, torch.floor), "ceil": (1, torch.ceil), "round": (1, torch.round), "trunc": (1, torch.trunc),
    "sign": (1, torch.sign), "sqrt": (1, torch.sqrt), "rsqrt": (1, torch.rsqrt), "exp": (1, torch.exp),
    "log": (1, torch.log), "log1p": (1, torch.log1p), "log2": (1, torch.log2), "log10": (1, torch.log10),
    "expm1": (1, torch.expm1), "tanh": (1, torch.tanh), "sigmoid": (1, torch.sigmoid), "sin": (1, torch.sin),
    "cos": (1, torch.cos), "erf": (1, torch.erf),
}  # fmt: skip


def pointwise_torch(inputs: Sequence[Tensor], text: str) -> list[Tensor]:
    """`recopt::pointwise` in torch's operators: every load a gather. A reference, and what runs on a CPU."""
    program = parse_program(text)
    symbols = bind(program, inputs)
    device = inputs[0].device
    outputs = [
        torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        for shape, (dtype, _) in zip(shapes(program, symbols), program.outputs, strict=True)
    ]
    for loop in program.loops:
        sizes = [evaluate(size, symbols) for size in loop.axes]
        if 0 in sizes:
            continue
        names: dict[str, Any] = dict(symbols)
        for n, size in enumerate(sizes):
            names[f"i{n}"] = torch.arange(size, device=device).view(-1, *[1] * (len(sizes) - n - 1))
        for line in loop.lines:
            names[line.name] = _value(line, names, inputs, device)
        place = [evaluate(p, names) for p in loop.place]
        value = names[loop.result].expand(sizes)
        if not place:
            outputs[loop.out].copy_(value)
        else:
            outputs[loop.out][tuple(_positions(place, device))] = value
    return outputs


def _positions(index: Sequence[Any], device: torch.device) -> list[Tensor]:
    return [i.long() if isinstance(i, Tensor) else torch.tensor(i, device=device) for i in index]


def _value(line: Line, names: Mapping[str, Any], inputs: Sequence[Tensor], device: torch.device) -> Tensor:
    dtype: torch.dtype = getattr(torch, line.dtype)
    if line.op == "lit":
        return torch.tensor(line.args[0], dtype=dtype, device=device)
    index = _positions([evaluate(i, names) for i in line.index], device)
    if line.op == "at":
        return index[0].to(dtype)
    if line.op == "load":
        source = inputs[line.source]
        if not line.checked:
            return source[tuple(index)] if index else source
        if 0 in source.shape:
            return torch.zeros((), dtype=dtype, device=device)
        inside = torch.ones((), dtype=torch.bool, device=device)
        for i, size in zip(index, source.shape, strict=True):
            inside = inside & (i >= 0) & (i < size)
        held = tuple(i.clamp(0, size - 1) for i, size in zip(index, source.shape, strict=True))
        return torch.where(inside, source[held], torch.zeros((), dtype=dtype, device=device))
    args = [names[str(a)] for a in line.args if isinstance(a, str)]
    if line.op == "bucket":
        offsets = torch.arange(int(line.args[1]), device=device)
        return _bucket(args[0], inputs[line.source][index[0].unsqueeze(-1) + offsets], bool(line.args[2])).to(dtype)
    if line.op != "cast":
        args = [a.float() if a.dtype in (torch.float16, torch.bfloat16) else a for a in args]
    return OPERATORS[line.op][1](*args).to(dtype)


def pointwise_fake(inputs: Sequence[Tensor], text: str) -> list[Tensor]:
    """Empty outputs. Raises PointwiseError for inputs that do not fit."""
    program = parse_program(text)
    symbols = bind(program, inputs)
    return [
        inputs[0].new_empty(shape, dtype=getattr(torch, dtype))
        for shape, (dtype, _) in zip(shapes(program, symbols), program.outputs, strict=True)
    ]


def pointwise(inputs: Sequence[Tensor], text: str) -> list[Tensor]:
    """The outputs of a program: one kernel on a GPU, torch's operators elsewhere, and where gradients are wanted.

    Raises PointwiseError for a text outside the language and for inputs that do not fit it.
    """
    if inputs[0].is_cuda and not (torch.is_grad_enabled() and any(t.requires_grad for t in inputs)):
        from .triton import pointwise_triton

        return pointwise_triton(inputs, text)
    return pointwise_torch(inputs, text)
