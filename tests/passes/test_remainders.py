"""Remainders by constants without a division: every whole number's answer is that of Mod."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from spellings.export import run_onnx

import recopt

HEAD = '<ir_version: 9, opset_import: ["": 18]>'
TESTED = "r = Mod(x, d)  e = Equal(r, zero)"
# name -> (divisors, operators that follow x, the outputs, the operators that are left)
CASES: dict[str, tuple[list[int], str, str, set[str]]] = {
    "divides": ([3, 5, 641, 2**31 - 1], TESTED, "bool[n, 4] e", {"Mul", "Add", "Less"}),
    "does not divide": ([7, 9, 255, 3], TESTED + " o = Not(e)", "bool[n, 4] o", {"Mul", "Add", "Greater"}),
    "of C": ([3, 5, 7, 9], TESTED.replace("(x", "<fmod = 1>(x"), "bool[n, 4] e", {"Mod", "Equal"}),
    "by one": ([3, 5, 7, 1], TESTED, "bool[n, 4] e", {"Mod", "Equal"}),
    "by even numbers": ([3, 5, 7, 6], TESTED, "bool[n, 4] e", {"Mod", "Equal"}),
    "by negative numbers": ([3, 5, 7, -9], TESTED, "bool[n, 4] e", {"Mod", "Equal"}),
    "read elsewhere": ([3, 5, 7, 9], TESTED, "bool[n, 4] e, {}[n, 4] r", {"Mod", "Equal"}),
    "compared with another": ([3, 5, 7, 9], "r = Mod(x, d)  e = Equal(r, d)", "bool[n, 4] e", {"Mod", "Equal"}),
    "low bits": ([1, 2, 16, 2**30], "r = Mod(x, d)", "{}[n, 4] r", {"BitwiseAnd"}),
    "low bits of C": ([1, 2, 16, 2**30], "r = Mod<fmod = 1>(x, d)", "{}[n, 4] r", {"Mod"}),
    "by their negatives": ([-4, -2, 16, 4], "r = Mod(x, d)", "{}[n, 4] r", {"Mod"}),
}


@pytest.mark.parametrize("dtype", ["int64", "int32"])
@pytest.mark.parametrize("name", CASES)
def test_the_answers_are_the_same(name: str, dtype: str) -> None:
    divisors, body, outputs, left = CASES[name]
    text = (
        f"{HEAD} g ({dtype}[n, 4] x) => ({outputs.format(dtype)}) <{dtype}[4] d = {{{', '.join(map(str, divisors))}}}, "
    )
    file = onnx.parser.parse_model(text + f"{dtype} zero = {{0}}> {{ {body} }}")
    result = recopt.optimize(file, target="ort-cpu")
    assert {n.op for n in result.host.nodes} == left and not result.report.undone
    info = np.iinfo(dtype)
    drawn = np.random.default_rng(0).integers(info.min, info.max, (2000, 4), dtype, endpoint=True)
    ends = np.array([[info.min], [info.min + 1], [-1], [0], [1], [info.max - 1], [info.max]], dtype)
    d = np.array(divisors, dtype)
    multiples = drawn // d * d  # the largest and smallest among them
    bounds = np.array([info.max // abs(d) * d, -(info.max // abs(d)) * d])
    x = np.concatenate([drawn, np.repeat(ends, 4, 1), multiples, multiples + 1, bounds, bounds + 1, drawn[:0]])
    for found, expected in zip(
        run_onnx(result.to_proto().SerializeToString(), (x,)), run_onnx(file.SerializeToString(), (x,)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("width", "left"), [(4, {"Mul", "Add", "Less"}), (3, {"Mod", "Equal"})])
def test_a_portable_file_has_an_operator_more_where_that_saves_much(width: int, left: set[str]) -> None:
    text = f"(int64[n, {width}] x) => (bool[n, {width}] e) <int64 d = {{5}}, int64 zero = {{0}}>"
    result = recopt.optimize(onnx.parser.parse_model(f"{HEAD} g {text} {{ {TESTED} }}"), target="portable")
    assert {n.op for n in result.host.nodes} == left
