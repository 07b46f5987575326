"""For ONNX Runtime on a CPU: the batch of a `Softmax`'s scores has no name, so that it is not written over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recopt.cost import ON_CPU
from recopt.hosts.base import Host, Node, Value
from recopt.report import Rewrite
from recopt.rewrite import Context

if TYPE_CHECKING:
    from recopt.hosts.onnx import OnnxHost

name = "separate-softmaxes"

# ONNX Runtime writes a Softmax over its scores wherever it knows that nobody else needs them and that both have one
# shape. On a CPU (1.31, one core) that takes 1.3 to 1.8 times as long as beside them, for 10 to 200 columns but for
# whole lines of a cache; models of 5 to 64 positions take 0.88 to 0.95 of the time with the name of one size left out.
LINE = 16  # numbers of a cache's line
# What makes scores of queries, keys and masks; their sizes are those of what they read.
THROUGH = frozenset(
    """MatMul Gemm Einsum Transpose Split Squeeze Unsqueeze Slice Mul Div Add Sub Sum Where Neg Tanh Sigmoid Max
    Min""".split()
)
STEPS = 16  # nodes from the scores to the Reshape


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten."""
    if context.target not in ON_CPU:
        return False
    from recopt.hosts.onnx import OnnxHost

    assert isinstance(host, OnnxHost)
    changed = False
    for node in [n for n in host.nodes if n.op == "Softmax"]:
        seen: dict[Value, bool] = {}
        if not _in_place(host, node) or not _way(host, node.inputs[0], seen):
            continue
        way = [v for v, leads in seen.items() if leads]
        named = [v for v in way if host.is_named(v)]
        found = {v: sizes for v in way if v.node is not None and (sizes := _found_out(host, v.node))}
        if (named or found) and context.allows(name, node.outputs[0].name):
            for value in named:
                host.leave_open(value)
            for value, sizes in found.items():
                _reshape(host, value, sizes)
            detail = "its scores keep their place: they are of a batch without a name"
            root, place = node.outputs[0].name, (node.name,)
            context.report.rewrites.append(Rewrite(name, "Softmax", root, place, place, 0.0, 0.0, 0.0, None, detail))
            changed = True
    if changed:
        context.lifted = None
        host.erase_dead()
    return changed


def _in_place(host: Host, node: Node) -> bool:
    """Whether ONNX Runtime would write a Softmax over its scores, and lose by it."""
    scores = node.inputs[0]
    if not scores.shape or all(isinstance(size, int) for size in scores.shape) or host.users(scores) != [node]:
        return False
    last = scores.shape[-1]
    return not isinstance(last, int) or last % LINE != 0


def _way(host: Host, value: Value, seen: dict[Value, bool], steps: int = STEPS) -> bool:
    """Whether a value's sizes come from a Reshape that may find out that of the batch; `seen` are all asked so far."""
    if value not in seen:
        node = value.node
        seen[value] = False
        if node is None or not steps or host.is_output(value) or host.is_constant(value):
            return False
        if node.op == "Reshape":
            seen[value] = -1 in _sizes(host, node) or bool(_found_out(host, node))
        else:
            seen[value] = node.op in THROUGH and any([_way(host, v, seen, steps - 1) for v in node.inputs])
    return seen[value]


def _sizes(host: Host, node: Node) -> list[int]:
    sizes = [int(n) for n in host.constant(node.inputs[1])] if host.is_constant(node.inputs[1]) else []
    return [] if 0 in sizes and node.kwargs.get("allowzero", 0) else sizes


def _found_out(host: Host, node: Node) -> list[int]:
    """The sizes of a Reshape with -1 for the batch that it keeps; none where it is no such one."""
    sizes = _sizes(host, node) if node.op == "Reshape" else []
    kept, before = [i for i, n in enumerate(sizes) if n == 0], node.inputs[0].shape
    if -1 in sizes or len(kept) != 1 or before is None or isinstance(before[kept[0]], int):
        return []
    return [-1 if n == 0 else n for n in sizes]


def _reshape(host: OnnxHost, value: Value, sizes: list[int]) -> None:
    assert value.node is not None
    with host.at(value.node):
        target = host.share_constant(np.array(sizes, np.int64), name=f"{value.name}_sizes")
        operands = [value.node.inputs[0], target]
        new = host.call("Reshape", operands, name=value.name, shape=value.shape, dtype=value.dtype, like=value)
    host.replace(value, new)
    host.leave_open(new)
