"""Each row once a batch: the same numbers, pads, weights and errors alike; only where rows cost to read."""

from __future__ import annotations

from typing import Any

import pytest
import roads
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from recopt.kernels.embedding_bags import plain_bags, plain_rows
from recopt.passes import DedupeIds, QuantizeTables

NAME = "dedupe-ids"
SMALL = QuantizeTables(8, error=5.0)


@pytest.mark.parametrize("bits", [32, 16, 8])
@pytest.mark.parametrize(("name", "road"), roads.CASES)
@settings(max_examples=6, deadline=None)
@given(drawn=roads.inputs())
def test_nothing_changes(name: str, road: str, bits: int, drawn: Any) -> None:
    ids, weights, dtype = drawn
    first = () if bits == 32 else (QuantizeTables(bits, error=5.0),)
    result, run = roads.prepared(name, road, (*first, DedupeIds(always=1)), dtype)
    # In a file a pad is compared with the row, which is a place among distinct rows then.
    left = [r for r in roads.reasons(result, NAME) if "padding id" in r or "conditions" in r]
    assert result.report.counts().get(NAME, 0) == (not left)
    assert not left or (name == "masked" and road != "cpu")
    plain = roads.prepared(name, road, first, dtype)[1]
    torch.testing.assert_close(run(ids, weights), plain(ids, weights))


@pytest.mark.parametrize(("name", "road"), roads.CASES)
@settings(max_examples=8, deadline=None)
@given(drawn=roads.inputs(bad=True))
def test_bad_ids_are_what_they_were(name: str, road: str, drawn: Any) -> None:
    ids, weights, dtype = drawn
    first = () if name == "weighted" else (SMALL,)
    run, plain = (roads.prepared(name, road, passes, dtype)[1] for passes in ((*first, DedupeIds(always=1)), first))
    expected, found = (roads.outcome(r, (ids, weights)) for r in (plain, run))
    assert (expected is None) == (found is None)
    if expected is not None and found is not None:
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("road", ["cpu", "portable"])
def test_rows_that_cost_little_are_left(road: str) -> None:
    half = QuantizeTables(16, error=5.0)
    for first, why in (([], "read faster"), ([half], "read faster"), ([SMALL], "dequantised faster than ids")):
        result = roads.optimize(roads.module("sum"), road, [*first, DedupeIds()])
        assert not result.report.counts().get(NAME)
        assert any(why in r for r in roads.reasons(result, NAME))


@pytest.mark.parametrize(("width", "made"), [(127, 0), (128, 1)])
def test_wide_rows_that_are_dequantised_are_read_once(width: int, made: int) -> None:
    model = roads.Model(lambda m, ids, w: m.bag(ids)).eval()
    model.bag = torch.nn.EmbeddingBag(roads.ROWS, width, mode="sum")
    result = roads.optimize(model, "cpu", [SMALL, "dedupe_ids"])
    assert result.report.counts().get(NAME, 0) == made
    assert "quantize-tables" in result.report.counts()


def test_each_row_is_dequantised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, read = plain_rows._numbers, []

    def counted(t: Any, scale: int, o: Any, i: Any) -> Any:
        read.append(i.tolist())
        return numbers(t, scale, o, i)

    result = roads.optimize(roads.module("sum"), "cpu", [SMALL, DedupeIds(always=1)])
    monkeypatch.setattr(plain_rows, "_numbers", counted)
    result(torch.tensor([[3, 3, 3, 7, 7], [7, 7, 3, 3, 3]]), torch.zeros(2, 5))
    assert read == [[3, 7]]


def test_ids_are_sorted_once_for_bags_that_share_them() -> None:
    result = roads.optimize(roads.module("side_by_side"), "portable", [SMALL, DedupeIds(always=1)])
    ops = [node.op for node in result.host.nodes]
    assert ops.count("Unique") == 2  # ids, and ids[:, :2]

    def two(m: Any, ids: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.embedding(ids, table).sum(1) for table in (m.tables[0], m.bag.weight)], 1)

    both = roads.Model(two).eval()
    ops = [node.op for node in roads.optimize(both, "portable", [SMALL, DedupeIds(always=1)]).host.nodes]
    assert ops.count("Unique") == 1 and ops.count("DequantizeLinear") == 2


def test_wrong_places_are_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    distinct = plain_bags.distinct_rows

    def wrong(t: Any, scale: int, o: Any, i: Any) -> Any:
        rows, places = distinct(t, scale, o, i)
        return rows, places.flip(0)

    monkeypatch.setattr(plain_bags, "distinct_rows", wrong)
    result = roads.optimize(roads.module("sum"), "cpu", [SMALL, DedupeIds(always=1)])
    assert not result.report.counts().get(NAME) and [r.pattern for r in result.report.undone] == [NAME]
