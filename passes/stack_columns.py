"""The same chain on many columns of one tensor becomes one chain on all of them.

before:  ids[:, 0] % 10, ids[:, 1] % 20, ...
after:   (ids % [10, 20, ...])[:, 0], ..., whose slices the layout pass takes into what reads them
"""

from __future__ import annotations

from recopt.hosts.base import Host
from recopt.rewrite import Context
from recopt.simplify import columns

name = "stack-columns"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten. On CUDA a kernel takes columns as they are (fuse_pointwise)."""
    if context.target == "cuda":
        return False
    return columns.stack_columns(host, context, name)
