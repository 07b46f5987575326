"""What ONNX files of others broke, each as small as it goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import recopt
from recopt.hosts.onnx import OnnxHost
from recopt.lift import lift
from recopt.lift.onnx import TABLE
from tests.lift.check_values import disagreements


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
    assert [n.name for n in host.to_proto().graph.node] == [""]  # the file keeps what its author wrote


@pytest.mark.parametrize("causal", [0, 1])
def test_attention_gives_zeros_to_a_query_that_sees_nothing(causal: int) -> None:
    nodes = [
        helper.make_node("Cast", ["m"], ["mask"], to=TensorProto.BOOL),
        helper.make_node("Attention", ["q", "k", "k", "mask"], ["y"], q_num_heads=2, kv_num_heads=2, is_causal=causal),
    ]
    shapes: dict[str, list[Any]] = {"q": ["N", 3, 8], "k": ["N", 4, 8], "m": [3, 4]}
    host = OnnxHost.load(model_of(nodes, shapes, {"y": ["N", 3, 8]}, opset=23))
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((2, n, 8)).astype(np.float32) for n in (3, 4))
    mask = np.array([[0, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], np.float32)
    assert not host.run([q, k, mask])[0][:, 2].any()
    assert disagreements(host, [q, k, mask]) == []


def test_the_tool_finds_a_wrong_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    host = OnnxHost.load(model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ["N", 3]}, {"y": ["N", 3]}))
    x = np.array([[-1, 0, 2]], np.float32)
    assert disagreements(host, [x]) == []
    monkeypatch.setitem(TABLE, "Relu", TABLE["Abs"])
    assert disagreements(host, [x]) == ["y (Relu): off by 5.0e-01 of the largest magnitude"]


@pytest.mark.parametrize(("width", "expected"), [(2, ["Reshape", "Relu"]), (1, ["Squeeze", "Relu"])])
def test_a_condition_on_a_known_size_is_decided(width: int, expected: list[str]) -> None:
    """TorchScript's squeeze(1): an If on whether the dimension is 1."""

    def branch(op: str, *more: str) -> Any:
        out = helper.make_tensor_value_info("same", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["x", *more], ["same"])], op, [], [out])

    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("Gather", ["shape", "one"], ["size"]),
        helper.make_node("Equal", ["size", "one"], ["is_one"]),
        helper.make_node("Constant", [], ["kept"], value_ints=[-1, 2, 3]),
        helper.make_node(
            "If", ["is_one"], ["h"], then_branch=branch("Squeeze", "one"), else_branch=branch("Reshape", "kept")
        ),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    host = OnnxHost.load(model_of(nodes, {"x": ["N", width, 3]}, {"y": ["N", width, 3] if width > 1 else ["N", 3]}))
    host.normalise()
    host.check()
    assert [n.op for n in host.nodes] == expected
    assert not lift(host).opaque
    x = np.linspace(-1, 1, 4 * width * 3, dtype=np.float32).reshape(4, width, 3)
    np.testing.assert_array_equal(host.run([x])[0], np.maximum(x if width > 1 else x[:, 0], 0))


def test_an_inlined_constant_may_stand_before_its_equal() -> None:
    def branch(op: str, axes: str) -> Any:
        out = helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, None)
        nodes = [
            helper.make_node("Constant", [], [axes], value_ints=[1]),
            helper.make_node(op, ["x", axes], [f"{op}_out"]),
        ]
        return helper.make_graph(nodes, op, [], [out])

    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=1, end=2),
        helper.make_node("Constant", [], ["three"], value_ints=[3]),
        helper.make_node("Equal", ["shape", "three"], ["is_three"]),
        helper.make_node(
            "If", ["is_three"], ["h"], then_branch=branch("Unsqueeze", "a"), else_branch=branch("ReduceSum", "b")
        ),
        helper.make_node("Constant", [], ["late"], value_ints=[1]),
        helper.make_node("Unsqueeze", ["h", "late"], ["y"]),
    ]
    host = OnnxHost.load(model_of(nodes, {"x": ["N", 3]}, {"y": ["N", 1, 1, 3]}))
    host.normalise()
    host.check()
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(host.run([x])[0], x[:, None, None])
