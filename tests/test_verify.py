"""What counts as agreement, and the inputs on which models are compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import onnx_tower
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import recopt
from recopt.feeds import bounds_of_bags, feeds, in_order, index_limits
from recopt.hosts.fx import FxHost
from recopt.load import host_of
from recopt.verify import TOLERANCE, compare, rounding, verify_model

ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_the_edge_of_the_tolerance(dtype: str) -> None:
    rtol, atol = TOLERANCE[dtype]
    wanted = np.ones(4)
    assert compare(wanted + 0.99 * (rtol + atol), wanted, dtype).ok
    assert not compare(wanted + 1.01 * (rtol + atol), wanted, dtype).ok
    assert compare(wanted + 0.1, wanted, dtype, tolerance=0.06).ok
    assert not compare(wanted + 0.1, wanted, dtype, tolerance=0.04).ok


def test_nan_and_infinity_agree_with_themselves_only() -> None:
    odd = np.array([np.nan, np.inf, -np.inf, 1.0])
    assert compare(odd, odd, "float32").ok
    for n, other in ((0, 1.0), (1, -np.inf), (1, 1e30), (3, np.nan), (3, np.inf)):
        changed = odd.copy()
        changed[n] = other
        assert not compare(changed, odd, "float32").ok
        assert not compare(odd, changed, "float32").ok
        assert compare(changed, odd, "float32").error == np.inf


def test_shapes_and_integers_are_exact() -> None:
    assert not compare(ONES, ONES[:1], "float32").ok
    assert "shape" in compare(ONES, ONES[:1], "float32").reproducer
    assert compare(np.arange(3), np.arange(3), "int64").ok
    assert not compare(np.arange(3) + 1, np.arange(3), "int64").ok
    assert compare(ONES[:0], ONES[:0], "float32").ok


def test_feeds_keep_examples_and_stretch_them_to_other_batches() -> None:
    host = host_of(onnx_tower(1))
    limits = index_limits(host)
    example = np.arange(32, dtype=np.float32).reshape(2, 16)
    (same,) = feeds(host, 2, [example], limits)
    assert same is example
    (wider,) = feeds(host, 3, [example], limits)
    np.testing.assert_array_equal(wider, example[[0, 1, 0]])
    (random,) = feeds(host, 3, None, limits, seed=1)
    assert random.shape == (3, 16) and random.dtype == np.float32
    np.testing.assert_array_equal(random, feeds(host, 3, None, limits, seed=1)[0])
    assert not np.array_equal(random, feeds(host, 3, None, limits, seed=2)[0])


def test_a_model_that_differs_is_told_with_its_output_and_shapes() -> None:
    one, two = host_of(onnx_tower(1)), host_of(onnx_tower(2))
    inputs = [[np.ones((n, 16), np.float32)] for n in (1, 3)]
    assert verify_model(one, one.clone(), inputs).ok
    verdict = verify_model(one, two, inputs)
    assert not verdict.ok and "output 0 (relu0)" in verdict.reproducer and "16)" in verdict.reproducer


def test_ids_of_stacked_tables_leave_room_for_their_offsets() -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["ids", "offsets"], ["rows"]), helper.make_node("Gather", ["table", "rows"], ["y"])],
        "stacked",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 4])],
        [
            numpy_helper.from_array(np.array([0, 7, 12]), "offsets"),
            numpy_helper.from_array(np.ones((32, 4), np.float32), "table"),
        ],
    )
    host = host_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    assert index_limits(host) == {host.inputs[0]: 20}


@pytest.mark.parametrize("last", [False, True])
def test_bounds_of_bags_go_up_and_end_with_the_ids(last: bool) -> None:
    """In torch the maximum of bags whose last bound is no end of the ids writes past its result."""
    bag = nn.EmbeddingBag(20, 4, mode="max", include_last_offset=last).eval()
    args = torch.arange(5), torch.tensor([0, 2, 5] if last else [0, 2, 3])
    dynamic = {"input": {0: torch.export.Dim.AUTO}, "offsets": {0: torch.export.Dim.AUTO}}
    host = host_of(torch.export.export(bag, args, dynamic_shapes=dynamic))
    bounds = bounds_of_bags(host)
    ids, offsets = (np.array(n) for n in ([3, 1, 2, 9], [7, 3, 1, 2]))
    found = in_order([ids, offsets], host, bounds, 4)
    assert found is not None
    assert found[1].tolist() == [0, 2, 3, 4] and found[0] is ids
    assert in_order([ids, np.array([1, 2])], host, bounds, 4)[1].tolist() == ([0, 4] if last else [0, 2])  # type: ignore[index]  # there are bags
    alone = in_order([ids[:1], offsets[:1]], host, bounds, 1)
    assert alone is None if last else alone is not None and alone[1].tolist() == [0]


def test_rounding_is_no_farther_from_float64_than_the_original() -> None:
    exact = np.array([1.0, 2.0, 3.0])
    half = np.array([1.001, 1.999, 3.002], np.float32)
    near, far = np.array([1.003, 2.0, 3.0]), np.array([1.005, 2.0, 3.0])
    assert rounding(near, half, exact) is not None
    assert rounding(far, half, exact) is None
    assert rounding(np.array([np.nan, 2.0, 3.0]), half, exact) is None
    assert rounding(near[:2], half, exact) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_folding_in_a_narrow_type_is_judged_by_float64(dtype: torch.dtype) -> None:
    """BatchNorm's constants round otherwise once they are in the weight, and no less exactly."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(24, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 40))
    module[1].running_mean.normal_()
    module[1].running_var.uniform_(0.5, 2)
    result = recopt.optimize(module.eval().to(dtype), (torch.randn(4, 24, dtype=dtype),))
    assert not result.report.undone
    assert all(n.op == "recopt.linear.default" for n in result.host.nodes)


