"""Small models that the tests of the pipeline share, in both dialects."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn


def tower(layers: int = 3, width: int = 16) -> nn.Module:
    """Layers of linear and ReLU."""
    torch.manual_seed(0)
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*parts).eval()


class Named(nn.Module):
    """Two inputs by name, results in a dict."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.deep = nn.Linear(6, 4), nn.Linear(8, 4)

    def forward(self, dense: Tensor, item: Tensor) -> dict[str, Tensor]:
        """Scores of a sample."""
        return {"score": torch.sigmoid(self.wide(dense) + self.deep(item)), "item": torch.relu(self.deep(item))}


def onnx_tower(layers: int = 3, width: int = 16) -> onnx.ModelProto:
    """Layers spelled as MatMul, Add, Relu; the batch is a symbol."""
    rng = np.random.default_rng(0)
    nodes, tensors, at = [], [], "x"
    for n in range(layers):
        tensors.append(numpy_helper.from_array(rng.standard_normal((width, width), np.float32) / 4, f"w{n}"))
        tensors.append(numpy_helper.from_array(rng.standard_normal(width, np.float32), f"b{n}"))
        nodes.append(helper.make_node("MatMul", [at, f"w{n}"], [f"product{n}"]))
        nodes.append(helper.make_node("Add", [f"product{n}", f"b{n}"], [f"sum{n}"]))
        nodes.append(helper.make_node("Relu", [f"sum{n}"], [f"relu{n}"]))
        at = f"relu{n}"
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", at)]
    graph = helper.make_graph(nodes, "tower", infos[:1], infos[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
