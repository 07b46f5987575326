"""How the hand-made ONNX models are built: the pool of weights, the row of a table, the text of nodes to a model."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.parser
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor

K, N, T, H = 24, 40, 5, 3  # H: height and width of the images
ALL = (11, 13, 17, 21)
NEW = (13, 17, 21)  # since 13 the axes of Squeeze, Unsqueeze and ReduceSum are inputs
Numbers = np.ndarray[Any, Any]


@functools.cache
def pool() -> dict[str, Numbers]:
    """Return the weights and constants that the rows read, by name."""
    g = np.random.default_rng(11)

    def normal(*shape: int, scale: float = 1.0) -> Numbers:
        return (g.standard_normal(shape) * scale).astype(np.float32)

    weight, bias = normal(N, K, scale=K**-0.5), normal(N, scale=0.5)
    square = normal(K, K, scale=K**-0.5)
    floats: dict[str, Numbers | float] = {
        "w": weight,
        "wt": weight.T.copy(),
        "b": bias,
        "b2": normal(N, scale=0.5),
        "b_neg": -bias,
        "b_1n": bias[None],
        "b_n1": bias[:, None],
        "b_11n": bias[None, None],
        "b_31n": normal(3, 1, N),
        "b_t1": normal(T, 1),
        "b_one": normal(1),
        "square": square,
        "square_b": normal(K),
        "scale": g.random(N).astype(np.float32) + 0.5,
        "shift": normal(N, scale=0.3),
        "gamma": g.random(N).astype(np.float32) + 0.5,
        "beta": normal(N, scale=0.3),
        "mean": normal(N, scale=0.3),
        "var": g.random(N).astype(np.float32) + 0.5,
        "conv1": weight[:, :, None],
        "conv2": weight[:, :, None, None],
        "conv3": normal(N, K, 3, scale=0.1),
        "conv_groups": normal(N, K // 4, 1, scale=0.4),
        "wt_batch": weight.T[None].copy(),
        "top": weight[:16].T.copy(),
        "bottom": weight[16:].T.copy(),
        "w_augmented": np.concatenate([weight.T, bias[None]]),
        "slope": (g.random(N) * 0.3).astype(np.float32),
        "slope_1": np.array([0.2], np.float32),
        "alpha": normal(N, scale=0.3),
        "t_gamma": g.random(T).astype(np.float32) + 0.5,
        "t_beta": normal(T),
        "t_mean": normal(T),
        "t_var": g.random(T).astype(np.float32) + 0.5,
        "q_step": 0.0125,
        "q_steps": (g.random(N) * 0.01 + 0.005).astype(np.float32),
        "zero": 0.0,
        "half": 0.5,
        "one": 1.0,
        "two": 2.0,
        "three": 3.0,
        "six": 6.0,
        "sixth": 1 / 6,
        "tenth": 0.1,
        "root2": math.sqrt(2),
        "root_half": math.sqrt(0.5),
        "root_2_pi": math.sqrt(2 / math.pi),
        "cubic": 0.044715,
        "quick": 1.702,
        "eps": 1e-8,
    }
    integers = {
        "i_0": [0],
        "i_1": [1],
        "i_2": [2],
        "i_3": [3],
        "i_last": [-1],
        "i_before_last": [-2],
        "i_spatial": [2, 3],
        "i_k": [K],
        "i_cut": [7],
        "i_rows_k": [-1, K],
        "i_rows_n": [-1, N],
        "i_steps_n": [-1, T, N],
        "i_back": [0, -1, N],
        "i_column": [0, 0, 1],
        "i_split": [7, K - 7],
    }
    out = {name: np.asarray(value, np.float32) for name, value in floats.items()}
    out |= {name: np.asarray(value, np.int64) for name, value in integers.items()}
    out["i_scalar_0"] = np.asarray(0, np.int64)
    out["i_scalar_1"] = np.asarray(1, np.int64)
    out["q_w"] = g.integers(-128, 128, (N, K)).astype(np.int8)
    out["q_wt"] = out["q_w"].T.copy()
    out["q_zero"] = np.asarray(3, np.int8)
    out["q_zeros"] = np.zeros(N, np.int8)
    out["training"] = np.asarray(True)
    return out


def w(name: str) -> Tensor:
    """Return a weight of the pool in float64."""
    return torch.from_numpy(pool()[name].astype(np.float64))


@dataclass(frozen=True)
class Row:
    """Nodes from x to y, the activation, weight [N, K] and bias that they amount to, x's shape behind the batch."""

    body: str
    act: Callable[[Tensor], Tensor] = F.relu
    weight: Callable[[], Tensor] = lambda: w("w")
    bias: Callable[[], Tensor] = lambda: w("b")
    opsets: tuple[int, ...] = (17,)
    x: tuple[int, ...] = (K,)
    axis: int = -1  # the axis of x and y that is contracted and made
    y: tuple[int, ...] | None = None

    def reference(self, x: Numbers) -> Numbers:
        """Compute y of x in float64."""
        channels_last = torch.from_numpy(x).double().movedim(self.axis, -1)
        h = self.act(F.linear(channels_last, self.weight(), self.bias())).movedim(-1, self.axis)
        return np.asarray(h.reshape(-1, *(self.y or h.shape[1:])))


def build(
    body: str, opset: int, x: tuple[int, ...], y: tuple[Any, ...], constants: bool = False, others: str = ""
) -> onnx.ModelProto:
    """Make a model of the text of its nodes; x and y are shapes behind the symbolic batch, `others` further outputs."""

    def shape(dims: tuple[Any, ...]) -> str:
        return ", ".join(("batch", *map(str, dims)))

    outputs = f"float[{shape(y)}] y{others}"
    graph = onnx.parser.parse_graph(f"linear (float[{shape(x)}] x) => ({outputs}) {{ {body} }}")
    made = {name for node in graph.node for name in node.output}
    read = dict.fromkeys(name for node in graph.node for name in node.input if name)
    weights = {name: pool()[name] for name in read if name not in made and name != "x"}
    for i, node in enumerate(graph.node):
        node.name = f"{node.op_type.lower()}_{i}"
    if constants:
        nodes = [
            helper.make_node("Constant", [], [name], name=f"constant_{name}", value=numpy_helper.from_array(value))
            for name, value in weights.items()
        ]
        nodes += graph.node
        del graph.node[:]
        graph.node.extend(nodes)
    else:
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    imports = [helper.make_opsetid("", opset)]
    version = helper.find_min_ir_version_for(imports)
    imports += [helper.make_opsetid(domain, 1) for domain in {node.domain for node in graph.node} - {""}]
    return helper.make_model(graph, opset_imports=imports, ir_version=version)
