"""What operators on single columns take ONNX Runtime on a CPU at the nominal batch, and the same over all of them.

Measured in nanoseconds of ONNX Runtime 1.31 on one thread; where a session begins and ends counts on neither side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..hosts.base import Host
from ..ir.sizes import NOMINAL
from ..layout.moves import Plan
from ..layout.positions import Elements
from ..lower.columns import Fixed
from .column_trees import Tree, nodes_of
from .relayout import Layouts

OPERATOR = 250.0  # on 256 numbers
BROADCAST = 7.0  # a row of its own: [rows, 1] beside a number, [rows, n] beside a row of numbers or one column
SINGLE = 2.4  # a number that a gather copies by itself
JOINED = 0.75  # a number that is joined to others


def lanes_of(group: Sequence[Tree]) -> int:
    """The numbers that each tree of a group makes of a single column, where they are several and for all trees as many:
    they take a dimension of their own, [rows, 1] beside [5] as [rows, columns, 1] beside [columns, 5]. Otherwise 0."""
    (counts, *others) = {t.counts for t in group}
    if others or len(counts) != 1 or counts[0] < 2:
        return 0
    return counts[0] if all(map(_reads_singles, group)) else 0


def _reads_singles(tree: Tree) -> bool:
    if tree.lanes or tree.bucket is not None or any(isinstance(p, Fixed) for p in tree.parts):
        return False
    own = all(len(set(p.where.tolist())) == 1 for p in tree.parts if isinstance(p, Elements))
    return own and all(_reads_singles(p) for p in tree.parts if isinstance(p, Tree))


def saved(host: Host, found: Layouts, group: Sequence[Tree], after: int, lanes: int) -> float:
    """What a group takes less as `after` operators over all its columns, but for how these are gathered."""
    before = sum(len(nodes_of(t)) * OPERATOR + NOMINAL * BROADCAST * sum(map(_alone, _all(t))) for t in group)
    if group[0].bucket is not None:
        before = OPERATOR * sum(t.nodes for t in group)
    else:
        before -= NOMINAL * BROADCAST * _rows(group) * (len(group) if lanes else 1)
    return before - after * OPERATOR + _joined(host, found, group)


def gathering(plan: Plan) -> float:
    """What a gather of columns takes."""
    return plan.singles * SINGLE + plan.nodes * OPERATOR


def _joined(host: Host, found: Layouts, group: Sequence[Tree]) -> float:
    """What joining the columns takes, where layouts alone read what is computed of them."""
    if not all(v in found.deep for t in group for user in host.users(t.out) for v in user.outputs):
        return 0.0
    flat = sum(not t.counts for t in group)  # each takes an operator more before it is joined
    numbers = NOMINAL * sum(t.width for t in group)
    return flat * OPERATOR + numbers * JOINED


def _all(tree: Tree) -> Iterator[Tree]:
    yield tree
    for part in tree.parts:
        if isinstance(part, Tree):
            yield from _all(part)


def _alone(tree: Tree) -> bool:
    """Whether an operator takes row by row what it computes of one tree now."""
    held = [np.asarray(p) for p in tree.parts if isinstance(p, np.ndarray)]
    several = any(p.tobytes() != p.reshape(-1)[:1].tobytes() * p.size for p in held if p.size)
    return tree.added is None and bool(held) and (several or tree.counts[-1:] == (1,))


def _rows(group: Sequence[Tree]) -> int:
    """The operators over all columns that ONNX Runtime takes row by row: beside a row of numbers, or one column beside
    several."""
    operands = list(zip(*(t.parts for t in group), strict=True))
    held = [{np.asarray(p).reshape(-1)[:1].tobytes() for p in parts} for parts in operands if _are_numbers(parts)]
    read = [{(p.sources, p.where.tobytes()) for p in parts if isinstance(p, Elements)} for parts in operands]
    beside = any(len(columns) == 1 for columns in read) and any(len(columns) > 1 for columns in read)
    trees = [[p for p in parts if isinstance(p, Tree)] for parts in operands]
    own = beside or any(len(numbers) > 1 for numbers in held) or any(map(_alone_in_rows, group))
    return own + sum(_rows(below) for below in trees if below)


def _are_numbers(parts: Sequence[object]) -> bool:
    return all(isinstance(p, np.ndarray) for p in parts)


def _alone_in_rows(tree: Tree) -> bool:
    return tree.counts[-1:] != (1,) and _alone(tree)
