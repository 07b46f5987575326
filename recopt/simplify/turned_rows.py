"""A few columns of many small matrices, which ONNX Runtime turns one by one on a CPU: turned all at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .. import lower
from ..cost import ON_CPU
from ..errors import LowerError
from ..fused import Permute
from ..hosts.base import Array, Host, Node, Value
from ..ir.sizes import nominal
from ..layout.moves import Plan, Take, by_time
from ..layout.moves_check import agrees
from ..layout.one_source import of_one
from ..layout.positions import Elements, Form, form_of
from ..report import Rewrite
from ..rewrite import Context
from .relayout import Layouts, find

MATRICES = 64  # of the nominal batch: each is given to the threads by itself, which takes 0.35 us
NUMBERS = 4096  # of a matrix, from which its turning is what takes the time


def turn_at_once(host: Host, context: Context, name: str) -> bool:
    """Rewrite transposes of an ONNX graph for ort-cpu of which at most half of the rows are read, and gathers of single
    columns beside them. True where any is.

    before:  Gather(Reshape(Transpose(x [rows, 16, 16], perm 0 2 1), [rows, 32, 8]), ..);  Gather(x, 2, axis 2)
    after:   t = Gather(Transpose(x, perm 2 0 1), [1, 3, .., 2]);  Gather(Reshape(Transpose(t, perm 1 0 2)), ..);
             Gather(t, 8)

    256 matrices of 16 x 16 take 12 us and with two threads 105; at once 12, and a half brought back 10.
    """
    if host.dialect != "onnx" or context.target not in ON_CPU or not any(map(_is_slow, host.nodes)):
        return False
    found = find(host, context)
    changed = False
    for node in [n for n in host.nodes if _is_slow(n)]:
        ends = _ends(host, found, node)
        plans = _turned([found.deep[end] for end in ends]) if ends else None
        if plans and context.allows(name, node.outputs[0].name):
            changed |= _write(host, context, name, node, ends, [found.deep[e] for e in ends], plans)
    return context.settle(host, changed, merged=True)


def _is_slow(node: Node) -> bool:
    """Whether a node turns many small matrices of float32."""
    if node.op != "Transpose" or node.opaque or list(node.kwargs.get("perm") or ()) != [0, 2, 1]:
        return False
    x = node.args[0]
    if x.dtype != "float32" or not x.shape or isinstance(x.shape[0], int):
        return False
    form = form_of(x.shape)
    small = form.symbolic == (0,) and form.counts[0] == 1 and 0 < form.total < NUMBERS
    return small and nominal(x.shape[0]) >= MATRICES


def _ends(host: Host, found: Layouts, node: Node) -> list[Value]:
    """The last values made of a transpose by layouts alone; none where it is read as it is. Single columns of what it
    turns too."""
    x = node.args[0]

    def inside(v: Value) -> bool:
        deep = found.deep.get(v)
        return deep is not None and deep.single and deep.sources == ((x, (0,)),)

    seen, pending, ends = {node.outputs[0]}, [node.outputs[0]], []
    while pending:
        value = pending.pop()
        after = [v for user in host.users(value) for v in user.outputs]
        if not inside(value):
            return []
        if host.is_output(value) or not all(map(inside, after)):
            ends.append(value)
            continue
        pending += [v for v in after if v not in seen]
        seen.update(after)
    columns = [u.outputs[0] for u in host.users(x) if u.op == "Gather" and u.kwargs.get("axis") in (2, -1)]
    columns = [v for v in columns if inside(v) and len(v.shape or ()) == 2]
    return [] if node.outputs[0] in ends or not ends else [*ends, *columns]


def _turned(wanted: Sequence[Elements]) -> list[Plan] | None:
    """Plans that turn all matrices at once, keep the rows that any reads, and put the matrices in front again."""
    ((x, order),) = wanted[0].sources
    form = form_of(x.shape or ())
    rows, (_, length, columns) = form.opens[0], form.counts
    picked = [_columns(e.where % columns) for e in wanted]
    kept = list(dict.fromkeys(c for own in picked for c in own or ()))
    if None in picked or len(kept) == columns or max(len(own or ()) for own in picked) * 2 > columns:
        return None
    base = Plan(x, form.shape).then((columns, rows, length), Permute((2, 0, 1)))
    base = base.then((len(kept), rows, length), Take(0, np.array(kept), length))
    whole = Form((rows, 1, 1), (1, len(kept), length))
    plans = []
    for elements, own in zip(wanted, picked, strict=True):
        if own is not None and len(own) == 1:
            plan, after = (
                base.then((rows, length), Take(0, np.array(kept.index(own[0])), length)),
                Form((rows, 1), (1, length)),
            )
            where = elements.where // columns
        else:
            plan, after = base.then(whole.shape, Permute((1, 0, 2))), whole
            at = np.array([kept.index(c) if c in kept else 0 for c in range(columns)])
            where = at[elements.where % columns] * length + elements.where // columns
        rest = min(of_one(x, after, order, elements.form, where), key=by_time, default=None)
        if rest is None:
            return None
        plans.append(plan.then(rest.shape, *rest.moves))
    return plans


def _columns(column: Array) -> list[int] | None:
    """The columns that runs of one length each read, each one once; None where they are read otherwise."""
    starts = [0, *(np.flatnonzero(np.diff(column)) + 1).tolist(), len(column)]
    picked: list[int] = column[starts[:-1]].tolist()
    return picked if len({b - a for a, b in pairwise(starts)}) == 1 and len(set(picked)) == len(picked) else None


def _write(
    host: Host,
    context: Context,
    name: str,
    node: Node,
    ends: Sequence[Value],
    wanted: Sequence[Elements],
    plans: Sequence[Plan],
) -> bool:
    if not all(agrees(plan, elements) for plan, elements in zip(plans, wanted, strict=True)):
        return False
    try:
        made = lower.moves(host, [(end, plan, None) for end, plan in zip(ends, plans, strict=True)], {})
    except LowerError:
        return False
    for end, new in zip(ends, made, strict=True):
        host.replace(end, new)
    after = tuple(v.node.name if v.node else v.name for v in made)
    context.report.rewrites.append(
        Rewrite(name, "turn", node.outputs[0].name, (node.name,), after, 0.0, 0.0, 0.0, None, "turned at once")
    )
    return True
