"""Products with projected items become products with the items themselves, by what the other side is projected to."""

from __future__ import annotations

from recopt.hosts.base import Host
from recopt.patterns import bilinear
from recopt.rewrite import Context, apply

name = "project-queries"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten."""
    return apply(host, bilinear, context)
