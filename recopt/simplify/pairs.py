"""Pairs of operators in ONNX graphs that one of the two does alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..hosts.base import Host, Node, Value
from ..hosts.onnx import OnnxHost
from ..ir.rules import FLOATS
from ..lower.onnx_columns import extremes
from ..report import Rewrite
from ..rewrite import Context
from . import layout_pairs
from .layout_pairs import ARGUMENTS, One, Rule, axes_of, made_by

GEMMS = ("Gemm", "com.microsoft::FusedGemm")


def join_reductions(host: Host, context: Context, name: str) -> bool:
    """Write reductions of transposed tensors as ones of the tensors, before layouts are planned. True where any is."""
    return isinstance(host, OnnxHost) and _join(host, context, name, layout_pairs.EARLY)


def join_pairs(host: Host, context: Context, name: str) -> bool:
    """Write the one operator. True where any is written.

    before:  Where(Not(c), a, b);  Clip(Relu(x), -1, 6);  Unsqueeze(ReduceSum(x, 1, keepdims 0), 1);
             Gemm(Transpose(x), w);  Add(Gemm(x, w), y [rows, n])
    after:   Where(c, b, a);       Clip(x, 0, 6);         ReduceSum(x, 1, keepdims 1);
             Gemm(x, w, transA 1);   Gemm(x, w, y)
    """
    if not isinstance(host, OnnxHost):
        return False
    return any([_join(host, context, name, rules) for rules in (RULES, layout_pairs.RULES)])


def _join(host: OnnxHost, context: Context, name: str, rules: Mapping[str, Sequence[Rule]]) -> bool:
    changed = False
    for node in list(host.nodes):
        for rule in rules.get(node.op, ()) if not node.opaque else ():
            one = rule(host, node)
            if one is not None and context.allows(name, node.outputs[0].name):
                _write(host, context, name, node, one)
                changed = True
                break
    return context.settle(host, changed)


def _write(host: OnnxHost, context: Context, name: str, node: Node, one: One | Value) -> None:
    out = node.outputs[0]
    with host.at(node):
        new = _made(host, out, one) if isinstance(one, One) else one
    host.replace(out, new)
    kept = new.node.inputs if new.node else ()
    gone = (node.name, *(v.node.name for v in node.inputs if v.node is not None and v not in kept))
    made = (new.node.name,) if new.node else ()
    what = f"one {one.op}" if isinstance(one, One) else "none"
    context.report.rewrites.append(Rewrite(name, "pair", out.name, gone, made, 0.0, 0.0, 1.0, None, what))


def _made(host: OnnxHost, out: Value, one: One) -> Value:
    args: list[Value | None] = []
    for arg in one.args:
        if isinstance(arg, One):  # of constants: an operator of the graph until those are folded
            parts = [
                host.share_constant(a, name=f"{out.name}_number") if isinstance(a, np.ndarray) else a for a in arg.args
            ]
            (like,) = (a for a in arg.args if isinstance(a, Value))
            args.append(
                host.call(arg.op, parts, arg.kwargs, name=f"{out.name}_values", shape=like.shape, dtype=arg.dtype)
            )
        else:
            args.append(host.share_constant(arg, name=f"{out.name}_bound") if isinstance(arg, np.ndarray) else arg)
    return host.call(one.op, args, one.kwargs, name=out.name, shape=out.shape, dtype=out.dtype, like=out)


def _choice(host: Host, node: Node) -> One | None:
    """A choice by not c is the other one by c, where choices alone read not c: as ONNX Runtime has it once it loaded a
    model."""
    condition, a, b = node.args
    before = condition.node
    if before is None or before.op != "Not" or before.opaque or host.is_output(condition):
        return None
    only = all(u.op == "Where" and condition not in u.args[1:] for u in host.users(condition))
    return One("Where", [before.args[0], b, a], {}) if only else None


def _bounds(host: Host, node: Node) -> tuple[float, float] | None:
    """The least and the largest number of a Relu or of a Clip of floats; None where they are not known, or are -0.0: of
    two zeros both operators give their input."""
    if node.outputs[0].dtype not in FLOATS - {"bfloat16"} or node.kwargs:
        return None
    if node.op == "Relu":
        return 0.0, np.inf
    bounds = list(extremes(str(node.outputs[0].dtype)))
    given = [(n, a) for n, a in enumerate(node.args[1:]) if a is not None]
    for n, arg in given:
        held = host.constant(arg) if host.is_constant(arg) else np.array(np.nan)
        if held.size != 1 or (held == 0 and np.signbit(held)):
            return None
        bounds[n] = held.item()
    return (bounds[0], bounds[1]) if given and bounds[0] <= bounds[1] else None


def _clip(host: Host, node: Node) -> One | None:
    """Bounds within bounds are the nearer ones, where numbers lie between them."""
    before = made_by(host, node.args[0], "Relu", "Clip")
    if before is None or {node.op, before.op} == {"Relu"}:
        return None
    outer, inner = _bounds(host, node), _bounds(host, before)
    if outer is None or inner is None:
        return None
    low, high = max(outer[0], inner[0]), min(outer[1], inner[1])
    dtype = str(node.outputs[0].dtype)
    if not low <= high:
        return None
    return One("Clip", [before.args[0], np.array(low, dtype), np.array(high, dtype)], {})


def _kept(host: Host, node: Node) -> One | None:
    """A reduction whose dimensions come back keeps them."""
    before = node.args[0].node
    reduces = before is not None and (before.op.startswith("Reduce") or before.op in ARGUMENTS)
    if before is None or not reduces or made_by(host, node.args[0], before.op) is None:
        return None
    axes = axes_of(host, before)
    shape, out = before.args[0].shape, node.outputs[0].shape
    if before.kwargs.get("keepdims", 1) or not axes or shape is None:
        return None
    dropped = {a % len(shape) for a in axes}
    if out != tuple(1 if n in dropped else size for n, size in enumerate(shape)):
        return None
    return One(before.op, before.args, {**before.kwargs, "keepdims": 1})


def _turned(host: Host, node: Node) -> One | None:
    """A product reads a transposed matrix where it lies."""
    args, kwargs = list(node.args), dict(node.kwargs)
    for n, which in ((0, "transA"), (1, "transB")):
        turn = args[n].node
        if (
            turn is None
            or turn.op != "Transpose"
            or turn.opaque
            or host.is_output(args[n])
            or host.is_constant(args[n])
        ):
            continue
        others = [u for u in host.users(args[n]) if u.op not in GEMMS or args[n] in u.args[2:]]
        if others or len(args[n].shape or ()) != 2 or list(turn.kwargs.get("perm") or (1, 0)) != [1, 0]:
            continue
        args[n], kwargs[which] = turn.args[0], 1 - int(kwargs.get(which, 0))
    return One(node.op, args, kwargs) if args != list(node.args) else None


def _padded(host: Host, node: Node) -> One | None:
    """A convolution pads with zeros itself."""
    pad = made_by(host, node.args[0], "Pad")
    shape = pad.args[0].shape if pad is not None else None
    if pad is None or not shape or node.kwargs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    if (
        pad.kwargs.get("mode", "constant") != "constant"
        or len(pad.args) < 2
        or any(a is not None for a in pad.args[3:])
    ):
        return None
    if not all(a is None or host.is_constant(a) for a in pad.args[1:]):
        return None
    if len(pad.args) > 2 and pad.args[2] is not None and host.constant(pad.args[2]).any():
        return None
    before, after = host.constant(pad.args[1]).reshape(2, -1).tolist()
    own = [int(n) for n in node.kwargs.get("pads") or [0] * 2 * (len(shape) - 2)]
    if any(before[:2] + after[:2]) or min(before + after) < 0:
        return None
    pads = [n + more for n, more in zip(own, before[2:] + after[2:], strict=True)]
    return One("Conv", [pad.args[0], *node.args[1:]], {**node.kwargs, "pads": pads})


def _added(host: Host, node: Node) -> One | None:
    """What is added to each number of a product of two matrices is its third operand."""
    shape = node.outputs[0].shape
    for product, other in (node.args, node.args[::-1]):
        made = made_by(host, product, "Gemm", "MatMul")
        if made is None or len(made.args) > 2 or made.kwargs.get("alpha", 1.0) != 1.0 or product.dtype not in FLOATS:
            continue
        matrices = all(len(v.shape or ()) == 2 for v in (*made.args, other))
        if matrices and product.shape == other.shape == shape:
            return One("Gemm", [*made.args, other], {k: v for k, v in made.kwargs.items() if k != "beta"})
    return None


RULES: dict[str, tuple[Rule, ...]] = {
    "Where": (_choice,),
    "Relu": (_clip,),
    "Clip": (_clip,),
    "Reshape": (_kept,),
    "Unsqueeze": (_kept,),
    "Add": (_added,),
    "Conv": (_padded,),
    **dict.fromkeys(GEMMS, (_turned,)),
}
