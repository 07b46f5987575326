"""ONNX models that look like linear + bias + activation and are not, or hold one that must stay right."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx

from .onnx_build import K, N, T, build


@dataclass(frozen=True)
class NearMiss:
    """A model that looks like a linear and differs; `reason` is a word of the refusal, "" if it must only stay right.

    A part of it may still be fused. Where `random`, the numbers of two runs differ, and the operator must stay.
    """

    model: Callable[[], onnx.ModelProto]
    reason: str = ""
    random: bool = False


def _near(
    body: str,
    y: tuple[Any, ...] = (N,),
    reason: str = "",
    x: tuple[int, ...] = (K,),
    opset: int = 17,
    others: str = "",
    random: bool = False,
) -> NearMiss:
    return NearMiss(functools.partial(build, body, opset, x, y, False, others), reason, random)


SQUARE: dict[str, Any] = {"x": (K, K), "y": (K, K)}

SPREAD = "u = Unsqueeze (x, i_1)  m = Mul (u, w)"

ONNX_NEAR_MISSES: dict[str, NearMiss] = {
    "bias_widens": _near(
        "h = MatMul (x, wt)  z = Add (h, b_31n)  q = Relu (z)  y = Transpose <perm = [1, 0, 2]> (q)", (3, N), "rank"
    ),
    "bias_widens_by_one": _near("h = MatMul (x, wt)  z = Add (h, b_11n)  q = Relu (z)  y = Squeeze (q, i_0)"),
    "bias_along_rows": _near("h = MatMul (x, wt)  z = Add (h, b_t1)  y = Relu (z)", (T, N), "bias", (T, K)),
    "bias_along_square_rows": _near("h = MatMul (x, square)  r = Unsqueeze (square_b, i_1)  y = Add (h, r)", **SQUARE),
    "bias_is_computed": _near("h = MatMul (x, wt)  r = ReduceMean <axes = [1]> (x)  y = Add (h, r)"),
    "product_returned": _near("h = MatMul (x, wt)  z = Add (h, b)  y = Relu (z)", others=f", float[batch, {N}] h"),
    "sum_returned": _near("h = Gemm (x, wt, b)  y = Relu (h)", others=f", float[batch, {N}] h"),
    "product_read_twice": _near("h = MatMul (x, wt)  z = Add (h, b)  y = Mul (z, h)"),
    "square_00": _near("y = Gemm <alpha = 0.5> (x, square, square_b)", (K,)),
    "square_01": _near("y = Gemm <transB = 1, alpha = 0.5> (x, square, square_b)", (K,)),
    "square_10": _near("t = Transpose <perm = [1, 0]> (x)  y = Gemm <transA = 1> (t, square, square_b)", (K,)),
    "square_11": _near(
        "t = Transpose <perm = [1, 0]> (x)  y = Gemm <transA = 1, transB = 1> (t, square, square_b)", (K,)
    ),
    "square_left": _near("h = MatMul (square, x)  y = Add (h, square_b)", **SQUARE),
    "square_result_transposed": _near(
        "h = MatMul (x, square)  t = Transpose <perm = [0, 2, 1]> (h)  y = Add (t, square_b)", **SQUARE
    ),
    "square_left_gemm": _near(
        "t = Transpose <perm = [1, 0]> (x)  h = Gemm <transA = 1> (square, t)  y = Transpose <perm = [1, 0]> (h)", (K,)
    ),
    "times_itself": _near("t = Transpose <perm = [0, 2, 1]> (x)  h = MatMul (x, t)  y = Relu (h)", (T, T), x=(T, K)),
    "softmax": _near("h = Gemm (x, wt, b)  y = Softmax <axis = 1> (h)"),
    "log_softmax": _near("h = Gemm (x, wt, b)  y = LogSoftmax <axis = 1> (h)"),
    "layer_norm": _near("h = Gemm (x, wt, b)  y = LayerNormalization (h, gamma, beta)"),
    "cumsum": _near("h = MatMul (x, wt)  c = CumSum (h, i_scalar_1)  y = Add (c, b)"),
    "half_product": _near(
        "a = Cast <to = 10> (x)  d = Cast <to = 10> (wt)  h = MatMul (a, d)  f = Cast <to = 1> (h)  y = Add (f, b)",
        reason="dtype",
    ),
    "integer_between": _near(
        "h = MatMul (x, wt)  i = Cast <to = 6> (h)  f = Cast <to = 1> (i)  y = Add (f, b)", reason="dtype"
    ),
    "integer_product": _near(
        "q, s, z = DynamicQuantizeLinear (x)  i = MatMulInteger (q, q_wt, z)  f = Cast <to = 1> (i)  y = Mul (f, s)"
    ),
    "quantised_input": _near(
        "q = QuantizeLinear (x, q_step, q_zero)  d = DequantizeLinear (q, q_step, q_zero)  y = Gemm (d, wt, b)"
    ),
    "sum_over_n": _near(f"{SPREAD}  h = ReduceSum <keepdims = 0> (m, i_1)  y = Relu (h)", (K,)),
    "max_over_k": _near(f"{SPREAD}  h = ReduceMax <axes = [2], keepdims = 0> (m)  y = Add (h, b)"),
    "mean_over_k": _near(f"{SPREAD}  h = ReduceMean <axes = [2], keepdims = 0> (m)  y = Add (h, b)"),
    "conv_of_three": _near("c = Conv <pads = [1, 1]> (x, conv3, b)  y = Relu (c)", (N, T), x=(K, T)),
    "conv_in_groups": _near("c = Conv <group = 4> (x, conv_groups, b)  y = Relu (c)", (N, T), "weight", (K, T)),
    "conv_strided": _near("c = Conv <strides = [2]> (x, conv1, b)  y = Relu (c)", (N, 3), x=(K, T)),
    "conv_padded": _near("c = Conv <pads = [1, 1]> (x, conv1, b)  y = Relu (c)", (N, T + 2), x=(K, T)),
    "conv_padded_auto": _near('c = Conv <auto_pad = "SAME_UPPER"> (x, conv3, b)  y = Relu (c)', (N, T), x=(K, T)),
    "norm_over_time": _near(
        "h = MatMul (x, wt)  y = BatchNormalization (h, t_gamma, t_beta, t_mean, t_var)", (T, N), x=(T, K)
    ),
    "norm_in_training": _near(
        "h = MatMul (x, wt)  y, m, v = BatchNormalization <training_mode = 1> (h, gamma, beta, mean, var)",
        reason="training",
    ),
    "dropout_in_training": _near("h = Gemm (x, wt, b)  y = Dropout (h, half, training)", random=True),
    "noise": _near("h = Gemm (x, wt, b)  r = RandomNormalLike (h)  y = Add (h, r)", random=True),
    "relu_before_bias": _near("h = MatMul (x, wt)  r = Relu (h)  y = Add (r, b)"),
    "clip_by_an_input": _near("h = MatMul (x, wt)  l = ReduceMax <keepdims = 0> (x)  y = Clip (h, zero, l)"),
    "prelu_along_rows": _near("h = MatMul (x, wt)  y = PRelu (h, b_t1)", (T, N), x=(T, K)),
}
