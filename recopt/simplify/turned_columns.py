"""Columns of a value that are rows of a transpose of it, which the graph has for another reader."""

from __future__ import annotations

from ..cost import ON_CPU
from ..hosts.base import Host, Node
from ..report import Rewrite
from ..rewrite import Context


def read_turned(host: Host, context: Context, name: str) -> bool:
    """Rewrite gathers of one column of an ONNX graph to read a transpose for ort-cpu: rows are copied whole (256 x 16
    numbers take 4 us so, and 13 one by one). True where any is rewritten.

    before:  Gather(x [rows, 16, 16], 2, axis 2), beside Transpose(x, perm 0 2 1)
    after:   Gather(Transpose(x), 2, axis 1)
    """
    if host.dialect != "onnx" or context.target not in ON_CPU:
        return False
    order = {node: n for n, node in enumerate(host.nodes)}
    changed = False
    for node in list(order):
        twin = _twin(host, node)
        if twin is None or not context.allows(name, node.outputs[0].name):
            continue
        turned, out = twin.outputs[0], node.outputs[0]
        perm = twin.kwargs["perm"]
        with host.at(node):
            if order[twin] > order[node]:
                again = host.call(
                    "Transpose",
                    [twin.args[0]],
                    {"perm": perm},
                    name=turned.name,
                    shape=turned.shape,
                    dtype=turned.dtype,
                    like=turned,
                )
                host.replace(turned, again)
                turned = again
            at = {"axis": list(perm).index(len(perm) - 1)}
            new = host.call(
                "Gather", [turned, node.args[1]], at, name=out.name, shape=out.shape, dtype=out.dtype, like=out
            )
        host.replace(out, new)
        made = (new.node.name if new.node else new.name,)
        context.report.rewrites.append(
            Rewrite(name, "turn", out.name, (node.name,), made, 0.0, 0.0, 0.0, None, "a row of a transpose")
        )
        changed = True
        order = {node: n for n, node in enumerate(host.nodes)}
    return context.settle(host, changed)


def _twin(host: Host, node: Node) -> Node | None:
    """The transpose that makes rows of the columns of which `node` gathers one, other dimensions staying in order."""
    if node.op != "Gather" or node.opaque or not host.is_constant(node.args[1]) or host.constant(node.args[1]).ndim:
        return None
    x = node.args[0]
    last = len(x.shape or ()) - 1
    if last < 1 or node.kwargs.get("axis", 0) not in (last, -1):
        return None
    for user in host.users(x):
        perm = list(user.kwargs.get("perm") or ())
        others = [p for p in perm if p != last]
        if user.op == "Transpose" and perm and not user.opaque and perm[-1] != last and others == sorted(others):
            return user
    return None
