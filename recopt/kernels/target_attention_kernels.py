# mypy: ignore-errors
# Device code: Triton's compiler gives these functions their types, Python's cannot.
"""The Triton kernel of ``recopt::target_attention``: a program takes one row's history, or a part of it.

The row's own first layer, Wk + diag(q) Wp, is made once and stays on the chip, as do all layers' results; the history is
read once. Widths are cut into pieces of powers of two, so that 80 costs 64 + 16 and not 128.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .linear_kernels import _dot


@triton.jit
def _first(q, wq, wk, wp, b, d, n, D: tl.constexpr, N: tl.constexpr):
    """A piece of the row's own first layer, [D, piece], and what the target adds to it, [piece], in float32."""
    at = n[None, :] * D + d[:, None]
    ok = (n < N)[None, :] & (d < D)[:, None]
    start = tl.load(b + n, mask=n < N, other=0.0).to(tl.float32)
    if wq is not None:
        start += tl.sum(tl.load(wq + at, mask=ok, other=0.0).to(tl.float32) * q[:, None], 0)
    if wk is None:
        own = tl.load(wp + at, mask=ok, other=0.0).to(tl.float32) * q[:, None]
    else:
        own = tl.load(wk + at, mask=ok, other=0.0).to(tl.float32)
        if wp is not None:
            own += tl.load(wp + at, mask=ok, other=0.0).to(tl.float32) * q[:, None]
    return own, start


@triton.jit
def _function(
    h, i: tl.constexpr, operands, steps, n, N: tl.constexpr, PADDED: tl.constexpr,
    F1: tl.constexpr, F2: tl.constexpr, F3: tl.constexpr,
):  # fmt: skip
    """The function of hidden layer i; 0 in columns past the layer's width, whatever the function makes of nothing."""
    ok = (n < N)[None, :]
    if i == 0:
        h = F1(h, operands[0], steps[0], n[None, :], ok)
    if i == 1:
        h = F2(h, operands[1], steps[1], n[None, :], ok)
    if i == 2:
        h = F3(h, operands[2], steps[2], n[None, :], ok)
    if PADDED:
        h = tl.where(ok, h, 0.0)
    return h


@triton.jit
def _infinite(h):
    """The rows of h with anything that is not finite."""
    return tl.max((tl.abs(h) < float("inf")).to(tl.int32) ^ 1, 1)


