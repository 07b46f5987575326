"""Tensors beside the numpy arrays that they mean, and random layout operators on both."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from recopt.ir import ops, sizes, tensor
from recopt.ir.evaluate import evaluate
from recopt.ir.show import show
from recopt.ir.sizes import Size
from recopt.ir.tensor import Tensor

Array = npt.NDArray[Any]

# RECOPT_FUZZ=20 tries twenty times as many
EXAMPLES = 60 * int(os.environ.get("RECOPT_FUZZ", "1"))
QUICK = settings(max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))

N = sizes.symbol("N")
BATCH = 5  # what N is where numbers are computed; no other size below
SYMBOLS = {"N": BATCH}


@dataclass(frozen=True)
class Source:
    """A leaf with its elements."""

    name: str
    extents: tuple[int, ...]  # with the name what tells leaves apart: equal leaves are one leaf to interned terms
    array: Array = field(compare=False)


def source(name: str, *shape: Size, dtype: str = "float32", high: int = 3) -> Tensor:
    """A leaf of random elements, integers below `high`."""
    extents = [sizes.evaluate(s, SYMBOLS) for s in shape]
    rng = np.random.default_rng(len(name) + sum(extents))
    array = rng.standard_normal(extents) if dtype == "float32" else rng.integers(0, high, extents)
    return tensor.leaf(Source(name, tuple(extents), array), shape, dtype)


def value(t: Tensor) -> Array:
    """The elements of a tensor."""
    return evaluate(t, lambda leaf: leaf.array, SYMBOLS)  # type: ignore[attr-defined]


Pair = tuple[Tensor, Array]
Step = Callable[[Pair], Pair]


def agree(pair: Pair) -> None:
    """The tensor means the array."""
    t, array = pair
    assert tuple(sizes.evaluate(s, SYMBOLS) for s in t.shape) == array.shape
    np.testing.assert_allclose(value(t), array, rtol=1e-9, atol=1e-12)


def normal(t: Tensor) -> Tensor:
    """The normal form, which is its own."""
    form = t.canonical()
    assert form.canonical() == form and form.canonical().body is form.body
    return form


def same(a: Tensor, b: Tensor) -> None:
    """Both mean the same, and the normal form shows it."""
    assert show(a) == show(b), f"{show(a)}\n{show(b)}"
    assert normal(a) == normal(b)


def _extent(size: Size) -> int:
    return sizes.evaluate(size, SYMBOLS)


@st.composite
def layouts(draw: st.DrawFn, pair: Pair, most: int = 6) -> Pair:
    """`pair` after random layout operators."""
    for _ in range(draw(st.integers(0, most))):
        pair = draw(layout(pair))
    return pair


@st.composite
def layout(draw: st.DrawFn, pair: Pair) -> Pair:
    """One random layout operator, applied to both."""
    t, a = pair
    rank = a.ndim
    small = len(t.body.monos) < 4  # pieces double; beyond the limits a term is refused, which is no matter of layout
    kinds = ["unsqueeze", "stack"] + (
        ["permute", "flip", "split", "merge", "slice", "pad", "concat", "select"] * (rank > 0)
    )
    kind = draw(st.sampled_from(kinds))
    d = draw(st.integers(0, max(0, rank - 1)))
    if kind == "unsqueeze":
        at = draw(st.integers(0, rank))
        return tensor.unsqueeze(t, at), np.expand_dims(a, at)
    if kind == "stack" and rank < 4 and small:
        at = draw(st.integers(0, rank))
        return tensor.stack([t, ops.times(t, 2)], at), np.stack([a, 2 * a], at)
    if kind == "permute":
        perm = draw(st.permutations(range(rank)))
        return tensor.permute(t, perm), a.transpose(perm)
    if kind == "flip":
        return tensor.flip(t, [d]), np.flip(a, d)
    if kind == "split":
        divisors = [n for n in range(2, 7) if sizes.divide(t.shape[d], n) is not None]
        if divisors:
            n = draw(st.sampled_from(divisors))
            outer = sizes.divide(t.shape[d], n)
            assert outer is not None
            parts: list[Size] = [outer, n] if draw(st.booleans()) else [n, outer]
            shape = [*t.shape[:d], *parts, *t.shape[d + 1 :]]
            return tensor.reshape(t, shape), a.reshape([_extent(s) for s in shape])
    if kind == "merge" and d + 1 < rank:
        shape = [*t.shape[:d], sizes.mul(t.shape[d], t.shape[d + 1]), *t.shape[d + 2 :]]
        return tensor.reshape(t, shape), a.reshape([_extent(s) for s in shape])
    extent = t.shape[d] if rank else None
    if kind == "slice" and isinstance(extent, int) and extent > 1:
        start = draw(st.integers(0, extent - 1))
        step = draw(st.integers(1, 2))
        length = draw(st.integers(1, (extent - start + step - 1) // step))
        index = [slice(None)] * d + [slice(start, start + (length - 1) * step + 1, step)]
        return tensor.slice_dim(t, d, start, length, step), a[tuple(index)]
    if kind == "pad" and small:
        before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        fill = draw(st.sampled_from([0, 1.5]))
        widths = [(before, after) if n == d else (0, 0) for n in range(rank)]
        return tensor.pad(t, d, before, after, fill), np.pad(a, widths, constant_values=fill)
    if kind == "concat" and small:
        return tensor.concat([t, ops.times(t, -1)], d), np.concatenate([a, -a], d)
    if kind == "select" and isinstance(extent, int):
        at = draw(st.integers(0, extent - 1))
        return tensor.select(t, d, at), np.take(a, at, d)
    return pair
