"""Shapes and dtypes of ONNX values in recopt's terms: what onnx infers, and what the file declares."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir
from onnx import helper

from ...errors import GraphError
from ...ir import sizes
from ...ir.sizes import Size
from ..model.onnx import line, skeleton

Type = tuple[tuple[Size, ...] | None, str | None]

NO_NUMPY = {ir.DataType.UNDEFINED, ir.DataType.STRING}


class Inference:
    """onnx's shape inference of one model, which can be told more and run again.

    Exporters name the sizes of intermediate values as they please ("Gemmoutput_dim_0"), so what follows from the inputs
    comes first and a declared size only fills what inference leaves open.
    """

    def __init__(self, model: ir.Model) -> None:
        with skeleton(model) as proto:
            self.proto = proto
        graph = proto.graph
        _stand_in(graph)
        self.declared = {info.name: copy.deepcopy(info) for info in (*graph.value_info, *graph.output)}
        self.outputs = {info.name: info for info in graph.output}
        named = {d.dim_param for info in graph.input for d in info.type.tensor_type.shape.dim if d.dim_param}
        self.named = symbols(map(parse_size, named))
        del graph.value_info[:]
        for info in self.outputs.values():
            info.type.tensor_type.ClearField("shape")

    def tell(self, name: str, shape: Sequence[Size | None], dtype: str) -> None:
        """From now on the value `name` has `shape`."""
        dims = [size if size is None or isinstance(size, int) else str(size) for size in shape]
        info = helper.make_tensor_value_info(name, element_code(dtype), dims)
        if name in self.outputs:
            self.outputs[name].CopyFrom(info)
        else:
            self.proto.graph.value_info.append(info)

    def run(self) -> dict[str, Type]:
        """The shape and dtype of every named value of the main graph. Raises GraphError."""
        try:
            graph = onnx.shape_inference.infer_shapes(self.proto, data_prop=True).graph
        except Exception as error:  # onnx raises errors of many unrelated classes
            raise GraphError(f"shapes cannot be inferred: {line(error)}") from error
        inferred = {info.name: info for info in (*graph.input, *graph.value_info, *graph.output)}
        both = self.declared | inferred
        return {name: _merged(info, self.declared.get(name, info), self.named) for name, info in both.items()}


# Contrib operators, which onnx's inference does not know, and standard ones whose first result has the same type.
ALIKE = {
    **dict.fromkeys(("BiasAdd", "BiasGelu", "BiasSoftmax", "FastGelu", "Gelu", "GroupNorm", "QuickGelu"), "Identity"),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), "Identity"),
    **dict.fromkeys(("FusedMatMul", "FusedMatMulActivation", "TransposeMatMul"), "Einsum"),
    "FusedConv": "Conv",
    "FusedGemm": "Gemm",
}


def _stand_in(graph: onnx.GraphProto) -> None:
    """Put standard operators of the same types in the place of contrib ones."""
    if not any(node.domain == "com.microsoft" and node.op_type in ALIKE for node in graph.node):
        return
    ranks = {i.name: len(i.type.tensor_type.shape.dim) for i in graph.input}
    ranks |= {i.name: len(i.dims) for i in graph.initializer}
    ranks |= {n.output[0]: len(a.t.dims) for n in graph.node for a in n.attribute if a.name == "value"}
    nodes = [alike for node in graph.node for alike in _alike(node, ranks)]
    del graph.node[:]
    graph.node.extend(nodes)


def _alike(node: onnx.NodeProto, ranks: Mapping[str, int]) -> list[onnx.NodeProto]:
    op = ALIKE.get(node.op_type) if node.domain == "com.microsoft" else None
    if op is None:
        return [node]
    if op == "Identity":  # the fourth result of a skip normalisation is what it normalises
        return [helper.make_node(op, node.input[:1], [out]) for out in (*node.output[:1], *node.output[3:4]) if out]
    if op == "Einsum":
        set_to = {a.name: a.i for a in node.attribute}
        left, right = "ki" if set_to.get("transA") else "ik", "jk" if set_to.get("transB") else "kj"
        batch = "" if ranks.get(node.input[1]) == 2 else "..."
        equation = f"...{left},{batch}{right}->...ij"
        return [helper.make_node(op, node.input[:2], node.output, equation=equation)]
    made = helper.make_node(op, node.input[:3], node.output)
    made.attribute.extend(a for a in node.attribute if not a.name.startswith("activation"))
    return [made]


def _merged(inferred: onnx.ValueInfoProto, declared: onnx.ValueInfoProto, known: set[Any]) -> Type:
    kind = inferred.type if inferred.type.HasField("tensor_type") else declared.type
    if not kind.HasField("tensor_type") or not kind.tensor_type.elem_type:
        return None, None
    dtype = _dtype_name(ir.DataType(kind.tensor_type.elem_type))
    shapes = [i.type.tensor_type.shape.dim for i in (inferred, declared) if i.type.tensor_type.HasField("shape")]
    if not shapes:
        return None, dtype
    dims = list(zip(*shapes, strict=True)) if len({len(s) for s in shapes}) == 1 else [(d,) for d in shapes[0]]
    return tuple(_size(choices, known, f"{inferred.name}:{i}") for i, choices in enumerate(dims)), dtype


def _size(choices: Sequence[onnx.TensorShapeProto.Dimension], known: set[Any], fresh: str) -> Size:
    for choice in choices:
        if choice.HasField("dim_value"):
            return int(choice.dim_value)
    for choice in choices:
        if choice.dim_param and symbols((size := parse_size(choice.dim_param),)) <= known:
            return size
    return parse_size(choices[-1].dim_param or choices[0].dim_param or fresh)


@lru_cache(maxsize=65536)
def parse_size(text: str) -> Size:
    """A dimension's text as a size: sums and products of names and integers are read, all else is one symbol."""
    try:
        return _parse(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError):
        return sizes.symbol(text)


