"""Regions of layout and pointwise operators become one operator that gives the original's bits."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from spellings.pointwise import CASES, TABLE, Module, inputs
from torch import Tensor, nn

import recopt
from recopt.patterns.pointwise import VIEWS

OPERATOR = "recopt.pointwise.default"
DRAWN = (
    "columns hashed, each by its own size", "floor division", "fmod", "division toward zero", "mixed bits", "masks",
    "narrow integers", "columns in buckets of their own", "indicators of buckets", "comparisons and truth values",
    "python's modulo by a negative number", "roots and signs",
)  # fmt: skip


def optimized(module: nn.Module, target: str = "cuda") -> recopt.api.Optimized:
    return recopt.optimize(module.eval(), inputs(4), target=target)


def operators(module: recopt.api.Optimized) -> list[str]:
    """What is left that launches something."""
    free = VIEWS | {"aten.sym_size.int", "aten._assert_tensor_metadata.default"}
    return [n.op for n in module.host.nodes if n.op not in free]


def results(module: object, args: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        found = module(*args)  # type: ignore[operator]  # a module
    return list(found) if isinstance(found, tuple) else [found]


def check_bits(expected: list[Tensor], actual: list[Tensor]) -> None:
    """Equal in every bit but those of a NaN."""
    for e, a in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)
        if e.is_floating_point():
            assert torch.equal(torch.signbit(a)[~a.isnan()], torch.signbit(e)[~e.isnan()])


@pytest.mark.parametrize("name", CASES)
def test_one_operator_with_the_originals_bits(name: str) -> None:
    module = Module(CASES[name])
    found = optimized(module)
    assert not found.report.undone
    assert operators(found) == [OPERATOR], found.report.refusals
    for batch in (1, 3, 7):
        args = inputs(batch, seed=batch)
        check_bits(results(module, args), results(found, args))


@functools.cache
def once(name: str) -> tuple[Module, recopt.api.Optimized]:
    return Module(CASES[name]), optimized(Module(CASES[name]))


@pytest.mark.parametrize("name", DRAWN)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whatever_comes_has_the_originals_bits(name: str, data: st.DataObject) -> None:
    """Signs, overflow, infinities, NaN, no rows at all."""
    module, found = once(name)
    count = 6 * data.draw(st.integers(0, 3))
    numbers = st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, 0.25, math.inf, -math.inf, math.nan]))
    whole = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, -1, 1, -(2**63), 2**63 - 1]))
    x = torch.tensor(data.draw(st.lists(numbers, min_size=count, max_size=count)), dtype=torch.float32)
    ids = torch.tensor(data.draw(st.lists(whole, min_size=count, max_size=count)), dtype=torch.int64)
    args = x.reshape(-1, 6), ids.reshape(-1, 6)
    check_bits(results(module, args), results(found, args))


def test_what_depends_on_an_order_of_sums_is_close() -> None:
    def function(x: Tensor, ids: Tensor) -> object:
        spread = (
            x.std(1, keepdim=True) + x.var(1, unbiased=False, keepdim=True) + x.reshape(-1, 2, 3).var((1, 2))[:, None]
        )
        equal = (x[:, :1] * 0 + 1000.1).repeat(1, 3).std(1, keepdim=True)
        return torch.cat(
            [(x - x.mean(1, keepdim=True)) / spread, F.normalize(x), F.softplus(x * 9), torch.softmax(x, 1), equal], 1
        )

    found = optimized(Module(function))
    assert operators(found) == [OPERATOR], found.report.refusals
    for batch in (2, 7):  # of a single row torch rounds the mean
        args = inputs(batch)
        torch.testing.assert_close(results(found, args), results(Module(function), args), equal_nan=True)


def test_an_empty_batch() -> None:
    module = Module(CASES["pieces of many kinds joined"])
    found = optimized(module)
    args = tuple(t[:0] for t in inputs(3))
    (empty,) = results(found.model, args)  # type: ignore[arg-type]  # two tensors
    assert empty.shape == (0, 17)


class Layers(nn.Module):
    """Features, a layer, and a region after it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 6)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        features = torch.cat([torch.log1p(x.abs()), (ids % 10).float() * 0.1], 1)
        y = self.layer(features)
        gate = torch.where(ids > 0, y, y * 0.5)
        return torch.cat([gate, features[:, :3] - 1], 1)


def test_a_region_ends_at_a_contraction() -> None:
    module = Layers()
    found = optimized(module)
    assert operators(found).count(OPERATOR) == 2
    assert "recopt.linear.default" in operators(found)
    args = inputs(5)
    torch.testing.assert_close(results(found, args), results(module, args), equal_nan=True)


def test_what_only_a_later_region_reads_belongs_to_it() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            hidden = ~(ids % 3 > 0)
            return self.layer(x).masked_fill(hidden, -1e9)

    module = Masked()
    found = optimized(module)
    assert operators(found) == ["recopt.linear.default", OPERATOR]
    args = inputs(5)
    torch.testing.assert_close(results(found, args), results(module, args), equal_nan=True)


