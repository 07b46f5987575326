"""Pointwise operators of ONNX graphs that stand between layouts: written behind both, where that leaves fewer nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from .. import lower
from ..errors import LowerError
from ..hosts.base import Array, Host, Node, Value
from ..hosts.onnx import OnnxHost
from ..ir import sizes
from ..ir.rules import FLOATS
from ..ir.sizes import Size
from ..layout.moves import Plan, by_nodes, by_time
from ..layout.moves_check import agrees
from ..layout.positions import Elements, Form, NotLayout, form_of, itself, through
from ..layout.shortest import shortest
from ..lower.onnx_columns import POINTWISE, same_anywhere
from ..report import Rewrite
from ..rewrite import Context
from .relayout import Layouts, dead_nodes, find

ROW = 5  # operators of ONNX Runtime that take as long, at the nominal batch, as the row of numbers of one
DEEPEST = 8  # operators one after the other
WIDEST = 16  # operands in all: x + x, taken apart again and again, would be many


@dataclass(frozen=True, eq=False)
class _Moved:
    """An operator on the elements that its operands were moved to."""

    node: Node
    form: Form
    args: tuple[_Arg, ...]
    rows: int  # operands that were single numbers and are several, or stand beside [rows, 1], now


_Arg: TypeAlias = "Elements | _Moved | Array | None"


def move_past_pointwise(host: Host, context: Context, name: str) -> bool:
    """Write pointwise operators behind the layouts around them. True where any is.

    before:  Reshape(Relu(Reshape(x)));  Concat(Relu(a), Relu(b)) of a, b = Split(x);  Slice(Mul(Slice(x), [1, 2, 3]))
    after:   Relu(x);                    Relu(x);                                      Mul(Slice(x), [2, 3])
    """
    if not isinstance(host, OnnxHost) or not any(n.op in POINTWISE for n in host.nodes):
        return False
    found = find(host, context)
    work = _Work(host, context, name, found, set())
    changed = any([work.rewrite(root) for root in reversed(found.roots)])
    return context.settle(host, changed, merged=True)


@dataclass(frozen=True)
class _Work:
    host: OnnxHost
    context: Context
    name: str
    found: Layouts
    gone: set[Node]

    def rewrite(self, root: Value) -> bool:
        """Write one root, by as many operators behind its layouts as leave the fewest nodes."""
        best: tuple[int, _Moved, list[Node]] | None = None
        moved: _Arg = self.found.deep[root]
        if root.node in self.gone:
            return False
        for _ in range(DEEPEST):
            deeper = self.past(moved)
            if deeper is moved or not isinstance(deeper, _Moved):
                break
            moved = deeper
            read = list(_elements(moved))
            if len(read) > WIDEST:
                break
            leaves = [v for e in read for v in e.leaves]
            dead = dead_nodes(self.host, [root], leaves, self.gone)
            saved = len(dead) - self.written(moved)
            if saved > (best[0] if best else 0) and self.is_less(moved, dead):
                best = saved, moved, dead
        if best is None or not self.context.allows(self.name, root.name):
            return False
        self.write(root, *best)
        return True

    def past(self, arg: _Arg) -> _Arg:
        """With one operator more behind the layouts, wherever there is one."""
        if isinstance(arg, _Moved):
            args = tuple(self.past(a) for a in arg.args)
            same = all(a is b for a, b in zip(args, arg.args, strict=True))
            return arg if same else replace(arg, args=args)
        return self.operator(arg) or arg if isinstance(arg, Elements) else arg

    def operator(self, wanted: Elements) -> _Moved | None:
        """What elements of equal pointwise operators are, over those operators' operands."""
        nodes = [value.node for value, _ in wanted.sources]
        first = nodes[0]
        if first is None or (wanted.which < 0).any() or not wanted.form.total:
            return None
        if not all(n is not None and self.is_like(n, first) for n in nodes):
            return None
        some = [n for n in nodes if n is not None]
        args: list[_Arg] = []
        rows = 0
        for operands in zip(*(n.args for n in some), strict=True):
            try:
                args.append(self.operand(wanted, operands))
            except NotLayout:
                return None
            many = isinstance(args[-1], np.ndarray) and args[-1].size > 1
            single = isinstance(args[-1], np.ndarray) and args[-1].size == 1 and first.op != "Clip"
            rows += many and all(v is not None and self.host.constant(v).size == 1 for v in operands)
            rows += (
                single
                and _is_narrow(wanted.form.shape)
                and not any(_is_narrow(v.shape) for n in some for v in n.outputs)
            )
        fits = any(isinstance(a, Elements) for a in args) and (first.op != "Clip" or _are_numbers(args[1:]))
        shapes = [wanted.form.shape, *(value.shape or () for value, _ in wanted.sources)]
        return _Moved(first, wanted.form, tuple(args), rows) if fits and not _loses_zeros(first, args, shapes) else None

    def is_like(self, node: Node, first: Node) -> bool:
        """Whether a node computes what the first does, each element from the element there."""
        if node.op not in POINTWISE or node.opaque or len(node.args) != len(first.args):
            return False
        kinds = [(n.op, n.kwargs, *(a and a.dtype for a in (*n.args, *n.outputs))) for n in (node, first)]
        return kinds[0] == kinds[1] and same_anywhere(self.host, node) and len(node.outputs) == 1

    def operand(self, wanted: Elements, operands: Sequence[Value | None]) -> _Arg:
        """One operand of all of the operators, for the elements wanted. Raises NotLayout."""
        given = [v for v in operands if v is not None]
        if len(given) < len(operands):
            if given:
                raise NotLayout
            return None
        if all(self.host.is_constant(v) for v in given):
            return self.numbers(wanted, [self.host.constant(v) for v in given])
        own: dict[Value, Elements] = {}
        for (result, _), value in zip(wanted.sources, given, strict=True):
            if value.shape != result.shape or self.host.is_constant(value):
                raise NotLayout
            own[result] = self.found.deep.get(value) or itself(value)
        found = through(replace(wanted, dtype=str(given[0].dtype)), own)
        if {v.node for v in found.leaves} & self.gone:
            raise NotLayout
        return found

    def numbers(self, wanted: Elements, held: Sequence[Array]) -> Array:
        """Constant operands at the elements wanted, not repeated along dimensions that they do not depend on."""
        if all(a.size == 1 and a.tobytes() == held[0].tobytes() for a in held):
            return held[0].reshape(())
        out = np.zeros(wanted.form.total, held[0].dtype)
        for n, ((value, _), array) in enumerate(zip(wanted.sources, held, strict=True)):
            counts = form_of(value.shape or ()).counts
            if array.ndim > len(counts):
                raise NotLayout
            at = wanted.which == n
            out[at] = np.broadcast_to(array, counts).reshape(-1)[wanted.where[at]]
        out = out.reshape(wanted.form.counts)
        for dim in range(out.ndim):
            one = out.take([0], dim)
            if np.array_equal(_bits(out), np.broadcast_to(_bits(one), out.shape)):
                out = one
            elif wanted.form.opens[dim] != 1:
                raise NotLayout  # it repeats along a size that is not known
        lead = next((n for n, size in enumerate(out.shape) if size != 1), out.ndim)
        return out.reshape(out.shape[lead:])

    def written(self, arg: _Arg) -> int:
        """The nodes that are written for an argument; many where it is not known how."""
        if isinstance(arg, _Moved):
            slower = ROW * arg.rows if self.context.target == "ort-cpu" else 0
            return 1 + slower + sum(map(self.written, arg.args))
        plan = self.plan(arg) if isinstance(arg, Elements) else None
        if plan is None:
            return 1 << 30 if isinstance(arg, Elements) else 0
        slow = int(self.cost(plan)[0] - plan.nodes)  # gathers like several operators
        try:
            return slow + lower.moves_written(self.host, plan, {})
        except LowerError:
            return 1 << 30

    def cost(self, plan: Plan) -> tuple[float, ...]:
        return (by_time if self.context.target == "ort-cpu" else by_nodes)(plan)

    def plan(self, elements: Elements) -> Plan | None:
        found = shortest(elements, self.cost)
        return found if found is not None and agrees(found, elements) else None

    def is_less(self, moved: _Moved, dead: Sequence[Node]) -> bool:
        """Whether the operators compute no more elements than those that they replace."""
        old = [n for n in dead if n.op in POINTWISE]
        numbers = [sizes.nominal(sizes.product(n.outputs[0].shape or ())) for n in old]
        return _computed(moved) <= sum(numbers)

    def write(self, root: Value, saved: int, moved: _Moved, dead: Sequence[Node]) -> None:
        assert root.node is not None
        with self.host.at(root.node):
            new = self.made(root, moved, root)
        self.host.replace(root, new)
        self.gone.update(dead)
        self.context.report.rewrites.append(
            Rewrite(self.name, "pointwise", root.name, tuple(n.name for n in dead),
                    (new.node.name if new.node else new.name,), 0.0, 0.0, float(saved), None, "behind the layouts")
        )  # fmt: skip

    def made(self, root: Value, moved: _Moved, like: Value | None = None) -> Value:
        args: list[Value | None] = []
        for arg in moved.args:
            if isinstance(arg, _Moved):
                args.append(self.made(root, arg))
            elif isinstance(arg, Elements):
                plan = self.plan(arg)
                assert plan is not None
                args += lower.moves(self.host, [(root, plan, None)], {})
            else:
                args.append(None if arg is None else self.host.share_constant(arg, name=f"{root.name}_number"))
        node, shape = moved.node, moved.form.shape
        dtype = node.outputs[0].dtype
        return self.host.call(node.op, args, node.kwargs, name=root.name, shape=shape, dtype=dtype, like=like)


