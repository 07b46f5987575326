"""Values that only re-read others are made by the fewest layout operators that make the same elements.

before:  split, reshape, transpose, concat of slices, gathers by constants, run-time shape arithmetic, ...
after:   at most one each of slice, gather, reshape, transpose, expand, pad, and a concat of several sources
"""

from __future__ import annotations

from recopt.hosts.base import Host
from recopt.relayout import relayout
from recopt.rewrite import Context

name = "simplify-layout"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten."""
    return relayout(host, context, name)
