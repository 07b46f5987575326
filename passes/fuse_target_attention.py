"""A history averaged by a network's scores of it beside a target becomes `recopt::target_attention`."""

from __future__ import annotations

from recopt.hosts.base import Host
from recopt.patterns import target_attention
from recopt.rewrite import Context, apply

name = "fuse-target-attention"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten."""
    return apply(host, target_attention, context)
