"""Every operator of the ONNX table against ONNX Runtime (or onnx's reference, where ORT lacks it), on odd shapes and
with a symbolic batch: the term of a one-node model, evaluated in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from recopt.hosts.onnx import OnnxHost
from recopt.ir.evaluate import evaluate
from recopt.ir.functions import FUNCTIONS
from recopt.ir.tensor import Tensor
from recopt.lift import lift
from recopt.lift.onnx import TABLE
from recopt.lift.onnx_loops import LOOPS
from recopt.lift.onnx_sequences import SEQUENCES

BATCH = 7  # a dimension of this size is declared as the symbol N
RNG = np.random.default_rng(0)


@dataclass
class K:
    """An input that is a constant of the model."""

    array: np.ndarray[Any, Any]


@dataclass
class Case:
    op: str
    inputs: list[Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 20
    outputs: int = 1
    compared: tuple[int, ...] = ()  # the outputs to look at; all for none
    batch: bool = True
    tolerance: tuple[float, float] = (1e-5, 1e-6)
    truth: Callable[..., Any] | None = None  # numpy's, where no runtime on the CPU has the operator


def x(*shape: int, dtype: str = "float32", low: float = -3, high: float = 3) -> np.ndarray[Any, Any]:
    if dtype == "bool":
        return RNG.random(shape) < 0.5
    if "int" in dtype:
        return RNG.integers(int(low), int(high), shape).astype(dtype)
    return RNG.uniform(low, high, shape).astype(dtype)


def k(*values: Any, dtype: str = "int64") -> K:
    return K(np.array(values, dtype=dtype))


def scalar(value: Any, dtype: str = "int64") -> K:
    return K(np.array(value, dtype=dtype))


def model_of(case: Case) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
    domain, _, op = case.op.rpartition("::")
    names, infos, initializers, feeds = [], [], [], {}
    for n, item in enumerate(case.inputs):
        name = "" if item is None else f"x{n}"
        names.append(name)
        if isinstance(item, K):
            initializers.append(numpy_helper.from_array(item.array, name))
        elif item is not None:
            shape = ["N" if case.batch and s == BATCH else s for s in item.shape]
            infos.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(item.dtype), shape))
            feeds[name] = item
    results = [f"y{n}" for n in range(case.outputs)]
    kept = case.compared or tuple(range(case.outputs))
    node = helper.make_node(op, names, [r if n in kept or n < max(kept) else "" for n, r in enumerate(results)],
                            domain=domain, **case.attributes)  # fmt: skip
    outs = [onnx.ValueInfoProto(name=results[n]) for n in kept]
    graph = helper.make_graph([node], "g", infos, outs, initializers)
    imports = [helper.make_opsetid("", case.opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, 3 if domain == "ai.onnx.ml" else 1))
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return model, feeds


def expected(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return list(session.run(None, feeds))
    except Exception as error:  # ORT's errors are of many classes; what it has no kernel for, onnx itself computes
        if "NOT_IMPLEMENTED" not in str(error) and "not a registered function" not in str(error).lower():
            raise
        return list(ReferenceEvaluator(model).run(None, feeds))


def typed(model: onnx.ModelProto, arrays: list[np.ndarray[Any, Any]]) -> onnx.ModelProto:
    """The model with its outputs declared by what they turned out to be (the checker wants types)."""
    for out, array in zip(model.graph.output, arrays, strict=True):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        shape = [None if s == BATCH else s for s in array.shape]
        out.CopyFrom(helper.make_tensor_value_info(out.name, kind, shape))
    return model


def by_numpy(case: Case) -> np.ndarray[Any, Any]:
    assert case.truth is not None
    arrays = [i.array if isinstance(i, K) else i for i in case.inputs]
    return np.asarray(case.truth(*(a.astype(np.float64) for a in arrays)), dtype=np.float32)


def check(case: Case) -> None:
    model, feeds = model_of(case)
    truth = expected(model, feeds) if case.truth is None else [by_numpy(case)]
    host = OnnxHost.load(typed(model, truth))
    lifted = lift(host)
    assert not lifted.opaque, lifted.opaque
    arrays = {v: feeds[v.name] for v in host.inputs}

    def leaves(leaf: Any) -> Any:
        return arrays[leaf] if leaf in arrays else host.constant(leaf)

    for value, want in zip(host.outputs, truth, strict=True):
        term = lifted.definition.get(value)
        if term is None:  # a constant
            term = lifted.of(value)
        assert term is not None
        assert term.dtype == want.dtype.name
        got = evaluate(term, leaves, {"N": BATCH})
        assert got.shape == want.shape
        if want.dtype.kind == "f":
            np.testing.assert_allclose(got, want, rtol=case.tolerance[0], atol=case.tolerance[1])
        else:
            np.testing.assert_array_equal(got, want)


def channels_last(v: Any, weight: Any, bias: Any, activation: int) -> Any:
    grouped = v.reshape(7, 3, 2, 3, 2)
    over: Any = (1, 2, 4)
    centred = grouped - grouped.mean(over, keepdims=True)
    y = (centred / np.sqrt(grouped.var(over, keepdims=True) + 1e-5)).reshape(v.shape) * weight + bias
    return y / (1 + np.exp(-y)) if activation else y


U = x(7, 5)
POSITIVE = x(7, 5, low=0.2, high=4)
UNIT = x(7, 5, low=-0.95, high=0.95)
INTS = x(7, 5, dtype="int64", low=-9, high=9)
BOOLS = x(7, 5, dtype="bool")
IDS = x(7, 4, dtype="int64", low=-11, high=11)
IMAGE = x(7, 6, 8, 9)

CASES: list[Case] = [
    *[
        Case(op, [U])
        for op in (
            "Abs Atan Asinh Ceil Cos Cosh Erf Exp Floor HardSwish Mish Neg Relu Round Sigmoid Sign "
            "Sin Sinh Softplus Softsign Tan Tanh Identity Gelu Elu Celu Selu LeakyRelu HardSigmoid "
            "ThresholdedRelu Shrink Size Shape Reciprocal"
        ).split()
    ],
    *[Case(op, [POSITIVE]) for op in ("Log", "Sqrt")],
    *[Case(op, [UNIT]) for op in ("Acos", "Asin", "Atanh")],
    Case("Acosh", [x(7, 5, low=1.1, high=4)]),
    Case("Round", [np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)]),
    Case("Abs", [INTS]),
    Case("Neg", [INTS]),
    Case("Sign", [INTS]),
    Case("Not", [BOOLS]),
    Case("IsNaN", [np.array([1, np.nan, np.inf, -np.inf], np.float32)]),
    Case("IsInf", [np.array([1, np.nan, np.inf, -np.inf], np.float32)]),
    Case("IsInf", [np.array([1, np.nan, np.inf, -np.inf], np.float32)], {"detect_negative": 0}),
    Case("IsInf", [np.array([1, np.nan, np.inf, -np.inf], np.float32)], {"detect_positive": 0}),
    *[Case(op, [U, x(5, low=0.5)]) for op in "Add Sub Mul Div Max Min Less LessOrEqual Greater GreaterOrEqual".split()],
    *[Case(op, [U, x(7, 1), x(5)]) for op in ("Sum", "Mean", "Max", "Min")],
    *[Case(op, [INTS, x(5, dtype="int64")]) for op in "Add Sub Mul Equal Less Max Min".split()],
    *[Case(op, [BOOLS, x(5, dtype="bool")]) for op in ("And", "Or", "Xor", "Equal")],
    *[
        Case(op, [x(7, 5, dtype="int32", high=99), x(5, dtype="int32", high=99)])
        for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
    ],
    Case("BitwiseNot", [x(7, 5, dtype="int32")]),
    Case("BitwiseNot", [x(7, 5, dtype="uint8", low=0, high=255)]),
    Case("BitShift", [x(7, 5, dtype="uint8", low=0, high=255), k(3, dtype="uint8")], {"direction": "LEFT"}),
    Case("BitShift", [x(7, 5, dtype="uint8", low=0, high=255), k(3, dtype="uint8")], {"direction": "RIGHT"}),
    Case("Div", [INTS, x(5, dtype="int64", low=1)]),
    Case("Div", [INTS, np.array([-2, 3, -4, 5, 1])]),
    Case("Div", [INTS, scalar(4)]),
    Case("Mod", [INTS, np.array([-2, 3, -4, 5, 1])]),
    Case("Mod", [INTS, scalar(1000)]),
    Case("Mod", [INTS, np.array([-2, 3, -4, 5, 1])], {"fmod": 1}),
    Case("Mod", [U, x(5, low=0.5)], {"fmod": 1}),
    Case("Pow", [POSITIVE, x(5)]),
    Case("Pow", [U, scalar(3.0, "float32")]),
    Case("Pow", [U, scalar(2)]),
    Case("Pow", [POSITIVE, scalar(0.5, "float32")]),
    Case("Pow", [INTS, scalar(2)]),
    Case("Pow", [x(7, 5, dtype="int64", low=0, high=9), scalar(1.5, "float32")]),
    Case("Where", [BOOLS, U, x(5)]),
    Case("Where", [BOOLS, U, scalar(-np.inf, "float32")]),
    Case("Clip", [U, scalar(-1, "float32"), scalar(0.5, "float32")]),
    Case("Clip", [U, None, scalar(0.5, "float32")]),
    Case("Clip", [INTS, scalar(-2), None]),
    Case("Clip", [U, x(dtype="float32"), None], opset=11),
    Case("PRelu", [U, x(5)]),
    Case("PRelu", [IMAGE, x(6, 1, 1)]),
    Case("Gelu", [U], {"approximate": "tanh"}),
    Case("Elu", [U], {"alpha": 0.3}),
    Case("Celu", [U], {"alpha": 0.3}),
    Case("Selu", [U], {"alpha": 1.5, "gamma": 0.7}),
    Case("LeakyRelu", [U], {"alpha": 0.2}),
    Case("HardSigmoid", [U], {"alpha": 1 / 6, "beta": 0.5}),
    Case("ThresholdedRelu", [U], {"alpha": 0.4}),
    Case("Shrink", [U], {"lambd": 1.0, "bias": 0.5}),
    Case("Swish", [U], {"alpha": 1.7}, opset=24),
    Case("Swish", [U], opset=24),
    Case("Dropout", [U], outputs=2),
    Case("Dropout", [U, scalar(0.5, "float32"), scalar(False, "bool")], opset=13),
    *[Case("Cast", [a], {"to": t}) for a in (U, INTS, BOOLS) for t in (1, 6, 7, 9, 11)],
    Case("Cast", [U], {"to": TensorProto.FLOAT16}, tolerance=(1e-3, 1e-3)),
    Case("CastLike", [INTS, k(1.0, dtype="float32")]),
    Case("QuantizeLinear", [x(7, 5, low=-9, high=9), scalar(0.05, "float32"), scalar(3, "int8")]),
    Case("QuantizeLinear", [U, K(x(5, low=0.01, high=0.1)), k(3, 2, 1, 0, 9, dtype="uint8")]),
    Case("QuantizeLinear", [U, scalar(0.05, "float32")]),
    Case("DequantizeLinear", [x(7, 5, dtype="int8", low=-99, high=99), scalar(0.05, "float32"), scalar(3, "int8")]),
    Case("DequantizeLinear", [x(7, 5, dtype="uint8", low=0, high=99), K(x(5)), k(3, 2, 1, 0, 9, dtype="uint8")]),
    Case("ai.onnx.ml::Scaler", [U], {"offset": [0.5], "scale": [2.0]}),
    Case("ai.onnx.ml::Binarizer", [U], {"threshold": 0.5}),
    # layout
    Case("Shape", [IMAGE], {"start": 1, "end": -1}),
    Case("Shape", [IMAGE], opset=13),
    Case("Size", [IMAGE]),
    Case("Reshape", [IMAGE, k(0, 2, -1, 9)]),
    Case("Reshape", [IMAGE, k(-1, 432)], opset=13),
    Case("Reshape", [x(7, 15), k(0, 3, 5)]),
    Case("Flatten", [IMAGE], {"axis": 2}),
    Case("Flatten", [IMAGE], {"axis": -1}),
    Case("Flatten", [IMAGE], {"axis": 0}),
    Case("Squeeze", [x(7, 1, 5, 1), k(1, -1)]),
    Case("Squeeze", [x(7, 1, 5, 1)], {"axes": [1]}, opset=11),
    Case("Squeeze", [x(3, 1, 5, 1)]),
    Case("Unsqueeze", [U, k(0, -1)]),
    Case("Unsqueeze", [U], {"axes": [1, 3]}, opset=11),
    Case("Transpose", [IMAGE]),
    Case("Transpose", [IMAGE], {"perm": [0, 2, 3, 1]}),
    Case("Expand", [x(7, 1, 5), k(2, 1, 3, 5)]),
    Case("Expand", [x(5), k(4, 1)]),
    Case("Tile", [U, k(2, 3)]),
    Case("Tile", [x(7, 1, 5), k(1, 4, 1)]),
    Case("Concat", [U, x(7, 2), K(x(7, 3))], {"axis": -1}, batch=False),
    Case("Concat", [U, x(7, 2)], {"axis": 1}),
    Case("Concat", [U, U, x(2, 5)], {"axis": 0}),
    Case("Concat", [BOOLS, x(7, 2, dtype="bool")], {"axis": 1}),
    Case("Slice", [U, k(1), k(4), k(1)]),
    Case("Slice", [IMAGE, k(0, 1, -5), k(2**63 - 1, -1, 100), k(0, 2, 3), k(1, 2, 1)]),
    Case("Slice", [IMAGE, k(-1, 7), k(-(2**63), 2), k(1, 2), k(-1, -2)]),
    Case("Slice", [U, k(-1), k(-100), k(0), k(-1)], batch=False),
    Case("Slice", [x(6, 5), k(1, 2), k(5, 4)]),
    Case("Slice", [x(6, 5), k(4), k(2), k(0)]),
    Case("Split", [x(7, 6)], {"axis": 1, "num_outputs": 3}, outputs=3),
    Case("Split", [x(7, 8)], {"axis": -1, "num_outputs": 3}, outputs=3),
    Case("Split", [x(7, 6), k(1, 2, 3)], {"axis": 1}, outputs=3, opset=13),
    Case("Split", [x(7, 6)], {"axis": 1, "split": [2, 4]}, outputs=2, opset=11),
    Case("Split", [x(7, 6)], {"axis": 1}, outputs=2, opset=13),
    Case("Pad", [U, k(0, 1, 0, 2)]),
    Case("Pad", [U, k(0, 1, 2, -2), scalar(1.5, "float32")]),
    Case("Pad", [U, k(0, 1, 0, 2), scalar(-np.inf, "float32")], opset=11),
    Case("Pad", [INTS, k(1, 2), scalar(4), k(1)]),
    Case("Pad", [U, k(0, 1, 0, 2)], {"mode": "edge"}),
    Case("Pad", [U, k(0, 1, 0, 2)], {"mode": "reflect"}),
    Case("Pad", [U, k(0, 1, 0, 2)], {"mode": "wrap"}),
    Case("DepthToSpace", [x(7, 8, 3, 5)], {"blocksize": 2}),
    Case("DepthToSpace", [x(7, 8, 3, 5)], {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", [x(7, 3, 4, 6)], {"blocksize": 2}),
    Case("com.microsoft::ExpandDims", [U, scalar(-1, "int32")]),
    Case("com.microsoft::Pad", [U, k(0, 1, 0, 2), k(1.5, dtype="float32")]),
    # lookups
    Case("Gather", [K(x(11, 3)), IDS]),
    Case("Gather", [K(x(11, 3)), x(7, 4, dtype="int32", low=0, high=11)]),
    Case("Gather", [IMAGE, scalar(2)], {"axis": 1}),
    Case("Gather", [IMAGE, scalar(-1)], {"axis": 0}),
    Case("Gather", [IMAGE, k(1, 3, 5)], {"axis": 1}),
    Case("Gather", [IMAGE, K(np.arange(7, -1, -1).reshape(2, 4))], {"axis": -2}),
    Case("Gather", [IMAGE, k(1, 4, 0, 0)], {"axis": 2}),
    Case("Gather", [IMAGE, k(-1, 4, 0)], {"axis": 2}),
    Case("Gather", [IMAGE, k(-1, -4, -2)], {"axis": 2}),
    Case("Gather", [IMAGE, k(-1)], {"axis": 2}),
    Case("GatherElements", [x(7, 11), IDS], {"axis": 1}),
    Case("GatherElements", [x(11, 4), IDS]),
    Case("GatherND", [IMAGE, k([0, 1], [2, 5])]),
    Case("GatherND", [IMAGE, k([1, 0, 2], [-2, 5, 3])], batch=False),
    Case("GatherND", [x(7, 11, 3), x(7, 4, 1, dtype="int64", low=-11, high=11)], {"batch_dims": 1}),
    Case("GatherND", [x(7, 3), x(4, 1, dtype="int64", low=-6, high=6)]),
    Case("ScatterElements", [x(7, 5), x(7, 1, dtype="int64", low=-5, high=5), x(7, 1)], {"axis": 1}),
    Case("ScatterElements", [x(7, 5), x(7, 4, dtype="int64", low=0, high=5), x(7, 4)], {"axis": 1, "reduction": "add"}),
    Case("ScatterND", [x(11, 5), k([2], [3], [4]), x(3, 5)]),
    Case("ScatterND", [x(7, 5), k([0, 1], [4, -2]), x(2)], batch=False),
    Case("ScatterND", [x(5, 7), k([3]), x(1, 7)], batch=False),
    Case("ScatterND", [x(5, 4, 7), k([[3, 1], [3, 2]]), x(1, 2, 7)], batch=False),
    Case("ScatterND", [x(4, 7), k([3], [-4], [1]), x(3, 7)], batch=False),
    Case("com.microsoft::GatherND", [x(3, 4), x(7, 2, dtype="int64", low=0, high=3)]),
    Case("OneHot", [IDS, scalar(9), k(0.0, 1.0, dtype="float32")]),
    Case("OneHot", [IDS, k(9), K(x(2))], {"axis": 1}),
    Case("OneHot", [IDS, scalar(9.0, "float32"), k(2, 5)]),
    Case("ReverseSequence", [x(5, 7), x(7, dtype="int64", low=1, high=5)]),
    Case("ReverseSequence", [x(7, 5, 2), x(7, dtype="int64", low=1, high=5)], {"batch_axis": 0, "time_axis": 1}),
    Case("ConstantOfShape", [k(2, 3)]),
    Case("ConstantOfShape", [k(2, 3)], {"value": numpy_helper.from_array(np.array([5], np.int64))}),
    Case("Range", [scalar(2), scalar(11), scalar(3)]),
    Case("Range", [scalar(5), scalar(0), scalar(-2)]),
    Case("Range", [scalar(0.5, "float32"), scalar(2.0, "float32"), scalar(0.25, "float32")]),
    Case("EyeLike", [x(4, 6)], {"k": 1}),
    Case("EyeLike", [x(4, 6)], {"dtype": 7, "k": -1}),
    Case("Trilu", [x(7, 4, 6)]),
    Case("Trilu", [x(7, 4, 6), scalar(-1)], {"upper": 0}),
    Case("com.microsoft::Trilu", [x(7, 4, 6), scalar(1)]),
    Case("ai.onnx.ml::ArrayFeatureExtractor", [U, k([2, 0, 4])]),
    # products
    Case("MatMul", [U, K(x(5, 3))]),
    Case("MatMul", [x(7, 2, 5), x(5, 3)]),
    Case("MatMul", [x(7, 2, 5), x(7, 5, 3)]),
    Case("MatMul", [x(7, 4, 2, 5), x(4, 5, 3)]),
    Case("MatMul", [x(5), x(7, 5, 3)]),
    Case("MatMul", [U, x(5)]),
    Case("MatMul", [x(5), x(5)]),
    Case("MatMul", [INTS, x(5, 3, dtype="int64")]),
    Case("Gemm", [U, K(x(5, 3)), K(x(3))]),
    Case("Gemm", [U, K(x(3, 5)), K(x(3))], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", [x(5, 7), x(5, 3)], {"transA": 1}),
    Case("Gemm", [U, x(3, 5), x(7, 1)], {"transB": 1}, opset=11),
    Case("Einsum", [U, x(3, 5)], {"equation": "bk,nk->bn"}),
    Case("Einsum", [x(7, 4, 5), x(7, 3, 5)], {"equation": "...ij,...kj->...ik"}),
    Case("Einsum", [x(5, 5)], {"equation": "ii->i"}),
    Case("Einsum", [x(7, 5), x(7, 5)], {"equation": "bi, bj"}),
    Case(
        "MatMulInteger",
        [x(7, 5, dtype="uint8", low=0, high=9), x(5, 3, dtype="int8"), k(3, dtype="uint8"), K(np.array(1, np.int8))],
    ),
    Case("Conv", [IMAGE, K(x(4, 6, 1, 1)), K(x(4))]),
    Case("Conv", [IMAGE, K(x(4, 6, 3, 2))], {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
    Case("Conv", [x(7, 6, 9), K(x(4, 3, 3)), K(x(4))], {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2]}),
    Case("Conv", [x(7, 6, 9), K(x(4, 6, 2))], {"auto_pad": "SAME_LOWER"}),
    Case("Conv", [x(7, 6, 9), K(x(4, 6, 2))], {"auto_pad": "VALID"}),
    Case("AveragePool", [IMAGE], {"kernel_shape": [2, 3], "strides": [2, 1]}),
    Case("AveragePool", [IMAGE], {"kernel_shape": [2, 3], "pads": [1, 0, 0, 1]}),
    Case("AveragePool", [IMAGE], {"kernel_shape": [2, 3], "pads": [1, 0, 0, 1], "count_include_pad": 1}),
    Case("MaxPool", [IMAGE], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 2]}),
    Case("GlobalAveragePool", [IMAGE]),
    Case("GlobalMaxPool", [IMAGE]),
    # reductions
    *[
        Case(f"Reduce{r}", [x(7, 4, 5, low=0.1)])
        for r in "Sum Mean Max Min Prod L1 L2 LogSum LogSumExp SumSquare".split()
    ],
    *[
        Case(f"Reduce{r}", [x(7, 4, 5, low=0.1), k(1, -1)], {"keepdims": 0})
        for r in "Sum Mean Max Min Prod L1 L2 LogSum LogSumExp SumSquare".split()
    ],
    *[
        Case(f"Reduce{r}", [x(7, 4, 5, low=0.1)], {"axes": [0, 2]}, opset=11)
        for r in "Sum Mean Max Min Prod L1 L2 LogSum LogSumExp SumSquare".split()
    ],
    Case("ReduceSum", [INTS, k(1)], opset=13),
    Case("ReduceSum", [U, k()], {"noop_with_empty_axes": 1}),
    Case("ReduceSum", [U], {"noop_with_empty_axes": 1}),
    Case("ReduceMax", [BOOLS, k(1)]),
    Case("ReduceMin", [BOOLS, k(1)]),
    Case("ArgMax", [x(7, 9, dtype="int32")], {"axis": 1}),
    Case("ArgMax", [U], {"axis": -1, "keepdims": 0}),
    Case("ArgMax", [x(7, 9, dtype="int32")], {"axis": 1, "select_last_index": 1}),
    Case("ArgMin", [x(7, 9, dtype="int32")], {"axis": 1, "select_last_index": 1}),
    Case("ArgMin", [x(7, 9, 2, dtype="int32")], {"axis": 1}),
    Case("CumSum", [U, scalar(1)]),
    Case("CumSum", [U, scalar(-1)], {"exclusive": 1}),
    Case("CumSum", [U, scalar(0)], {"reverse": 1}),
    Case("CumSum", [INTS, scalar(1)], {"reverse": 1, "exclusive": 1}),
    *[Case(op, [x(7, 4, 5)], opset=o) for op in ("Softmax", "LogSoftmax") for o in (11, 13, 20)],
    *[Case(op, [x(7, 4, 5)], {"axis": 1}) for op in ("Softmax", "LogSoftmax", "Hardmax")],
    Case("Hardmax", [x(7, 9, dtype="int32").astype("float32")]),
    Case("BatchNormalization", [IMAGE, K(x(6)), K(x(6)), K(x(6)), K(x(6, low=0.1))]),
    Case("BatchNormalization", [U, K(x(5)), K(x(5)), K(x(5)), K(x(5, low=0.1))], {"epsilon": 0.01}, opset=11),
    Case("LayerNormalization", [x(7, 4, 5), K(x(5)), K(x(5))]),
    Case("LayerNormalization", [x(7, 4, 5), K(x(4, 5))], {"axis": 1, "epsilon": 0.01}, outputs=3),
    Case("RMSNormalization", [x(7, 4, 5), K(x(5))], opset=23),
    Case("SimplifiedLayerNormalization", [x(7, 4, 5), K(x(5))], {"axis": -1, "epsilon": 1e-6}),
    Case("InstanceNormalization", [IMAGE, K(x(6)), K(x(6))]),
    Case("GroupNormalization", [IMAGE, K(x(3)), K(x(3))], {"num_groups": 3}, opset=18),
    Case("GroupNormalization", [IMAGE, K(x(6)), K(x(6))], {"num_groups": 3}, opset=21),
    Case("LpNormalization", [np.concatenate([U, 0 * U[:1]])], opset=22),
    Case("LpNormalization", [U], {"p": 1, "axis": 0}),
    Case("MeanVarianceNormalization", [IMAGE], tolerance=(1e-5, 1e-5)),
    Case("Attention", [x(7, 3, 4, 8), x(7, 3, 5, 8), x(7, 3, 5, 6)], opset=23),
    Case(
        "Attention",
        [x(7, 4, 24), x(7, 5, 8), x(7, 5, 8)],
        {"q_num_heads": 3, "kv_num_heads": 1, "scale": 0.3},
        opset=23,
    ),
    Case("Attention", [x(7, 3, 4, 8), x(7, 3, 5, 8), x(7, 3, 5, 8), x(4, 5)], {"softcap": 2.0}, opset=23),
    Case("Attention", [x(7, 3, 4, 8), x(7, 3, 4, 8), x(7, 3, 4, 8)], {"is_causal": 1}, opset=23),
    Case("Attention", [x(7, 3, 4, 8), x(7, 3, 5, 8), x(7, 3, 5, 8), K(np.tril(np.ones((4, 5), bool)))], opset=23),
    # contrib
    *[
        Case("com.microsoft::FusedGemm", [U, K(x(5, 3)), K(x(3))], {"activation": a, "alpha": 0.5, **p})
        for a, p in (
            ("Relu", {}),
            ("Sigmoid", {}),
            ("Tanh", {}),
            ("Softsign", {}),
            ("Softplus", {}),
            ("LeakyRelu", {"activation_alpha": 0.2}),
            ("Elu", {"activation_alpha": 0.7}),
            ("HardSigmoid", {"activation_alpha": 0.2, "activation_beta": 0.5}),
            ("HardSigmoid", {"activation_alpha": 1 / 6, "activation_beta": 0.5}),
            ("Selu", {"activation_alpha": 1.6732632, "activation_gamma": 1.050701}),
        )
    ],
    Case("com.microsoft::FusedGemm", [U, K(x(3, 5))], {"activation": "Relu", "transB": 1}),
    Case("com.microsoft::FusedMatMul", [x(7, 5, 4), x(7, 3, 5)], {"transA": 1, "transB": 1, "alpha": 0.3}),
    Case("com.microsoft::TransposeMatMul", [x(7, 5, 4), x(7, 3, 5)], {"transA": 1, "transB": 1, "alpha": 0.3}),
    Case(  # sums of 54 products that cancel: 4e-6 of parts as large as 30
        "com.microsoft::FusedConv",
        [IMAGE, K(x(4, 6, 3, 3)), K(x(4))],
        {"activation": "Relu", "pads": [1, 1, 1, 1]},
        tolerance=(1e-5, 1e-5),
    ),
    Case(
        "com.microsoft::FusedConv",
        [IMAGE, K(x(4, 6, 1, 1)), K(x(4))],
        {"activation": "Clip", "activation_params": [0.0, 6.0]},
    ),
    Case("com.microsoft::BiasGelu", [U, K(x(5))]),
    Case("com.microsoft::FastGelu", [U, K(x(5))], tolerance=(1e-4, 1e-5)),
    Case("com.microsoft::FastGelu", [U], tolerance=(1e-4, 1e-5)),
    Case("com.microsoft::Gelu", [U]),
    Case("com.microsoft::QuickGelu", [U]),
    Case("com.microsoft::QuickGelu", [U], {"alpha": 1.0}),
    Case(
        "com.microsoft::SkipLayerNormalization",
        [x(7, 4, 8), x(7, 4, 8), K(x(8)), K(x(8)), K(x(8))],
        {"epsilon": 1e-5},
        outputs=4,
        compared=(0, 3),
    ),
    Case("com.microsoft::SkipSimplifiedLayerNormalization", [x(7, 4, 8), x(7, 4, 8), K(x(8))], {"epsilon": 1e-5}),
    Case(
        "com.microsoft::MultiHeadAttention", [*(x(7, 4, 24, low=-1, high=1) for _ in "qkv"), K(x(72))], {"num_heads": 3}
    ),
    Case(
        "com.microsoft::MultiHeadAttention",
        [x(7, 4, 24), x(7, 5, 24), x(7, 5, 24), None, None, x(7, 3, 4, 5)],
        {"num_heads": 3, "scale": 0.2},
    ),
    *[
        Case(
            "com.microsoft::Attention",
            [x(7, 4, 8, low=-1, high=1), K(x(8, 24, low=-1, high=1)), K(x(24))],
            {"num_heads": 2, **a},
        )
        for a in ({}, {"unidirectional": 1}, {"scale": 0.7})
    ],
    Case("com.microsoft::BiasAdd", [x(7, 4, 8), K(x(8)), x(7, 4, 8)], truth=lambda a, b, s: a + b + s),
    Case(
        "com.microsoft::BiasSplitGelu",
        [x(7, 4, 6), K(x(6))],
        truth=lambda a, b: (a + b)[..., :3] * FUNCTIONS["gelu"]((a + b)[..., 3:]),
    ),
    Case(
        "com.microsoft::BiasSoftmax",
        [x(7, 4, 6), K(x(4, 6))],
        {"axis": 2, "is_inner_broadcast": 1},
        truth=lambda a, b: np.exp(a + b) / np.exp(a + b).sum(2, keepdims=True),
    ),
    Case(
        "com.microsoft::FusedMatMulActivation",
        [U, K(x(5, 3))],
        {"alpha": 0.5, "activation": "Tanh"},
        truth=lambda a, b: np.tanh(0.5 * a @ b),
    ),
    *[
        Case(
            "com.microsoft::GroupNorm",
            [x(7, 3, 2, 6), K(x(6)), K(x(6))],
            {"groups": 3, "activation": a},
            truth=lambda v, w, b, a=a: channels_last(v, w, b, a),
        )
        for a in (0, 1)
    ],
    Case("ConvTranspose", [IMAGE, K(x(6, 4, 1, 1)), K(x(4))], {"strides": [1, 1], "pads": [0, 0, 0, 0]}),
]


def name_of(case: Case) -> str:
    shapes = ",".join("-" if i is None else str((i.array if isinstance(i, K) else i).shape) for i in case.inputs)
    return f"{case.op}-{case.opset}-{shapes}-{case.attributes}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_operator(case: Case) -> None:
    check(case)


def test_every_operator_has_a_case() -> None:
    assert set(TABLE) - {*LOOPS, *SEQUENCES} == {case.op for case in CASES}  # loops: test_onnx_loops.py


REFUSED: list[tuple[str, Case]] = [
    (
        "training mode",
        Case(
            "BatchNormalization",
            [IMAGE, K(x(6)), K(x(6)), K(x(6)), K(x(6, low=0.1))],
            {"training_mode": 1},
            opset=15,
            outputs=3,
        ),
    ),
    ("outside", Case("Slice", [U, k(0), k(3), k(0)])),
    ("outside", Case("Slice", [U, k(-2), k(2**63 - 1), k(0)])),
    ("strided", Case("Slice", [U, k(0), k(2**63 - 1), k(0), k(2)])),
    ("wrap around", Case("Add", [x(7, 5, dtype="uint8", low=0), x(7, 5, dtype="uint8", low=0)])),
    ("turn out to be 1", Case("Squeeze", [x(7, 1)])),
    ("ceil_mode", Case("MaxPool", [IMAGE], {"kernel_shape": [3, 2], "ceil_mode": 1})),
    ("low precision", Case("com.microsoft::MultiHeadAttention", [x(7, 4, 24, dtype="float16")] * 3, {"num_heads": 3})),
    ("for int64", Case("ReduceMean", [INTS])),
    ("may differ", Case("Split", [U], {"axis": 0, "num_outputs": 3}, outputs=3)),
    ("computed from data", Case("Tile", [U, np.array([1, 2])])),
    ("no lift", Case("GRU", [x(4, 7, 5), K(x(1, 9, 5)), K(x(1, 9, 3))], {"hidden_size": 3}, outputs=2)),
]


@pytest.mark.parametrize(("reason", "case"), REFUSED, ids=lambda p: p if isinstance(p, str) else name_of(p))
def test_what_cannot_be_stated_is_opaque(reason: str, case: Case) -> None:
    model, feeds = model_of(case)
    host = OnnxHost.load(typed(model, expected(model, feeds)))
    (why,) = lift(host).opaque.values()
    assert reason in why


MARKED = """<ir_version: 9, opset_import: ["" : 17]>
graph (float[N, 5] x, float[M] each) => (float[N, 5] y)
<float zero = {0.0}, float[1] one = {-9.0}, int64[1] all = {-1}>
{ m = Greater (x, zero)  found = NonZero (m)  places = Transpose <perm = [1, 0]> (found)
  flat = Reshape (m, all)  counted = Cast <to = 7> (flat)  count = ReduceSum (counted)  same = Expand (one, count)
  y = ScatterND (x, places, UPDATES) }"""


def test_a_write_of_one_value_to_the_places_of_a_mask_is_a_choice() -> None:
    host = OnnxHost.load(onnx.parser.parse_model(MARKED.replace("UPDATES", "same")))
    data = x(BATCH, 5)
    values = {"x": data, "m": data > 0}
    found = evaluate(lift(host).definition[host.outputs[0]], lambda leaf: values[leaf.name], {"N": BATCH})
    np.testing.assert_array_equal(found, np.where(data > 0, np.float32(-9), data))
    host = OnnxHost.load(onnx.parser.parse_model(MARKED.replace("UPDATES", "each")))
    assert any("one value after the other" in why for why in lift(host).opaque.values())


SHIFTED = """<ir_version: 10, opset_import: ["" : 18]>
graph (INT[N, 5] x, INT[N, 5] other) => (INT[N, 5] y)
<INT zero = {0}, UINT k = {3}, UINT ones = {ONES}>
{ negative = Less (COMPARED, zero)  bits = Cast <to = TO> (x)  moved = BitShift <direction = "RIGHT"> (bits, k)
  filled = BitwiseOr (moved, ones)  below = Cast <to = BACK> (filled)  above = Cast <to = BACK> (moved)
  y = Where (negative, below, above) }"""
WHOLE = {
    "int64": {"UINT": "uint64", "INT": "int64", "TO": "13", "BACK": "7", "ONES": str(7 << 61), "COMPARED": "x"},
    "int32": {"UINT": "uint32", "INT": "int32", "TO": "12", "BACK": "6", "ONES": str(7 << 29), "COMPARED": "x"},
}


@pytest.mark.parametrize("dtype", WHOLE)
def test_signed_shifts_as_torchs_exporter_writes_them(dtype: str) -> None:
    def shifted(**words: str) -> Tensor | None:
        text = SHIFTED
        for word, by in {**WHOLE[dtype], **words}.items():
            text = text.replace(word, by)
        host = OnnxHost.load(onnx.parser.parse_model(text))
        found = lift(host).definition.get(host.outputs[0])
        return found if found is not None and {v.name for v in found.body.leaves} == {"x"} else None  # type: ignore[union-attr]  # leaves of a graph are values

    found = shifted()
    data = np.array([[0, 1, -1, -8, -9], [2**31 - 1, -(2**31), 7, 8, -7]], dtype)
    assert found is not None
    np.testing.assert_array_equal(evaluate(found, lambda _: data, {"N": 2}), data >> 3)
    for wrong in ({"COMPARED": "other"}, {"ONES": "8"}, {"zero = {0}": "zero = {1}"}, {"RIGHT": "LEFT"}):
        assert shifted(**wrong) is None


def test_shape_arithmetic_resolves() -> None:
    """Reshape(x, Concat(Gather(Shape(x), 0), Div(Size(x), ...))): what exporters write around a run-time batch."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Mul", ["n", "five"], ["m"]),
        helper.make_node("Unsqueeze", ["m", "axis"], ["u"]),
        helper.make_node("Cast", ["three"], ["c"], to=7),
        helper.make_node("Concat", ["u", "c"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
        helper.make_node("Range", ["zero", "n", "one"], ["r"]),
        helper.make_node("ConstantOfShape", ["t"], ["f"]),
    ]
    constants = {"zero": np.array(0), "one": np.array(1), "five": np.array(5), "axis": np.array([0]),
                 "three": np.array([3], np.int32)}  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, ["N", 5, 3])],
        [helper.make_tensor_value_info(o, t, None) for o, t in (("y", 1), ("r", 7), ("f", 1))],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )  # fmt: skip
    host = OnnxHost.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))
    lifted = lift(host)
    assert not lifted.opaque
    shapes = [[str(s) for s in lifted.term[v].shape] for v in host.outputs]
    assert shapes == [["5*N", "3"], ["N"], ["5*N", "3"]]


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 9),
    start=st.integers(-12, 12),
    stop=st.integers(-12, 12),
    step=st.integers(-3, 3).filter(bool),
)
def test_slices_are_numpys(size: int, start: int, stop: int, step: int) -> None:
    check(Case("Slice", [x(2, size), k(start), k(stop), k(1), k(step)], batch=False))


@settings(max_examples=25, deadline=None)
@given(
    left=st.lists(st.sampled_from([1, 2, 3]), max_size=3),
    right=st.lists(st.sampled_from([1, 2, 3]), max_size=3),
    op=st.sampled_from(["Add", "Mul", "Max", "Less"]),
)
def test_operands_broadcast_as_in_numpy(left: list[int], right: list[int], op: str) -> None:
    shape_right = [b if a == 1 or b == 1 else a for a, b in zip(left[::-1], right[::-1], strict=False)]
    shape_right += right[::-1][len(shape_right) :]
    check(Case(op, [x(*left), x(*shape_right[::-1])], batch=False))
