"""What ONNX files of others broke, each as small as it goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import recopt
from recopt.hosts.onnx import OnnxHost
from recopt.lift import lift


def model_of(nodes: list[Any], inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], opset: int = 20) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_an_attribute_that_the_table_does_not_know_makes_the_node_opaque() -> None:
    node = helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2)
    host = OnnxHost.load(model_of([node], {"x": ["N", 2, 4, 4]}, {"y": ["N", 8, 2, 2]}))
    (known,) = host.nodes
    assert not lift(host).opaque
    known.kwargs = {**known.kwargs, "mode": "CRD"}
    assert "arguments that its lift does not know" in lift(host).opaque[known]


def test_a_graph_without_nodes_is_optimized() -> None:
    model = model_of([], {"x": ["N", 3]}, {"x": ["N", 3]})
    x = np.ones((2, 3), np.float32)
    optimized = recopt.optimize(model)
    np.testing.assert_array_equal(optimized(x)[0], x)


def test_an_unnamed_node_goes_by_its_output() -> None:
    host = OnnxHost.load(model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ["N", 3]}, {"y": ["N", 3]}))
    assert [n.name for n in host.nodes] == ["y"]
    assert onnx.helper.printable_graph(host.to_proto().graph).count("Relu") == 1
