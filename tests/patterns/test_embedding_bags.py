"""Every spelling of lookups, through torch.export and through both exporters: one operator, and the same numbers."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from spellings.export import BATCH, run_onnx, to_onnx, to_program
from spellings.lookups import LOOKUPS, NEAR_MISSES, Lookup
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import embedding as E
from torch.testing import assert_close

import recopt
from recopt.hosts.base import Node
from recopt.lift import lift
from recopt.load import host_of
from recopt.patterns import embedding_bags
from recopt.recognise import lookups

from .harness import check_numbers, exporters

LAYOUT = {
    "contiguous",
    "slice",
    "select",
    "reshape",
    "view",
    "flatten",
    "split",
    "split_with_sizes",
    "unbind",
    "permute",
    "to",
    "squeeze",
}
EXPORTERS = exporters(name for name, case in LOOKUPS.items() if case.onnx)


def is_fused(node: Node) -> bool:
    return node.op == "recopt.embedding_bags.default" or node.op.startswith("recopt::EmbeddingBags")


def check_one(result: recopt.Optimized, layout: set[str]) -> None:
    """One fused operator, and beside it what describes tensors anew."""
    ops = [n.op for n in result.host.nodes if not is_fused(n) and not n.op.startswith("sym_")]
    plain = {op.removeprefix("aten.").split(".")[0] for op in ops}
    assert sum(map(is_fused, result.host.nodes)) == 1, [n.op for n in result.host.nodes]
    assert plain <= layout, ops
    assert not result.report.undone


@pytest.mark.parametrize("name", LOOKUPS)
def test_torch(name: str) -> None:
    case = LOOKUPS[name]
    result = recopt.optimize(to_program(case.module(), case.args(BATCH)), target="cpu")
    check_one(result, LAYOUT | {*case.beside})
    check_numbers(case, result)


@pytest.mark.parametrize(("exporter", "name"), EXPORTERS)
def test_onnx(exporter: str, name: str) -> None:
    case = LOOKUPS[name]
    file = to_onnx(case.module(), case.args(BATCH), dynamo=exporter == "dynamo")
    result = recopt.optimize(onnx.load_from_string(file), target="recopt")
    check_one(
        result,
        {"Slice", "Reshape", "Split", "Cast", "Unsqueeze", "Squeeze", "Gather", "Transpose", "Flatten"}
        | {*case.beside},
    )
    optimized = result.to_proto().SerializeToString()
    check_numbers(case, lambda *args: run_onnx(optimized, args))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
def test_no_loop_is_left(mode: str, dynamo: bool, target: str) -> None:
    case = LOOKUPS[f"bag_{mode}"]
    file = to_onnx(case.module(), case.args(BATCH), dynamo)
    assert any(n.op_type == "Loop" for n in onnx.load_from_string(file).graph.node)
    result = recopt.optimize(onnx.load_from_string(file), target=target)
    turned = ["Transpose"] if mode != "max" else []
    assert [n.op for n in result.host.nodes] == [*turned, "Gather", f"Reduce{mode.capitalize()}"]
    optimized = result.to_proto().SerializeToString()
    check_numbers(case, lambda *args: run_onnx(optimized, args))


def test_weighted_sums_are_products_of_matrices_in_a_file() -> None:
    case = LOOKUPS["weighted"]
    file = to_onnx(case.module(), case.args(BATCH), dynamo=False)
    result = recopt.optimize(onnx.load_from_string(file), target="ort-cpu")
    assert sorted(n.op for n in result.host.nodes) == ["Gather", "MatMul", "Squeeze", "Unsqueeze"]
    optimized = result.to_proto()
    check_numbers(case, lambda *args: run_onnx(optimized.SerializeToString(), args))
    assert not recopt.optimize(optimized, target="ort-cpu").report.rewrites


def test_a_file_from_before_dimensions_were_operands() -> None:
    case = LOOKUPS["weighted"]
    module, args = case.module(), case.args(BATCH)
    buffer = io.BytesIO()
    torch.onnx.export(module, args, buffer, dynamo=False, opset_version=11)
    for target in ("portable", "recopt"):
        result = recopt.optimize(onnx.load_from_string(buffer.getvalue()), target=target)
        assert result.report.rewrites
        (found,) = run_onnx(result.to_proto().SerializeToString(), args)
        np.testing.assert_allclose(found, module(*args).detach(), rtol=1e-5, atol=1e-6)


def test_rows_joined_where_the_size_of_an_input_says_are_refused_at_once() -> None:
    text = """<ir_version: 9, opset_import: ["": 17]> g (int64[n, 2] ids) => (float[4, 2, 8] y)
        <int64[2] halves = {4, 4}> { rows = Gather(table, ids) left, right = Split<axis = 2>(rows, halves)
        both = Concat<axis = 0>(left, right) first, second = Split<axis = 0>(both, halves)
        y = Concat<axis = 2>(first, second) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((9, 8), np.float32), "table"))
    reasons = [r.reason for r in recopt.optimize(model, target="portable", verify="none").report.refusals]
    assert "lookups that are joined where the size of an input says" in reasons
    assert not any("nested" in reason for reason in reasons)


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    case = NEAR_MISSES[name]
    result = recopt.optimize(to_program(case.module(), case.args(BATCH)), target="cpu")
    check_numbers(case, result)
    assert not result.report.undone
    if case.reason:
        reasons = [r.reason for r in result.report.refusals if r.pattern == "embedding-bags"]
        assert any(case.reason in reason for reason in reasons), reasons


