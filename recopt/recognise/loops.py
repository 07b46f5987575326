"""Recurrences that the graph holds as a loop: the step is the body's term over the state before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..hosts.base import Array, Node, Value
from ..ir import sizes, tensor
from ..ir.evaluate import evaluate
from ..ir.normal import substitute
from ..ir.tensor import ShapeError, Tensor
from ..ir.term import Leaf, TooLarge, axis, coord, number
from ..lift.base import Lifted, Opaque
from ..lift.turns import turns_of
from ..match import No
from .recurrence import PREVIOUS, Chain


@dataclass(frozen=True)
class Loop:
    """`chain`, whose states no value holds but the last; `made`: what the graph has of all turns, `chain.position` for
    the turn."""

    chain: Chain
    made: Mapping[Value, Tensor]


def loop_of(lifted: Lifted, node: Node) -> Loop:
    """The one state that a loop hands on. Raises No where it is not understood, or hands on several."""
    try:
        turns = turns_of(lifted, node)
        if len(turns.states) != 1:
            raise No("a loop that hands on {} states", len(turns.states))
        (state,) = turns.states
        if turns.count == 0:
            raise No("a loop of no turns")
        position, start = axis(turns.count), lifted.term[state.start]
        before = {state.before: tensor.leaf(PREVIOUS, start.shape, start.dtype)}
        step = turns.term(state.after, coord(position), before).canonical()
        made = turns.side_by_side(position, before)
    except (Opaque, ShapeError) as why:
        raise No("the body of {}: {}", node.op, str(why)) from None
    except TooLarge:
        raise No("the body of {} is too large a term", node.op) from None
    return Loop(Chain((state.end,), state.start, step, position), made)


def turn_by_turn(lifted: Lifted, chain: Chain, array: Callable[[Leaf], Array], symbols: Mapping[str, int]) -> Array:
    """All states of a loop [B, T, H], in float64."""
    assert chain.start is not None
    states = [evaluate(lifted.term[chain.start], array, symbols)]
    for t in range(sizes.evaluate(chain.position.size, symbols)):
        now = chain.step.with_body(substitute(chain.step.body, {chain.position: number(t)}))
        states.append(evaluate(now, lambda leaf: states[-1] if leaf is PREVIOUS else array(leaf), symbols))
    return np.stack(states[1:], axis=1)
