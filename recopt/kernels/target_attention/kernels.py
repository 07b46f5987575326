# mypy: ignore-errors
# ruff: noqa: RUF005 - Triton takes no unpacking inside a tuple
# Device code: Triton's compiler gives these functions their types, Python's cannot.
"""The Triton kernel of ``recopt::target_attention``: a program takes one row's history, or a part of it.

The row's own first layer, Wk + diag(q) Wp, stays on the chip, as do all layers' results; the history is read once.
Widths are cut into pieces of 32 and 16, so that 80 costs no more than 80.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..linear.kernels import _cut, _nearest
from ..triton_math import INTERPRETED


@triton.constexpr_function
def count(pieces, layer):
    """How many pieces a layer's width has."""
    return len(pieces[layer])


@triton.constexpr_function
def padded(pieces, widths, layer):
    """Whether a layer's pieces reach past its width."""
    return sum(pieces[layer][-1]) > widths[layer]


@triton.constexpr_function
def begin(pieces, layer, piece):
    """A piece's first column."""
    return pieces[layer][piece][0]


@triton.constexpr_function
def size(pieces, layer, piece):
    """How many columns a piece has."""
    return pieces[layer][piece][1]


@triton.jit
def _columns(PIECES: tl.constexpr, layer: tl.constexpr, piece: tl.constexpr):
    return begin(PIECES, layer, piece) + tl.arange(0, size(PIECES, layer, piece))


@triton.jit
def _of_target(q, wq, b, n, WIDTHS: tl.constexpr, PIECES: tl.constexpr):
    """What the target adds to a piece of the first layer, [piece], in float32."""
    start = tl.load(b + n, mask=n < WIDTHS[1], other=0.0).to(tl.float32)
    if wq is not None:
        for c in tl.static_range(count(PIECES, 0)):
            w = _weights(wq, n, _columns(PIECES, 0, c), WIDTHS[1], WIDTHS[0]).to(tl.float32)
            start += tl.sum(w * q[c][:, None], 0)
    return start


@triton.jit
def _weights(w, n, d, N: tl.constexpr, D: tl.constexpr):
    """A piece of a layer's matrix w [N, D], transposed: [d, n]."""
    return tl.load(w + n[None, :] * D + d[:, None], mask=(n < N)[None, :] & (d < D)[:, None], other=0.0)


@triton.jit
def _of_items(q, wk, wp, n, d, N: tl.constexpr, D: tl.constexpr):
    """A piece of the row's own first layer, Wk + diag(q) Wp, transposed, in float32."""
    if wp is None:
        own = _weights(wk, n, d, N, D).to(tl.float32)
    else:
        own = _weights(wp, n, d, N, D).to(tl.float32) * q[:, None]
        if wk is not None:
            own += _weights(wk, n, d, N, D).to(tl.float32)
    return own


@triton.jit
def _function(
    h, i: tl.constexpr, operands, steps, n, N: tl.constexpr, PADDED: tl.constexpr,
    F1: tl.constexpr, F2: tl.constexpr, F3: tl.constexpr,
):  # fmt: skip
    """The function of hidden layer i; 0 in columns past the layer's width, whatever the function makes of nothing."""
    ok = (n < N)[None, :]
    if i == 1:
        h = F1(h, operands[0], steps[0], n[None, :], ok)
    if i == 2:
        h = F2(h, operands[1], steps[1], n[None, :], ok)
    if i == 3:
        h = F3(h, operands[2], steps[2], n[None, :], ok)
    if PADDED:
        h = tl.where(ok, h, 0.0)
    return h


@triton.jit
def split(a):
    """What the tensor cores keep of a float32 operand, and of the rest."""
    high = _cut(a * 1.0003452669831)
    return high, _nearest(a - high)


@triton.jit
def product(a, b, acc, WHOLE: tl.constexpr):
    """acc + a b; WHOLE: of float32 operands at float32's accuracy, by three TF32 products of what the tensor cores keep
    of each and of the rests (see ``linear.kernels``)."""
    if WHOLE:
        whole, rests = product_of_parts(a, b, acc, tl.zeros_like(acc))
        return joined(whole, rests)
    else:
        return tl.dot(a, b, acc)


@triton.jit
def product_of_parts(a, b, acc, rests):
    """acc and ``rests`` with the product of what is kept, and with those of the rests, added. A sum over more than a
    few of the former on the tensor cores would lose what they drop; the latter are too small for that to matter."""
    a_high, a_low = split(a)
    b_high = _cut(b)
    b_low = _nearest(b - b_high)
    if a.shape[0] >= 64 and not INTERPRETED:
        b_high = b  # the tensor core cuts it itself
    rests = tl.dot(a_low, b_high, rests, input_precision="tf32")
    rests = tl.dot(a_high, b_low, rests, input_precision="tf32")
    return acc + tl.dot(a_high, b_high, input_precision="tf32"), rests