class Small(torch.nn.Module):
    """Lookups of a few numbers, of which small operators are the cost."""

    def __init__(self, read: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.read = read
        first, second = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0))
        self.first, self.second = torch.nn.Parameter(first), torch.nn.Parameter(second)

    def forward(self, ids: Tensor) -> Tensor:
        return self.read(ids, self.first, self.second)


QUICK: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], str]] = {
    # one reduction of both
    "bags": (lambda i, a, b: torch.cat([E(i, a).sum(1), E(i, b).sum(1)], 1), "Concat Gather Gather ReduceSum"),
    # of three columns: no dimension that has to go
    "columns": (lambda i, a, b: torch.cat([E(i[:, 0], a), E(i[:, 2], b)], 1), "Concat Gather Gather Gather Gather"),
    # no gather of single numbers
    "turned": (
        lambda i, a, b: torch.stack([E(i[:, 0], a), E(i[:, 2], b), E(i[:, 0], b)], -1),
        "Concat Gather Gather Gather Gather Gather Reshape Transpose",
    ),
    # of one table, whose columns are one gather
    "of_one": (
        lambda i, a, b: torch.cat([E(i[:, 0], a), E(i[:, 1] % 9, b), E(i[:, 2] % 9 + 3, b)], 1),
        "Add Concat Gather Gather Gather Mod Reshape Slice",
    ),
    # rows of few numbers are added up over the first dimension, those of several tables one after the other
    "short": (lambda i, a, b: F.avg_pool1d(E(i, a).transpose(1, 2), 3).squeeze(-1), "Gather ReduceMean Transpose"),
    "mean": (
        lambda i, a, b: torch.stack([E(i[:, 0], a), E(i[:, 1], b), E(i[:, 2], a)]).mean(0),
        "Gather Gather Gather Mul Split Squeeze Sum",
    ),
    "taken": (
        lambda i, a, b: (E(i, a) - (1 - (i != 0).float().unsqueeze(2)) * 1e9).amax(1),
        "Add Equal Gather ReduceMax Unsqueeze Where",
    ),
    # no condition that ONNX Runtime broadcasts slowly, and no product for it
    "masked": (
        lambda i, a, b: E(i, a).masked_fill((i == 0)[..., None], -1e9).amax(1),
        "Cast Equal Gather Gather ReduceMax Where",
    ),
}


@pytest.mark.parametrize("name", QUICK)
def test_small_lookups_on_a_cpu(name: str) -> None:
    read, nodes = QUICK[name]
    model, ids = Small(read).eval(), torch.randint(0, 50, (BATCH, 3), generator=torch.Generator().manual_seed(0))
    ids[0] = 0
    result = recopt.optimize(onnx.load_from_string(to_onnx(model, (ids,), dynamo=False)), target="ort-cpu")
    assert sorted(n.op for n in result.host.nodes) == nodes.split()
    for batch in (BATCH, 1, 0):
        (found,) = run_onnx(result.to_proto().SerializeToString(), (ids[:batch],))
        assert_close(torch.from_numpy(found), model(ids[:batch]).detach())


