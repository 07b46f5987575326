"""Operators on single columns whose results are put into another order: done on rows of one transpose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..cost import ON_CPU
from ..hosts.base import Array, Host, Node, Value
from ..hosts.onnx import OnnxHost
from ..layout.shortest import TURNED
from ..lower.onnx_columns import POINTWISE, same_anywhere
from ..report import Rewrite
from ..rewrite import Context

WIDER = 4  # times as many columns as are joined, which the source may have at most


def turn_before(host: Host, context: Context, name: str) -> bool:
    """Rewrite transposes of joined columns of an ONNX graph to come before what computes these, with no operator more.
    True where any is.

    before:  Transpose(Concat(Sqrt(Slice(x, every second column)), Min(Slice(x, the others), [1, 2, ..]), axis 1))
    after:   t = Transpose(x);  Concat(Sqrt(Slice(t, every second row)), Min(Slice(t, ..), [[1], [2], ..]), axis 0)

    Rows are gathered even where they lie side by side: through slices ONNX Runtime takes the transpose back. They are
    copied whole then, and a number for a row is one for many numbers side by side: 13 columns of 2048 rows, of
    which every second is clipped, take 14 us, as columns 43 and one by one 28.
    """
    if not isinstance(host, OnnxHost) or context.target not in ON_CPU:
        return False
    changed = False
    for node in [n for n in host.nodes if _turns(n)]:
        joined: Value = node.args[0]
        order, sources = _before(host, node)
        if len(sources) != 1 or not order or order[-1].op != "Concat" or not _narrow(sources[0], joined):
            continue
        if not context.allows(name, node.outputs[0].name):
            continue
        (source,) = sources
        with host.at(order[0]):
            turned = host.call(
                "Transpose", [source], {"perm": [1, 0]}, name=f"{joined.name}_turned",
                shape=(source.shape or ())[::-1], dtype=source.dtype,
            )  # fmt: skip
        now = {source: turned}
        for inner in order:
            with host.at(inner):
                now[inner.outputs[0]] = _turned(host, inner, now)
        host.replace(node.outputs[0], now[joined])
        gone = tuple(n.name for n in [*order, node])
        made = (turned.node.name if turned.node else turned.name,)
        context.report.rewrites.append(
            Rewrite(name, "turn", joined.name, gone, made, 0.0, 0.0, 0.0, None, "rows of a transpose")
        )
        changed = True
    return context.settle(host, changed)


def _turns(node: Node) -> bool:
    """Whether a node makes rows of the columns of [rows, columns]."""
    return node.op == "Transpose" and not node.opaque and list(node.kwargs.get("perm") or ()) == [1, 0]


def _before(host: Host, turn: Node) -> tuple[list[Node], list[Value]]:
    """What makes the operand of a transpose for it alone and may be done on rows, in order: columns that are picked,
    what is computed of each by itself, what joins them; and what else those read."""
    inside = {turn}
    for node in reversed(host.nodes):
        out = node.outputs[0]
        readers = host.users(out)
        if readers and not host.is_output(out) and inside.issuperset(readers) and _fits(host, node):
            inside.add(node)
    order = [n for n in host.nodes if n in inside and n is not turn]
    made = {n.outputs[0] for n in order}
    read = [a for n in order for a in n.args if a is not None and not host.is_constant(a)]
    return order, list(dict.fromkeys(a for a in read if a not in made))


def _fits(host: Host, node: Node) -> bool:
    """Whether a node may be done on rows in the place of columns."""
    out = node.outputs[0].shape
    if node.opaque or len(node.outputs) != 1 or out is None or len(out) != 2 or not isinstance(out[1], int):
        return False
    data: list[Value] = [a for a in node.args if a is not None and not host.is_constant(a)]
    if node.op == "Concat":
        return node.kwargs["axis"] in (1, -1) and len(data) == len(node.args)
    if node.op not in POINTWISE or not same_anywhere(host, node):
        return _picks(host, node)
    held = [host.constant(a) for a in node.args if a is not None and host.is_constant(a)]
    rows = all(a.size == 1 or a.size == a.shape[-1] == out[1] for a in held)
    if node.op in ("Max", "Min") and not (len(data) == 1 and all(a.all() for a in held)):
        return False  # of two zeros ONNX Runtime takes the one or the other by how many lie side by side
    if node.op == "Where" and [host.is_constant(a) for a in node.args] != [False, True, False]:
        return False  # which operand's -0.0 it makes 0.0 depends on what is broadcast
    return rows and all(a.shape == out for a in data)


def _picks(host: Host, node: Node) -> bool:
    """Whether a node takes columns at known places of [rows, columns]."""
    x, held = node.args[0], [host.constant(a) for a in node.args[1:] if a is not None and host.is_constant(a)]
    if x is None or x.shape is None or len(x.shape) != 2 or len(held) != len(node.args) - 1:
        return False
    if not isinstance(x.shape[1], int):
        return False
    if node.op == "Gather":
        return node.kwargs.get("axis", 0) in (1, -1) and held[0].ndim == 1
    return node.op == "Slice" and len(held) >= 3 and held[2].tolist() in ([1], [-1])


def _narrow(source: Value, joined: Value) -> bool:
    """Whether what is turned before is not much more than what was turned after."""
    if source.dtype != TURNED or source.shape is None or len(source.shape) != 2:
        return False
    before, after = source.shape[1], (joined.shape or (None,))[-1]
    return isinstance(before, int) and isinstance(after, int) and before <= WIDER * after


def _turned(host: OnnxHost, node: Node, now: dict[Value, Value]) -> Value:
    """What a node makes of rows."""
    out = node.outputs[0]
    shape, name = (out.shape or ())[::-1], f"{out.name}_turned"
    args: Sequence[Value | None] = [a if a is None else now.get(a, a) for a in node.args]
    if node.op == "Concat":
        return host.call("Concat", args, {"axis": 0}, name=name, shape=shape, dtype=out.dtype)
    if node.op in ("Gather", "Slice"):
        rows = host.share_constant(_columns(host, node), name=f"{name}_rows")
        return host.call("Gather", [args[0], rows], {"axis": 0}, name=name, shape=shape, dtype=out.dtype)
    args = [_upright(host, a, f"{name}_rows") for a in args]
    return host.call(node.op, args, node.kwargs, name=name, shape=shape, dtype=out.dtype)


def _columns(host: Host, node: Node) -> Array:
    """The columns that a gather or a slice takes."""
    held = [host.constant(a) for a in node.args[1:] if a is not None]
    if node.op == "Gather":
        return held[0]
    step = int(held[3][0]) if len(held) > 3 else 1
    return np.arange(node.args[0].shape[1])[slice(int(held[0][0]), int(held[1][0]), step)]


def _upright(host: OnnxHost, operand: Value | None, name: str) -> Value | None:
    """A row of numbers as a column."""
    if operand is None or not host.is_constant(operand) or host.constant(operand).size == 1:
        return operand
    return host.share_constant(host.constant(operand).reshape(-1, 1), name=name)
