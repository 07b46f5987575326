"""The command line on real ONNX files, good and bad."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from recopt import cli

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def value(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def save(
    path: str, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], weights: dict[str, tuple[int, ...]]
) -> None:
    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(rng.standard_normal(shape, np.float32) / 8, name) for name, shape in weights.items()
    ]
    graph = helper.make_graph(nodes, "g", inputs, [value(nodes[-1].output[0], FLOAT, "batch", 16)], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file with two layers spelled as MatMul, Add, Relu, in the working folder."""
    monkeypatch.chdir(tmp_path)
    nodes, at = [], "x"
    for i in range(2):
        nodes.append(helper.make_node("MatMul", [at, f"w{i}"], [f"mm{i}"], f"matmul_{i}"))
        nodes.append(helper.make_node("Add", [f"b{i}", f"mm{i}"], [f"add{i}"], f"add_{i}"))
        nodes.append(helper.make_node("Relu", [f"add{i}"], [f"relu{i}"], f"relu_{i}"))
        at = f"relu{i}"
    weights = {"w0": (16, 16), "b0": (16,), "w1": (16, 16), "b1": (16,)}
    save("in.onnx", nodes, [value("x", FLOAT, "batch", 16)], weights)
    return "in.onnx"


def run_ort(path: str, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    return np.asarray(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0])


def test_optimize_then_diff(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["optimize", model, "-o", "out.onnx", "--target", "ort-cpu", "--report", "r.json"]
    assert cli.main(command) == 0
    assert "6 -> 2 nodes, 2 rewrites, model verified" in capsys.readouterr().out
    for batch in (1, 7):
        x = np.random.default_rng(batch).standard_normal((batch, 16), np.float32)
        np.testing.assert_allclose(run_ort("out.onnx", x), run_ort(model, x), rtol=1.3e-6, atol=1e-5)
    assert cli.main(["diff", model, "out.onnx", "--report", "r.json"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("6 nodes -> 2 nodes\n\nlinear: recopt::linear at %relu0\n")
    assert told.count("\n  - ") == 6 and told.count("\n  + ") == 2 and "elsewhere" not in told
    assert cli.main(["diff", model, model]) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_without_the_pass_nothing_is_rewritten(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", model, "-o", "out.onnx", "--skip", "fuse-linear"]) == 0
    assert "6 -> 6 nodes, 0 rewrites" in capsys.readouterr().out


def test_inspect(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", model]) == 0
    out = capsys.readouterr().out
    assert "544 parameters, 6 operators, 2 blocks" in out
    assert "relu0" in out and "relu1" in out and "MatMul" in out


def test_bisect(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bisect", model, "--target", "ort-cpu"]) == 0
    assert capsys.readouterr().out == "all 2 rewrites agree with the original\n"


def cyclic() -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    save("bad.onnx", nodes, [value("x", FLOAT, "batch", 16)], {})


def ill_typed() -> None:
    inputs = [value("x", FLOAT, "batch", 16), value("i", INT, "batch", 16)]
    save("bad.onnx", [helper.make_node("Add", ["x", "i"], ["y"])], inputs, {})


def undefined() -> None:
    save("bad.onnx", [helper.make_node("Add", ["x", "nothing"], ["y"])], [value("x", FLOAT, "batch", 16)], {})


def unknown_operator() -> None:
    save("bad.onnx", [helper.make_node("Frobnicate", ["x"], ["y"])], [value("x", FLOAT, "batch", 16)], {})


def text() -> None:
    Path("bad.onnx").write_text("this is no model\n")


def empty() -> None:
    Path("bad.onnx").touch()


def of_another_time() -> None:
    proto = onnx.load("in.onnx")
    proto.opset_import[0].version = 999  # whose operators may mean anything
    onnx.save(proto, "bad.onnx")


def truncated() -> None:
    file = Path("in.onnx").read_bytes()
    Path("bad.onnx").write_bytes(file[: len(file) // 2])


@pytest.mark.parametrize(
    "make", [cyclic, ill_typed, undefined, unknown_operator, text, empty, truncated, of_another_time]
)
@pytest.mark.parametrize("command", ["optimize", "inspect", "bisect"])
def test_a_bad_file_is_one_line(
    command: str, make: Callable[[], None], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make()
    assert cli.main([command, "bad.onnx", *(["-o", "out.onnx"] if command == "optimize" else [])]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("recopt: error: ") and err.count("\n") == 1
    assert "internal error" not in err
    assert sorted(os.listdir()) == ["bad.onnx", "in.onnx"]


def test_no_other_words_on_stderr(model: str) -> None:
    undefined()
    command = [sys.executable, "-m", "recopt", "optimize", "bad.onnx", "-o", "out.onnx"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr


def test_a_target_that_does_not_exist(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", model, "-o", "out.onnx", "--target", "moon"]) == 2
    assert "no target 'moon' for this model; there are: portable, ort-cpu" in capsys.readouterr().err


def test_bisect_finds_a_wrong_lowering(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from recopt import lower

    write = lower.write

    def wrong(host, spec, target):  # type: ignore[no-untyped-def]
        return write(host, replace(spec, epilogue="h") if "relu0" in spec.name else spec, target)

    monkeypatch.setattr(lower, "write", wrong)
    assert cli.main(["bisect", model, "--target", "ort-cpu"]) == 1
    assert "the first wrong one: linear at relu0" in capsys.readouterr().out
