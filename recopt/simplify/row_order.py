"""Rows of a product in the order in which its input lies, where what reads the product puts them back into it."""

from __future__ import annotations

from .. import lower
from ..fused import Permute, Reshape, View
from ..hosts.base import Host, Node, Value
from ..ir.normal import add, scale
from ..ir.tensor import Tensor
from ..ir.term import Axis, Read, coord, number
from ..lift.base import Lifted
from ..report import Rewrite
from ..rewrite import Context


def keep_row_order(host: Host, context: Context, name: str) -> bool:
    """Rewrite fused linears of an FX graph around which rows are turned and turned back, as `nn.MultiheadAttention`
    does. True where any is rewritten.

    before:  linear(reshape(permute(x [B, H, S, D], (2, 0, 1, 3)), [S*B, H*D])), reshape [S, B, N], permute (1, 0, 2)
    after:   linear(reshape(permute(x, (0, 2, 1, 3)), [B*S, H*D])), reshape [B, S, N]
    """
    if host.dialect != "aten":
        return False
    lifted = context.terms_of(host)
    found = [(n, turned) for n in host.nodes if n.op == lower.LINEAR and (turned := _turned(host, lifted, n))]
    gone: set[Value] = set()
    for node, (x, back) in found:
        (y,) = node.outputs
        if x.value in gone or not context.allows(name, y.name):
            continue
        with host.at(node):
            held = lower.view(host, x, x.value.name)
            made = host.call(node.op, (held, *node.args[1:]), name=y.name, like=y)
            new = lower.view(host, View(made, back.shape or (), (Reshape(back.shape or ()),)), back.name)
        host.replace(back, new)
        gone.add(y)
        after = (made.node.name,) if made.node else ()
        context.report.rewrites.append(
            Rewrite(name, "turn", back.name, (node.name,), after, 0.0, 0.0, 0.0, None, "rows as they lie")
        )
    return context.settle(host, bool(gone))


def _turned(host: Host, lifted: Lifted, node: Node) -> tuple[View, Value] | None:
    """The input of a linear with its rows as they lie, and the value that has those of the result so."""
    x, (y,) = node.args[0], node.outputs
    held = lifted.term[x]
    read = held.body.atom
    if len(held.dims) != 2 or not isinstance(read, Read) or not isinstance(read.leaf, Value) or read.leaf is x:
        return None
    rows, inner = held.dims
    named = {coord(a): a for a in (*rows, *inner)}
    axes = [named.get(p) for p in read.index]
    whole = [a and a.size for a in axes] == list(read.leaf.shape or ())
    if not whole or len(axes) != len(named) or set(axes) != set(named.values()):
        return None
    order = tuple(a for a in axes if a in rows and a is not None)
    if order == rows or host.is_output(x) or len(host.users(x)) != 1:
        return None
    back = _put_back(host, lifted, y, rows, order)
    if back is None:
        return None
    perm = tuple(axes.index(a) for a in (*order, *inner))
    steps = (Permute(perm),) if perm != tuple(range(len(perm))) else ()
    return View(read.leaf, x.shape, (*steps, Reshape(x.shape))), back


def _put_back(host: Host, lifted: Lifted, y: Value, rows: tuple[Axis, ...], order: tuple[Axis, ...]) -> Value | None:
    """The value that is y [rows, N] with its rows in `order`, where nothing else reads what lies between."""
    value = y
    while not host.is_output(value) and len(users := host.users(value)) == 1 and len(users[0].outputs) == 1:
        (value,) = users[0].outputs
        t = lifted.term.get(value)
        if t is None or not isinstance(t.body.atom, Read) or t.body.atom.leaf is not y:
            return None
        if _is_in_order(t, t.body.atom, rows, order):
            return value
    return None


def _is_in_order(t: Tensor, read: Read, rows: tuple[Axis, ...], order: tuple[Axis, ...]) -> bool:
    axes = [a for d in t.dims for a in d]
    if [a.size for a in axes[:-1]] != [a.size for a in order] or not axes:
        return False
    place, index = dict(zip(order, axes, strict=False)), number(0)
    for a in rows:
        index = add(scale(index, a.size), coord(place[a]))
    return read.index == (index, coord(axes[-1]))
