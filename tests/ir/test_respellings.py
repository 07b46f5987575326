"""Random spellings of one meaning reach one normal form, and compute the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recopt.ir import ops, tensor
from recopt.ir.tensor import Tensor

from .pairs import QUICK, N, agree, normal, same, source, value

K, M = 12, 6
X, W, B = source("x", N, K), source("w", M, K), source("b", M)
TRUTH = value(X) @ value(W).T


@st.composite
def moved(draw: st.DrawFn, t: Tensor) -> Tensor:
    """A detour through layout operators that ends where it began."""
    for _ in range(draw(st.integers(0, 2))):
        last = len(t.dims) - 1
        extent = t.shape[last]
        assert isinstance(extent, int)
        kind = draw(st.sampled_from(["split", "cut", "flip", "turn", "stack", "flat", "pad", "expand"]))
        if kind == "split":
            part = draw(st.sampled_from([n for n in (1, 2, 3, extent) if extent % n == 0]))
            t = tensor.reshape(tensor.reshape(t, [*t.shape[:-1], extent // part, part]), t.shape)
        elif kind == "cut" and extent > 1:
            at = draw(st.integers(1, extent - 1))
            pieces = [tensor.slice_dim(t, last, 0, at), tensor.slice_dim(t, last, at, extent - at)]
            t = tensor.concat(pieces, last)
        elif kind == "flip":
            t = tensor.flip(tensor.flip(t, [last]), [last])
        elif kind == "turn" and last:
            t = tensor.permute(tensor.permute(t, [last, *range(last)]), [*range(1, last + 1), 0])
        elif kind == "stack":
            at = draw(st.integers(0, last + 1))
            t = tensor.select(tensor.stack([t, ops.times(t, 3)], at), at, 0)
        elif kind == "flat" and last:
            t = tensor.reshape(tensor.reshape(t, [t.shape[0] * extent]), t.shape)
        elif kind == "pad":
            t = tensor.slice_dim(tensor.pad(t, last, 2, 1, 7), last, 2, extent)
        elif kind == "expand":
            t = tensor.select(tensor.expand(tensor.unsqueeze(t, 0), [4, *t.shape]), 0, draw(st.integers(0, 3)))
    return t


@st.composite
def product(draw: st.DrawFn, x: Tensor, w: Tensor, whole: bool = True) -> Tensor:
    """sum_k x[n,k] * w[m,k], spelled in any way."""
    x, w = draw(moved(x)), draw(moved(w))
    depth, width = w.shape[1], w.shape[0]
    assert isinstance(depth, int) and isinstance(width, int)
    kinds = ["einsum", "matmul", "turned", "multiply", "conv", "batched", "diagonal"]
    kind = draw(st.sampled_from(kinds + (["depth", "width", "parts"] if whole else [])))
    if kind == "einsum":
        n, m, k = draw(st.permutations("abc"))
        operands = [(n + k, x), (m + k, w)]
        if draw(st.booleans()):
            operands.reverse()
        return ops.einsum(f"{operands[0][0]},{operands[1][0]}->{n}{m}", operands[0][1], operands[1][1])
    if kind == "matmul":
        return ops.matmul(x, tensor.permute(w, [1, 0]))
    if kind == "turned":
        return tensor.permute(ops.matmul(w, tensor.permute(x, [1, 0])), [1, 0])
    if kind == "multiply":
        return ops.total(ops.multiply(tensor.unsqueeze(x, 1), w), [2])
    if kind == "conv":
        image, kernel = tensor.unsqueeze(x, 2), tensor.unsqueeze(w, 2)
        return tensor.squeeze(ops.convolution(image, kernel, None, [1], [0], [1], 1), [2])
    if kind == "batched":
        heads = tensor.reshape(w, [2, width // 2, depth]) if width % 2 == 0 else tensor.unsqueeze(w, 0)
        y = ops.matmul(
            tensor.expand(tensor.unsqueeze(x, 0), [heads.shape[0], *x.shape]), tensor.permute(heads, [0, 2, 1])
        )
        return tensor.reshape(tensor.permute(y, [1, 0, 2]), [x.shape[0], width])
    if kind == "diagonal":
        wide = ops.multiply(tensor.unsqueeze(tensor.unsqueeze(x, 1), 3), tensor.unsqueeze(w, 3))
        both = tensor.expand(wide, [x.shape[0], width, depth, 2])
        return ops.total(tensor.select(both, 3, 1), [2])
    if kind == "depth":
        at = draw(
            st.integers(1, depth - 2)
        )  # two single products stay two: x[0]*w[0] + x[1]*w[1] is no sum over an axis
        cut = [(tensor.slice_dim(x, 1, s, n), tensor.slice_dim(w, 1, s, n)) for s, n in ((0, at), (at, depth - at))]
        return ops.add(*(draw(product(a, b, False)) for a, b in draw(st.permutations(cut))))
    if kind == "width":
        at = draw(st.integers(1, width - 1))
        rows = [tensor.slice_dim(w, 0, 0, at), tensor.slice_dim(w, 0, at, width - at)]
        return tensor.concat([draw(product(x, r, False)) for r in rows], 1)
    pieces = tensor.reshape(x, [x.shape[0], 3, depth // 3]) if depth % 3 == 0 else tensor.unsqueeze(x, 1)
    blocks = tensor.reshape(w, [width, pieces.shape[1], pieces.shape[2]])
    partial = ops.einsum("npk,mpk->npm", pieces, blocks)
    return ops.total(partial, [1])


@QUICK
@given(product(X, W).flatmap(moved))
def test_a_product(y: Tensor) -> None:
    agree((y, TRUTH))
    same(y, ops.einsum("nk,mk->nm", X, W))


def _scaled(where: int, c: float) -> Callable[[Tensor, Tensor], Tensor]:
    def y(x: Tensor, b: Tensor) -> Tensor:
        if where == 0:
            return ops.add(ops.matmul(ops.times(x, c), tensor.permute(W, [1, 0])), ops.times(b, c))
        if where == 1:
            return ops.add(ops.times(b, c), ops.matmul(x, ops.times(tensor.permute(W, [1, 0]), c)))
        if where == 2:
            return ops.times(ops.add(ops.matmul(x, tensor.permute(W, [1, 0])), b), c)
        return ops.divide(ops.add(ops.matmul(x, tensor.permute(W, [1, 0])), b), tensor.scalar(1 / c, "float32"))

    return y


@QUICK
@given(st.integers(0, 3), st.sampled_from([0.5, 2.0, -4.0]), moved(X), moved(B))
def test_scales_before_and_after(where: int, c: float, x: Tensor, b: Tensor) -> None:
    y = _scaled(where, c)(x, b)
    agree((y, c * (TRUTH + value(B))))
    same(y, _scaled(2, c)(X, B))


@QUICK
@given(st.permutations(range(4)), st.booleans(), st.integers(0, 3))
def test_sums_in_any_order_and_grouping(order: list[int], left: bool, minus: int) -> None:
    terms = [ops.matmul(X, tensor.permute(W, [1, 0])), B, source("c", N, M), source("d", 1, M)]
    spelled = [ops.times(ops.times(t, -1), -1) if n == minus else t for n, t in enumerate(terms)]
    a, b, c, d = (spelled[n] for n in order)
    y = ops.add(ops.add(ops.add(a, b), c), d) if left else ops.sub(ops.add(a, ops.add(b, c)), ops.times(d, -1))
    same(y, ops.add(*terms))


TABLE, IDS = source("t", 7, M), source("ids", N, dtype="int64", high=7)


@QUICK
@given(st.sampled_from(["take", "one_hot", "last", "two", "mask"]), moved(TABLE))
def test_a_lookup(kind: str, table: Tensor) -> None:
    if kind == "take":
        y = ops.take(table, IDS)
    elif kind == "one_hot":
        y = ops.matmul(ops.one_hot(IDS, 7, "float32"), table)
    elif kind == "last":
        y = tensor.permute(ops.take(tensor.permute(table, [1, 0]), IDS, 1), [1, 0])
    elif kind == "two":
        y = tensor.select(ops.take(table, tensor.unsqueeze(IDS, 1)), 1, 0)
    else:  # where(ids == row, table, 0), summed over the rows
        hot = ops.one_hot(IDS, 7, "float32")
        y = ops.total(ops.multiply(tensor.unsqueeze(hot, 2), table), [1])
    agree((y, value(TABLE)[value(IDS)]))
    reference = ops.take(TABLE, IDS)
    if kind in ("one_hot", "mask"):  # ids outside of the table count 0 there: a guard that no table shows
        reference = ops.matmul(ops.one_hot(IDS, 7, "float32"), TABLE)
    same(y, reference)


@QUICK
@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), moved(X))
def test_functions_see_through_layout(where: list[int], x: Tensor) -> None:
    y = x
    for n in where:  # exp once, at a random place among layouts that undo each other
        y = tensor.flip(tensor.flip(y, [1]), [1]) if n else tensor.permute(tensor.permute(y, [1, 0]), [1, 0])
    late = ops.pointwise("exp", y)
    early = tensor.reshape(ops.pointwise("exp", tensor.reshape(x, [N, 3, 4])), [N, K])
    same(early, late)
    same(late, ops.pointwise("exp", X))
    agree((late, np.exp(value(X))))


def test_different_meanings_stay_different() -> None:
    plain = ops.matmul(X, tensor.permute(W, [1, 0]))
    for other in (
        ops.matmul(tensor.flip(X, [1]), tensor.permute(W, [1, 0])),
        ops.times(plain, 1.001),
        ops.add(plain, plain),
        ops.matmul(tensor.slice_dim(X, 1, 0, 11), tensor.permute(tensor.slice_dim(W, 1, 0, 11), [1, 0])),
        ops.matmul(
            tensor.reshape(tensor.permute(tensor.reshape(X, [N, 3, 4]), [0, 2, 1]), [N, K]), tensor.permute(W, [1, 0])
        ),
        ops.einsum("nk,mk->mn", X, W),
    ):
        assert normal(other) != normal(plain)
