"""`recopt::pointwise` as one Triton kernel: its source written from the program, a branch for each loop.

A program of the grid takes a tile of one loop in a block of rows (positions along a loop's first axis), so that what
is read and written together lies together in time, and few rows still fill many processors. A tile is rows by columns
(the other axes in one), and what depends on the one alone, most of the arithmetic of indices, is computed once for all
of the other: values have the shape [rows or 1, columns or 1].
"""

from __future__ import annotations

import ast
import functools
import hashlib
import linecache
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import HALF, Line, Loop, PointwiseError, Program, bind, evaluate, parse_program, shapes
from .tiling import Tiling, choose, shape_of, tiles

TYPES = {
    "bool": "tl.int1", "uint8": "tl.uint8", "int8": "tl.int8", "int16": "tl.int16", "int32": "tl.int32",
    "int64": "tl.int64", "float16": "tl.float16", "bfloat16": "tl.bfloat16", "float32": "tl.float32",
    "float64": "tl.float64",
}  # fmt: skip
FEW_BOUNDARIES = 32  # that are compared one by one; more are searched by halving
_PLAIN = {
    "add": "({0} + {1})", "sub": "({0} - {1})", "mul": "({0} * {1})", "neg": "(-{0})", "abs": "tl.abs({0})",
    "and": "({0} & {1})", "or": "({0} | {1})", "xor": "({0} ^ {1})", "shl": "({0} << {1})", "shr": "({0} >> {1})",
    "eq": "({0} == {1})", "ne": "({0} != {1})", "lt": "({0} < {1})", "le": "({0} <= {1})", "gt": "({0} > {1})",
    "ge": "({0} >= {1})", "isnan": "({0} != {0})", "where": "tl.where({0}, {1}, {2})",
    "floor": "tl.floor({0})", "ceil": "tl.ceil({0})",
}  # fmt: skip


# --- the source


ROW, COLUMN = frozenset({"row"}), frozenset({"column"})


def _mask(span: frozenset[str]) -> str:
    """Where values of such a span are inside."""
    return f"m{int(span >= ROW)}{int(span >= COLUMN)}"


