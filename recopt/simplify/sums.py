"""Sums of ones over the first dimension, which ONNX Runtime adds slowly on a CPU."""

from __future__ import annotations

from string import ascii_letters

import numpy as np

from .. import lower
from ..cost import ON_CPU
from ..hosts.base import Host, Node
from ..hosts.onnx import OnnxHost
from ..ir import sizes
from ..lower.onnx_layout import reshape
from ..report import Rewrite
from ..rewrite import Context
from .broadcasts import EXACT

EINSUM = 12  # opset from which there is one
ONES = 5000  # from which an Einsum is faster than a sum: of 4000 both take 6 us, of 10 000 13 and 21, of none 5 and 4


def simplify_sums(host: Host, context: Context, name: str) -> bool:
    """Rewrite counts of an ONNX graph as products with a row of ones: the same number in any order of addition.
    15 x 256 x 13 take 11 us then and 20 before, 7 x 256 x 60 take 22 and 51. True where any is rewritten.

    before:             ReduceSum(Cast(b [15, rows, 13]), axes 0)
    after, ort-cpu:     Reshape(MatMul(ones [1, 15], Reshape(Cast(b), [15, -1])), [rows, 13])
    after, portable:    Einsum(ones [15], Cast(b)), which ONNX Runtime makes that product of, 0.5 us later
    """
    if not isinstance(host, OnnxHost) or context.target not in ON_CPU:
        return False
    counts = [n for n in host.nodes if n.op == "ReduceSum" and not n.opaque and _counts(host, n)]
    if context.target == "portable":
        counts = [n for n in counts if host.opset >= EINSUM and _many(n)]
    counts = [n for n in counts if context.allows(name, n.outputs[0].name)]
    for node in counts:
        _write(host, context, name, node)
    return context.settle(host, bool(counts))


def _counts(host: Host, node: Node) -> bool:
    """Whether a sum of float32 adds up zeros and ones over a first dimension of known size."""
    ones, out = node.args[0], node.outputs[0]
    if lower.columns_of(host).sum_axes(node) != ([0], False) or ones.dtype != "float32":
        return False
    if ones.node is None or ones.node.op != "Cast" or ones.node.args[0].dtype != "bool":
        return False
    if not ones.shape or out.shape != ones.shape[1:] or not out.shape:
        return False
    return isinstance(ones.shape[0], int) and 1 < ones.shape[0] < EXACT


def _many(node: Node) -> bool:
    """Whether so many ones are added at the nominal batch that a product pays for what an Einsum does beside it."""
    return sizes.nominal(sizes.product(node.args[0].shape or ())) >= ONES


def _write(host: OnnxHost, context: Context, name: str, node: Node) -> None:
    ones, out = node.args[0], node.outputs[0]
    assert ones.shape is not None and out.shape is not None
    count, columns = ones.shape[0], sizes.product(out.shape)
    with host.at(node):
        if context.target == "portable":
            row = host.share_constant(np.ones(count, np.float32), name="ones")
            own = ascii_letters[1 : len(out.shape) + 1]  # with "..." for them it takes longer
            kwargs = {"equation": f"a,a{own}->{own}"}
            new = host.call("Einsum", [row, ones], kwargs, name=out.name, shape=out.shape, dtype="float32", like=out)
            parts = [new]
        else:
            row = host.share_constant(np.ones((1, count), np.float32), name="ones")
            wide = reshape(host, ones, (count, columns), out.name)
            total = host.call("MatMul", [row, wide], name=out.name, shape=(1, columns), dtype="float32")
            new = reshape(host, total, out.shape, out.name)
            parts = [wide, total, new]
    host.replace(out, new)
    made = tuple(v.node.name for v in parts if v.node)
    context.report.rewrites.append(
        Rewrite(name, "sum", out.name, (node.name,), made, 0.0, 0.0, 0.0, None, "a product with ones")
    )
