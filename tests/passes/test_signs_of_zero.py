"""Zeros keep their signs: of columns in files as ONNX Runtime gives them, and where a bound is -0.0."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from spellings.export import run_onnx
from torch import Tensor, nn

import recopt

SPECIAL = np.array([0.0, -0.0, 0.0, -0.0, 1, -1, 2, 0.25, np.nan, np.inf, -np.inf], np.float32)
# operators of one column x, with z for a zero or a small number
STEPS = (
    "{y} = Max({x}, {z})", "{y} = Max({z}, {x})", "{y} = Min({x}, {z})", "{y} = Min({z}, {x})", "{y} = Clip({x}, {z})",
    "{y} = Relu({x})", "{y} = Neg({x})", "{y} = Abs({x})", "{y} = Mul({x}, {z})",
    "l{y} = Less({x}, {z})  {y} = Where(l{y}, {x}, {z})", "l{y} = Greater({x}, {z})  {y} = Where(l{y}, {z}, {x})",
    "l{y} = Less({x}, {z})  n{y} = Not(l{y})  {y} = Where(n{y}, {x}, {z})",
)  # fmt: skip
NUMBERS = (0.0, -0.0, 1.0, -1.0)


def columns(seed: int) -> onnx.ModelProto:
    """Columns of x [n, 5 or 13], each through operators of its own, beside each other."""
    rng = random.Random(seed)
    width, steps = rng.choice([5, 13]), rng.choices(STEPS, k=rng.choice([1, 2, 3]))
    body = ""
    for n in range(width):
        body += f"c{n} = Slice(x, p{n}, p{n + 1}, p1)  "
        chosen = steps if width == 5 else [steps[n % len(steps)]]
        for m, step in enumerate(chosen):
            x, z = f"c{n}" if m == 0 else f"c{n}s{m - 1}", f"z{rng.choice([0, 0, 1, 2, 3])}"
            body += step.format(x=x, y=f"c{n}s{m}", z=z) + "  "
    parts = ", ".join(f"c{n}s{len(chosen) - 1}" for n in range(width))
    places = ", ".join(f"int64[1] p{n} = {{{n}}}" for n in range(width + 1))
    text = f"(float[n, {width}] x) => (float[n, {width}] y) <{places}> {{ {body} y = Concat <axis = 1> ({parts}) }}"
    model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 17]> g ' + text)
    model.graph.initializer.extend(numpy_helper.from_array(np.float32(v), f"z{n}") for n, v in enumerate(NUMBERS))
    return model


@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
@pytest.mark.parametrize("seed", range(10))
def test_of_columns(seed: int, target: str) -> None:
    file = columns(seed)
    result = recopt.optimize(file, target=target)
    width = file.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    for rows in (0, 1, 33):
        x = np.random.default_rng(seed).choice(SPECIAL, (rows, width))
        found, expected = (run_onnx(m.SerializeToString(), (x,))[0] for m in (result.to_proto(), file))
        np.testing.assert_array_equal(found, expected)
        real = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(found)[real], np.signbit(expected)[real])


@pytest.mark.parametrize("body", ["y = Clip(q, z)", "y = Max(z, q)", "l = Less(q, p)  y = Where(l, z, q)"])
def test_of_a_bound_after_a_product_in_a_file(body: str) -> None:
    constants = "float[2, 2] w = {1, 2, 3, 4}, float p = {0}"
    text = f"(float[n, 2] x) => (float[n, 2] y) <{constants}> {{ q = MatMul(x, w)  {body} }}"
    file = onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 17]> g ' + text)
    file.graph.initializer.append(helper.make_tensor("z", onnx.TensorProto.FLOAT, [], [-0.0]))
    x = np.array([[-1, -2], [1, 2], [3, -4]], np.float32)
    rewritten = recopt.optimize(file, target="ort-cpu").to_proto()
    found, expected = (run_onnx(m.SerializeToString(), (x,))[0] for m in (rewritten, file))
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


class Bounded(nn.Module):
    """A function of a product."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(3, 5), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


@pytest.mark.parametrize(
    "function", [lambda q: q.clamp(min=-0.0), lambda q: q.clamp(max=-0.0), lambda q: torch.where(q < 0, -0.0, q)]
)
def test_of_a_bound_after_a_product_in_torch(function: Callable[[Tensor], Tensor]) -> None:
    module, x = Bounded(function).eval(), torch.randn(16, 3)
    with torch.no_grad():
        assert torch.equal(torch.signbit(recopt.optimize(module, (x,))(x)), torch.signbit(module(x)))
