"""On CUDA, regions of layout, pointwise operators, hashes and buckets become `recopt::pointwise`: one launch each.

before:  log1p, clamp, 26 x (select, mul, add, remainder), bucketize, where, flip, .., cat
after:   recopt::pointwise
"""

from __future__ import annotations

from recopt.cost import nodes_cost
from recopt.hosts.base import Host
from recopt.lower import torch_pointwise
from recopt.match import No
from recopt.patterns import pointwise
from recopt.report import Refusal, Rewrite
from recopt.rewrite import Context

name = "fuse-pointwise"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten. On other targets nothing is: torch's own operators are as fast there."""
    if context.target != "cuda" or host.dialect != "aten":
        return False
    lifted = context.terms_of(host)
    found = []
    for nodes, outputs in pointwise.regions(lifted):
        root = outputs[-1].name
        try:
            spec, at = pointwise.match(lifted, nodes, outputs), pointwise.place(lifted, nodes)
        except No as why:
            context.report.refusals.append(Refusal(pointwise.name, root, str(why)))
            continue
        if at is not None and context.allows(pointwise.name, root):
            found.append((nodes, spec, at, root))
    moved = {}
    for nodes, spec, at, root in found:
        before = nodes_cost(host, nodes)
        inputs = tuple(moved.get(v, v) if not hasattr(v, "itemsize") else v for v in spec.inputs)
        spec = pointwise.Spec(inputs, spec.outputs, spec.program)
        with host.at(at):
            made = torch_pointwise.pointwise(host, spec, root)  # type: ignore[arg-type]  # the dialect says which host it is
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
    if found:
        host.erase_dead()
        context.lifted = None
    return bool(found)
