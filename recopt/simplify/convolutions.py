"""Convolutions of ONNX graphs with what is done to each of their channels."""

from __future__ import annotations

import numpy as np

from ..errors import GraphError
from ..hosts.base import Array, Host, Node, Value
from ..ir.normal import add, normal_mono
from ..ir.tensor import Tensor
from ..ir.term import Coord, Poly, Read, number
from ..lift.base import Lifted
from ..match import No, fold, is_data
from ..report import Rewrite
from ..rewrite import Context


def fold_channels(host: Host, context: Context, name: str) -> bool:
    """Fold what is affine in a convolution's result, by constants of each channel, into its weights: several positions
    wide ones, which are no `recopt::linear`. True where any is.

    before:  BatchNormalization(Conv(x, w, b), ..);  Add(Mul(Conv(x, w), s [n, 1]), t [n, 1])
    after:   Conv(x, w', b')
    """
    if host.dialect != "onnx":
        return False
    changed = False
    for node in list(host.nodes):
        conv = _convolution(host, node)
        weights = None if conv is None else _folded(host, context.terms_of(host), node, conv)
        if conv is None or weights is None or not context.allows(name, node.outputs[0].name):
            continue
        out = node.outputs[0]
        with host.at(node):
            args = [conv.args[0], *(host.add_constant(a, name=f"{out.name}_weight") for a in weights)]
            new = host.call("Conv", args, conv.kwargs, name=out.name, shape=out.shape, dtype=out.dtype, like=out)
        host.replace(out, new)
        made = (new.node.name,) if new.node else ()
        gone = (conv.name, node.name)
        context.report.rewrites.append(
            Rewrite(name, "convolution", out.name, gone, made, 0.0, 0.0, 1.0, None, "one Conv")
        )
        context.lifted, changed = None, True
    if changed:
        host.erase_dead()
    return changed


def _convolution(host: Host, node: Node) -> Node | None:
    """The convolution of constant weights that a node alone reads."""
    if node.opaque or len(node.outputs) != 1 or node.op not in ("Add", "Sub", "Mul", "Div", "BatchNormalization"):
        return None
    for value in node.inputs:
        conv = value.node
        if conv is None or conv.op != "Conv" or conv.opaque or host.is_output(value) or len(host.users(value)) != 1:
            continue
        if value.shape == node.outputs[0].shape and all(map(host.is_constant, conv.inputs[1:])):
            return conv
    return None


def _folded(host: Host, lifted: Lifted, node: Node, conv: Node) -> tuple[Array, Array] | None:
    """The weights and the bias of the one convolution; None where a node is something else, or they are not finite."""
    t = lifted.local(node.outputs[0])
    parts = None if t is None else _affine(lifted, t, conv.outputs[0])
    if t is None or parts is None:
        return None
    try:
        scale, offset = (fold(lifted, Tensor((t.dims[1],), part)) for part in parts)
        w = host.constant(conv.args[1])
        b = host.constant(conv.args[2]) if len(conv.args) > 2 and conv.args[2] is not None else np.zeros(len(w))
    except (No, GraphError):
        return None
    scaled = (w.astype(np.float64) * scale.reshape(-1, *[1] * (w.ndim - 1))).astype(w.dtype)
    moved = (b.astype(np.float64) * scale + offset).astype(w.dtype)
    kept = np.isfinite(scaled).all() and np.isfinite(moved).all() and ((scaled != 0) == (w != 0)).all()
    return (scaled, moved) if kept else None


def _affine(lifted: Lifted, t: Tensor, h: Value) -> tuple[Poly, Poly] | None:
    """The factor of h and what is added to it, both of the channel alone, where a term over h is that."""
    if len(t.dims) < 3 or any(len(d) > 1 for d in t.dims):
        return None
    factor, offset = number(0, t.body.dtype), number(0, t.body.dtype)
    for m in t.body.monos:
        data = [a for a in m.atoms if is_data(lifted, a)]
        part = normal_mono(m.coef, [a for a in m.atoms if a not in data], t.body.dtype)
        if m.axes or part.axes_read - set(t.dims[1]):
            return None
        if not data:
            offset = add(offset, part)
        elif len(data) == 1 and _reads(data[0], t, h):
            factor = add(factor, part)
        else:
            return None
    return factor, offset


def _reads(atom: object, t: Tensor, h: Value) -> bool:
    """Whether an atom is h, place by place."""
    if not isinstance(atom, Read) or atom.leaf is not h or len(atom.index) != len(t.dims):
        return False
    places = [p.atom for p in atom.index]
    return all(
        p.axis in d if isinstance(p, Coord) else not d and i.number == 0
        for p, i, d in zip(places, atom.index, t.dims, strict=True)
    )
