"""ONNX sequences of which the file says how long they are: lists that are joined, or taken apart again."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir import tensor
from ..ir.tensor import Tensor
from .base import Call, Items, Opaque
from .onnx_common import Lift, axis_of, integer


def made(items: Sequence[Tensor]) -> Items:
    """A sequence of so many tensors."""
    return Items(tuple((None, t) for t in items))


def empty(c: Call, dtype: int = 1) -> Items:
    return Items()


def construct(c: Call, *items: Tensor) -> Items:
    return made(items)


def split_to_sequence(c: Call, x: Tensor, given: Tensor | None = None, *, axis: int = 0, keepdims: int = 1) -> Items:
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
    return made(items if given is not None or keepdims else [tensor.squeeze(t, [d]) for t in items])


def insert(c: Call, items: Items, x: Tensor, position: Tensor | None = None) -> Items:
    if position is None:
        return Items((*items.parts, (None, x)))
    found = listed(items)
    found.insert(integer(c.size(position)), x)
    return made(found)


def erase(c: Call, items: Items, position: Tensor | None = None) -> Items:
    found = listed(items)
    found.pop(-1 if position is None else integer(c.size(position)))
    return made(found)


def at(c: Call, items: Items, position: Tensor) -> Tensor:
    return listed(items)[integer(c.size(position))]


def length(c: Call, items: Items) -> Tensor:
    return tensor.scalar(len(listed(items)), "int64")


def concat(c: Call, items: Items, axis: int, new_axis: int = 0) -> Tensor:
    """The tensors one after the other; what a loop appended is one dimension longer, and joined in front."""
    parts = []
    for along, t in items.parts:
        d = axis % (len(t.dims) + 1) if new_axis else axis_of(t, axis)
        item = tensor.unsqueeze(t, d) if new_axis else t
        if along is not None:
            item = item.with_dims([(along, *dim) if n == d else dim for n, dim in enumerate(item.dims)])
        parts.append(item)
    if not parts:
        raise Opaque("nothing is joined")
    return tensor.concat(parts, axis % len(parts[0].dims))


def listed(items: Items) -> list[Tensor]:
    """The tensors of a sequence whose length the file says."""
    if isinstance(items, Tensor) or any(along is not None for along, _ in items.parts):
        raise Opaque("a sequence of a run-time length")
    return [t for _, t in items.parts]


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