class _Writer:
    """The lines of one loop's branch."""

    def __init__(self, program: Program, loop: Loop, strided: Sequence[bool], tile: tuple[int, int]) -> None:
        self.program, self.loop, self.strided, self.tile = program, loop, strided, tile
        self.types: dict[str, str] = {}
        self.spans: dict[str, frozenset[str]] = {"i0": ROW, **{f"i{n}": COLUMN for n in range(1, len(loop.axes))}}
        self.lines: list[str] = []

    def add(self, text: str) -> None:
        self.lines.append(" " * 8 + text)

    def index(self, text: str, whole: bool = False) -> str:
        """An index in the kernel's index type, as a value in int64 (`whole`); Python's // and % where it may be
        negative."""
        return text if text.isdigit() else _Index(self.types, whole).visit(ast.parse(text, mode="eval").body)

    def offset(self, source: int, index: Sequence[str]) -> str:
        """Where an element of an input lies."""
        _, sizes = self.program.inputs[source]
        return _flat([self.index(i) for i in index], _strides(f"x{source}", sizes, self.strided[source]))

    def span(self, *texts: object) -> frozenset[str]:
        """Which of rows and columns indices and values depend on."""
        names = [n for text in texts for n in re.findall(r"[it]\d+", str(text))]
        return frozenset().union(*(self.spans[n] for n in names))

    def line(self, line: Line) -> None:
        name, dtype = line.name, line.dtype
        self.types[name] = dtype
        self.spans[name] = self.span(*line.index, *(line.args if line.op != "lit" else ()))
        if line.op == "load":
            self.load(line)
        elif line.op == "bucket":
            self.bucket(line)
        elif line.op == "lit":
            self.add(f"{name} = {_literal(line.args[0], dtype)}")
        elif line.op == "at":
            at = self.index(line.index[0], whole=True)
            self.add(f"{name} = ({at} + tl.zeros([1, 1], tl.int64)).to({TYPES[dtype]})")
        elif line.op == "cast":
            self.add(f"{name} = {self.cast(str(line.args[0]), dtype)}")
        else:
            self.add(f"{name} = {self.call(line)}")

    def load(self, line: Line) -> None:
        own = self.span(*line.index)
        mask = _mask(own)
        if line.checked:
            for i, size in zip(line.index, self.program.inputs[line.source][1], strict=True):
                mask += f" & ({self.index(i)} >= 0) & ({self.index(i)} < {size})"
        zero = "0.0" if "float" in line.dtype else "0"
        place = f"{self.offset(line.source, line.index)} + tl.zeros({self.shape(own)}, INDEX)"
        text = f"tl.load(x{line.source} + {place}, mask={mask}, other={zero})"
        self.add(f"{line.name} = {text}" + (".to(tl.int1)" if line.dtype == "bool" else ""))

    def bucket(self, line: Line) -> None:
        """Boundaries not at or above (right: not above) x."""
        x, count, right = str(line.args[0]), int(line.args[1]), line.args[2]
        wide = f"{x}.to(tl.float32)" if self.types[x] in HALF else x
        above = ">" if right else ">="
        base = self.offset(line.source, line.index)
        step = _strides(f"x{line.source}", ("",), self.strided[line.source])[0]
        name, n = line.name, line.name[1:]
        own = self.span(*line.index)
        first = own if count <= FEW_BOUNDARIES else self.spans[name]
        self.add(f"b{n} = {base} + tl.zeros({self.shape(first)}, INDEX)")
        self.add(f"{name} = tl.zeros({self.shape(self.spans[name])}, tl.int32)")
        if count <= FEW_BOUNDARIES:
            self.add(f"for k{n} in tl.static_range({count}):")
            self.add(f"    c{n} = tl.load(x{line.source} + b{n} + k{n} * {step}, mask={_mask(own)}, other=0)")
            self.add(f"    {name} += tl.where(c{n} {above} {wide}, 0, 1)")
        else:
            self.add(f"h{n} = {name} + {count}")
            self.add(f"for k{n} in range({count.bit_length()}):")
            self.add(f"    m{n} = ({name} + h{n}) // 2")
            self.add(
                f"    c{n} = tl.load(x{line.source} + b{n} + m{n} * {step}, "
                f"mask={_mask(first)} & (m{n} < {count}), other=0)"
            )
            self.add(f"    a{n} = (c{n} {above} {wide}) | ({name} >= h{n})")
            self.add(f"    h{n} = tl.where(a{n}, tl.minimum(m{n}, h{n}), h{n})")
            self.add(f"    {name} = tl.where(a{n}, {name}, m{n} + 1)")
        self.add(f"{name} = {name}.to({TYPES[line.dtype]})")

    def shape(self, span: frozenset[str]) -> str:
        return f"[{self.tile[0] if span >= ROW else 1}, {self.tile[1] if span >= COLUMN else 1}]"

    def cast(self, arg: str, dtype: str) -> str:
        have = self.types[arg]
        if have == dtype:
            return arg
        if dtype == "bool":
            return f"({arg} != 0)"
        if have == "bool":
            return f"{arg}.to(tl.int32).to({TYPES[dtype]})"
        return f"{arg}.to({TYPES[dtype]})"

    def call(self, line: Line) -> str:
        names = [str(a) for a in line.args]
        kinds = [self.types[a] for a in names]
        half = line.dtype in HALF or any(k in HALF for k in kinds)
        kind = kinds[-1]
        args = [f"{a}.to(tl.float32)" if k in HALF else a for a, k in zip(names, kinds, strict=True)]
        if line.op == "where" and half:
            args = names  # moved, not computed
        text = _operator(line.op, "float32" if half else kind, args)
        moved = line.op in ("where", "eq", "ne", "lt", "le", "gt", "ge", "isnan")
        return f"({text}).to({TYPES[line.dtype]})" if not moved or (line.op == "where" and half) else text


class _Index(ast.NodeVisitor):
    """An index as Triton computes it."""

    def __init__(self, types: dict[str, str], whole: bool) -> None:
        self.types, self.whole = types, whole

    def visit_Name(self, node: ast.Name) -> str:
        axis = re.fullmatch(r"i\d+", node.id) is not None
        return f"{node.id}.to(tl.int64)" if node.id in self.types or (axis and self.whole) else node.id

    def visit_Constant(self, node: ast.Constant) -> str:
        return str(node.value)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> str:
        return f"(-{self.visit(node.operand)})"

    def visit_BinOp(self, node: ast.BinOp) -> str:
        a, b = self.visit(node.left), self.visit(node.right)
        signs = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}
        if type(node.op) in signs:
            return f"({a} {signs[type(node.op)]} {b})"
        if isinstance(node.op, ast.Pow) and isinstance(node.right, ast.Constant):
            return "(" + " * ".join([a] * int(str(node.right.value))) + ")"
        if isinstance(node.op, ast.Pow):
            raise PointwiseError("a power that is no number")
        divisor = node.right.value if isinstance(node.right, ast.Constant) else None
        name = "div" if isinstance(node.op, ast.FloorDiv) else "mod"
        if not isinstance(divisor, int) or divisor <= 0:
            return f"floor_{name}({a}, {b})"
        # what is never negative by its form needs no care for signs, and takes half the time
        sign = "//" if name == "div" else "%"
        plain = not any(isinstance(n, (ast.Sub, ast.USub)) or (isinstance(n, ast.Name) and n.id in self.types)
                        for n in ast.walk(node.left))  # fmt: skip
        return f"({a} {sign} {b})" if plain else f"floor_{name}({a}, {b})"


