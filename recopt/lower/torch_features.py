"""Features side by side in an FX graph: dot products of pairs behind others, columns of zeros behind all."""

from __future__ import annotations

import numpy as np

from ..hosts.base import Node, Value
from ..hosts.fx import FxHost
from ..hosts.fx_operators import DOT_INTERACTION, EMBEDDING_BAGS

CONCAT = "aten.cat.default"


def join_interactions(host: FxHost) -> None:
    """Dot products of pairs that only a concatenation reads, behind one other tensor, as one operator."""
    for node in [n for n in host.nodes if n.op == DOT_INTERACTION]:
        (y,), (x, beside, pairs, zeros) = node.outputs, node.args
        users = host.users(y)
        if beside is not None or host.is_output(y) or len(users) != 1 or not _is_concat(users[0]):
            continue
        parts, whole = users[0].args[0], users[0].outputs[0]
        if len(parts) != 2 or parts[1] is not y or parts[0].dtype != y.dtype or len(parts[0].shape or ()) != 2:
            continue
        with host.at(users[0]):
            made = host.call(DOT_INTERACTION, (x, parts[0], pairs, zeros), name=y.name, like=whole)
        host.replace(whole, made)
    host.erase_dead()


def _is_concat(node: Node) -> bool:
    """Whether a node joins matrices along their columns."""
    (whole,) = node.outputs if node.op == CONCAT else (None,)
    return whole is not None and len(whole.shape or ()) == 2 and (node.args[1:] or (0,))[0] in (1, -1)


def widens(x: Value) -> bool:
    """Whether `widened` knows what makes x [R, C]."""
    node = x.node
    if node is None or x.shape is None or len(x.shape) != 2 or x.dtype != "float32":
        return False
    if node.op in (EMBEDDING_BAGS, DOT_INTERACTION):
        return True
    return _is_concat(node) and all(p.dtype == x.dtype and len(p.shape or ()) == 2 for p in node.args[0])


def widened(host: FxHost, x: Value, more: int) -> Value:
    """x [R, C] with that many columns of zeros behind, made anew at the insertion point."""
    assert x.node is not None and x.shape is not None
    if x.node.op == DOT_INTERACTION:
        *operands, zeros = x.node.args
        return host.call(DOT_INTERACTION, (*operands, zeros + more), name=x.name, like=x)
    zeros = host.add_constant(np.zeros((1, more), np.float32), name=f"{x.name}_zeros")
    if x.node.op == EMBEDDING_BAGS:
        *operands, dense, scales, layout = x.node.args
        text = f"{layout}; x{len(dense)} % 1"
        return host.call(EMBEDDING_BAGS, (*operands, [*dense, zeros], scales, text), name=x.name, like=x)
    columns = host.call("aten.expand.default", (zeros, [host.size(x.shape[0]), more]), name=f"{x.name}_zeros", like=x)
    return host.call(CONCAT, ([*x.node.args[0], columns], 1), name=x.name, like=x)
