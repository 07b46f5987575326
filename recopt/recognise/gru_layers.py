"""A GRU that is one operator of the graph already: `torch.nn.GRU` of one layer and direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..fused import Gru, Permute, Reshape, Slice, Step, View
from ..hosts.base import Array, Node, Value
from ..ir.term import Leaf
from ..lift.base import Lifted
from ..match import Match, No, dead_after

OP = "aten.gru.input"


def layer_match(lifted: Lifted, node: Node) -> Match:
    """The match of a node. Raises No for what `recopt::gru` is not: several layers or directions."""
    x, start, params, biased, layers, _, training, both, batch_first = node.args
    states, last = node.outputs
    if layers != 1 or both or training:
        kind = f"{', both directions' if both else ''}{', training' if training else ''}"
        raise No("a GRU of {} layers{}", layers, kind)
    if x.shape is None or len(x.shape) != 3 or states.dtype is None:
        raise No("a GRU of no known shape")
    wi, wh, *biases = (View(p, p.shape) for p in params)
    none = np.zeros(wi.shape[0], states.dtype)
    bi, bh = biases if biased else (none, none)
    batch, steps = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
    hidden = wh.shape[1]
    turn = () if batch_first else (Permute((1, 0, 2)),)
    serves: list[tuple[Value, tuple[Step, ...]]] = []
    if _read(lifted, states):
        serves.append((states, turn))
    if _read(lifted, last):
        if not isinstance(steps, int):
            raise No("the last of {} states", steps)
        serves.append((last, (Slice(1, steps - 1, steps), Permute((1, 0, 2)))))
    h0 = None
    if lifted.term[start].body.number != 0:
        h0 = View(start, (batch, hidden), (Reshape((batch, hidden)),))
    spec = Gru(View(x, (batch, steps, x.shape[2]), turn), h0, wi, wh, bi, bh, True, "sigmoid(h)", (),
               (batch, steps, hidden), states.dtype, (), states.name)  # fmt: skip

    def reference(array: Callable[[Leaf], Array], symbols: Mapping[str, int]) -> Array:
        """What the node computes, in the order of its own operands."""
        sequence = array(x) if batch_first else array(x).swapaxes(0, 1)
        return _reference(sequence, array(start)[0], *(array(p) for p in params), *(() if biased else (none, none)))

    return Match(
        "gru", states, spec, lambda: lifted.term[states], dead_after(lifted, states, [v.value for v in spec.views]),
        frozenset((states,)),
        serves=tuple(serves), reference=reference,
    )  # fmt: skip


def _read(lifted: Lifted, value: Value) -> bool:
    return bool(lifted.host.users(value)) or lifted.host.is_output(value)


def _reference(x: Array, h: Array, wi: Array, wh: Array, bi: Array, bh: Array) -> Array:
    """torch.nn.GRU as its documentation has it, in float64."""
    states = []
    wi, wh, bi, bh = (a.astype(np.float64) for a in (wi, wh, bi, bh))
    ir, iz, im = np.split(wi, 3)
    hr, hz, hm = np.split(wh, 3)
    (br, bz, bm), (cr, cz, cm) = np.split(bi, 3), np.split(bh, 3)
    for t in range(x.shape[1]):
        now = x[:, t]
        r = 1 / (1 + np.exp(-(now @ ir.T + br + h @ hr.T + cr)))
        z = 1 / (1 + np.exp(-(now @ iz.T + bz + h @ hz.T + cz)))
        m = np.tanh(now @ im.T + bm + r * (h @ hm.T + cm))
        h = (1 - z) * m + z * h
        states.append(h)
    return np.stack(states, axis=1)
