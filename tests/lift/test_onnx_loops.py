"""Loops whose turns do not depend on each other, sequences; and loops that must stay opaque."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from recopt.hosts.base import Array, Value
from recopt.hosts.onnx import OnnxHost
from recopt.ir.evaluate import evaluate
from recopt.ir.term import Leaf
from recopt.lift import lift

TURN, GOES_ON = helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("c", 9, [])


def constant(name: str, value: object, dtype: type = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def tensor(name: str, shape: Sequence[int | str | None], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def host_of(
    nodes: list[onnx.NodeProto], shape: Sequence[int | str], extra: Sequence[onnx.TensorProto] = ()
) -> OnnxHost:
    """A model of x [b, 6] -> y of rank len(shape)."""
    graph = helper.make_graph(nodes, "g", [tensor("x", ["b", 6])], [tensor("y", [None] * len(shape))], list(extra))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    host = OnnxHost.load(model)
    host.normalise()
    return host


def agrees(host: OnnxHost) -> None:
    """The lifted term of the output against ONNX Runtime."""
    lifted = lift(host)
    (output,) = host.outputs
    assert output.node is not None and output.node not in lifted.opaque, lifted.opaque
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)

    def leaf(value: Leaf) -> Array:
        assert isinstance(value, Value)
        if value in host.inputs:
            return x
        return host.constant(value) if host.is_constant(value) else evaluate(lifted.definition[value], leaf, {"b": 3})

    np.testing.assert_allclose(evaluate(lifted.definition[output], leaf, {"b": 3}), host.run([x])[0], rtol=1e-6)


def over_rows(body: list[onnx.NodeProto], out: str, shape: Sequence[int]) -> list[onnx.NodeProto]:
    """A loop over the rows of x, whose turns' results are stacked."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c_out"]), *body],
        "body", [TURN, GOES_ON], [helper.make_tensor_value_info("c_out", 9, []), tensor(out, shape)],
        [constant("one", [1])],
    )  # fmt: skip
    return [
        helper.make_node("Shape", ["x"], ["n"], end=1),
        helper.make_node("Squeeze", ["n"], ["rows"]),
        helper.make_node("Loop", ["rows", ""], ["y"], body=inner),
    ]


def test_stacked_rows() -> None:
    body = [helper.make_node("Gather", ["x", "i"], ["row"]), helper.make_node("Mul", ["row", "row"], ["r"])]
    agrees(host_of(over_rows(body, "r", [6]), ["b", 6]))


def test_sums_of_slices() -> None:
    body = [
        helper.make_node("Unsqueeze", ["i", "zero"], ["start"]),
        helper.make_node("Add", ["start", "one"], ["stop"]),
        helper.make_node("Slice", ["x", "start", "stop", "zero"], ["part"]),
        helper.make_node("ReduceSum", ["part", "zero"], ["r"], keepdims=0),
    ]
    agrees(host_of(over_rows(body, "r", [6]), ["b", 6], [constant("zero", [0])]))


def test_a_slice_that_leaves_the_tensor_is_opaque() -> None:
    body = [
        helper.make_node("Unsqueeze", ["i", "zero"], ["at"]),
        helper.make_node("Add", ["at", "one"], ["start"]),
        helper.make_node("Add", ["start", "one"], ["stop"]),
        helper.make_node("Slice", ["x", "start", "stop", "zero"], ["part"]),
        helper.make_node("ReduceSum", ["part", "zero"], ["r"], keepdims=0),
    ]
    host = host_of(over_rows(body, "r", [6]), ["b", 6], [constant("zero", [0])])
    assert any("leave its dimension" in reason for reason in lift(host).opaque.values())


def test_a_turn_that_needs_an_earlier_one_is_opaque() -> None:
    inner = helper.make_graph(
        [
            helper.make_node("Identity", ["c"], ["c_out"]),
            helper.make_node("Gather", ["x", "i"], ["row"]),
            helper.make_node("Add", ["total", "row"], ["more"]),
        ],
        "body", [TURN, GOES_ON, tensor("total", [6])],
        [helper.make_tensor_value_info("c_out", 9, []), tensor("more", [6])],
    )  # fmt: skip
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], end=1),
        helper.make_node("Squeeze", ["n"], ["rows"]),
        helper.make_node("Loop", ["rows", "", "start"], ["y"], body=inner),
    ]
    host = host_of(nodes, [6], [constant("start", np.zeros(6), np.float32)])
    lifted = lift(host)
    assert host.outputs[0] not in lifted.definition


def test_joined_sequences() -> None:
    nodes = [
        helper.make_node("SequenceEmpty", [], ["none"]),
        helper.make_node("SequenceInsert", ["none", "x"], ["first"]),
        helper.make_node("SequenceInsert", ["first", "x"], ["both"]),
        helper.make_node("SequenceAt", ["both", "one"], ["again"]),
        helper.make_node("SequenceConstruct", ["again", "x"], ["pair"]),
        helper.make_node("ConcatFromSequence", ["pair"], ["y"], axis=1),
    ]
    agrees(host_of(nodes, ["b", 12], [constant("one", 1)]))


def test_joined_along_a_new_axis() -> None:
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["pair"]),
        helper.make_node("ConcatFromSequence", ["pair"], ["y"], axis=1, new_axis=1),
    ]
    agrees(host_of(nodes, ["b", 2, 6]))
