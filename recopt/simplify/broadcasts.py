"""Operands that are expanded before an operator which broadcasts them anyway, and those that ONNX Runtime would
broadcast slowly: conditions of a choice, what a one-hot compares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..cost import ON_CPU
from ..hosts.base import Array, Host, Node, Value
from ..hosts.onnx import OnnxHost
from ..ir.rules import FLOATS
from ..ir.sizes import Size, nominal, product
from ..lift.base import Lifted
from ..lower.onnx_columns import POINTWISE, same_anywhere
from ..lower.onnx_layout import reshape
from ..report import Rewrite
from ..rewrite import Context

EXPANDS = ("Expand", "Tile", "ConstantOfShape")
NARROW = 64  # columns up to which ONNX Runtime's Where and Equal are faster on an operand that is filled first
ROWS = 512  # of the nominal batch, from which that pays: a row takes 25 ns, what fills a microsecond at batch 1
EXACT = 1 << 24  # below it a whole number is one in float32, and no other number becomes that


def simplify_broadcasts(host: Host, context: Context, name: str) -> bool:
    """Rewrite pointwise operators of an ONNX graph whose operands are broadcast. True where any is.

    before:  Where(c, x, Expand(0, Shape(x)));  Where(c [rows, 16, 1], x [rows, 16, 16], 0) for ort-cpu
    after:   Where(c, x, 0);  Where(Cast(MatMul(Cast(Xor(c, true)), ones [1, 16])), 0, x)
             or, of c = Unsqueeze(d), Where(Gather(trues and falses [2, 16], Cast(d)), 0, x)

    before:  Equal(i [rows, 8, 1], 0..13) for ort-cpu, or of Reshape(Expand(i, [rows, 8, 14]), [rows, 112])
    after:   Equal(MatMul(Cast(i), ones [1, 14]), 0..13 [8, 14]), reshaped before
    """
    if not isinstance(host, OnnxHost):
        return False
    changed, lifted = False, context.terms_of(host)
    for node in [n for n in host.nodes if n.op in POINTWISE and len(n.args) > 1 and not n.opaque]:
        args = unexpanded(host, lifted, node) if same_anywhere(host, node) else list(node.args)
        columns = narrow_condition(lifted, node) if context.target in ON_CPU else None
        labels = _labels(host, node) if context.target == "ort-cpu" else None
        out = node.outputs[0]
        slow = columns is not None or labels is not None
        if (args == list(node.args) and not slow) or not context.allows(name, out.name):
            continue
        with host.at(node):
            if columns is not None and args[0] is not None:
                turned = swaps(host, args)
                args[0] = _condition(host, args[0], columns, turned)
                args[1:] = [args[2], args[1]] if turned else args[1:]
            elif labels is not None:
                x, columns, row = labels
                filled = _fill(host, x, columns)
                if row.ndim == 1:
                    filled = reshape(host, filled, out.shape or (), x.name)
                args[:] = filled, host.share_constant(row, name="labels")
            new = host.call(node.op, args, node.kwargs, name=out.name, shape=out.shape, dtype=out.dtype, like=out)
        host.replace(out, new)
        gone = (node.name, *(a.node.name for a, b in zip(node.args, args, strict=True) if a is not b and a.node))
        made = (new.node.name if new.node else new.name,)
        context.report.rewrites.append(
            Rewrite(name, "broadcast", out.name, gone, made, 0.0, 0.0, float(not slow), None, "a broadcast")
        )
        changed = True
    return context.settle(host, changed)


def unexpanded(host: OnnxHost, lifted: Lifted, node: Node) -> list[Value | None]:
    """The operands of a node, not expanded where another has the result's shape."""
    args = list(node.args)
    shape = _shape(lifted, node.outputs[0])
    for n, arg in enumerate(args):
        if arg is None or arg.node is None or arg.node.op not in EXPANDS or host.is_constant(arg):
            continue
        narrow: tuple[Size, ...] | None = ()
        if arg.node.op != "ConstantOfShape":
            narrow = _shape(lifted, arg.node.args[0])
            if arg.node.op == "Tile" and not _broadcasts(narrow, _shape(lifted, arg)):
                continue
        shapes = [narrow if m == n else _shape(lifted, a) for m, a in enumerate(args) if a is not None]
        if shape is not None and _together(shapes) == shape:
            args[n] = _filler(host, arg.node) if arg.node.op == "ConstantOfShape" else arg.node.args[0]
    return list(node.args) if node.op == "Where" and _loses_sign(lifted, node, args) else args


