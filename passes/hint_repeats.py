"""On CUDA, long bags say whether their ids repeat, as the example inputs do: whole rows are faster then, slices else.

before:  sum t0[i0:0+150]
after:   sum t0[i0:0+150] hot        or cold
"""

from __future__ import annotations

from recopt import lower
from recopt.hosts.base import Host
from recopt.rewrite import Context

name = "hint-repeats"


def run(host: Host, context: Context) -> bool:
    """Whether any bags say so now. Without example inputs, or on another target, none do."""
    if context.target != "cuda" or context.example is None:
        return False
    hinted = lower.hint_repeats(host, context.example)
    context.lifted = None if hinted else context.lifted
    return hinted
