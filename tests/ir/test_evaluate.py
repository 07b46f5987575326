"""The evaluator at the edges: large scores, guarded reads, symbols, dtypes."""

from __future__ import annotations

import numpy as np
import pytest

from recopt.ir import ops, tensor
from recopt.ir.evaluate import evaluate
from recopt.ir.functions import FUNCTIONS
from recopt.ir.ops import result_type

from .pairs import N, Source, agree, source, value

SCORES = np.array([[1000.0, 999.0, -1000.0], [-5e4, -5e4, -5e4 - 1], [0.0, -np.inf, 3.0]])
S = tensor.leaf(Source("s", SCORES.shape, SCORES), SCORES.shape, "float32")


def test_softmax_of_large_scores_does_not_overflow() -> None:
    stable = np.exp(SCORES - SCORES.max(1, keepdims=True))
    agree((ops.softmax(S, 1), stable / stable.sum(1, keepdims=True)))
    v = source("v", 3, 4)
    agree((ops.matmul(ops.softmax(S, 1), v), stable / stable.sum(1, keepdims=True) @ value(v)))


def test_numbers_wrap_around_as_data_does() -> None:
    ids = source("ids", N, dtype="int64", high=50)
    agree((ops.times(ops.times(ids, 2**62 + 1), 4), 4 * value(ids)))
    agree((ops.times(ops.times(ids, -(2**63)), -1), value(ids) * np.int64(-(2**63))))


def test_a_triangle_of_infinities_is_zero_elsewhere() -> None:
    causal = np.array([[0, -np.inf, -np.inf], [0, 0, -np.inf], [0, 0, 0]])
    infinite = tensor.full((3, 3), -np.inf, "float32")
    agree((ops.triangle(infinite, 1, lower=False), causal))
    agree((ops.total(ops.triangle(infinite, 1, lower=False), [1]), causal.sum(1)))


def test_padding_by_infinity_leaves_the_inside() -> None:
    rows = np.pad(SCORES, ((0, 0), (2, 1)), constant_values=-np.inf)
    agree((tensor.pad(S, 1, 2, 1, -np.inf), rows))
    agree((tensor.pad(S, 1, 2, 0, -np.inf), rows[:, :-1]))


def test_log_of_summed_exponentials_does_not_overflow() -> None:
    agree((ops.pointwise("log", ops.total(ops.pointwise("exp", S), [1])), np.logaddexp.reduce(SCORES, 1)))


def test_a_sigmoid_of_large_scores_does_not_overflow() -> None:
    agree((ops.pointwise("sigmoid", S), 1 / (1 + np.exp(-np.clip(SCORES, -700, 700)))))


def test_an_overflow_of_the_spelling_stays() -> None:
    """exp(x) / (1 + exp(x)) is NaN where exp overflows: another meaning than sigmoid's."""
    e = ops.pointwise("exp", S)
    assert np.isnan(value(ops.divide(e, ops.add(e, tensor.scalar(1, "float32")))))[0, 0]


def test_a_read_outside_of_its_tensor_is_an_error_unless_guarded() -> None:
    table, ids = source("t", 3, 2), source("ids", 4, dtype="int64", high=50)
    with pytest.raises(IndexError, match=r"t\[ids"):
        value(ops.take(table, ids))
    hot = ops.matmul(ops.one_hot(ids, 3, "float32"), table)
    picked = value(ids)
    agree((hot, np.where(picked[:, None] < 3, value(table)[np.minimum(picked, 2)], 0)))


def test_the_index_of_a_guard_may_lie_outside_where_another_guard_is_0() -> None:
    x, u, v = source("x", 2), source("u", 3), source("v", 4)
    rest, order = source("rest", 4, dtype="int64", high=7), source("order", 9, dtype="int64", high=6)
    found = ops.take(tensor.concat([x, ops.take(tensor.concat([u, v], 0), rest)], 0), order)
    rows = np.concatenate([value(u), value(v)])[value(rest)]
    agree((found, np.concatenate([value(x), rows])[value(order)]))


def test_comparisons_give_bool_in_every_spelling() -> None:
    x, y = source("x", N, 6), source("y", N, 6)
    for name, plain in (("gt", np.greater), ("ge", np.greater_equal), ("ne", np.not_equal), ("lt", np.less)):
        found = ops.pointwise(name, x, y)
        assert found.dtype == "bool"
        np.testing.assert_array_equal(value(found), plain(value(x), value(y)))
        count = ops.total(ops.cast(found, "int64"), [1])
        np.testing.assert_array_equal(value(count), plain(value(x), value(y)).sum(1))


def test_a_product_over_an_axis_that_is_not_read_is_a_power() -> None:
    x = source("x", N, 6)
    wide = tensor.expand(tensor.unsqueeze(x, 1), [N, 3, 6])
    agree((ops.reduction("prod", wide, [1]), value(x) ** 3))
    agree((ops.reduction("prod", wide, [0, 1]), (value(x) ** 3).prod(0)))


def test_sizes_take_their_numbers_from_symbols() -> None:
    x = source("x", N, 6)
    assert evaluate(tensor.full([N, 2], N, "int64"), lambda leaf: value(x), {"N": 9}).tolist() == [[9, 9]] * 9
    with pytest.raises(KeyError):
        evaluate(x, lambda leaf: value(x), {})


@pytest.mark.parametrize(
    ("dtypes", "wanted"),
    [
        (("int64", "float16"), "float16"),
        (("float16", "bfloat16"), "float32"),
        (("uint8", "int8"), "int16"),
        (("bool", "int32"), "int32"),
        (("bool", "bool"), "bool"),
        (("float32", "float64"), "float64"),
    ],
)
def test_promotion(dtypes: tuple[str, str], wanted: str) -> None:
    assert result_type(*(tensor.scalar(1, d) for d in dtypes)) == wanted


def test_activations_at_infinities_and_nan() -> None:
    points = np.array([-np.inf, -1e4, -1.0, 0.0, 1.0, 1e4, np.inf, np.nan])
    for name in (
        "relu",
        "gelu",
        "gelu_tanh",
        "silu",
        "mish",
        "softplus",
        "elu",
        "selu",
        "hardswish",
        "sigmoid",
        "tanh",
    ):
        with np.errstate(all="ignore"):
            found = FUNCTIONS[name](points)
        assert found[-2] == (1.0 if name in ("sigmoid", "tanh") else np.inf), name
        assert np.isnan(found[-1]), name