def _broadcasts(narrow: tuple[Size, ...] | None, wide: tuple[Size, ...] | None) -> bool:
    """Whether what is tiled could be expanded as well."""
    same = narrow is not None and wide is not None and len(narrow) == len(wide)
    return same and all(a in (1, b) for a, b in zip(narrow or (), wide or (), strict=True))


def _together(shapes: Sequence[tuple[Size, ...] | None]) -> tuple[Size, ...] | None:
    """The shape of what is broadcast together; None where that is not known."""
    known = [s for s in shapes if s is not None]
    rank = max(map(len, known), default=0)
    padded = [(1,) * (rank - len(s)) + s for s in known]
    found = [{s for s in sizes if s != 1} or {1} for sizes in zip(*padded, strict=True)]
    if len(known) < len(shapes) or any(len(s) > 1 for s in found):
        return None
    return tuple(s.pop() for s in found)


def _may_lose_sign(host: Host, x: Value) -> bool:
    """Whether ONNX Runtime's Where may make a -0.0 of `x` 0.0: it keeps the signs of its last operand; of its second
    instead where condition and last operand both have one column of several."""
    if x.dtype not in FLOATS or not host.is_constant(x):
        return x.dtype in FLOATS
    held = host.constant(x)
    return bool((np.signbit(held) & (held == 0)).any())


def swaps(host: Host, args: Sequence[Value | None]) -> bool:
    """Whether a choice by a condition of one column keeps signs of its second operand, which it would lose by a
    condition of all columns."""
    _, x, y = args
    narrow = y is not None and y.shape is not None and y.shape[-1:] in ((), (1,))
    return narrow and x is not None and _may_lose_sign(host, x)


def _loses_sign(lifted: Lifted, node: Node, args: Sequence[Value | None]) -> bool:
    """Whether a choice of `args` may lose signs of its last operand that `node` keeps."""
    if args == list(node.args) or args[2] is None or not _may_lose_sign(lifted.host, args[2]):
        return False
    wide = _shape(lifted, node.outputs[0])
    shapes = [_shape(lifted, a) if a is not None else None for a in (args[0], args[2])]
    return wide is None or all(s is None or s[-1:] != wide[-1:] for s in shapes)


def _filler(host: OnnxHost, node: Node) -> Value:
    """The number of a ConstantOfShape."""
    held = node.kwargs.get("value", np.zeros(1, np.float32))
    return host.share_constant(np.asarray(held).reshape(()), name="number")


def _shape(lifted: Lifted, value: Value) -> tuple[Size, ...] | None:
    t = lifted.of(value)
    return None if t is None else t.shape


def narrow_condition(lifted: Lifted, node: Node) -> int | None:
    """The columns of a choice whose condition has one."""
    if node.op != "Where" or lifted.host.is_constant(node.args[0]):
        return None
    condition, shape = _shape(lifted, node.args[0]), _shape(lifted, node.outputs[0])
    known = node.args[0] is not None and node.args[0].shape is not None
    if not known or not condition or not shape or len(condition) != len(shape) or condition[-1] != 1:
        return None
    if nominal(product(shape[:-1])) < ROWS or not isinstance(shape[-1], int):
        return None
    return shape[-1] if 1 < shape[-1] <= NARROW else None


def _labels(host: Host, node: Node) -> tuple[Value, int, Array] | None:
    """Of a comparison with a row of constants, whole numbers [.., n, 1] that are compared, how often each, and the row
    as float32: [n, as often], or [n * as often] where the numbers are repeated and in one dimension."""
    if node.op != "Equal":
        return None
    row, x = sorted(node.args, key=lambda v: v is None or not host.is_constant(v))
    if (
        x is None
        or row is None
        or x.dtype not in ("int32", "int64")
        or host.is_constant(x)
        or not host.is_constant(row)
    ):
        return None
    labels, repeated = host.constant(row), spread(host, x)
    narrow = x if repeated is None else repeated
    shape = narrow.shape
    if not shape or len(shape) < 2 or shape[-1] != 1 or not isinstance(shape[-2], int) or labels.ndim == 0:
        return None
    if labels.size != labels.shape[-1] or labels.ndim > len(shape):
        return None
    columns = labels.size if repeated is None else labels.size // shape[-2]
    if not 1 < columns <= NARROW or np.abs(labels.astype(np.float64)).max() >= EXACT:
        return None
    flat = labels.reshape(-1).astype(np.float32)
    if repeated is None:
        return x, columns, np.broadcast_to(flat, (shape[-2], columns))
    return (repeated, columns, flat) if x.shape == (*shape[:-2], labels.size) == node.outputs[0].shape else None


