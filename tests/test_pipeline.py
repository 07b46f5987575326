"""What goes around the passes: switches, limits, the undoing of wrong rewrites, levels, timing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from models import onnx_tower, tower
from onnx import TensorProto, helper, numpy_helper

import recopt
from recopt import lower, passes, pipeline
from recopt.errors import LowerError, OptionError, VerifyError
from recopt.fused import Linear
from recopt.hosts.base import Host, Value
from recopt.load import host_of
from recopt.passes import fold_constants
from recopt.patterns import linear
from recopt.verify import Verdict

X = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))


def feed(batch: int = 4) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(batch).standard_normal((batch, 16)).astype(np.float32)


@contextmanager
def wrong_lowering(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> Iterator[None]:
    """Layers with these numbers are written without their activation."""
    write = lower.write

    def wrong(host: Host, spec: Linear, target: str) -> Value:
        found = re.search(r"\d+", spec.name)
        n = int(found.group()) if found else 0
        return write(host, replace(spec, epilogue="h") if n in numbers else spec, target)

    with monkeypatch.context() as patch:
        patch.setattr(lower, "write", wrong)
        yield


def same(fast: recopt.Optimized, proto: onnx.ModelProto) -> None:
    """The optimized ONNX model computes what the original does, at several batch sizes."""
    plain = recopt.optimize(proto, passes=[], verify="none")
    for batch in (1, 4, 9):
        np.testing.assert_allclose(fast(feed(batch))[0], plain(feed(batch))[0], rtol=1.3e-6, atol=1e-5)


# --- the search for a wrong rewrite


@pytest.mark.parametrize("wrong", [(0,), (1,), (4,), (0, 4), (1, 2, 3), (0, 1, 2, 3, 4)])
def test_wrong_rewrites_are_undone_and_named_and_the_rest_kept(
    wrong: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = onnx_tower(5)
    with wrong_lowering(monkeypatch, *wrong):
        fast = recopt.optimize(proto, target="ort-cpu", verify="model")
    assert {r.where for r in fast.report.undone} == {f"relu{n}" for n in wrong}
    made = {r.root for r in fast.report.rewrites}  # where the activation is lost, the layer without it is right
    assert made == {f"sum{n}" if n in wrong else f"relu{n}" for n in range(5)}
    assert all(r.pattern == "linear" and "relative error" in r.reason for r in fast.report.undone)
    assert all("RECOPT_LIMIT=" in r.reason for r in fast.report.undone)
    assert fast.report.model_error is not None and fast.report.model_error <= 1
    same(fast, proto)


def test_a_wrong_rewrite_of_a_torch_model_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tower(3)
    with wrong_lowering(monkeypatch, 1):
        fast = recopt.optimize(model, (X,))
    assert [r.where for r in fast.report.undone] == ["relu_1"]
    assert "relu_1" not in {r.root for r in fast.report.rewrites} and len(fast.report.rewrites) == 3
    torch.testing.assert_close(fast(X), model(X))


def test_a_wrong_pattern_is_caught_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    match = linear.match

    def wrong(lifted: Any, root: Value) -> Any:
        found = match(lifted, root)
        return found and replace(found, spec=replace(found.spec, w=2 * lifted.host.constant(found.spec.w.value)))

    monkeypatch.setattr(linear, "match", wrong)
    fast = recopt.optimize(tower(2), (X,), verify="rewrites")
    assert fast.report.counts() == {}
    assert {r.where for r in fast.report.undone} == {"relu", "relu_1", "linear", "linear_1"}
    assert all("disagrees with its meaning" in r.reason for r in fast.report.undone)
    torch.testing.assert_close(fast(X), tower(2)(X))


def test_without_verification_a_wrong_rewrite_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests would pass with a lowering that never was wrong."""
    proto = onnx_tower(3)
    with wrong_lowering(monkeypatch, 1):
        fast = recopt.optimize(proto, target="ort-cpu", verify="rewrites")
    with pytest.raises(AssertionError):
        same(fast, proto)


def test_what_never_gives_the_same_twice_is_not_compared_and_the_report_says_so() -> None:
    proto = onnx_tower(2)
    proto.graph.node.append(helper.make_node("RandomNormalLike", ["x"], ["noise"]))
    proto.graph.output.append(helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["batch", 16]))
    report = recopt.optimize(proto, target="ort-cpu").report
    assert report.counts() == {"linear": 2} and report.model_error is not None
    assert report.unverified == "the original gives other values of noise each time it runs"
    del proto.graph.output[0]
    report = recopt.optimize(proto, target="ort-cpu").report
    assert report.model_error is None and "model not verified: the original gives" in str(report)


