"""The host's own clean-up: equal and dead nodes go, functions are inlined."""

from __future__ import annotations

from recopt.hosts.base import Host
from recopt.hosts.onnx_contrib import FUSED
from recopt.lift import table_of
from recopt.rewrite import Context

name = "clean-up"

RUN_AS_THEY_ARE = ("ort-cpu",)  # targets on which a product that is fused with its activation stays one operator


def run(host: Host, context: Context) -> bool:
    """Whether the host has fewer nodes than before."""
    before = host.count_nodes()
    known = table_of(host).keys()
    host.inline(known if context.target in RUN_AS_THEY_ARE else known - FUSED)
    host.normalise()
    context.lifted = None
    return host.count_nodes() != before
