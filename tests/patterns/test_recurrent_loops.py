"""GRUs that a file holds as Loop or Scan: sequences along any dimension, in any direction, or listed turn by turn."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import recopt

K, H = 5, 3
STEP = """
    joint = Concat <axis = 1> (now, h)
    wg = Constant <value = float[6, 8] {GATES}> ()
    both = Gemm <transB = 1> (joint, wg, bias)
    gates = Sigmoid (both)
    z, r = Split <axis = 1, num_outputs = 2> (gates)
    reset = Mul (r, h)
    part = Concat <axis = -1> (now, reset)
    new = MatMul (part, wn)
    n = Tanh (new)
    kept = Mul (z, h)
    one = Constant <value_float = 1.0> ()
    rest = Sub (one, z)
    fresh = Mul (rest, n)
    after = Add (kept, fresh)
"""
SCAN = f"""
    hn, ys = Scan <num_scan_inputs = 1, WAYS,
                   body = turn (float[rows, 3] h, float[] now) => (float[] after, float[] y) {{
        {STEP}
        y = Identity (after)
    }}> (h0, x)
"""
LOOP = f"""
    hn, same, yt = Loop <body = turn (int64 t, bool go, float[rows, 3] h, float[] xs)
                                => (bool goes, float[] after, float[] xo, float[] y) {{
        now = Gather <axis = 1> (xs, t)
        {STEP}
        goes = Identity (go)
        xo = Identity (xs)
        y = Identity (after)
    }}> (trips, yes, h0, x)
    ys = Transpose <perm = [1, 0, 2]> (yt)
"""
LIST = f"""
    size = Shape <start = 1, end = 2> (x)
    count = Squeeze (size)
    none = SequenceEmpty ()
    hn, list = Loop <body = turn (int64 t, bool go, float[rows, 3] h, seq(float) before)
                            => (bool goes, float[] after, seq(float) longer) {{
        now = Gather <axis = 1> (x, t)
        {STEP}
        longer = SequenceInsert (before, after)
        goes = Identity (go)
    }}> (count, yes, h0, none)
    ys = ConcatFromSequence <axis = 1, new_axis = 1> (list)
"""
ONWARD = "scan_input_axes = [1], scan_output_axes = [1]"
BACK = "scan_input_axes = [-2], scan_input_directions = [1], scan_output_axes = [-2], scan_output_directions = [1]"
MIXED = "scan_input_axes = [1], scan_input_directions = [1], scan_output_axes = [0]"


def model(body: str, x: str, ys: str) -> onnx.ModelProto:
    """The file with seeded weights."""
    g = np.random.default_rng(3)

    def text(*shape: int) -> str:
        return "{" + ", ".join(f"{v:.4f}" for v in g.standard_normal(shape).ravel() * 0.5) + "}"

    gates, bias, wn = text(6, 8), text(6), text(8, 3)
    rows = x.partition(",")[0]
    return onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 18]>
    gru (float[{rows}, {H}] h0, float[{x}] x) => (float[{rows}, {H}] hn, float[{ys}] ys)
    <float[6] bias = {bias}, float[8, 3] wn = {wn}, int64 trips = {{4}}, bool yes = {{1}}>
    {{ {body.replace("{GATES}", gates)} }}""")


@pytest.mark.parametrize(
    ("body", "x", "ys"),
    [
        pytest.param(SCAN.replace("WAYS", ONWARD), "B, T, 5", "B, T, 3", id="scan"),
        pytest.param(SCAN.replace("WAYS", BACK), "1, 4, 5", "1, 4, 3", id="scan-one-row-backwards"),
        pytest.param(SCAN.replace("WAYS", MIXED), "B, 4, 5", "4, B, 3", id="scan-backwards-in-alone"),
        pytest.param(LOOP, "B, 4, 5", "B, 4, 3", id="loop"),
        pytest.param(LIST, "B, T, 5", "B, T, 3", id="loop-of-a-list"),
    ],
)
def test_one_operator(body: str, x: str, ys: str) -> None:
    before = model(body, x, ys)
    result = recopt.optimize(before, target="recopt")
    ops = [n.op for n in result.host.nodes]
    assert ops.count("GRU") == 1 and not {"Loop", "Scan"} & set(ops), [str(r) for r in result.report.refusals]
    assert not result.report.undone and result.report.rewrites[0].error is not None
    rows = 1 if x.startswith("1") else 6
    g = np.random.default_rng(rows)
    shape = [{"B": rows, "T": 7}.get(size) or int(size) for size in x.split(", ")]
    feeds = {"x": g.standard_normal(shape), "h0": g.standard_normal((rows, H))}
    feeds = {name: value.astype(np.float32) for name, value in feeds.items()}
    expected, found = (
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
        for m in (before, result.to_proto())
    )
    for e, f in zip(expected, found, strict=True):
        np.testing.assert_allclose(f, e, rtol=1.3e-6, atol=1e-5)


LAST = f"""
    size = Shape <start = 1, end = 2> (x)
    count = Squeeze (size)
    hn = Loop <body = turn (int64 t, bool go, float[rows, 3] h) => (bool goes, float[] after) {{
        now = Gather <axis = 1> (x, t)
        {STEP}
        goes = Identity (go)
    }}> (count, yes, h0)
    ys = Identity (hn)
"""


@pytest.mark.parametrize(("x", "target"), [("B, T, 5", "recopt"), ("2, T, 5", "ort-cpu"), ("B, 4, 5", "recopt")])
def test_the_last_state_of_no_steps_or_rows(x: str, target: str) -> None:
    """That is the first one, or empty; ONNX Runtime itself ends the process at such a GRU."""
    before = model(LAST, x, f"{x.partition(',')[0]}, 3")
    result = recopt.optimize(before, target=target)
    assert [n.op for n in result.host.nodes].count("GRU") == 1 and not result.report.undone
    sessions = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
        for m in (before, result.to_proto())
    ]
    g = np.random.default_rng(0)
    free = x.split(", ")
    for rows in (0, 1, 3) if free[0] == "B" else (2,):
        for steps in (0, 1, 5) if free[1] == "T" else (4,):
            feeds = {"x": g.standard_normal((rows, steps, K)), "h0": g.standard_normal((rows, H))}
            feeds = {name: value.astype(np.float32) for name, value in feeds.items()}
            expected, found = (s.run(None, feeds)[0] for s in sessions)
            np.testing.assert_allclose(found, expected, rtol=1.3e-6, atol=1e-5)
            assert found.shape == (rows, H)


def test_gates_of_their_own_over_steps_without_number() -> None:
    """What is no standard operator is written step by step."""
    split = "Split <axis = 1, num_outputs = 2> (gates)"
    halved = f"u, r = {split}\n half = Constant <value_float = 0.5> ()\n z = Mul (u, half)"
    body = SCAN.replace("WAYS", ONWARD).replace(f"z, r = {split}", halved)
    counted = recopt.optimize(model(body, "B, 4, 5", "B, 4, 3"), target="recopt")
    assert sum(n.op.startswith("recopt::Gru") for n in counted.host.nodes) == 1 and not counted.report.undone
    result = recopt.optimize(model(body, "B, T, 5", "B, T, 3"), target="recopt")
    assert not result.report.rewrites
    assert any("their number is not known" in r.reason for r in result.report.refusals if r.pattern == "gru")