def test_a_pass_that_is_wrong_without_any_rewrite_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(host: Any, context: Any) -> bool:
        host.replace(host.outputs[0], host.outputs[0].node.args[0])
        return True

    monkeypatch.setattr(fold_constants, "run", wrong)
    proto = onnx_tower(2)
    fast = recopt.optimize(proto, target="ort-cpu")
    assert [(r.pattern, r.where) for r in fast.report.undone] == [(fold_constants.name, "the whole pass")]
    assert fast.report.counts() == {"linear": 2} and "relative error" in fast.report.undone[0].reason
    same(fast, proto)


def test_a_model_that_disagrees_with_itself_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "verify_model", lambda *args: Verdict(1.0, 2.0, "it is wrong"))
    with pytest.raises(VerifyError, match="even without any rewrite: it is wrong"):
        recopt.optimize(onnx_tower(2), target="ort-cpu")


def test_integers_that_are_sizes_are_drawn_anew_without_zeros() -> None:
    nodes = [helper.make_node("Range", ["zero", "n", "one"], ["r"]), helper.make_node("Reshape", ["r", "s"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "sizes",
        [helper.make_tensor_value_info(n, TensorProto.INT64, s) for n, s in (("n", []), ("s", [1]))],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["k"])],
        [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("zero", 0), ("one", 1))],
    )
    report = recopt.optimize(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)).report
    assert report.model_error == 0 and not report.unverified


def test_a_model_that_refuses_all_inputs_drawn_is_not_verified_as_a_whole_and_the_report_says_so() -> None:
    proto = onnx_tower(2)
    proto.graph.node.append(helper.make_node("Reshape", ["relu1", "shape"], ["y"]))
    proto.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [3]))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c"]))
    report = recopt.optimize(proto, target="ort-cpu").report
    assert report.counts() == {"linear": 2} and report.model_error is None
    assert report.unverified.startswith("the original model does not run on inputs of shapes [(3, 16), (3,)]")
    x = np.ones((4, 16), np.float32)
    assert not recopt.optimize(proto, (x, np.array([2, 2, 16]))).report.unverified
    with pytest.raises(VerifyError, match="does not run on inputs"):
        recopt.optimize(proto, (x, np.array([5, 5, 5])))
    with pytest.raises(VerifyError, match="cannot measure: the original"):
        recopt.optimize(proto, measure=True)


# --- levels, tolerance, measuring


@pytest.mark.parametrize("level", pipeline.LEVELS)
def test_levels(level: str) -> None:
    report = recopt.optimize(tower(2), (X,), verify=level).report
    assert report.counts() == {"linear": 2} and not report.undone
    assert all((r.error is not None) == (level in ("rewrites", "model")) for r in report.rewrites)
    assert (report.model_error is not None) == (level == "model")
    assert ("check" in report.timings) == (level != "none")
    assert {"capture", "clean-up", "fuse-linear"} <= set(report.timings)


def test_a_tolerance_of_nothing_undoes_what_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = onnx_tower(2)
    write = lower.write

    def rounded(host: Host, spec: Linear, target: str) -> Value:
        return write(host, replace(spec, epilogue="relu(h) * 1.000002"), target)

    monkeypatch.setattr(lower, "write", rounded)
    assert recopt.optimize(proto, target="ort-cpu", tolerance=1e-4).report.counts() == {"linear": 2}
    assert recopt.optimize(proto, target="ort-cpu", tolerance=0).report.counts() == {}


