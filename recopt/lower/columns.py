"""What recopt/columns.py needs of a dialect to write one chain over all columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ..hosts.base import Array, Node, Value
from ..ir.sizes import Size
from ..moves import Plan


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


class Columns(Protocol):
    """Operators of a dialect over columns."""

    most_edges: int
    counting: int  # operators that count edges

    def stacks(self, node: Node) -> bool:
        """Whether a node is pointwise."""

    def spreads(self, node: Node) -> bool:
        """Whether a node makes each element a row of its own: a one-hot."""

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
