"""Layout operators on random tensors, against numpy; and the normal form of what they give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recopt.ir import ops, tensor
from recopt.ir.normal import substitute
from recopt.ir.sizes import Size
from recopt.ir.tensor import ShapeError
from recopt.ir.term import coord

from .pairs import QUICK, N, Pair, agree, layout, layouts, normal, same, source, value

SHAPES: list[tuple[Size, ...]] = [(N, 6), (N, 3, 4), (4, N), (12,), (2, N, 6), (1, 6), ()]


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    t = source("x", *draw(st.sampled_from(SHAPES)))
    return t, value(t)


@st.composite
def laid_out(draw: st.DrawFn) -> Pair:
    return draw(layouts(draw(pairs())))


@QUICK
@given(laid_out())
def test_layout_is_what_numpy_does(pair: Pair) -> None:
    agree(pair)


@QUICK
@given(laid_out())
def test_normal_form_means_the_same_and_is_its_own(pair: Pair) -> None:
    t, array = pair
    agree((normal(t), array))


@QUICK
@given(laid_out())
def test_substituting_axes_by_themselves_changes_nothing(pair: Pair) -> None:
    form = normal(pair[0])
    assert substitute(form.body, {}) is form.body
    assert substitute(form.body, {a: coord(a) for a in form.axes}) is form.body
    assert substitute(form.body, {}, lambda atom: None) is form.body


@QUICK
@given(laid_out(), st.data())
def test_sums_and_products_of_layouts(pair: Pair, data: st.DataObject) -> None:
    t, a = pair
    dims = data.draw(st.sets(st.integers(0, a.ndim - 1))) if a.ndim else set()
    keep = data.draw(st.booleans())
    agree((ops.total(t, sorted(dims), keep), a.sum(tuple(dims), keepdims=keep)))
    agree((ops.multiply(t, t), a * a))
    agree((ops.reduction("max", t, sorted(dims), keep), a.max(tuple(dims), keepdims=keep)))
    if a.ndim and isinstance(t.shape[-1], int):
        w = source("w", t.shape[-1])
        agree((ops.matmul(t, w), a @ value(w)))


@QUICK
@given(laid_out(), st.data())
def test_a_dimension_may_be_cut_and_put_together_again(pair: Pair, data: st.DataObject) -> None:
    t, a = pair
    for n, extent in enumerate(t.shape):
        if isinstance(extent, int) and extent > 1:
            cut = data.draw(st.integers(1, extent - 1))
            joined = tensor.concat([tensor.slice_dim(t, n, 0, cut), tensor.slice_dim(t, n, cut, extent - cut)], n)
            agree((joined, a))


@QUICK
@given(pairs(), st.data())
def test_a_layout_undone_is_no_layout(pair: Pair, data: st.DataObject) -> None:
    t, _ = pair
    twice = tensor.unsqueeze(t, 0)
    if t.dims:
        perm = data.draw(st.permutations(range(len(t.dims))))
        twice = tensor.permute(
            tensor.permute(twice, [0, *(p + 1 for p in perm)]), [0, *(perm.index(n) + 1 for n in range(len(perm)))]
        )
        flipped = data.draw(st.sets(st.integers(1, len(t.dims))))
        twice = tensor.flip(tensor.flip(twice, sorted(flipped)), sorted(flipped, reverse=True))
    same(tensor.squeeze(twice, [0]), t)


@QUICK
@given(pairs(), st.data())
def test_reshaping_there_and_back(pair: Pair, data: st.DataObject) -> None:
    t, _ = pair
    there = t
    for _ in range(4):
        moved, array = data.draw(layout((there, value(there))))
        if np.prod(array.shape) == np.prod(value(t).shape) and array.ravel().tolist() == value(t).ravel().tolist():
            there = moved
    same(tensor.reshape(there, t.shape), t)


def test_a_reshape_across_boundaries_divides_the_index() -> None:
    t = source("x", 4, 6)
    agree((tensor.reshape(t, [3, 8]), value(t).reshape(3, 8)))
    agree((tensor.reshape(tensor.permute(t, [1, 0]), [8, 3]), value(t).T.reshape(8, 3)))
    same(tensor.reshape(tensor.reshape(t, [3, 8]), [4, 6]), t)


@pytest.mark.parametrize("between", [[(2 * N, 1, 6), (N, 2, 1, 6)], [(2 * N, 6), (N, 2, 6)], [(N, 12)], [(N, 2, 3, 2)]])
def test_a_reshape_that_cuts_a_symbolic_size_otherwise_is_undone(between: list[tuple[Size, ...]]) -> None:
    t = there = source("x", 2, N, 6)
    for shape in between:
        there = tensor.reshape(there, list(shape))
        agree((there, value(t).reshape(value(there).shape)))
    same(tensor.reshape(there, t.shape), t)


def test_symbolic_sizes_regroup() -> None:
    t = source("x", N, 12)
    split = tensor.reshape(t, [N, 3, 4])
    assert normal(tensor.reshape(split, [3 * N, 4])).shape == (3 * N, 4)
    same(tensor.reshape(tensor.reshape(split, [3 * N, 4]), [N, 12]), t)


@pytest.mark.parametrize("shape", [(N, 5), (N,), (2 * N, 12)])
def test_a_reshape_that_does_not_fit_is_refused(shape: tuple[Size, ...]) -> None:
    with pytest.raises(ShapeError):
        tensor.reshape(source("x", N, 6), shape)


def test_shapes_that_do_not_provably_agree_are_refused() -> None:
    with pytest.raises(ShapeError):
        ops.add(source("x", N, 6), source("y", 7, 6))
    with pytest.raises(ShapeError):
        tensor.expand(source("x", N, 6), [N, 7])


def test_einsum_in_every_notation() -> None:
    a, b = source("a", N, 3, 4), source("b", 4, 6)
    for equation in ("bij,jk->bik", "bij,jk", "...j,jk->...k", "b...j,jk->k...b", "bij,jk->k"):
        agree((ops.einsum(equation, a, b), np.einsum(equation, value(a), value(b))))
    square = source("s", 6, 6)
    for equation in ("ii->i", "ii->", "ii", "ij->ji"):
        agree((ops.einsum(equation, square), np.einsum(equation, value(square))))