@pytest.mark.parametrize(("ratio", "kept"), [(0.5, 3), (1.01, 3), (1.5, 0)])
def test_measuring_leaves_out_what_is_slower(ratio: float, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every rewrite, and of the smaller ones that would take its place."""
    monkeypatch.setattr(pipeline, "_ratio", lambda *_: ratio)
    report = recopt.optimize(onnx_tower(3), target="ort-cpu", measure=True).report
    assert len(report.rewrites) == kept
    slow = {f"{name}{n}" for name in ("relu", "sum") for n in range(3)} if not kept else set()
    assert {r.where for r in report.undone} == slow
    assert all(f"measured {ratio:.2f} times" in r.reason for r in report.undone)


def test_each_rewrite_is_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def ratio(before: Host, after: Host, *_: Any) -> float:
        counts.append(after.count_nodes())
        return 1.5 if len(counts) == 2 else 1.0

    monkeypatch.setattr(pipeline, "_ratio", ratio)
    fast = recopt.optimize(onnx_tower(3), target="ort-cpu", measure=True)
    assert counts == [7, 7, 7, 8]  # of 9 nodes, a layer becomes one; the second without its activation last
    assert sorted(r.root for r in fast.report.rewrites) == ["relu0", "relu2", "sum1"]


def test_measuring_times_both() -> None:
    small, large = host_of(onnx_tower(1)), host_of(onnx_tower(60))
    assert pipeline._ratio(small, large, [feed()], rounds=5) > 1 > pipeline._ratio(large, small, [feed()], rounds=5)


# --- switches


def test_limit_stops_after_so_many_rewrites(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = onnx_tower(3)
    for limit in range(5):
        monkeypatch.setenv("RECOPT_LIMIT", str(limit))
        fast = recopt.optimize(proto, target="ort-cpu")
        assert len(fast.report.rewrites) == min(limit, 3)
        same(fast, proto)


@pytest.mark.parametrize("limit", ["-1", "two", ""])
def test_a_limit_that_is_no_number_is_refused(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECOPT_LIMIT", limit)
    with pytest.raises(OptionError, match="RECOPT_LIMIT"):
        recopt.optimize(onnx_tower(1))


def test_dump_writes_the_graph_after_each_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECOPT_DUMP", str(tmp_path / "deep" / "folder"))
    recopt.optimize(onnx_tower(2), target="ort-cpu")
    files = sorted((tmp_path / "deep" / "folder").iterdir())
    ran = [item.name for item in passes.PIPELINE if not passes.is_optional(item)]
    assert [f.name for f in files] == [f"{n:02}-{name}.txt" for n, name in enumerate(["captured", *ran])]
    before, after = (next(f for f in files if f.stem.endswith(name)) for name in ("captured", "fuse-linear"))
    assert "MatMul" in before.read_text() and "FusedGemm" not in before.read_text()
    assert "FusedGemm" in after.read_text()


def test_debug_says_more_at_each_level(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def said(level: str) -> str:
        monkeypatch.setenv("RECOPT_DEBUG", level)
        recopt.optimize(onnx_tower(2), target="ort-cpu")
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    texts = [said(level) for level in "01234"]
    assert texts[0] == ""
    assert "fuse-linear: 2 nodes" in texts[1] and "linear at relu1" not in texts[1]
    assert "linear at relu1" in texts[2]
    assert "-fuse-linear:" in texts[4] and "-fuse-linear:" not in texts[3]
    assert len(texts[1]) < len(texts[2]) <= len(texts[3]) < len(texts[4])


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verify": "maybe"}, "no verification level 'maybe'; there are: none, shapes"),
        ({"passes": ["fuse-linear", "nope"]}, "no pass is called 'nope'; there are: clean-up"),
        ({"passes": "fuse-linear"}, "a list of names or objects, not 'fuse-linear'"),
        ({"passes": 3}, "a list of names or objects, not 3"),
        ({"passes": [passes.HotRows]}, "a name or an object that has one"),
        ({"tolerance": -1.0}, "at least 0"),
        ({"tolerance": float("nan")}, "at least 0"),
        ({"target": "tpu"}, "tpu"),
        ({"target": "ort-cpu"}, "ort-cpu"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((OptionError, LowerError), match=message):
        recopt.optimize(tower(1), (X,), **options)


@pytest.mark.parametrize(("made", "given"), [("QuantizeTables", {"bits": 8.0}), ("QuantizeTables", {"error": "low"}),
                                             ("CartesianTables", {"budget": "much"})])  # fmt: skip
def test_wrong_parameters_are_named(made: str, given: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=re.escape(f"not {next(iter(given.values()))!r}")):
        getattr(passes, made)(**given)


def test_only_the_passes_asked_for_run() -> None:
    model = tower(2)
    assert recopt.optimize(model, (X,), passes=[]).report.timings.keys().isdisjoint({"clean-up", "fuse-linear"})
    cleaned = recopt.optimize(model, (X,), passes=["clean-up"])
    assert cleaned.report.counts() == {} and "clean-up" in cleaned.report.timings
    swapped = recopt.optimize(model, (X,), passes=["fuse-linear", "clean-up"])  # the pipeline's order holds
    assert list(swapped.report.timings).index("clean-up") < list(swapped.report.timings).index("fuse-linear")


class Chain(torch.nn.Module):
    """A layer and hundreds of steps after it."""

    def __init__(self, step: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.step = tower(1), step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The last step's result."""
        x = self.layer(x)
        for _ in range(250):
            x = self.step(x)
        return x


@pytest.mark.parametrize("step", [torch.tanh, lambda x: x + torch.sin(x)], ids=["activations", "residuals"])
def test_depth_is_no_recursion(step: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model, x = Chain(step), torch.randn(3, 16)
    result = recopt.optimize(model, (x,), verify="none")
    assert result.report.counts()["linear"] == 1
    torch.testing.assert_close(result(x), model(x))


def test_depth_of_columns_is_no_recursion() -> None:
    steps = " ".join(f"x{n + 1} = {'Tanh' if n % 2 else 'Sigmoid'}(x{n})" for n in range(2000))
    head = '<ir_version: 8, opset_import: ["": 17]>'
    file = onnx.parser.parse_model(f"{head} g (float[B, 4] x0) => (float[B, 4] x2000) {{ {steps} }}")
    assert recopt.optimize(file, verify="none").report.nodes_after == 2000


def test_optimizing_twice_changes_nothing_more() -> None:
    once = recopt.optimize(onnx_tower(3), target="ort-cpu")
    again = recopt.optimize(once.to_proto(), target="ort-cpu")
    assert again.report.counts() == {} and again.report.nodes_after == once.report.nodes_after
    assert again.diff() == ""
