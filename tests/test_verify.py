"""What counts as agreement, and the inputs on which models are compared."""

from __future__ import annotations

import numpy as np
import pytest
from models import onnx_tower

from recopt.load import host_of
from recopt.verify import TOLERANCE, compare, feeds, index_limits, verify_model

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