class Long(torch.nn.Module):
    """A bag of many ids."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = torch.nn.EmbeddingBag(1000, 4, mode="sum")

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.bag(ids), self.bag(ids % 900)], 1)


@pytest.mark.parametrize(("span", "hint"), [(20, "hot"), (1000, "cold")])
def test_long_bags_on_cuda_say_whether_the_example_repeats_ids(span: int, hint: str) -> None:
    ids = torch.randint(0, span, (4, 80), generator=torch.Generator().manual_seed(0))
    for target, words in (("cuda", f" {hint}"), ("cpu", "")):
        result = recopt.optimize(Long().eval(), (ids,), target=target)
        (layout,) = [n.args[-1] for n in result.host.nodes if is_fused(n)]
        assert [piece[piece.index("]") + 1 :] for piece in str(layout).split(";")] == [words, words]


def test_an_id_out_of_range_is_an_error() -> None:
    case = LOOKUPS["columns"]
    result = recopt.optimize(to_program(case.module(), case.args(BATCH)), target="cpu")
    for bad in (-1, 1000):
        ids = case.args(2)[0].clone()
        ids[1, 2] = bad
        with pytest.raises((IndexError, RuntimeError)):
            result(ids)


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_id_that_no_place_of_a_one_hot_has_is_zeros(dynamo: bool) -> None:
    """In a file, where nothing checks it; F.one_hot raises."""
    case = LOOKUPS["one_hot"]
    file = to_onnx(case.module(), case.args(BATCH), dynamo)
    result = recopt.optimize(onnx.load_from_string(file), target="recopt")
    check_one(result, {"Gather", "Slice", "Reshape", "Squeeze", "Unsqueeze"})
    optimized = result.to_proto().SerializeToString()
    ids = np.full((6, 5), 3)
    ids[:, 0] = [0, -1, -30, -31, 29, 30]
    expected, found = (run_onnx(model, (ids,))[0] for model in (file, optimized))
    assert not found[5].any() and not found[3].any()
    np.testing.assert_allclose(found, expected)


def test_a_one_hot_times_an_infinite_number_is_no_lookup() -> None:
    table = torch.eye(30).masked_fill_(torch.eye(30).roll(1, 0) == 1, torch.inf)
    case = Lookup(lambda m, ids: F.one_hot(ids[:, 1], 30).float() @ table)
    args = case.args(BATCH)
    result = recopt.optimize(to_program(case.module(), args), target="cpu", verify="none")
    assert_close(result(*args), case.module()(*args), equal_nan=True)


@pytest.mark.slow
def test_ids_that_a_file_divides_as_floats_are_told() -> None:
    case = Lookup(lambda m, ids: torch.nn.functional.embedding(ids.div(7, rounding_mode="floor"), m.weights[0]).sum(1))
    file = to_onnx(case.module(), case.args(BATCH), dynamo=True)
    result = recopt.optimize(onnx.load_from_string(file), target="recopt")
    check_one(result, {"Cast", "Div", "Floor"})
    assert any("divides as float32" in refusal.reason for refusal in result.report.refusals)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["padding", "padding_mean", "largest_padding"])
def test_a_loop_that_leaves_padding_out(name: str) -> None:
    """What the dynamo exporter makes of a padding id: loops in each other, which count negative ids from the end."""
    case = LOOKUPS[name]
    file = to_onnx(case.module(), case.args(BATCH), dynamo=True)
    result = recopt.optimize(onnx.load_from_string(file), target="recopt")
    check_one(result, {"Reshape"})
    optimized = result.to_proto().SerializeToString()
    check_numbers(case, lambda *args: run_onnx(optimized, args))
    ids = np.array([[2, 2, 2, 2, 2], [-28, 1, 2, -1, 0], [-28, 2, 2, 2, -28]])
    expected, found = (run_onnx(model, (ids,))[0] for model in (file, optimized))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_ids_of_two_dimensions_are_one_bag_however_they_are_flattened() -> None:
    table = torch.nn.Embedding(20, 6)

    class Flat(torch.nn.Module):
        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            rows: torch.Tensor = table(args[0].flatten(1)).sum(1) + table(args[0]).sum(2).sum(1)
            return rows

    ids = torch.randint(0, 20, (BATCH, 3, 4))
    result = recopt.optimize(to_program(Flat().eval(), (ids,)), target="cpu")
    check_one(result, LAYOUT)
    torch.testing.assert_close(result(ids[:3]), Flat()(ids[:3]))


class Ragged(torch.nn.Module):
    """Two tables over flat ids and offsets, dense columns beside."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.one = torch.nn.EmbeddingBag(20, 6, mode="sum", include_last_offset=last)
        self.two = torch.nn.EmbeddingBag(20, 4, mode="mean", include_last_offset=last, padding_idx=3)

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(ids, offsets), self.two(ids, offsets), x], 1)


