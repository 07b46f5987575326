"""An operator on every piece of a concat that becomes one on all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..hosts.base import Array, Host, Node, Value
from ..hosts.onnx import OnnxHost
from ..ir.sizes import Size
from ..lower.onnx_columns import POINTWISE, same_anywhere
from ..report import Rewrite
from ..rewrite import Context

Piece = tuple[Node, int, Array]  # an operator, which of its operands is data, and the other for a row of columns


def simplify_joins(host: Host, context: Context, name: str) -> bool:
    """Rewrite concats of whole numbers in an ONNX graph (of floats, ONNX Runtime has these operators in its products).
    True where any is.

    before:  Concat(Mod(x [rows, 26], ..), Reshape(Mod(y [rows], 5000), [rows, 1]), ..)
    after:   Mod(Concat(x, Reshape(y, [rows, 1]), ..), [.., 5000, ..])
    """
    if not isinstance(host, OnnxHost):
        return False
    changed = False
    for root in [n for n in host.nodes if n.op == "Concat" and not n.opaque]:
        node: Node | None = root
        while node is not None and (pieces := _pieces(host, node)) and context.allows(name, node.outputs[0].name):
            node = _write(host, context, name, node, pieces)
            changed = True
    return context.settle(host, changed, merged=True)


def _pieces(host: Host, node: Node) -> list[Piece]:
    """The operators of the pieces of a concat along the columns of rows, where they are one operator: else none."""
    out = node.outputs[0]
    if (
        out.dtype not in ("int32", "int64")
        or out.shape is None
        or len(out.shape) != 2
        or len({*node.args}) < max(2, len(node.args))
    ):
        return []
    if node.kwargs.get("axis") not in (1, -1):
        return []
    found = [_piece(host, arg) for arg in node.args]
    pieces = [p for p in found if p is not None]
    kinds = {(n.op, at, str(sorted(n.kwargs.items())), n.args[at].dtype) for n, at, _ in pieces}
    return pieces if len(pieces) == len(found) and len(kinds) == 1 else []


def _piece(host: Host, value: Value | None) -> Piece | None:
    if value is None or value.shape is None or not isinstance(value.shape[-1], int) or value.node is None:
        return None
    columns, node = value.shape[-1], value.node
    if node.op == "Reshape" and columns == 1 and node.args[0] is not None and node.args[0].shape == value.shape[:1]:
        if len(host.users(value)) != 1 or host.is_output(value) or node.args[0].node is None:
            return None
        node = node.args[0].node
    out = node.outputs[0]
    if node.op not in POINTWISE or len(node.args) != 2 or len(host.users(out)) != 1 or host.is_output(out):
        return None
    if node.op == "Clip" or not same_anywhere(host, node):  # a Clip's bound is one number
        return None
    data = [n for n, arg in enumerate(node.args) if arg is not None and not host.is_constant(arg)]
    if len(data) != 1 or node.args[data[0]].shape != out.shape:
        return None
    other = host.constant(node.args[1 - data[0]])
    if other.size not in (1, columns):
        return None
    return node, data[0], np.broadcast_to(other.reshape(-1), (columns,))


def _write(host: OnnxHost, context: Context, name: str, node: Node, pieces: Sequence[Piece]) -> Node | None:
    """The operator once, after a concat of the data. The concat, which may have another."""
    out = node.outputs[0]
    first, at, _ = pieces[0]
    assert out.shape is not None
    with host.at(node):
        data = [_rows(host, n.args[k], out.shape[0], len(other)) for n, k, other in pieces]
        whole = host.call("Concat", data, {"axis": 1}, name=out.name, shape=out.shape, dtype=data[0].dtype)
        row = np.concatenate([o for _, _, o in pieces])
        alike = row.tobytes() == row[:1].tobytes() * row.size  # ONNX Runtime takes rows beside a row one by one
        numbers = host.share_constant(row[:1] if alike else row, name=f"{out.name}_columns")
        args = [whole, numbers] if at == 0 else [numbers, whole]
        new = host.call(first.op, args, first.kwargs, name=out.name, shape=out.shape, dtype=out.dtype, like=out)
    host.replace(out, new)
    gone, made = tuple(n.name for n, _, _ in pieces), (new.node.name if new.node else new.name,)
    saved = float(len(pieces) - 1)
    context.report.rewrites.append(Rewrite(name, "join", out.name, gone, made, 0.0, 0.0, saved, None, "one operator"))
    return whole.node


def _rows(host: OnnxHost, value: Value, rows: Size, columns: int) -> Value:
    if value.shape is not None and len(value.shape) == 2:
        return value
    if _is_column(host, value):
        return _column(host, value)
    shape = host.share_constant(np.array([0, 1], np.int64), name="shape")
    return host.call("Reshape", [value, shape], name=value.name, shape=(rows, columns), dtype=value.dtype)


def _is_column(host: Host, value: Value, depth: int = 16) -> bool:
    """Whether a value [rows] is made of single columns that are gathered, which could as well be [rows, 1]."""
    node = value.node
    if node is None or node.opaque or depth == 0 or len(value.shape or ()) != 1:
        return False
    if node.op == "Gather":
        index = node.args[1]
        known = host.is_constant(index) and host.constant(index).ndim == 0
        return known and len(node.args[0].shape or ()) == 2 and node.kwargs.get("axis") in (1, -1)
    if node.op not in POINTWISE or node.op == "Clip" or not same_anywhere(host, node):
        return False
    parts = [a for a in node.args if a is not None]
    return len(host.users(value)) == 1 and all(
        host.constant(a).size == 1 if host.is_constant(a) else _is_column(host, a, depth - 1) for a in parts
    )


def _column(host: OnnxHost, value: Value) -> Value:
    """Such a value as [rows, 1]."""
    node = value.node
    assert node is not None and value.shape is not None
    if node.op == "Gather":
        index = host.share_constant(host.constant(node.args[1]).reshape(1), name="column")
        args = [node.args[0], index]
    else:
        args = [a if a is None or host.is_constant(a) else _column(host, a) for a in node.args]
    shape = (*value.shape, 1)
    return host.call(node.op, args, node.kwargs, name=value.name, shape=shape, dtype=value.dtype)
