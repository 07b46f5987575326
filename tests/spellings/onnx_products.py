"""Spellings of the affine part as ONNX nodes, each under a ReLU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .onnx_build import ALL, NEW, H, K, N, Row, T, w


def _image(size: int) -> dict[str, Any]:
    return {"x": (K, size, size), "axis": 1}


def _times_scale() -> Tensor:
    return w("w") * w("scale")[:, None]


def _normed() -> dict[str, Any]:
    def scale() -> Tensor:
        return w("gamma") / torch.sqrt(w("var") + 1e-5)

    return {
        "weight": lambda: w("w") * scale()[:, None],
        "bias": lambda: w("beta") - w("mean") * scale(),
    }


def _normed_bias() -> dict[str, Any]:
    def scale() -> Tensor:
        return w("gamma") / torch.sqrt(w("var") + 1e-5)

    return {
        "weight": lambda: w("w") * scale()[:, None],
        "bias": lambda: w("beta") + (w("b") - w("mean")) * scale(),
    }


def _no_bias() -> Tensor:
    return torch.zeros(N, dtype=torch.float64)


NORM = "BatchNormalization <epsilon = 0.00001> ({}, gamma, beta, mean, var)"
TIME: dict[str, Any] = {"x": (T, K)}

PRODUCTS: dict[str, Row] = {
    "gemm": Row("h = Gemm <transB = 1> (x, w, b)  y = Relu (h)", opsets=ALL),
    "gemm_without_c": Row("h = Gemm <transB = 1> (x, w)  z = Add (h, b)  y = Relu (z)", opsets=ALL),
    "gemm_c_empty": Row('h = Gemm (x, wt, "")  z = Add (b, h)  y = Relu (z)', opsets=(13, 17)),
    "gemm_c_1n": Row("h = Gemm (x, wt, b_1n)  y = Relu (h)"),
    "gemm_c_one": Row("h = Gemm (x, wt, b_one)  y = Relu (h)", bias=lambda: w("b_one").expand(N)),
    "gemm_c_scalar": Row(
        "h = Gemm (x, wt, half)  y = Relu (h)", bias=lambda: torch.full((N,), 0.5, dtype=torch.float64)
    ),
    "gemm_00": Row(
        "h = Gemm <alpha = 1.5, beta = 0.5> (x, wt, b)  y = Relu (h)",
        weight=lambda: 1.5 * w("w"),
        bias=lambda: 0.5 * w("b"),
        opsets=ALL,
    ),
    "gemm_01": Row(
        "h = Gemm <alpha = 0.7, beta = 2.0, transB = 1> (x, w, b)  y = Relu (h)",
        weight=lambda: w("w") * float(np.float32(0.7)),
        bias=lambda: 2 * w("b"),
        opsets=ALL,
    ),
    "gemm_10": Row(
        "t = Transpose <perm = [1, 0]> (x)  h = Gemm <alpha = 1.5, beta = 3.0, transA = 1> (t, wt, b)  y = Relu (h)",
        weight=lambda: 1.5 * w("w"),
        bias=lambda: 3 * w("b"),
        opsets=ALL,
    ),
    "gemm_11": Row(
        "t = Transpose <perm = [1, 0]> (x)  h = Gemm <alpha = -2.0, beta = 0.5, transA = 1, transB = 1> (t, w, b)"
        "  y = Relu (h)",
        weight=lambda: -2 * w("w"),
        bias=lambda: 0.5 * w("b"),
        opsets=ALL,
    ),
    "gemm_beta_zero": Row("h = Gemm <beta = 0.0> (x, wt, b2)  z = Add (h, b)  y = Relu (z)"),
    "gemm_weight_first": Row("h = Gemm <transB = 1> (w, x, b_n1)  t = Transpose <perm = [1, 0]> (h)  y = Relu (t)"),
    "gemm_weight_first_transposed": Row(
        "h = Gemm <transA = 1, transB = 1, alpha = 0.5> (wt, x, b_n1)  t = Transpose <perm = [1, 0]> (h)  y = Relu (t)",
        weight=lambda: 0.5 * w("w"),
    ),
    "matmul_add": Row("h = MatMul (x, wt)  z = Add (h, b)  y = Relu (z)", opsets=ALL),
    "matmul_add_3d": Row("h = MatMul (x, wt)  z = Add (h, b)  y = Relu (z)", opsets=ALL, **TIME),
    "bias_first": Row("h = MatMul (x, wt)  z = Add (b, h)  y = Relu (z)", opsets=ALL),
    "bias_first_3d": Row("h = MatMul (x, wt)  z = Add (b_11n, h)  y = Relu (z)", **TIME),
    "weight_transposed": Row("t = Transpose <perm = [1, 0]> (w)  h = MatMul (x, t)  z = Add (h, b)  y = Relu (z)"),
    "transposed_product": Row(
        "t = Transpose <perm = [1, 0]> (x)  h = MatMul (w, t)  s = Transpose <perm = [1, 0]> (h)  z = Add (s, b)"
        "  y = Relu (z)"
    ),
    "transposed_product_3d": Row(
        "t = Transpose <perm = [0, 2, 1]> (x)  h = MatMul (w, t)  z = Add (h, b_n1)  r = Relu (z)"
        "  y = Transpose <perm = [0, 2, 1]> (r)",
        **TIME,
    ),
    "matmul_batched_weight": Row("h = MatMul (x, wt_batch)  z = Add (h, b)  y = Relu (z)", **TIME),
    "two_adds": Row(
        "h = MatMul (x, wt)  s = Add (h, b)  z = Add (b2, s)  y = Relu (z)", bias=lambda: w("b") + w("b2"), opsets=ALL
    ),
    "gemm_then_add": Row("h = Gemm (x, wt, b)  z = Add (h, b2)  y = Relu (z)", bias=lambda: w("b") + w("b2")),
    "sum_of_three": Row("h = MatMul (x, wt)  z = Sum (b, h, b2)  y = Relu (z)", bias=lambda: w("b") + w("b2")),
    "sub_negated": Row("h = MatMul (x, wt)  z = Sub (h, b_neg)  y = Relu (z)", opsets=ALL),
    "sub_neg_node": Row("n = Neg (b)  h = MatMul (x, wt)  z = Sub (h, n)  y = Relu (z)"),
    "sub_from_bias": Row("h = MatMul (x, wt)  z = Sub (b, h)  y = Relu (z)", weight=lambda: -w("w")),
    "add_mul_add": Row(
        "h = MatMul (x, wt)  s = Add (h, b)  t = Mul (s, scale)  z = Add (t, shift)  y = Relu (z)",
        weight=_times_scale,
        bias=lambda: w("b") * w("scale") + w("shift"),
        opsets=ALL,
    ),
    "add_mul_add_3d": Row(
        "h = MatMul (x, wt)  s = Add (b, h)  t = Mul (scale, s)  z = Add (shift, t)  y = Relu (z)",
        weight=_times_scale,
        bias=lambda: w("b") * w("scale") + w("shift"),
        **TIME,
    ),
    "div_after": Row(
        "h = MatMul (x, wt)  s = Add (h, b)  z = Div (s, scale)  y = Relu (z)",
        weight=lambda: w("w") / w("scale")[:, None],
        bias=lambda: w("b") / w("scale"),
    ),
    "gemm_reshape_add": Row(
        "r = Reshape (x, i_rows_k)  h = Gemm (r, wt)  s = Reshape (h, i_steps_n)  z = Add (s, b)  y = Relu (z)",
        opsets=ALL,
        **TIME,
    ),
    "gemm_reshape_zero_add": Row("h = Gemm (x, wt)  s = Reshape (h, i_back)  z = Add (s, b)  y = Relu (z)", y=(1, N)),
    "gemm_reshape_by_shape": Row(
        "r = Reshape (x, i_rows_k)  h = Gemm (r, wt, b)  d = Shape (x)  e = Slice (d, i_0, i_2)"
        "  f = Concat <axis = 0> (e, i_last)  s = Reshape (h, f)  y = Relu (s)",
        **TIME,
    ),
    "unsqueeze_add_squeeze": Row(
        "h = MatMul (x, wt)  u = Unsqueeze (h, i_1)  s = Add (u, b)  z = Squeeze (s, i_1)  y = Relu (z)", opsets=NEW
    ),
    "unsqueeze_add_squeeze_attributes": Row(
        "h = MatMul (x, wt)  u = Unsqueeze <axes = [1]> (h)  s = Add (u, b)  z = Squeeze <axes = [1]> (s)"
        "  y = Relu (z)",
        opsets=(11,),
    ),
    "norm": Row(f"h = MatMul (x, wt)  z = {NORM.format('h')}  y = Relu (z)", opsets=ALL, **_normed()),
    "norm_of_gemm": Row(
        f"h = Gemm <transB = 1> (x, w, b)  z = {NORM.format('h')}  y = Relu (z)", opsets=ALL, **_normed_bias()
    ),
    "norm_of_add": Row(
        f"h = MatMul (x, wt)  s = Add (h, b)  z = {NORM.format('s')}  y = Relu (z)", opsets=ALL, **_normed_bias()
    ),
    "norm_reshaped": Row(
        f"h = MatMul (x, wt)  r = Reshape (h, i_rows_n)  n = {NORM.format('r')}  z = Reshape (n, i_steps_n)"
        "  y = Relu (z)",
        **_normed(),
        **TIME,
    ),
    "norm_transposed": Row(
        f"h = MatMul (x, wt)  r = Transpose <perm = [0, 2, 1]> (h)  n = {NORM.format('r')}"
        "  z = Transpose <perm = [0, 2, 1]> (n)  y = Relu (z)",
        opsets=ALL,
        **_normed(),
        **TIME,
    ),
    "norm_transposed_and_reshaped": Row(
        f"h = MatMul (x, wt)  s = Add (h, b)  r = Transpose <perm = [0, 2, 1]> (s)  u = Unsqueeze (r, i_3)"
        f"  n = {NORM.format('u')}  q = Squeeze (n, i_3)  z = Transpose <perm = [0, 2, 1]> (q)  y = Relu (z)",
        **_normed_bias(),
        **TIME,
    ),
    "einsum": Row('h = Einsum <equation = "bk,nk->bn"> (x, w)  z = Add (h, b)  y = Relu (z)', opsets=NEW),
    "einsum_swapped": Row('h = Einsum <equation = "ji,zi->zj"> (w, x)  z = Add (h, b)  y = Relu (z)'),
    "einsum_implicit": Row('h = Einsum <equation = "ak,kb"> (x, wt)  z = Add (h, b)  y = Relu (z)'),
    "einsum_3d": Row('h = Einsum <equation = "btk,kn->btn"> (x, wt)  z = Add (h, b)  y = Relu (z)', **TIME),
    "einsum_ellipsis": Row('h = Einsum <equation = "...k, nk -> ...n"> (x, w)  z = Add (h, b)  y = Relu (z)', **TIME),
    "einsum_transposed": Row(
        'h = Einsum <equation = "btk,nk->nbt"> (x, w)  t = Transpose <perm = [1, 2, 0]> (h)  z = Add (t, b)'
        "  y = Relu (z)",
        **TIME,
    ),
    "mul_reduce_sum": Row(
        "u = Unsqueeze (x, i_1)  m = Mul (u, w)  h = ReduceSum <keepdims = 0> (m, i_2)  z = Add (h, b)  y = Relu (z)",
        opsets=NEW,
    ),
    "mul_reduce_sum_attributes": Row(
        "u = Unsqueeze <axes = [1]> (x)  m = Mul (w, u)  h = ReduceSum <axes = [-1], keepdims = 0> (m)  z = Add (h, b)"
        "  y = Relu (z)",
        opsets=(11,),
    ),
    "mul_reduce_sum_rows": Row(
        "u = Unsqueeze (x, i_last)  m = Mul (u, wt)  k = ReduceSum (m, i_before_last)  h = Squeeze (k, i_before_last)"
        "  z = Add (h, b)  y = Relu (z)",
        **TIME,
    ),
    "conv_1d_single": Row(
        "u = Unsqueeze (x, i_2)  c = Conv (u, conv1, b)  h = Squeeze (c, i_2)  y = Relu (h)", opsets=NEW
    ),
    "conv_1d": Row("c = Conv (x, conv1, b)  y = Relu (c)", opsets=ALL, x=(K, T), axis=1),
    "conv_1d_add": Row("c = Conv (x, conv1)  z = Add (c, b_n1)  y = Relu (z)", x=(K, T), axis=1),
    "conv_1d_over_time": Row(
        "t = Transpose <perm = [0, 2, 1]> (x)  c = Conv <kernel_shape = [1]> (t, conv1, b)"
        "  z = Transpose <perm = [0, 2, 1]> (c)  y = Relu (z)",
        opsets=ALL,
        **TIME,
    ),
    "conv_2d_single": Row(
        "u = Unsqueeze (x, i_spatial)  c = Conv (u, conv2, b)  h = Flatten <axis = 1> (c)  y = Relu (h)", opsets=NEW
    ),
    "conv_2d_of_one": Row("c = Conv (x, conv2, b)  y = Relu (c)", opsets=ALL, **_image(1)),
    "conv_2d": Row(
        "c = Conv <kernel_shape = [1, 1], strides = [1, 1], pads = [0, 0, 0, 0], dilations = [1, 1]> (x, conv2, b)"
        "  y = Relu (c)",
        opsets=ALL,
        **_image(H),
    ),
    "conv_2d_norm": Row(f"c = Conv (x, conv2)  n = {NORM.format('c')}  y = Relu (n)", **_normed(), **_image(H)),
    "quantised_weight": Row(
        "q = QuantizeLinear (w, q_step, q_zero)  d = DequantizeLinear (q, q_step, q_zero)"
        "  h = Gemm <transB = 1> (x, d, b)  y = Relu (h)",
        weight=lambda: (torch.clamp(torch.round(w("w").float() / 0.0125) + 3, -128, 127).double() - 3) * w("q_step"),
        opsets=NEW,
    ),
    "stored_int8_weight": Row(
        "d = DequantizeLinear (q_wt, q_step, q_zero)  h = MatMul (x, d)  z = Add (h, b)  y = Relu (z)",
        weight=lambda: (w("q_w") - 3) * w("q_step"),
        opsets=ALL,
    ),
    "stored_int8_weight_per_channel": Row(
        "d = DequantizeLinear <axis = 0> (q_w, q_steps, q_zeros)  t = Transpose <perm = [1, 0]> (d)  h = MatMul (x, t)"
        "  z = Add (h, b)  y = Relu (z)",
        weight=lambda: w("q_w") * w("q_steps")[:, None],
        opsets=NEW,
        **TIME,
    ),
    "stored_int8_weight_by_cast": Row(
        "c = Cast <to = 1> (q_wt)  d = Mul (c, q_step)  h = MatMul (x, d)  z = Add (h, b)  y = Relu (z)",
        weight=lambda: w("q_w") * w("q_step"),
    ),
    "split_columns": Row(
        "p = MatMul (x, top)  q = MatMul (x, bottom)  h = Concat <axis = -1> (p, q)  z = Add (h, b)  y = Relu (z)"
    ),
    "joined_sequence": Row(
        "p = MatMul (x, top)  q = MatMul (x, bottom)  l = SequenceConstruct (p, q)"
        "  h = ConcatFromSequence <axis = -1> (l)  z = Add (h, b)  y = Relu (z)",
        opsets=ALL,
    ),
    "sequence_grown": Row(
        "p = MatMul (x, top)  q = MatMul (x, bottom)  e = SequenceEmpty ()  f = SequenceInsert (e, q)"
        "  g = SequenceInsert (f, p, i_scalar_0)  i = SequenceInsert (g, x)  l = SequenceErase (i)"
        "  h = ConcatFromSequence <axis = 1> (l)  z = Add (h, b)  y = Relu (z)",
    ),
    "sequence_taken_apart": Row(
        "l = SplitToSequence <axis = 0> (wt, i_split)  v = SequenceAt (l, i_scalar_0)  u = SequenceAt (l, i_scalar_1)"
        "  k = SplitToSequence <axis = 1> (x, i_split)  p = SequenceAt (k, i_scalar_0)  q = SequenceAt (k, i_scalar_1)"
        "  r = MatMul (p, v)  s = MatMul (q, u)  h = Add (r, s)  z = Add (h, b)  y = Relu (z)",
    ),
    "split_k": Row(
        "p, q = Split <axis = 1> (x, i_split)  v, u = Split <axis = 0> (wt, i_split)  r = MatMul (p, v)"
        "  s = MatMul (q, u)  h = Add (r, s)  z = Add (h, b)  y = Relu (z)",
        opsets=NEW,
    ),
    "ones_column": Row(
        "d = Shape (x)  r = Slice (d, i_0, i_1)  s = Concat <axis = 0> (r, i_1)  o = Expand (one, s)"
        "  c = Concat <axis = 1> (x, o)  h = MatMul (c, w_augmented)  y = Relu (h)"
    ),
    "flatten": Row("f = Flatten <axis = 1> (x)  h = Gemm (f, wt, b)  y = Relu (h)", opsets=ALL),
    "identity_and_dropout": Row(
        "i = Identity (x)  d = Dropout (i)  h = Gemm (d, wt, b)  e = Dropout (h)  y = Relu (e)", opsets=ALL
    ),
    # as ONNX Runtime saves what it optimised, whose types onnx does not infer
    "fused_gemm": Row('y = com.microsoft.FusedGemm <transB = 1, activation = "Relu"> (x, w, b)'),
    "fused_conv": Row(
        'u = Unsqueeze (x, i_2)  h = com.microsoft.FusedConv <activation = "Relu"> (u, conv1, b)  y = Squeeze (h, i_2)',
    ),
    "fused_matmul": Row(
        "m = com.microsoft.FusedMatMul <transB = 1, alpha = 1.5> (x, w)  h = Add (m, b)  y = Relu (h)",
        weight=lambda: 1.5 * w("w"),
        **TIME,
    ),
}
