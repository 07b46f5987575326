"""Chains of gated steps over a sequence become `recopt::gru` or `recopt::augru`."""

from __future__ import annotations

from recopt.hosts.base import Host
from recopt.patterns import gru
from recopt.rewrite import Context, apply

name = "fuse-gru"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten. A recurrence over the states of another is seen once that is one operator."""
    changed = False
    while apply(host, gru, context):
        changed = True
    context.report.refusals[:] = dict.fromkeys(context.report.refusals)  # what is left was looked at again
    return changed
