"""On CUDA, dot products of pairs of vectors become `recopt::dot_interaction`, with what is joined in front of them.

Elsewhere the product of all with all is as fast.
"""

from __future__ import annotations

from recopt import lower
from recopt.hosts.base import Host
from recopt.patterns import dot_interaction
from recopt.rewrite import Context, apply

name = "fuse-dot-interaction"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten."""
    if context.target != "cuda" or not apply(host, dot_interaction, context):
        return False
    lower.join_interactions(host)
    return True
