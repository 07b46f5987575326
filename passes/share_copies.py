"""Joins of the same elements in the same order become one, which is read under the other's shape.

before:  concat(a, b, c along a new dimension), and concat(a, b, c along their columns), reshaped
after:   the first, and a reshape of it

As factorization machines and deep layers read the same lookups: where each has a concat of its own, every lookup has
two readers, and cannot be one with those beside it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from recopt import lower
from recopt.fused import Reshape, View
from recopt.hosts.base import Host, Node, Value
from recopt.ir import sizes
from recopt.layout.memory import copies
from recopt.layout.positions import Elements, Source
from recopt.report import Rewrite
from recopt.rewrite import Context
from recopt.simplify.relayout import OPERATORS, find, writes_in_place

name = "share-copies"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten."""
    if not _may_share(host) or writes_in_place(host):
        return False
    found = find(host, context)
    numbers: dict[Source, int] = {}
    held: dict[object, Value] = {}
    shown = _shown(host)
    changed = False
    for value, local in found.local.items():
        if len(local.sources) < 2:  # it may only be reshaped
            continue
        key = _key(value, found.deep[value], numbers)
        if key is None:
            continue
        first = held.setdefault(key, value)
        if first is value or value in shown or not context.allows(name, value.name):
            continue
        assert value.node is not None and value.shape is not None
        new = first
        if first.shape != value.shape:
            with host.at(value.node):
                new = lower.view(host, View(first, value.shape, (Reshape(value.shape),)), value.name)
        host.replace(value, new)
        changed = True
        before, after = (value.node.name,), (new.node.name,) if new.node else ()
        detail = f"holds what {first.name} holds"
        context.report.rewrites.append(Rewrite(name, "reshape", value.name, before, after, 0.0, 0.0, 1.0, None, detail))
    return context.settle(host, changed)


def _may_share(host: Host) -> bool:
    """Whether some layouts of several operands hold equally many elements, which is seen without their terms."""
    found = [v for n in host.nodes if _joins(host, n) for v in n.outputs if v.shape is not None]
    counts = Counter((v.dtype, sizes.product(v.shape or ())) for v in found)
    return any(n > 1 for n in counts.values())


def _joins(host: Host, node: Node) -> bool:
    return node.op in OPERATORS[host.dialect] and len(node.inputs) > 1 and not node.opaque


def _key(value: Value, elements: Elements, numbers: dict[Source, int]) -> object:
    """Equal for values that hold the same elements in the same order; None where they are of one source, or where what
    lies in front of an open size makes the order another."""
    form, dtype = elements.form, value.dtype
    lead = len(form.symbolic)
    apart = form.symbolic != tuple(range(lead)) or any(n != 1 for n in form.counts[: max(lead - 1, 0)])
    if apart or len(elements.sources) < 2 or (elements.which < 0).any() or dtype != elements.dtype:
        return None
    known = np.array([numbers.setdefault(s, len(numbers)) for s in elements.sources])
    return dtype, form.opens[:lead], known[elements.which].tobytes(), elements.where.tobytes()


def _shown(host: Host) -> set[Value]:
    """The outputs, and what they may share memory with: those stay tensors of their own."""
    shown: set[Value] = set()
    pending = list(host.outputs)
    while pending:
        value = pending.pop()
        shown.add(value)
        if value.node is not None and host.dialect == "aten" and not copies(value.node):
            pending += [v for v in value.node.inputs if v not in shown]
    return shown
