"""What recopt/simplify/columns.py needs of a dialect to write one chain over all columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from ..errors import GraphError
from ..hosts.base import Array, Host, Node, Value
from ..ir.sizes import Size
from ..layout.moves import Plan


@dataclass(frozen=True)
class Fixed:
    """An argument that must be the same for all columns, known by `key`."""

    value: object
    key: object


@dataclass(frozen=True)
class Number:
    """A number that may be another one for each column: an element of `dtype` then."""

    value: int | float
    dtype: str


Argument: TypeAlias = Value | Fixed | Number | None


# name of an operator, without its dialect -> which of its operands may change nothing, and the number that does not, of
# whole numbers and of others (-0.0 + 0.0 is 0.0)
NEUTRAL: dict[str, tuple[tuple[int, ...], int | None, float | None]] = {
    "add": ((0, 1), 0, -0.0), "sub": ((1,), 0, 0.0), "mul": ((0, 1), 1, 1.0), "div": ((1,), 1, 1.0),
    "bitwise_or": ((0, 1), 0, None), "bitwise_xor": ((0, 1), 0, None), "bitwiseor": ((0, 1), 0, None),
    "bitwisexor": ((0, 1), 0, None), "__or__": ((0, 1), 0, None), "__xor__": ((0, 1), 0, None),
    "__rshift__": ((1,), 0, None), "bitwise_right_shift": ((1,), 0, None), "pow": ((1,), None, 1.0),
}  # fmt: skip

# names of operators that give back what they made, and of those that undo themselves, to the bit, NaN and -0.0 too
WHOLE = frozenset({"floor", "ceil", "round", "trunc"})  # of floats: each gives back what any of them made
AGAIN = frozenset({"abs", "relu", "sign"})
BACK = frozenset({"not", "logical_not", "bitwise_not", "bitwisenot"})


# names of operators on two conditions -> the condition that leaves the other as it is
CONDITION = {"and": True, "logical_and": True, "or": False, "logical_or": False, "xor": False, "logical_xor": False,
             "equal": True, "eq": True}  # fmt: skip


def neutral(node: Node) -> tuple[tuple[int, ...], int | float] | None:
    """The operands of a node that may leave the other as it is, and the number with which they do, to the bit."""
    name = _name(node)
    out = node.outputs[0].dtype
    if name not in NEUTRAL or out is None or out == "bool" or "complex" in out or node.kwargs:
        return None
    at, whole, other = NEUTRAL[name]
    number = other if "float" in out else whole
    return None if number is None else (at, number)


def unchanged(host: Host, node: Node) -> Value | None:
    """The value that a node gives back as it is: of x + 0 in whole numbers or of what is never -0.0, x * 1, x / 1,
    x ** 1, a choice that is always the same, max(y, 0) of y = max(x, 0), not y of y = not x."""
    if len(node.args) == 1 and not node.kwargs:
        return _repeated(node)
    if (chosen := _chosen(host, node)) is not None:
        return chosen if _alike(chosen, node) else None
    found = (neutral(node) or _condition(node)) if len(node.outputs) == 1 and len(node.args) == 2 else None
    for n in found[0] if found else ():
        x, by = node.args[1 - n], node.args[n]
        if isinstance(by, Value) and host.is_constant(by):
            try:
                by = host.constant(by)
            except GraphError:  # of a type that nothing here computes, or too large
                continue
        elif not isinstance(by, (int, float)) or isinstance(by, bool):
            continue
        if not isinstance(x, Value) or not _alike(x, node) or found is None:
            continue
        if _all(by, found[1]) or (_name(node) == "add" and _all(by, 0.0) and _no_negative_zero(x)):
            return x
    return None


def _condition(node: Node) -> tuple[tuple[int, ...], bool] | None:
    """Likewise of an operator on two conditions."""
    conditions = all(isinstance(a, Value) and a.dtype == "bool" for a in node.args)
    return ((0, 1), CONDITION[_name(node)]) if conditions and _name(node) in CONDITION else None


def _name(node: Node) -> str:
    """An operator's name, without its dialect."""
    return node.op.split(".")[1] if "." in node.op else node.op.lower()


