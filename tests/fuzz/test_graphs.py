"""Random graphs in both dialects: optimized without any verification, they compute what they did.

Each seed is one graph; a failure names it. RECOPT_FUZZ=20 tries twenty times as many.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

import recopt

MORE = int(os.environ.get("RECOPT_FUZZ", "1"))
BATCHES = (1, 3, 6)
WIDTHS = (4, 6, 8)
Operator = Callable[[list[Tensor]], Tensor]


class Program(nn.Module):
    """Steps, each a function of the values so far; the last values are the outputs."""

    def __init__(self, seed: int, length: int = 12) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.weights = nn.ParameterList()
        self.steps: list[tuple[Operator, tuple[int, ...]]] = []
        values = list(self.inputs(3))
        while len(self.steps) < length:
            step, operands = self._draw(values)
            values.append(step([values[n] for n in operands]))
            self.steps.append((step, operands))
        self.eval()

    def inputs(self, batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed + batch)
        return torch.randn(batch, 6, generator=g), torch.randn(batch, 4, 6, generator=g)

    def _weight(self, *shape: int) -> nn.Parameter:
        array = self.rng.standard_normal(shape).astype(np.float32) / 2
        self.weights.append(nn.Parameter(torch.from_numpy(array)))
        return self.weights[-1]  # type: ignore[return-value]

    def _draw(self, values: list[Tensor]) -> tuple[Operator, tuple[int, ...]]:
        rng = self.rng
        recent = len(values) - 1 - min(int(rng.geometric(0.5)) - 1, len(values) - 1)
        x = values[recent]
        last, rank = x.shape[-1], x.dim()
        like = [n for n, v in enumerate(values) if v.shape == x.shape]
        other = int(rng.choice(like))
        kind = rng.choice(
            "linear matmul scale shift act act add mul cat slice turn split norm outer sum softmax flip stack".split()
        )
        one = (recent,)
        if kind == "linear":
            w, b = self._weight(int(rng.choice(WIDTHS)), last), None
            b = self._weight(w.shape[0]) if rng.random() < 0.7 else None
            return lambda v: F.linear(v[0], w, b), one
        if kind == "matmul":
            w = self._weight(last, int(rng.choice(WIDTHS)))
            return (lambda v: v[0] @ w) if rng.random() < 0.5 else (
                lambda v: torch.einsum("...k,kn->...n", v[0], w)
            ), one
        if kind == "scale":
            s = self._weight(last) if rng.random() < 0.5 else float(rng.uniform(-2, 2))
            return lambda v: v[0] * s, one
        if kind == "shift":
            c = self._weight(*(x.shape[1:] if rng.random() < 0.3 else (last,)))
            return lambda v: c + v[0], one
        if kind == "act":
            names = "relu sigmoid tanh silu gelu softplus hardswish leaky_relu elu".split()
            f = getattr(F, str(rng.choice(names)))
            return lambda v: f(v[0]), one
        if kind == "add":
            return lambda v: v[0] + 0.5 * v[1], (recent, other)
        if kind == "mul":
            return lambda v: torch.tanh(v[0]) * v[1], (recent, other)
        if kind == "cat" and last < 20:
            return lambda v: torch.cat(v, -1), (recent, other)
        if kind == "slice" and last > 4:
            start = int(rng.integers(0, last - 3))
            return lambda v: v[0][..., start : start + 4], one
        if kind == "turn" and rank == 3:
            return lambda v: v[0].transpose(1, 2), one
        if kind == "split" and rank == 2 and last % 2 == 0:
            return lambda v: v[0].reshape(-1, 2, last // 2), one
        if kind == "split" and rank == 3:
            return lambda v: v[0].flatten(1), one
        if kind == "norm":
            mean, gamma = self._weight(last), self._weight(last)
            return lambda v: (v[0] - mean) / (1 + gamma**2).sqrt() * gamma, one
        if kind == "outer" and rank == 2:
            return lambda v: v[0].unsqueeze(1) * v[0].unsqueeze(2), one
        if kind == "sum" and rank == 3:
            return (lambda v: v[0].sum(1)) if rng.random() < 0.5 else (lambda v: v[0].mean(1)), one
        if kind == "softmax":
            return lambda v: v[0].softmax(-1), one
        if kind == "flip":
            return lambda v: v[0].flip(-1), one
        if kind == "stack" and rank == 2:
            return lambda v: torch.stack(v, 1), (recent, other)
        return self._draw(values)

    def forward(self, wide: Tensor, deep: Tensor) -> tuple[Tensor, ...]:
        values = [wide, deep]
        for step, operands in self.steps:
            values.append(step([values[n] for n in operands]))
        return tuple(values[-3:])


@pytest.mark.parametrize("seed", range(14 * MORE))
def test_torch_programs(seed: int) -> None:
    program = Program(seed)
    fast = recopt.optimize(program, program.inputs(3), verify="none")
    for batch in BATCHES:
        given = program.inputs(batch, seed)
        with torch.no_grad():
            for actual, wanted in zip(fast(*given), program(*given), strict=True):
                torch.testing.assert_close(actual, wanted, msg=lambda m: f"seed {seed}, batch {batch}: {m}")  # noqa: B023


# --- ONNX, node by node


class Graph:
    """A random ONNX graph under construction: names with their shapes, the batch (None) first."""

    def __init__(self, seed: int, length: int = 14) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {"x": (6,), "y": (4, 6)}
        while len(self.nodes) < length:
            self._draw()

    def _const(self, array: Any) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _weight(self, *shape: int) -> str:
        return self._const(self.rng.standard_normal(shape).astype(np.float32) / 2)

    def _node(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> None:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        self.shapes[name] = shape

    def _draw(self) -> None:
        rng, names = self.rng, list(self.shapes)
        x = names[max(0, len(names) - int(rng.geometric(0.5)))]
        shape = self.shapes[x]
        last, rank = shape[-1], len(shape)
        other = str(rng.choice([n for n in names if self.shapes[n] == shape]))
        kind = rng.choice(
            "MatMul MatMul Gemm Add Mul Act Act Concat Slice Transpose Reshape Norm "
            "ReduceSum Softmax Where Sub Clip Pad Gather".split()
        )
        out = int(rng.choice(WIDTHS))
        if kind == "MatMul":
            self._node("MatMul", [x, self._weight(last, out)], (*shape[:-1], out))
        elif kind == "Gemm" and rank == 1:
            turned = bool(rng.random() < 0.5)
            w = self._weight(out, last) if turned else self._weight(last, out)
            inputs = [x, w] + ([self._weight(out)] if rng.random() < 0.7 else [])
            self._node("Gemm", inputs, (out,), transB=int(turned), alpha=0.5, beta=2.0)
        elif kind in ("Add", "Mul", "Sub"):
            right = self._weight(last) if rng.random() < 0.6 else other
            pair = [x, right] if rng.random() < 0.7 else [right, x]
            self._node(str(kind), pair, shape)
            if kind == "Mul" and right == other:  # or values grow beyond all bounds
                self._node("Tanh", [list(self.shapes)[-1]], shape)
        elif kind == "Act":
            op = str(rng.choice("Relu Sigmoid Tanh LeakyRelu Elu HardSwish Softplus Neg Abs Erf".split()))
            self._node(op, [x], shape)
        elif kind == "Concat" and last < 20:
            self._node("Concat", [x, other], (*shape[:-1], 2 * last), axis=-1)
        elif kind == "Slice" and last > 4:
            at = int(rng.integers(0, last - 3))
            ends = [self._const(np.array([n])) for n in (at, at + 4, -1)]
            self._node("Slice", [x, *ends], (*shape[:-1], 4))
        elif kind == "Transpose" and rank == 2:
            self._node("Transpose", [x], shape[::-1], perm=[0, 2, 1])
        elif kind == "Reshape" and rank == 2:
            self._node("Reshape", [x, self._const(np.array([0, -1]))], (shape[0] * last,))
        elif kind == "Reshape" and last % 2 == 0:
            self._node("Reshape", [x, self._const(np.array([-1, 2, last // 2]))], (2, last // 2))
        elif kind == "Norm" and rank == 1:
            spread = self._const(rng.uniform(0.5, 2, last).astype(np.float32))
            self._node("BatchNormalization", [x, *(self._weight(last) for _ in range(3)), spread], shape)
        elif kind == "ReduceSum" and rank == 2:
            self._node("ReduceSum", [x, self._const(np.array([1]))], (last,), keepdims=0)
        elif kind == "Softmax":
            self._node("Softmax", [x], shape, axis=-1)
        elif kind == "Where":
            self._node("Greater", [x, self._const(np.float32(0))], shape)
            self._node("Where", [self.nodes[-1].output[0], x, self._const(np.float32(0.25))], shape)
            del self.shapes[self.nodes[-2].output[0]]  # bool: for nobody else
        elif kind == "Clip":
            self._node("Clip", [x, self._const(np.float32(0)), self._const(np.float32(6))], shape)
        elif kind == "Pad" and rank == 1 and last < 20:
            self._node("Pad", [x, self._const(np.array([0, 0, 0, 2])), self._const(np.float32(1))], (last + 2,))
        elif kind == "Gather":
            order = rng.permutation(last)
            self._node("Gather", [x, self._const(order)], shape, axis=-1)

    def model(self) -> onnx.ModelProto:
        def info(name: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *self.shapes[name]])

        outputs = [info(name) for name in list(self.shapes)[-3:] if name not in ("x", "y")]
        graph = helper.make_graph(self.nodes, "fuzz", [info("x"), info("y")], outputs, self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run_ort(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@pytest.mark.parametrize("seed", range(40 * MORE))
def test_onnx_graphs(seed: int) -> None:
    proto = Graph(seed).model()
    target = ("portable", "ort-cpu", "recopt")[seed % 3]
    fast = recopt.optimize(proto, target=target, verify="none").to_proto()
    onnx.checker.check_model(fast, full_check=target != "ort-cpu")
    for batch in BATCHES:
        rng = np.random.default_rng(batch)
        feeds = {n: rng.standard_normal((batch, *s)).astype(np.float32) for n, s in (("x", (6,)), ("y", (4, 6)))}
        for actual, wanted in zip(run_ort(fast, feeds), run_ort(proto, feeds), strict=True):
            actual, wanted = torch.from_numpy(actual), torch.from_numpy(wanted)
            torch.testing.assert_close(actual, wanted, msg=lambda m: f"seed {seed}, batch {batch}: {m}")  # noqa: B023
