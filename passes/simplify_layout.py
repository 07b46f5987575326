"""Values that only re-read others are made by the fewest layout operators that make the same elements.

before:  split, reshape, transpose, concat of slices, gathers by constants, run-time shape arithmetic, ...
after:   at most one each of slice, gather, reshape, transpose, expand, pad, and a concat of several sources; and no
         expand before what broadcasts
"""

from __future__ import annotations

from recopt.broadcasts import simplify_broadcasts
from recopt.hosts.base import Host
from recopt.joins import simplify_joins
from recopt.relayout import relayout
from recopt.remainders import simplify_remainders
from recopt.rewrite import Context
from recopt.row_order import keep_row_order
from recopt.sums import simplify_sums
from recopt.turned_columns import read_turned

name = "simplify-layout"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten."""
    steps = (
        keep_row_order, relayout, simplify_joins, simplify_broadcasts, simplify_remainders, simplify_sums, read_turned
    )  # fmt: skip
    return any([step(host, context, name) for step in steps])
