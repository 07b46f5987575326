"""Averages under a softmax of products of queries and keys become `recopt::attention`."""

from __future__ import annotations

from recopt.hosts.base import Host
from recopt.patterns import attention
from recopt.rewrite import Context, apply

name = "fuse-attention"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten."""
    return apply(host, attention, context)