def _elements(moved: _Moved) -> Iterator[Elements]:
    for arg in moved.args:
        if isinstance(arg, _Moved):
            yield from _elements(arg)
        elif isinstance(arg, Elements):
            yield arg


def _computed(moved: _Moved) -> float:
    """The elements that operators compute."""
    own = sizes.nominal(sizes.product(moved.form.shape))
    return own + sum(_computed(a) for a in moved.args if isinstance(a, _Moved))


def _bits(array: Array) -> Array:
    """Numbers to compare: 0.0 is not -0.0, NaN is NaN."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def _are_numbers(args: Sequence[_Arg]) -> bool:
    return all(a is None or (isinstance(a, np.ndarray) and a.size == 1) for a in args)


def _loses_zeros(node: Node, args: Sequence[_Arg], shapes: Sequence[Sequence[Size]]) -> bool:
    """Whether it may depend on where an element lies, of `shapes` before and after, which zero ONNX Runtime gives."""
    if node.outputs[0].dtype not in FLOATS or node.op not in ("Max", "Min", "Where"):
        return False
    if node.op != "Where":
        return sum(not (isinstance(a, np.ndarray) and a.all()) for a in args) > 1
    held = [a for a in args[1:] if isinstance(a, np.ndarray)]
    narrow = any(tuple(shape[-1:]) in ((), (1,)) for shape in shapes)
    return narrow or any(bool((np.signbit(a) & (a == 0)).any()) for a in held)


def _is_narrow(shape: Sequence[Size] | None) -> bool:
    """Whether it is [.., 1], which ONNX Runtime takes row by row beside a number: 256 of them 2 us, of [rows] 0.3."""
    return shape is not None and len(shape) > 1 and shape[-1] == 1
