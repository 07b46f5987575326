"""Layer and RMS normalisation, in every spelling, become the target's own operator."""

from __future__ import annotations

from recopt.hosts.base import Host
from recopt.patterns import layer_norm
from recopt.rewrite import Context, apply

name = "fuse-layer-norm"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten."""
    return apply(host, layer_norm, context)
