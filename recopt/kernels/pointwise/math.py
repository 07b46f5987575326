# mypy: ignore-errors
# Device code: Triton's compiler gives these functions their types, Python's cannot.
"""The operators of pointwise programs in Triton, with the bits of torch's own on a GPU: CUDA's mathematical library,
divisions and roots rounded to nearest. The interpreter, which has no such library, takes those of the epilogues."""

from __future__ import annotations

import triton
import triton.language as tl

from .. import triton_math
from ..triton_math import f_expm1 as i_expm1
from ..triton_math import f_log1p as i_log1p
from ..triton_math import f_mod, f_round, f_tanh, f_trunc

NAN_TOO = tl.constexpr(tl.PropagateNan.ALL)
INTERPRETED = triton_math.INTERPRETED
if not INTERPRETED.value:
    from triton.language.extra import libdevice


@triton.jit
def floor_div(a, b):
    q = a // b
    return tl.where((a % b != 0) & ((a < 0) != (b < 0)), q - 1, q)


@triton.jit
def floor_mod(a, b):
    r = a % b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)


@triton.jit
def p_floordiv_int(a, b):
    return floor_div(a, b)


@triton.jit
def p_truncdiv_int(a, b):
    return a // b


@triton.jit
def p_rem_int(a, b):
    return floor_mod(a, b)


@triton.jit
def p_rem_by(a, b, factor, shift):
    """a modulo b > 1 with the quotient by a product, where 2^shift < b <= 2^(shift + 1) and factor is the whole part of
    2^(64 + shift) / b, and 1: exact for the 63 bits that an int64 has beside its sign."""
    sign = a >> 63
    q = tl.umulhi((a ^ sign).to(tl.uint64), factor.to(tl.uint64)) >> shift.to(tl.uint64)
    return a - (q.to(tl.int64) ^ sign) * b


@triton.jit
def p_fmod_int(a, b):
    return a % b


@triton.jit
def p_sign_int(x):
    return tl.where(x > 0, 1, tl.where(x < 0, -1, 0))


@triton.jit
def p_sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def p_div(a, b):
    return tl.div_rn(a, b)


@triton.jit
def p_fmod(a, b):
    if INTERPRETED:
        r = f_mod(tl.abs(a), tl.abs(b))
        return tl.where(a < 0, -r, r)
    else:
        return libdevice.fmod(a, b)


@triton.jit
def p_rem(a, b):
    r = p_fmod(a, b)
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)


@triton.jit
def p_round(x):
    if INTERPRETED:
        return f_round(x)
    else:
        return libdevice.rint(x)


@triton.jit
def p_trunc(x):
    if INTERPRETED:
        return f_trunc(x)
    else:
        return libdevice.trunc(x)


@triton.jit
def p_sqrt(x):
    return tl.sqrt_rn(x)


@triton.jit
def p_sqrt64(x):
    return tl.sqrt(x)


@triton.jit
def p_rsqrt(x):
    if INTERPRETED:
        return 1.0 / tl.sqrt(x)
    else:
        return libdevice.rsqrt(x)


@triton.jit
def p_exp(x):
    if INTERPRETED:
        return tl.exp(x)
    else:
        return libdevice.exp(x)


@triton.jit
def p_log(x):
    if INTERPRETED:
        return tl.log(x)
    else:
        return libdevice.log(x)


@triton.jit
def p_log1p(x):
    if INTERPRETED:
        return i_log1p(x)
    else:
        return libdevice.log1p(x)


@triton.jit
def p_log2(x):
    if INTERPRETED:
        return tl.log2(x)
    else:
        return libdevice.log2(x)


@triton.jit
def p_log10(x):
    if INTERPRETED:
        return tl.log2(x) * 0.30102999566398120
    else:
        return libdevice.log10(x)


@triton.jit
def p_expm1(x):
    if INTERPRETED:
        return i_expm1(x)
    else:
        return libdevice.expm1(x)


@triton.jit
def p_tanh(x):
    if INTERPRETED:
        return f_tanh(x)
    else:
        return libdevice.tanh(x)


@triton.jit
def p_sigmoid(x):
    return 1.0 / (1.0 + p_exp(-x))


@triton.jit
def p_sin(x):
    if INTERPRETED:
        return tl.sin(x)
    else:
        return libdevice.sin(x)


@triton.jit
def p_cos(x):
    if INTERPRETED:
        return tl.cos(x)
    else:
        return libdevice.cos(x)


@triton.jit
def p_erf(x):
    if INTERPRETED:
        return tl.erf(x)
    else:
        return libdevice.erf(x)


@triton.jit
def p_pow(a, b):
    if INTERPRETED:
        return tl.exp2(b * tl.log2(a))
    else:
        return libdevice.pow(a, b)
