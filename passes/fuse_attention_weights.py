"""Attention weights that no average takes become `recopt::attention_weights`, on CUDA: one kernel for three."""

from __future__ import annotations

from recopt.hosts.base import Host
from recopt.patterns import attention_weights
from recopt.rewrite import Context, apply

name = "fuse-attention-weights"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten. On a CPU torch's own operators serve as well."""
    return context.target == "cuda" and apply(host, attention_weights, context)
