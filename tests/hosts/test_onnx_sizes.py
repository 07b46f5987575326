"""Shapes that a graph computes: every one that the host claims must be the one that ONNX Runtime gives."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from spellings.export import run_onnx
from torch import Tensor

import recopt
from recopt.hosts.onnx import OnnxHost
from recopt.ir import sizes


def attention_unit(q: Tensor, k: Tensor) -> Tensor:
    expanded = q.unsqueeze(1).expand(-1, k.size(1), -1)
    return torch.cat([expanded, k, expanded - k, expanded * k], -1).reshape(q.size(0) * k.size(1), -1)


def masked(q: Tensor, k: Tensor) -> Tensor:
    positions = torch.arange(k.size(1)).unsqueeze(0).expand(q.size(0), -1)
    return k.masked_fill((positions < 2).unsqueeze(-1), 0.0).flatten(1)


def sliced(q: Tensor, k: Tensor) -> Tensor:
    joined = torch.cat([k[:, 1:], k[:, :-1], k[:, -1:]], 1).view(q.shape[0], -1)
    return joined + q.sum(1, keepdim=True) + torch.zeros_like(k).view(k.size(0), -1).sum()


def heads(q: Tensor, k: Tensor) -> Tensor:
    b, n, d = k.shape
    split = k.view(b, n, 2, d // 2).transpose(1, 2).contiguous().view(b * 2, n, -1)
    return split + q[:, :1].repeat(2, 1).unsqueeze(-1)


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("function", [attention_unit, masked, sliced, heads])
def test_exported(function: Callable[[Tensor, Tensor], Tensor], dynamo: bool) -> None:
    class Net(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return function(q, k)

    args = (torch.randn(3, 6), torch.randn(3, 5, 6))
    if dynamo:
        batch_dim = torch.export.Dim("batch")
        shapes = ({0: batch_dim}, {0: batch_dim})
        program = torch.onnx.export(Net(), args, dynamo=True, dynamic_shapes=shapes, verbose=False)
        assert program is not None
        proto = program.model_proto
    else:
        buffer = io.BytesIO()
        axes, names = {"q": {0: "batch"}, "k": {0: "batch"}}, ["q", "k"]
        torch.onnx.export(Net(), args, buffer, dynamo=False, dynamic_axes=axes, input_names=names, opset_version=17)
        proto = onnx.load_from_string(buffer.getvalue())
    host = OnnxHost.load(proto)
    batch = host.inputs[0].shape[0] if host.inputs[0].shape else None
    assert not isinstance(batch, int)
    claimed = {v.name: v.shape for n in host.nodes for v in n.outputs}
    for name, shape in claimed.items():
        assert shape is not None and all(isinstance(s, int) or s.free_symbols == {batch} for s in shape), (name, shape)
    watched = host.to_proto()
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in claimed)
    import onnxruntime

    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 4):
        feeds = [np.zeros((count, 6), "f"), np.zeros((count, 5, 6), "f")]
        results = session.run(None, dict(zip([v.name for v in host.inputs], feeds, strict=True)))
        for (name, shape), result in zip(claimed.items(), results, strict=True):
            assert tuple(sizes.evaluate(s, {str(batch): count}) for s in shape or ()) == result.shape, name


def test_what_is_not_known_stays_open() -> None:
    """A slice whose end may lie beyond, a range that may be empty, a division that may leave a rest."""
    x = helper.make_tensor_value_info("x", 1, ("batch", "length"))
    out = [helper.make_tensor_value_info(n, 1, d) for n, d in (("s", (None, None)), ("d", (None, None)))]
    ends = onnx.numpy_helper.from_array(np.array([5]), "ends")
    zero = onnx.numpy_helper.from_array(np.array([0]), "zero")
    half = onnx.numpy_helper.from_array(np.array([2, -1]), "half")
    nodes = [
        helper.make_node("Slice", ["x", "zero", "ends", "zero"], ["s"]),
        helper.make_node("Reshape", ["x", "half"], ["d"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], out, [ends, zero, half])
    host = OnnxHost.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    known = {sizes.symbol("batch"), sizes.symbol("length")}
    sliced, halved = (v.shape for v in host.outputs)
    assert sliced is not None and sliced[1] == sizes.symbol("length") and not isinstance(sliced[0], int)
    assert not sliced[0].free_symbols & known
    assert (
        halved is not None and halved[0] == 2 and not isinstance(halved[1], int) and not halved[1].free_symbols & known
    )


EMPTY = {  # of b rows: what a graph makes of that it has none
    "a branch": "e = Equal(b, zero)  y = If (e) <then_branch = t () => (float[k] u) { u = Identity(neg) }, "
    "else_branch = f () => (float[q] v) { v = Reshape(x, flat) }>",
    "a choice": "e = Greater(b, zero)  m = ReduceMean <keepdims = 0> (x)  r = Reshape(m, flat)  y = Where(e, r, neg)",
    "arithmetic": "s = Size(x)  e = Equal(s, zero)  l = LessOrEqual(one, b)  p = Cast <to = 1> (e)  "
    "q = Cast <to = 1> (l)  d = Sub(p, q)  y = Reshape(d, flat)",
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
def test_a_graph_may_ask_whether_its_batch_is_empty(name: str, target: str) -> None:
    """Symbols count as at least 1, but for what they decide."""
    constants = "int64 zero = {0}, int64 one = {1}, float[1] neg = {-1}, int64[1] flat = {-1}"
    body = f"n = Shape(x)  b = Gather <axis = 0> (n, zero)  {EMPTY[name]}"
    head = '<ir_version: 9, opset_import: ["": 17]>'
    file = onnx.parser.parse_model(f"{head} g (float[n, 4] x) => (float[m] y) <{constants}> {{ {body} }}")
    made = recopt.optimize(file, target=target).to_proto()
    for rows in (0, 1, 3):
        x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
        (found,), (expected,) = (run_onnx(m.SerializeToString(), (x,)) for m in (made, file))
        np.testing.assert_array_equal(found, expected)