def _operator(op: str, kind: str, args: Sequence[str]) -> str:
    floats = "float" in kind
    if op in _PLAIN:
        return _PLAIN[op].format(*args)
    if op in ("min", "max"):
        return f"tl.{op}imum({args[0]}, {args[1]}" + (", propagate_nan=NAN_TOO)" if floats else ")")
    if op == "not":
        return f"({args[0]} == 0)" if kind == "bool" else f"(~{args[0]})"
    suffix = "" if floats else "_int"
    if op == "div" and kind == "float64":
        return f"({args[0]} / {args[1]})"
    wide = "64" if kind == "float64" else ""
    if op in ("div", "round", "trunc", "sqrt", "rsqrt", "exp", "log", "log1p", "log2", "log10", "expm1", "tanh"):
        return f"p_{op}{wide if op == 'sqrt' else ''}({', '.join(args)})"
    return f"p_{op}{suffix if op in ('floordiv', 'truncdiv', 'rem', 'fmod', 'sign') else ''}({', '.join(args)})"


def _literal(value: float | int | str, dtype: str) -> str:
    if dtype == "bool":
        text = "1" if value else "0"
        return f"tl.full([1, 1], {text}, tl.int1)"
    number = float(value) if "float" in dtype else int(value)
    text = repr(number)
    if text.lstrip("-") in ("inf", "nan"):
        text = f'float("{text}")'
    return f"tl.full([1, 1], {text}, {TYPES[dtype]})"


def _strides(name: str, sizes: Sequence[str], strided: bool) -> list[str]:
    if strided:
        return [f"{name}_{n}" for n in range(len(sizes))]
    return [" * ".join(f"({s})" for s in sizes[n + 1 :]) or "1" for n in range(len(sizes))]


def _flat(index: Sequence[str], strides: Sequence[str]) -> str:
    terms = [i if s == "1" else f"({i}) * ({s})" for i, s in zip(index, strides, strict=True)]
    return "(" + (" + ".join(terms) or "0") + ")"


def _inner(loop: Loop) -> tuple[str, int | None]:
    """The columns of a loop as text, and as a number where they are one."""
    number = math.prod(int(s) for s in loop.axes[1:]) if all(s.isdigit() for s in loop.axes[1:]) else None
    return " * ".join(f"({s})" for s in loop.axes[1:]) or "1" if number is None else str(number), number


def _branch(program: Program, loop: Loop, strided: Sequence[bool], tiling: Tiling) -> list[str]:
    """A loop's tile: its rows, its other axes from the column, its lines, its store."""
    inner, number = _inner(loop)
    rows, columns = shape_of(number, tiling)
    writer = _Writer(program, loop, strided, (rows, columns))
    writer.add(f"row = block * {tiling.rows} + (unit - first) // across * {rows} + tl.arange(0, {rows})[:, None]")
    writer.add(f"rest = (unit - first) % across * {columns} + tl.arange(0, {columns})[None, :]")
    writer.add("m00 = tl.full([1, 1], 1, tl.int1)")
    writer.add(f"m10 = row < {loop.axes[0] if loop.axes else '1'}")
    writer.add(f"m01 = rest < {inner}")
    writer.add("m11 = m10 & m01")
    writer.add("i0 = row.to(INDEX)")
    for n in range(1, len(loop.axes)):
        after = " * ".join(f"({s})" for s in loop.axes[n + 1 :])
        writer.add(f"i{n} = rest // ({after})" if after else f"i{n} = rest")
        if after:
            writer.add(f"rest = rest % ({after})")
    for line in loop.lines:
        writer.line(line)
    _, sizes = program.outputs[loop.out]
    offset = _flat([writer.index(p) for p in loop.place], _strides("", sizes, False))
    whole = writer.shape(ROW | COLUMN)
    writer.add(f"tl.store(y{loop.out} + {offset} + tl.zeros({whole}, INDEX), {loop.result}, mask=m11)")
    return writer.lines


