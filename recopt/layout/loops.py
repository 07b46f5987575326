"""Outputs of a region as the loops of a program: cut into pieces that are each one expression; pieces that do the same
up to numbers (200 columns of one chain) are one loop with the numbers in a table."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..hosts.base import Value
from ..ir.normal import add, scale, substitute
from ..ir.term import Axis, Coord, Fn, Mono, Poly, Read, axis, coord, number, walk
from ..kernels.pointwise import Line, Loop
from ..match import No
from .element import Cut, Element, Index, Number, Refine, TooLong, places
from .elements import Elements

MAX_PIECES = 4096


# --- pieces


@dataclass
class Piece:
    """A part of an output: axes in order, where its elements go, what they are."""

    out: int
    axes: list[Axis]
    place: Index
    element: Element


def pieces(elements: Elements, out: int, value: Value) -> list[Piece]:
    """An output cut into parts that are each one expression."""
    index = places(value.shape or ())
    axes = [a.axis for p in index if (a := p.atom) is not None and isinstance(a, Coord)]
    pending, found = [(axes, index)], list[Piece]()
    while pending:
        if len(pending) + len(found) > MAX_PIECES:
            raise TooLong("more than {} pieces", MAX_PIECES)
        axes, index = pending.pop()
        try:
            found.append(Piece(out, axes, index, elements.of(value, index)))
        except Cut as cut:
            n = axes.index(cut.axis)
            bounds = [0, *cut.at, cut.axis.size]
            for lo, hi in reversed(list(itertools.pairwise(bounds))):
                assert isinstance(lo, int) and isinstance(hi, int)
                fresh = _fresh(hi - lo)
                moved = add(coord(fresh), number(lo))
                kept = [fresh] if hi - lo > 1 else []
                pending.append(
                    ([*axes[:n], *kept, *axes[n + 1 :]], tuple(substitute(p, {cut.axis: moved}) for p in index))
                )
        except Refine as cut:
            n = axes.index(cut.axis)
            assert isinstance(cut.axis.size, int)
            outer, inner = _fresh(cut.axis.size // cut.inner), _fresh(cut.inner)
            both = add(scale(coord(outer), cut.inner), coord(inner))
            pending.append(
                ([*axes[:n], outer, inner, *axes[n + 1 :]], tuple(substitute(p, {cut.axis: both}) for p in index))
            )
    return found


def _fresh(size: int) -> Axis:
    """A new axis, of size 1 too."""
    return Axis(axis(2).id, size)


# --- text with holes

HOLE = "#{}#"
AXIS = "@{}@"


@dataclass
class Form:
    """A piece with its numbers taken out: what is equal for pieces that become one loop."""

    piece: Piece
    numbers: list[Number] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)  # of the numbers: a dtype, or "" for part of an index
    lines: list[Line] = field(default_factory=list)
    sources: list[Value | str] = field(default_factory=list)  # of the lines
    place: tuple[str, ...] = ()

    @property
    def key(self) -> object:
        text = (
            self.place,
            *((line, id(s) if isinstance(s, Value) else s) for line, s in zip(self.lines, self.sources, strict=True)),
        )
        return (self.piece.out, tuple(str(a.size) for a in self.piece.axes), text, tuple(self.kinds))


def form_of(piece: Piece) -> Form:
    form = Form(piece)
    names: dict[Element, str] = {}
    axes = {a: AXIS.format(n) for n, a in enumerate(piece.axes)}

    def hole(value: Number, kind: str) -> str:
        form.numbers.append(value)
        form.kinds.append(kind)
        return HOLE.format(len(form.numbers) - 1)

    def needed(e: Element) -> list[Element]:
        inside = [a.leaf for p in e.index for a in walk(p) if isinstance(a, Read) and isinstance(a.leaf, Element)]
        return [*(a for a in e.args if isinstance(a, Element)), *sorted(set(inside), key=lambda x: inside.index(x))]

    def index(p: Poly) -> str:
        return _text(p, axes, names, hole)

    def written(op: str, e: Element, *args: str | Number) -> str:
        where = tuple(index(p) for p in e.index)
        form.lines.append(Line(f"t{len(form.lines)}", e.dtype, op, args, -1, where, e.checked))
        form.sources.append(e.source if e.source is not None else "")
        return form.lines[-1].name

    def operand(a: Element | Number) -> str | Number:
        """A number has a line for each of its uses: where it is used twice, another piece may have two numbers."""
        if not isinstance(a, Element) or a.op != "lit":
            return names[a] if isinstance(a, Element) else a
        (value,) = a.args
        assert not isinstance(value, Element)
        return written("lit", a, hole(value, a.dtype))

    pending: list[tuple[Element, bool]] = [(piece.element, False)]
    while pending:
        e, ready = pending.pop()
        if e in names or (e.op == "lit" and e is not piece.element):
            continue
        if not ready:
            pending.append((e, True))
            pending += [(x, False) for x in reversed(needed(e))]
        elif e.op == "lit":
            names[e] = str(operand(e))
        else:
            names[e] = written(e.op, e, *[operand(a) for a in e.args])
    form.place = tuple(index(p) for p in piece.place)
    return form


def _text(p: Poly, axes: dict[Axis, str], names: dict[Element, str], hole: object) -> str:
    """An index, its constant part a hole."""
    shift: Number = 0
    parts = []
    for m in p.monos:
        if not m.atoms and isinstance(m.coef, int):
            shift = m.coef
            continue
        parts.append(_product(m, axes, names))
    parts.append(hole(shift, ""))  # type: ignore[operator]  # a function
    return " + ".join(parts)


def _product(m: Mono, axes: dict[Axis, str], names: dict[Element, str]) -> str:
    factors = [f"({m.coef})"] if m.coef != 1 or not m.atoms else []
    for atom in m.atoms:
        if isinstance(atom, Coord):
            if atom.axis not in axes:
                raise No("an index over an axis of its own")
            factors.append(axes[atom.axis])
        elif isinstance(atom, Read) and isinstance(atom.leaf, Element):
            factors.append(names[atom.leaf])
        elif isinstance(atom, Fn) and atom.name in ("floordiv", "mod"):
            a, b = (_text(x, axes, names, lambda v, _: str(v)) for x in atom.args)
            factors.append(f"(({a}) {'//' if atom.name == 'floordiv' else '%'} ({b}))" if not b.isdigit() else
                           f"(({a}) {'//' if atom.name == 'floordiv' else '%'} {b})")  # fmt: skip
        else:
            raise No("an index of {}", type(atom).__name__)
    return " * ".join(factors)


# --- loops


def loop_of(elements: Elements, forms: Sequence[Form]) -> tuple[Loop, list[Value | str]]:
    """Pieces that differ in numbers as one loop, over a further axis where they are several; and its lines' sources."""
    first = forms[0]
    several = len(forms) > 1
    sizes_ = [str(a.size).replace(" ", "") for a in first.piece.axes]  # a loop's axes stand apart
    at = min(1, len(sizes_))
    if several:
        sizes_.insert(at, str(len(forms)))
    own = f"i{at}"
    filled: dict[int, str] = {}
    before: list[Line] = []
    sources: list[Value | str] = []
    tables: dict[bytes, str] = {}
    for n, kind in enumerate(first.kinds):
        values = [f.numbers[n] for f in forms]
        if len(set(map(repr, values))) == 1:  # to the bit: of -0.0 and 0.0 and of NaN == says otherwise
            filled[n] = repr(values[0])
            continue
        steps = {int(b) - int(a) for a, b in itertools.pairwise(values)} if kind == "" else set()
        if len(steps) == 1:
            filled[n] = f"({steps.pop()}) * {own} + ({values[0]})"
            continue
        held = np.array(values, dtype="float64" if "float" in kind else "int64")
        key = held.tobytes() + held.dtype.char.encode()
        if key not in tables:
            tables[key] = f"t{len(first.lines) + len(before)}"
            start = elements.pack(None, held)
            before.append(Line(tables[key], held.dtype.name, "load", (), -1, (f"{own} + {start}",)))
            sources.append(held.dtype.name)
        filled[n] = tables[key]

    def fill(text: str) -> str:
        text = re.sub(r"#(\d+)#", lambda m: filled[int(m[1])], text)
        text = re.sub(r"@(\d+)@", lambda m: f"i{int(m[1]) + (several and int(m[1]) >= at)}", text)
        return re.sub(r"^(.*) \+ 0$", r"\1", text)

    lines = list(before)
    literal: dict[tuple[str, str], str] = {}  # those that are written
    names = {line.name: line.name for line in (*before, *first.lines)}
    holes = {line.name: int(str(line.args[0])[1:-1]) for line in first.lines if line.op == "lit"}

    def table(values: list[int]) -> str:
        """The name of a line that reads of integers the one of a piece."""
        start = elements.pack(None, np.array(values, dtype="uint64").view("int64"))
        name = f"t{len(first.lines) + len(lines)}"
        lines.append(Line(name, "int64", "load", (), -1, (f"{own} + {start}",)))
        sources.append("int64")
        return name

    for line, source in zip(first.lines, first.sources, strict=True):
        if line.op != "lit":
            args = tuple(names.get(str(a), a) for a in line.args)
            divisor = holes.get(str(line.args[1])) if line.op == "rem" and line.dtype == "int64" else None
            if divisor is not None and filled[divisor] in tables.values():
                numbers = [int(f.numbers[divisor]) for f in forms]
                if min(numbers) > 1:
                    shifts = [(d - 1).bit_length() - 1 for d in numbers]
                    factors = [(1 << 64 + s) // d + 1 for s, d in zip(shifts, numbers, strict=True)]
                    extra = (table(factors), table(shifts))
                    lines.append(Line(line.name, "int64", "rem_by", (*args, *extra)))
                    sources.append(source)
                    continue
            lines.append(Line(line.name, line.dtype, line.op, args, -1, tuple(map(fill, line.index)), line.checked))
            sources.append(source)
            continue
        n = int(str(line.args[0])[1:-1])
        known = literal.setdefault((line.dtype, filled[n]), line.name)
        names[line.name] = known
        if known != line.name:
            continue
        sources.append(source)
        if filled[n] in tables.values():
            lines.append(Line(line.name, line.dtype, "cast", (filled[n],)))
        else:
            lines.append(Line(line.name, line.dtype, "lit", (first.numbers[n],)))
    loop = Loop(
        first.piece.out, tuple(sizes_), tuple(map(fill, first.place)), tuple(lines), names[first.lines[-1].name]
    )
    return loop, sources
