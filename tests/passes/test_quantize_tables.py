"""Tables in fewer bits: within the bound stated, through both hosts; refused above it; and what is wrong is caught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import roads
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spellings.export import run_onnx, to_onnx, to_program
from spellings.lookups import LOOKUPS

import recopt
from recopt.kernels.embedding_bags import plain_rows
from recopt.lower import onnx_ids
from recopt.passes import QuantizeTables
from recopt.passes import quantize_tables as module
from recopt.report import Report

NAME = "quantize-tables"
PASSES = {bits: (QuantizeTables(bits, error=5.0),) for bits in (16, 8, 4)}
WEIGHED = {"weighted"}  # by data: no bound


def bounds(result: recopt.Optimized) -> list[float]:
    return [r.bound for r in result.report.rewrites if r.bound is not None]


@pytest.mark.parametrize("bits", PASSES)
@pytest.mark.parametrize(("name", "road"), roads.CASES)
@settings(max_examples=12, deadline=None)
@given(drawn=roads.inputs())
def test_within_the_bound(name: str, road: str, bits: int, drawn: Any) -> None:
    ids, weights, dtype = drawn
    result, run = roads.prepared(name, road, PASSES[bits], dtype)
    original = roads.module(name)
    expected, found = original(ids, weights).detach(), run(ids, weights)
    if name in WEIGHED:
        assert not bounds(result) and any("no bound" in r for r in roads.reasons(result, NAME))
        torch.testing.assert_close(found, expected)
        return
    (bound,) = bounds(result)
    assert bound > 0 and found.shape == expected.shape and found.dtype == expected.dtype
    slack = 1e-5 + 1.3e-6 * expected.abs()
    assert bool(((found - expected).abs() <= bound + slack).all())


@pytest.mark.parametrize(("name", "road"), [c for c in roads.CASES if c[1] in ("cpu", "portable")])
@settings(max_examples=15, deadline=None)
@given(drawn=roads.inputs(bad=True))
def test_bad_ids_stay_errors(name: str, road: str, drawn: Any) -> None:
    ids, weights, dtype = drawn
    _, run = roads.prepared(name, road, PASSES[8], dtype)
    expected, found = (roads.outcome(r, (ids, weights)) for r in (roads.before(name, road, dtype), run))
    assert (expected is None) == (found is None)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=3, max_size=3), min_size=1, max_size=5),
    bits=st.sampled_from([8, 4]),
    halves=st.booleans(),
)
def test_rows_are_off_by_half_a_step(rows: list[list[float]], bits: int, halves: bool) -> None:
    block = np.array(rows, np.float32)
    scales = module._scales(block, bits, halves)
    codes = module.quantise(block, scales, bits)
    step = (block.max(1, keepdims=True).astype(np.float64) - block.min(1, keepdims=True)) / (2**bits - 1)
    if scales.dtype == np.float16:
        step += module.LONGER * step.max()
    numbers = codes.astype(np.float64) * scales[:, :1] + scales[:, 1:]
    slack = 1e-6 * np.abs(block).max(1, keepdims=True) * 2 + 1e-40
    assert bool((np.abs(numbers - block) <= step / 2 + slack).all())


@pytest.mark.parametrize("dynamo", [None, False])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("scaled", ""),
        ("missing_left_out_of_a_mean", "no bound"),  # in a file it is weights that the graph computes
        ("largest_under_a_given_mask", ""),
        ("mean_over_given", "no bound"),
        ("part_of_the_rows", "part of another tensor"),
    ],
)
def test_factors_denominators_masks_and_parts(name: str, reason: str, dynamo: bool | None) -> None:
    case = LOOKUPS[name]
    module, args = case.module(), case.args(5)
    road = "cpu" if dynamo is None else "portable"
    given = to_program(module, args) if dynamo is None else onnx.load_from_string(to_onnx(module, args, dynamo))
    result = recopt.optimize(given, target=road, passes=["default", *PASSES[8]])
    found = result(*args) if dynamo is None else run_onnx(result.to_proto().SerializeToString(), args)[0]
    error = (torch.as_tensor(found) - module(*args)).abs().max().item()
    made, refused = bounds(result), roads.reasons(result, NAME)
    assert made or (reason and any(reason in r for r in refused)), refused
    assert error <= max([*made, 0.0]) + 1e-5 and (error > 1e-5 or not made)


def test_a_column_is_told_its_own_bound() -> None:
    result = roads.optimize(roads.module("columns"), "cpu", [QuantizeTables(8, error=0.02)])
    (made,) = [r for r in result.report.rewrites if r.pattern == NAME]
    assert "4 tables of 8 bits" in made.detail and "0:12 within" in made.detail and "12:25 within" in made.detail
    assert made.bound is not None and made.bound < 0.02
    again = Report.from_json(result.report.to_json())
    assert again == result.report and json.loads(result.report.to_json())["rewrites"][-1]["bound"] == made.bound
    text = " ".join(str(result.report).split())
    assert "1 places within the bounds stated below, in place of the tolerance" in text and "off by at most" in text


def test_the_bound_grows_with_what_is_added_up() -> None:
    one, whole = (
        bounds(roads.optimize(roads.module(name), "cpu", [QuantizeTables(8, error=5.0)]))[0] for name in ("one", "sum")
    )
    assert whole == pytest.approx(roads.COUNT * one)
    both = bounds(roads.optimize(roads.module("added"), "cpu", [QuantizeTables(8, error=5.0)]))[0]
    assert one < both <= 2.4 * one


@pytest.mark.parametrize("road", ["cpu", "portable"])
def test_refused_above_the_error_allowed(road: str) -> None:
    result = roads.optimize(roads.module("sum"), road, ["quantize_tables:error=0.02"])
    assert not bounds(result)
    assert any("could be off by 0.0" in r and "more than the 0.02 allowed" in r for r in roads.reasons(result, NAME))
    assert bounds(roads.optimize(roads.module("sum"), road, ["quantize_tables:error=0.2"]))


@pytest.mark.parametrize("how", roads.SHARED)
@pytest.mark.parametrize("road", ["cpu", "portable"])
def test_tables_that_others_need_are_refused(how: str, road: str) -> None:
    if how == "written" and road != "cpu":
        pytest.skip("a file has no buffers")
    result = roads.optimize(roads.Shared(how).eval(), road, [QuantizeTables(8, error=1.0)])
    found = roads.reasons(result, NAME)
    assert any(roads.SHARED[how] in reason for reason in found), found
    (made,) = [r for r in result.report.rewrites if r.pattern == NAME]
    assert made.detail.startswith("1 tables")


def test_tied_memory_is_refused() -> None:
    model = roads.Shared("none")
    model.other = torch.nn.Parameter(model.table.data[:])
    result = roads.optimize(model.eval(), "cpu", [QuantizeTables(8, error=1.0)])
    assert not bounds(result) and any("shares the table's memory" in r for r in roads.reasons(result, NAME))


def test_rows_that_are_no_numbers_are_refused() -> None:
    for bad, bits, why in ((torch.inf, 8, "not finite"), (torch.nan, 4, "not finite"), (1e6, 16, "too large")):
        model = roads.module("one")
        model.tables[0].data[3, 4] = bad  # type: ignore[union-attr, index, operator]
        result = roads.optimize(model, "cpu", [QuantizeTables(bits, error=1e9)])
        assert not bounds(result) and any(why in r for r in roads.reasons(result, NAME))


def test_sums_in_float16_that_overflow_are_refused() -> None:
    for name in ("sum", "mean"):
        model = roads.module(name)
        for table in model.tables:  # type: ignore[union-attr]
            table.data *= 1e4
        result = roads.optimize(model, "cpu", [QuantizeTables(16, error=1e9)])
        assert not bounds(result), result.report.rewrites


def test_a_file_shrinks_and_holds_no_copy() -> None:
    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = torch.nn.EmbeddingBag(5000, 64, mode="sum")

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.bag(ids)
            return found

    file = to_onnx(Wide().eval(), (torch.zeros(4, 5, dtype=torch.int64),), dynamo=False)
    for bits, ratio in ((16, 0.51), (8, 0.29), (4, 0.17)):
        result = recopt.optimize(onnx.load_from_string(file), passes=["default", QuantizeTables(bits, error=9.0)])
        proto = result.to_proto()
        assert len(proto.SerializeToString()) < ratio * len(file)
        assert {n.domain for n in proto.graph.node} <= {""}
        assert ("DequantizeLinear" in {n.op_type for n in proto.graph.node}) == (bits < 16)


def test_rows_lie_in_as_few_lines_as_they_can() -> None:
    for width, stride in ((1, 1), (12, 16), (64, 64), (100, 128), (129, 256)):
        rows = module._rows(7, width, apart=True)
        assert rows.shape == (7, width) and rows.strides == (stride, 1) and rows.ctypes.data % 128 == 0


def test_scales_are_float16_where_no_step_grows_much() -> None:
    rows = np.random.default_rng(0).standard_normal((100, 32)).astype(np.float32)
    assert module._scales(rows, 8, halves=True).dtype == np.float16
    for far in (rows + 1e4, rows * 1e5, np.ones_like(rows) / 3):  # the bias, the scale, both have too few digits
        assert module._scales(far, 8, halves=True).dtype == np.float32
    assert module._scales(rows, 8, halves=False).dtype == np.float32
    result = roads.optimize(roads.module("columns"), "cpu", [QuantizeTables(8)])
    held = {k: v.dtype for k, v in result.model.named_buffers() if k.endswith("_scales")}
    assert held and set(held.values()) == {torch.float32}, held


def test_a_saved_program_keeps_its_tables(tmp_path: Path) -> None:
    result = roads.optimize(roads.module("columns"), "cpu", [QuantizeTables(4, error=1.0)])
    result.save(tmp_path / "small.pt2")
    again = torch.export.load(tmp_path / "small.pt2").module()
    args = roads.example()
    torch.testing.assert_close(again(*args), result(*args), rtol=0, atol=0)


# --- what is wrong is caught


def test_a_wrong_scale_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    quantise = module.quantise

    def wrong(block: Any, scales: Any, bits: int) -> Any:
        return np.roll(quantise(block, scales, bits), 1, axis=0)

    monkeypatch.setattr(module, "quantise", wrong)
    # The error is measured on the codes that are stored, so the table is refused, not only found wrong.
    result = roads.optimize(roads.module("columns"), "cpu", [QuantizeTables(8)])
    assert not bounds(result) and len(roads.reasons(result, NAME)) == 4


@pytest.mark.parametrize("level", ["model", "rewrites"])
def test_a_wrong_dequantisation_is_caught_in_torch(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = plain_rows._numbers

    def wrong(t: Any, scale: int, o: Any, i: Any) -> Any:
        found = numbers(t, scale, o, i)
        return found if not t.bits else found + 0.02  # twice what is allowed

    monkeypatch.setattr(plain_rows, "_numbers", wrong)
    result = roads.optimize(roads.module("columns"), "cpu", [QuantizeTables(8)], verify=level)
    assert not bounds(result)
    (undone,) = result.report.undone
    assert undone.pattern == NAME and "disagrees with what it replaces" in undone.reason
    torch.testing.assert_close(result(*roads.example()), roads.module("columns")(*roads.example()))


def test_a_wrong_dequantisation_is_caught_in_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_ids, "_halves", lambda host, codes, width, name: host.call(
        "Concat", [codes, codes], {"axis": 1}, name=name, shape=None, dtype="uint8"
    ))  # fmt: skip
    result = roads.optimize(roads.module("one"), "portable", [QuantizeTables(4, error=1.0)])
    assert not bounds(result) and [r.pattern for r in result.report.undone] == [NAME]
    torch.testing.assert_close(roads.runs(result)(*roads.example()), roads.module("one")(*roads.example()))


def test_the_rest_of_the_model_is_verified_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head behind the tables is compared to the tolerance, not to what the tables make of it."""

    class Deep(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = torch.nn.Embedding(50, 16), torch.nn.Linear(16, 3)

        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.table(args[0]).sum(1)).relu()
            return found

    result = roads.optimize(Deep().eval(), "cpu", [QuantizeTables(8, error=0.1)])
    assert result.report.model_error is not None and result.report.model_error <= 1 and bounds(result)
    assert result.report.counts() == {"embedding-bags": 1, NAME: 1, "linear": 1}


def test_external_data_stays_external(tmp_path: Path) -> None:
    args = roads.example()
    proto = onnx.load_from_string(to_onnx(roads.module("columns"), args, dynamo=False))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    result = recopt.optimize(tmp_path / "m.onnx", passes=["default", QuantizeTables(8, error=1.0)])
    result.save(tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx.data").stat().st_size < 0.6 * (tmp_path / "m.data").stat().st_size
    again = recopt.load(tmp_path / "small.onnx").run([a.numpy() for a in args])
    torch.testing.assert_close(torch.as_tensor(again[0]), roads.runs(result)(*args), rtol=0, atol=0)
