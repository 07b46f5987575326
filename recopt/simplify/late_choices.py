"""Choices whose condition is broadcast along rows, of which gathers read a part: made of that part alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..cost import ON_CPU
from ..hosts.base import Array, Host, Node, Value
from ..hosts.onnx import OnnxHost
from ..ir.sizes import nominal, product
from ..lower.onnx_layout import reshape
from ..report import Rewrite
from ..rewrite import Context
from .broadcasts import contrary, flat_condition, lasting, narrow_condition, negated, swaps, unexpanded

# ns of ONNX Runtime on a CPU: a number of a choice, a row whose condition is filled, an operator
NUMBER, FILLED, OPERATOR = 0.45, 3.3, 1200.0


def postpone_choices(host: Host, context: Context, name: str) -> bool:
    """Rewrite choices of an ONNX graph for ort-cpu to come after what reads them, which is exact. True where any is.

    before:  t = Where(Unsqueeze(c [rows, 16]), x [rows, 16, 16], 0);  Gather(Transpose(t, perm 2 0 1), [1, 3], axis 0);
             Gather(t, 3, axis 1);  Gather(t, 0, axis 1)
    after:   Where(Xor(c, true), 0, Gather(Transpose(x, perm 2 0 1), [1, 3], axis 0));
             s = Where(Unsqueeze(Gather(c, [3, 0], axis 1)), Gather(x, [3, 0], axis 1), 0);  Gather(s, 0, axis 1); ..
    """
    if not isinstance(host, OnnxHost) or context.target not in ON_CPU:
        return False
    changed = False
    for node in [n for n in host.nodes if n.op == "Where" and not n.opaque]:
        args = _choice(host, context, node)
        if args is None:
            continue
        turned = [u for u in host.users(node.outputs[0]) if _turns(host, u)]
        places = [u for u in host.users(node.outputs[0]) if u not in turned]
        if not _pays(host, node, turned, places) or not context.allows(name, node.outputs[0].name):
            continue
        for turn in turned:
            _after_turn(host, args, turn)
        if places:
            _at_places(host, args, places)
        made = tuple(n.name for n in [*turned, *places])
        context.report.rewrites.append(
            Rewrite(name, "choice", node.outputs[0].name, (node.name,), made, 0.0, 0.0, 0.0, None, "of what is read")
        )
        changed = True
    return context.settle(host, changed, merged=True)


def _choice(host: OnnxHost, context: Context, node: Node) -> list[Value] | None:
    """The operands of a choice between x [rows, n, m] and one number, by a condition [rows, n, 1] that is computed."""
    out, lifted = node.outputs[0], context.terms_of(host)
    shape = out.shape
    if narrow_condition(lifted, node) is None or shape is None or len(shape) != 3 or host.is_output(out):
        return None
    args = [a for a in unexpanded(host, lifted, node) if a is not None]
    x, number = sorted(args[1:], key=host.is_constant)
    fits = host.is_constant(number) and host.constant(number).size == 1 and x.shape == shape
    return args if fits and isinstance(shape[1], int) and args[0].shape == (*shape[:2], 1) else None


def _turns(host: Host, node: Node) -> bool:
    """Whether a node puts rows in a dimension in front, of which some are gathered."""
    if node.op != "Transpose" or node.opaque or list(node.kwargs.get("perm") or ()) != [2, 0, 1]:
        return False
    readers = host.users(node.outputs[0])
    return not host.is_output(node.outputs[0]) and all(_gathers(host, n, 0) for n in readers)


def _gathers(host: Host, node: Node, axis: int) -> bool:
    """Whether a node gathers at known places of one of three dimensions."""
    if node.op != "Gather" or node.opaque or node.kwargs.get("axis", 0) not in (axis, axis - 3):
        return False
    return host.is_constant(node.args[1]) and host.constant(node.args[1]).ndim < 2 and bool(node.outputs[0].shape)


def _pays(host: Host, choice: Node, turned: Sequence[Node], places: Sequence[Node]) -> bool:
    """Whether all that reads a choice can come before it, and takes less time then, at the nominal batch."""
    if not all(_gathers(host, n, 1) for n in places):
        return False
    *sides, width = choice.outputs[0].shape or ()
    row = FILLED + nominal(width) * NUMBER
    before = nominal(product(sides)) * row + 3 * OPERATOR
    read = [n for turn in turned for n in host.users(turn.outputs[0])]
    numbers = sum(nominal(product(n.outputs[0].shape or ())) for n in read)
    after = numbers * NUMBER + len(read) * OPERATOR
    if places:
        after += nominal(sides[0]) * len(_union(host, places, int(sides[1]))) * row + 6 * OPERATOR
    return after < before


def _union(host: Host, places: Sequence[Node], size: int) -> Array:
    return np.unique(np.concatenate([host.constant(n.args[1]).reshape(-1) % size for n in places]))


def _after_turn(host: OnnxHost, choice: Sequence[Value], turn: Node) -> None:
    """The choice after what reads its transpose, whose rows have the condition's own shape."""
    condition, *others = choice
    swapped = swaps(host, choice)
    others = others[::-1] if swapped else others
    for node in list(host.users(turn.outputs[0])):
        out = node.outputs[0]
        with host.at(node):
            flat = _flat(host, condition)
            args = [(contrary if swapped else lasting)(host, flat)]
            for arg in others:
                if not host.is_constant(arg):
                    turned = _again(host, turn, arg)
                    arg = host.call(
                        "Gather", [turned, node.args[1]], node.kwargs, name=out.name, shape=out.shape, dtype=out.dtype
                    )
                args.append(arg)
            new = host.call("Where", args, name=out.name, shape=out.shape, dtype=out.dtype, like=out)
        host.replace(out, new)


