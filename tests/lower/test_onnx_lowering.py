"""Every function of the epilogue language and every target of the ONNX lowering, run in ONNX Runtime."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper

from recopt.errors import LowerError
from recopt.fused import Concat, Linear, Permute, Reshape, Slice, View
from recopt.hosts.base import Value
from recopt.hosts.onnx import OnnxHost
from recopt.ir import sizes
from recopt.lower import nodes_written
from recopt.lower.onnx import TARGETS, linear

KINDS = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16}
KINDS["bfloat16"] = TensorProto.BFLOAT16
BATCH = sizes.symbol("batch")
OPSETS = (11, 13, 17, 21)


def host_of(*shape: int | str, opset: int = 17, dtype: str = "float32", out: int | None = None) -> OnnxHost:
    """A graph x -> y = Identity(x): the tests replace y."""
    x = helper.make_tensor_value_info("x", KINDS[dtype], shape)
    y = helper.make_tensor_value_info("y", KINDS[dtype], [f"y{i}" for i in range(out or len(shape))])
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y])
    return OnnxHost.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def lowered(host: OnnxHost, target: str, **fields: Any) -> Value:
    """Replace y by the linear of `fields`; returns its value."""
    x = host.inputs[0]
    fields = {"x": View(x, x.shape or ()), "epilogue": "h", "params": (), "dtype": x.dtype, "b": None, **fields}
    expected, before = nodes_written(host, Linear(**fields), target), host.count_nodes()
    with host.at(host.nodes[0]):
        y = linear(host, Linear(**fields), target)
    assert host.count_nodes() == before + expected
    host.replace(host.outputs[0], y)
    host.erase_dead()
    host.check()
    assert [v.name for v in host.outputs] == ["y"]
    return y


X = np.array([[-50.0, -3.5, -1.0, -0.3, -1e-4, 0.0, 1e-4, 0.4, 1.0, 2.5, 5.9, 50.0]], np.float32).T
TEXTS: dict[str, Any] = {
    "": lambda h: h,
    "relu": torch.relu,
    "neg(h)": torch.neg,
    "abs(h)": torch.abs,
    "exp(h / 8)": lambda h: torch.exp(h / 8),
    "log(abs(h) + 1)": lambda h: torch.log(abs(h) + 1),
    "log1p(abs(h))": lambda h: torch.log(abs(h) + 1),
    "expm1(h / 8)": lambda h: torch.exp(h / 8) - 1,
    "sqrt(abs(h))": lambda h: abs(h).sqrt(),
    "rsqrt(abs(h) + 1)": lambda h: (abs(h) + 1).rsqrt(),
    "reciprocal(abs(h) + 2)": lambda h: 1 / (abs(h) + 2),
    "sigmoid(h)": torch.sigmoid,
    "tanh(h)": torch.tanh,
    "erf(h)": torch.erf,
    "sin(h)": torch.sin,
    "cos(h)": torch.cos,
    "floor(h)": torch.floor,
    "ceil(h)": torch.ceil,
    "round(h)": torch.round,
    "sign(h)": torch.sign,
    "relu6(h)": F.relu6,
    "softplus(h)": F.softplus,
    "softplus(h, 2.0, 20.0)": lambda h: F.softplus(h, 2.0),
    "softplus(h, 1.0, 2.0)": lambda h: F.softplus(h, 1.0, 2.0),
    "pow(abs(h), 1.5)": lambda h: abs(h) ** 1.5,
    "max(h, 0.5)": lambda h: torch.clamp(h, min=0.5),
    "min(h, p0)": lambda h: torch.clamp(h, max=0.25),
    "where(h > 0.0, h, p0 * h)": lambda h: torch.where(h > 0, h, 0.25 * h),
    "(h >= 1.0) * h + (h <= -1.0)": lambda h: (h >= 1) * h + (h <= -1),
    "where(logical_and(h < 1.0, h > -1.0), h, 0.0)": lambda h: h * (abs(h) < 1),
    "where(logical_or(h == 1.0, h != h), 7.0, h)": lambda h: torch.where(h == 1, 7.0, h),
    "where(logical_not(isnan(h)), h, 0.0)": lambda h: h,
    "where(h, 1.0, 2.0)": lambda h: torch.where(h != 0, 1.0, 2.0),
    "gelu(h)": F.gelu,
    "gelu_tanh(h)": lambda h: F.gelu(h, approximate="tanh"),
    "silu(h)": F.silu,
    "mish(h)": F.mish,
    "elu(h, 0.7)": lambda h: F.elu(h, 0.7),
    "selu(h)": F.selu,
    "celu(h, 0.5)": lambda h: F.celu(h, 0.5),
    "leaky_relu(h, 0.2)": lambda h: F.leaky_relu(h, 0.2),
    "hardswish(h)": F.hardswish,
    "hardsigmoid(h)": F.hardsigmoid,
    "clip(h, -1.0, 2.0)": lambda h: torch.clamp(h, -1, 2),
    "clip(h, -1.0, inf)": lambda h: torch.clamp(h, min=-1),
    "clip(h, -p0, p0)": lambda h: torch.clamp(h, -0.25, 0.25),
    "prelu(h, p0)": lambda h: F.prelu(h, torch.tensor([0.25], dtype=h.dtype)),
    "softsign(h)": F.softsign,
    "logsigmoid(h)": F.logsigmoid,
    "tanhshrink(h)": F.tanhshrink,
    "hardtanh(h, -2.0, 2.0)": lambda h: F.hardtanh(h, -2, 2),
    "softshrink(h, 0.5)": F.softshrink,
    "hardshrink(h, 0.5)": F.hardshrink,
    "identity(h)": lambda h: h,
    "tan(h)": torch.tan,
    "atan(h)": torch.atan,
    "asin(h / 64)": lambda h: torch.asin(h / 64),
    "acos(h / 64)": lambda h: torch.acos(h / 64),
    "sinh(h / 8)": lambda h: torch.sinh(h / 8),
    "cosh(h / 8)": lambda h: torch.cosh(h / 8),
    "asinh(h)": torch.asinh,
    "acosh(abs(h) + 1.0)": lambda h: torch.acosh(abs(h) + 1),
    "atanh(h / 64)": lambda h: torch.atanh(h / 64),
    "trunc(h)": torch.trunc,
    "atan2(h, p0)": lambda h: torch.atan2(h, torch.full_like(h, 0.25)),
    "atan2(-p0, h)": lambda h: torch.atan2(torch.full_like(h, -0.25), h),
    "atan2(h, h)": lambda h: torch.atan2(h, h),
    "hypot(h, p0)": lambda h: torch.hypot(h, torch.full_like(h, 0.25)),
    "hypot(h, 0.0)": abs,
    "mod(h, -p0 * 3)": lambda h: torch.remainder(h, -0.75),
    "mod(h, 3.0)": lambda h: torch.remainder(h, 3.0),
    "floordiv(h, p0 * 3)": lambda h: torch.floor_divide(h, 0.75),
    "where((h < 0.0) != (h < -1.0), p0, h)": lambda h: torch.where((h < 0) & (h >= -1), 0.25, h),
    "h * sigmoid(p0 * (h - 1.0)) - -h / (2 + 1)": lambda h: h * torch.sigmoid(0.25 * (h - 1)) + h / 3,
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("opset", (11, 24))
def test_epilogue(text: str, opset: int) -> None:
    for dtype, target in (
        ("float32", "portable"),
        ("float64", "portable"),
        ("float32", "ort-cpu"),
        ("float32", "recopt"),
    ):
        host = host_of("batch", 1, opset=opset, dtype=dtype)
        one, quarter = np.ones((1, 1), dtype), np.array([0.25], dtype)
        params = (quarter,) if "p0" in text else ()
        lowered(host, target, w=one, b=np.zeros(1, dtype), epilogue=text, params=params, shape=(BATCH, 1))
        if dtype == "float64" and not _runs(host, dtype):
            continue
        y = host.run([X.astype(dtype)])[0]
        # float32 arguments, float64 arithmetic; the exporters' own log(1+x) and exp(x)-1 lose bits near 0 as ours do
        expected = TEXTS[text](torch.from_numpy(X.astype("float64"))).numpy()
        exact = {"rtol": 1e-7, "atol": 1e-7} if dtype == "float64" else {"rtol": 1.3e-6, "atol": 1e-5}
        assert y.dtype == dtype
        np.testing.assert_allclose(y, expected, **exact)


def _runs(host: OnnxHost, dtype: str) -> bool:
    """Whether ONNX Runtime has kernels for `dtype` for all operators (it has no Erf, Mish, ... of float64)."""
    try:
        host.run([X.astype(dtype)])
    except Exception as error:
        assert "NOT_IMPLEMENTED" in str(error), error
        return False
    return True


def test_nan_and_infinity() -> None:
    host = host_of("batch", 1)
    text = "where(isnan(h), 3.0, where(h >= 1.0, max(h, 2.0), clip(h, -1.0, 1.0)))"
    lowered(host, "portable", w=np.ones((1, 1), "f"), epilogue=text, shape=(BATCH, 1))
    x = np.array([[np.nan], [np.inf], [-np.inf], [0.5]], "f")
    np.testing.assert_array_equal(host.run([x])[0], [[3.0], [np.inf], [-1.0], [0.5]])


@pytest.mark.parametrize(
    "text", ["h +", "nothing(h)", "h @ h", "relu(h, h, h)", "p3 + h", "h if h else h", "x.y", "1 < h < 2"]
)
def test_epilogue_refused(text: str) -> None:
    host = host_of("batch", 1)
    with pytest.raises(LowerError):
        lowered(host, "portable", w=np.ones((1, 1), "f"), epilogue=text, shape=(BATCH, 1))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("opset", OPSETS)
def test_targets(target: str, opset: int) -> None:
    rng = np.random.default_rng(0)
    texts = ["h", "relu(h)", "leaky_relu(h, 0.1)", "gelu(h)", "gelu_tanh(h)", "silu(h)", "elu(h, 0.5)", "selu(h)"]
    texts += ["hardsigmoid(h)", "p0 * h + (1 - p0) * sigmoid(h)"]
    for shape, text, biased in itertools.product([("batch", 13), ("batch", 5, 13)], texts, [True, False]):
        host = host_of(*shape, opset=opset)
        x = rng.normal(size=(7, *shape[1:])).astype("f")
        w, b, p = (rng.normal(size=s).astype("f") for s in ((11, 13), (11,), (11,)))
        params = (p,) if "p0" in text else ()
        y = (*(host.inputs[0].shape or ())[:-1], 11)
        result = lowered(host, target, w=w, b=b if biased else None, epilogue=text, params=params, shape=y)
        assert result.shape == y and result.dtype == "float32"
        h = torch.from_numpy(x).double() @ torch.from_numpy(w.T).double() + (torch.from_numpy(b) if biased else 0)
        expected = REFERENCE[text](h, torch.from_numpy(p)) if text in REFERENCE else TARGET_TEXTS[text](h)
        torch.testing.assert_close(torch.from_numpy(host.run([x])[0]), expected.float())
        if target == "recopt":
            assert [node.op.split("_")[0] for node in host.nodes] == ["recopt::Linear"]
        if target == "ort-cpu" and len(shape) == 2 and text in {"relu(h)", "elu(h, 0.5)", "selu(h)"}:
            assert [node.op for node in host.nodes] == ["com.microsoft::FusedGemm"]
        if target == "portable":
            assert all("::" not in node.op for node in host.nodes)


REFERENCE = {"p0 * h + (1 - p0) * sigmoid(h)": lambda h, p: p * h + (1 - p) * torch.sigmoid(h)}
TARGET_TEXTS = {"h": lambda h: h, "relu(h)": torch.relu, "leaky_relu(h, 0.1)": lambda h: F.leaky_relu(h, 0.1)}
TARGET_TEXTS |= {"elu(h, 0.5)": lambda h: F.elu(h, 0.5)}
TARGET_TEXTS |= {t: TEXTS[t] for t in ("gelu(h)", "gelu_tanh(h)", "silu(h)", "selu(h)", "hardsigmoid(h)")}


def test_unknown_target() -> None:
    with pytest.raises(LowerError, match="no target 'tpu'"):
        lowered(host_of("batch", 1), "tpu", w=np.ones((1, 1), "f"), shape=(BATCH, 1))


@pytest.mark.parametrize("target", ["portable", "recopt"])
@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_dtypes(target: str, dtype: str) -> None:
    host = host_of("batch", 4, opset=17, dtype=dtype)
    w = np.arange(12).reshape(3, 4)  # cast to the product's dtype
    text = "leaky_relu(h, 0.1)" if dtype == "float64" else "relu(h)"
    lowered(host, target, w=w, b=np.ones(3), epilogue=text, shape=(BATCH, 3))
    stored = {i.const_value.dtype.numpy().name for i in host.model.graph.initializers.values() if i.const_value}
    assert stored == {dtype}
    if dtype == "bfloat16":  # ONNX Runtime's CPU provider has no Gemm of it: the types are checked, nothing runs
        assert w.astype(ml_dtypes.bfloat16).dtype.name == dtype
        return
    x = np.array([[1, -2, 3, 0.5], [-1, -1, 0, 0]], dtype)
    expected = F.leaky_relu(torch.from_numpy(x @ w.T + 1), 0.1 if dtype == "float64" else 0.0).numpy()
    np.testing.assert_allclose(host.run([x])[0], expected, rtol=1e-3 if dtype == "float16" else 1e-12)


def test_equal_weights_are_stored_once() -> None:
    host = host_of("batch", 4)
    w = np.ones((4, 4), "f")
    x = host.inputs[0]
    with host.at(host.nodes[0]):
        for _ in range(3):
            x = linear(
                host, Linear(View(x, (BATCH, 4)), w.copy(), np.ones(4), "relu(h)", (), (BATCH, 4), "float32"), "recopt"
            )
    host.replace(host.outputs[0], x)
    host.erase_dead()
    host.check()
    assert len(host.model.graph.initializers) == 2 and len(host.model.functions) == 1
    assert host.run([np.ones((2, 4), "f")])[0].tolist() == [[85.0] * 4] * 2


@pytest.mark.parametrize("stored", ["nk", "kn", "flat"])
@pytest.mark.parametrize("rank", [2, 3])
def test_stored_weight(stored: str, rank: int) -> None:
    """A weight that lies in the model is used where it lies, or turned once; never by a node."""
    rng = np.random.default_rng(1)
    w = rng.normal(size=(3, 4)).astype("f")
    host = host_of("batch", *[5] * (rank - 2), 4)
    array, steps = {"nk": (w, ()), "kn": (w.T.copy(), (Permute((1, 0)),)), "flat": (w.ravel(), (Reshape((3, 4)),))}[
        stored
    ]
    value = host.add_constant(array, name="stored")
    shape = (*(host.inputs[0].shape or ())[:-1], 3)
    lowered(host, "portable", w=View(value, (3, 4), steps), shape=shape)
    assert host.count_nodes() == 1
    x = rng.normal(size=(2, *[5] * (rank - 2), 4)).astype("f")
    np.testing.assert_allclose(host.run([x])[0], x @ w.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_weight_at_run_time(target: str) -> None:
    infos = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ("batch", 4)), ("w", (4, 3)))]
    y = helper.make_tensor_value_info("y", 1, ("batch", 3))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", infos, [y])
    host = OnnxHost.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    lowered(host, target, w=View(host.inputs[1], (3, 4), (Permute((1, 0)),)), shape=(BATCH, 3))
    rng = np.random.default_rng(2)
    x, w = rng.normal(size=(5, 4)).astype("f"), rng.normal(size=(4, 3)).astype("f")
    np.testing.assert_allclose(host.run([x, w])[0], x @ w, rtol=1e-5)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("target", TARGETS)
def test_layouts(target: str, opset: int) -> None:
    """Views before, a concatenation, and steps after, with one and with two symbolic sizes."""
    batch, length = BATCH, sizes.symbol("length")
    host = host_of("batch", "length", 6, opset=opset)
    x = host.inputs[0]
    flat = (sizes.mul(batch, length), 6)
    left = View(x, flat, (Reshape(flat),))
    right = View(x, (flat[0], 2), (Reshape(flat), Slice(1, 1, 6, 3)))
    steps = (Reshape((batch, length, 4)), Permute((1, 0, 2)), Slice(0, 1, length), Slice(2, 0, 3))
    w = np.random.default_rng(3).normal(size=(4, 8)).astype("f")
    result = lowered(
        host, target, x=Concat((left, right), (flat[0], 8)), w=w, shape=(flat[0], 4), steps=steps, epilogue="relu(h)"
    )
    assert result.shape == (sizes.add(length, -1), batch, 3)
    for b, n in ((1, 1), (3, 5)):
        a = np.random.default_rng(4).normal(size=(b, n, 6)).astype("f")
        joined = np.concatenate([a.reshape(-1, 6), a.reshape(-1, 6)[:, 1:6:3]], 1)
        expected = np.maximum(joined @ w.T, 0).reshape(b, n, 4).transpose(1, 0, 2)[1:, :, :3]
        np.testing.assert_allclose(host.run([a])[0], expected, rtol=1e-5, atol=1e-6)


def test_reshape_of_two_sizes_that_move() -> None:
    host = host_of("a", "b", 6)
    a, b = sizes.symbol("a"), sizes.symbol("b")
    shape = (sizes.mul(2, b), a, 3)
    lowered(host, "ort-cpu", x=View(host.inputs[0], shape, (Reshape(shape),)), w=np.eye(3, dtype="f"), shape=shape)
    x = np.arange(5 * 4 * 6, dtype="f").reshape(5, 4, 6)
    np.testing.assert_array_equal(host.run([x])[0], x.reshape(8, 5, 3))


def test_size_out_of_reach() -> None:
    host = host_of("batch", 4)
    shape = (sizes.symbol("elsewhere"), sizes.symbol("also"), 4)
    with pytest.raises(LowerError, match="is not known when the model runs"):
        lowered(host, "portable", x=View(host.inputs[0], shape, (Reshape(shape),)), w=np.eye(4), shape=shape)


def test_function_is_a_valid_model_of_its_own() -> None:
    host = host_of("batch", 4)
    lowered(host, "recopt", w=np.ones((2, 4)), b=np.ones(2), epilogue="p0 * h", params=(np.ones(2),), shape=(BATCH, 2))
    proto = onnx.ModelProto.FromString(host.to_proto().SerializeToString())
    onnx.checker.check_model(proto, full_check=True)
    assert proto.functions[0].domain == "recopt" and proto.graph.node[0].attribute[0].s == b"p0 * h"
