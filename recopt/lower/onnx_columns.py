"""Chains over all columns of a tensor, and counts of boundaries, as standard ONNX operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import LowerError
from ..hosts.base import Array, Host, Node, Value
from ..ir.sizes import Size
from ..layout.moves import Plan
from .columns import Argument, Fixed, Number
from .onnx_layout import reshape
from .onnx_moves import moved
from .onnx_writer import Writer

POINTWISE = frozenset(
    """Mod Add Sub Mul Div Pow Neg Abs Sign Floor Ceil Round Sqrt Reciprocal Exp Log Sin Cos Tanh Sigmoid Relu Erf
    Softplus Min Max Where Equal Greater Less GreaterOrEqual LessOrEqual And Or Not Xor BitShift BitwiseAnd BitwiseOr
    BitwiseXor BitwiseNot Cast IsNaN IsInf Clip""".split()
)
PACKED = ("Min", "Max", "Clip", "Relu", "Sign")  # see `same_anywhere`
LAYOUT = ("Cast", "Slice", "Gather", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten", "Expand", "Split")
COMPARED_WHOLE = 12  # opset from which there are comparisons for "or equal"
SUMS_BY_INPUT = 13  # opset from which the axes of a sum are an input


def same_anywhere(host: Host | Writer, node: Node) -> bool:
    """Whether ONNX Runtime's answer for an element does not depend on how many lie beside it, so that operators may be
    written over more of them. 1.31 takes int64 in pairs to Min, Max, Clip, Relu and Sign and compares their low halves
    with signs (of 2**31 and 0, 2**31 is the smaller), the last one of an odd number rightly; numbers that int32 holds
    are right everywhere. A power of whole numbers is a product where the exponent is 2 or 3, and float64's where there
    are several exponents. (Of floats, functions such as log end in one ulp more or less.)"""
    if node.op == "Pow":
        return "float" in str(node.args[0].dtype)
    if node.op not in PACKED or node.outputs[0].dtype not in ("int64", "uint64"):
        return True
    return all(arg is None or _in_int32(host, arg) for arg in node.args)


def _in_int32(host: Host | Writer, value: Value) -> bool:
    """Whether all elements of whole numbers are known to be ones of int32, for any input."""
    while not host.is_constant(value):
        node = value.node
        if value.dtype in ("bool", "int8", "uint8", "int16", "uint16", "int32"):
            return True
        if node is None or node.opaque or value.dtype != "int64":
            return False
        if node.op == "Mod":
            return host.is_constant(node.args[1]) and _in_int32(host, node.args[1])
        bounds = node.args[1:] if node.op == "Clip" else ()
        if node.op not in (*LAYOUT, "Clip") or not all(b is None or _in_int32(host, b) for b in bounds):
            return False
        value = node.args[0]
    held = host.constant(value)
    return held.dtype.kind in "biu" and bool(((held >= -(2**31)) & (held < 2**31)).all())


def extremes(dtype: str) -> tuple[int | float, int | float]:
    """The least and the largest finite number of a type: what a Clip without bounds keeps to, which makes infinities
    these."""
    held = np.finfo(dtype) if "float" in dtype else np.iinfo(dtype)
    return np.array(held.min, dtype).item(), np.array(held.max, dtype).item()


class OnnxColumns:
    """`lower.columns.Columns` of an ONNX graph."""

    most_edges = 128  # each is compared with everything: past these a search that halves is faster
    counting = 5

    def __init__(self, host: Writer) -> None:
        self.host = host

    def stacks(self, node: Node) -> bool:
        return node.op in POINTWISE and same_anywhere(self.host, node)

    def spreads(self, node: Node) -> bool:
        last = len(node.outputs[0].shape or ()) - 1
        if node.op != "OneHot" or node.opaque or node.kwargs.get("axis", -1) not in (-1, last):
            return False
        return all(self.host.is_constant(arg) for arg in node.args[1:])

    def filled(self, value: Value) -> Array | None:
        node = value.node
        if node is None or node.opaque or node.op not in ("ConstantOfShape", "Expand"):
            return None
        if node.op == "ConstantOfShape":
            return np.asarray(node.kwargs.get("value", np.zeros(1, np.float32))).reshape(())
        held = self.host.constant(node.args[0]) if self.host.is_constant(node.args[0]) else None
        return held.reshape(()) if held is not None and held.size == 1 else None

    def counts_edges(self, node: Node) -> None:
        return None

    def arguments(self, node: Node) -> list[Argument]:
        if node.op == "OneHot":
            fixed = [Fixed(arg, (arg.dtype, self.host.constant(arg).tobytes())) for arg in node.args[1:]]
            return [node.args[0], *fixed]
        if node.op != "Clip":
            return list(node.args)
        found: list[Argument] = [node.args[0]]
        dtype = str(node.outputs[0].dtype)
        for n, bound in enumerate([*node.args[1:], None, None][:2]):
            if bound is not None and not self.host.is_constant(bound):
                return []
            number = extremes(dtype)[n] if bound is None else self.host.constant(bound).item()
            if number == 0 and np.signbit(number):  # `_clip` would make it 0.0: ONNX Runtime's Where does
                return []
            found.append(Number(number, dtype))
        return found

    def sum_axes(self, node: Node) -> tuple[list[int], bool] | None:
        if node.op != "ReduceSum":
            return None
        axes = node.kwargs.get("axes") or (
            self.host.constant(node.args[1]).tolist()
            if len(node.args) > 1 and node.args[1] is not None and self.host.is_constant(node.args[1])
            else ()
        )
        return list(axes), bool(node.kwargs.get("keepdims", 1))

    def constant(self, array: Array, name: str) -> Value:
        return self.host.share_constant(array, name=f"{name}_columns")

    def call(self, node: Node, args: Sequence[object], shape: tuple[Size, ...], name: str) -> Value:
        out = node.outputs[0]
        if node.op == "Clip":
            return self._clip(node, args, shape, name)
        if node.op == "OneHot":
            return self._one_hot(node, args, shape, name)
        if node.op in ("Max", "Min") and any(self._zeros(a) for a in args):
            return self._extreme(node, args, shape, name)
        return self.host.call(
            node.op, args, node.kwargs, name=f"{name}_columns", shape=shape, dtype=out.dtype, like=out
        )

    def _zeros(self, arg: object) -> bool:
        """Whether an argument is a constant of floats with a zero among them."""
        if not isinstance(arg, Value) or "float" not in str(arg.dtype) or not self.host.is_constant(arg):
            return False
        return not self.host.constant(arg).all()

    def _extreme(self, node: Node, args: Sequence[object], shape: tuple[Size, ...], name: str) -> Value:
        """Max or Min of x and numbers with a zero among them, as a choice: of two zeros of a single column ONNX Runtime
        takes the second, and of wide rows the one or the other by where they lie."""
        out, second = node.outputs[0], self._zeros(args[-1])
        bound, x = args[-1 if second else 0], args[0 if second else -1]
        if len(args) != 2 or not isinstance(bound, Value) or (second and self.host.opset < COMPARED_WHOLE):
            raise LowerError("a choice of zeros that is not written")
        held = self.host.constant(bound)
        if np.isnan(held).any():
            raise LowerError("a choice of NaN")
        if (np.signbit(held) & (held == 0)).any():  # ONNX Runtime's Where would make it 0.0
            raise LowerError("a choice of -0.0")
        op = {"Max": "Less", "Min": "Greater"}[node.op] + "OrEqual" * second
        over = self.host.call(op, [x, bound], name=f"{name}_over", shape=shape, dtype="bool")
        return self.host.call("Where", [over, bound, x], name=f"{name}_columns", shape=shape, dtype=out.dtype, like=out)

    def _one_hot(self, node: Node, args: Sequence[object], shape: tuple[Size, ...], name: str) -> Value:
        """[rows, columns] -> [rows, columns * depth]."""
        (rows, width), out = shape, node.outputs[0]
        depth = (out.shape or ())[-1]
        if not isinstance(width, int) or not isinstance(depth, int):
            raise LowerError("a one-hot of unknown depth")
        wide = (rows, width // depth, depth)
        made = self.host.call("OneHot", args, {"axis": -1}, name=f"{name}_columns", shape=wide, dtype=out.dtype)
        return reshape(self.host, made, shape, name)

    def _clip(self, node: Node, args: Sequence[object], shape: tuple[Size, ...], name: str) -> Value:
        """A Clip's bounds are numbers; columns of their own take Max and Min, or a choice where one of them is a zero:
        of two zeros Clip gives x, and Max the one or the other by where they lie."""
        out, named = node.outputs[0], f"{name}_columns"
        value, *bounds = (a if a is None or isinstance(a, Value) else self.constant(np.array(a, out.dtype), name)
                          for a in args)  # fmt: skip
        rows = [isinstance(a, Value) for a in args[1:]]
        if not any(rows):
            free = zip(args[1:], bounds, extremes(str(out.dtype)), strict=True)
            bounds = [None if number == extreme else bound for number, bound, extreme in free]
            return self.host.call("Clip", [value, *bounds], name=named, shape=shape, dtype=out.dtype, like=out)
        for n, bound in enumerate(bounds):  # `arguments` gave both
            assert bound is not None
            op, operands = ("Max", "Min")[n], [bound, value]
            if not rows[n]:  # one number for all columns, and none on the other side: without one, infinities go
                far = np.array((np.inf, -np.inf)[n], out.dtype) if "float" in str(out.dtype) else None
                other = None if far is None else self.constant(far, name)
                op, operands = "Clip", [value, bound, other] if n == 0 else [value, other, bound]
            elif "float" in str(out.dtype) and not self.host.constant(bound).all():
                over = self.host.call(("Less", "Greater")[n], [value, bound], name=named, shape=shape, dtype="bool")
                op, operands = "Where", [over, bound, value]
            value = self.host.call(op, operands, name=named, shape=shape, dtype=out.dtype, like=out)
        assert value is not None
        return value

    def gathered(self, plan: Plan, name: str) -> Value:
        return moved(self.host, plan, name, {})

    def summed(self, node: Node, data: Value, name: str) -> Value:
        assert data.shape is not None and node.outputs[0].dtype is not None
        return self._sum(data, 2, data.shape[:2], node.outputs[0].dtype, name)

    def _sum(self, data: Value, axis: int, shape: tuple[Size, ...], dtype: str, name: str) -> Value:
        args, kwargs = [data], {"keepdims": 0, "axes": [axis]}
        if self.host.opset >= SUMS_BY_INPUT:
            args.append(self.host.share_constant(np.array([axis], np.int64), name=f"{name}_axis"))
            del kwargs["axes"]
        return self.host.call("ReduceSum", args, kwargs, name=f"{name}_sum", shape=shape, dtype=dtype)

    def can_count(self, right: bool, nan_above: bool) -> bool:
        return self.host.opset >= COMPARED_WHOLE or right == nan_above

    def counted(self, x: Value, edges: Sequence[Array], right: bool, nan_above: bool, dtype: str, name: str) -> Value:
        """How many edges of its own each column [rows, columns] exceeds. They lie in a dimension in front, so that
        ONNX Runtime compares and adds whole rows (13 columns, 15 edges, 256 rows: 25 us, with them last 45), and are
        added up as float32 (int64: 68). Shorter rows of edges end in NaN, which no comparison counts."""
        assert x.shape is not None and x.dtype is not None
        host, longest = self.host, max(len(e) for e in edges)
        if all(e.tobytes() == edges[0].tobytes() for e in edges):
            edges = edges[:1]
        rows = np.full((longest, 1, len(edges)), np.nan, x.dtype)
        for n, own in enumerate(edges):
            rows[: len(own), 0, n] = own
        table = host.share_constant(rows, name=f"{name}_edges")
        shape = (longest, *x.shape)
        if nan_above:  # those that do not lie above x, of all
            args, op = [table, x], "Greater" if right else "GreaterOrEqual"
        else:
            args, op = [x, table], "GreaterOrEqual" if right else "Greater"
        above = host.call(op, args, name=f"{name}_compare", shape=shape, dtype="bool")
        ones = host.call("Cast", [above], {"to": 1}, name=f"{name}_ones", shape=shape, dtype="float32")
        total = self._sum(ones, 0, x.shape, "float32", name)
        if nan_above:
            all_ = host.share_constant(np.array([len(e) for e in edges], np.float32), name=f"{name}_all")
            total = host.call("Sub", [all_, total], name=f"{name}_below", shape=x.shape, dtype="float32")
        to = {"int32": 6, "int64": 7}[dtype]
        return host.call("Cast", [total], {"to": to}, name=f"{name}_count", shape=x.shape, dtype=dtype)
