"""Spellings of the activation as ONNX nodes from h to y: the nodes, what they compute, the opsets that have them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .onnx_build import ALL, NEW, w


def _gelu_tanh(h: Tensor) -> Tensor:
    return F.gelu(h, approximate="tanh")


def _prelu(h: Tensor) -> Tensor:
    return torch.where(h > 0, h, w("slope") * h)


def _dice(h: Tensor) -> Tensor:
    p = torch.sigmoid((h - w("mean")) / torch.sqrt(w("var") + 1e-8))
    return p * h + (1 - p) * w("alpha") * h


INNER = "e = Mul (h, cubic)  f = Mul (h, h)  g = Mul (e, f)  i = Add (h, g)  j = Mul (i, root_2_pi)  t = Tanh (j)"
ERF = "d = Div (h, root2)  e = Erf (d)  f = Add (e, one)"
P = "s = Sub (h, mean)  v = Add (var, eps)  r = Sqrt (v)  q = Div (s, r)  p = Sigmoid (q)"

ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "none": ("y = Identity (h)", lambda h: h, ALL),
    "relu_max": ("y = Max (h, zero)", F.relu, ALL),
    "relu_max_swapped": ("y = Max (zero, h)", F.relu, (17,)),
    "relu_clip": ("y = Clip (h, zero)", F.relu, ALL),
    "relu_where": ("c = Greater (h, zero)  y = Where (c, h, zero)", F.relu, ALL),
    "relu_where_less": ("c = Less (h, zero)  y = Where (c, zero, h)", F.relu, ALL),
    "relu_where_not": ("c = LessOrEqual (h, zero)  n = Not (c)  y = Where (n, h, zero)", F.relu, (17,)),
    "relu_abs": ("a = Abs (h)  s = Add (h, a)  y = Div (s, two)", F.relu, ALL),
    "relu_abs_half": ("a = Abs (h)  s = Add (a, h)  y = Mul (half, s)", F.relu, (17,)),
    "relu_mask": ("c = Greater (h, zero)  m = Cast <to = 1> (c)  y = Mul (h, m)", F.relu, ALL),
    "relu_thresholded": ("y = ThresholdedRelu <alpha = 0.0> (h)", F.relu, ALL),
    "relu_minus_min": ("l = Min (h, zero)  y = Sub (h, l)", F.relu, (17,)),
    "relu6": ("y = Clip (h, zero, six)", F.relu6, ALL),
    "relu6_min_max": ("m = Max (h, zero)  y = Min (m, six)", F.relu6, (17,)),
    "sigmoid": ("y = Sigmoid (h)", torch.sigmoid, ALL),
    "sigmoid_exp": ("n = Neg (h)  e = Exp (n)  a = Add (e, one)  y = Reciprocal (a)", torch.sigmoid, ALL),
    "sigmoid_exp_over": ("e = Exp (h)  a = Add (one, e)  y = Div (e, a)", torch.sigmoid, (17,)),
    "tanh": ("y = Tanh (h)", torch.tanh, ALL),
    "gelu": ("y = Gelu (h)", F.gelu, (21,)),
    "gelu_half_first": (f"{ERF}  m = Mul (h, half)  y = Mul (m, f)", F.gelu, ALL),
    "gelu_half_last": (f"{ERF}  m = Mul (h, f)  y = Mul (m, half)", F.gelu, ALL),
    "gelu_half_on_cdf": (f"{ERF}  m = Mul (half, f)  y = Mul (h, m)", F.gelu, (17,)),
    "gelu_half_divided": (f"{ERF}  m = Mul (f, h)  y = Div (m, two)", F.gelu, (17,)),
    "gelu_root_half": (
        "d = Mul (h, root_half)  e = Erf (d)  f = Add (one, e)  m = Mul (h, f)  y = Mul (half, m)",
        F.gelu,
        ALL,
    ),
    "gelu_spread": (
        "d = Div (h, root2)  e = Erf (d)  a = Mul (h, half)  m = Mul (a, e)  y = Add (a, m)",
        F.gelu,
        (17,),
    ),
    "gelu_tanh": ('y = Gelu <approximate = "tanh"> (h)', _gelu_tanh, (21,)),
    "gelu_tanh_mul": (f"{INNER}  a = Add (t, one)  m = Mul (h, half)  y = Mul (m, a)", _gelu_tanh, ALL),
    "gelu_tanh_half_last": (f"{INNER}  a = Add (one, t)  m = Mul (h, a)  y = Mul (m, half)", _gelu_tanh, (17,)),
    "gelu_tanh_pow": (
        "c = Pow (h, three)  e = Mul (c, cubic)  i = Add (h, e)  j = Mul (root_2_pi, i)  t = Tanh (j)  a = Add (t, one)"
        "  m = Mul (a, half)  y = Mul (h, m)",
        _gelu_tanh,
        ALL,
    ),
    "quick_gelu": ("q = Mul (h, quick)  s = Sigmoid (q)  y = Mul (h, s)", lambda h: h * torch.sigmoid(1.702 * h), ALL),
    "silu": ("s = Sigmoid (h)  y = Mul (h, s)", F.silu, ALL),
    "silu_swapped": ("s = Sigmoid (h)  y = Mul (s, h)", F.silu, (17,)),
    "silu_exp": ("n = Neg (h)  e = Exp (n)  a = Add (one, e)  y = Div (h, a)", F.silu, (17,)),
    "mish": ("s = Softplus (h)  t = Tanh (s)  y = Mul (h, t)", F.mish, ALL),
    "mish_node": ("y = Mish (h)", F.mish, (21,)),
    "mish_log_exp": ("e = Exp (h)  a = Add (e, one)  l = Log (a)  t = Tanh (l)  y = Mul (t, h)", F.mish, (17,)),
    "softplus": ("y = Softplus (h)", F.softplus, ALL),
    "softplus_log_exp": ("e = Exp (h)  a = Add (e, one)  y = Log (a)", F.softplus, (17,)),
    "leaky_relu": ("y = LeakyRelu <alpha = 0.1> (h)", lambda h: F.leaky_relu(h, 0.1), ALL),
    "leaky_relu_max": ("m = Mul (h, tenth)  y = Max (h, m)", lambda h: F.leaky_relu(h, 0.1), ALL),
    "leaky_relu_where": (
        "m = Mul (tenth, h)  c = Greater (h, zero)  y = Where (c, h, m)",
        lambda h: F.leaky_relu(h, 0.1),
        (17,),
    ),
    "prelu": ("y = PRelu (h, slope)", _prelu, ALL),
    "prelu_one": ("y = PRelu (h, slope_1)", lambda h: F.leaky_relu(h, float(w("slope_1"))), ALL),
    "prelu_relus": ("r = Relu (h)  n = Neg (h)  q = Relu (n)  m = Mul (slope, q)  y = Sub (r, m)", _prelu, (17,)),
    "elu": ("y = Elu <alpha = 1.5> (h)", lambda h: F.elu(h, 1.5), ALL),
    "elu_where": ("e = Exp (h)  s = Sub (e, one)  c = Greater (h, zero)  y = Where (c, h, s)", F.elu, ALL),
    "selu": ("y = Selu (h)", F.selu, ALL),
    "celu": ("y = Celu <alpha = 0.5> (h)", lambda h: F.celu(h, 0.5), NEW),
    "hardsigmoid": ("y = HardSigmoid <alpha = 0.16666667, beta = 0.5> (h)", F.hardsigmoid, ALL),
    "hardsigmoid_fifth": ("y = HardSigmoid (h)", lambda h: torch.clamp(0.2 * h + 0.5, 0, 1), ALL),
    "hardswish": ("y = HardSwish (h)", F.hardswish, (17, 21)),
    "hardswish_times": ("s = HardSigmoid <alpha = 0.16666667> (h)  y = Mul (h, s)", F.hardswish, ALL),
    "hardswish_clip": (
        "a = Add (h, three)  c = Clip (a, zero, six)  m = Mul (h, c)  y = Div (m, six)",
        F.hardswish,
        ALL,
    ),
    "hardswish_sixth": (
        "a = Add (three, h)  c = Clip (a, zero, six)  m = Mul (c, sixth)  y = Mul (m, h)",
        F.hardswish,
        (17,),
    ),
    "dice": (
        f"{P}  a = Mul (p, h)  n = Sub (one, p)  c = Mul (n, alpha)  d = Mul (c, h)  y = Add (a, d)",
        _dice,
        ALL,
    ),
    "dice_factored": (
        f"{P}  n = Sub (one, p)  c = Mul (alpha, n)  d = Add (p, c)  y = Mul (d, h)",
        _dice,
        (17,),
    ),
    "softsign": ("y = Softsign (h)", F.softsign, ALL),
    "square": ("y = Mul (h, h)", torch.square, (17,)),
    "square_pow": ("y = Pow (h, two)", torch.square, (17,)),
    "unnamed": ("s = Sin (h)  q = Mul (s, s)  y = Add (h, q)", lambda h: h + torch.sin(h) ** 2, ALL),
}
