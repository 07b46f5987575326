"""Linear + bias + activation, in every spelling, become `recopt::linear`."""

from __future__ import annotations

from recopt.hosts.base import Host
from recopt.patterns import linear
from recopt.rewrite import Context, apply

name = "fuse-linear"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten."""
    return apply(host, linear, context)
