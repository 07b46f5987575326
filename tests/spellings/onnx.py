"""Spellings of linear + bias + activation that a file may hold and torch's exporters do not write.

A row is the text of the nodes from "x" to "y"; every other name that it reads and does not make is a weight of the
pool. Each row becomes a model an opset, "name@17", with initializers, and one with Constant nodes, "name@17.constants".
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx

from .onnx_activations import ACTIVATIONS
from .onnx_build import K, N, Numbers, Row, T, build
from .onnx_near_misses import ONNX_NEAR_MISSES
from .onnx_products import PRODUCTS

__all__ = ["ONNX_NEAR_MISSES", "ONNX_SPELLINGS", "ROWS", "inputs", "reference"]


def _rows() -> dict[str, Row]:
    rows = dict(PRODUCTS)
    for name, (body, act, opsets) in ACTIVATIONS.items():
        rows[f"{name}_2d"] = Row(f"h = Gemm <transB = 1> (x, w, b)  {body}", act, opsets=opsets)
        rows[f"{name}_3d"] = Row(f"g0 = MatMul (x, wt)  h = Add (g0, b)  {body}", act, opsets=opsets[-1:], x=(T, K))
    return rows


ROWS = _rows()


def _output(row: Row) -> tuple[int, ...]:
    shape = [0, *row.x]
    shape[row.axis] = N
    return row.y or tuple(shape[1:])


def _models() -> dict[str, Callable[[], onnx.ModelProto]]:
    out: dict[str, Callable[[], onnx.ModelProto]] = {}
    for name, row in ROWS.items():
        for opset in row.opsets:
            out[f"{name}@{opset}"] = functools.partial(build, row.body, opset, row.x, _output(row))
        out[f"{name}@{row.opsets[-1]}.constants"] = functools.partial(
            build, row.body, row.opsets[-1], row.x, _output(row), True
        )
    return out


ONNX_SPELLINGS: dict[str, Callable[[], onnx.ModelProto]] = _models()


def reference(name: str, x: Numbers) -> Numbers:
    """Compute in float64 what the model ONNX_SPELLINGS[name] makes of x."""
    return ROWS[name.split("@")[0]].reference(x)


def inputs(model: onnx.ModelProto, batch: int, seed: int = 0) -> Numbers:
    """Return a normal fp32 x for a model of ONNX_SPELLINGS or ONNX_NEAR_MISSES."""
    dims = model.graph.input[0].type.tensor_type.shape.dim[1:]
    shape = (batch, *(dim.dim_value for dim in dims))
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
