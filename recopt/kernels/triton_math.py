# mypy: ignore-errors
# Device code: Triton's compiler gives these functions their types, Python's cannot.
"""The epilogue language's functions in Triton, on float32, with torch's behaviour for NaN, infinities and edges.

Only ``tl`` is used, not libdevice (but for ``f_pow``), so that Triton's interpreter runs every one of them.
Triton's own ``exp`` rounds its argument times log2(e): its relative error is about ``|x| * 6e-8``.
"""

from __future__ import annotations

import triton
import triton.language as tl

NAN_TOO = tl.constexpr(tl.PropagateNan.ALL)
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
if not INTERPRETED.value:
    from triton.language.extra import libdevice


@triton.jit
def f_neg(x):
    return -x


@triton.jit
def f_abs(x):
    return tl.abs(x)


@triton.jit
def f_exp(x):
    # exp(x) = 2^n * exp(r), |r| <= ln2 / 2: keeps the error at one unit where |x| is large.
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    r = x - n * 0.693359375 + n * 2.12194440e-4
    half = tl.floor(n * 0.5)
    y = tl.exp(r) * tl.exp2(half) * tl.exp2(n - half)
    return tl.where(x > 88.8, float("inf"), tl.where(x < -104.0, 0.0, y))


@triton.jit
def f_log(x):
    return tl.log(x)


@triton.jit
def f_log1p(x):
    u = 1.0 + x
    # log(u) * x / (u - 1) undoes the rounding of 1 + x.
    y = tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))
    return tl.where(x == float("inf"), x, y)


@triton.jit
def f_expm1(x):
    small = x * (1.0 + x * (0.5 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x * (1 / 5040)))))))
    return tl.where(tl.abs(x) < 0.35, small, f_exp(x) - 1.0)


@triton.jit
def f_sqrt(x):
    return tl.sqrt_rn(x)


@triton.jit
def f_rsqrt(x):
    return tl.rsqrt(x)


@triton.jit
def f_reciprocal(x):
    return 1.0 / x


@triton.jit
def f_sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def f_tanh(x):
    a = tl.abs(x)
    s = x * x
    small = x * (1.0 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835 + s * (-1382 / 155925))))))
    e = tl.exp(-2.0 * a)
    large = (1.0 - e) / (1.0 + e)
    return tl.where(a < 0.35, small, tl.where(x < 0.0, -large, large))


@triton.jit
def f_erf(x):
    return tl.erf(x)


@triton.jit
def f_sin(x):
    return tl.sin(x)


@triton.jit
def f_cos(x):
    return tl.cos(x)


@triton.jit
def f_floor(x):
    return tl.floor(x)


@triton.jit
def f_ceil(x):
    return tl.ceil(x)


@triton.jit
def f_round(x):
    # Adding 1.5 * 2^23 leaves no bits for the fraction, so the sum rounds half to even.
    return tl.where(tl.abs(x) < 4194304.0, (x + 12582912.0) - 12582912.0, x)


@triton.jit
def f_sign(x):
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, 0.0))


@triton.jit
def f_relu(x):
    return tl.maximum(x, 0.0, propagate_nan=NAN_TOO)


@triton.jit
def f_max(a, b):
    return tl.maximum(a, b, propagate_nan=NAN_TOO)


@triton.jit
def f_min(a, b):
    return tl.minimum(a, b, propagate_nan=NAN_TOO)


@triton.jit
def f_clip(x, lo, hi):
    return f_min(f_max(x, lo), hi)


@triton.jit
def f_hardtanh(x, lo, hi):
    return f_clip(x, lo, hi)


@triton.jit
def f_relu6(x):
    return f_clip(x, 0.0, 6.0)


@triton.jit
def f_gelu(x):
    return x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def f_gelu_tanh(x):
    return 0.5 * x * (1.0 + f_tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def f_silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def f_softplus(x, beta, threshold):
    z = x * beta
    return tl.where(z > threshold, x, f_log1p(tl.exp(z)) / beta)


@triton.jit
def f_mish(x):
    # torch's own: softplus without a threshold.
    return x * f_tanh(f_log1p(tl.exp(x)))


@triton.jit
def f_logsigmoid(x):
    return f_min(x, 0.0) - f_log1p(tl.exp(-tl.abs(x)))


@triton.jit
def f_softsign(x):
    return x / (1.0 + tl.abs(x))


@triton.jit
def f_tanhshrink(x):
    return x - f_tanh(x)


@triton.jit
def f_hardsigmoid(x):
    return f_clip(x + 3.0, 0.0, 6.0) / 6.0


@triton.jit
def f_hardswish(x):
    return x * f_clip(x + 3.0, 0.0, 6.0) / 6.0


@triton.jit
def f_selu(x):
    return tl.where(x > 0.0, x * 1.0507009873554805, f_expm1(x) * (1.0507009873554805 * 1.6732632423543772))


@triton.jit
def f_elu(x, alpha):
    return tl.where(x > 0.0, x, f_expm1(x) * alpha)


@triton.jit
def f_celu(x, alpha):
    return tl.where(x > 0.0, x, f_expm1(x / alpha) * alpha)


@triton.jit
def f_leaky_relu(x, slope):
    return tl.where(x > 0.0, x, x * slope)


@triton.jit
def f_prelu(x, slope):
    return tl.where(x > 0.0, x, x * slope)


@triton.jit
def f_softshrink(x, cut):
    return tl.where(x > cut, x - cut, tl.where(x < -cut, x + cut, tl.where(x != x, x, 0.0)))


@triton.jit
def f_hardshrink(x, cut):
    return tl.where((x >= -cut) & (x <= cut), 0.0, x)


@triton.jit
def f_square(x):
    return x * x


@triton.jit
def f_cube(x):
    return x * x * x


@triton.jit
def f_pow(a, b):
    some = (a == a) | (b == b)
    x = tl.where(some, a, a)
    y = tl.where(some, b, b)
    if INTERPRETED:
        return tl.exp2(y * tl.log2(x))
    else:
        return libdevice.pow(x, y)


@triton.jit
def f_where(c, a, b):
    return tl.where(c, a, b)


@triton.jit
def f_logical_and(a, b):
    return a & b


@triton.jit
def f_logical_or(a, b):
    return a | b


@triton.jit
def f_logical_not(a):
    return a == 0


@triton.jit
def f_isnan(x):
    return x != x
