"""Sequences of ONNX, against ONNX Runtime: each graph makes a tensor y of x by way of lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from recopt.hosts.onnx import OnnxHost
from recopt.ir.evaluate import evaluate
from recopt.lift import lift
from recopt.lift.onnx_sequences import SEQUENCES

HEAD = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 6] x) => (float y) <int64 one = {1}, int64 four = {4}, '
HEAD += "int64[2] parts = {2, 4}, int64 end = {-1}> {"
PAIR = "a, b = Split <axis = 1> (x)  l = SequenceConstruct (a, b)  "
GRAPHS = {
    "construct, concat": PAIR + "y = ConcatFromSequence <axis = -1> (l)",
    "construct, stack": PAIR + "y = ConcatFromSequence <axis = -1, new_axis = 1> (l)",
    "at": PAIR + "y = SequenceAt (l, one)",
    "at the end": PAIR + "y = SequenceAt (l, end)",
    "empty, insert": "e = SequenceEmpty ()  f = SequenceInsert (e, x)  r = Neg (x)  l = SequenceInsert (f, r, end)"
    "  y = ConcatFromSequence <axis = 1> (l)",
    "erase": PAIR + "l2 = SequenceErase (l, end)  y = ConcatFromSequence <axis = 1> (l2)",
    "length": PAIR + "n = SequenceLength (l)  f = CastLike (n, x)  y = Add (x, f)",
    "split by ones": "l = SplitToSequence <axis = 1> (x)  y = SequenceAt (l, one)",
    "split, dimension dropped": "l = SplitToSequence <axis = 1, keepdims = 0> (x)  y = SequenceAt (l, one)",
    "split by a length": "l = SplitToSequence <axis = 1> (x, four)  y = SequenceAt (l, one)",
    "split by lengths": "l = SplitToSequence <axis = -1> (x, parts)  y = SequenceAt (l, one)",
}


def _host(body: str) -> tuple[onnx.ModelProto, OnnxHost]:
    model = onnx.parser.parse_model(HEAD + body + "}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model, OnnxHost.load(model)


@pytest.mark.parametrize("name", GRAPHS)
def test_sequence(name: str) -> None:
    model, host = _host(GRAPHS[name])
    lifted = lift(host)
    assert not lifted.opaque
    x = np.random.default_rng(0).standard_normal((5, 6)).astype("f")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def leaves(leaf: Any) -> Any:
        return x if leaf is host.inputs[0] else host.constant(leaf)

    got = evaluate(lifted.definition[host.outputs[0]], leaves, {"N": 5})
    np.testing.assert_allclose(got, session.run(None, {"x": x})[0], rtol=1e-6)


def test_every_operator_has_a_graph() -> None:
    assert all(any(f"{op} " in body for body in GRAPHS.values()) for op in SEQUENCES)


def test_a_run_time_length_is_opaque() -> None:
    _, host = _host("l = SplitToSequence (x)  y = ConcatFromSequence <axis = 0> (l)")
    assert "a sequence of a run-time length" in lift(host).opaque.values()
