"""Product tables: the same numbers to the last bit; a bad id never lands in another row."""

from __future__ import annotations

from typing import Any

import pytest
import roads
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from recopt.passes import CartesianTables, QuantizeTables

NAME = "cartesian-tables"
PASSES = (CartesianTables(),)
JOINED = [case for case in roads.CASES if case[0] in ("columns", "hashed")]


@pytest.mark.parametrize(("name", "road"), roads.CASES)
@settings(max_examples=12, deadline=None)
@given(drawn=roads.inputs())
def test_nothing_changes(name: str, road: str, drawn: Any) -> None:
    ids, weights, dtype = drawn
    result, run = roads.prepared(name, road, PASSES, dtype)
    assert result.report.counts().get(NAME, 0) == ((name, road) in JOINED)
    plain = roads.prepared(name, road, (), dtype)[1]
    torch.testing.assert_close(run(ids, weights), plain(ids, weights), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "road"), JOINED)
@settings(max_examples=60, deadline=None)
@given(drawn=roads.inputs(bad=True))
def test_a_bad_id_never_lands_in_another_row(name: str, road: str, drawn: Any) -> None:
    ids, weights, dtype = drawn
    run = roads.prepared(name, road, PASSES, dtype)[1]
    expected, found = (roads.outcome(r, (ids, weights)) for r in (roads.before(name, road, dtype), run))
    assert (expected is None) == (found is None)
    if expected is not None and found is not None:  # the column is not read, is hashed, or counts from the end
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("budget", "joined"),
    [
        (0, ""),
        (4 * 23 * 24 * 25 - 1, ""),
        (4 * 23 * 24 * 25, "tables.0 x tables.1"),
        (4 * (23 * 24 * 25 + 25 * 26 * 29), "tables.0 x tables.1; tables.2 x tables.3"),
        (4 * 23 * 24 * 25 * (12 + 13 + 14), "tables.0 x tables.1 x tables.2"),
    ],
)
def test_the_budget_holds(budget: int, joined: str) -> None:
    result = roads.optimize(roads.module("columns"), "cpu", [CartesianTables(budget)])
    made = [r for r in result.report.rewrites if r.pattern == NAME]
    assert [r.detail for r in made] == ([joined] if joined else [])
    if not joined:
        assert any(f"what is left of {budget} bytes" in r for r in roads.reasons(result, NAME))
    held = sum(t.numel() * 4 for n, t in result.model.state_dict().items() if "_x_" in n)
    assert held <= budget
    torch.testing.assert_close(result(*roads.example()), roads.module("columns")(*roads.example()), rtol=0, atol=0)


def test_lookups_become_one() -> None:
    result = roads.optimize(roads.module("columns"), "cpu", [CartesianTables(1 << 30)])
    (node,) = [n for n in result.host.nodes if n.op == "recopt.embedding_bags.default"]
    assert len(node.args[0]) == 1  # tables
    left = [t for n, t in result.model.state_dict().items() if n.startswith("tables") and "_x_" not in n]
    assert all(t.dim() == 1 for t in left)  # the steps


class Apart(torch.nn.Module):
    """Two tables with something between them."""

    def __init__(self, between: str) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Embedding(20, 6), torch.nn.Embedding(20, 6)
        self.between = between

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        ids, w = args
        first, last = self.one(ids[:, 0]), self.two(ids[:, 1])
        if self.between == "weights":
            return torch.cat([first * w[:, :1], last], 1)
        if self.between == "bag":
            return torch.cat([first, self.two(ids).sum(1)], 1)
        if self.between == "dense":
            return torch.cat([first, w, last], 1)
        return torch.cat([first + last, last], 1)


@pytest.mark.parametrize("between", ["weights", "bag", "dense", "added"])
def test_near_misses(between: str) -> None:
    model = Apart(between).eval()
    args = (roads.example()[0] % 20, roads.example()[1])
    result = roads.optimize(model, "cpu", PASSES, args=args)
    assert not result.report.counts().get(NAME) and roads.reasons(result, NAME)
    torch.testing.assert_close(result(*args), model(*args))


@pytest.mark.parametrize("how", roads.SHARED)
def test_tables_that_others_need_are_refused(how: str) -> None:
    result = roads.optimize(roads.Shared(how).eval(), "cpu", PASSES)
    found = roads.reasons(result, NAME)
    assert any(roads.SHARED[how] in reason for reason in found), found
    assert not result.report.counts().get(NAME)


def test_one_table_in_both_places() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(20, 6)

        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            return torch.cat([F.embedding(args[0][:, n], self.table.weight) for n in (0, 1)], 1)

    model, args = Twice().eval(), (roads.example()[0] % 20, roads.example()[1])
    result = roads.optimize(model, "cpu", PASSES, args=args)
    assert result.report.counts()[NAME] == 1
    torch.testing.assert_close(result(*args), model(*args), rtol=0, atol=0)


def test_a_wrong_product_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    from recopt.passes import cartesian_tables as module

    product = module._product

    def wrong(host: Any, bags: Any) -> Any:
        table, steps = product(host, bags)
        return table, steps[::-1]

    monkeypatch.setattr(module, "_product", wrong)
    result = roads.optimize(roads.module("columns"), "cpu", PASSES)
    assert not result.report.counts().get(NAME) and result.report.undone[0].pattern == NAME
    torch.testing.assert_close(result(*roads.example()), roads.module("columns")(*roads.example()))


def test_product_tables_are_not_stored_in_fewer_bits() -> None:
    result = roads.optimize(roads.module("columns"), "cpu", [*PASSES, QuantizeTables(8, error=1.0)])
    assert any("stores the table already" in r for r in roads.reasons(result, "quantize-tables"))
