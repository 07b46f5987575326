"""Lookups, pooled or not and side by side, become `recopt::embedding_bags`; in ONNX a Gather and a reduction each."""

from __future__ import annotations

from recopt.hosts.base import Host
from recopt.patterns import embedding_bags
from recopt.rewrite import Context, apply

name = "fuse-embedding-bags"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten."""
    return apply(host, embedding_bags, context)
