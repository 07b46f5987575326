"""GRU and AUGRU: a state that gates carry along a sequence, unrolled into steps or in a loop, in any spelling.

    r = sigmoid(Wr x[b, t] + Ur h + br),  z = g(Wz x[b, t] + Uz h + bz, a[b, t])        g: any function, masks in it
    n = tanh(Wn x[b, t] + bn + r * (Un h + cn))    or    tanh(Wn x[b, t] + bn + Un (r * h))
    h = z * h + (1 - z) * n

What decides is the term of one step, and that the others are that term at other positions: merged or separate gates,
(1 - u) * h + u * n or h + u * (n - h), masks by length, weights joined or apart are all this. DIEN's attention gate is
z = 1 - a * sigmoid(..). All states come from one operator; those that the graph reads are slices of what it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import TypeAlias

import numpy as np

from recopt.cost import product_flops
from recopt.fused import Flip, Gru, Reshape, Slice, Step, View
from recopt.hosts.base import Array, Node, Value
from recopt.ir import sizes, tensor
from recopt.ir.normal import add, substitute
from recopt.ir.rules import FLOATS
from recopt.ir.tensor import Tensor
from recopt.ir.term import Atom, Axis, Leaf, Poly, Read, TooLarge, coord
from recopt.lift.base import Lifted
from recopt.lift.turns import LOOPS
from recopt.match import Match, No, dead_after, needless
from recopt.recognise import epilogue
from recopt.recognise.gates import SIGMOID, Cell, Weighed, cell_of
from recopt.recognise.gru_layers import OP, layer_match
from recopt.recognise.loops import Loop, loop_of, turn_by_turn
from recopt.recognise.operands import stored_as
from recopt.recognise.places import Place, ScoreText
from recopt.recognise.recurrence import Chain, chain, is_layout
from recopt.recognise.views import regroup

name = "gru"
operator = "recopt::gru"

MIN_STEPS = 4  # a shorter chain is left alone
MAX_PIECES = 4  # tensors that a step's input is joined of
Served: TypeAlias = tuple[Value, tuple[Step, ...]]  # with the steps from [B, T, H] to it
Order: TypeAlias = tuple[tuple[Step, ...], Tensor]  # steps from [B, T, H], and what they make


# --- where to look ---


def roots(lifted: Lifted) -> list[Value]:
    """The last states of chains of steps, last first."""
    chains: dict[Value, Chain] = {}
    seen: set[Value] = set()
    layers: list[Value] = []
    for node in reversed(lifted.host.nodes):
        if node.op == OP:
            layers.append(node.outputs[0])
        layers += _carried(lifted, node)
        for value in node.outputs:
            found = None if value in seen else chain(lifted, value)
            if found is not None:
                seen.update(found.states)
                if len(found.states) >= MIN_STEPS:
                    chains[value] = found
    lifted.notes["chains"] = chains
    return sorted([*chains, *layers], key=lambda v: -lifted.order[v])


def _carried(lifted: Lifted, node: Node) -> list[Value]:
    """The first rows of floats that a loop makes and nobody understands, as one over the steps of a sequence does."""
    rows = [v for v in node.outputs if v.dtype in FLOATS and v.shape is not None and len(v.shape) > 1]
    return [v for v in rows if node.op in LOOPS and v not in lifted.definition][:1]


# --- the match ---


def match(lifted: Lifted, root: Value) -> Match | None:
    """The chain that ends in `root` as a fused recurrence. None where its step is no gated cell; raises No where it
    nearly is one."""
    if root.node is not None and root.node.op == OP:
        return layer_match(lifted, root.node)
    try:
        if root.node is not None and root in _carried(lifted, root.node):
            return _looped(lifted, loop_of(lifted, root.node))
        chains = lifted.notes.get("chains")
        assert isinstance(chains, dict)
        found = chains.get(root)
        cell = None if found is None else cell_of(lifted, found.step)
        return None if found is None or cell is None else _match(lifted, found, cell, *_served(lifted, found))
    except TooLarge:
        raise No("the term of {} is too large", root.name) from None


def _looped(lifted: Lifted, found: Loop) -> Match:
    """A loop of the graph: no value holds a state but the last, and what it has of all turns."""
    chain, (end,) = found.chain, found.chain.states
    fits = len(chain.step.dims) == 2 and isinstance(chain.step.shape[1], int)
    cell = cell_of(lifted, chain.step) if fits else None
    if cell is None:
        raise No("the body of {} is no gated cell", end.node.op if end.node else end.name)
    (batch, hidden), steps = chain.step.shape, chain.position.size
    served: list[Served] = []
    if lifted.host.users(end) or lifted.host.is_output(end):
        if not isinstance(steps, int) and lifted.host.dialect == "aten":
            raise No("the last of {} states", steps)
        served.append((end, (Slice(1, sizes.size(steps - 1), steps), Reshape((batch, hidden)))))
    rows, columns = chain.step.dims
    states = Tensor((rows, (chain.position,), columns), chain.step.body)
    for value, made in found.made.items():
        turned = _in_any(made, [((), states), ((Flip(1),), tensor.flip(states, [1]))])
        if turned is None:
            raise No("what the loop makes of all turns is more than states")
        served.append((value, turned))
    match = _match(lifted, chain, cell, served, [v for v, _ in served], end.node)
    last = len(match.spec.shape) == 2

    def reference(array: Callable[[Leaf], Array], symbols: Mapping[str, int]) -> Array:
        made = turn_by_turn(lifted, chain, array, symbols)
        return made[:, -1] if last else made

    return replace(match, means=lambda: chain.step, reference=reference)


def _match(
    lifted: Lifted,
    found: Chain,
    cell: Cell,
    served: Sequence[Served],
    others: Sequence[Value],
    loop: Node | None = None,
) -> Match:
    if not served:
        raise No("nothing reads the states")
    rows, (column,) = found.step.dims
    batch, hidden = found.step.shape
    first = min((v for v, _ in served), key=lambda v: lifted.order[v])
    place = Place(lifted, first, frozenset(found.states), (rows,))
    x, wi = _inputs(place, cell, found.position)
    printer = ScoreText(place, [(found.position,)])
    text = printer.poly(cell.keep)
    keep = SIGMOID if not printer.operands and epilogue.named(text) == SIGMOID else text
    dtype = found.step.dtype
    gates = (cell.reset, cell.update, cell.candidate)

    def joined(arrays: Iterator[Array]) -> Array:
        return stored_as(np.concatenate(list(arrays)), dtype)

    # in torch the last of all states is a view of them
    last = lifted.host.dialect == "onnx" and [v for v, _ in served] == [found.states[-1]]
    shape = (batch, hidden) if last else (batch, found.position.size, hidden)
    spec = Gru(
        x,
        _start(place, found, column),
        stored_as(wi, dtype),
        joined(g.state for g in gates),
        joined(g.bias for g in gates),
        joined(g.state_bias for g in gates),
        cell.after,
        keep,
        tuple(printer.operands),
        shape,
        dtype,
        (),
        found.states[-1].name,
        last,
    )
    kept = [v.value for v in spec.views]
    stays = lifted.opaque.keys() - {loop}
    dead = needless(lifted.host, found.states[-1], kept, stays, [*found.states, *others])
    gone = [v for node in dead for v in node.outputs if v in lifted.definition]
    flops = sum(product_flops(lifted.definition[v]) for v in gone)
    return Match(
        name,
        found.states[-1],
        spec,
        lambda: _leaf(lifted, found.states[-1]) if last else _sequence(lifted, found.states),
        dead,
        frozenset(found.states),
        flops,
        _between(lifted, spec, found.states),
        serves=((found.states[-1], ()),) if last else tuple(served),
        at=first.node,
    )


def _start(place: Place, found: Chain, column: Axis) -> View | None:
    if found.start is None:
        return None
    seen = place.lifted.term[found.start]
    if seen.body.number == 0:
        return None
    here = seen.at([tensor.ravel(place.rows[0]), coord(column)])
    return place.view(here, [(column,)], "the first state", found.start)


def _between(lifted: Lifted, spec: Gru, states: Sequence[Value]) -> frozenset[Value]:
    """The states, and what is computed on the way to them from what the operator reads; others may read it too."""
    kept = {v.value for v in spec.views}
    found, pending = set(states), list(states)
    while pending:
        node = pending.pop().node
        fresh = [] if node is None else [u for u in node.inputs if u not in found and u not in kept]
        fresh = [u for u in fresh if u in lifted.definition and not lifted.host.is_constant(u)]
        found.update(fresh)
        pending += fresh
    return frozenset(found)


# --- what it gives


def _sequence(lifted: Lifted, states: Sequence[Value]) -> Tensor:
    """All states, [B, T, H], as the graph has them."""
    return tensor.stack([_leaf(lifted, v) for v in states], 1)


def _leaf(lifted: Lifted, value: Value) -> Tensor:
    own = lifted.term[value]
    return tensor.leaf(value, own.shape, own.dtype)


def _served(lifted: Lifted, found: Chain) -> tuple[list[Served], list[Value]]:
    """The values of the graph that are states or all of them side by side and that others read, each with the steps
    from [B, T, H] to it; and what holds all states side by side."""
    states = found.states
    batch, hidden = (sizes.product(a.size for a in d) for d in found.step.dims)
    whole = _stacks(lifted, states)
    dead = set(dead_after(lifted, states[-1], [], [*states, *whole]))
    served: list[Served] = []
    for n, value in enumerate(states):
        if _wanted(lifted, value, dead):
            served.append((value, (Slice(1, n, n + 1), Reshape((batch, hidden)))))
    served += [(v, steps) for v, steps in whole.items() if _wanted(lifted, v, dead)]
    return served, list(whole)


def _wanted(lifted: Lifted, value: Value, dead: set[Node]) -> bool:
    return lifted.host.is_output(value) or any(u not in dead for u in lifted.host.users(value))


def _stacks(lifted: Lifted, states: Sequence[Value]) -> dict[Value, tuple[Step, ...]]:
    """The values that hold all states side by side, with the steps from [B, T, H] to each."""
    found: dict[Value, tuple[Step, ...]] = {}
    orders: list[Order] = [((), _sequence(lifted, states)), ((Flip(1),), _sequence(lifted, states[::-1]))]
    pending = list(lifted.host.users(states[0]))
    while pending:
        node = pending.pop()
        for value in node.outputs:
            held = _laid_out(lifted, value, frozenset(states))
            if held is None or value in states:
                continue
            steps = _in_any(held, orders)
            if steps is not None:
                found[value] = steps
            elif len(held.body.monos) == 1:
                pending += lifted.host.users(value)
    return found


def _laid_out(lifted: Lifted, value: Value, states: frozenset[Value]) -> Tensor | None:
    """A value that layout makes of states, over them; None where it is anything else."""
    own = lifted.local(value)
    if own is None or not is_layout(own.body):
        return None
    inner: dict[Leaf, Tensor] = {}
    for leaf in own.body.leaves - states:
        held = _laid_out(lifted, leaf, states) if isinstance(leaf, Value) else None
        if held is None:
            return None
        inner[leaf] = held

    def opened(atom: Atom) -> Poly | None:
        return inner[atom.leaf].at(list(atom.index)) if isinstance(atom, Read) and atom.leaf in inner else None

    return own.with_body(substitute(own.body, {}, opened))


def _in_any(held: Tensor, orders: Sequence[Order]) -> tuple[Step, ...] | None:
    """The steps from [B, T, H] to a value with the same elements in one of these orders; None where it has others."""
    turned = ((first, _turned(held, expected)) for first, expected in orders)
    return next(((*first, *steps) for first, steps in turned if steps is not None), None)


def _turned(held: Tensor, expected: Tensor) -> tuple[Step, ...] | None:
    """The steps from [B, T, H] to a value with the same elements; None where it has others."""
    if len(held.axes) != len(expected.axes):
        return None
    for order in permutations(expected.axes):
        if [a.size for a in order] != [a.size for a in held.axes]:
            continue
        if tensor.renamed(held.body, dict(zip(held.axes, order, strict=True))) is expected.body:
            left = iter(order)
            return regroup(expected.dims, [tuple(next(left) for _ in dim) for dim in held.dims])
    return None


# --- what it reads


def _inputs(place: Place, cell: Cell, position: Axis) -> tuple[View, Array]:
    """The sequence of inputs [B, T, K], and the weights [3H, K] on it."""
    gates: tuple[Weighed, ...] = (cell.reset, cell.update, cell.candidate)
    pieces = _pieces(gates)
    if not 0 < len(pieces) <= MAX_PIECES:
        raise No("a step weighs {} inputs", len(pieces))
    refused: No | None = None
    for order in permutations(pieces):
        whole = tensor.concat([Tensor(((k,),), x) for x, k, _ in order], 0)
        try:
            view = place.view(whole.body, [(position,), whole.dims[0]], "the inputs")
        except No as why:
            refused = refused or why
            continue
        if view.shape[1] != position.size or (place.rows[0] and whole.body.axes_read.isdisjoint(place.rows[0])):
            raise No("the inputs do not vary along the batch and the sequence")
        return view, np.concatenate([w for _, _, w in order], axis=1)
    assert refused is not None
    raise refused


def _pieces(gates: Sequence[Weighed]) -> list[tuple[Poly, Axis, Array]]:
    """What the gates weigh, each over an axis and with the weights [3H, K]; terms under one weight are added up."""
    pieces: list[tuple[Poly, Axis, Array]] = []
    for x, k in dict.fromkeys((x, k) for g in gates for x, k, _ in g.inputs):
        known = [{(y, a): w for y, a, w in g.inputs}.get((x, k)) for g in gates]
        rows = [np.zeros((len(g.bias), int(k.size))) if w is None else w for g, w in zip(gates, known, strict=True)]
        weights = np.concatenate(rows)
        same = next((n for n, (_, a, w) in enumerate(pieces) if a == k and np.array_equal(w, weights)), None)
        if same is None:
            pieces.append((x, k, weights))
        else:
            pieces[same] = (add(pieces[same][0], x), k, weights)
    return pieces
