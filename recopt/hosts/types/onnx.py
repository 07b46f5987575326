"""Shapes and dtypes of ONNX values in recopt's terms: what onnx infers, and what the file declares."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir

from ...errors import GraphError
from ...ir import sizes
from ...ir.sizes import Size
from ..model.onnx import line, skeleton

Type = tuple[tuple[Size, ...] | None, str | None]

NO_NUMPY = {ir.DataType.UNDEFINED, ir.DataType.STRING}


def infer_types(model: ir.Model) -> dict[str, Type]:
    """The shape and dtype of every named value of the main graph.

    Exporters name the sizes of intermediate values as they please ("Gemmoutput_dim_0"), so what follows from the inputs
    comes first and a declared size only fills what inference leaves open.
    """
    with skeleton(model) as proto:
        declared = {info.name: copy.deepcopy(info) for info in (*proto.graph.value_info, *proto.graph.output)}
        del proto.graph.value_info[:]
        for output in proto.graph.output:
            output.type.tensor_type.ClearField("shape")
        try:
            proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except Exception as error:  # onnx raises errors of many unrelated classes
            raise GraphError(f"shapes cannot be inferred: {line(error)}") from error
    known = {d.dim_param for info in proto.graph.input for d in info.type.tensor_type.shape.dim if d.dim_param}
    types = {}
    for info in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        types[info.name] = _merged(info, declared.pop(info.name, info), known)
    for name, info in declared.items():
        types[name] = _merged(info, info, known)
    return types


def _merged(inferred: onnx.ValueInfoProto, declared: onnx.ValueInfoProto, known: set[str]) -> Type:
    kind = inferred.type if inferred.type.HasField("tensor_type") else declared.type
    if not kind.HasField("tensor_type") or not kind.tensor_type.elem_type:
        return None, None
    dtype = _dtype_name(ir.DataType(kind.tensor_type.elem_type))
    shapes = [i.type.tensor_type.shape.dim for i in (inferred, declared) if i.type.tensor_type.HasField("shape")]
    if not shapes:
        return None, dtype
    dims = list(zip(*shapes, strict=True)) if len({len(s) for s in shapes}) == 1 else [(d,) for d in shapes[0]]
    return tuple(_size(choices, known, f"{inferred.name}:{i}") for i, choices in enumerate(dims)), dtype


def _size(choices: Sequence[onnx.TensorShapeProto.Dimension], known: set[str], fresh: str) -> Size:
    for choice in choices:
        if choice.HasField("dim_value"):
            return int(choice.dim_value)
    for choice in choices:
        if choice.dim_param in known:
            return parse_size(choice.dim_param)
    return parse_size(choices[-1].dim_param or choices[0].dim_param or fresh)


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