def _repeated(node: Node) -> Value | None:
    """What a function of one operand gives back, as what made the operand is such a function."""
    x, name = node.args[0], _name(node)
    while isinstance(x, Value) and x.node is not None and x.node.op == "Cast" and x.node.args[0].dtype == x.dtype:
        x = x.node.args[0]
    before = x.node if isinstance(x, Value) else None
    if before is None or before.opaque or len(before.args) != 1 or before.kwargs:
        return None
    if name in BACK and _name(before) == name:
        start = before.args[0]
        return start if isinstance(start, Value) and _alike(start, node) else None
    again = _name(before) in WHOLE if name in WHOLE else name in AGAIN and _name(before) == name
    return x if again and _alike(x, node) else None


def _alike(x: Value, node: Node) -> bool:
    """Whether a node's result has the shape and type of x."""
    return x.shape is not None and (x.shape, x.dtype) == (node.outputs[0].shape, node.outputs[0].dtype)


def _no_negative_zero(x: Value) -> bool:
    """Whether no zero among x can be -0.0, by the operator that makes it."""
    node = x.node
    if node is None or node.opaque:
        return False
    if node.op == "Cast":
        return "int" in str(node.args[0].dtype) or node.args[0].dtype == "bool"
    return _name(node) in ("abs", "exp", "softmax")


def _chosen(host: Host, node: Node) -> Value | None:
    """What a choice by a constant takes everywhere."""
    name = _name(node)
    if name not in ("where", "masked_fill") or len(node.args) != 3:
        return None
    x, condition, y = node.args if name == "masked_fill" else (node.args[2], node.args[0], node.args[1])
    if not isinstance(condition, Value) or not host.is_constant(condition):
        return None
    held = host.constant(condition)
    if held.dtype != bool or held.size == 0 or held.any() != held.all():
        return None
    taken = y if held.any() else x
    return taken if isinstance(taken, Value) else None


def _all(numbers: Array | int | float, number: int | float) -> bool:
    held = np.asarray(numbers)
    return bool((held == number).all()) and bool((np.signbit(held) == np.signbit(number)).all())


class Columns(Protocol):
    """Operators of a dialect over columns."""

    most_edges: int
    counting: int  # operators that count edges

    def stacks(self, node: Node) -> bool:
        """Whether a node is pointwise."""

    def spreads(self, node: Node) -> bool:
        """Whether a node makes each element a row of its own: a one-hot."""

    def filled(self, value: Value) -> Array | None:
        """The number that a tensor of any size holds everywhere; None of another tensor."""

    def counts_edges(self, node: Node) -> tuple[Value, Array, bool] | None:
        """x, the edges and whether x at one exceeds it, of an operator that counts them, NaN being above all."""

    def arguments(self, node: Node) -> list[Argument]:
        """Its arguments; none at all where they do not fit columns."""

    def sum_axes(self, node: Node) -> tuple[list[int], bool] | None:
        """The dimensions that a sum adds up, and whether they stay."""

    def constant(self, array: Array, name: str) -> Value: ...

    def call(self, node: Node, args: Sequence[object], shape: tuple[Size, ...], name: str) -> Value:
        """The operator of `node` on other arguments. Raises LowerError."""

    def gathered(self, plan: Plan, name: str) -> Value:
        """Raises LowerError."""

    def summed(self, node: Node, data: Value, name: str) -> Value:
        """The sum of `node` over the last dimension of [rows, columns, lanes]. Raises LowerError."""

    def can_count(self, right: bool, nan_above: bool) -> bool:
        """Whether `counted` can be written."""

    def counted(self, x: Value, edges: Sequence[Array], right: bool, nan_above: bool, dtype: str, name: str) -> Value:
        """How many of its own sorted edges each element of x [rows, columns] exceeds, or reaches where `right`; all of
        them for NaN where `nan_above`, else none. Raises LowerError."""