def _flat(host: OnnxHost, condition: Value) -> Value:
    """A condition [rows, n, 1] as [rows, n]."""
    before = flat_condition(condition)
    return before or reshape(host, condition, (condition.shape or ())[:-1], condition.name)


def _again(host: Host, node: Node, x: Value) -> Value:
    """What a node makes of another value."""
    out = node.outputs[0]
    return host.call(node.op, [x], node.kwargs, name=out.name, shape=out.shape, dtype=out.dtype)


def _at_places(host: OnnxHost, choice: Sequence[Value], places: Sequence[Node]) -> None:
    """The choice at the places that are gathered, once for all of them."""
    condition, *others = choice
    shape = condition.shape or ()
    size = int(shape[1])
    union = _union(host, places, size)
    first, rows = places[0], (shape[0], len(union))
    name = first.outputs[0].name
    with host.at(first):
        index = host.share_constant(union, name=f"{name}_places")
        flat = _flat(host, condition)
        of = negated(flat)
        own = host.call("Gather", [of or flat, index], {"axis": 1}, name=condition.name, shape=rows, dtype="bool")
        if of is not None:  # of fewer rows, or none: a condition that is filled takes it in
            own = host.call("Not", [own], name=condition.name, shape=rows, dtype="bool")
        wide = (*rows, *(first.args[0].shape or ())[2:])
        args = [reshape(host, own, (*rows, 1), condition.name)]
        for arg in others:
            if not host.is_constant(arg):
                arg = host.call("Gather", [arg, index], {"axis": 1}, name=arg.name, shape=wide, dtype=arg.dtype)
            args.append(arg)
        whole = host.call("Where", args, name=f"{name}_choice", shape=wide, dtype=first.outputs[0].dtype)
    for node in places:
        out = node.outputs[0]
        at = np.searchsorted(union, host.constant(node.args[1]) % size)
        with host.at(node):
            picked = host.share_constant(np.asarray(at), name=f"{out.name}_index")
            new = host.call(
                "Gather", [whole, picked], {"axis": 1}, name=out.name, shape=out.shape, dtype=out.dtype, like=out
            )
        host.replace(out, new)
