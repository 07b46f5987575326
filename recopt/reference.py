"""What each fused operator computes, in numpy and float64: the reference for what is written into graphs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .fused import (
    Again,
    Attention,
    AttentionWeights,
    Bag,
    Bilinear,
    Concat,
    DotInteraction,
    EmbeddingBags,
    Flip,
    Gru,
    LayerNorm,
    Permute,
    Reshape,
    Slice,
    Spec,
    Step,
    Take,
    TargetAttention,
    View,
)
from .hosts.base import Array
from .ir import sizes
from .ir.rules import FLOATS
from .ir.term import Leaf
from .recognise import epilogue, id_programs


def computed(spec: Spec, leaf: Callable[[Leaf], Array], symbols: Mapping[str, int]) -> Array:
    """A fused operator as its lowering must compute it, in float64, over the arrays of the leaves that it reads."""

    def stored(view: View) -> Array:
        return apply_steps(leaf(view.value), view.steps, symbols)

    def value(view: View) -> Array:
        array = stored(view)
        return array.astype(np.float64) if view.value.dtype in FLOATS else array

    if isinstance(spec, EmbeddingBags):
        shape = [sizes.evaluate(s, symbols) for s in spec.shape]

        def term(t: Bag | View | Again) -> Array:
            if isinstance(t, Again):
                count = int(np.prod(shape[:-1]))
                return np.resize(t.rows.astype(np.float64), (count, t.rows.shape[1])).reshape(*shape[:-1], -1)
            return _bag(t, value, stored) if isinstance(t, Bag) else value(t)

        pieces = [sum(map(term, piece)) for piece in spec.pieces]
        return apply_steps(np.concatenate(pieces, axis=-1), spec.steps, symbols)

    if isinstance(spec, Attention):
        return apply_steps(_attention(spec, value), spec.steps, symbols)
    if isinstance(spec, AttentionWeights):
        h = (value(spec.k) @ value(spec.q)[..., None])[..., 0]
        return apply_steps(_weights(spec, h, value), spec.steps, symbols)
    if isinstance(spec, LayerNorm):
        x = value(spec.x)
        x = x - x.mean(-1, keepdims=True) if spec.centred else x
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + spec.eps)
        return apply_steps(x * spec.g + spec.b, spec.steps, symbols)
    if isinstance(spec, DotInteraction):
        x = value(spec.x)
        vectors = np.stack([x[:, start : start + spec.size] for start in spec.starts], 1)
        first, second = np.array(spec.pairs).T
        return apply_steps((vectors[:, first] * vectors[:, second]).sum(-1), spec.steps, symbols)
    if isinstance(spec, Bilinear):
        q = value(spec.q) @ spec.w.astype(np.float64).T
        return apply_steps((value(spec.x) @ q[..., None])[..., 0], spec.steps, symbols)
    if isinstance(spec, TargetAttention):
        return apply_steps(_target_attention(spec, value), spec.steps, symbols)

    if isinstance(spec, Gru):
        return apply_steps(_gru(spec, value), spec.steps, symbols)

    views = spec.x.views if isinstance(spec.x, Concat) else (spec.x,)
    x = np.concatenate([value(v) for v in views], axis=-1)
    w = value(spec.w) if isinstance(spec.w, View) else spec.w.astype(np.float64)
    h = x @ w.T
    if spec.b is not None:
        h = h + (value(spec.b) if isinstance(spec.b, View) else spec.b.astype(np.float64))
    params = [value(p) if isinstance(p, View) else p.astype(np.float64) for p in spec.params]
    return apply_steps(epilogue.compute(spec.epilogue, h, params), spec.steps, symbols)


def _attention(spec: Attention, value: Callable[[View], Array]) -> Array:
    """[rows.., S, E]."""
    weights = _weights(spec, value(spec.q) @ value(spec.k).swapaxes(-1, -2), value)
    return np.asarray(weights @ value(spec.v))


def _weights(spec: Attention | AttentionWeights, h: Array, value: Callable[[View], Array]) -> Array:
    """Of products of queries and keys, the keys last."""
    params = [value(p) if isinstance(p, View) else p.astype(np.float64) for p in spec.params]
    scores = epilogue.compute(spec.score, h, params)
    with np.errstate(all="ignore"):
        top = scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
        weights /= weights.sum(axis=-1, keepdims=True)
    if spec.unseen == "scores":
        weights = scores
    elif spec.unseen != "nan":
        weights = np.where(np.isnan(weights) if spec.unseen == "clean" else top == -np.inf, 0.0, weights)
    return np.asarray(weights)


def _target_attention(spec: TargetAttention, value: Callable[[View], Array]) -> Array:
    """[rows.., E]."""
    weights, params = (
        [value(p) if isinstance(p, View) else p.astype(np.float64) for p in items]
        for items in (spec.weights, spec.params)
    )
    q, k, v = value(spec.q)[..., None, :], value(spec.k), value(spec.v)
    h = weights[3]
    for x, w in zip((q, k, q * k), weights[:3], strict=True):
        h = h + (x @ w.T if w.size else 0.0)
    texts = [text.strip() for text in spec.text.split(";")]
    for n, text in enumerate(texts):
        if 0 < n < len(texts) - 1:
            h = h @ weights[2 + 2 * n].T + weights[3 + 2 * n]
        h = h[..., 0] if n == len(texts) - 1 else h
        count = len(set(re.findall(r"\bp\d+", text)))
        h = epilogue.compute(text, h, params[:count])
        params = params[count:]
    if spec.softmax:
        h = np.exp(h - h.max(axis=-1, keepdims=True))
        h = h / h.sum(axis=-1, keepdims=True)
    return np.asarray((h[..., None, :] @ v)[..., 0, :])


def _gru(spec: Gru, value: Callable[[View], Array]) -> Array:
    """[B, T, H]."""

    def array(item: View | Array) -> Array:
        return value(item) if isinstance(item, View) else item.astype(np.float64)

    x, wi, wh, bi, bh = (array(item) for item in (spec.x, spec.wi, spec.wh, spec.bi, spec.bh))
    batch, steps, hidden = *x.shape[:2], wh.shape[1]
    gates = [np.broadcast_to(array(g), (batch, steps)) for g in spec.gates]
    h = np.zeros((batch, hidden)) if spec.h0 is None else np.broadcast_to(array(spec.h0), (batch, hidden))
    ur, uz, un = np.split(wh, 3)
    cr, cz, cn = np.split(bh, 3)
    states = []
    for t in range(steps):
        ar, az, an = np.split(x[:, t] @ wi.T + bi, 3, axis=-1)
        r = epilogue.compute("sigmoid(h)", ar + h @ ur.T + cr, ())
        z = epilogue.compute(spec.keep, az + h @ uz.T + cz, [g[:, t, None] for g in gates])
        n = np.tanh(an + (r * (h @ un.T + cn) if spec.after else (r * h) @ un.T + cn))
        h = z * h + (1 - z) * n
        states.append(h)
    return h if spec.last else np.stack(states, axis=1)


def _bag(bag: Bag, value: Callable[[View], Array], stored: Callable[[View], Array]) -> Array:
    """One bag, [rows.., columns]. Of its table, which may be larger than memory, only rows that are read are copied."""
    given, table = value(bag.ids), stored(bag.table)
    ids = id_programs.compute(bag.program, given) if bag.program else given
    read = (ids % bag.modulus if bag.modulus else ids) + np.asarray(bag.shift)
    if bag.stacked:
        starts, ends = np.array(bag.stacked[:-1]), np.array(bag.stacked[1:])
        read = np.where(read < 0, read + ends, read + starts)
    if bag.of_row:
        read = np.where(read < 0, read + table.shape[0], read)
    inside = (read < bag.below) & (read >= (-bag.below if bag.wraps else 0))
    if bag.below:
        read = np.where(inside, read, 0)
    if not bag.wraps and read.min(initial=0) < 0:
        raise IndexError("a negative id")
    weights = np.ones(ids.shape) if bag.weights is None else value(bag.weights)
    live = inside if bag.below else np.ones(ids.shape, bool)
    if bag.live:
        live = live & id_programs.compute(bag.live, given).astype(bool)
    if bag.mask is not None:
        live = live & (value(bag.mask).reshape(ids.shape).astype(bool) != bag.unmask)
    if bag.pad is not None:
        live = live & (read > bag.pad if bag.above else read != bag.pad)
    if bag.lengths is not None:
        live = live & (np.arange(ids.shape[-1]) < value(bag.lengths).reshape(*ids.shape[:-1], 1))
    member = None
    if bag.offsets is not None:
        starts = value(bag.offsets).reshape(-1)
        ends = starts[1:] if bag.last else np.append(starts[1:], len(ids))
        place = np.arange(len(ids))
        member = (starts[: len(ends), None] <= place) & (place < ends[:, None])
    picked = table[read].astype(np.float64) if bag.table.value.dtype in FLOATS else table[read]
    if bag.pool == "max":
        seen = live if member is None else member & live
        shown = np.where(seen[..., None], picked * weights[..., None], -np.inf)
        some = np.asarray(seen.any(-1))
        return np.where(some[..., None], shown.max(axis=-2, initial=-np.inf), bag.otherwise)
    weights = weights * live
    rows: Array = picked * weights[..., None] * bag.factor
    if bag.pool == "row":
        return rows.reshape(*rows.shape[:-2], rows.shape[-2] * rows.shape[-1])
    if member is not None:
        pooled, n = member @ rows, member @ weights
    else:
        pooled, n = rows.sum(axis=-2), weights.sum(axis=-1)
    n = n if bag.over is None else value(bag.over).reshape(n.shape)
    div = (1.0, 0.0) if bag.pool == "mean" else bag.div
    return np.asarray(pooled if div is None else pooled / (np.maximum(n, div[0]) + div[1])[..., None])


def apply_steps(array: Array, steps: Sequence[Step], symbols: Mapping[str, int]) -> Array:
    """Layout steps in numpy."""
    for step in steps:
        if isinstance(step, Permute):
            array = array.transpose(step.perm)
        elif isinstance(step, Reshape):
            array = array.reshape([sizes.evaluate(s, symbols) for s in step.shape])
        elif isinstance(step, Flip):
            array = np.flip(array, step.dim)
        elif isinstance(step, Take):
            array = array.take(step.places, step.dim)
        else:
            assert isinstance(step, Slice)
            index: list[slice] = [slice(None)] * array.ndim
            index[step.dim] = slice(step.start, sizes.evaluate(step.stop, symbols), step.step)
            array = array[tuple(index)]
    return array
