"""Layout operators as data: the moves of a plan, what shape each makes, and what a plan costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..fused import Permute, Reshape
from ..hosts.base import Array, Value
from ..ir import sizes
from ..ir.sizes import Size

MANY = 64  # single numbers of a row that a gather copies
SLOW = 8  # operators that such a gather costs as much as: 2.3 ms of 3.4 for 65 000 numbers, profiled
SINGLE = 500  # single numbers that a gather copies in the time of an operator of ONNX Runtime: 2.4 ns each


@dataclass(frozen=True)
class Cut:
    """start, start + step, ... (count of them; None: all) of each dimension."""

    starts: tuple[int, ...]
    counts: tuple[int | None, ...]
    steps: tuple[int, ...]

    @property
    def strided(self) -> bool:
        """Whether it copies single numbers that lie apart: 0.9 ns each in ONNX Runtime, where of rows it takes 0.2."""
        return self.steps[-1] != 1

    @property
    def sides(self) -> int:
        """The dimensions that it cuts after the first."""
        return sum(count is not None for count in self.counts) - 1


@dataclass(frozen=True, eq=False)
class Take:
    """The elements `index` of dimension `dim`, whose dimensions stand in its place."""

    dim: int
    index: Array
    block: int  # numbers that lie together

    @property
    def slow(self) -> bool:
        """Whether it copies many single numbers, at 5 to 10 ns each: a transpose is faster."""
        return self.block == 1 and self.index.size >= MANY


@dataclass(frozen=True)
class Expand:
    """Repeat dimensions of size 1 up to `shape`."""

    shape: tuple[Size, ...]


@dataclass(frozen=True)
class Pad:
    """`value` before and after each dimension."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float


Move: TypeAlias = Permute | Reshape | Cut | Take | Expand | Pad
# What tells plans of equal length apart: a reshape moves nothing, a slice what it keeps, a gather reads an index too.
WEIGHT = {Reshape: 0.1, Cut: 1.0, Permute: 1.0, Expand: 1.0, Take: 1.1, Pad: 1.2}
STRIDED = 0.05  # of a slice more, where it copies single numbers
SIDE = 0.15  # and for each dimension after the first


def shape_after(move: Move, shape: Sequence[Size]) -> tuple[Size, ...]:
    """The shape of what a move makes of a value of `shape`."""
    if isinstance(move, Reshape | Expand):
        return move.shape
    if isinstance(move, Permute):
        return tuple(shape[dim] for dim in move.perm)
    if isinstance(move, Take):
        return (*shape[: move.dim], *move.index.shape, *shape[move.dim + 1 :])
    if isinstance(move, Cut):
        return tuple(size if count is None else count for size, count in zip(shape, move.counts, strict=True))
    pads = zip(shape, move.before, move.after, strict=True)
    return tuple(sizes.add(size, before + after) for size, before, after in pads)


@dataclass(frozen=True, eq=False)
class Plan:
    """`source` after `moves`, of shape `shape`."""

    source: Value | Join
    shape: tuple[Size, ...]
    moves: tuple[Move, ...] = ()

    @property
    def nodes(self) -> int:
        return len(self.moves) + (self.source.nodes if isinstance(self.source, Join) else 0)

    @property
    def cost(self) -> tuple[int, float]:
        count, inner = self.source.cost if isinstance(self.source, Join) else (0, 0.0)
        slow = sum(isinstance(m, Take) and m.slow for m in self.moves)
        cuts = [m for m in self.moves if isinstance(m, Cut)]
        more = sum(STRIDED * m.strided + SIDE * m.sides for m in cuts)
        weight = sum(WEIGHT[type(m)] for m in self.moves) + more
        return len(self.moves) + SLOW * slow + count, inner + weight

    @property
    def singles(self) -> float:
        """Numbers that gathers copy one by one, at the nominal batch."""
        taken = sum(isinstance(m, Take) and m.block == 1 and m.index.ndim > 0 for m in self.moves)
        own = taken * sizes.nominal(sizes.product(self.shape)) if taken else 0.0
        return own + (sum(part.singles for part in self.source.parts) if isinstance(self.source, Join) else 0.0)

    def then(self, shape: tuple[Size, ...], *moves: Move) -> Plan:
        """With further moves; two reshapes in a row are one, one that changes nothing is none."""
        done = list(self.moves)
        for move in moves:
            if isinstance(move, Reshape) and done and isinstance(done[-1], Reshape):
                done.pop()
            done.append(move)
        return Plan(self.source, shape, tuple(done))


@dataclass(frozen=True, eq=False)
class Join:
    """Plans one after the other along a dimension."""

    parts: tuple[Plan, ...]
    dim: int

    @property
    def nodes(self) -> int:
        return 1 + sum(part.nodes for part in self.parts)

    @property
    def cost(self) -> tuple[int, float]:
        costs = [part.cost for part in self.parts]
        return 1 + sum(count for count, _ in costs), 1.0 + sum(weight for _, weight in costs)


Cost: TypeAlias = Callable[[Plan], tuple[float, ...]]


def by_nodes(plan: Plan) -> tuple[float, ...]:
    """What a plan costs where each move is a node that copies."""
    return plan.cost


def by_time(plan: Plan) -> tuple[float, ...]:
    """What a plan costs in ONNX Runtime on a CPU."""
    count, weight = plan.cost
    return count + plan.singles // SINGLE, weight
