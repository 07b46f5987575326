"""torch.nn.GRU of several layers or directions, which torch exports as one call: a call for each of them."""

from __future__ import annotations

from functools import partial

from .base import Host, Node, Value

GRU = "aten.gru.input"


def apart(host: Host, node: Node) -> tuple[Value, Value] | None:
    """The states of the last layer and the last states of all, as a GRU's node gives them, by calls of one layer and
    direction at the insertion point. None where it has no more than that, or drops out between layers."""
    x, start, params, biased, layers, _, training, both, batch_first = node.args
    if training or (layers == 1 and not both):
        return None
    call = partial(host.call, name=node.name, like=x)
    each, time = 4 if biased else 2, [1 if batch_first else 0]
    last: list[Value] = []
    for _ in range(layers):
        states: list[Value] = []
        for backwards in (False, True)[: 2 if both else 1]:
            n = len(last)
            h0 = call("aten.slice.Tensor", (start, 0, n, n + 1, 1))
            given = call("aten.flip.default", (x, time)) if backwards else x
            own = params[n * each : (n + 1) * each]
            y = call(GRU, (given, h0, own, biased, 1, 0.0, False, False, batch_first))
            assert y.node is not None
            last.append(y.node.outputs[1])
            states.append(call("aten.flip.default", (y, time)) if backwards else y)
        x = call("aten.cat.default", (states, -1)) if both else states[0]
    return x, call("aten.cat.default", (last, 0))
