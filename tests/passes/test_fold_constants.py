"""Constants that nodes compute and sizes that are known are initializers; dropout and casts that do nothing go."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from spellings.export import run_onnx

import recopt

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
SIZES = "s = Shape(x) a = Gather(s, at) m = Gather(s, middle) p = ReduceProd<keepdims = 1>(m) e = Gather(s, last) "
# name -> (what computes y from x [B, S, T, 8], the operators that are left)
CASES: dict[str, tuple[str, str]] = {
    "a chain": ("c = Unsqueeze(w, at) d = Neg(c) y = Add(x, d)", "Add"),
    "a range of rows": ("r = Range(zero, three, one) y = Gather<axis = 3>(x, r)", "Gather"),
    "a known size": ("s = Shape(x) n = Gather(s, three) f = Cast<to = 1>(n) y = Div(x, f)", "Div"),
    "an open size": ("s = Shape(x) n = Gather(s, one) f = Cast<to = 1>(n) y = Div(x, f)", "Shape Gather Cast Div"),
    "a merged reshape": (
        f"{SIZES} q = Mul(a, p) c = Concat<axis = 0>(q, e) y = Reshape(x, c)",
        "Reshape",
    ),
    "a reshape that an empty batch forbids": (
        f"{SIZES} c = Concat<axis = 0>(a, p, e) y = Reshape(x, c)",
        "Shape Gather Gather ReduceProd Concat Reshape",
    ),
    "weights of few bits": (
        "q = QuantizeLinear(w, half) c = DequantizeLinear(q, half) y = Add(x, c)",
        "QuantizeLinear DequantizeLinear Add",
    ),
    "a large one": ("c = Expand(w, large) l = Gather<axis = 0>(c, three) y = Add(x, l)", "Add"),
    "dropout": ("d = Dropout(x) y = Relu(d)", "Relu"),
    "the same type": ("c = Cast<to = 1>(x) y = Relu(c)", "Relu"),
}


@pytest.mark.parametrize("name", CASES)
def test_constants_are_folded(name: str) -> None:
    body, left = CASES[name]
    constants = (
        "int64 zero = {0}, int64 one = {1}, int64 three = {3}, int64[1] at = {0}, int64[2] middle = {1, 2}, "
        "int64[1] last = {3}, int64[2] large = {50000, 8}, float half = {0.5}, float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}"
    )
    file = onnx.parser.parse_model(f"{HEAD} g (float[B, S, T, 8] x) => (float y) <{constants}> {{ {body} }}")
    result = recopt.optimize(onnx.shape_inference.infer_shapes(file))
    assert sorted(n.op for n in result.host.nodes) == sorted(left.split()) and not result.report.undone
    for shape in ((1, 3, 2, 8), (4, 5, 3, 8), (0, 3, 2, 8))[: 2 if "forbids" in name else 3]:  # ORT writes -1 there
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        after, before = (run_onnx(m.SerializeToString(), (x,)) for m in (result.to_proto(), file))
        np.testing.assert_array_equal(after[0], before[0])