def source(program: Program, strided: Sequence[bool], tiling: Tiling) -> tuple[str, str]:
    """The kernel's name and source."""
    names = [f"x{n}" for n in range(len(program.inputs))] + [f"y{n}" for n in range(len(program.outputs))]
    names += [f"x{n}_{d}" for n, (_, s) in enumerate(program.inputs) if strided[n] for d in range(len(s))]
    names += [*program.symbols, "units", "INDEX: tl.constexpr"]
    body = ["    block = tl.program_id(0) // units", "    unit = tl.program_id(0) % units", "    first = 0"]
    for loop in program.loops:
        inner, number = _inner(loop)
        rows, columns = shape_of(number, tiling)
        body.append(f"    across = ({inner} + {columns - 1}) // {columns}")
        body.append(f"    tiles = {tiling.rows // rows} * across")
        body.append("    if (unit >= first) & (unit < first + tiles):")
        body += _branch(program, loop, strided, tiling)
        body.append("    first += tiles")
    text = "\n".join(body)
    name = "pointwise_" + hashlib.sha256((text + str(names)).encode()).hexdigest()[:12]
    return name, f"def {name}({', '.join(names)}):\n{text}\n"


@functools.lru_cache(maxsize=256)
def _kernel(text: str, strided: tuple[bool, ...], tiling: Tiling) -> Any:
    import triton
    import triton.language as tl

    from . import math as pointwise_math

    name, code = source(parse_program(text), strided, tiling)
    filename = f"<recopt {name}>"
    # Triton reads a function's source through inspect, which finds it here; no entry without a time stamp is dropped.
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {
        k: v for k, v in vars(pointwise_math).items() if k.startswith(("p_", "floor_")) or k == "NAN_TOO"
    }
    namespace |= {"tl": tl, "__name__": __name__}
    exec(compile(code, filename, "exec"), namespace)
    return triton.jit(namespace[name])


# --- the launch

_plans: dict[tuple[Any, ...], Callable[[Sequence[Tensor]], list[Tensor]]] = {}
_MAX_PLANS = 4096


def pointwise_triton(inputs: Sequence[Tensor], text: str, tiling: Tiling | None = None) -> list[Tensor]:
    """`recopt::pointwise` in one launch; none where every output is empty. ``tiling`` forces one.

    The first call at new shapes compiles or binds the kernel; later ones only launch it.
    """
    key = (text, tiling, inputs[0].device, *[(t.shape, t.stride(), t.data_ptr() % 16) for t in inputs])
    plan = _plans.get(key)
    if plan is None:
        if len(_plans) >= _MAX_PLANS:
            _plans.clear()
        plan = _plans[key] = _bind(inputs, text, tiling)
    if inputs[0].is_cuda and inputs[0].device.index != torch.cuda.current_device():
        with torch.cuda.device(inputs[0].device):
            return plan(inputs)
    return plan(inputs)


def _bind(inputs: Sequence[Tensor], text: str, tiling: Tiling | None) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    import triton.language as tl

    program = parse_program(text)
    symbols = bind(program, inputs)
    strided = tuple(not t.is_contiguous() for t in inputs)
    made = [
        (shape, getattr(torch, dtype))
        for shape, (dtype, _) in zip(shapes(program, symbols), program.outputs, strict=True)
    ]
    axes = [[int(evaluate(s, symbols)) for s in loop.axes] for loop in program.loops]
    rows = max([a[0] if a else 1 for a in axes if 0 not in a], default=0)
    widths = [(_inner(loop)[1], math.prod(a[1:])) for loop, a in zip(program.loops, axes, strict=True)]
    tiling = tiling or choose(rows, widths)
    strides = [s for t, apart in zip(inputs, strided, strict=True) if apart for s in t.stride()]
    units = tiles(widths, tiling)
    grid = (-(-rows // tiling.rows) * units, 1, 1)
    kernel = _kernel(text, strided, tiling)
    spans = [sum(n * s for n, s in zip(t.shape, t.stride(), strict=True)) for t in inputs]
    most = max([*spans, *(math.prod(shape) for shape, _ in made), rows + tiling.rows])  # places that are counted
    index = tl.int32 if most < 2**31 else tl.int64
    numbers = [*strides, *(symbols[s] for s in program.symbols), units, index]

    launch = None

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        nonlocal launch
        outputs = [inputs[0].new_empty(shape, dtype=dtype) for shape, dtype in made]
        if launch is not None:
            launch(*[t.data_ptr() for t in (*inputs, *outputs)], *numbers)  # Triton asks the driver about tensors
        elif grid[0]:
            # No fusing of products and sums: what a bucket or a floor makes of them shows every bit.
            compiled = kernel[grid](*inputs, *outputs, *numbers, num_warps=tiling.warps, enable_fp_fusion=False)
            launch = compiled and compiled[grid]  # the interpreter compiles nothing
        return outputs

    return run
