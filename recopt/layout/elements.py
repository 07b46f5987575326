"""One element of a value as a function of elements of others, operator by operator and bit for bit.

Terms (ir/term.py) compute with real numbers; what a bucket, a hash or a cast makes of a number shows every bit of it,
so values are kept as the operators that compute them here. Indices are terms: they are whole numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from ..hosts.base import Array, Node, Value
from ..ir import sizes, tensor
from ..ir.normal import add, read, scale, substitute
from ..ir.ranges import value_range
from ..ir.rules import WIDTH
from ..ir.sizes import Size
from ..ir.tensor import Tensor
from ..ir.term import Atom, Coord, Fn, Guard, Mono, Poly, Read, number, walk
from ..lift.base import Items, Lifted, Opaque
from ..match import No
from .element import Cut, Element, Index, Number, Refine, TooLong, is_negative, is_plain, only_moves, within
from .element_ranges import Range, whole_range
from .positions import EXACT

PACKED = 1 << 16  # elements up to which constants share a tensor with others of their dtype
MAX_ELEMENTS = 20_000  # operators of one element that are looked at
JOINS = frozenset(f"aten.{n}" for n in "cat.default concat.default concatenate.default stack.default".split())


class Elements:
    """The elements of values that `nodes` compute; others are read."""

    def __init__(self, lifted: Lifted, nodes: Collection[Node]) -> None:
        self.lifted, self.host, self.nodes = lifted, lifted.host, frozenset(nodes)
        self.interned: dict[object, Element] = {}
        self.memo: dict[tuple[Value, Index], Element] = {}
        self.layouts: dict[Node, list[Tensor | None]] = {}
        self.packed: dict[str, list[Array]] = {}
        self.offsets: dict[Value, int] = {}
        self.bounds: dict[Element, Range] = {}  # of what is read of constants
        self.ranges: dict[Element, Range] = {}
        self.refused: tuple[No, Node | None] | None = None  # the first refusal, and the node that it is about

    def make(
        self, op: str, dtype: str, *args: Element | Number, source: Value | str | None = None, index: Index = (),
        checked: bool = False,
    ) -> Element:  # fmt: skip
        """The one element of these parts."""
        key = (op, dtype, source, index, checked, *(a if isinstance(a, Element) else (type(a), repr(a)) for a in args))
        found = self.interned.get(key)
        if found is None:
            if len(self.interned) > MAX_ELEMENTS:
                raise TooLong("more than {} operators", MAX_ELEMENTS)
            found = self.interned[key] = Element(op, dtype, args, source, index, checked)
        return found

    def literal(self, value: Number, dtype: str) -> Element:
        """A number. Raises No where an integer type does not hold it."""
        if "float" in dtype:
            return self.make("lit", dtype, float(value))
        if isinstance(value, float) and not value.is_integer():
            raise No("the number {} among {}", value, dtype)
        if dtype != "bool" and not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
            raise No("{} does not fit {}", value, dtype)
        return self.make("lit", dtype, int(value != 0) if dtype == "bool" else int(value))

    def cast(self, x: Element, dtype: str) -> Element:
        """x as another dtype."""
        if x.dtype == dtype:
            return x
        if x.op == "at" and dtype in ("int32", "int64"):
            return self.make("at", dtype, index=x.index)
        inner = x.args[0] if x.op == "cast" else None
        if isinstance(inner, Element) and x.dtype in EXACT.get(inner.dtype, ()) and "float" not in inner.dtype:
            return self.cast(inner, dtype)  # what holds every value on the way there changes none
        return self.make("cast", dtype, x)

    # --- values

    def of(self, value: Value, index: Index) -> Element:
        """The element of `value` at `index`. Raises Cut, Refine, No."""
        key = value, index
        found = self.memo.get(key)
        if found is None:
            try:
                found = self.memo[key] = self._of(value, index)
            except No as why:
                if value.node in self.nodes:
                    self.refused = self.refused or (why, value.node)  # the innermost
                raise
        return found

    def _of(self, value: Value, index: Index) -> Element:
        node = value.node
        if node is None or node not in self.nodes:
            return self._load(value, index)
        from ..lift.aten_composites import POINTWISE

        if node.op in JOINS:
            return self._joined(node, index)
        if node.op in POINTWISE and not value.index:
            return POINTWISE[node.op](self, node, index)
        t = self.layout(node)[value.index]
        if t is None:
            raise No("{} is not understood element by element", node.op)
        return self._piecewise(t.at(index), value)

    def _load(self, value: Value, index: Index) -> Element:
        assert value.shape is not None and value.dtype is not None
        if self.host.is_constant(value) and isinstance(size := sizes.product(value.shape), int) and size <= PACKED:
            return self._constant(value, index)
        inside = all(within(i, s) for i, s in zip(index, value.shape, strict=True))
        return self.make("load", value.dtype, source=value, index=index, checked=not inside)

    def _constant(self, value: Value, index: Index) -> Element:
        """A constant's element: a number where its place is one, else a read of the packed constants."""
        array = self.host.constant(value)
        places = [i.number for i in index]
        if array.size == 1:
            places = [0] * len(index)
        if all(isinstance(p, int) and 0 <= p < s for p, s in zip(places, array.shape, strict=True)):
            at = tuple(int(str(p)) for p in places)
            return self.literal(array[at].item(), str(value.dtype))
        if not all(within(i, s) or self.inside(i, s) for i, s in zip(index, array.shape, strict=True)):
            raise No("{} is read where it may not be", value.name)
        if (
            array.ndim == 1
            and array.dtype.name in ("int32", "int64")
            and len(steps := set(np.diff(array).tolist())) == 1
        ):
            place = add(scale(index[0], steps.pop()), number(array[0].item()))
            return self.make("at", array.dtype.name, index=(place,))
        flat = number(self.pack(value, array))
        stride = 1
        for i, s in zip(reversed(index), reversed(array.shape), strict=True):
            flat, stride = add(flat, scale(i, stride)), stride * s
        found = self.make("load", str(value.dtype), source=str(value.dtype), index=(flat,))
        if array.dtype.kind in "iu":
            self.bounds[found] = int(array.min()), int(array.max())
        return found

    def pack(self, value: Value | None, array: Array) -> int:
        """Where a constant begins among those of its dtype."""
        if value is not None and value in self.offsets:
            return self.offsets[value]
        held = self.packed.setdefault(str(array.dtype), [])
        start = sum(a.size for a in held)
        held.append(np.ascontiguousarray(array).reshape(-1))
        if value is not None:
            self.offsets[value] = start
        return start

    # --- operands

    def operand(self, arg: object, index: Index, dtype: str | None = None) -> Element:
        """An operand, a value that is broadcast or a number, as `dtype`."""
        if isinstance(arg, Value):
            if arg.shape is None or arg.dtype not in WIDTH or arg.scalar:
                raise No("the operand {} is no tensor", arg.name)
            own = index[len(index) - len(arg.shape) :] if arg.shape else ()
            places = tuple(number(0) if s == 1 else i for i, s in zip(own, arg.shape, strict=True))
            found = self.of(arg, places)
            return found if dtype is None else self.cast(found, dtype)
        if not isinstance(arg, (bool, int, float)) or dtype is None:
            raise No("an operand {}", arg)
        # a number among halves is not rounded before it is used
        return self.literal(arg, "float32" if dtype in ("float16", "bfloat16") else dtype)

    # --- layout

    def layout(self, node: Node) -> list[Tensor | None]:
        """The outputs of a node over its operands, where these are only moved."""
        if node not in self.layouts:
            try:
                made = self.lifted.apply(node, self._leaf)
                self.layouts[node] = [t if isinstance(t, Tensor) and only_moves(t.body) else None for t in made]
            except (Opaque, tensor.ShapeError):
                self.layouts[node] = [None] * len(node.outputs)
        return self.layouts[node]

    def _leaf(self, value: Value) -> Tensor | Items:
        if value.scalar or value.shape is None or value.dtype is None or value.dtype not in WIDTH:
            found = self.lifted.of(value)
            if found is None:
                raise Opaque(f"{value.name} is no tensor")
            return found
        return tensor.leaf(value, value.shape, value.dtype)

    def _piecewise(self, body: Poly, value: Value) -> Element:
        """A sum of guarded reads: the one that counts there; 0 where none does."""
        dtype = str(value.dtype)
        if not any(isinstance(a, (Read, Guard)) for m in body.monos for a in m.atoms):
            return self._position(body, dtype)
        result: Element | None = None
        for n, mono in enumerate(body.monos):
            guards = [a for a in mono.atoms if isinstance(a, Guard)]
            rest = [a for a in mono.atoms if not isinstance(a, Guard)]
            for guard in guards:
                self._cut(guard)
            if mono.axes or len(rest) > 1 or (rest and mono.coef != 1):
                raise No("{} is no choice of elements", value.name)
            if rest and isinstance(rest[0], Read) and isinstance(rest[0].leaf, Value):
                found = self.cast(self.of(rest[0].leaf, tuple(map(self.index, rest[0].index))), dtype)
            elif not rest and isinstance(mono.coef, (int, float)):
                found = self.literal(mono.coef, dtype)
            else:
                raise No("{} is no choice of elements", value.name)
            if n == 0 and not guards:
                result = found
                continue
            if not guards:
                raise No("{} adds what it chooses from", value.name)
            condition = self._all_inside(guards)
            otherwise = self.literal(0, dtype) if result is None else result
            result = self.make("where", dtype, condition, found, otherwise)
        return self.literal(0, dtype) if result is None else result

    def _position(self, body: Poly, dtype: str) -> Element:
        """A number, or a place as a value."""
        if isinstance(body.number, (int, float)):
            return self.literal(body.number, dtype)
        if any(isinstance(m.coef, float) for m in body.monos) or not is_plain(body):
            raise No("a range by fractions")
        return self.cast(self.make("at", "int64", index=(body,)), dtype)

    def _all_inside(self, guards: Sequence[Guard]) -> Element:
        parts = []
        for g in guards:
            at = self.as_value(g.index)
            for bound, op in ((g.lo, "ge"), (g.hi, "lt")):
                if bound is not None:
                    limit = self.make("at", "int64", index=(number(bound),))
                    parts.append(self.make(op, "bool", at, limit))
        joined = parts[0]
        for p in parts[1:]:
            joined = self.make("and", "bool", joined, p)
        return joined

    def _cut(self, guard: Guard) -> None:
        """Raise Cut or Refine where the piece can be cut so that the guard is decided."""
        bounds = [b for b in (guard.lo, guard.hi) if isinstance(b, int)]
        if len(bounds) == sum(b is not None for b in (guard.lo, guard.hi)):
            self.cut(guard.index, bounds)

    def cut(self, index: Poly, bounds: Sequence[int]) -> None:
        """Raise Cut or Refine where cutting an axis, or splitting it in two, decides on which side of each bound
        `index` is."""
        shift = index.monos[0].coef if index.monos and not index.monos[0].atoms else 0
        monos = [m for m in index.monos if m.atoms]
        if len(monos) == 1 and len(monos[0].atoms) == 1 and isinstance(shift, int):
            atom, coef = monos[0].atoms[0], monos[0].coef
            if isinstance(atom, Coord) and isinstance(coef, int) and isinstance(atom.axis.size, int):
                if coef > 0:
                    at = [-(-(b - shift) // coef) for b in bounds]
                else:
                    at = [(shift - b) // -coef + 1 for b in bounds]
                if inside := sorted({a for a in at if 0 < a < atom.axis.size}):
                    raise Cut(atom.axis, inside)
        for item in walk(index):
            if not isinstance(item, Fn) or item.name not in ("mod", "floordiv"):
                continue
            place, inner = item.args[0].atom, item.args[1].number
            if not isinstance(place, Coord) or not isinstance(inner, int) or inner < 2:
                continue
            if isinstance(size := place.axis.size, int) and size > inner and size % inner == 0:
                raise Refine(place.axis, inner)

    # --- indices

    def index(self, place: Poly) -> Poly:
        """An index whose reads are elements."""
        if not place.leaves:
            return place
        if place.atom is not None and not isinstance(place.atom, Read):
            return read(self.as_value(place), (), "int64")

        def element(atom: Atom) -> Poly | None:
            if isinstance(atom, Read) and isinstance(atom.leaf, Element):
                return None
            if isinstance(atom, Read) and isinstance(atom.leaf, Value):
                found = self.of(atom.leaf, tuple(map(self.index, atom.index)))
                return self._as_index(found)
            return None

        found = substitute(place, {}, element)
        if not is_plain(found):
            raise No("an index that is computed in a way that is not understood")
        return found

    def _as_index(self, x: Element) -> Poly:
        """An integer element as an index: a number or a place where it is one."""
        if x.op == "lit":
            return number(int(x.args[0]))  # type: ignore[arg-type]  # a number
        if x.op == "at":
            return x.index[0]
        return read(x, (), "int64")

    def as_value(self, place: Poly) -> Element:
        """An index as an int64 value."""
        if is_plain(place):
            return self.make("at", "int64", index=(place,))
        atom = place.atom
        if isinstance(atom, Fn) and atom.name in ("where", "lt", "cast"):
            args = [self.as_value(a) for a in atom.args]
            if atom.name == "where" and is_negative(args[0], args[2]) and self.range(args[2])[0] >= 0:
                return args[2]  # an index that is never negative does not count from the end
            if atom.name == "cast":
                return args[0]
            return self.make(atom.name, "bool" if atom.name == "lt" else "int64", *args)
        if isinstance(atom, Read) and isinstance(atom.leaf, Value):
            return self.cast(self.of(atom.leaf, tuple(map(self.index, atom.index))), "int64")
        total: Element | None = None
        for mono in place.monos:
            part = self._product(mono)
            total = part if total is None else self.make("add", "int64", total, part)
        if total is None or atom is not None:
            raise No("an index that is computed in a way that is not understood")
        return total

    def _product(self, mono: Mono) -> Element:
        if mono.axes or len(mono.atoms) > 1 or not isinstance(mono.coef, int):
            raise No("an index that is computed in a way that is not understood")
        if not mono.atoms:
            return self.literal(mono.coef, "int64")
        from ..ir.term import single

        found = self.as_value(single(mono.atoms[0], "int64"))
        return found if mono.coef == 1 else self.make("mul", "int64", found, self.literal(mono.coef, "int64"))

    def range(self, x: Element) -> Range:
        """The smallest and the largest value that a whole number can be."""
        return whole_range(x, self.bounds, self.ranges)

    def inside(self, index: Poly, size: Size) -> bool:
        """Whether a computed index lies inside."""
        atom = index.atom
        if not isinstance(atom, Read) or not isinstance(atom.leaf, Element):
            return False
        low, high = self.range(atom.leaf)
        return low >= 0 and sizes.at_least(size, high + 1)

    # --- joins

    def _joined(self, node: Node, index: Index) -> Element:
        """An element of a concat or a stack: of the part that it lies in."""
        parts = [v for v in node.args[0] if not (v.shape == (0,) and len(index) > 1)]
        dim = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(index)
        stacked = node.op == "aten.stack.default"
        lengths: list[Size] = [1 if stacked else v.shape[dim] for v in parts]
        if not all(isinstance(n, int) for n in lengths[:-1]):
            raise No("{} joins parts of unknown lengths", node.name)
        starts = [0]
        for n in lengths[:-1]:
            starts.append(starts[-1] + int(n))
        low, high = value_range(index[dim])
        first, last = 0, len(parts) - 1
        if isinstance(low, int):
            first = max(n for n, s in enumerate(starts) if s <= max(low, 0))
        if isinstance(high, int):
            last = max(n for n, s in enumerate(starts) if s <= max(high, 0))
        if first < last:
            self.cut(index[dim], [s for s in starts[first + 1 : last + 1]])
        dtype = str(node.outputs[0].dtype)
        result: Element | None = None
        for n in range(last, first - 1, -1):
            own = list(index)
            own[dim : dim + 1] = [] if stacked else [add(index[dim], number(-starts[n]))]
            if parts[n].shape is not None and not stacked and parts[n].shape[dim] == 0:
                continue
            found = self.cast(self.of(parts[n], tuple(own)), dtype)
            if result is None:
                result = found
                continue
            limit = self.literal(starts[n + 1], "int64")
            result = self.make("where", dtype, self.make("lt", "bool", self.as_value(index[dim]), limit), found, result)
        if result is None:
            raise No("{} joins nothing", node.name)
        return result
