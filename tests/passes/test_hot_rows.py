"""Hot rows first: the same numbers to the last bit, the same errors; the hash takes the remap in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roads
import torch
from hypothesis import given, settings
from onnx import numpy_helper

import recopt
from recopt.errors import OptionError
from recopt.passes import HotRows, QuantizeTables
from recopt.passes import hot_rows as module

NAME = "hot-rows"
HEIGHTS = {f"tables.{n}": roads.ROWS + n for n in range(4)} | {"bag.weight": roads.ROWS}
COUNTS = {name: np.random.default_rng(rows).permutation(rows) for name, rows in HEIGHTS.items()}


class Passes(tuple[Any, ...]):
    """The pass as a key of the cache, though its counts are arrays."""

    def __hash__(self) -> int:
        return 1


PASSES = Passes((HotRows(COUNTS),))


def made(result: recopt.Optimized) -> int:
    return result.report.counts().get(NAME, 0)


@pytest.mark.parametrize(("name", "road"), roads.CASES)
@settings(max_examples=12, deadline=None)
@given(drawn=roads.inputs())
def test_nothing_changes(name: str, road: str, drawn: Any) -> None:
    ids, weights, dtype = drawn
    result, run = roads.prepared(name, road, PASSES, dtype)
    assert made(result) == 1
    plain = roads.prepared(name, road, (), dtype)[1]
    torch.testing.assert_close(run(ids, weights), plain(ids, weights), rtol=0, atol=0)
    torch.testing.assert_close(run(ids, weights), roads.module(name)(ids, weights))


@pytest.mark.parametrize(("name", "road"), roads.CASES)
@settings(max_examples=8, deadline=None)
@given(drawn=roads.inputs(bad=True))
def test_bad_ids_are_what_they_were(name: str, road: str, drawn: Any) -> None:
    ids, weights, dtype = drawn
    if name == "masked":  # of the operator's mask the row is not read, of the original's it is
        ids[ids < 0] = roads.ROWS + 4
    run = roads.prepared(name, road, PASSES, dtype)[1]
    expected, found = (roads.outcome(r, (ids, weights)) for r in (roads.before(name, road, dtype), run))
    assert (expected is None) == (found is None)
    if expected is not None and found is not None:  # in a file negative ids count from the end
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("road", ["cpu", "portable"])
def test_hot_rows_lie_first(road: str) -> None:
    result = roads.optimize(roads.module("one"), road, PASSES)
    table = roads.module("one").tables[0].detach().numpy()  # type: ignore[union-attr, index, operator]
    wanted = table[np.argsort(-COUNTS["tables.0"], kind="stable")]
    if road == "cpu":
        stored = [t.detach().numpy() for t in result.model.state_dict().values()]
    else:
        stored = [numpy_helper.to_array(t) for t in result.to_proto().graph.initializer]
    assert any(np.array_equal(t, wanted) for t in stored)
    assert not any(np.array_equal(t, table) for t in stored)


def test_the_hash_takes_the_remap_in() -> None:
    """Of ids % 19 + 2 the remap has 19 rows, and no shift is left."""
    result = roads.optimize(roads.module("hashed"), "cpu", PASSES)
    remaps = {n: t for n, t in result.model.state_dict().items() if "remap" in n}
    assert sorted(t.shape[0] for t in remaps.values()) == [19, 23]
    assert sum(n.op == "aten.remainder.Scalar" for n in result.host.nodes) == 2
    assert not any("add" in n.op for n in result.host.nodes)


@pytest.mark.parametrize("how", roads.SHARED)
def test_tables_that_others_need_are_refused(how: str) -> None:
    counts = {"table": np.arange(roads.ROWS), "other": np.arange(roads.ROWS), "written": np.arange(roads.ROWS)}
    result = roads.optimize(roads.Shared(how).eval(), "cpu", [HotRows(counts)])
    found = roads.reasons(result, NAME)
    wanted = "no embedding bags read a table of this name" if how == "computed" else roads.SHARED[how]
    assert any(wanted in reason for reason in found), found
    (rewrite,) = [r for r in result.report.rewrites if r.pattern == NAME]
    assert rewrite.detail == "rows of other by how often they are read"


class Cut(torch.nn.Module):
    """Flat ids of which those past the last offset are in no bag."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = torch.nn.EmbeddingBag(20, 6, mode="sum", include_last_offset=True)

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.bag(ids, offsets), self.bag(ids, offsets)], 1)


def test_ids_that_no_bag_reads_are_not_looked_up() -> None:
    args = torch.arange(9), torch.tensor([0, 2, 9])
    dynamic = ({0: torch.export.Dim.AUTO},) * 2
    passes = ["default", HotRows({"bag.weight": np.arange(20)})]
    result = recopt.optimize(Cut().eval(), args, dynamic_shapes=dynamic, passes=passes)
    assert not made(result) and any("need not name a row" in r for r in roads.reasons(result, NAME))


def test_counts_from_files(tmp_path: Path) -> None:
    counts = {"tables.0": COUNTS["tables.0"]}
    np.savez(tmp_path / "c.npz", **counts)
    (tmp_path / "c.json").write_text(json.dumps({k: v.tolist() for k, v in counts.items()}))
    wanted = roads.optimize(roads.module("one"), "cpu", [HotRows(counts)])(*roads.example())
    for file in ("c.npz", "c.json"):
        result = roads.optimize(roads.module("one"), "cpu", [f"hot_rows:counts={tmp_path / file}"])
        assert made(result) == 1
        torch.testing.assert_close(result(*roads.example()), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("none.json", None, "is no .npz or .json file"),
        ("c.txt", "{}", "is no .npz or .json file"),
        ("c.json", "{", "c.json"),
        ("c.json", "[1]", "not a mapping"),
        ("c.json", '{"t": ["a"]}', "no numbers"),
        ("c.npz", "no archive", "c.npz"),
    ],
)
def test_files_that_hold_no_counts(file: str, text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(OptionError, match=message):
        roads.optimize(roads.module("one"), "cpu", [HotRows(str(tmp_path / file))])


def test_counts_that_do_not_fit() -> None:
    counts = {"tables.0": np.arange(5), "nothing": np.arange(3)}
    result = roads.optimize(roads.module("one"), "cpu", [HotRows(counts)])
    assert not made(result)
    found = roads.reasons(result, NAME)
    assert any("counts of shape [5] for 23 rows" in r for r in found) and any("of this name" in r for r in found)
    with pytest.raises(OptionError, match="no tensor called nothing"):
        roads.optimize(roads.module("one"), "cpu", [HotRows({"nothing": np.arange(3)})])


def test_a_wrong_remap_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    bags = module.with_bags

    def wrong(spec: Any, new: Any) -> Any:
        found = bags(spec, new)
        return bags(found, lambda bag: module.replace(bag, remap=None))

    monkeypatch.setattr(module, "with_bags", wrong)
    result = roads.optimize(roads.module("one"), "cpu", PASSES)
    assert not made(result) and [r.pattern for r in result.report.undone] == [NAME]
    torch.testing.assert_close(result(*roads.example()), roads.module("one")(*roads.example()))


@pytest.mark.parametrize("road", roads.ROADS)
def test_with_fewer_bits_too(road: str) -> None:
    result = roads.optimize(roads.module("columns"), road, [*PASSES, QuantizeTables(8, error=1.0)])
    assert made(result) == 1
    assert any("stores the table already" in r for r in roads.reasons(result, "quantize-tables"))
