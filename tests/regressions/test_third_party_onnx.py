"""What ONNX files of others broke, each as small as it goes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import recopt
from recopt.errors import LoadError
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


def test_a_branch_that_would_not_fit_in_the_main_graph_stays_in_its_conditional() -> None:
    """AffineGrid's body: what Range is given has one element, which only the conditional hides from the type rules."""

    def branch(op: str, *inputs: str) -> Any:
        out = helper.make_tensor_value_info(op, TensorProto.INT64, None)
        return helper.make_graph([helper.make_node(op, inputs, [op])], op, [], [out])

    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"], start=1, end=2),
        helper.make_node("Constant", [], ["three"], value_ints=[3]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Constant", [], ["step"], value_int=1),
        helper.make_node("Equal", ["sizes", "three"], ["is_three"]),
        helper.make_node(
            "If",
            ["is_three"],
            ["n"],
            then_branch=branch("Add", "sizes", "three"),
            else_branch=branch("Squeeze", "sizes"),
        ),
        helper.make_node("Range", ["zero", "n", "step"], ["r"]),
        helper.make_node("Cast", ["r"], ["y"], to=TensorProto.FLOAT),
    ]
    host = OnnxHost.load(model_of(nodes, {"x": ["N", 3]}, {"y": ["M"]}))
    x = np.ones((2, 3), np.float32)
    before = host.run([x])[0]
    host.normalise()
    host.check()
    np.testing.assert_array_equal(host.run([x])[0], before)


def test_a_conversion_that_would_change_the_inputs_is_refused() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Identity", ["sum"], ["copy"])],
        "body",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("a", "b")],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("sum", "copy")],
    )
    scan = helper.make_node("Scan", ["", "first", "x"], ["y", "z"], num_scan_inputs=1, body=body)  # opset 8: batched
    shapes: dict[str, list[Any]] = {"first": [1, 2], "x": [1, 3, 2]}
    with pytest.raises(LoadError, match="inputs and outputs would change"):
        OnnxHost.load(model_of([scan], shapes, {"y": [1, 2], "z": [1, 3, 2]}, opset=8))


def test_strings_are_drawn() -> None:
    node = helper.make_node(
        "LabelEncoder", ["x"], ["y"], domain="ai.onnx.ml", keys_strings=["a", "c"], values_int64s=[1, 2]
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["N"])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    optimized = recopt.optimize(helper.make_model(graph, opset_imports=opsets, ir_version=9))
    assert optimized.report.model_error == 0
    np.testing.assert_array_equal(optimized(np.array(["c", "b", "a"]))[0], [2, -1, 1])


def test_a_sequence_comes_out_as_it_is() -> None:
    model = model_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("SplitToSequence", ["h", "sizes"], ["y"], axis=1),
        ],
        {"x": ["N", 3]},
        {"y": []},
    )
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    model.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(tensor))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 3), np.float32), "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "sizes"))
    optimized = recopt.optimize(model, target="ort-cpu")
    assert optimized.report.model_error is not None and not optimized.report.unverified
    (result,) = optimized(np.ones((1, 3), np.float32))
    assert [item.tolist() for item in result] == [[[3.0]], [[3.0, 3.0]]]


def test_a_type_that_onnx_ir_cannot_read_is_named(tmp_path: Path) -> None:
    model = model_of([helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml")], {"x": ["N", 3]}, {"y": []})
    maps = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(maps))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    for source in (model, tmp_path / "m.onnx"):
        with pytest.raises(LoadError, match="y holds maps"):
            recopt.optimize(source)


def test_a_sequence_is_fed_as_it_is() -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model = model_of([helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)], {"x": []}, {"y": ["N"]})
    model.graph.input[0].type.CopyFrom(kind)
    ragged = [np.ones(2, np.float32), np.ones(3, np.float32)]
    assert "no tensor of known rank" in recopt.optimize(model).report.unverified
    optimized = recopt.optimize(model, (ragged,))
    assert optimized.report.model_error == 0
    np.testing.assert_array_equal(optimized(ragged)[0], np.ones(5))


