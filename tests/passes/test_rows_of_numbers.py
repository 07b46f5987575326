"""Whole numbers in ONNX: one operator for the pieces of a concat, one-hots that compare as float32."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from spellings.export import run_onnx

import recopt

HEAD = '<ir_version: 9, opset_import: ["": 18]>'
PIECES = "q = Mod(x, d)  s = Mod(y, e)  t = Reshape(s, column)"
# name -> (operators before the concat, its pieces, what is left of Mod)
JOINS = {
    "rows and single columns": (PIECES, "q, t", 1),
    "the number is the dividend": ("q = Mod(d, x)  s = Mod(e, y)  t = Reshape(s, column)", "q, t", 1),
    "number and data change places": ("q = Mod(x, d)  s = Mod(e, y)  t = Reshape(s, column)", "q, t", 2),
    "of C beside Python's": ("q = Mod(x, d)  s = Mod<fmod = 1>(y, e)  t = Reshape(s, column)", "q, t", 2),
    "a piece twice": (PIECES, "q, t, q", 2),
    "a piece of data": (PIECES, "q, t, x", 2),
}
LABELS = 2**24 - 2


def run(file: onnx.ModelProto, *args: np.ndarray) -> np.ndarray:
    return run_onnx(file.SerializeToString(), args)[0]


@pytest.mark.parametrize("name", JOINS)
def test_pieces_of_a_concat_are_one_operator(name: str) -> None:
    body, pieces, left = JOINS[name]
    width = 4 * pieces.count("q") + pieces.count("t") + 4 * pieces.count("x")
    file = onnx.parser.parse_model(
        f"{HEAD} g (int64[n, 4] x, int64[n] y) => (int64[n, {width}] o) <int64[4] d = {{3, -70, 11, 9973}}, "
        f"int64 e = {{5000}}, int64[2] column = {{0, 1}}> {{ {body}  o = Concat<axis = 1>({pieces}) }}"
    )
    result = recopt.optimize(file, target="portable")
    assert Counter(n.op for n in result.host.nodes)["Mod"] == left and not result.report.undone
    drawn = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, (50, 5))
    drawn[drawn == 0] = 1
    for n in (50, 1, 0):
        x, y = drawn[:n, :4].copy(), drawn[:n, 4].copy()
        np.testing.assert_array_equal(run(result.to_proto(), x, y), run(file, x, y))


@pytest.mark.parametrize("dtype", ["int64", "int32"])
@pytest.mark.parametrize(("first", "products"), [(0, 1), (-LABELS - 1, 1), (LABELS, 0)])
def test_a_one_hot_compares_the_same_numbers(first: int, products: int, dtype: str) -> None:
    labels = np.arange(first, first + 4, dtype=dtype)
    file = onnx.parser.parse_model(
        f"{HEAD} g ({dtype}[n, 3, 1] x) => (bool[n, 3, 4] o) <{dtype}[4] labels = {{{', '.join(map(str, labels))}}}> "
        "{ o = Equal(labels, x) }"
    )
    result = recopt.optimize(file, target="ort-cpu")
    assert Counter(n.op for n in result.host.nodes)["MatMul"] == products and not result.report.undone
    info = np.iinfo(dtype)
    near = [int(v) + d for v in (*labels, 2**24, -(2**24), 0) for d in range(-3, 4)]
    x = np.array([*near, info.min, info.max, info.max - 1, info.min + 1], dtype)
    x = x[: len(x) // 3 * 3].reshape(-1, 3, 1)
    np.testing.assert_array_equal(run(result.to_proto(), x), run(file, x))


def test_clips_of_int64_stay() -> None:
    clips = "".join(f"c{n} = Gather<axis = 1>(x, i{n})  k{n} = Clip(c{n}, i0, i{n + 1})  " for n in range(3))
    constants = ", ".join(f"int64 i{n} = {{{n}}}" for n in range(4))
    joined = "".join(f"r{n} = Reshape(k{n}, column)  " for n in range(3)) + "o = Concat<axis = 1>(r0, r1, r2)"
    file = onnx.parser.parse_model(
        f"{HEAD} g (int64[n, 3] x) => (int64[n, 3] o) <{constants}, int64[2] column = {{0, 1}}> {{ {clips}{joined} }}"
    )
    x = np.array([[2**31, 2**31, 2**31], [2**32, -(2**31), 5]] * 4)
    result = recopt.optimize(file, target="ort-cpu")
    assert Counter(n.op for n in result.host.nodes)["Clip"] == 3 and not result.report.undone
    np.testing.assert_array_equal(run(result.to_proto(), x), run(file, x))
