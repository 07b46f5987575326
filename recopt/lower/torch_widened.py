"""Columns of zeros behind those of a concatenation or of embedding bags in an FX graph."""

from __future__ import annotations

import numpy as np

from ..hosts.base import Value
from ..hosts.fx import FxHost
from ..hosts.fx_operators import EMBEDDING_BAGS

CONCAT = "aten.cat.default"


def widens(x: Value) -> bool:
    """Whether `widened` knows what makes x [R, C]."""
    node = x.node
    if node is None or x.shape is None or len(x.shape) != 2 or x.dtype != "float32":
        return False
    parts = node.args[0] if node.op == CONCAT else ()
    along = node.op == CONCAT and (node.args[1:] or (0,))[0] in (1, -1)
    return node.op == EMBEDDING_BAGS or (along and all(p.dtype == x.dtype and len(p.shape or ()) == 2 for p in parts))


def widened(host: FxHost, x: Value, more: int) -> Value:
    """x [R, C] with that many columns of zeros behind, made anew at the insertion point."""
    assert x.node is not None and x.shape is not None
    zeros = host.add_constant(np.zeros((1, more), np.float32), name=f"{x.name}_zeros")
    if x.node.op == EMBEDDING_BAGS:
        *operands, dense, scales, layout = x.node.args
        text = f"{layout}; x{len(dense)} % 1"
        return host.call(EMBEDDING_BAGS, (*operands, [*dense, zeros], scales, text), name=x.name, like=x)
    columns = host.call("aten.expand.default", (zeros, [host.size(x.shape[0]), more]), name=f"{x.name}_zeros", like=x)
    return host.call(CONCAT, ([*x.node.args[0], columns], 1), name=x.name, like=x)
