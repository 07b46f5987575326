"""What small whole numbers decide alone is a row of a table: one-hots, and comparisons of a number with a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..hosts.base import Host, Node, Value
from ..hosts.onnx import OnnxHost
from ..ir.sizes import Size
from ..layout.moves import Cut, Move, Plan, Take
from ..lower.onnx_columns import POINTWISE
from ..lower.onnx_layout import reshape
from ..lower.onnx_moves import moved
from ..report import Rewrite
from ..rewrite import Context
from .broadcasts import NARROW, spread, swaps
from .whole_ranges import whole_range

ROWS = 1024  # of a table
NUMBERS = 1 << 14  # of a table


@dataclass(frozen=True)
class _Spread:
    """Operators one after the other that make a row of `columns` of each number of `ids`, and where they end."""

    ids: Value
    rows: int
    columns: int
    nodes: tuple[Node, ...]

    @property
    def out(self) -> Value:
        return self.nodes[-1].outputs[0]


def look_up_small(host: Host, context: Context, name: str) -> bool:
    """Rewrite an ONNX graph to look up what numbers of a known range decide. True where any is.

    before:  Cast(Equal(Unsqueeze(i, -1), 0..13));  Cast(OneHot(i, 8)), where 0 <= i < 16
    after:   Gather(table [16, 14], i);             Gather(table [16, 8], i)

    before:  Where(Unsqueeze(Not(Equal(i, 0)), -1), x [.., 8], 0), which ONNX Runtime broadcasts slowly
    after:   Where(Gather(table [16, 8], i), 0, x)
    """
    if not isinstance(host, OnnxHost):
        return False
    changed = False
    for node in list(host.nodes):
        if _decide_rows(host, context, name, node):
            changed = True
            continue
        found = None if node.opaque else _spread(host, node)
        if found is None or not context.allows(name, found.out.name):
            continue
        _write(host, context, name, found)
        changed = True
    return context.settle(host, changed)


def _decide_rows(host: OnnxHost, context: Context, name: str, choice: Node) -> bool:
    """Rewrite a choice of rows by what small whole numbers decide to look up conditions of all columns."""
    out = choice.outputs[0]
    columns = out.shape[-1] if choice.op == "Where" and not choice.opaque and out.shape else None
    if not isinstance(columns, int) or not 1 < columns <= NARROW or host.is_constant(choice.args[0]):
        return False
    nodes = _decided(host, choice.args[0], out)
    if nodes is None or not context.allows(name, out.name):
        return False
    ids: Value = next(a for a in nodes[0].args if a is not None and not host.is_constant(a))
    found = whole_range(host, ids)
    if found is None or found[0] < 0 or found[1] >= min(ROWS, NUMBERS // columns):
        return False
    assert ids.shape is not None
    with host.at(nodes[0]):
        row = host.add_constant(np.arange(found[1] + 1, dtype=ids.dtype), name=f"{out.name}_numbers")
        for node in nodes:
            args = [a if a is None or host.is_constant(a) else row for a in node.args]
            row = host.call(
                node.op, args, node.kwargs, name=row.name, shape=(found[1] + 1,), dtype=node.outputs[0].dtype
            )
        turned = swaps(host, choice.args)
        held = np.repeat(host.constant(row).reshape(-1, 1) ^ turned, columns, 1)
        table = host.share_constant(held, name=f"{out.name}_table")
    with host.at(choice):
        wide, others = (*ids.shape, columns), choice.args[:0:-1] if turned else choice.args[1:]
        where = host.call("Gather", [table, ids], {"axis": 0}, name=f"{out.name}_decided", shape=wide, dtype="bool")
        new = host.call("Where", [where, *others], name=out.name, shape=out.shape, dtype=out.dtype, like=out)
    host.replace(out, new)
    gone = tuple(n.name for n in nodes)
    context.report.rewrites.append(
        Rewrite(name, "table", out.name, gone, (where.name,), 0.0, 0.0, float(len(gone)), None, "a row of a table")
    )
    return True


def _decided(host: Host, condition: Value, out: Value) -> list[Node] | None:
    """Operators one after the other, each read once, that make a condition [.., 1] of the numbers of one value; the
    dimension that they add at the end is not among them. None where there are none."""
    last = condition.node
    shape = condition.shape
    if last is None or last.op not in ("Unsqueeze", "Reshape") or not shape or not out.shape:
        return None
    value: Value = last.args[0]
    if shape != (*out.shape[:-1], 1) or value.shape != shape[:-1] or len(host.users(condition)) != 1:
        return None
    nodes: list[Node] = []
    while value.node is not None and value.dtype == "bool" and not value.node.opaque:
        node = value.node
        data: list[Value] = [a for a in node.args if a is not None and not host.is_constant(a)]
        alone = all(host.constant(a).size == 1 for a in node.args if a is not None and host.is_constant(a))
        if len(data) != 1 or not alone or node.op not in POINTWISE or data[0].shape != value.shape:
            return None
        if len(host.users(value)) != 1 or host.is_output(value):
            return None
        nodes.insert(0, node)
        value = data[0]
    return nodes if nodes and value.dtype in ("int32", "int64") else None


def _spread(host: Host, node: Node) -> _Spread | None:
    """The longest such chain that begins with `node`, of two operators at least."""
    data = [a for a in node.args if a is not None and not host.is_constant(a)]
    out, i = node.outputs[0], data[0] if data else None
    if len(data) != 1 or i is None or i.dtype not in ("int32", "int64") or not i.shape or not out.shape:
        return None
    ids, columns = i, out.shape[-1]
    if node.op == "OneHot":
        if node.args[0] is not i or node.kwargs.get("axis", -1) not in (-1, len(out.shape) - 1):
            return None
    else:
        repeated = spread(host, i)
        wide = repeated or i
        if node.op not in POINTWISE or not wide.shape or wide.shape[-1] != 1 or out.shape[:-1] != i.shape[:-1]:
            return None
        ids = _narrow(wide)
        if repeated is not None:
            columns = columns // wide.shape[-2] if isinstance(columns, int) else columns
    if not isinstance(columns, int) or columns < 2 or not _by_column(host, node, columns):
        return None
    nodes = [node]
    while (after := _next(host, nodes[-1], columns)) is not None:
        nodes.append(after)
    while nodes[-1].op == "Reshape":
        nodes.pop()
    found = whole_range(host, ids) if len(nodes) > 1 else None
    if found is None or found[0] < 0 or found[1] >= min(ROWS, NUMBERS // columns):
        return None
    return _Spread(ids, found[1] + 1, columns, tuple(nodes))


def _narrow(i: Value) -> Value:
    """Numbers [.., 1] before that dimension was added to them."""
    before = i.node.args[0] if i.node is not None and i.node.op in ("Unsqueeze", "Reshape") else None
    return i if before is None or i.shape is None or before.shape != i.shape[:-1] else before


def _by_column(host: Host, node: Node, columns: int) -> bool:
    """Whether all operands of a node but one are constants that are the same in each row, of `columns`, or for all."""
    others = [host.constant(a).reshape(-1) for a in node.args if a is not None and host.is_constant(a)]
    if len(others) != sum(a is not None for a in node.args) - 1:
        return False
    if node.op == "OneHot":
        return True
    last = (node.outputs[0].shape or (1,))[-1]
    return all(a.size == 1 or (a.size == last and (a.reshape(-1, columns) == a[:columns]).all()) for a in others)


def _next(host: Host, node: Node, columns: int) -> Node | None:
    """The one reader of a node, where it goes on with each number of a row by itself; a reshape may lie between."""
    out = node.outputs[0]
    readers = host.users(out)
    if len(readers) != 1 or host.is_output(out) or readers[0].opaque or len(readers[0].outputs) != 1:
        return None
    (reader,) = readers
    if reader.op == "Reshape":
        return reader if reader.args[0] is out and host.is_constant(reader.args[1]) else None
    last = (out.shape or (1,))[-1]
    if reader.op not in POINTWISE or reader.outputs[0].shape != out.shape or not isinstance(last, int):
        return None
    return reader if last % columns == 0 and _by_column(host, reader, columns) else None


def _row(host: Host, node: Node, operand: Value, columns: int) -> Value:
    """A constant operand for one row of the table."""
    held = host.constant(operand)
    if node.op == "OneHot" or held.size == 1:
        return operand
    return host.add_constant(held.reshape(-1)[:columns], name=operand.name)


def _regroups(host: Host, node: Node, wide: Sequence[Size]) -> bool:
    """Whether a node makes the same of its operand and of the same numbers in the shape `wide`."""
    shape = node.args[0].shape
    if node.op != "Reshape" or not shape or not host.is_constant(node.args[1]) or node.kwargs.get("allowzero"):
        return False
    kept = np.flatnonzero(host.constant(node.args[1]) == 0)  # dimensions as long as those of what is reshaped
    return all(n < len(wide) and wide[n] == shape[n] for n in kept.tolist())


def _flat(host: OnnxHost, ids: Value) -> Value:
    """Numbers [.., 1] without that dimension, where the gather that added it can leave it away: ONNX Runtime takes 256
    rows of 8 columns one by one in 7 us, as a slice in 3."""
    node = ids.node
    if node is None or node.op != "Gather" or node.opaque or len(host.users(ids)) != 1 or host.is_output(ids):
        return ids
    x, index, shape = node.args[0], node.args[1], (ids.shape or ())[:-1]
    if not x.shape or len(x.shape) != len(shape) or node.kwargs.get("axis", 0) not in (len(shape) - 1, -1):
        return ids
    columns = x.shape[-1]
    if not host.is_constant(index) or host.constant(index).shape[1:] != (1,) or not isinstance(columns, int):
        return ids
    where, rest = host.constant(index).reshape(-1) % columns, len(shape) - 1
    move: Move = Take(rest, where, 1)
    if bool((np.diff(where) == 1).all()):
        move = Cut((*[0] * rest, int(where[0])), (*[None] * rest, len(where)), (1,) * len(shape))
    return moved(host, Plan(x, x.shape).then(shape, move), ids.name, {})


def _write(host: OnnxHost, context: Context, name: str, found: _Spread) -> None:
    first, out = found.nodes[0], found.out
    with host.at(first):
        ids = _flat(host, found.ids)
    assert ids.shape is not None
    numbers = np.arange(found.rows, dtype=ids.dtype)
    with host.at(first):
        row = host.add_constant(numbers if first.op == "OneHot" else numbers[:, None], name=f"{out.name}_numbers")
        for node in found.nodes:
            if node.op == "Reshape":
                continue
            args = [a and (_row(host, node, a, found.columns) if host.is_constant(a) else row) for a in node.args]
            shape = (found.rows, found.columns)
            kwargs = {"axis": -1} if node.op == "OneHot" else node.kwargs  # the last of other dimensions
            row = host.call(node.op, args, kwargs, name=f"{out.name}_rows", shape=shape, dtype=node.outputs[0].dtype)
        table = host.share_constant(host.constant(row), name=f"{out.name}_table")
    with host.at(found.nodes[-1]):
        wide = (*ids.shape, found.columns)
        new = host.call("Gather", [table, ids], {"axis": 0}, name=out.name, shape=wide, dtype=out.dtype, like=out)
        regrouped = not host.is_output(out) and all(_regroups(host, n, wide) for n in host.users(out))
        if out.shape is not None and out.shape != wide and not regrouped:
            new = reshape(host, new, out.shape, out.name)
    host.replace(out, new)
    gone = tuple(n.name for n in found.nodes)
    made_by = (new.node.name if new.node else new.name,)
    saved = float(len(gone) - 1)
    context.report.rewrites.append(
        Rewrite(name, "table", out.name, gone, made_by, 0.0, 0.0, saved, None, "a row of a table")
    )
