"""Which operators of torch, and of plans, move elements in memory, and which only read them under another shape."""

from __future__ import annotations

from collections.abc import Sequence

from ..fused import Reshape
from ..hosts.base import Node, Value
from ..ir import sizes
from ..ir.sizes import Size
from .moves import Cut, Join, Pad, Plan, Take, shape_after

VIEWS = frozenset(
    f"aten.{n}"
    for n in """permute.default transpose.int swapaxes.default swapdims.default t.default numpy_T.default mT.default
    adjoint.default movedim.int movedim.intlist moveaxis.int moveaxis.intlist view.default expand.default
    expand_as.default broadcast_to.default squeeze.default squeeze.dim squeeze.dims unsqueeze.default slice.Tensor
    select.int narrow.default split.Tensor split.sizes split_with_sizes.default chunk.default unsafe_split.Tensor
    unsafe_chunk.default tensor_split.sections tensor_split.indices unbind.int diagonal.default unfold.default
    atleast_1d.default view_as.default sym_size.int""".split()
)
REGROUPS = frozenset(
    f"aten.{n}"
    for n in """reshape.default _unsafe_view.default reshape_as.default flatten.using_ints unflatten.int
    ravel.default _reshape_alias.default""".split()
)
COPIES = frozenset(
    f"aten.{n}"
    for n in """cat.default concat.default concatenate.default stack.default hstack.default vstack.default
    column_stack.default repeat.default tile.default repeat_interleave.self_int roll.default flip.default fliplr.default
    flipud.default pad.default constant_pad_nd.default tril.default triu.default index_select.default gather.default
    index.Tensor pixel_shuffle.default pixel_unshuffle.default channel_shuffle.default einsum.default copy.default
    contiguous.default clone.default slice_scatter.default select_scatter.default rot90.default""".split()
)


def copies(node: Node) -> bool:
    """Whether a node of torch moves elements; a reshape of what lies in memory as it is read does not."""
    if node.op in REGROUPS:
        source = node.inputs[0].node
        return (
            source is not None
            and source.op in VIEWS
            and source.op not in ("aten.view.default", "aten.unsqueeze.default")
            and not takes_apart(node.inputs[0].shape, node.outputs[0].shape)
        )
    if node.op == "aten.einsum.default":
        return not _only_turns(node)
    free = ("aten.sym_", "aten.alias.", "aten.detach.", "operator.", "_operator.")
    return node.op not in VIEWS and not node.op.startswith(free)


def _only_turns(node: Node) -> bool:
    """Whether letters name a permutation of dimensions."""
    before, _, after = str(node.args[0]).replace(" ", "").partition("->")
    return len(node.args[1]) == 1 and len(set(before)) == len(before) and sorted(before) == sorted(after)


def takes_apart(before: Sequence[Size] | None, after: Sequence[Size] | None) -> bool:
    """Whether each dimension becomes one or several: a view, however the memory lies."""
    if before is None or after is None:
        return False
    rest = list(after)
    for size in before:
        made: Size = 1
        while rest and made != size:
            made = sizes.mul(made, rest.pop(0))
        if made != size:
            return False
    return all(size == 1 for size in rest)


def plan_copies(plan: Plan) -> int:
    """How many of the operators of a plan move elements."""
    total = 0
    strided = False
    shape: Sequence[Size] | None = plan.source.shape if isinstance(plan.source, Value) else None
    if isinstance(plan.source, Join):
        total = 1 + sum(plan_copies(part) for part in plan.source.parts)
    for move in plan.moves:
        flips = isinstance(move, Cut) and min(move.steps) < 0
        if isinstance(move, Pad) or flips or (isinstance(move, Take) and move.index.ndim > 0):
            total, strided = total + 1, strided and flips  # a flip keeps the order in memory
        elif isinstance(move, Reshape):
            if strided and not takes_apart(shape, move.shape):
                total, strided = total + 1, False
        else:
            strided = True
        shape = None if shape is None else shape_after(move, shape)
    return total


def is_fresh(plan: Plan) -> bool:
    """Whether the last operator that is no reshape of contiguous memory makes a contiguous tensor of its own."""
    last = next((m for m in reversed(plan.moves) if not isinstance(m, Reshape)), None)
    if last is None:
        return isinstance(plan.source, Join)
    return isinstance(last, Pad) or (isinstance(last, Take) and last.index.ndim > 0)
