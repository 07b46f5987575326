"""Chains of gated steps over a sequence become `recopt::gru` or `recopt::augru`."""

from __future__ import annotations

from recopt.hosts.base import Host
from recopt.patterns import gru
from recopt.rewrite import Context, apply

name = "fuse-gru"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten."""
    return apply(host, gru, context)
