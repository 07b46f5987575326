# mypy: ignore-errors
# ruff: noqa: RUF005 - Triton takes no unpacking inside a tuple
# Device code: Triton's compiler gives these functions their types, Python's cannot.
"""The Triton kernels of ``recopt::attention`` for short sequences: scores never leave the chip, whatever their text."""

from __future__ import annotations

import triton
import triton.language as tl

from ..early import begin, drain
from ..target_attention.kernels import accumulated, as_left, joined, left_columns, product


@triton.jit
def _at(pointers, steps, outer, inner, s, t):
    """Each of `pointers` moved to (outer, inner, s, t), and as many steps of nothing."""
    places = ()
    none = ()
    for i in tl.static_range(len(pointers)):
        at = outer * steps[i][0] + inner * steps[i][1] + s * steps[i][2] + t * steps[i][3]
        places = places + (pointers[i] + at,)
        none = none + (0,)
    return places, none


@triton.jit
def _finished(total, weight, highest, UNSEEN: tl.constexpr):
    """Sums over their weights. A query whose scores are all -inf has nan, as a softmax gives, or 0 where UNSEEN is
    "zero"; where it is "clean", so has one with a score that makes every weight nan."""
    # A split product of zeros is not quite 0, so the division alone would make an infinity of it.
    blind = highest == -float("inf")
    if UNSEEN == "clean":
        blind = blind | (weight != weight)
    return tl.where(blind, float("nan") if UNSEEN == "nan" else 0.0, total / weight)


