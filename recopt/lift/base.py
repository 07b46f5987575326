"""Lifting: every value of a host graph as a term, by the dialect's table of operators.

A value whose term is only layout, sums and products stays transparent: its users see through it. A value that a
function, a reduction or a lookup computes becomes a leaf for its users, with its own term kept as its definition, so
that terms stay small and the whole is linear in the graph. An operator that no table knows is an opaque leaf.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import sympy

from ..hosts.base import Array, Host, Node, Value
from ..ir import sizes, tensor
from ..ir.normal import substitute
from ..ir.rules import FLOATS
from ..ir.sizes import Size
from ..ir.tensor import ShapeError, Tensor
from ..ir.term import Atom, Axis, Coord, Guard, Interned, Leaf, Mono, Poly, Read, TooLarge, coord, number, walk

MAX_TRANSPARENT = 8  # monomials that users still see through
MAX_SUMMANDS = 3  # of them, tensors that are added up: along a chain of residuals they would pile up for every user
SMALL = 64  # elements of a constant that may be read while lifting (shapes, permutations)

_signature = cache(inspect.signature)


class Opaque(Exception):
    """Raised by a table function that cannot state the meaning of this call; its text says why."""


class Vanished(Opaque):
    """Raised for arithmetic on floats of which no data is left (x * 0, x - x): `result` where x is finite, else NaN."""

    def __init__(self, result: Tensor) -> None:
        super().__init__("a number, but of NaN and infinity")
        self.result = result


def is_negative_zero(value: object) -> bool:
    """Whether a number is -0.0, which terms cannot tell from 0: a choice of it has a sign that 0 has not."""
    return isinstance(value, float) and value == 0 and math.copysign(1.0, value) < 0


def kept(result: Tensor, operands: Iterable[Tensor]) -> Tensor:
    """What arithmetic on floats gives. Raises Vanished."""
    if result.dtype in FLOATS and not result.body.leaves and any(t.body.leaves for t in operands):
        raise Vanished(result)
    return result


@dataclass
class Call:
    """What a table function may ask about the call that it lifts."""

    node: Node
    host: Host
    lifted: Lifted

    @property
    def dtype(self) -> str:
        """The dtype of the first output. Raises Opaque where the host does not know it."""
        dtype = self.node.outputs[0].dtype
        if dtype is None:
            raise Opaque("the output has no known dtype")
        return dtype

    @property
    def shape(self) -> tuple[Size, ...]:
        """The shape of the first output as the host declares it. Raises Opaque where it does not."""
        shape = self.node.outputs[0].shape
        if shape is None:
            raise Opaque("the output has no known shape")
        return shape

    def size(self, arg: object) -> Size:
        """A size argument: an int, or a rank-0 integer tensor whose value is known as a size."""
        if isinstance(arg, (int, sympy.Expr)):
            return arg
        if isinstance(arg, Tensor):
            if len(arg.dims) == 1:
                return self.ints(arg)[0]
            value = self.lifted.known(arg.body)
            if value is not None and not isinstance(value, float):
                return value
        raise Opaque("a size that is computed from data")

    def ints(self, arg: Tensor | Sequence[object]) -> list[Size]:
        """The elements of a rank-1 integer tensor (a shape, axes, ...) or of a list of sizes.
        Raises Opaque where data decides."""
        if not isinstance(arg, Tensor):
            return [self.size(a) for a in arg]
        if len(arg.dims) != 1 or not isinstance(arg.shape[0], int) or arg.shape[0] > SMALL:
            raise Opaque("a shape that is computed from data")
        found = [self.lifted.known(arg.at([number(n)])) for n in range(arg.shape[0])]
        if any(v is None or isinstance(v, float) for v in found):
            raise Opaque("a shape that is computed from data")
        return [v for v in found if v is not None and not isinstance(v, float)]

    def constant(self, arg: Tensor) -> Array | None:
        """The array of a constant operand, else None."""
        atom = arg.body.atom
        if isinstance(atom, Read) and isinstance(atom.leaf, Value) and self.host.is_constant(atom.leaf):
            array = self.host.constant(atom.leaf)
            if (
                tuple(arg.shape) == array.shape
                and tensor.leaf(atom.leaf, array.shape, arg.dtype).canonical() == arg.canonical()
            ):
                return array
        if isinstance(arg.body.number, (int, float)) and all(isinstance(s, int) for s in arg.shape):
            return np.full(arg.shape, arg.body.number)
        return None


@dataclass(frozen=True)
class Items:
    """A sequence of tensors: `parts` in order, each once for every position of its axis where it has one."""

    parts: tuple[tuple[Axis | None, Tensor], ...] = ()


Noted = TypeVar("Noted")
Result: TypeAlias = Tensor | Items | Sequence[Tensor | Items | None]
Table: TypeAlias = Mapping[str, Callable[..., Result]]


class Lifted:
    """The terms of all values of a host graph, or of what `nodes` compute: the rest are leaves then.

    `term[v]` is v as its users see it, `definition[v]` what computes it one level down (the same where transparent),
    `opaque[node]` why a node could not be lifted.
    """

    def __init__(self, host: Host, table: Table, nodes: Collection[Node] | None = None) -> None:
        self.host, self.table = host, table
        self.term: dict[Value, Tensor] = {}
        self.definition: dict[Value, Tensor] = {}
        self.opaque: dict[Node, str] = {}
        self.vanished: dict[Value, Tensor] = {}  # numbers, but of NaN and infinity
        self.items: dict[Value, Items] = {}  # sequences
        self.order: dict[Value, int] = {}
        self.constants: dict[object, bool] = {}  # whether leaves, or sets of them, are constants of the model
        self.notes: dict[Hashable, object] = {}  # what patterns found out about this graph, under keys of their own
        self._local: dict[Node, list[Tensor | Items | None] | None] = {}
        for value in host.inputs:
            self._leaf(value)
        for n, node in enumerate(host.nodes):
            if nodes is None or node in nodes:
                self._node(node)
            for value in node.outputs:
                self.order[value] = n + 1

    # --- building

    def _leaf(self, value: Value, like: Tensor | None = None) -> None:
        if value.dtype is None or (value.shape is None and like is None):
            return
        shape = like.shape if like is not None else value.shape
        assert shape is not None
        leaf = tensor.leaf(value, shape, value.dtype)
        self.term[value] = (tensor.alias(value, like) if like is not None else leaf).canonical()

    def of(self, value: Value) -> Tensor | None:
        """The term of `value`; None where not even its rank is known."""
        if value not in self.term:
            scalar = self._scalar(value) if value.node is None else None
            if scalar is not None:
                self.term[value] = scalar
            else:
                self._leaf(value)
        return self.term.get(value)

    def _scalar(self, value: Value) -> Tensor | None:
        """A constant of one element is its number."""
        if (
            value.shape is None
            or value.dtype is None
            or value.dtype == "string"
            or any(s != 1 for s in value.shape)
            or not self.host.is_constant(value)
        ):
            return None
        element = self.host.constant(value).reshape(-1)[0]
        plain = float(element) if value.dtype in FLOATS else int(element)
        if plain != plain or is_negative_zero(plain):
            return None  # neither is a number to compute with: it stays a read
        return tensor.full(value.shape, plain, value.dtype)

    def _node(self, node: Node) -> None:
        if node.opaque:
            self.opaque[node] = "has a sub-graph, side effects or randomness"
        results: list[Tensor | Items | None] | None = None
        try:
            if not node.opaque or (node.op in self.table and self.host.regions(node)):
                results = self.apply(node, self._operand)
                self.opaque.pop(node, None)
        except TooLarge:  # over its operands as they are, it may be small
            results = self.local_outputs(node)
            if results is None:
                self.opaque[node] = "its term is too large"
        except (Opaque, ShapeError) as why:
            self.opaque[node] = str(why)
            if isinstance(why, Vanished):
                self.vanished[node.outputs[0]] = why.result
        for n, value in enumerate(node.outputs):
            result = results[n] if results is not None and n < len(results) else None
            if isinstance(result, Items):
                self.items[value] = result
                continue
            if value.dtype is None:
                continue
            if result is None or result.dtype != value.dtype:
                if results is not None and result is not None:
                    self.opaque[node] = f"lifted as {result.dtype}, the host says {value.dtype}"
                self._leaf(value)
                continue
            if value.shape is not None and len(value.shape) != len(result.dims):
                self.opaque[node] = f"lifted with rank {len(result.dims)}, the host says {len(value.shape)}"
                self._leaf(value)
                continue
            result = result.canonical()
            self.definition[value] = result
            if self.transparent(value, result):
                self.term[value] = result
            else:
                self._leaf(value, result)

    def apply(self, node: Node, operand: Callable[[Value], Tensor | Items]) -> list[Tensor | Items | None]:
        """The results of a node's table function on operands given by `operand`.
        Raises Opaque, ShapeError, TooLarge."""
        function = self.table.get(node.op)
        if function is None:
            raise Opaque(f"no lift for {node.op}")
        args, kwargs = _mapped((node.args, dict(node.kwargs)), operand)
        call = Call(node, self.host, self)
        try:
            _signature(function).bind(call, *args, **kwargs)
        except TypeError as error:  # of an opset newer than the table
            raise Opaque(f"{node.op} with arguments that its lift does not know: {error}") from None
        result = function(call, *args, **kwargs)
        return [result] if isinstance(result, (Tensor, Items)) else list(result)

    def _operand(self, value: Value) -> Tensor | Items:
        if value in self.items:
            return self.items[value]
        found = self.of(value)
        if found is None:
            raise Opaque(f"{value.name} has no known rank")
        return found

    def transparent(self, value: Value, t: Tensor) -> bool:
        """Whether users should see through `value`: layout, sums and products of plain reads, few of them."""
        if len(t.body.monos) > MAX_TRANSPARENT or len(self._summands(t)) > MAX_SUMMANDS:
            return False
        constant = self.host.is_constant(value)  # computed constants are read as such, once computed
        return all(
            not m.axes and len(m.atoms) <= 6 and all(self._plain(a, constant) for a in m.atoms) for m in t.body.monos
        )

    def _summands(self, t: Tensor) -> set[Leaf]:
        """The data that a sum adds up; pieces that lie beside each other are not added."""
        added = [m for m in t.body.monos if not any(isinstance(a, Guard) for a in m.atoms)]
        return {leaf for m in added for leaf in m.leaves if self._is_data(leaf)}

    def _plain(self, atom: Atom, constant: bool) -> bool:
        """A position, a read that is no lookup, or what constants alone compute, as a normalising factor is."""
        if isinstance(atom, (Coord, Guard)):
            return True
        if isinstance(atom, Read):
            return not any(self._is_data(leaf) for p in atom.index for leaf in p.leaves)
        return not constant and not any(self._is_data(leaf) for leaf in atom.leaves)

    def _is_data(self, leaf: Leaf) -> bool:
        return not (isinstance(leaf, Value) and self.host.is_constant(leaf))

    # --- reading

    def local(self, value: Value) -> Tensor | None:
        """`value` as its node computes it from its own operands, which are leaves here. None for an opaque node."""
        node = value.node
        results = None if node is None or node in self.opaque else self.local_outputs(node)
        found = None if results is None else results[value.index]
        return found if isinstance(found, Tensor) else None

    def local_outputs(self, node: Node) -> list[Tensor | Items | None] | None:
        """All outputs of a node over its own operands. None where even that cannot be stated."""
        if node not in self._local:
            self._local[node] = self._local_outputs(node)
        return self._local[node]

    def _local_outputs(self, node: Node) -> list[Tensor | Items | None] | None:
        known = all(v in self.definition or v in self.items for v in node.outputs)
        if known and node not in self.opaque and not any(self._seen_through(u) for u in node.inputs):
            return [self.items.get(v) or self.definition[v] for v in node.outputs]  # lifted over just these already

        def operand(u: Value) -> Tensor | Items:
            seen = self._operand(u)
            return seen if isinstance(seen, Items) or not seen.body.leaves else tensor.alias(u, seen)

        try:
            return self.apply(node, operand)
        except (Opaque, ShapeError, TooLarge):
            return None

    def _seen_through(self, value: Value) -> bool:
        """Whether users of a value see what it is made of in its place."""
        if value in self.items:
            return False
        seen = self.of(value)
        return seen is None or (bool(seen.body.leaves) and (seen.body.atom is None or value not in seen.body.leaves))

    def known(self, term: Poly) -> Size | float | None:
        """The number that a term of small constants and sizes is, else None."""

        def constant(atom: Atom) -> Poly | None:
            if not (isinstance(atom, Read) and isinstance(atom.leaf, Value) and self.host.is_constant(atom.leaf)):
                return None
            index = [p.number for p in atom.index]
            if not all(isinstance(n, int) for n in index):
                return None
            return number(self.host.constant(atom.leaf)[tuple(index)].item(), atom.dtype)  # type: ignore[arg-type]  # a tuple of ints, as was checked

        value = term.number
        if value is None:
            value = substitute(term, {}, constant).number
        return value if not isinstance(value, bool) else int(value)

    def noted(self, what: Hashable, value: Value, find: Callable[[Value], Noted]) -> Noted:
        """`find(value)`, found once. What `value` is computed from goes first, so that a `find` that asks the same of
        its operands takes no stack frame for each value of a chain of thousands."""
        pending = [value]
        while pending:
            v = pending[-1]
            known = (what, v) in self.notes
            below = [] if known or v.node is None else [u for u in v.node.inputs if (what, u) not in self.notes]
            if below:
                pending += below
                continue
            if not known:
                self.notes[what, v] = find(v)
            pending.pop()
        return cast(Noted, self.notes[what, value])

    @cached_property
    def fed(self) -> frozenset[Value]:
        """Inputs of the graph that serve as weights: of fixed shape, and contracted with data that shares no other axis
        (f(x, w, b) -> x @ w + b), or vectors beside such a one."""
        inputs = [v for v in self.host.inputs if v.shape is not None and all(isinstance(s, int) for s in v.shape)]
        found: set[Value] = set()
        for t in self.definition.values():
            for mono in t.body.monos:
                data = [a for a in mono.atoms if any(self._is_data(leaf) for leaf in a.leaves)]
                if len(data) != 2 or not mono.axes or not all(isinstance(a, Read) for a in mono.atoms):
                    continue
                last = set(t.dims[-1]) if t.dims else set()
                for weight, other in (data, data[::-1]):
                    if not (isinstance(weight, Read) and isinstance(other, Read) and weight.leaf in inputs):
                        continue
                    own = weight.axes_read - set(mono.axes)
                    told_apart = own <= last or other.leaf not in inputs
                    if len(own) <= 1 and told_apart and not own & other.axes_read and other.leaf not in found:
                        found.update(v for v in inputs if v is weight.leaf)
                        break
        vectors = {v for v in inputs if sum(s != 1 for s in v.shape or ()) <= 1} if found else set()
        return frozenset(found | vectors)

    @cached_property
    def by_meaning(self) -> dict[Poly, list[tuple[Value, tuple[Axis, ...]]]]:
        """Values by what one element is, in any order of their dimensions: (value, its free axes in key order)."""
        found: dict[Poly, list[tuple[Value, tuple[Axis, ...]]]] = {}
        for value, t in self.term.items():
            key = closed(t)
            if key is not None:
                found.setdefault(key[0], []).append((value, key[1]))
        return found


def closed(t: Tensor) -> tuple[Poly, tuple[Axis, ...]] | None:
    """`t`'s body with its free axes numbered in reading order, and these axes in that order; None where `t` has axes
    that the body does not read."""
    order = tensor.closed_order(t)
    if len(order) != len(t.axes):
        return None
    renamed = {a: coord(Axis(n, a.size)) for n, a in enumerate(order)}
    return substitute(t.body, renamed), tuple(order)


def _mapped(tree: Any, operand: Callable[[Value], Tensor | Items]) -> Any:
    if isinstance(tree, Value):
        return operand(tree)
    if isinstance(tree, tuple):
        return tuple(_mapped(t, operand) for t in tree)
    if isinstance(tree, list):
        return [_mapped(t, operand) for t in tree]
    if isinstance(tree, dict):
        return {k: _mapped(v, operand) for k, v in tree.items()}
    return tree


def reads(term: Interned) -> list[Read]:
    """Every read in a term."""
    return [t for t in walk(term) if isinstance(t, Read)]


__all__ = ["Call", "Lifted", "Mono", "Opaque", "Result", "Table", "closed", "reads", "sizes"]