@pytest.mark.parametrize("last", [False, True])
def test_ragged_bags(last: bool) -> None:
    module = Ragged(last).eval()

    def args(offsets: list[int], count: int) -> tuple[torch.Tensor, ...]:
        starts = [*offsets, count] if last else offsets
        return torch.arange(count) * 7 % 20, torch.tensor(starts), torch.randn(len(offsets), 3)

    dynamic = ({0: torch.export.Dim.AUTO},) * 3
    result = recopt.optimize(module, args([0, 2, 2, 5, 9], 21), dynamic_shapes=dynamic, target="cpu")
    check_one(result, LAYOUT)
    for offsets, count in (([0, 1, 1, 4], 4), ([0, 0, 3], 11), ([0, 5, 6, 7, 8, 9, 10], 10)):
        given = args(offsets, count)
        with torch.no_grad():
            torch.testing.assert_close(result(*given), module(*given))


def test_what_is_computed_from_ids_is_no_mask() -> None:
    """Else the terms of whole models would be put into each other: every value of one is made of ids and weights."""
    table, linear = torch.nn.Embedding(20, 6), torch.nn.Linear(6, 6)

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = table, linear

        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            rows: torch.Tensor = self.table(args[0])
            return (rows * self.linear(rows).relu()).sum(1)

    host = host_of(to_program(Pooled().eval(), (torch.randint(0, 20, (BATCH, 5)),)))
    lifted = lift(host)
    roots = embedding_bags.roots(lifted)
    assert not any(lookups.masks(lifted, v) for node in host.nodes for v in node.outputs if v.dtype == "float32")
    assert not any("linear" in v.name or "relu" in v.name for v in roots)