def _parse(tree: ast.expr) -> Size:
    match tree:
        case ast.Name(name):
            return sizes.symbol(name)
        case ast.Constant(int(value)) if value >= 0:
            return value
        case ast.BinOp(left, ast.Add(), right):
            return sizes.add(_parse(left), _parse(right))
        case ast.BinOp(left, ast.Sub(), right):
            return sizes.add(_parse(left), sizes.mul(-1, _parse(right)))
        case ast.BinOp(left, ast.Mult(), right):
            return sizes.mul(_parse(left), _parse(right))
        case ast.BinOp(left, ast.Div() | ast.FloorDiv(), right):
            quotient = sizes.divide(_parse(left), _parse(right))
            if quotient is not None:
                return quotient
    raise ValueError("not simple arithmetic")


def declared_type(value: ir.Value) -> Type:
    """What the model itself says of a value that onnx's inference left out (an initializer)."""
    dtype = _dtype_name(value.dtype) if isinstance(value.type, ir.TensorType) and value.dtype is not None else None
    if dtype is None or value.shape is None:
        return None, dtype
    return tuple(
        d if isinstance(d, int) else parse_size(d.value or f"{value.name}:{i}") for i, d in enumerate(value.shape)
    ), dtype


def _dtype_name(dtype: ir.DataType) -> str | None:
    if dtype in {ir.DataType.UNDEFINED}:
        return None
    return "string" if dtype == ir.DataType.STRING else dtype.numpy().name


def tensor_type(dtype: str | None) -> ir.TensorType | None:
    """The ONNX type of tensors of `dtype`; None for what is no tensor."""
    return None if dtype is None else ir.TensorType(ir.DataType(element_code(dtype)))


def element_code(dtype: str) -> int:
    """ONNX's number for `dtype`, as `Cast` takes it."""
    return int(ir.DataType.STRING if dtype == "string" else ir.DataType.from_numpy(numpy_dtype(dtype)))


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype called `name`, those of ml_dtypes (bfloat16, float8...) included."""
    try:
        return np.dtype(name)
    except TypeError:
        return next(d.numpy() for d in ir.DataType if d not in NO_NUMPY and d.numpy().name == name)


def symbols(shape: Iterable[Size] | None) -> set[Any]:
    return {s for size in shape or () if not isinstance(size, int) for s in size.free_symbols}