def spread(host: Host, x: Value) -> Value | None:
    """The numbers [.., n, 1] that are repeated along a last dimension, which then is one with the dimension before."""
    wide = x.node.args[0] if x.node is not None and x.node.op == "Reshape" else None
    if wide is None or wide.node is None or wide.node.op != "Expand" or len(host.users(x)) != 1:
        return None
    narrow: Value = wide.node.args[0]
    if len(host.users(wide)) != 1 or not narrow.shape or not wide.shape or narrow.shape[:-1] != wide.shape[:-1]:
        return None
    return narrow


def _condition(host: OnnxHost, operand: Value, columns: int, turned: bool) -> Value:
    """A condition [.., 1], or where `turned` its contrary, with `columns` equal ones; of one that was unsqueezed two
    rows are looked up, which takes two operators less and from 0.85 to 1.2 of the time of the product."""
    name, shape = operand.name, (*(operand.shape or ())[:-1], columns)
    before = flat_condition(operand)
    if before is not None:
        of = negated(before)
        before, turned = of or before, turned != (of is not None)
        ids = host.call("Cast", [before], {"to": 6}, name=f"{name}_numbers", shape=before.shape, dtype="int32")
        rows = host.share_constant(np.repeat([[turned], [not turned]], columns, 1), name="truths")
        return host.call("Gather", [rows, ids], {"axis": 0}, name=f"{name}_filled", shape=shape, dtype="bool")
    filled = _fill(host, contrary(host, operand) if turned else operand, columns)
    return host.call("Cast", [filled], {"to": 9}, name=f"{name}_condition", shape=shape, dtype="bool")


def flat_condition(operand: Value) -> Value | None:
    """What a condition [.., 1] was before that dimension was added; None where it was not."""
    before = _before(_before(operand, "Cast"), "Unsqueeze", "Reshape")
    return before if before.dtype == "bool" and before.shape == (operand.shape or ())[:-1] else None


def contrary(host: OnnxHost, condition: Value) -> Value:
    """Where a condition does not hold."""
    of = negated(condition)
    return of or _negation(host, condition)


def lasting(host: OnnxHost, condition: Value) -> Value:
    """A condition that no Not makes: ONNX Runtime would take that away and swap the operands of the choice."""
    of = negated(condition)
    return _negation(host, of) if of else condition


def negated(condition: Value) -> Value | None:
    """What a Not makes a condition of."""
    node = condition.node
    return node.args[0] if node is not None and node.op == "Not" and not node.opaque else None


def _negation(host: OnnxHost, condition: Value) -> Value:
    true = host.share_constant(np.asarray(True), name="true")
    return host.call("Xor", [condition, true], name=f"{condition.name}_not", shape=condition.shape, dtype="bool")


def _before(value: Value, *ops: str) -> Value:
    """What an operator changes the type or the shape of; the value where no such operator made it."""
    found = value.node.args[0] if value.node is not None and value.node.op in ops else None
    return value if found is None or found.dtype != "bool" else found


def _fill(host: OnnxHost, operand: Value, columns: int) -> Value:
    """The operand as float32, with `columns` equal ones in the place of its last, by a product with a row of ones: And
    compares row by row. On 256 x 16 rows of 16 it takes 9 us and the Where 23 after it; 44 and 23 with an And, 111
    without. A one-hot of 256 x 8 numbers of 14 takes 16 us, and 27 without."""
    assert operand.shape is not None
    ones = host.share_constant(np.ones((1, columns), np.float32), name="ones")
    name, narrow, shape = operand.name, operand.shape, (*operand.shape[:-1], columns)
    numbers = host.call("Cast", [operand], {"to": 1}, name=f"{name}_numbers", shape=narrow, dtype="float32")
    return host.call("MatMul", [numbers, ones], name=f"{name}_filled", shape=shape, dtype="float32")
