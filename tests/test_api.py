"""What `optimize` takes and gives: every kind of model, saved and loaded again, nothing mutated, errors named."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from models import Named, onnx_tower, tower
from torch.testing import assert_close

import recopt
from recopt.errors import LoadError, OptionError, WriteError

X = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
DENSE, ITEM = torch.randn(3, 6), torch.randn(3, 8)


def test_a_module_without_inputs_is_captured_at_its_first_call() -> None:
    model = tower(2)
    fast = recopt.optimize(model)
    for read in (lambda: fast.report, lambda: fast.model, lambda: fast.diff(), lambda: fast.save("x.pt2")):
        with pytest.raises(OptionError, match="not captured yet"):
            read()
    assert_close(fast(X), model(X))
    assert fast.report.counts() == {"linear": 2}
    assert_close(fast(X[:1]), model(X[:1]))


def test_the_first_call_may_come_from_several_threads() -> None:
    model = tower(2)
    fast = recopt.optimize(model)
    with ThreadPoolExecutor(4) as pool:  # torch.export serves one thread at a time
        for found in pool.map(lambda n: fast(X[n:]), range(4)):
            assert_close(found, model(X[-len(found) :]))


def test_inputs_by_name_and_results_in_their_structure() -> None:
    model = Named().eval()
    fast = recopt.optimize(model, {"dense": DENSE, "item": ITEM})
    for n in (1, 3):
        found, wanted = fast(dense=DENSE[:n], item=ITEM[:n]), model(DENSE[:n], ITEM[:n])
        assert list(found) == ["score", "item"]
        assert_close(found, wanted)


def test_an_exported_program_and_its_file(tmp_path: Path) -> None:
    model = tower(2)
    program = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, tmp_path / "in.pt2")
    for given in (program, tmp_path / "in.pt2", str(tmp_path / "in.pt2")):
        fast = recopt.optimize(given)
        assert fast.report.counts() == {"linear": 2}
        assert_close(fast(X[:2]), model(X[:2]))


def test_every_form_of_an_onnx_model(tmp_path: Path) -> None:
    proto = onnx_tower(2)
    onnx.save(proto, tmp_path / "in.onnx")
    x = X.numpy()
    wanted = recopt.optimize(proto, passes=[], verify="none")(x)[0]
    for given in (proto, tmp_path / "in.onnx", str(tmp_path / "in.onnx"), onnx_ir.from_proto(proto)):
        fast = recopt.optimize(given, target="ort-cpu")
        assert fast.report.counts() == {"linear": 2}
        np.testing.assert_allclose(fast(x)[0], wanted, rtol=1.3e-6, atol=1e-5)
        assert isinstance(fast.model, onnx_ir.Model) and isinstance(fast.to_proto(), onnx.ModelProto)


def test_what_is_given_is_not_changed() -> None:
    model = tower(2)
    state, text = copy.deepcopy(model.state_dict()), repr(model)
    recopt.optimize(model, (X,))
    assert repr(model) == text and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    proto = onnx_tower(2)
    before = proto.SerializeToString(deterministic=True)
    recopt.optimize(proto, target="ort-cpu")
    assert proto.SerializeToString(deterministic=True) == before
    ir = onnx_ir.from_proto(proto)
    recopt.optimize(ir, target="ort-cpu")
    assert onnx_ir.to_proto(ir).SerializeToString(deterministic=True) == onnx_ir.to_proto(
        onnx_ir.from_proto(proto)
    ).SerializeToString(deterministic=True)


@pytest.mark.parametrize("target", ["portable", "ort-cpu", "recopt"])
def test_onnx_saved_and_loaded(target: str, tmp_path: Path) -> None:
    fast = recopt.optimize(onnx_tower(2), target=target)
    fast.save(tmp_path / "out.onnx")
    again = recopt.optimize(tmp_path / "out.onnx", passes=[], verify="none")
    np.testing.assert_array_equal(again(X.numpy())[0], fast(X.numpy())[0])
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


def test_pt2_saved_and_loaded(tmp_path: Path) -> None:
    model = tower(2)
    recopt.optimize(model, (X,)).save(tmp_path / "out.pt2")
    loaded = torch.export.load(tmp_path / "out.pt2").module()
    assert_close(loaded(X[:2]), model(X[:2]))
    assert_close(recopt.optimize(tmp_path / "out.pt2")(X), model(X))


def test_a_file_is_saved_whole_where_it_was_asked_for_or_not_at_all(tmp_path: Path) -> None:
    fast = recopt.optimize(onnx_tower(1), target="ort-cpu")
    with pytest.raises(OptionError, match=r"saved as NAME\.onnx"):
        fast.save(tmp_path / "out.pt2")
    (tmp_path / "out.onnx").write_text("mine")
    with pytest.raises(OptionError, match="folder does not exist"):
        fast.save(tmp_path / "nowhere" / "out.onnx")
    with pytest.raises(WriteError, match=r"^/proc/out\.onnx: "):
        fast.save("/proc/out.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OptionError, match="not a file"):
        fast.save(tmp_path / "folder.onnx")
    (tmp_path / "folder.onnx").rmdir()
    with pytest.raises(LoadError, match="of type str: load it first"):
        recopt.diff("in.onnx", "out.onnx")  # type: ignore[arg-type]  # what is wrong here
    with pytest.raises(TypeError, match=r"copy its \.model"):
        copy.deepcopy(fast)
    with pytest.raises(OptionError, match="exists already"):
        fast.save(tmp_path / "out.onnx", force=False)
    assert (tmp_path / "out.onnx").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OptionError, match="to_proto"):
        recopt.optimize(tower(1), (X,)).to_proto()


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        (object(), {}, LoadError, "need an nn.Module"),
        ("nowhere.onnx", {}, LoadError, "no such file"),
        ("nowhere.pt2", {}, LoadError, "no such file"),
        (".", {}, LoadError, "not a file"),
        (onnx_tower(1), {"dynamic_shapes": {}}, OptionError, "has its shapes already"),
        (onnx_tower(1), {"example_inputs": (X[:, :2],)}, OptionError, "the model takes float32"),
        (onnx_tower(1), {"example_inputs": (X.double(),)}, OptionError, "is float64"),
        (tower(1), {"passes": [3]}, OptionError, "a name or an object that has one, not 3"),
        (tower(1), {"tolerance": "high"}, OptionError, "not 'high'"),
        (tower(1), {"example_inputs": (X, X)}, LoadError, "example inputs do not fit"),
        (tower(1), {"example_inputs": 3}, LoadError, "need a tuple or a dict"),
        (tower(1), {"example_inputs": (X,), "dynamic_shapes": 3}, OptionError, "dynamic_shapes is of int"),
        (tower(1), {"example_inputs": (X,), "dynamic_shapes": ({}, {})}, LoadError, "dynamic_shapes do not fit"),
        (recopt.optimize(tower(1)), {}, LoadError, "optimized already"),
    ],
)
def test_what_cannot_be_optimized_is_named(
    model: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as found:
        recopt.optimize(model, **options)
    assert "\n" not in str(found.value)


def test_replays_are_for_torch_models_on_a_gpu() -> None:
    with pytest.raises(OptionError, match="replay is for torch models"):
        recopt.optimize(onnx_tower(1), verify="none").replay(X)
    fast = recopt.optimize(tower(1), verify="none")
    with pytest.raises(OptionError, match="replay: x must be given by position"):
        fast.replay(x=X)
    with pytest.raises(OptionError, match="input 0 lies on cpu"):
        fast.replay(X)
    with pytest.raises(OptionError, match="without inputs"):
        fast.replay()


def test_inspect_and_report_as_data() -> None:
    seen = recopt.inspect(onnx_tower(2))
    assert [name for name, _, _ in seen.blocks] == ["linear", "linear"]
    assert seen.operators == {"MatMul": 2, "Add": 2, "Relu": 2}
    assert seen.parameters == 2 * (16 * 16 + 16) and seen.flops == 2 * 2 * 16 * 16
    report = recopt.optimize(onnx_tower(2), target="ort-cpu").report
    assert recopt.Report.from_json(report.to_json()) == report
    assert (report.nodes_before, report.nodes_after) == (6, 2)