def alone(x: Tensor, ids: Tensor) -> object:
    return torch.log1p(x)


def view_of_one(x: Tensor, ids: Tensor) -> object:
    return (x + 1).reshape(-1, 2, 3)


@pytest.mark.parametrize("function", [alone, view_of_one])
def test_one_kernel_is_left_alone(function: object) -> None:
    assert OPERATOR not in operators(optimized(Module(function)))  # type: ignore[arg-type]  # a function of two tensors


def test_other_targets_keep_their_operators() -> None:
    assert OPERATOR not in operators(optimized(Module(CASES["pieces of many kinds joined"]), target="cpu"))


def test_a_view_stays_a_view() -> None:
    def function(x: Tensor, ids: Tensor) -> object:
        y = torch.cat([x * 2, x.abs()], 1)
        return y + 1, (y + 1).reshape(-1, 3, 4)

    found = optimized(Module(function))
    assert operators(found) == [OPERATOR]
    (node,) = [n for n in found.host.nodes if n.op == OPERATOR]
    assert len(node.outputs) == 1


def test_a_lookup_in_a_table_fed_at_run_time_stays() -> None:
    class Lookup(nn.Module):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return torch.gather(x * 2, 1, ids % 6) + 1

    module = Lookup()
    found = optimized(module)
    assert any("gather" in op for op in operators(found))
    args = inputs(3)
    check_bits(results(module, args), results(found, args))


def test_a_table_that_may_be_read_outside_does_not_spoil_its_region() -> None:
    def function(x: Tensor, ids: Tensor) -> object:
        return torch.cat([TABLE[ids.clamp(-3, 3)], (x.abs() * 2 + 1) / 3], 1)  # a negative place counts from the end

    found = optimized(Module(function))
    assert operators(found) == ["aten.clamp.default", "aten.index.Tensor", OPERATOR]
    args = inputs(3)
    check_bits(results(Module(function), args), results(found, args))


def test_columns_of_one_chain_are_one_loop() -> None:
    (node,) = [
        n for n in optimized(Module(CASES["columns hashed, each by its own size"])).host.nodes if n.op == OPERATOR
    ]
    assert str(node.args[1]).count("loop") == 1


def test_a_reduction_of_a_row_is_computed_once_for_it() -> None:
    def function(x: Tensor, ids: Tensor) -> object:
        wide = torch.exp(torch.cat([x + n for n in range(10)], 1) * 0.1) + 1.0
        return wide / wide.sum(1, keepdim=True) - 0.5

    found = optimized(Module(function))
    assert operators(found) == [OPERATOR]
    args = inputs(1)
    torch.testing.assert_close(results(found, args), results(Module(function), args))


def test_a_reduction_that_many_elements_share_ends_a_region() -> None:
    def function(x: Tensor, ids: Tensor) -> object:
        wide = torch.exp(x.unsqueeze(1) * torch.arange(60.0).unsqueeze(1) * 0.01) + 1.0
        return wide / wide.sum(1, keepdim=True) - 0.5

    found = optimized(Module(function))
    assert operators(found) == [OPERATOR, "aten.sum.dim_IntList", OPERATOR]
    assert any("longer" in r.reason or "as much as" in r.reason for r in found.report.refusals)
    args = inputs(1)
    torch.testing.assert_close(results(found, args), results(Module(function), args))


@pytest.mark.parametrize("name", ["pieces of many kinds joined", "floor division", "fmod", "division toward zero"])
def test_an_optimized_module_exports(name: str, tmp_path: Path) -> None:
    """As standard operators of ONNX, and as a program of torch's; the exporter's own fmod and division of integers go
    through floats."""
    onnxruntime = pytest.importorskip("onnxruntime")
    module = Module(CASES[name])
    found = optimized(module)
    args = inputs(5)
    batch = {0: torch.export.Dim.DYNAMIC}
    exported = torch.onnx.export(
        found.model, inputs(4), dynamo=True, dynamic_shapes=(batch, batch), verbose=False,
        custom_translation_table=recopt.onnx_translations(),
    )  # fmt: skip
    assert exported is not None
    exported.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    given = {"x": args[0].numpy(), "ids": args[1].numpy()}
    feed = {i.name: given[i.name] for i in session.get_inputs()}
    torch.testing.assert_close(torch.from_numpy(session.run(None, feed)[0]), results(module, args)[0], equal_nan=True)

    found.save(tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    check_bits(results(module, args), results(loaded, args))


def test_a_node_that_cannot_be_stated_does_not_spoil_its_region() -> None:
    def function(x: Tensor, ids: Tensor) -> object:
        y = torch.log1p(x.abs()) * 2 + 1
        return torch.cumsum(y, 1), torch.cat([y, -x], 1), (y.double() % 0.3).float()

    found = optimized(Module(function))
    left = operators(found)
    assert left.count(OPERATOR) == 1
    assert {"aten.cumsum.default", "aten.remainder.Scalar"} <= set(left)
    args = inputs(3)
    check_bits(results(Module(function), args), results(found, args))