class TwoConcats(torch.nn.Module):
    """One table in both places of the first concat, one in each of the second, wider ones in the third, and the same
    ids in both places of the fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = torch.nn.ModuleList(torch.nn.Embedding(20, 6) for _ in range(4))
        self.wide = torch.nn.ModuleList(torch.nn.Embedding(20, 9) for _ in range(2))

    def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ids, others = args
        pairs = ((self.narrow[0], self.narrow[0]), (self.narrow[1], self.narrow[2]), (self.wide[0], self.wide[1]))
        joined = [torch.cat([a(ids).flatten(1), b(others).flatten(1)], 1) for a, b in pairs]
        return (*joined, torch.cat([self.narrow[2](ids).flatten(1), self.narrow[3](ids).flatten(1)], 1))


def test_functions_are_shared_by_those_alone_that_read_alike() -> None:
    module = TwoConcats().eval()

    def args(batch: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.randint(0, 20, (batch, 2)) for _ in range(2))

    result = recopt.optimize(onnx.load_from_string(to_onnx(module, args(BATCH), dynamo=False)), target="recopt")
    assert sum(map(is_fused, result.host.nodes)) == 4 and not result.report.undone, result.report.undone
    file = result.to_proto().SerializeToString()
    given = args(3)
    for found, expected in zip(run_onnx(file, given), module(*given), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected)


def test_rows_that_others_need_too_are_not_looked_up_again() -> None:
    def both(m: Any, ids: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = torch.nn.functional.embedding(ids, m.weights[0])
        return rows, (rows * w[:, :, None]).sum(1)

    case = Lookup(both, 3)
    module, args = case.module(), case.args(BATCH)
    for given, target in ((to_program(module, args), "cpu"), (to_onnx(module, args, dynamo=False), "recopt")):
        model = onnx.load_from_string(given) if isinstance(given, bytes) else given
        result = recopt.optimize(model, target=target)
        assert any("which others need too" in r.reason for r in result.report.refusals), result.report.refusals


def test_parts_of_the_rows_of_one_lookup_stay_parts_on_a_cpu() -> None:
    def step(m: Any, ids: torch.Tensor) -> torch.Tensor:
        rows = torch.nn.functional.embedding(ids, m.weights[0])
        return rows[:, 1:] - rows[:, :-1]

    case = Lookup(step)
    module, args = case.module(), case.args(BATCH)
    result = recopt.optimize(to_program(module, args), target="cpu")
    assert not any(map(is_fused, result.host.nodes)) and "would become several" in result.report.refusals[0].reason
    torch.testing.assert_close(result(*args), module(*args))


class MultiHot(torch.nn.Module):
    """DLRM's features: ragged bags of several tables, each with ids and offsets of its own, and a linear of dense x."""

    def __init__(self, mode: str, weighted: bool, last: bool) -> None:
        super().__init__()
        self.bags = torch.nn.ModuleList(
            torch.nn.EmbeddingBag(20 + n, 6, mode=mode, include_last_offset=last) for n in range(3)
        )
        self.bottom, self.weighted, self.last = torch.nn.Linear(4, 6), weighted, last

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        x, offsets, weights, *ids = args
        given = weights if self.weighted else None
        pooled = [b(i, offsets, per_sample_weights=given) for b, i in zip(self.bags, ids, strict=True)]
        # A file does not say that x has a row less than such offsets have entries.
        return torch.cat(pooled if self.last else [self.bottom(x).relu(), *pooled], 1)


def multi_hot(bags: list[int], last: bool) -> tuple[torch.Tensor, ...]:
    """Dense x, offsets and weights, ids of three tables, for bags of these lengths."""
    ends = torch.tensor(bags).cumsum(0)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends if last else ends[:-1]])
    ids = [torch.randint(0, 20, (sum(bags),)) for _ in range(3)]
    return torch.randn(len(bags), 4), offsets, torch.rand(sum(bags)), *ids


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("mode", "weighted", "last"),
    [("sum", False, True), ("mean", False, False), ("sum", True, False), ("max", False, False)],
)
@pytest.mark.parametrize("target", ["portable", "recopt"])
def test_ragged_bags_leave_no_loop(dynamo: bool, mode: str, weighted: bool, last: bool, target: str) -> None:
    module = MultiHot(mode, weighted, last).eval()
    args = multi_hot([3, 0, 2, 4], last)
    sizes = ["batch", "ends" if last else "batch", *["ids"] * 4]
    file = to_onnx(module, args, dynamo, sizes)
    result = recopt.optimize(onnx.load_from_string(file), target=target)
    assert not [n.op for n in result.host.nodes if n.op in ("Loop", "SequenceInsert", "ConcatFromSequence")]
    assert result.report.counts()["embedding-bags"] == 1 and not result.report.undone
    optimized = result.to_proto().SerializeToString()
    for bags in ([1], [0, 5], [2, 0, 0, 3, 1, 0], [4, 4, 4]):
        given = multi_hot(bags, last)
        names = [v.name for v in result.host.inputs]  # an exporter drops those that nothing reads
        used = tuple(a for n, a in enumerate(given) if f"x{n}" in names)
        with torch.no_grad():
            # ONNX leaves the maximum of nothing undefined: it is what the file gave
            expected = module(*given) if mode != "max" else torch.from_numpy(run_onnx(file, used)[0])
            torch.testing.assert_close(torch.from_numpy(run_onnx(optimized, used)[0]), expected)
