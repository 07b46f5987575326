"""The ONNX host: reading, surgery, constants, files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import recopt.hosts.graph.onnx
from recopt.errors import GraphError, LoadError, OptionError, VerifyError
from recopt.hosts import base
from recopt.hosts.base import Array
from recopt.hosts.onnx import OnnxHost
from recopt.hosts.types.onnx import parse_size
from recopt.ir import sizes

BATCH = sizes.symbol("batch")
OPSETS = (11, 13, 17, 21)
node = helper.make_node


def model(
    nodes: list[Any],
    outputs: dict[str, tuple[Any, ...]],
    inputs: dict[str, tuple[Any, ...]] | None = None,
    weights: dict[str, Array] | None = None,
    opset: int = 17,
    ir_version: int = 8,
    **rest: Any,
) -> onnx.ModelProto:
    """A float32 model; x is ("batch", 4) unless `inputs` says otherwise."""
    given = {"x": ("batch", 4)} if inputs is None else inputs
    infos = [[helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in d.items()] for d in (given, outputs)]
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", infos[0], infos[1], tensors)
    opsets = [helper.make_opsetid("", opset), *rest.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, **rest)


def mlp(opset: int = 17) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="first"),
        node("Add", ["h", "b"], ["hb"], name="second"),
        node("Relu", ["hb"], ["y"], name="third", doc_string="kept"),
    ]
    weights = {"w": rng.normal(size=(4, 3)).astype("f"), "b": rng.normal(size=3).astype("f")}
    proto = model(nodes, {"y": ("batch", 3)}, weights=weights, opset=opset)
    helper.set_model_props(proto, {"author": "someone"})
    proto.graph.node[2].metadata_props.add(key="where", value="line 3")
    return proto


def feed(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype("f")


def fuse(host: OnnxHost) -> None:
    """MatMul-Add-Relu -> FusedGemm."""
    matmul, add, relu = host.nodes
    with host.at(relu):
        y = host.call(
            "com.microsoft::FusedGemm",
            [*matmul.args, add.args[1]],
            {"activation": "Relu"},
            name="fused",
            shape=relu.outputs[0].shape,
            dtype="float32",
            like=relu.outputs[0],
        )
    host.replace(relu.outputs[0], y)


@pytest.mark.parametrize("opset", OPSETS)
def test_surgery(opset: int) -> None:
    proto = mlp(opset)
    before = proto.SerializeToString()
    original, host = OnnxHost.load(proto), OnnxHost.load(proto)
    first, second, third = host.nodes
    assert [n.op for n in host.nodes] == ["MatMul", "Add", "Relu"] and host.opset == opset
    assert first.inputs == first.args and host.users(first.outputs[0]) == [second]
    assert [v.shape for v in host.inputs] == [(BATCH, 4)] and third.outputs[0].shape == (BATCH, 3)
    assert third.outputs[0].dtype == "float32" and third.outputs[0].node is third
    fuse(host)
    assert host.erase_dead() == 3 and host.erase_dead() == 0
    assert [n.op for n in host.nodes] == ["com.microsoft::FusedGemm"] and host.count_nodes() == 1
    host.check()
    after = host.to_proto()
    onnx.checker.check_model(after)
    assert after.graph.output == proto.graph.output and after.graph.input == proto.graph.input
    assert after.metadata_props == proto.metadata_props and after.graph.initializer == proto.graph.initializer
    assert after.graph.node[0].doc_string == "kept" and after.graph.node[0].metadata_props[0].value == "line 3"
    for batch in (1, 5):
        np.testing.assert_allclose(host.run([feed(batch, 4)])[0], original.run([feed(batch, 4)])[0], rtol=1e-5)
    assert proto.SerializeToString() == before


def test_an_ir_model_is_not_changed() -> None:
    given = ir.from_proto(mlp())
    before = ir.to_proto(given).SerializeToString()
    host = OnnxHost.load(given)
    fuse(host)
    host.normalise()
    assert ir.to_proto(given).SerializeToString() == before
    assert host.model.graph.initializers["w"].const_value is given.graph.initializers["w"].const_value


def test_the_branch_that_is_taken_leaves_its_names_to_the_given_model() -> None:
    w = np.random.default_rng(3).normal(size=(4, 4)).astype("f")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 4))
    branch = helper.make_graph([node("MatMul", ["x", "w"], ["y"])], "b", [], [y], [numpy_helper.from_array(w, "w")])
    nodes = [node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)]
    proto = model(nodes, {"y": ("batch", 4)}, weights={"yes": np.array(True)})
    given = ir.from_proto(proto)
    before = [proto.SerializeToString(deterministic=True), ir.to_proto(given).SerializeToString(deterministic=True)]
    for source in (proto, given):
        host = OnnxHost.load(source)
        host.normalise()
        assert [n.op for n in host.nodes] == ["MatMul"]
        np.testing.assert_allclose(host.run([feed(3, 4)])[0], feed(3, 4) @ w, rtol=1e-5, atol=1e-6)
    after = [proto.SerializeToString(deterministic=True), ir.to_proto(given).SerializeToString(deterministic=True)]
    assert after == before


@pytest.mark.parametrize("dynamo", [True, False])
def test_exporters(dynamo: bool) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = torch.nn.EmbeddingBag(50, 8, mode="sum")
            self.mlp = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.PReLU(6), torch.nn.Linear(6, 1))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.mlp(self.bag(ids))).squeeze(-1)

    net, ids = Net().eval(), torch.randint(0, 50, (3, 4))
    buffer = io.BytesIO()
    if dynamo:
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(net, (ids,), dynamo=True, dynamic_shapes=shapes, verbose=False)
        assert program is not None
        proto = program.model_proto
    else:
        axes = {"ids": {0: "batch"}}
        torch.onnx.export(net, (ids,), buffer, dynamo=False, dynamic_axes=axes, input_names=["ids"], opset_version=17)
        proto = onnx.load_from_string(buffer.getvalue())
    host = OnnxHost.load(proto)
    names = [v.name for v in (*host.inputs, *host.outputs)]
    host.normalise()
    host.check()
    assert names == [v.name for v in (*host.inputs, *host.outputs)] and host.inputs[0].shape == (BATCH, 4)
    assert any(n.opaque for n in host.nodes), "the bag is a Loop"
    for batch in (1, 7):
        ids = torch.randint(0, 50, (batch, 4))
        torch.testing.assert_close(torch.from_numpy(host.run([ids.numpy()])[0]), net(ids).detach())


# Graph outputs


def test_output_replaced_by_another_output_an_input_and_a_constant() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Relu", ["x"], ["b"]), node("Identity", ["x"], ["c"])]
    nodes += [node("Mul", ["w", "w"], ["d"])]
    shape = ("batch", 4)
    outputs = {"a": shape, "b": shape, "c": shape, "d": (4,)}
    host = OnnxHost.load(
        model(nodes, outputs, weights={"w": np.arange(4, dtype="f"), "ww": np.arange(4, dtype="f") ** 2})
    )
    a, b, c, d = host.outputs
    constant = host.add_constant(np.arange(4, dtype="f") ** 2, name="ww")
    assert constant.name == "ww_1"
    host.replace(b, a)
    host.replace(c, host.inputs[0])
    host.replace(d, constant)
    host.erase_dead()
    host.check()
    assert [v.name for v in host.outputs] == ["a", "b", "c", "d"]
    assert sorted(n.op for n in host.nodes) == ["Identity"] * 3 + ["Relu"]
    x = feed(2, 4)
    for result, expected in zip(host.run([x]), [np.maximum(x, 0)] * 2 + [x, np.arange(4) ** 2], strict=True):
        np.testing.assert_array_equal(result, expected)


def test_output_with_other_readers() -> None:
    nodes = [node("Relu", ["x"], ["y"]), node("Neg", ["y"], ["z"])]
    host = OnnxHost.load(model(nodes, {"y": ("batch", 4), "z": ("batch", 4)}))
    y = host.outputs[0]
    with host.at(host.nodes[0]):
        new = host.call("Abs", [host.inputs[0]], name="y", shape=y.shape, dtype="float32")
    assert new.name == "y_1"
    host.replace(y, new)
    assert host.is_output(new) and not host.is_output(y) and new.name == "y" and y.name == "y_1"
    assert host.outputs[0] is new and host.users(new)[0].op == "Neg" and host.users(y) == []
    assert host.erase_dead() == 1 and not host.holds(y)
    host.check()
    np.testing.assert_array_equal(host.run([feed(2, 4)])[1], -np.abs(feed(2, 4)))


# Sub-graphs


def branches(opset: int = 17) -> onnx.ModelProto:
    """y = Relu(x) where the sum of x is positive, else -h, for h = x + x, which both the branch and z read."""
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ("batch", 4))
    yes = helper.make_graph([node("Relu", ["x"], ["out"])], "yes", [], [out])
    other = helper.make_tensor_value_info("other", TensorProto.FLOAT, ("batch", 4))
    no = helper.make_graph([node("Neg", ["h"], ["other"])], "no", [], [other])
    nodes = [
        node("Add", ["x", "x"], ["h"]),
        node("ReduceMax", ["x"], ["m"], keepdims=0),
        node("Greater", ["m", "zero"], ["c"]),
        node("If", ["c"], ["y"], then_branch=yes, else_branch=no),
    ]
    return model(nodes, {"y": ("batch", 4)}, weights={"zero": np.float32(0)}, opset=opset)


@pytest.mark.parametrize("opset", OPSETS)
def test_captured_values(opset: int) -> None:
    host = OnnxHost.load(branches(opset))
    add, branch = host.nodes[0], host.nodes[-1]
    h, x = add.outputs[0], host.inputs[0]
    assert branch.opaque and h in branch.inputs and x in branch.inputs and h not in branch.args
    assert host.users(h) == [branch] and branch in host.users(x)
    with host.at(add):
        two = host.call(
            "Mul", [x, host.add_constant(np.float32(2), name="two")], name="h", shape=h.shape, dtype="float32"
        )
    host.replace(h, two)
    assert two in branch.inputs and h not in branch.inputs
    assert host.erase_dead() == 1
    host.normalise()
    host.check()
    for x_ in (-np.ones((2, 4), "f"), np.ones((2, 4), "f")):
        np.testing.assert_array_equal(host.run([x_])[0], np.where(x_ < 0, -2 * x_, x_))
    copy = host.clone()
    with copy.at(copy.nodes[0]):
        copy.replace(copy.outputs[0], copy.call("Relu", [copy.inputs[0]], name="y", shape=h.shape, dtype="float32"))
    assert copy.erase_dead() == 4 and [n.op for n in copy.nodes] == ["Relu"]
    copy.check()
    assert host.count_nodes() == 4
    host.check()


def test_random_operators_are_left_alone() -> None:
    nodes = [node("RandomNormal", [], [n], shape=[4]) for n in ("a", "b")]
    nodes += [node("Add", ["a", "b"], ["s"]), node("Add", ["x", "s"], ["y"])]
    nodes += [node("Dropout", ["y", "ratio", "on"], ["z"]), node("Dropout", ["z", "ratio", "off"], ["o"])]
    weights = {"ratio": np.float32(0.5), "on": np.array(True), "off": np.array(False)}
    host = OnnxHost.load(model(nodes, {"o": ("batch", 4)}, weights=weights))
    host.normalise()
    assert [n.opaque for n in host.nodes] == [True, True, False, False, True, False]
    assert not host.is_constant(host.nodes[2].outputs[0])
    with pytest.raises(GraphError, match="is not constant"):
        host.constant(host.nodes[2].outputs[0])


# Constants


def test_constants() -> None:
    nodes = [
        node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones((2, 4), "f"))),
        node("Constant", [], ["i"], value_ints=[1, 0]),
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("Add", ["t", "k"], ["s"]),
        node("Mul", ["s", "k"], ["c"]),
        node("Mul", ["x", "c"], ["y"]),
    ]
    host = OnnxHost.load(model(nodes, {"y": (2, 4)}, {"x": (2, 4)}, {"w": np.arange(8, dtype="f").reshape(4, 2)}))
    assert [n.op for n in host.nodes] == ["Transpose", "Add", "Mul", "Mul"]
    last = host.nodes[-1]
    w, c = host.nodes[0].args[0], last.args[1]
    assert host.is_constant(w) and host.is_constant(c) and not host.is_constant(last.outputs[0])
    assert not host.is_constant(host.inputs[0]) and w.node is None
    np.testing.assert_array_equal(host.constant(c), np.arange(8).reshape(4, 2).T + 1)
    assert host.constant(c) is host.constant(c)
    assert host.constant(w) is host.constant(w)
    array = np.ones(3)
    assert np.shares_memory(host.constant(host.add_constant(array, name="n")), array)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "bool", "bfloat16"])
def test_constants_of_other_types(dtype: str) -> None:
    tensor = ir.Tensor(np.array([[1, 0], [1, 1]]).astype(ir.DataType[KINDS[dtype]].numpy()), name="w")
    kind = int(tensor.dtype)
    graph = helper.make_graph(
        [node("Transpose", ["w"], ["t"]), node("Identity", ["t"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", kind, (2, 2))],
        [ir.to_proto(tensor)],
    )
    host = OnnxHost.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    value = host.nodes[0].outputs[0]
    assert value.dtype == dtype and host.constant(value).tolist() == [[1, 1], [0, 1]]


KINDS = {"float16": "FLOAT16", "float64": "DOUBLE", "int64": "INT64", "bool": "BOOL", "bfloat16": "BFLOAT16"}


def test_large_constants_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recopt.hosts.graph.onnx, "EVALUATED_LIMIT", 1 << 20)
    nodes = [node("Neg", ["w"], ["n"]), node("Add", ["x", "n"], ["y"])]
    host = OnnxHost.load(model(nodes, {"y": (4, 1 << 20)}, {"x": (4, 1 << 20)}, {"w": np.zeros((1, 1 << 20), "f")}))
    with pytest.raises(GraphError, match="takes 8 MB"):
        host.constant(host.nodes[0].outputs[0])


def test_initializers_that_are_inputs() -> None:
    nodes = [node("Add", ["x", "w"], ["y"])]
    inputs = {"x": ("batch", 4), "w": (4,)}
    for ir_version, constant in ((3, True), (8, False)):
        proto = model(nodes, {"y": ("batch", 4)}, inputs, {"w": np.ones(4, "f")}, opset=11, ir_version=ir_version)
        host = OnnxHost.load(proto)
        assert [v.name for v in host.inputs] == ["x"]
        assert host.is_constant(host.nodes[0].args[1]) is constant
        host.normalise()
        host.check()
        np.testing.assert_array_equal(host.run([feed(2, 4)])[0], feed(2, 4) + 1)
        assert len(host.to_proto().graph.input) == (1 if constant else 2)


def test_other_names_for_the_standard_domain_and_for_open_sizes() -> None:
    proto = mlp(opset=18)
    proto.opset_import[0].domain = "ai.onnx"
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    host = OnnxHost.load(proto)
    assert host.opset == 18
    assert all(
        value.shape is not None and not isinstance(value.shape[0], int) for value in (*host.inputs, *host.outputs)
    )
    host.check()
    assert host.run([feed(3, 4)])[0].shape == (3, 3)


# Clean-up


def test_normalise() -> None:
    functions = [
        helper.make_function(
            domain, name, ["a"], ["b"], [node("Mul", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
        )
        for domain, name in (("mine", "Square"), ("recopt", "Kept"))
    ]
    nodes = [
        node("Identity", ["x"], ["i"]),
        node("Square", ["i"], ["s"], domain="mine", name="call"),
        node("Kept", ["s"], ["k"], domain="recopt"),
        node("Constant", [], ["one"], value_float=1.0),
        node("Add", ["k", "one"], ["p"]),
        node("Add", ["k", "uno"], ["q"]),
        node("Sub", ["p", "k"], ["unused"]),
        node("Mul", ["p", "q"], ["m"]),
        node("Identity", ["m"], ["y"]),
    ]
    opsets = [helper.make_opsetid("mine", 1), helper.make_opsetid("recopt", 1)]
    weights = {"uno": np.float32(1), "spare": np.float32(3)}
    proto = model(nodes, {"y": ("batch", 4)}, weights=weights, functions=functions, opsets=opsets)
    host = OnnxHost.load(proto)
    x = feed(3, 4)
    expected = host.run([x])[0]
    host.normalise()
    assert [n.op for n in host.nodes] == ["Mul", "recopt::Kept", "Add", "Mul"]
    assert host.nodes[0].outputs[0].shape == (BATCH, 4)
    assert [v.name for v in host.outputs] == ["y"] and [f.name for f in host.to_proto().functions] == ["Kept"]
    assert len(host.model.graph.initializers) <= 1
    host.check()
    np.testing.assert_array_equal(host.run([x])[0], expected)
    revision = [n.name for n in host.nodes]
    host.normalise()
    assert [n.name for n in host.nodes] == revision


# Shapes


def test_sizes() -> None:
    s0 = sizes.symbol("s0")
    for text, size in {
        "s0": s0,
        "50*s0": 50 * s0,
        "s0 * 50 + 1": 50 * s0 + 1,
        "2*s0 - s0": s0,
        "(4*s0)//2": 2 * s0,
        "s0//2": sizes.symbol("s0//2"),
        "Max(s0, 1)": sizes.symbol("Max(s0, 1)"),
        "batch size": sizes.symbol("batch size"),
        "7": 7,
    }.items():
        assert parse_size(text) == size, text


def test_shapes_follow_the_inputs() -> None:
    """A size that an exporter made up for an intermediate gives way to what follows from the inputs."""
    nodes = [node("Flatten", ["x"], ["f"]), node("NonZero", ["f"], ["n"]), node("Cast", ["n"], ["y"], to=1)]
    proto = model(nodes, {"y": (2, "found")}, {"x": ("batch", 3, 2)})
    proto.graph.value_info.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ("Flatten_dim_0", 6)))
    host = OnnxHost.load(proto)
    assert host.nodes[0].outputs[0].shape == (BATCH, 6)
    assert host.outputs[0].shape == (2, sizes.symbol("found"))
    assert host.nodes[1].outputs[0].dtype == "int64"


# Files


def big(path: Path, threshold: int = 1024) -> Array:
    """A model of 4 MB with external data from `threshold` bytes on."""
    table = np.random.default_rng(5).normal(size=(1 << 16, 16)).astype("f")
    nodes = [node("Gather", ["table", "ids"], ["rows"]), node("ReduceSum", ["rows", "axes"], ["y"], keepdims=0)]
    proto = model(nodes, {"y": ("batch", 16)}, {}, {"table": table, "axes": np.array([1])})
    proto.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ("batch", 5)))
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=threshold)
    return table


def test_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = big(tmp_path / "in.onnx")
    host = OnnxHost.load(tmp_path / "in.onnx")
    value = host.nodes[0].args[0]
    monkeypatch.setattr(base, "BLOCK", 1000 * 64)
    blocks = list(host.blocks(value))
    assert [len(block) for block in blocks] == [1000] * 65 + [536]
    np.testing.assert_array_equal(np.concatenate(blocks), table)
    stored = host.constant(value)
    assert isinstance(host.model.graph.initializers["table"].const_value, ir.ExternalTensor)
    assert not stored.flags.writeable
    copy = host.clone()
    assert np.shares_memory(copy.constant(copy.nodes[0].args[0]), stored)
    ids = np.random.default_rng(6).integers(0, 1 << 16, (3, 5))
    expected = table[ids].sum(1)
    np.testing.assert_allclose(host.run([ids])[0], expected, rtol=1e-5, atol=1e-6)
    with copy.at(copy.nodes[0]):
        bias = copy.add_constant(np.ones(16, "f"), name="bias")
    old = copy.outputs[0]
    copy.replace(old, copy.call("Add", [old, bias], name="z", shape=old.shape, dtype="float32"))
    np.testing.assert_allclose(copy.run([ids])[0], expected + 1, rtol=1e-5, atol=1e-6)
    copy.check()
    out = tmp_path / "out"
    out.mkdir()
    copy.save(out / "model.onnx")
    assert sorted(p.name for p in out.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (out / "model.onnx").stat().st_size < 4096
    onnx.checker.check_model(str(out / "model.onnx"), full_check=True)
    again = OnnxHost.load(out / "model.onnx")
    np.testing.assert_allclose(again.run([ids])[0], expected + 1, rtol=1e-5, atol=1e-6)
    again.save(out / "model.onnx")  # onto the files that it is mapped from
    np.testing.assert_array_equal(again.constant(again.nodes[0].args[0]), table)
    np.testing.assert_allclose(OnnxHost.load(out / "model.onnx").run([ids])[0], expected + 1, rtol=1e-5, atol=1e-6)


def test_small_external_data_comes_into_the_file(tmp_path: Path) -> None:
    big(tmp_path / "in.onnx", threshold=0)
    host = OnnxHost.load(tmp_path / "in.onnx")
    axes = host.constant(host.nodes[1].args[1])  # a map that is still read when the file is written
    host.save(tmp_path / "out.onnx")
    np.testing.assert_array_equal(axes, [1])
    again = OnnxHost.load(tmp_path / "out.onnx")
    outside = {v.name: isinstance(v.const_value, ir.ExternalTensor) for v in again.model.graph.initializers.values()}
    assert outside == {"table": True, "axes": False}
    ids = np.zeros((2, 5), np.int64)
    np.testing.assert_array_equal(again.run([ids])[0], host.run([ids])[0])


def test_a_model_that_replaces_its_own_file_lies_in_the_new_one(tmp_path: Path) -> None:
    table = big(tmp_path / "in.onnx")
    ids = np.random.default_rng(6).integers(0, 1 << 16, (3, 5))
    OnnxHost.load(tmp_path / "in.onnx").save(tmp_path / "out.onnx")
    host = OnnxHost.load(tmp_path / "out.onnx")
    with host.at(host.nodes[0]):
        front = host.add_constant(np.ones((1 << 16, 16), "f"), name="front")  # moves the table in the file
    old = host.outputs[0]
    row = host.call("Gather", [front, host.add_constant(np.array(3), name="i")], name="row", dtype="float32")
    host.replace(old, host.call("Add", [old, row], name="z", dtype="float32"))
    graph = host.model.graph
    graph.initializers["table"] = graph.initializers.pop("table")  # ... to its end
    expected = table[ids].sum(1) + 1
    for _ in range(2):
        host.save(tmp_path / "out.onnx")
        for again in (host.clone(), OnnxHost.load(tmp_path / "out.onnx")):
            np.testing.assert_allclose(again.run([ids])[0], expected, rtol=1e-5, atol=1e-6)


def test_the_data_of_another_model_is_not_replaced(tmp_path: Path) -> None:
    big(tmp_path / "in.onnx")
    OnnxHost.load(tmp_path / "in.onnx").save(tmp_path / "out.onnx")
    (tmp_path / "copy.onnx").write_bytes((tmp_path / "out.onnx").read_bytes())  # its data is out.onnx.data too
    before = (tmp_path / "out.onnx.data").read_bytes()
    with pytest.raises(OptionError, match=r"out\.onnx\.data: the original's weights lie there"):
        OnnxHost.load(tmp_path / "copy.onnx").save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == before


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = OnnxHost.load(mlp())
    host.save(tmp_path / "m.onnx")
    before = (tmp_path / "m.onnx").read_bytes()

    def full(model: ir.Model, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ir, "save", full)
    with pytest.raises(OSError):
        host.save(tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"] and (tmp_path / "m.onnx").read_bytes() == before


def test_load_errors(tmp_path: Path) -> None:
    def refused(source: Any, text: str) -> None:
        with pytest.raises(LoadError, match=text) as caught:
            OnnxHost.load(source)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none.onnx", "no such file")
    refused(tmp_path, "is a folder")
    for content in (b"", b"not a model at all", bytes(range(256)) * 8):
        (tmp_path / "bad.onnx").write_bytes(content)
        refused(tmp_path / "bad.onnx", "not an ONNX model")
    big(tmp_path / "big.onnx")
    with open(tmp_path / "weights.bin", "r+b") as weights:
        weights.truncate(1_000_000)
    refused(tmp_path / "big.onnx", "external data .* ends before")
    (tmp_path / "weights.bin").unlink()
    refused(tmp_path / "big.onnx", "external data .* does not exist")
    big(tmp_path / "big.onnx")
    (tmp_path / "inner").mkdir()
    proto = onnx.load(tmp_path / "big.onnx", load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = "../weights.bin"
    (tmp_path / "inner" / "big.onnx").write_bytes(proto.SerializeToString())
    refused(tmp_path / "inner" / "big.onnx", "external data .* lies outside its folder")
    shape = ("batch", 4)
    refused(model([node("Add", ["x", "b"], ["a"]), node("Neg", ["a"], ["b"])], {"b": shape}), "cyclic")
    refused(model([node("Add", ["x", "nowhere"], ["y"])], {"y": shape}), "not a valid graph")
    refused(model([node("Nothing", ["x"], ["y"])], {"y": shape}), "not a valid graph")
    refused(model([node("Not", ["x"], ["y"])], {"y": shape}), "ill-typed")
    weights = {"w": np.ones((5, 5), "f")}
    refused(model([node("MatMul", ["x", "w"], ["y"])], {"y": ("batch", 5)}, weights=weights), "ill-typed")
    maps = model([node("Neg", ["x"], ["y"])], {"y": shape})
    maps.graph.output[0].type.sequence_type.elem_type.map_type.key_type = onnx.TensorProto.INT64
    refused(maps, "y holds maps")
    refused(
        model([node("Upsample", ["x"], ["y"], height_scale=2.0, width_scale=2.0)], {"y": shape}, opset=1), "opset 1 "
    )


def test_old_and_unsorted_models() -> None:
    x = feed(2, 4)
    host = OnnxHost.load(
        model([node("Clip", ["x"], ["y"], min=0.0, max=1.0)], {"y": ("rows", "columns")}, opset=9, ir_version=3)
    )
    assert host.opset == 11 and [str(d) for d in host.model.graph.outputs[0].shape] == ["rows", "columns"]
    np.testing.assert_array_equal(host.run([x])[0], np.clip(x, 0, 1))
    host = OnnxHost.load(model([node("Neg", ["a"], ["y"]), node("Abs", ["x"], ["a"])], {"y": ("batch", 4)}))
    assert [n.op for n in host.nodes] == ["Abs", "Neg"]
    np.testing.assert_array_equal(host.run([x])[0], -np.abs(x))


def test_check_finds_what_a_rewrite_broke() -> None:
    host = OnnxHost.load(mlp())
    host.call("Relu", [host.inputs[0]], name="late", shape=(BATCH, 7), dtype="float32")
    with pytest.raises(GraphError, match="ill-typed"):
        host.check()
    host = OnnxHost.load(mlp())
    late = host.call("Relu", [host.nodes[0].outputs[0]], name="late", shape=(BATCH, 3), dtype="float32")
    host.replace(host.nodes[1].args[0], late)
    with pytest.raises(GraphError, match="computed after it"):
        host.check()


def test_run() -> None:
    host = OnnxHost.load(mlp())
    host.run([feed(2, 4)])
    session = host._session
    host.run([feed(3, 4)])
    assert host._session is session
    with pytest.raises(VerifyError, match="has 1 inputs, 2 were given"):
        host.run([feed(2, 4)] * 2)
    with pytest.raises(VerifyError, match="ONNX Runtime refuses") as caught:
        host.run([feed(2, 5)])
    assert "\n" not in str(caught.value)
    host.call("com.microsoft::Nothing", [host.inputs[0]], name="n")
    with pytest.raises(VerifyError):
        host.run([feed(2, 4)])


def test_ten_thousand_nodes() -> None:
    """Every change costs what it touches."""
    import time

    nodes = [node("Add", [f"v{i}", "one"], [f"v{i + 1}"], name=f"n{i}") for i in range(10_000)]
    proto = model(nodes, {"v10000": ("batch", 4)}, {"v0": ("batch", 4)}, {"one": np.float32(1)})
    start = time.process_time()
    host = OnnxHost.load(proto)
    host.normalise()
    for item in list(host.nodes)[::2]:
        old = item.outputs[0]
        assert not host.is_constant(old) and len(host.users(old)) == 1
        with host.at(item):
            new = host.call("Sub", list(item.args), name="new", shape=old.shape, dtype=old.dtype, like=old)
        host.replace(old, new)
        host.erase_dead()
    host.check()
    host.clone().check()
    assert host.count_nodes() == 10_000
    assert time.process_time() - start < 30  # measured: 2.9 s on 2 idle cores