@triton.jit
def block_kernel(
    q, k, v, out, marks, mark_steps, q_steps, k_steps, v_steps, INNER, S, T,
    D: tl.constexpr, E: tl.constexpr, SCORE: tl.constexpr, UNSEEN: tl.constexpr, WHOLE: tl.constexpr,
    BS: tl.constexpr, BT: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """A block of BS queries of one row and head a program; BT keys at a time, with a running softmax."""
    row = tl.program_id(0)
    outer = (row // INNER).to(tl.int64)
    inner = (row % INNER).to(tl.int64)
    s = (tl.program_id(1) * BS + tl.arange(0, BS)).to(tl.int64)
    s_ok = s < S
    q += outer * q_steps[0] + inner * q_steps[1]
    k += outer * k_steps[0] + inner * k_steps[1]
    v += outer * v_steps[0] + inner * v_steps[1]
    # Both halves of a split operand of more than 32 columns take more registers than there are.
    DC: tl.constexpr = min(DP, 32)
    EC: tl.constexpr = min(EP, 32)
    x = ()
    for c in tl.static_range(DP // DC):
        d = c * DC + tl.arange(0, DC)
        q_at = q + s[:, None] * q_steps[2] + d[None, :] * q_steps[3]
        x = x + (tl.load(q_at, mask=s_ok[:, None] & (d < D)[None, :], other=0.0),)
    total = ()
    for _ in tl.static_range(EP // EC):
        total = total + (tl.zeros((BS, EC), tl.float32),)
    highest = tl.full((BS,), -float("inf"), tl.float32)
    weight = tl.zeros((BS,), tl.float32)
    for first in range(0, T, BT):
        t = (first + tl.arange(0, BT)).to(tl.int64)
        t_ok = t < T
        h = tl.zeros((BS, BT), tl.float32)
        rests = tl.zeros((BS, BT), tl.float32)
        for c in tl.static_range(DP // DC):
            d = c * DC + tl.arange(0, DC)
            k_at = k + t[None, :] * k_steps[2] + d[:, None] * k_steps[3]
            y = tl.load(k_at, mask=(d < D)[:, None] & t_ok[None, :], other=0.0)
            h, rests = accumulated(x[c], y, h, rests, WHOLE)
        if WHOLE:
            h = joined(h, rests)
        ok = s_ok[:, None] & t_ok[None, :]
        places, none = _at(marks, mark_steps, outer, inner, s[:, None], t[None, :])
        h = tl.where(t_ok[None, :], SCORE(h, places, none, 0, ok), -float("inf"))
        above = tl.maximum(highest, tl.max(h, 1))
        origin = tl.where(above == -float("inf"), 0.0, above)
        p = tl.exp(h - origin[:, None])
        kept = tl.exp(highest - origin)
        weight = weight * kept + tl.sum(p, 1)
        p = as_left(p, WHOLE).to(v.dtype.element_ty)
        t_left = (first + left_columns(tl.arange(0, BT), WHOLE)).to(tl.int64)
        sums = ()
        for c in tl.static_range(EP // EC):
            e = c * EC + tl.arange(0, EC)
            v_at = v + t_left[:, None] * v_steps[2] + e[None, :] * v_steps[3]
            z = tl.load(v_at, mask=(t_left < T)[:, None] & (e < E)[None, :], other=0.0)
            sums = sums + (product(p, z, total[c] * kept[:, None], WHOLE),)
        total = sums
        highest = above
    for c in tl.static_range(EP // EC):
        e = c * EC + tl.arange(0, EC)
        y = _finished(total[c], weight[:, None], highest[:, None], UNSEEN)
        at = (row.to(tl.int64) * S + s[:, None]) * E + e[None, :]
        tl.store(out + at, y.to(out.dtype.element_ty), mask=s_ok[:, None] & (e < E)[None, :])


@triton.jit
def single_kernel(
    q, k, v, out, marks, mark_steps, q_steps, k_steps, v_steps, INNER, ROWS, T,
    D: tl.constexpr, E: tl.constexpr, SCORE: tl.constexpr, UNSEEN: tl.constexpr,
    R: tl.constexpr, BT: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One query a row, R rows a program, all keys at once: as fast as keys and values can be read."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    row_ok = row < ROWS
    outer = row // INNER
    inner = row % INNER
    t = tl.arange(0, BT)
    d = tl.arange(0, DP)
    e = tl.arange(0, EP)
    ok = row_ok[:, None] & (t < T)[None, :]
    q_row = outer * q_steps[0] + inner * q_steps[1]
    k_row = (outer * k_steps[0] + inner * k_steps[1])[:, None] + t[None, :] * k_steps[2]
    v_row = (outer * v_steps[0] + inner * v_steps[1])[:, None] + t[None, :] * v_steps[2]
    begin(EARLY)
    x = tl.load(q + q_row[:, None] + d[None, :] * q_steps[3], mask=row_ok[:, None] & (d < D)[None, :], other=0.0)
    y = tl.load(
        k + k_row[:, :, None] + d[None, None, :] * k_steps[3], mask=ok[:, :, None] & (d < D)[None, None, :], other=0.0
    )
    z = tl.load(
        v + v_row[:, :, None] + e[None, None, :] * v_steps[3], mask=ok[:, :, None] & (e < E)[None, None, :], other=0.0
    )
    drain(EARLY)
    h = tl.sum(x.to(tl.float32)[:, None, :] * y.to(tl.float32), 2)
    places, none = _at(marks, mark_steps, outer[:, None], inner[:, None], 0, t[None, :])
    h = tl.where((t < T)[None, :], SCORE(h, places, none, 0, ok), -float("inf"))
    highest = tl.max(h, 1)
    p = tl.exp(h - tl.where(highest == -float("inf"), 0.0, highest)[:, None])
    total = tl.sum(p[:, :, None] * z.to(tl.float32), 1)
    total = _finished(total, tl.sum(p, 1)[:, None], highest[:, None], UNSEEN)
    at = row[:, None] * E + e[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=row_ok[:, None] & (e < E)[None, :])


@triton.jit
def weights_kernel(
    q, k, out, marks, mark_steps, q_steps, k_steps, INNER, ROWS, T,
    D: tl.constexpr, SCORE: tl.constexpr, UNSEEN: tl.constexpr,
    R: tl.constexpr, BT: tl.constexpr, DP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The weights of one query a row, R rows a program, all keys at once."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    row_ok = row < ROWS
    outer = row // INNER
    inner = row % INNER
    t = tl.arange(0, BT)
    d = tl.arange(0, DP)
    ok = row_ok[:, None] & (t < T)[None, :]
    q_row = (outer * q_steps[0] + inner * q_steps[1])[:, None] + d[None, :] * q_steps[2]
    k_row = (outer * k_steps[0] + inner * k_steps[1])[:, None] + t[None, :] * k_steps[2]
    begin(EARLY)
    x = tl.load(q + q_row, mask=row_ok[:, None] & (d < D)[None, :], other=0.0)
    y = tl.load(
        k + k_row[:, :, None] + d[None, None, :] * k_steps[3], mask=ok[:, :, None] & (d < D)[None, None, :], other=0.0
    )
    drain(EARLY)
    h = tl.sum(x[:, None, :] * y, 2)
    places, none = _at(marks, mark_steps, outer[:, None], inner[:, None], 0, t[None, :])
    h = tl.where((t < T)[None, :], SCORE(h, places, none, 0, ok), -float("inf"))
    highest = tl.max(h, 1)
    p = tl.exp(h - tl.where(highest == -float("inf"), 0.0, highest)[:, None])
    p = p / tl.sum(p, 1)[:, None]
    if UNSEEN == "zero":
        p = tl.where((highest == -float("inf"))[:, None], 0.0, p)
    if UNSEEN == "clean":
        p = tl.where(p != p, 0.0, p)
    tl.store(out + row[:, None] * T + t[None, :], p, mask=ok)