@triton.jit
def _network(
    x, own, start, matrices, biases, operands, steps, WIDTHS: tl.constexpr, PIECES: tl.constexpr,
    F1: tl.constexpr, F2: tl.constexpr, F3: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The scores of items x [T, D], before the score's own function, and which of them met something infinite."""
    layers: tl.constexpr = len(PIECES)
    infinite = tl.zeros((x.shape[0],), tl.int32)
    h = ()
    for j in tl.static_range(len(PIECES[0])):
        n = PIECES[0][j][0] + tl.arange(0, PIECES[0][j][1])
        a = _dot(x, own[j], tl.zeros((x.shape[0], PIECES[0][j][1]), tl.float32), PRECISION) + start[j][None, :]
        infinite |= _infinite(a)
        padded: tl.constexpr = PIECES[0][len(PIECES[0]) - 1][0] + PIECES[0][len(PIECES[0]) - 1][1] > WIDTHS[0]
        h = h + (_function(a, 0, operands, steps, n, WIDTHS[0], padded, F1, F2, F3),)
    for i in tl.static_range(1, layers):
        wider = ()
        for j in tl.static_range(len(PIECES[i])):
            n = PIECES[i][j][0] + tl.arange(0, PIECES[i][j][1])
            a = tl.zeros((x.shape[0], PIECES[i][j][1]), tl.float32)
            for l in tl.static_range(len(PIECES[i - 1])):
                m = PIECES[i - 1][l][0] + tl.arange(0, PIECES[i - 1][l][1])
                ok = (n < WIDTHS[i])[None, :] & (m < WIDTHS[i - 1])[:, None]
                w = tl.load(matrices[i - 1] + n[None, :] * WIDTHS[i - 1] + m[:, None], mask=ok, other=0.0)
                a = _dot(h[l].to(w.dtype), w, a, PRECISION)
            a += tl.load(biases[i] + n, mask=n < WIDTHS[i], other=0.0).to(tl.float32)[None, :]
            infinite |= _infinite(a)
            wider = wider + (_function(a, i, operands, steps, n, WIDTHS[i], True, F1, F2, F3),)
        h = wider
    s = tl.load(biases[layers]).to(tl.float32) + tl.zeros((x.shape[0],), tl.float32)
    for j in tl.static_range(len(PIECES[layers - 1])):
        n = PIECES[layers - 1][j][0] + tl.arange(0, PIECES[layers - 1][j][1])
        w = tl.load(matrices[layers - 1] + n, mask=n < WIDTHS[layers - 1], other=0.0).to(tl.float32)
        s += tl.sum(h[j] * w[None, :], 1)
    return LAST(s, operands[layers], steps[layers], 0, True), infinite


# No argument may be called `params`: the launcher that Triton generates uses the name itself.
@triton.jit
def unit_kernel(
    q, k, v, out, partial, locks, wq, wk, wp, matrices, biases, operands, steps, marks, mark_steps,
    q_steps, k_steps, v_steps, INNER, T,
    D: tl.constexpr, E: tl.constexpr, WIDTHS: tl.constexpr, PIECES: tl.constexpr,
    F1: tl.constexpr, F2: tl.constexpr, F3: tl.constexpr, LAST: tl.constexpr, SCORE: tl.constexpr,
    SOFTMAX: tl.constexpr, SAME: tl.constexpr, PRECISION: tl.constexpr,
    BT: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One row a program, or one of SPLIT parts of its history, which the last program of a row adds up.

    ``operands`` are the layers' parameters with ``steps`` by channel, ``marks`` the score's with ``mark_steps`` by
    row and item; SAME says that k is v.
    """
    row = tl.program_id(0)
    part = tl.program_id(1)
    outer = (row // INNER).to(tl.int64)
    inner = (row % INNER).to(tl.int64)
    d = tl.arange(0, DP)
    e = tl.arange(0, EP)
    target = tl.load(q + outer * q_steps[0] + inner * q_steps[1] + d * q_steps[2], mask=d < D, other=0.0)
    target = target.to(tl.float32)
    own = ()
    start = ()
    for j in tl.static_range(len(PIECES[0])):
        n = PIECES[0][j][0] + tl.arange(0, PIECES[0][j][1])
        w, c = _first(target, wq, wk, wp, biases[0], d, n, D, WIDTHS[0])
        own = own + (w.to(k.dtype.element_ty),)
        start = start + (c,)
    at_marks = ()
    for i in tl.static_range(len(marks)):
        at_marks = at_marks + (marks[i] + outer * mark_steps[i][0] + inner * mark_steps[i][1],)
    k += outer * k_steps[0] + inner * k_steps[1]
    v += outer * v_steps[0] + inner * v_steps[1]
    length = tl.cdiv(tl.cdiv(T, BT), SPLIT) * BT
    stop = tl.minimum(T, (part + 1) * length)
    total = tl.zeros((EP,), tl.float32)
    highest = -float("inf")
    weight = 0.0
    for begin in range(part * length, stop, BT):
        t = begin + tl.arange(0, BT)
        ok = t < T
        x = tl.load(
            k + t[:, None].to(tl.int64) * k_steps[2] + d[None, :] * k_steps[3],
            mask=ok[:, None] & (d < D)[None, :], other=0.0,
        )  # fmt: skip
        s, infinite = _network(
            x, own, start, matrices, biases, operands, steps, WIDTHS, PIECES, F1, F2, F3, LAST, PRECISION
        )  # fmt: skip
        if PRECISION == "split":
            # The rest of an infinite operand is inf - inf: such an item is scored by the plain product.
            if tl.max(tl.where(ok, infinite, 0)) > 0:
                plain, _ = _network(
                    x, own, start, matrices, biases, operands, steps, WIDTHS, PIECES, F1, F2, F3, LAST, "tf32"
                )  # fmt: skip
                s = tl.where(infinite > 0, plain, s)
        places = ()
        none = ()
        for i in tl.static_range(len(marks)):
            places = places + (at_marks[i] + t * mark_steps[i][2],)
            none = none + (0,)
        s = SCORE(s, places, none, 0, ok)
        if SAME:
            y = x
        else:
            y = tl.load(
                v + t[:, None].to(tl.int64) * v_steps[2] + e[None, :] * v_steps[3],
                mask=ok[:, None] & (e < E)[None, :], other=0.0,
            )  # fmt: skip
        if SOFTMAX:
            s = tl.where(ok, s, -float("inf"))
            above = tl.maximum(highest, tl.max(s, 0))
            origin = tl.where(above == -float("inf"), 0.0, above)
            s = tl.exp(s - origin)
            kept = tl.exp(highest - origin)
            weight = weight * kept + tl.sum(s, 0)
            total *= kept
            highest = above
        else:
            s = tl.where(ok, s, 0.0)
        total += tl.sum(s[:, None] * y.to(tl.float32), 0)
    if SPLIT > 1:
        size: tl.constexpr = EP + 2
        slot = partial + (row.to(tl.int64) * SPLIT + part) * size
        tl.store(slot + e, total, cache_modifier=".cg")
        tl.store(slot + EP, highest, cache_modifier=".cg")
        tl.store(slot + EP + 1, weight, cache_modifier=".cg")
        tl.debug_barrier()
        # The count wraps to zero with the last arrival, so the next launch finds it clean.
        arrived = tl.atomic_add(locks + row, 1, sem="acq_rel")
        if arrived != SPLIT - 1:
            return
        tl.store(locks + row, 0)
        total = tl.zeros((EP,), tl.float32)
        highest = -float("inf")
        weight = 0.0
        for other in range(SPLIT):
            slot = partial + (row.to(tl.int64) * SPLIT + other) * size
            more = tl.load(slot + e, cache_modifier=".cg")
            if SOFTMAX:
                high = tl.load(slot + EP, cache_modifier=".cg")
                above = tl.maximum(highest, high)
                origin = tl.where(above == -float("inf"), 0.0, above)
                kept = tl.exp(highest - origin)
                added = tl.exp(high - origin)
                weight = weight * kept + tl.load(slot + EP + 1, cache_modifier=".cg") * added
                total = total * kept + more * added
                highest = above
            else:
                total += more
    if SOFTMAX:
        total = total / weight
    tl.store(out + row.to(tl.int64) * E + e, total.to(out.dtype.element_ty), mask=e < E)
