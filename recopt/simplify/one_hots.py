"""One-hots that become floating-point numbers, as rows of a table of them: in torch on a CPU."""

from __future__ import annotations

import numpy as np

from ..hosts.base import Host, Node, Value
from ..layout.memory import REGROUPS, VIEWS
from ..report import Rewrite
from ..rewrite import Context

MOST = 256  # labels, of which the table is a square
FLOATS = ("float32", "float64", "float16")
SHAPED = (VIEWS | REGROUPS) - {"aten.view_as.default", "aten.reshape_as.default", "aten.expand_as.default"}
CONVERTS = ("aten.to.dtype", "aten._to_copy.default")


def look_up_one_hots(host: Host, context: Context, name: str) -> bool:
    """Rewrite one-hots of an FX graph that only their conversion to floating point reads. True where any is.

    before:  to(flatten(one_hot(ids, 8)), float32)
    after:   flatten(embedding(the 8 rows of one-hots, ids))

    torch looks for ids outside, fills int64 numbers, sets the ones and copies all: 60 columns of 8 labels take 5.5, 110
    and 1220 us at 1, 256 and 2048 rows, as a lookup 3.1, 31 and 254. Ids outside are an error in both.
    """
    if host.dialect != "aten" or context.target != "cpu":
        return False
    tables: dict[tuple[int, str], Value] = {}
    for node in [n for n in host.nodes if n.op == "aten.one_hot.default"]:
        labels = node.args[1] if len(node.args) == 2 else -1
        way = _way(host, node)
        if way is None or not isinstance(labels, int) or not 0 < labels <= MOST:
            continue
        *views, last = way
        (end,) = last.outputs
        if not context.allows(name, end.name):
            continue
        kind = labels, str(end.dtype)
        if kind not in tables:
            tables[kind] = host.add_constant(np.eye(labels, dtype=end.dtype), name=f"{end.name}_labels")
        with host.at(node):
            value = host.call("aten.embedding.default", (tables[kind], node.args[0]), name=end.name, like=end)
        for view in views:
            with host.at(view):
                value = host.call(view.op, (value, *view.args[1:]), view.kwargs, name=end.name, like=view.outputs[0])
        host.replace(end, value)
        gone, made = (node.name, last.name), (value.node.name,) if value.node else ()
        detail = "rows of a table of one-hots"
        context.report.rewrites.append(Rewrite(name, "one-hot", end.name, gone, made, 0.0, 0.0, 0.0, None, detail))
    return context.settle(host, bool(tables))


def _way(host: Host, node: Node) -> list[Node] | None:
    """The views of what a node makes and the conversion of them to floating point, where nothing else reads any."""
    way: list[Node] = []
    value: Value = node.outputs[0]
    while len(users := host.users(value)) == 1 and not host.is_output(value) and len(users[0].outputs) == 1:
        (user,) = users
        (value,) = user.outputs
        way.append(user)
        if user.op in CONVERTS:
            plain = len(user.args) == 2 if user.op == "aten.to.dtype" else user.kwargs.keys() == {"dtype"}
            return way if plain and value.dtype in FLOATS else None
        if user.op not in SHAPED or [a for a in user.inputs if not a.scalar] != [user.args[0]]:
            return None
    return None
