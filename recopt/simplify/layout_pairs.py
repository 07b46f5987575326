"""Pairs of ONNX operators around a change of layout or of type that one of the two does alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, cast

import numpy as np

from ..hosts.base import Array, Host, Node, Value
from ..layout.positions import EXACT, MOST
from ..lower.onnx_columns import POINTWISE

AXES = 13  # opset from which the axis of a Softmax is one dimension
ARGUMENTS = ("ArgMax", "ArgMin")
COMPARISONS: dict[str, np.ufunc] = {
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
}
ENDLESS = 2**31 - 1  # an end that exporters write for the end of a dimension
RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
NUMBERS = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11}
SOFTMAXES = ("Softmax", "LogSoftmax", "Hardmax")


class One(NamedTuple):
    """The operator in the place of a node and of those before it that nothing else reads; an operator among its
    operands is computed of constants."""

    op: str
    args: Sequence[Value | Array | One | None]
    kwargs: dict[str, object]
    dtype: str | None = None  # None: the node's


Found: TypeAlias = One | Value | None
Rule: TypeAlias = Callable[[Host, Node], Found]


def made_by(host: Host, value: Value | None, *ops: str) -> Node | None:
    """The operator that makes a value for one reader alone."""
    node = value.node if value is not None else None
    if node is None or value is None or node.opaque or node.op not in ops or len(node.outputs) != 1:
        return None
    return node if len(host.users(value)) == 1 and not host.is_output(value) else None


def axes_of(host: Host, node: Node) -> list[int]:
    """The dimensions that a node reduces over, where it says which."""
    if node.op in ARGUMENTS:
        return [int(node.kwargs.get("axis", 0))]
    given = node.args[1] if len(node.args) > 1 else None
    if given is not None:
        return [int(a) for a in host.constant(given)] if host.is_constant(given) else []
    return [int(a) for a in node.kwargs.get("axes") or ()]


def casts(host: Host, node: Node) -> Found:
    """A cast of what was cast to a type that holds all values of the first, from the first."""
    before = made_by(host, node.args[0], "Cast")
    source = before.args[0] if before is not None else None
    if source is None or node.args[0].dtype not in EXACT.get(str(source.dtype), ()):
        return None
    dtype = str(node.outputs[0].dtype)
    if source.dtype == dtype:
        return source if isinstance(source, Value) and source.shape == node.outputs[0].shape else None
    if "float" in str(source.dtype) and "int" in dtype and dtype not in ("int32", "int64"):
        return None  # what lies outside is anything
    return One("Cast", [source], dict(node.kwargs))


def triangles(host: Host, node: Node) -> Found:
    """A triangle of a triangle on the same side is the smaller one."""
    before = made_by(host, node.args[0], "Trilu")
    if before is None or before.kwargs.get("upper", 1) != node.kwargs.get("upper", 1):
        return None
    offsets = [n.args[1] if len(n.args) > 1 else None for n in (before, node)]
    if not all(o is None or host.is_constant(o) for o in offsets):
        return None
    numbers = [0 if o is None else int(host.constant(o).item()) for o in offsets]
    nearest = max(numbers) if node.kwargs.get("upper", 1) else min(numbers)
    return One("Trilu", [before.args[0], np.array(nearest, np.int64)], dict(node.kwargs))


def less_padded(host: Host, node: Node) -> Found:
    """A slice that cuts away no more than was added around a tensor: less is added, in any mode."""
    before = made_by(host, node.args[0], "Pad")
    given = (*before.args[1:2], *node.args[1:]) if before is not None else ()
    if before is None or len(given) < 4 or any(before.args[3:]) or not all(v and host.is_constant(v) for v in given):
        return None
    widths, starts, ends, dims, *steps = (host.constant(v) for v in given)
    source = before.args[0]
    if source.shape is None or (widths < 0).any() or any((s != 1).any() for s in steps):
        return None
    left = widths.reshape(2, -1).copy()
    for axis, start, end in zip(dims.tolist(), starts.tolist(), ends.tolist(), strict=True):
        d = axis % len(source.shape)
        size = source.shape[d]
        whole = size + int(left[:, d].sum()) if isinstance(size, int) else ENDLESS
        if start < 0 or (end >= 0 and end < whole == ENDLESS):
            return None
        left[:, d] -= (start, max(whole - end, 0) if end >= 0 else -end)
    if (left < 0).any():
        return None
    if not left.any():
        return cast("Value", source) if source.shape == node.outputs[0].shape else None
    return One("Pad", [source, left.reshape(-1), *before.args[2:]], dict(before.kwargs))


def truths(host: Host, node: Node) -> Found:
    """What is asked of truths that were made numbers says that they are true, or that they are not."""
    places = [n for n, a in enumerate(node.args) if a.node is not None and a.node.op == "Cast" and not a.node.opaque]
    if len(places) != 1:
        return None
    (place,) = places
    numbers, other = node.args[place], node.args[1 - place]
    source = numbers.node.args[0]
    if source.dtype != "bool" or source.shape is None or source.shape != node.outputs[0].shape:
        return None
    if not host.is_constant(other) or host.constant(other).size != 1:
        return None
    asked = [np.array([False, True]).astype(numbers.dtype), host.constant(other).reshape(())]
    answers = COMPARISONS[node.op](*(asked if place == 0 else asked[::-1])).tolist()
    if answers[0] == answers[1]:
        return None
    return cast("Value", source) if answers[1] else One("Not", [source], {})


def counts(host: Host, node: Node) -> Found:
    """Running sums of numbers that are spread over a shape: the sums, spread over it."""
    spread, axis = node.args[0].node, node.args[1]
    shape, dtype = node.outputs[0].shape, node.outputs[0].dtype
    if spread is None or spread.opaque or spread.op not in ("Expand", "ConstantOfShape") or not host.is_constant(axis):
        return None
    if spread.op == "Expand" and not host.is_constant(spread.args[0]):
        return None
    fill = spread.kwargs.get("value", np.zeros((), np.float32))
    held = host.constant(spread.args[0]) if spread.op == "Expand" else np.asarray(fill).reshape(())
    if not shape or dtype not in ("float32", "float64", "int32", "int64"):
        return None
    d = int(host.constant(axis).item()) % len(shape)
    size = shape[d]
    if not isinstance(size, int) or not 0 < size * held.size <= MOST:
        return None
    line: Array = held.reshape((1,) * (len(shape) - held.ndim) + held.shape)
    line = np.repeat(line, size, d) if line.shape[d] == 1 else line
    line = np.flip(line, d) if node.kwargs.get("reverse", 0) else line
    if node.kwargs.get("exclusive", 0):
        line = np.concatenate([np.zeros_like(line.take([0], d)), line.take(range(size - 1), d)], d)
    sums: Array = np.cumsum(line, d, dtype=dtype)
    sums = np.flip(sums, d) if node.kwargs.get("reverse", 0) else sums
    return One("Expand", [np.ascontiguousarray(sums), spread.args[-1]], {})


def spread_later(host: Host, node: Node) -> Found:
    """An operator on numbers that are spread over a shape: on the numbers."""
    places = [n for n, a in enumerate(node.args) if a is not None and made_by(host, a, "Expand") is not None]
    if len(places) != 1 or node.outputs[0].shape != node.args[places[0]].shape:
        return None
    numbers, shape = node.args[places[0]].node.args
    others = [a for n, a in enumerate(node.args) if n != places[0] and a is not None]
    if not host.is_constant(numbers) or not all(host.is_constant(a) and host.constant(a).size == 1 for a in others):
        return None
    args = [numbers if n == places[0] else None if a is None else host.constant(a).reshape(())
            for n, a in enumerate(node.args)]  # fmt: skip
    return One("Expand", [One(node.op, args, dict(node.kwargs), node.outputs[0].dtype), shape], {})


def pads(host: Host, node: Node) -> Found:
    """The same number around a number around."""
    before = made_by(host, node.args[0], "Pad")
    widths = [_pads(host, n) for n in (before, node)] if before is not None else [None]
    if before is None or any(w is None for w in widths):
        return None
    (inner, fill), (outer, again) = (w for w in widths if w is not None)
    if fill.tobytes() != again.tobytes() or fill.dtype != again.dtype or inner.shape != outer.shape:
        return None
    return One("Pad", [before.args[0], inner + outer, fill], {})


def _pads(host: Host, node: Node) -> tuple[Array, Array] | None:
    """How many numbers a Pad adds, none of them negative, and which."""
    if node.kwargs.get("mode", "constant") != "constant" or len(node.args) < 2 or any(node.args[3:]):
        return None
    if not all(a is None or host.is_constant(a) for a in node.args[1:]):
        return None
    widths = host.constant(node.args[1])
    held = node.args[2] if len(node.args) > 2 else None
    fill = np.zeros((), str(node.outputs[0].dtype)) if held is None else host.constant(held).reshape(())
    return (widths, fill) if (widths >= 0).all() else None


def unturned(host: Host, node: Node) -> Found:
    """A reduction or softmax along dimensions of a transposed tensor, of which nothing else is transposed: along those
    of the tensor. One that stays transposed and is transposed back likewise."""
    back = _perm(node) if node.op == "Transpose" else None
    inner = made_by(host, node.args[0], *REDUCTIONS) if back is not None else node
    turn = made_by(host, inner.args[0], "Transpose") if inner is not None else None
    perm = _perm(turn) if turn is not None else None
    if inner is None or turn is None or perm is None or (inner.op in SOFTMAXES and (host.opset or 0) < AXES):
        return None
    kept = inner.op in SOFTMAXES or bool(inner.kwargs.get("keepdims", 1))
    axes = [int(inner.kwargs.get("axis", -1))] if inner.op in SOFTMAXES else axes_of(host, inner)
    axes = [perm[a % len(perm)] for a in axes]
    rest = [p for p in perm if p not in axes or inner.op in SOFTMAXES]
    order = list(perm) if kept else rest
    if back is not None:
        order = [order[b] for b in back] if len(back) == len(order) else []
    if not axes or not order or order != sorted(order):
        return None
    kwargs = dict(inner.kwargs)
    if inner.op in SOFTMAXES or inner.op in ARGUMENTS:
        return One(inner.op, [turn.args[0]], {**kwargs, "axis": axes[0]})
    if len(inner.args) > 1:
        return One(inner.op, [turn.args[0], np.array(sorted(axes), np.int64)], kwargs)
    return One(inner.op, [turn.args[0]], {**kwargs, "axes": sorted(axes)})


def _perm(node: Node) -> tuple[int, ...] | None:
    shape = node.args[0].shape if node.args[0] is not None else None
    return None if shape is None else tuple(node.kwargs.get("perm") or range(len(shape))[::-1])


def reversals(host: Host, node: Node) -> Found:
    """Rows that are turned around twice."""
    before = made_by(host, node.args[0], "ReverseSequence")
    if before is None or before.args[1] is not node.args[1]:
        return None
    axes = [{"time_axis": 0, "batch_axis": 1, **n.kwargs} for n in (before, node)]
    source = before.args[0]
    return source if axes[0] == axes[1] and isinstance(source, Value) and source.shape is not None else None


def reshapes(host: Host, node: Node) -> Found:
    """A reshape to the shape that it has, though nobody knows it; one after another, to numbers alone."""
    before = node.args[0].node
    if before is None or before.opaque or before.op not in RESHAPES or node.kwargs != {}:
        return None
    if before.op == "Reshape" and before.args[1] is node.args[1] and not before.kwargs:
        same: Value = node.args[0]
        return same
    known = host.is_constant(node.args[1]) and host.constant(node.args[1]).all()  # 0 would keep a size
    return (
        One("Reshape", [before.args[0], node.args[1]], {}) if known and made_by(host, node.args[0], before.op) else None
    )


def alone(host: Host, node: Node) -> Found:
    """One tensor beside none is itself."""
    only = node.args[0] if len(node.args) == 1 else None
    return only if isinstance(only, Value) and only.shape is not None else None


def picked(host: Host, node: Node) -> Found:
    """A tensor of a sequence that is written out."""
    before = node.args[0].node
    if before is None or before.opaque or before.op != "SequenceConstruct" or not host.is_constant(node.args[1]):
        return None
    at = int(host.constant(node.args[1]).item())
    return cast("Value", before.args[at]) if -len(before.args) <= at < len(before.args) else None


def written_out(host: Host, node: Node) -> Found:
    """The tensors of a sequence that is written out, joined."""
    before = made_by(host, node.args[0], "SequenceConstruct")
    if before is None or node.kwargs.get("new_axis", 0):
        return None
    return One("Concat", list(before.args), {"axis": node.kwargs["axis"]})


def turns(host: Host, node: Node) -> Found:
    """Two transposes are one or none."""
    before = made_by(host, node.args[0], "Transpose")
    first, second = (_perm(before), _perm(node)) if before is not None else (None, None)
    if before is None or first is None or second is None:
        return None
    perm = [first[p] for p in second]
    source = before.args[0]
    return One("Transpose", [source], {"perm": perm}) if perm != sorted(perm) else cast("Value", source)


def like(host: Host, node: Node) -> Found:
    """A cast to a type that is known."""
    to = node.args[1].dtype
    if to not in NUMBERS:
        return None
    return One("Cast", [node.args[0]], {"to": NUMBERS[to], **node.kwargs})


def one_hot(host: Host, node: Node) -> Found:
    """A one-hot of other numbers, or with another dimension, says what was done to it."""
    places = [n for n, a in enumerate(node.args) if a is not None and made_by(host, a, "OneHot") is not None]
    if len(places) != 1:
        return None
    before = node.args[places[0]].node
    ids, depth, values = before.args
    kinds, dtype = (ids.dtype, depth.dtype), node.outputs[0].dtype
    if dtype != values.dtype and (kinds != ("int64", "int64") or dtype not in ("float32", "int64")):
        return None  # ONNX Runtime has few of them
    if node.op == "Transpose":
        perm, rank = _perm(node), len(node.outputs[0].shape or ())
        axis = int(before.kwargs.get("axis", -1)) % max(rank, 1)
        if perm is None or [p for p in perm if p != axis] != [p for p in range(rank) if p != axis]:
            return None
        return One("OneHot", list(before.args), {"axis": perm.index(axis)})
    others = [a for n, a in enumerate(node.args) if n != places[0] and a is not None]
    if not host.is_constant(values) or not all(host.is_constant(a) and host.constant(a).size == 1 for a in others):
        return None
    if any(host.constant(a).ndim > len(before.outputs[0].shape or ()) for a in others) or node.op == "Clip":
        return None
    args = [values if n == places[0] else None if a is None else host.constant(a).reshape(())
            for n, a in enumerate(node.args)]  # fmt: skip
    return One("OneHot", [ids, depth, One(node.op, args, dict(node.kwargs), dtype)], dict(before.kwargs))


REDUCTIONS = (
    *(f"Reduce{n}" for n in "Sum Mean Max Min Prod L1 L2 LogSum LogSumExp SumSquare".split()),
    *ARGUMENTS,
    *SOFTMAXES,
)
# before layouts are planned, which may take a transpose in
EARLY: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(POINTWISE, (spread_later,)),
    **dict.fromkeys(REDUCTIONS, (unturned,)),
    "Transpose": (unturned,),
    "CumSum": (counts,),
}
RULES: dict[str, tuple[Rule, ...]] = {
    **EARLY,
    **dict.fromkeys(POINTWISE, (one_hot, spread_later)),
    **dict.fromkeys(COMPARISONS, (truths, one_hot, spread_later)),
    "Cast": (casts, one_hot),
    "Reshape": (reshapes,),
    "Concat": (alone,),
    "SequenceAt": (picked,),
    "ConcatFromSequence": (written_out,),
    "CastLike": (like,),
    "Trilu": (triangles,),
    "Pad": (pads,),
    "Slice": (less_padded,),
    "Transpose": (turns, unturned, one_hot),
    "ReverseSequence": (reversals,),
}
