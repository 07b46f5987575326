"""Which element of which value each element of a value is: what a chain of layout operators does, with the chain gone.

A size that is only known at run time is a factor of its dimension that passes through untouched; everything else is
enumerated, so that a table of positions says the same whatever operators, and however many, stand behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import sympy

from ..hosts.base import Array, Value
from ..ir import sizes
from ..ir.functions import FUNCTIONS
from ..ir.sizes import Size
from ..ir.tensor import Tensor
from ..ir.term import Atom, Axis, Coord, Fn, Guard, Mono, Poly, Read
from ..lift.base import Lifted

MOST = 1 << 16  # elements that are enumerated
ORDINARY = frozenset({"mod", "floordiv", "where", "lt", "le", "gt", "ge", "eq", "ne", "max", "min", "abs"})


CASTS = frozenset({"Cast", "aten.to.dtype", "aten._to_copy.default"})
# What holds every value of a type.
EXACT = {
    "bool": ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"),
    "uint8": ("int16", "int32", "int64", "float16", "float32", "float64"),
    "int8": ("int16", "int32", "int64", "float16", "float32", "float64"),
    "int16": ("int32", "int64", "float32", "float64"),
    "int32": ("int64", "float64"),
    "float16": ("float32", "float64"),
    "bfloat16": ("float32", "float64"),
    "float32": ("float64",),
}


class NotLayout(Exception):
    """A value that is no plain re-reading of others, or not by what its term shows."""


Source = tuple[Value, tuple[int, ...]]  # a value, and which open size of the reader each of its open sizes is


@dataclass(frozen=True)
class Form:
    """A shape as open sizes and numbers: dimension n is `opens[n]` (1 where it is a number) times `counts[n]`, the open
    part outside."""

    opens: tuple[Size, ...]
    counts: tuple[int, ...]

    @property
    def symbolic(self) -> tuple[int, ...]:
        """The dimensions with an open part."""
        return tuple(n for n, size in enumerate(self.opens) if size != 1)

    @property
    def total(self) -> int:
        """The product of all numbers."""
        return math.prod(self.counts)

    @property
    def shape(self) -> tuple[Size, ...]:
        return tuple(sizes.mul(a, b) for a, b in zip(self.opens, self.counts, strict=True))


def form_of(shape: Sequence[Size]) -> Form:
    """The form of a shape."""
    return _form(tuple(shape))


@lru_cache(maxsize=4096)
def _form(shape: tuple[Size, ...]) -> Form:
    opens: list[Size] = []
    counts: list[int] = []
    for size in shape:
        if isinstance(size, int):
            opens.append(1)
            counts.append(size)
        else:
            content = int(sympy.Poly(size).content())
            opens.append(sizes.divide(size, content) or size)
            counts.append(content)
    return Form(tuple(opens), tuple(counts))


@dataclass(frozen=True, eq=False)
class Elements:
    """Element i (row-major over the numbers of `form`) is element `where[i]` of `sources[which[i]]`, along all open
    sizes at once; where `which[i]` is -1 it is the number `fills[where[i]]`."""

    form: Form
    dtype: str
    sources: tuple[Source, ...]
    which: Array
    where: Array
    fills: tuple[float, ...] = ()
    pieces: Array | None = None  # which operand each element came by, of the operator that made the value

    @cached_property
    def single(self) -> bool:
        """Whether all elements are of one source."""
        return len(self.sources) == 1 and not (self.which < 0).any()

    @property
    def leaves(self) -> list[Value]:
        return list(dict.fromkeys(value for value, _ in self.sources))


def itself(value: Value) -> Elements:
    """A value as its own elements. Raises NotLayout for one that is too large, or of no known shape."""
    if value.shape is None or value.dtype is None:
        raise NotLayout
    form = form_of(value.shape)
    if form.total > MOST:
        raise NotLayout
    source = (value, tuple(range(len(form.symbolic))))
    return Elements(form, value.dtype, (source,), np.zeros(form.total, np.int32), np.arange(form.total))


def of_term(lifted: Lifted, t: Tensor, dtype: str) -> Elements:
    """The elements of a term of reads alone. Raises NotLayout for any other."""
    form = form_of(t.shape)
    if form.total > MOST:
        raise NotLayout
    reading = _Reading(lifted, t, form)
    which = np.full(form.total, -2, np.int32)
    where = np.zeros(form.total, np.int64)
    fills: list[float] = []
    sources: list[Source] = []
    for mono in t.body.monos:
        mask, source, position = reading.piece(mono)
        if (which[mask] != -2).any():
            raise NotLayout  # a sum
        if source is None:
            assert isinstance(mono.coef, (int, float))
            fills.append(mono.coef)
            which[mask], where[mask] = -1, len(fills) - 1
            continue
        if source not in sources:
            sources.append(source)
        which[mask] = sources.index(source)
        where[mask] = np.broadcast_to(position, form.counts).reshape(-1)[mask]
    bare = which == -2
    if bare.any():  # nothing is added there
        fills.append(0)
        which[bare], where[bare] = -1, len(fills) - 1
    if not sources:
        raise NotLayout
    return Elements(form, dtype, tuple(sources), which, where, tuple(fills))


class _Reading:
    """Evaluates the indices of a term over its enumerated axes."""

    def __init__(self, lifted: Lifted, t: Tensor, form: Form) -> None:
        self.lifted, self.form = lifted, form
        self.open: dict[Axis, tuple[int, int]] = {}  # an axis of an open size: which one, and the numbers inside it
        self.places: dict[Axis, Array] = {}
        for n, dim in enumerate(t.dims):
            left = form.counts[n]
            for a in dim:
                own = form_of([a.size])
                if own.opens[0] != 1:
                    if a is not dim[0] or own.opens[0] != form.opens[n]:
                        raise NotLayout
                    self.open[a] = (form.symbolic.index(n), own.counts[0])
                count = own.counts[0]
                left = left // count if count else 0
                shape = [1] * len(form.counts)
                shape[n] = form.counts[n]
                grid = np.arange(form.counts[n]) // max(left, 1) % max(count, 1)
                self.places[a] = grid.reshape(shape)

    def piece(self, mono: Mono) -> tuple[Array, Source | None, Array]:
        """Where a summand counts, what it reads, and which element."""
        reads = [a for a in mono.atoms if isinstance(a, Read)]
        guards = [a for a in mono.atoms if isinstance(a, Guard)]
        if mono.axes or len(reads) > 1 or len(reads) + len(guards) != len(mono.atoms):
            raise NotLayout
        mask = np.ones(self.form.counts, bool)
        for atom in guards:
            mask = mask & (self.atom(atom) != 0)
        flat = mask.reshape(-1)
        if not reads:
            if not isinstance(mono.coef, (int, float)):
                raise NotLayout
            return flat, None, np.zeros(1)
        if mono.coef != 1:
            raise NotLayout
        (read,) = reads
        if not isinstance(read.leaf, Value) or read.leaf.shape is None or read.leaf.dtype != read.dtype:
            raise NotLayout
        form = form_of(read.leaf.shape)
        position = np.zeros([1] * len(self.form.counts), np.int64)
        order: list[int] = []
        for index, size, count in zip(read.index, form.opens, form.counts, strict=True):
            which, rest = self.index(index)
            if (which is None) != (size == 1):
                raise NotLayout
            if which is not None:
                number, factor = which
                if factor != count or self.form.opens[self.form.symbolic[number]] != size:
                    raise NotLayout
                order.append(number)
            inside = np.broadcast_to(rest, self.form.counts)[mask]
            if ((inside < 0) | (inside >= count)).any():
                raise NotLayout
            position = position * count + rest
        if sorted(order) != list(range(len(self.form.symbolic))):
            raise NotLayout  # broadcast along an open size
        return flat, (read.leaf, tuple(order)), position

    def index(self, term: Poly) -> tuple[tuple[int, int] | None, Array]:
        """An index as (an open size, its factor) and a number for each enumerated place."""
        found: tuple[int, int] | None = None
        total: Array = np.zeros([1] * len(self.form.counts), np.int64)
        for mono in term.monos:
            if mono.axes or not isinstance(mono.coef, int):
                raise NotLayout
            if len(mono.atoms) == 1 and isinstance(mono.atoms[0], Coord) and mono.atoms[0].axis in self.open:
                if found is not None:
                    raise NotLayout
                number, inner = self.open[mono.atoms[0].axis]
                found = number, mono.coef * inner
            value: Array = np.full([1] * len(self.form.counts), mono.coef, np.int64)
            for atom in mono.atoms:
                value = value * (self.places[atom.axis] if isinstance(atom, Coord) else self.atom(atom))
            total = total + value
        return found, total

    def plain(self, term: Poly) -> Array:
        which, value = self.index(term)
        if which is not None:
            raise NotLayout
        return value

    def atom(self, atom: Atom) -> Array:
        """The numbers of an atom that no open size takes part in."""
        if isinstance(atom, Coord):
            if atom.axis in self.open or atom.axis not in self.places:
                raise NotLayout
            return self.places[atom.axis]
        if isinstance(atom, Guard):
            index = self.plain(atom.index)
            inside: Array = np.ones(index.shape, bool)
            for bound, over in ((atom.lo, True), (atom.hi, False)):
                if bound is None:
                    continue
                if not isinstance(bound, int):
                    raise NotLayout
                inside = inside & (index >= bound if over else index < bound)
            return inside
        if isinstance(atom, Read):
            host = self.lifted.host
            if not isinstance(atom.leaf, Value) or "int" not in atom.dtype:
                raise NotLayout
            if not host.is_constant(atom.leaf):  # computed from sizes, perhaps
                seen = self.lifted.term.get(atom.leaf)
                if seen is None or atom.leaf in seen.body.leaves:
                    raise NotLayout
                return self.plain(seen.at(list(atom.index)))
            array = host.constant(atom.leaf)
            if array.size > MOST:
                raise NotLayout
            index_ = tuple(self.plain(p) for p in atom.index)
            if any(((i < 0) | (i >= s)).any() for i, s in zip(index_, array.shape, strict=True)):
                raise NotLayout
            return np.asarray(array[index_] if index_ else array.reshape([1] * len(self.form.counts))).astype(np.int64)
        if isinstance(atom, Fn):
            args = [self.plain(p) for p in atom.args]
            if atom.name == "cast" and "int" in atom.dtype:
                return args[0]
            if atom.name in ORDINARY and not atom.attrs:
                if atom.name in ("mod", "floordiv") and (args[1] <= 0).any():
                    raise NotLayout
                return np.asarray(FUNCTIONS[atom.name](*args))
        raise NotLayout


def uncast(elements: Elements, dtype: str) -> Elements:
    """Elements of casts that lose nothing, cast back to `dtype`: those of what was cast. Raises NotLayout."""
    sources = []
    for value, order in elements.sources:
        node = value.node
        origin = node.args[0] if node is not None and node.op in CASTS else None
        if not isinstance(origin, Value) or origin.dtype != dtype or origin.shape != value.shape:
            raise NotLayout
        if value.dtype not in EXACT.get(dtype, ()):
            raise NotLayout
        sources.append((origin, order))
    return replace(elements, dtype=dtype, sources=tuple(sources))


def through(local: Elements, known: Mapping[Value, Elements]) -> Elements:
    """`local`, with what is known of its sources in their place."""
    if not any(value in known for value, _ in local.sources):
        return local
    sources: list[Source] = []
    fills = list(local.fills)
    which, where = local.which.copy(), local.where.copy()
    for n, (value, order) in enumerate(local.sources):
        at = np.flatnonzero(local.which == n)
        inner = known.get(value)
        if inner is None:
            which[at] = _place(sources, (value, order))
            continue
        theirs, positions = inner.which[local.where[at]], inner.where[local.where[at]]
        for m, (leaf, own) in enumerate(inner.sources):
            here = at[theirs == m]
            if here.size:
                which[here] = _place(sources, (leaf, tuple(order[i] for i in own)))
                where[here] = positions[theirs == m]
        here = at[theirs == -1]
        if here.size:
            which[here], where[here] = -1, positions[theirs == -1] + len(fills)
            fills += inner.fills
    if not sources:
        raise NotLayout
    return Elements(local.form, local.dtype, tuple(sources), which, where, tuple(fills), local.which)


def _place(sources: list[Source], source: Source) -> int:
    if source not in sources:
        sources.append(source)
    return sources.index(source)
