"""Chains of operators over columns as trees: what makes two alike, and how a shorter one fits another.

What it lacks are operators whose numbers change nothing."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..hosts.base import Array, Node, Value
from ..layout.buckets import Bucket
from ..layout.positions import Elements
from ..lower.columns import Columns, Fixed, Number, neutral

HEAD = 5  # what of a key is about the operator alone


@dataclass(frozen=True, eq=False)
class Tree:
    """An operator over columns: `parts` are trees, constants of a row, numbers, or elements of a row of some value."""

    node: Node
    key: Hashable
    counts: tuple[int, ...]  # of a row
    parts: tuple[Tree | Array | Elements | Fixed | Number | None, ...]
    nodes: int
    lanes: int = 0  # elements that are added up for one of these; 0: it is no sum
    bucket: Bucket | None = None  # what counts boundaries: of one part
    added: int | None = None  # no node of the graph: an operator that changes nothing on this part

    @property
    def out(self) -> Value:
        """The value that it stands for."""
        part = None if self.added is None else self.parts[self.added]
        return part.out if isinstance(part, Tree) else self.node.outputs[0]

    @property
    def width(self) -> int:
        return int(np.prod(self.counts, dtype=np.int64))


def key_of(part: object) -> Hashable:
    """What must be equal for arguments to be one over all columns."""
    if isinstance(part, Tree):
        return part.key
    if isinstance(part, Elements):
        return ("elements", id(part.sources[0][0]))
    if isinstance(part, Fixed):
        return ("same", part.key)
    if isinstance(part, Number):
        return ("number", part.dtype)
    return part if part is None else ("constant", str(np.asarray(part).dtype))


def slots(tree: Tree) -> int:
    return sum(slots(p) if isinstance(p, Tree) else isinstance(p, Elements) for p in tree.parts)


def keeps_apart(tree: Tree, columns: Columns) -> bool:
    """Whether a chain keeps its columns apart."""
    if tree.lanes or tree.bucket is not None or columns.spreads(tree.node):
        return False
    return all(keeps_apart(p, columns) for p in tree.parts if isinstance(p, Tree))


def reads_of(group: Sequence[Tree]) -> list[Elements]:
    """What the trees of a group read, one each."""
    return [p for t in group for p in t.parts if isinstance(p, Elements)] or reads_of(
        [p for t in group for p in t.parts if isinstance(p, Tree)]
    )


def distinct(group: Sequence[Tree]) -> tuple[Array, Array] | None:
    """Which columns of a group, whose trees read one value and keep its columns apart, are to be computed, in the order
    in which they are read, and which of these each column is. None where no two are the same."""
    where = np.concatenate([p.where for p in reads_of(group)])
    rows = [np.ascontiguousarray(row).view(np.uint8).reshape(row.size, -1) for row in (where, *_rows(group))]
    _, first, back = np.unique(np.concatenate(rows, 1), axis=0, return_index=True, return_inverse=True)
    if len(first) == len(where):
        return None
    order = np.argsort(where[first], kind="stable")
    return first[order], np.argsort(order)[back.reshape(-1)]


def _rows(group: Sequence[Tree]) -> Iterator[Array]:
    """The numbers that columns have of their own, operand by operand."""
    for n, first in enumerate(group[0].parts):
        parts = [t.parts[n] for t in group]
        if isinstance(first, Tree):
            yield from _rows([p for p in parts if isinstance(p, Tree)])
        elif isinstance(first, Number):
            numbers = np.array([p.value for p in parts if isinstance(p, Number)], first.dtype)
            yield np.repeat(numbers, [t.width for t in group])
        elif isinstance(first, np.ndarray):
            yield np.concatenate([np.asarray(p).reshape(-1) for p in parts])


def nodes_of(tree: Tree) -> list[Node]:
    own = [tree.node] if tree.added is None else []
    return [*(n for p in tree.parts if isinstance(p, Tree) for n in nodes_of(p)), *own]


def _numbers(tree: Tree) -> tuple[list[int], int | float]:
    """The parts of a tree that are constants and might be ones that change nothing, and what those would be."""
    found = None if tree.lanes or tree.bucket is not None or len(tree.parts) != 2 else neutral(tree.node)
    if found is None or tree.added is not None:
        return [], 0
    return [n for n in found[0] if isinstance(tree.parts[n], (np.ndarray, Number))], found[1]


def skeleton(part: object) -> Hashable:
    """The key of a part without the operators that could change nothing."""
    if not isinstance(part, Tree):
        return key_of(part)
    numbers, _ = _numbers(part)
    if numbers:
        return skeleton(part.parts[1 - numbers[0]])
    head = part.key[:HEAD] if isinstance(part.key, tuple) else part.key
    return (head, *map(skeleton, part.parts)) if _plain(part) else part.key


def _plain(tree: Tree) -> bool:
    return not tree.lanes and tree.bucket is None


def fitted(part: Tree | Elements, counts: tuple[int, ...], model: object) -> Tree | Elements | None:
    """A part as the operators of `model`, with numbers that change nothing where it has fewer. None where it is not."""
    if key_of(part) == key_of(model):
        return part
    if not isinstance(model, Tree) or not isinstance(model.key, tuple) or not _plain(model):
        return None
    numbers, number = _numbers(model)
    for n in numbers:
        inner = fitted(part, counts, model.parts[1 - n])
        dtype = model.node.outputs[0].dtype
        if inner is None or _dtype(part) != dtype:
            continue
        held = model.parts[n]
        fill: Number | Array
        if isinstance(held, Number):
            fill = Number(number, held.dtype)
        else:
            fill = np.full(counts, number, np.asarray(held).dtype)
        parts = (fill, inner) if n == 0 else (inner, fill)
        return Tree(model.node, model.key, counts, parts, getattr(inner, "nodes", 0), added=1 - n)
    if not isinstance(part, Tree) or not isinstance(part.key, tuple) or not _plain(part):
        return None
    if part.key[:HEAD] != model.key[:HEAD] or len(part.parts) != len(model.parts):
        return None
    parts_ = [
        fitted(p, counts, q) if isinstance(p, (Tree, Elements)) else p if key_of(p) == key_of(q) else None
        for p, q in zip(part.parts, model.parts, strict=True)
    ]
    if any(p is None and q is not None for p, q in zip(parts_, model.parts, strict=True)):
        return None
    return replace(part, key=model.key, parts=tuple(parts_))


def _dtype(part: Tree | Elements) -> str | None:
    return part.node.outputs[0].dtype if isinstance(part, Tree) else part.dtype
