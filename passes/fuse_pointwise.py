"""On CUDA, regions of layout, pointwise operators, hashes and buckets become `recopt::pointwise`: one launch each.

before:  log1p, clamp, 26 x (select, mul, add, remainder), bucketize, where, flip, .., cat
after:   recopt::pointwise
"""

from __future__ import annotations

from typing import NamedTuple

from recopt.cost import nodes_cost
from recopt.hosts.base import Host, Node, Value
from recopt.hosts.fx import FxHost
from recopt.lift.base import Lifted
from recopt.lower import torch_pointwise
from recopt.patterns import pointwise
from recopt.report import Refusal, Rewrite
from recopt.rewrite import Context

name = "fuse-pointwise"


class Found(NamedTuple):
    """A region that becomes `spec`, written before `at`; `root` names it."""

    nodes: list[Node]
    spec: pointwise.Spec
    at: Node
    root: str


def _regions(lifted: Lifted, without: set[Node]) -> tuple[list[Found], list[tuple[str, pointwise.Refused]]]:
    """The regions that can be written, and those that cannot with the reason."""
    found, refused = [], []
    for nodes, outputs in pointwise.regions(lifted, without):
        root = outputs[-1].name
        at = pointwise.place(lifted, nodes)
        try:
            if at is not None:
                found.append(Found(nodes, pointwise.match(lifted, nodes, outputs), at, root))
        except pointwise.Refused as why:
            refused.append((root, why))
    return found, refused


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten. On other targets nothing is: torch's own operators are as fast there."""
    if context.target != "cuda" or not isinstance(host, FxHost):
        return False
    lifted = context.terms_of(host)
    without: set[Node] = set()
    found: list[Found] = []
    while True:  # a node that cannot be stated after all ends a region, and does not spoil it
        found, refused = _regions(lifted, without)
        culprits = {why.node for _, why in refused if why.node is not None} - without
        if not culprits:
            break
        without |= culprits
        context.report.refusals += [Refusal(pointwise.name, root, str(why)) for root, why in refused if why.node]
    context.report.refusals += [Refusal(pointwise.name, root, str(why)) for root, why in refused]
    found = [f for f in found if context.allows(pointwise.name, f.root)]
    moved: dict[Value, Value] = {}
    for nodes, spec, at, root in found:
        before = nodes_cost(host, nodes)
        inputs = tuple(moved.get(v, v) if isinstance(v, Value) else v for v in spec.inputs)
        spec = pointwise.Spec(inputs, spec.outputs, spec.program)
        with host.at(at):
            made = torch_pointwise.pointwise(host, spec, root)
        for old, new in zip(spec.outputs, made, strict=True):
            host.replace(old, new)
            moved[old] = new
        gone = tuple(n.name for n in nodes)
        saved = (before.bytes / 2, 0.0, before.launches - 1)
        after = tuple(dict.fromkeys(v.node.name for v in made if v.node))
        detail = str(spec.program)
        context.report.rewrites.append(
            Rewrite(pointwise.name, pointwise.operator, root, gone, after, *saved, None, detail)
        )
    return context.settle(host, bool(found))