def test_inputs_on_which_the_runtime_ends_the_process_do_not_end_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows with a history are picked before a GRU, as packing sequences does; none of those drawn has any."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], axes=[1, 2], keepdims=0),
        helper.make_node("Greater", ["most", "bound"], ["kept"]),
        helper.make_node("Compress", ["x", "kept"], ["rows"], axis=0),
        helper.make_node("Transpose", ["rows"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["steps", "w", "r"], ["", "y"], hidden_size=2),
    ]
    model = model_of(nodes, {"x": ["N", 5, 3]}, {"y": [1, "M", 2]}, opset=17)
    for name, array in (("bound", np.float32(50)), ("w", np.ones((1, 6, 3))), ("r", np.ones((1, 6, 2)))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
    assert "ends its process" in recopt.optimize(model).report.unverified
    x = np.full((4, 5, 3), 60, np.float32)
    assert recopt.optimize(model, (x,)).report.model_error == 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(-50), "bound"))
    assert recopt.optimize(model).report.model_error == 0
    monkeypatch.setattr("recopt.hosts.runtime.onnx.APART_SECONDS", 0.01)
    assert "does not end within 0.01 s" in recopt.optimize(model).report.unverified


def test_what_runs_on_no_drawn_inputs_still_opens() -> None:
    """Under a condition that is a constant, ONNX Runtime puts the branch in its place, whose sizes it then refuses."""
    branches = [
        helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"n_{name}", TensorProto.INT64, shape)])
        for name, shape, node in (
            ("then", [1], helper.make_node("Identity", ["one_1"], ["n_then"])),
            ("else", [], helper.make_node("ReduceSum", ["size"], ["n_else"], keepdims=0)),
        )
    ]
    nodes = [
        helper.make_node("Add", ["size", "one_1"], ["sizes"]),
        helper.make_node("Reshape", ["x", "sizes"], ["y"]),  # no drawn size fits
        helper.make_node("Size", ["size"], ["length"]),
        helper.make_node("Constant", [], ["two"], value_int=2),
        helper.make_node("Equal", ["length", "two"], ["is_two"]),
        helper.make_node("If", ["is_two"], ["n"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Range", ["zero", "n", "one"], ["r"]),
        helper.make_node("Cast", ["r"], ["z"], to=TensorProto.FLOAT),
    ]
    model = model_of(nodes, {"x": [2, 10], "size": [2]}, {"y": ["A", "B"], "z": ["C"]}, opset=20)
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    constants = {"zero": 0, "one": 1, "one_1": [1]}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(c), n) for n, c in constants.items())
    optimized = recopt.optimize(model)
    assert optimized.report.unverified and "does not open" in optimized.report.undone[0].reason
    y, z = optimized(np.ones((2, 10), np.float32), np.array([9, 1]))
    assert y.shape == (10, 2) and z.tolist() == [0]


def test_constants_of_an_opset_that_the_runtime_does_not_know() -> None:
    """An operator that is the same in an older opset is computed there; ONNX Runtime 1.31 knows those up to 26."""
    opset = onnx.defs.onnx_opset_version()
    nodes = [helper.make_node("Add", ["a", "a"], ["b"]), helper.make_node("Mul", ["x", "b"], ["y"])]
    model = model_of(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, opset=opset)
    model.graph.initializer.append(numpy_helper.from_array(np.full(3, 2, np.float32), "a"))
    proto = recopt.optimize(model).to_proto()
    (node,) = proto.graph.node
    constants = {i.name: numpy_helper.to_array(i).tolist() for i in proto.graph.initializer}
    assert node.op_type == "Mul" and constants[node.input[1]] == [4, 4, 4] and proto.opset_import[0].version == opset


def test_half_precision_on_which_the_runtime_ends_the_process() -> None:
    """ONNX Runtime 1.31 does as it opens this file; one that does not verifies it."""
    file = io.BytesIO()
    module, x = SelfAttention(24, 3, batch_first=True).half().eval(), torch.zeros(4, 9, 24, dtype=torch.float16)
    torch.onnx.export(
        module, (x,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}}, opset_version=17
    )  # type: ignore[arg-type]  # a file
    report = recopt.optimize(onnx.load_from_string(file.getvalue()), target="recopt").report
    assert report.model_error is not None or "ends its process" in report.unverified
    assert report.counts().get("attention") == 1


class SelfAttention(torch.nn.MultiheadAttention):
    """Attention of a sequence to itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D] to [B, T, D]."""
        return super().forward(x, x, x, need_weights=False)[0]


