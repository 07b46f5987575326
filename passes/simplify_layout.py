"""Values that only re-read others are made by the fewest layout operators that make the same elements.

before:  split, reshape, transpose, concat of slices, gathers by constants, run-time shape arithmetic, ...
after:   at most one each of slice, gather, reshape, transpose, expand, pad, and a concat of several sources; and no
         expand before what broadcasts; of two operators that one of them does alone, that one
"""

from __future__ import annotations

from recopt.hosts.base import Host
from recopt.rewrite import Context
from recopt.simplify.broadcasts import simplify_broadcasts
from recopt.simplify.columns_in_place import write_in_place
from recopt.simplify.convolutions import fold_channels
from recopt.simplify.joins import simplify_joins
from recopt.simplify.late_choices import postpone_choices
from recopt.simplify.one_hots import look_up_one_hots
from recopt.simplify.pairs import join_pairs, join_reductions
from recopt.simplify.past_pointwise import move_past_pointwise
from recopt.simplify.relayout import relayout
from recopt.simplify.remainders import simplify_remainders
from recopt.simplify.row_order import keep_row_order
from recopt.simplify.single_operators import split_once, write_single
from recopt.simplify.small_tables import look_up_small
from recopt.simplify.sums import simplify_sums
from recopt.simplify.turned_columns import read_turned
from recopt.simplify.turned_joins import turn_before
from recopt.simplify.turned_rows import turn_at_once

name = "simplify-layout"


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten."""
    steps = (
        keep_row_order,
        join_reductions,
        write_single,
        relayout,
        write_in_place,
        simplify_joins,
        turn_before,
        turn_at_once,
        read_turned,
        split_once,
        postpone_choices,
        look_up_small,
        look_up_one_hots,
        simplify_broadcasts,
        simplify_remainders,
        simplify_sums,
        move_past_pointwise,  # the steps before know choices and columns by the layouts around them
        simplify_broadcasts,
        join_pairs,
        fold_channels,
    )
    return any([step(host, context, name) for step in steps])
