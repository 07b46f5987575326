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
def _instruction(x, NAME: tl.constexpr):
    """The hardware's own instruction; a result or an argument below 2^-126 is 0."""
    return tl.inline_asm_elementwise(NAME + ".approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def f_sigmoid(x):
    if INTERPRETED:
        return 1.0 / (1.0 + f_exp(-x))
    else:
        # exp(-x) = 2^a + 2^a b ln2, a + b = -x log2(e) to 48 bits: a third of the instructions of ``f_exp``. At the
        # bounds all is said already: 1, and a number that is 0 without denormal ones.
        x = tl.clamp(-x, -88.0, 88.0, propagate_nan=NAN_TOO)
        a = x * 1.44269502162933349609375
        b = tl.fma(x, 1.44269502162933349609375, -a)
        b = tl.fma(x, 1.92596303350001e-8, b)
        e = _instruction(a, "ex2")
        return _instruction(tl.fma(e, b * 0.6931471805599453, e) + 1.0, "rcp")


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
def f_tan(x):
    return tl.sin(x) / tl.cos(x)


@triton.jit
def f_asin(x):
    # asin(a) = pi/2 - 2 * asin(sqrt((1 - a) / 2)) above 1/2, a polynomial below
    a = tl.abs(x)
    s = tl.where(a > 0.5, 0.5 - 0.5 * a, a * a)
    r = tl.where(a > 0.5, tl.sqrt_rn(s), a)
    p = 0.04459804 + s * (0.03111609 + s * (0.01707811 + s * 0.03380539))
    y = r + r * s * (0.16666666 + s * (0.07500099 + s * p))
    y = tl.where(a > 0.5, 1.5707963267948966 - 2.0 * y, y)
    return tl.where(x < 0.0, -y, y)


@triton.jit
def f_acos(x):
    # near 1 from the root, which pi/2 - asin(x) would cancel away
    near = 2.0 * f_asin(tl.sqrt_rn(0.5 - 0.5 * tl.abs(x)))
    far = 1.5707963267948966 - f_asin(x)
    return tl.where(tl.abs(x) > 0.5, tl.where(x < 0.0, 3.141592653589793 - near, near), far)


@triton.jit
def f_atan(x):
    # atan(a) = pi/4 + atan((a - 1) / (a + 1)) in the middle, pi/2 - atan(1 / a) above
    a = tl.abs(x)
    high, middle = a > 2.414213562373095, a > 0.4142135623730951
    r = tl.where(high, -1.0 / a, tl.where(middle, (a - 1.0) / (a + 1.0), a))
    s = r * r
    p = -0.14284176 + s * (0.11071767 + s * (-0.08627333 + s * 0.05054301))
    y = r + r * s * (-0.33333333 + s * (0.19999978 + s * p))
    y += tl.where(high, 1.5707963267948966, tl.where(middle, 0.7853981633974483, 0.0))
    return tl.where(x < 0.0, -y, y)


@triton.jit
def negative(x):
    # -0.0 is negative
    return (x < 0.0) | ((x == 0.0) & (1.0 / x < 0.0))


@triton.jit
def f_atan2(y, x):
    a, b = tl.abs(x), tl.abs(y)
    low, high = f_min(a, b), f_max(a, b)
    ratio = tl.where(low == float("inf"), 1.0, tl.where(high == 0.0, 0.0, low / high))
    r = f_atan(ratio)
    r = tl.where(b > a, 1.5707963267948966 - r, r)
    r = tl.where(negative(x), 3.141592653589793 - r, r)
    return tl.where(negative(y), -r, r)


@triton.jit
def f_hypot(a, b):
    # scaled by the larger, so that no square overflows
    low, high = tl.minimum(tl.abs(a), tl.abs(b)), tl.maximum(tl.abs(a), tl.abs(b))
    r = low / high
    y = tl.where(high == 0.0, 0.0, high * tl.sqrt_rn(1.0 + r * r))
    unknown = (a != a) | (b != b)
    return tl.where(high == float("inf"), high, tl.where(unknown, a + b, y))


@triton.jit
def f_sinh(x):
    a = tl.abs(x)
    e = f_expm1(f_min(a, 1.0))
    half = f_exp(0.5 * a)  # exp(a) itself overflows before sinh does
    y = tl.where(a < 1.0, 0.5 * (e + e / (e + 1.0)), (0.5 * half) * half - 0.5 / half / half)
    return tl.where(x < 0.0, -y, y)


@triton.jit
def f_cosh(x):
    half = f_exp(0.5 * tl.abs(x))
    return (0.5 * half) * half + 0.5 / half / half


@triton.jit
def f_asinh(x):
    a = tl.abs(x)
    y = f_log1p(a + a * a / (1.0 + tl.sqrt_rn(a * a + 1.0)))
    y = tl.where(a > 1e9, tl.log(a) + 0.6931471805599453, y)  # a * a may overflow there
    return tl.where(x < 0.0, -y, y)


@triton.jit
def f_acosh(x):
    t = x - 1.0
    y = tl.where(x > 1e9, tl.log(x) + 0.6931471805599453, f_log1p(t + tl.sqrt_rn(t) * tl.sqrt_rn(t + 2.0)))
    return tl.where(x < 1.0, float("nan"), y)


@triton.jit
def f_atanh(x):
    a = tl.abs(x)
    y = 0.5 * f_log1p(2.0 * a / (1.0 - a))
    return tl.where(x < 0.0, -y, y)


@triton.jit
def f_mod(a, b):
    # in float64 exact up to a quotient of 2^29, where float32 holds less than a remainder's worth of `a`
    x, y = tl.abs(a), tl.abs(b)
    wide, by = x.to(tl.float64), y.to(tl.float64)
    r = (wide - tl.floor(wide / by) * by).to(tl.float32)
    r = tl.where((y == float("inf")) & (x < y), x, r)
    r = tl.where(a < 0.0, -r, r)
    return tl.where((r != 0.0) & ((r < 0.0) != (b < 0.0)), r + b, r)


@triton.jit
def f_floordiv(a, b):
    q = f_round((a - f_mod(a, b)) / b)
    far = tl.where((a != 0.0) & ((a < 0.0) != (b < 0.0)), -1.0, 0.0)  # a / inf
    q = tl.where((tl.abs(b) == float("inf")) & (tl.abs(a) < float("inf")), far, q)
    return tl.where(b == 0.0, a / b, q)


@triton.jit
def f_trunc(x):
    return tl.where(x < 0.0, tl.ceil(x), tl.floor(x))


@triton.jit
def f_floor(x):
    return tl.floor(x)


@triton.jit
def f_ceil(x):
    return tl.ceil(x)


@triton.jit
def f_round(x):
    # Adding 2^23 leaves no bits for the fraction, so the sum rounds half to even.
    a = tl.abs(x)
    y = (a + 8388608.0) - 8388608.0
    return tl.where(a < 8388608.0, tl.where(x < 0.0, -y, y), x)


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
    return x / (1.0 + f_exp(-x))


@triton.jit
def f_softplus(x, beta, threshold):
    z = x * beta
    return tl.where(z > threshold, x, f_log1p(f_exp(z)) / beta)


@triton.jit
def f_mish(x):
    # torch's own: softplus without a threshold.
    return x * f_tanh(f_log1p(f_exp(x)))


@triton.jit
def f_logsigmoid(x):
    return f_min(x, 0.0) - f_log1p(f_exp(-tl.abs(x)))


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
