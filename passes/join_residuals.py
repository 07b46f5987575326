"""On CUDA a layer or RMS normalisation of a sum adds it up itself, where nothing else reads the sum.

before:  add(x, y), recopt::layer_norm
after:   recopt::layer_norm, with y beside x
"""

from __future__ import annotations

from recopt import lower
from recopt.hosts.base import Host, Node, Value
from recopt.ir.term import Read, coord, number
from recopt.lift.base import Lifted
from recopt.report import Rewrite
from recopt.rewrite import Context

name = "join-residuals"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten."""
    if context.target != "cuda" or host.dialect != "aten":
        return False
    norms = [n for n in host.nodes if n.op in lower.NORMS and lower.NORMS[n.op] == len(n.args)]
    if not norms:
        return False
    lifted = context.terms_of(host)
    pairs = [(node, _added(host, lifted, node)) for node in norms]
    moved: dict[Value, Value] = {}  # one normalised sum is an operand of the next
    for node, pair in pairs:
        if pair and context.allows(name, node.outputs[0].name):
            x, beside = (moved.get(v, v) for v in pair)
            moved[node.outputs[0]] = _join(host, context, node, x, beside)
    return context.settle(host, bool(moved))


def _added(host: Host, lifted: Lifted, node: Node) -> tuple[Value, Value] | None:
    """The two values of its own shape and type whose sum a node normalises, and nothing else reads."""
    total = node.args[0]
    own = lifted.local(total)
    if own is None or len(own.body.monos) != 2 or host.users(total) != [node] or host.is_output(total):
        return None
    index = [coord(dim[0]) if dim else number(0) for dim in own.dims if len(dim) < 2]
    found = []
    for mono in own.body.monos:
        (read,) = mono.atoms if len(mono.atoms) == 1 else (None,)
        if mono.coef != 1 or mono.axes or not isinstance(read, Read) or not isinstance(read.leaf, Value):
            return None
        if [*read.index] != index or (read.leaf.shape, read.leaf.dtype) != (total.shape, total.dtype):
            return None
        found.append(read.leaf)
    return found[0], found[1]


def _join(host: Host, context: Context, node: Node, x: Value, beside: Value) -> Value:
    total, y = node.args[0], node.outputs[0]
    with host.at(node):
        made = host.call(node.op, (x, *node.args[1:], beside), name=y.name, like=y)
    host.replace(y, made)
    before = tuple(v.node.name for v in (total, y) if v.node is not None)
    after = () if made.node is None else (made.node.name,)
    detail = f"{y.name} adds up {x.name} and {beside.name} itself"
    context.report.rewrites.append(Rewrite(name, node.op, made.name, before, after, 0.0, 0.0, 1.0, None, detail))
    return made