@triton.jit
def accumulated(a, b, acc, rests, WHOLE: tl.constexpr):
    """`product_of_parts`, or the one product of half precision."""
    if WHOLE:
        return product_of_parts(a, b, acc, rests)
    else:
        return tl.dot(a, b, acc), rests


@triton.jit
def joined(whole, rests):
    """The rest of an infinite operand is nan: the whole product alone says what holds there."""
    return whole + tl.where(rests == rests, rests, 0.0)


@triton.jit
def as_left(h, WHOLE: tl.constexpr):
    """A product's result [T, N] as the left operand of the next, its columns in the order of ``left_columns``.

    A lane holds columns 2i and 2i + 1 of eight of a result, but i and i + 4 of a left operand in float32: in this order
    nothing has to be moved between lanes.
    """
    if WHOLE:
        T: tl.constexpr = h.shape[0]
        N: tl.constexpr = h.shape[1]
        h = h.reshape(T, N // 8, 4, 2).permute(0, 1, 3, 2).reshape(T, N)
    return h


@triton.jit
def left_columns(n, WHOLE: tl.constexpr):
    """The columns that stand at ``n`` in ``as_left``."""
    if WHOLE:
        n = n // 8 * 8 + n % 4 * 2 + n % 8 // 4
    return n


@triton.jit
def _network(
    k, at, step, ok, late, q, wk, wp, start, matrices, biases, operands, steps,
    WIDTHS: tl.constexpr, PIECES: tl.constexpr, F1: tl.constexpr, F2: tl.constexpr, F3: tl.constexpr,
    LAST: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The scores of items k + at, [T], before the score's own function.

    ``late`` is 0, but the compiler knows only that 16 divides it: parameters that depend on it are read where they are
    used, and not kept in registers across the loop.
    """
    layers: tl.constexpr = len(PIECES) - 1
    T: tl.constexpr = at.shape[0]
    h = ()
    rests = ()
    for j in tl.static_range(count(PIECES, 1)):
        h = h + (tl.zeros((T, size(PIECES, 1, j)), tl.float32) + start[j][None, :],)
        rests = rests + (tl.zeros((T, size(PIECES, 1, j)), tl.float32),)
    for c in tl.static_range(count(PIECES, 0)):
        d = _columns(PIECES, 0, c)
        x = tl.load(k + at[:, None] + d[None, :] * step, mask=ok[:, None] & (d < WIDTHS[0])[None, :], other=0.0)
        wider = ()
        more = ()
        for j in tl.static_range(count(PIECES, 1)):
            own = _of_items(q[c], wk, wp, _columns(PIECES, 1, j), d, WIDTHS[1], WIDTHS[0])
            y, rest = accumulated(x, own.to(x.dtype), h[j], rests[j], WHOLE)
            wider = wider + (y,)
            more = more + (rest,)
        h = wider
        rests = more
    for i in tl.static_range(1, layers + 1):
        wider = ()
        for j in tl.static_range(count(PIECES, i)):
            n = _columns(PIECES, i, j) + late
            y = joined(h[j], rests[j]) if WHOLE else h[j]
            wider = wider + (_function(y, i, operands, steps, n, WIDTHS[i], padded(PIECES, WIDTHS, i), F1, F2, F3),)
        h = wider
        if i < layers:
            sums = ()
            rests = ()
            for j in tl.static_range(count(PIECES, i + 1)):
                n = _columns(PIECES, i + 1, j)
                b = tl.load(biases[i] + n + late, mask=n < WIDTHS[i + 1], other=0.0).to(tl.float32)
                sums = sums + (tl.zeros((T, size(PIECES, i + 1, j)), tl.float32) + b[None, :],)
                rests = rests + (tl.zeros((T, size(PIECES, i + 1, j)), tl.float32),)
            # A piece of h is split once and let go: all of them at once take more registers than there are.
            for c in tl.static_range(count(PIECES, i)):
                m = left_columns(_columns(PIECES, i, c), WHOLE)
                x = as_left(h[c], WHOLE)
                wider = ()
                more = ()
                for j in tl.static_range(count(PIECES, i + 1)):
                    w = _weights(matrices[i - 1], _columns(PIECES, i + 1, j), m, WIDTHS[i + 1], WIDTHS[i])
                    y, rest = accumulated(x.to(w.dtype), w, sums[j], rests[j], WHOLE)
                    wider = wider + (y,)
                    more = more + (rest,)
                sums = wider
                rests = more
            h = sums
    s = tl.load(biases[layers]).to(tl.float32) + tl.zeros((T,), tl.float32)
    for j in tl.static_range(count(PIECES, layers)):
        n = _columns(PIECES, layers, j)
        w = tl.load(matrices[layers - 1] + n + late, mask=n < WIDTHS[layers], other=0.0).to(tl.float32)
        s += tl.sum(h[j] * w[None, :], 1)
    return LAST(s, operands[layers], steps[layers], 0, True)


@triton.jit
def _marks(at_marks, mark_steps, t):
    """Where the score's parameters of items t lie, and as many steps of nothing."""
    places = ()
    none = ()
    for i in tl.static_range(len(at_marks)):
        places = places + (at_marks[i] + t * mark_steps[i][2],)
        none = none + (0,)
    return places, none


@triton.jit
def _pooled(s, v, v_steps, t, ok, total, highest, weight, E: tl.constexpr, SOFTMAX: tl.constexpr):
    """The sum so far, its highest score and its weight, with the values of items t added by their scores s."""
    e = tl.arange(0, total.shape[0])
    y = tl.load(
        v + t[:, None].to(tl.int64) * v_steps[2] + e[None, :] * v_steps[3], mask=ok[:, None] & (e < E)[None, :],
        other=0.0,
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
    return total, highest, weight


# No argument may be called `params`: the launcher that Triton generates uses the name itself.
@triton.jit
def unit_kernel(
    q, k, v, out, partial, locks, wq, wk, wp, matrices, biases, operands, steps, marks, mark_steps,
    q_steps, k_steps, v_steps, INNER, T,
    E: tl.constexpr, WIDTHS: tl.constexpr, PIECES: tl.constexpr,
    F1: tl.constexpr, F2: tl.constexpr, F3: tl.constexpr, LAST: tl.constexpr, SCORE: tl.constexpr,
    NEEDED: tl.constexpr, SOFTMAX: tl.constexpr, WHOLE: tl.constexpr, BT: tl.constexpr, EP: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """One row a program, or one of SPLIT parts of its history, which the last program of a row adds up.

    WIDTHS are D and those of the hidden layers, PIECES what each is cut into; ``operands`` the layers' parameters with
    ``steps`` by channel, ``marks`` the score's with ``mark_steps`` by row and item. A block of items whose scores are
    the same whatever the network says (NEEDED), past the end of a short history say, goes without it.
    """
    row = tl.program_id(0)
    part = tl.program_id(1)
    outer = (row // INNER).to(tl.int64)
    inner = (row % INNER).to(tl.int64)
    e = tl.arange(0, EP)
    q += outer * q_steps[0] + inner * q_steps[1]
    target = ()
    for c in tl.static_range(count(PIECES, 0)):
        d = _columns(PIECES, 0, c)
        target = target + (tl.load(q + d * q_steps[2], mask=d < WIDTHS[0], other=0.0).to(tl.float32),)
    start = ()
    for j in tl.static_range(count(PIECES, 1)):
        start = start + (_of_target(target, wq, biases[0], _columns(PIECES, 1, j), WIDTHS, PIECES),)
    at_marks = ()
    for i in tl.static_range(len(marks)):
        at_marks = at_marks + (marks[i] + outer * mark_steps[i][0] + inner * mark_steps[i][1],)
    k += outer * k_steps[0] + inner * k_steps[1]
    v += outer * v_steps[0] + inner * v_steps[1]
    length = tl.cdiv(tl.cdiv(T, BT), SPLIT) * BT
    head = tl.minimum(T, part * length)
    stop = tl.minimum(T, head + length)
    # Items before left and from right on have scores that are the same whatever the network says.
    left = head
    right = stop
    if NEEDED is not None:
        left = stop
        right = head
        for first in range(head, stop, BT):
            t = first + tl.arange(0, BT)
            places, none = _marks(at_marks, mark_steps, t)
            read = (NEEDED(tl.full((BT,), 1.0, tl.float32), places, none, 0, t < stop) != 0.0) & (t < stop)
            left = tl.minimum(left, tl.min(tl.where(read, t, T), 0))
            right = tl.maximum(right, tl.max(tl.where(read, t + 1, 0), 0))
    total = tl.zeros((EP,), tl.float32)
    highest = -float("inf")
    weight = 0.0
    for first in range(left, right, BT):
        t = first + tl.arange(0, BT)
        s = _network(
            k, t.to(tl.int64) * k_steps[2], k_steps[3], t < right, (first >> 30) * 16, target, wk, wp, start, matrices,
            biases, operands, steps, WIDTHS, PIECES, F1, F2, F3, LAST, WHOLE,
        )  # fmt: skip
        places, none = _marks(at_marks, mark_steps, t)
        s = SCORE(s, places, none, 0, t < right)
        total, highest, weight = _pooled(s, v, v_steps, t, t < right, total, highest, weight, E, SOFTMAX)
    if NEEDED is not None:
        for side in tl.static_range(2):
            # Where no item needs the network, left is the end and right the beginning.
            begin = tl.maximum(left, right) if side else head
            end = stop if side else left
            for first in range(begin, end, BT):
                t = first + tl.arange(0, BT)
                places, none = _marks(at_marks, mark_steps, t)
                s = SCORE(tl.zeros((BT,), tl.float32), places, none, 0, t < end)
                total, highest, weight = _pooled(s, v, v_steps, t, t < end, total, highest, weight, E, SOFTMAX)
    if SPLIT > 1:
        stride: tl.constexpr = EP + 2
        slot = partial + (row.to(tl.int64) * SPLIT + part) * stride
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
            slot = partial + (row.to(tl.int64) * SPLIT + other) * stride
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
