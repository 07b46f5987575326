"""Chains over all columns of a tensor as ATen operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import GraphError, LowerError
from ..hosts.base import Array, Node, Value
from ..hosts.fx import FxHost
from ..ir import tensor
from ..ir.rules import FLOATS
from ..ir.sizes import Size
from ..layout.moves import Plan
from ..lift.aten_types import promoted
from .columns import Argument, Fixed, Number
from .torch_moves import moved

HALVES = ("float16", "bfloat16")  # an operator takes a number as float32, a tensor's element as it is
CLAMP = "aten.clamp.default"
# Operators whose second operand may be a number, and what they are with a tensor in its place.
WITH_NUMBER = {f"aten.{name}": f"aten.{name}" for name in """add.Tensor sub.Tensor mul.Tensor div.Tensor div.Tensor_mode
    floor_divide.default""".split()} | {f"aten.{name}.Scalar": f"aten.{name}.Tensor" for name in """remainder fmod
    bitwise_and bitwise_or bitwise_xor eq ne lt le gt ge""".split()} | {f"aten.{name}.Tensor": f"aten.{name}.Tensor"
    for name in "eq ne lt le gt ge".split()} | {
    "aten.__and__.Scalar": "aten.bitwise_and.Tensor", "aten.__or__.Scalar": "aten.bitwise_or.Tensor",
    "aten.__xor__.Scalar": "aten.bitwise_xor.Tensor", "aten.__rshift__.Scalar": "aten.bitwise_right_shift.Tensor",
    "aten.__lshift__.Scalar": "aten.bitwise_left_shift.Tensor", "aten.clamp_min.default": "aten.clamp_min.Tensor",
    "aten.clamp_max.default": "aten.clamp_max.Tensor", CLAMP: "aten.clamp.Tensor",
}  # fmt: skip
POINTWISE = frozenset(WITH_NUMBER) | frozenset(f"aten.{name}" for name in """remainder.Tensor fmod.Tensor
    bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor __and__.Tensor __or__.Tensor __xor__.Tensor
    bitwise_not.default logical_and.default logical_or.default logical_xor.default logical_not.default rsub.Scalar
    where.self where.ScalarOther where.ScalarSelf where.Scalar masked_fill.Scalar clamp.default clamp_min.default
    clamp_max.default minimum.default maximum.default relu.default reciprocal.default square.default
    pow.Tensor_Scalar to.dtype isnan.default isinf.default nan_to_num.default neg.default abs.default floor.default
    ceil.default round.default trunc.default sign.default sqrt.default rsqrt.default exp.default log.default
    log1p.default log2.default log10.default expm1.default tanh.default sigmoid.default sin.default cos.default
    erf.default""".split())  # fmt: skip
END = 2**63 - 1
FEW_EDGES = 32  # fewer than 256: they are counted in a byte


class TorchColumns:
    """`lower.columns.Columns` of a program of torch's."""

    most_edges = 1 << 16
    counting = 3  # besides views

    def __init__(self, host: FxHost) -> None:
        self.host = host

    def stacks(self, node: Node) -> bool:
        return node.op in POINTWISE

    def spreads(self, node: Node) -> bool:
        return node.op == "aten.one_hot.default" and len(node.args) == 2 and node.args[1] != -1

    def filled(self, value: Value) -> Array | None:
        return None

    def counts_edges(self, node: Node) -> tuple[Value, Array, bool] | None:
        if node.op != "aten.bucketize.Tensor" or not isinstance(node.args[0], Value):
            return None
        x, edges = node.args[:2]
        given = dict(zip(("out_int32", "right"), node.args[2:], strict=False)) | dict(node.kwargs)
        if given.get("out_int32") or x.dtype != edges.dtype or x.dtype in HALVES or not self.host.is_constant(edges):
            return None
        while x.node is not None and x.node.op in ("aten.contiguous.default", "aten.clone.default"):
            x = x.node.args[0]  # so that the search does not copy it
        array = self.host.constant(edges)
        if array.ndim != 1 or array.size == 0 or not (array[:-1] <= array[1:]).all():
            return None  # what is not sorted is searched in an order of its own
        return x, array, bool(given.get("right", False))

    def arguments(self, node: Node) -> list[Argument]:
        found: list[Argument] = []
        for n, arg in enumerate(node.args):
            x = node.args[0]
            if arg is None or isinstance(arg, Value):
                found.append(arg)
            elif (
                (n == 1 or node.op == CLAMP)
                and node.op in WITH_NUMBER
                and isinstance(x, Value)
                and isinstance(arg, (int, float))
            ):
                dtype = promoted(tensor.full(x.shape or (), 0, str(x.dtype)), arg)
                one = (
                    (node.op == CLAMP and dtype != x.dtype)
                    or isinstance(arg, bool)
                    or dtype in HALVES
                    or dtype == "bool"
                )
                found.append(Fixed(arg, repr(arg)) if one else Number(arg, dtype))
            else:
                found.append(Fixed(arg, repr(arg)))
        return found

    def sum_axes(self, node: Node) -> tuple[list[int], bool] | None:
        if node.op != "aten.sum.dim_IntList" or node.kwargs or len(node.args) < 2:
            return None
        return list(node.args[1]), bool(node.args[2]) if len(node.args) > 2 else False

    def constant(self, array: Array, name: str) -> Value:
        return self.host.add_constant(np.ascontiguousarray(array), name=f"{name}_columns")

    def call(self, node: Node, args: Sequence[object], shape: tuple[Size, ...], name: str) -> Value:
        out = node.outputs[0]
        op = node.op
        if op in WITH_NUMBER and any(isinstance(arg, Value) for arg in args[1:]):
            op = WITH_NUMBER[op]
        if op == WITH_NUMBER[CLAMP]:  # both bounds are tensors, or neither is
            args = [
                a if a is None or isinstance(a, Value) else self.constant(np.array([a], out.dtype), name) for a in args
            ]
        made = self._call(op, args, dict(node.kwargs), name, out)
        if self.spreads(node):
            made = self._call("aten.flatten.using_ints", (made, 1, -1), {}, name, out)
        if made.dtype != out.dtype or made.shape != shape:
            raise LowerError(f"{node.op} of columns is {made.dtype} {made.shape}, not {out.dtype} {shape}")
        return made

    def gathered(self, plan: Plan, name: str) -> Value:
        return moved(self.host, plan, name, {})

    def summed(self, node: Node, data: Value, name: str) -> Value:
        return self._call("aten.sum.dim_IntList", (data, [2]), {}, name, node.outputs[0])

    def can_count(self, right: bool, nan_above: bool) -> bool:
        return nan_above

    def counted(self, x: Value, edges: Sequence[Array], right: bool, nan_above: bool, dtype: str, name: str) -> Value:
        """One search for columns that share their edges; else comparisons with few, or a search by columns, shorter
        rows of edges ending in infinity: what it counts of those is more than there are."""
        if all(e.tobytes() == edges[0].tobytes() for e in edges):
            table = self.constant(edges[0], name)
            return self._call("aten.bucketize.Tensor", (x, table), {"right": right}, name, x)
        lengths = np.array([len(e) for e in edges], np.int64)
        if self._compares(edges):
            return self._compared(x, edges, lengths, right, name)
        rows = np.full(
            (len(edges), lengths.max()),
            np.inf if edges[0].dtype.name in FLOATS else np.iinfo(edges[0].dtype).max,
            edges[0].dtype,
        )
        for row, own in zip(rows, edges, strict=True):
            row[: len(own)] = own
        turned = self._call("aten.permute.default", (x, [1, 0]), {}, name, x)
        whole = self._call("aten.contiguous.default", (turned,), {}, name, x)
        found = self._call("aten.searchsorted.Tensor", (self.constant(rows, name), whole), {"right": right}, name, x)
        found = self._call("aten.permute.default", (found, [1, 0]), {}, name, x)
        if (lengths != lengths[0]).any():
            found = self._call("aten.minimum.default", (found, self.constant(lengths, name)), {}, name, x)
        return found

    def _compares(self, edges: Sequence[Array]) -> bool:
        """Whether to compare with all edges. A search guesses where each number goes, wrongly for data that is new: on
        one CPU thread 13 columns of 10 edges take 73 us for 256 rows and 570 for 2048, and compared 26 and 170; 1 row
        2.9 and 5.2. Of 40 edges 185 and 86 us for 256 rows, of 100 108 and 400."""
        fits = edges[0].dtype.name in FLOATS or len({len(e) for e in edges}) == 1
        return self.host.device == "cpu" and max(map(len, edges)) <= FEW_EDGES and fits

    def _compared(self, x: Value, edges: Sequence[Array], lengths: Array, right: bool, name: str) -> Value:
        """As many as there are, without those that x does not exceed: no comparison with NaN holds, nor with the NaN
        that shorter rows of edges end in."""
        rows = np.full((lengths.max(), 1, len(edges)), np.nan if edges[0].dtype.name in FLOATS else 0, edges[0].dtype)
        for column, own in enumerate(edges):
            rows[: len(own), 0, column] = own
        below = self._call(f"aten.{'lt' if right else 'le'}.Tensor", (x, self.constant(rows, name)), {}, name, x)
        count = self._call("aten.sum.dim_IntList", (below, [0]), {"dtype": "uint8"}, name, below)
        return self._call("aten.sub.Tensor", (self.constant(lengths, name), count), {}, name, count)

    def _call(self, op: str, args: Sequence[object], kwargs: dict[str, object], name: str, like: Value) -> Value:
        try:
            return self.host.call(op, args, kwargs, name=f"{name}_columns", like=like)
        except GraphError as error:
            raise LowerError(f"columns {name}: {error}") from error