def test_string_constants_have_no_number() -> None:
    nodes = [helper.make_node("Equal", ["x", "a"], ["same"]), helper.make_node("Cast", ["same"], ["y"], to=1)]
    model = model_of(nodes, {"x": ["N"]}, {"y": ["N"]}, opset=19)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    model.graph.initializer.append(helper.make_tensor("a", TensorProto.STRING, [1], [b"a"]))
    optimized = recopt.optimize(model)
    assert optimized.report.model_error == 0
    np.testing.assert_array_equal(optimized(np.array(["a", "b"]))[0], [1, 0])


@pytest.mark.parametrize("places", [[3, 9], [[0, 3], [2, 1]]])
def test_sparse_initializers_become_dense(places: Any, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    model = model_of(nodes, {"x": ["N", 8]}, {"y": ["N", 4]})
    values = numpy_helper.from_array(np.array([1, -2], np.float32), "w")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(places), "places"), [8, 4])
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    expected = np.zeros((3, 4), np.float32)
    expected[:, 3], expected[:, 1] = np.maximum(x[:, 0], 0), np.maximum(-2 * x[:, 2], 0)
    for source in (model, tmp_path / "m.onnx"):
        np.testing.assert_allclose(recopt.optimize(source, target="ort-cpu")(x)[0], expected, rtol=1e-6)
    assert model.graph.sparse_initializer


def test_layout_that_leaves_a_single_number() -> None:
    nodes = [
        helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.float32(1))),
        helper.make_node("Mul", ["x", "one"], ["y"]),
        helper.make_node("Add", ["y", "x"], ["z"]),
    ]
    optimized = recopt.optimize(model_of(nodes, {"x": []}, {"z": []}))
    np.testing.assert_array_equal(optimized(np.float32(3))[0], np.float32(6))
    assert [n.op for n in optimized.host.nodes] == ["Add"]


def test_a_mean_of_no_elements_is_left_alone() -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], keepdims=1), helper.make_node("Sub", ["x", "m"], ["y"])]
    optimized = recopt.optimize(model_of(nodes, {"x": [0, 4]}, {"y": [0, 4]}))
    assert optimized(np.ones((0, 4), np.float32))[0].shape == (0, 4)


@pytest.mark.parametrize("target", ["ort-cpu", "recopt"])
def test_a_dice_whose_slope_is_zero(target: str) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("BatchNormalization", ["xw", "ones", "a", "a", "ones"], ["h"]),
        helper.make_node("BatchNormalization", ["h", "ones", "a", "a", "ones"], ["s"]),
        helper.make_node("Sigmoid", ["s"], ["p"]),
        helper.make_node("Mul", ["p", "h"], ["ph"]),
        helper.make_node("Sub", ["ones", "p"], ["q"]),
        helper.make_node("Mul", ["a", "q"], ["aq"]),
        helper.make_node("Mul", ["aq", "h"], ["aqh"]),
        helper.make_node("Add", ["ph", "aqh"], ["y"]),
    ]
    model = model_of(nodes, {"x": ["N", 4]}, {"y": ["N", 3]})
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((4, 3)), rng.standard_normal((5, 4)).astype(np.float32)
    weights = {"w": w, "ones": np.ones(3), "a": np.zeros(3)}
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items())
    h = x @ w / np.sqrt(1 + 1e-5)
    optimized = recopt.optimize(model, target=target)
    np.testing.assert_allclose(optimized(x)[0], h / (1 + np.exp(-h / np.sqrt(1 + 1e-5))), rtol=1.3e-6, atol=1e-5)
    assert not optimized.report.undone and optimized.report.counts()["linear"] == 1


def test_a_square_is_not_completed_by_a_factor_that_is_zero() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Mul", ["xw", "g"], ["s"]),
        helper.make_node("Add", ["s", "b"], ["h"]),
        helper.make_node("Mul", ["h", "h"], ["y"]),
    ]
    model = model_of(nodes, {"x": ["N", 4]}, {"y": ["N", 3]})
    weights = {"w": np.arange(12).reshape(4, 3) - 5, "g": np.array([0, 1, 2]), "b": np.array([3, -1, 2])}
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items())
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    optimized = recopt.optimize(model, target="recopt")
    expected = (x.astype(np.float64) @ weights["w"] * weights["g"] + weights["b"]) ** 2
    np.testing.assert_allclose(optimized(x)[0], expected, rtol=1.3e-6, atol=1e-5)
    assert not optimized.report.undone and optimized.report.counts()["linear"] == 1
