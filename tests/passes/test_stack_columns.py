"""One chain over all columns where many have the same: integers bit for bit, signs and overflow as they were."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from spellings.export import BATCH, run_onnx, to_onnx, to_program
from torch import Tensor, nn

import recopt

COUNT = 6
INT64 = (-(2**63), 2**63 - 1)
SPECIAL = [0.0, -0.0, 1.5, -3.25, float("inf"), -float("inf"), float("nan"), 1e-40, 3e38, 5.0, -10.0, 4.9999995]
BOUNDS = torch.arange(-10, 11, 5.0)

# name -> (function of x and ids, each [batch, COUNT], the nodes of the best file written by hand)
CHAINS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "hashes": (lambda x, ids: torch.stack([(ids[:, n] * 2654435761 + n) % (7 + n) for n in range(COUNT)], 1), 3),
    "truncated": (lambda x, ids: torch.stack([torch.fmod(ids[:, n], 3 + n) for n in range(COUNT)], 1), 1),
    "buckets": (
        lambda x, ids: torch.stack([(x[:, n, None] > BOUNDS + n).sum(1) for n in range(COUNT)], 1),
        4,
    ),
    "buckets of torch": (
        lambda x, ids: torch.stack(
            [torch.bucketize(x[:, n].contiguous(), BOUNDS[n // 2 :] + n) for n in range(COUNT)], 1
        ),
        5,
    ),
    "buckets to the right": (
        lambda x, ids: torch.stack([torch.bucketize(x[:, n], BOUNDS[: n % 5 + 1], right=True) for n in range(6)], 1),
        5,
    ),
    "one bucket": (lambda x, ids: torch.bucketize(x, BOUNDS, right=True), 5),
    "indicators": (
        lambda x, ids: torch.cat([(ids[:, n, None] == torch.arange(5) + n).float() for n in range(COUNT)], 1),
        4,  # with reshapes: a gather that repeats each column takes ONNX Runtime longer
    ),
    "some hashed, some not": (
        lambda x, ids: torch.stack([(ids[:, n] * 31 + 7 if n % 3 else ids[:, n]) % (7 + n) for n in range(COUNT)], 1),
        3,
    ),
    "scaled": (lambda x, ids: torch.stack([x[:, n] * (n + 2) + (n + 1) for n in range(COUNT)], 1), 2),
    "clipped": (lambda x, ids: torch.cat([x[:, n : n + 1].clamp(-1, 2) for n in range(COUNT)], 1), 1),
    "clipped by bounds of their own": (
        lambda x, ids: torch.cat([x[:, n : n + 1].clamp(min=n - 2.5, max=n + 1.5) for n in range(COUNT)], 1),
        2,
    ),
    "clipped by bounds of which one is zero": (
        lambda x, ids: torch.cat([x[:, n : n + 1].clamp(min=float(n - 2), max=n + 1.5) for n in range(COUNT)], 1),
        3,
    ),
    "one-hots": (
        lambda x, ids: torch.cat([F.one_hot(ids[:, n] % 5, 5).float() for n in range(COUNT)], 1),
        5,
    ),
    "clipped remainders": (
        lambda x, ids: torch.stack([(ids[:, n] % (7 + n)).clamp(n - 2, n + 2) for n in range(COUNT)], 1),
        3,
    ),
    "chosen": (
        lambda x, ids: torch.stack([torch.where(x[:, n] > n, x[:, n], x[:, n] * 2) for n in range(COUNT)], 1),
        3,
    ),
    "crossed": (
        lambda x, ids: torch.stack([(ids[:, n] * 31 + ids[:, n + 1]) % (100 + n) for n in range(COUNT - 1)], 1),
        5,
    ),
    "shifted, but for the first": (
        lambda x, ids: torch.stack([x[:, n].abs() - n if n else x[:, n].abs() for n in range(COUNT)], 1),
        2,
    ),
    "logarithms": (lambda x, ids: torch.stack([torch.log1p(x[:, n].abs()) for n in range(COUNT)], 1), 3),
}


class Spelled(nn.Module):
    """A chain as a module that needs both of its inputs."""

    def __init__(self, spell: Callable[..., Tensor]) -> None:
        super().__init__()
        self.spell = spell

    def forward(self, *args: Tensor) -> Any:
        x, ids = args
        return self.spell(x, ids), x.sum() + ids.sum()


@functools.cache
def files(name: str, dynamo: bool) -> tuple[bytes, bytes, recopt.Optimized]:
    """The file as exported and as rewritten."""
    args = (torch.randn(BATCH, COUNT), torch.randint(0, 100, (BATCH, COUNT)))
    file = to_onnx(Spelled(CHAINS[name][0]), args, dynamo)
    result = recopt.optimize(onnx.load_from_string(file), target="portable")
    assert not result.report.undone
    return file, result.to_proto().SerializeToString(), result


def behind(result: recopt.Optimized) -> int:
    """How many nodes the first output needs."""
    return result.host.tap([result.host.outputs[0]]).count_nodes()


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_there_is_one_chain(name: str, dynamo: bool) -> None:
    result = files(name, dynamo)[2]
    assert result.report.counts()["stack-columns"] >= 1
    assert behind(result) <= CHAINS[name][1], [n.op for n in result.host.nodes]


def drawn(data: st.DataObject) -> tuple[np.ndarray, np.ndarray]:
    """x and ids of up to three rows."""
    batch = data.draw(st.integers(0, 3))
    count = batch * COUNT
    numbers = data.draw(st.lists(st.sampled_from(SPECIAL), min_size=count, max_size=count))
    whole = data.draw(st.lists(st.integers(*INT64), min_size=count, max_size=count))
    return np.array(numbers, np.float32).reshape(batch, COUNT), np.array(whole, np.int64).reshape(batch, COUNT)


def check(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    if name == "logarithms":  # a vector of a row and one of a column end at other lanes: one ulp
        np.testing.assert_allclose(found, expected, rtol=2e-7)
    elif found.dtype.kind == "f":  # which NaN it is may differ
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(np.signbit(found) & ~np.isnan(found), np.signbit(expected) & ~np.isnan(expected))
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", CHAINS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_nothing_changes(name: str, dynamo: bool, data: st.DataObject) -> None:
    file, rewritten, _ = files(name, dynamo)
    args = drawn(data)
    expected, found = (run_onnx(f, args)[0] for f in (file, rewritten))
    check(name, found, expected)


@functools.cache
def program(name: str) -> tuple[nn.Module, recopt.Optimized]:
    """The module and what torch runs of it."""
    module = Spelled(CHAINS[name][0]).eval()
    args = (torch.randn(BATCH, COUNT), torch.randint(0, 100, (BATCH, COUNT)))
    return module, recopt.optimize(to_program(module, args))


@pytest.mark.parametrize("name", CHAINS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_torch_has_one_chain_too(name: str, data: st.DataObject) -> None:
    module, result = program(name)
    assert not result.report.undone
    if name != "one bucket":
        assert result.report.counts()["stack-columns"] >= 1
        assert result.report.nodes_after < result.report.nodes_before / 1.7
    args = tuple(map(torch.from_numpy, drawn(data)))
    check(name, result(*args)[0].numpy(), module(*args)[0].numpy())


def test_two_chains_that_differ_stay_two() -> None:
    def spell(x: Tensor, ids: Tensor) -> Tensor:
        return torch.stack([ids[:, 0] % 7, torch.fmod(ids[:, 1], 7)], 1)

    file = to_onnx(Spelled(spell), (torch.randn(BATCH, COUNT), torch.randint(0, 9, (BATCH, COUNT))), dynamo=False)
    result = recopt.optimize(onnx.load_from_string(file), target="portable")
    assert "stack-columns" not in result.report.counts()


@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
def test_columns_that_are_read_again_are_computed_once(target: str) -> None:
    """Ids of lookups are cast one by one, and all columns once more."""
    tables = [torch.randn(20 + n, 4) for n in range(4)]

    def spell(x: Tensor, ids: Tensor) -> Tensor:
        looked_up = [F.embedding(x[:, n].long(), table) for n, table in enumerate(tables)]
        whole = x.long()
        return torch.cat([*looked_up, torch.sin(whole.float()), (whole % 7).float()], 1)

    args = torch.rand(BATCH, COUNT) * 20, torch.randint(0, 9, (BATCH, COUNT))
    file = to_onnx(Spelled(spell), args, dynamo=False)
    result = recopt.optimize(onnx.load_from_string(file), target=target)
    casts = [n for n in result.host.nodes if n.op == "Cast" and n.outputs[0].dtype == "int64"]
    assert [n.inputs[0].name for n in casts] == [result.host.inputs[0].name]
    for batch in (0, 1, 5):
        feed = (np.random.default_rng(batch).random((batch, COUNT), np.float32) * 20, np.ones((batch, COUNT), np.int64))
        expected, found = (run_onnx(f, feed)[0] for f in (file, result.to_proto().SerializeToString()))
        np.testing.assert_allclose(found, expected, rtol=1.3e-6, atol=1e-5)


# ONNX Runtime answers these otherwise for one int64 than for two beside each other; Clip takes one bound
ONE = torch.tensor(1)
ALONE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "clips": lambda x, ids: torch.stack([ids[:, n].clamp(0, 5) for n in range(COUNT)], 1),
    "signs": lambda x, ids: torch.stack([torch.sign(ids[:, n]) for n in range(COUNT)], 1),
    "powers": lambda x, ids: torch.stack([ids[:, n] ** 2 for n in range(COUNT)], 1),
    "a join": lambda x, ids: torch.cat([torch.maximum(ids[:, :1], ONE), torch.maximum(ids[:, 1:2] * 3, ONE)], 1),
    "a join of clips": lambda x, ids: torch.cat([(ids[:, :2] % 5).clamp(min=1), ((ids[:, 2:4] + 3) % 7).clamp(2)], 1),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_large_whole_numbers_need_alone_stays_alone(name: str) -> None:
    args = torch.zeros(1, COUNT), torch.full((1, COUNT), 2**31 + 1)
    file = to_onnx(Spelled(ALONE[name]), args, dynamo=True)
    rewritten = recopt.optimize(onnx.load_from_string(file), target="ort-cpu").to_proto().SerializeToString()
    expected, found = (run_onnx(f, tuple(a.numpy() for a in args))[0] for f in (file, rewritten))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["int64", "float"])
def test_columns_taken_from_a_constant(kind: str) -> None:
    """Columns that become k - x beside others that stay as they are: k - x leaves x for no k."""
    taken = "c0 = Sub(k, x0)  c1 = Sub(x1, k)  c2 = Sub(x2, k)  c3 = Sub(x3, k)  y = Concat<axis = 1>(c0, c1, c2, c3)"
    text = f"""<ir_version: 9, opset_import: ["": 17]>
    g ({kind}[n, 4] x) => ({kind}[n, 4] y) <int64[4] one = {{1, 1, 1, 1}}, {kind} k = {{5}}>
    {{ x0, x1, x2, x3 = Split<axis = 1>(x, one)  {taken} }}"""
    model = onnx.parser.parse_model(text)
    found = recopt.optimize(model, target="portable", verify="none").to_proto()
    x = np.arange(12).reshape(3, 4).astype("int64" if kind == "int64" else "float32")
    (now,), (then,) = (run_onnx(m.SerializeToString(), (x,)) for m in (found, model))
    np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize(("count", "search"), [(9, False), (40, True)])
@pytest.mark.parametrize("right", [False, True])
def test_few_edges_are_compared(count: int, search: bool, right: bool) -> None:
    """Many are searched for; each column has edges of its own, and as many as it likes."""
    edges = [torch.linspace(-5, 5, count - n) for n in range(COUNT)]

    class Buckets(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([torch.bucketize(x[:, n], e, right=right) for n, e in enumerate(edges)], 1)

    model, x = Buckets(), torch.tensor(SPECIAL * COUNT).reshape(COUNT, -1).t().contiguous()
    fast = recopt.optimize(model, (x,))
    assert ("searchsorted" in fast.model.code) == search
    assert torch.equal(fast(x), model(x))
    assert torch.equal(fast(x[:0]), model(x[:0]))
