"""The host's own clean-up: equal and dead nodes go, functions are inlined."""

from __future__ import annotations

from recopt.hosts.base import Host
from recopt.lift import table_of
from recopt.rewrite import Context

name = "clean-up"


def run(host: Host, context: Context) -> bool:
    """Whether the host has fewer nodes than before."""
    before = host.count_nodes()
    host.inline(table_of(host))
    host.normalise()
    context.lifted = None
    return host.count_nodes() != before