def test_half_precision_in_a_file_is_judged_by_what_it_rounds() -> None:
    """ONNX Runtime rounds in other places once nodes are one operator."""
    names = {"q": ["b", 9, 8], "k": ["b", 12, 8], "v": ["b", 12, 8], "y": ["b", 9, 8]}
    q, k, v, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT16, s) for n, s in names.items())
    nodes = [
        helper.make_node("Transpose", ["k"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "t"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "attention", [q, k, v], [y])
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    host, half = host_of(file), np.random.default_rng(0).standard_normal((3, 12, 8)).astype(np.float16)
    (wide,) = host.run_in_float64([half[:, :9], half, half]) or [half]
    assert wide.dtype == np.float32
    np.testing.assert_allclose(wide, host.run([half[:, :9], half, half])[0].astype(np.float32), atol=5e-3)
    result = recopt.optimize(file, target="recopt")
    assert not result.report.undone and result.report.counts() == {"attention": 1}


def test_a_graph_of_several_float_types_is_not_widened() -> None:
    """What it rounds to is part of what it means."""

    class Rounds(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.half().float()

    x = torch.randn(3, 4)
    host = FxHost.capture(Rounds(), (x,))
    assert host.run_in_float64([x.numpy()]) is None
    plain = FxHost.capture(nn.Linear(4, 5), (x,))
    (wide,) = plain.run_in_float64([x.numpy()]) or [np.zeros(0)]
    assert wide.dtype == np.float64


def test_wide_islands_in_a_narrow_graph_are_rounding() -> None:
    """A softmax in float32 between float16 tensors: every rounding is to the type that the outputs have."""

    class Island(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x.float(), -1).half() * x

    x = torch.randn(3, 4).half()
    (wide,) = FxHost.capture(Island(), (x,)).run_in_float64([x.numpy()]) or [np.zeros(0)]
    assert wide.dtype == np.float64
    np.testing.assert_allclose(wide, torch.softmax(x.double(), -1) * x.double())


class Noisy(torch.nn.Module):
    """x and a little noise, so small that two runs agree within the tolerance."""

    def __init__(self, moved: float) -> None:
        super().__init__()
        self.moved = moved

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.moved + 1e-6 * torch.rand_like(x)


def test_noise_below_the_tolerance_is_noise() -> None:
    before, after = (host_of(Noisy(moved), (torch.ones(4, 3),)) for moved in (0.0, 1e-3))
    verdict = verify_model(before, after, [[np.ones((4, 3), np.float32)]])
    assert verdict.random == tuple(v.name for v in before.outputs)
