"""ONNX sequences of which the file says how long they are: lists that are joined, or taken apart again."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir import tensor
from ..ir.tensor import Tensor
from .base import Call, Opaque
from .onnx_common import Lift, axis_of, integer


def made(c: Call, items: Sequence[Tensor]) -> list[Tensor | None]:
    """A sequence is no tensor: its users find its items."""
    c.lifted.items.setdefault(c.node.outputs[0], items)
    return [None]


def empty(c: Call, dtype: int = 1) -> list[Tensor | None]:
    return made(c, ())


def construct(c: Call, *items: Tensor) -> list[Tensor | None]:
    return made(c, items)


def split_to_sequence(
    c: Call, x: Tensor, given: Tensor | None = None, *, axis: int = 0, keepdims: int = 1
) -> list[Tensor | None]:
    """Parts of given lengths, or of one length, the last one smaller; without any, single positions."""
    d = axis_of(x, axis)
    whole = x.shape[d]
    if not isinstance(whole, int):
        raise Opaque("a sequence of a run-time length")
    if given is not None and given.dims:
        lengths = [integer(n) for n in c.ints(given)]
    else:
        each = 1 if given is None else integer(c.size(given))
        lengths = [min(each, whole - start) for start in range(0, whole, each)]
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    items = [tensor.slice_dim(x, d, start, length) for start, length in zip(starts, lengths, strict=True)]
    return made(c, items if given is not None or keepdims else [tensor.squeeze(t, [d]) for t in items])


def insert(c: Call, items: Sequence[Tensor], x: Tensor, position: Tensor | None = None) -> list[Tensor | None]:
    found = listed(items)
    at = len(found) if position is None else integer(c.size(position))
    found.insert(at, x)
    return made(c, found)


def erase(c: Call, items: Sequence[Tensor], position: Tensor | None = None) -> list[Tensor | None]:
    found = listed(items)
    found.pop(-1 if position is None else integer(c.size(position)))
    return made(c, found)


def at(c: Call, items: Sequence[Tensor], position: Tensor) -> Tensor:
    return listed(items)[integer(c.size(position))]


def length(c: Call, items: Sequence[Tensor]) -> Tensor:
    return tensor.scalar(len(listed(items)), "int64")


def concat(c: Call, items: Sequence[Tensor], axis: int, new_axis: int = 0) -> Tensor:
    found = listed(items)
    if new_axis:
        return tensor.stack(found, axis % (len(found[0].dims) + 1))
    return tensor.concat(found, axis_of(found[0], axis))


def listed(items: Sequence[Tensor]) -> list[Tensor]:
    """The items of a sequence that is understood."""
    if isinstance(items, Tensor):
        raise Opaque("a sequence of a run-time length")
    return list(items)


SEQUENCES: dict[str, Lift] = {
    "SequenceEmpty": empty,
    "SequenceConstruct": construct,
    "SequenceInsert": insert,
    "SequenceErase": erase,
    "SequenceAt": at,
    "SequenceLength": length,
    "SplitToSequence": split_to_sequence,
    "ConcatFromSequence": concat,
}
