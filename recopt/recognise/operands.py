"""The operands of a product: which host values hold its x, which arrays are its W and b."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..fused import Concat, Slice, View
from ..hosts.base import Array, Value
from ..ir import sizes
from ..ir.normal import add, add_all, normal_mono, read, substitute, sum_over
from ..ir.tensor import Dim, Tensor
from ..ir.term import Atom, Axis, Guard, Mono, Poly, Read, axis, coord, single
from ..lift.base import Lifted
from ..match import MAX_FOLDED, No, fold, is_data, reads_fed
from .contractions import is_contraction, sources_of, unfold
from .finite import is_finite
from .product import Contraction, Product, composed, ordered, product_of
from .views import Held, arrange, held_by, regroup, sliced


@dataclass(frozen=True)
class Operands:
    """x as [rows..., K], W as [N, K] and b as [N] of a product; its dimensions; the contractions that it replaces."""

    product: Poly
    x: View | Concat
    w: Array | View
    b: Array | View | None
    row_dims: tuple[Dim, ...]
    columns: Dim
    sources: frozenset[Value]


def operands(lifted: Lifted, candidate: Poly, layout: bool) -> Operands | None:
    """`_found`, found once for all the values that are functions of one pre-activation."""
    key = ("operands", candidate, layout)
    if key not in lifted.notes:
        try:
            lifted.notes[key] = _found(lifted, candidate, layout)
        except No as why:
            lifted.notes[key] = why.args  # the exception itself would hold the frames that it came through
    found = lifted.notes[key]
    if isinstance(found, tuple):
        raise No(*found)
    assert found is None or isinstance(found, Operands)
    return found


def _found(lifted: Lifted, candidate: Poly, layout: bool) -> Operands | None:
    """x, W and b of a pre-activation, its contractions spelled out through layout or as their nodes have them."""
    product = unfold(lifted, candidate, lifted.definition.get if layout else lifted.local)
    parts = product_of(lifted, product)
    if parts is None:
        return None
    if layout:
        parts, product = composed(lifted, parts, product)
    return _gathered(lifted, product, parts, sources_of(lifted, candidate))


def _gathered(lifted: Lifted, product: Poly, found: Product, sources: frozenset[Value]) -> Operands:
    """The operands of a product as the graph holds them and as arrays."""
    # what holds x stands before the product that it replaces; a column is read where it lies
    before = max(lifted.order.get(v, 0) + (not is_contraction(lifted, v)) for v in sources)
    rows, columns, dtype = set(found.rows), found.columns, product.dtype
    views: list[View] = []
    weights: list[Array | View] = []
    places: list[Array | None] = []
    row_dims: tuple[Dim, ...] | None = None
    for view, dims, w, there in _inputs(lifted, found, rows, before):
        if row_dims is not None and dims != row_dims:
            raise No("the pieces of the product read their rows in different orders")
        row_dims = dims
        same = next((n for n, v in enumerate(views) if v == view), None)
        if same is None:
            views.append(view)
            weights.append(w)
            places.append(there)
        else:
            weights[same] = _array(weights[same]) + _array(w)
            both = places[same]
            places[same] = None if both is None or there is None else both | there
    assert row_dims is not None
    for view, there in zip(views, places, strict=True):
        if there is not None and not there.all() and not is_finite(lifted, view.value):
            raise No("an infinity in {} would be NaN in outputs that do not read it", view.value.name)
    extent = sizes.size(sum((v.shape[-1] for v in views), start=0))
    x = views[0] if len(views) == 1 else Concat(tuple(views), (*views[0].shape[:-1], extent))
    w = weights[0] if len(weights) == 1 else np.concatenate([_array(w) for w in weights], axis=1)
    b = _operand(lifted, Tensor((columns,), found.bias)) if found.bias.monos else None
    return Operands(
        product,
        x,
        w if isinstance(w, View) else _stored(lifted, found, w, dtype),
        b if b is None or isinstance(b, View) else stored_as(b, dtype),
        row_dims,
        columns,
        sources,
    )


# x as [rows..., K], its row dimensions, W as [N, K], and where in it weights are, None for everywhere: elsewhere are
# zeros of pieces that lie beside each other, which the graph does not multiply by.
_Input = tuple[View, tuple[Dim, ...], Array | View, Array | None]


def _inputs(lifted: Lifted, found: Product, rows: set[Axis], before: int) -> Iterable[_Input]:
    """The inputs of a product and the weights on each."""
    left = list(found.contractions)
    for leaf in dict.fromkeys(p.x.atom.leaf for p in left if isinstance(p.x.atom, Read)):
        mine = [p for p in left if isinstance(p.x.atom, Read) and p.x.atom.leaf is leaf]
        whole = _whole(lifted, mine, rows, found.columns)
        if whole and not (len(left) == 1 and _held_better(lifted, left[0], rows, before, whole[0])):
            left = [p for p in left if p not in mine]
            yield from whole
    row_dims: tuple[Dim, ...] | None = None
    for part in _shared_weights(left, found.columns):
        view, row_dims, order = _held(lifted, part, rows, before, row_dims)
        w = _operand(lifted, Tensor((tuple(found.columns), order), part.weight))
        yield view, row_dims, w, _places(lifted, part, found.columns, order)


def _places(lifted: Lifted, part: Contraction, columns: Sequence[Axis], inner: Sequence[Axis]) -> Array | None:
    """Where in the [N, K] of a weight its guards let anything be; None for everywhere."""
    if any(not any(isinstance(a, Guard) for a in m.atoms) for m in part.weight.monos):
        return None
    allowed = add_all([_guards(m) for m in part.weight.monos], "int64")
    return fold(lifted, Tensor((tuple(columns), tuple(inner)), allowed)) > 0


def _guards(mono: Mono) -> Poly:
    """The guards alone of a monomial, over its own axes too."""
    inner = {a: axis(a.size) for a in mono.axes}
    guards = normal_mono(1, [a for a in mono.atoms if isinstance(a, Guard)], "int64")
    opened = substitute(guards, {a: coord(n) for a, n in inner.items()})
    return sum_over(opened, [a for a in inner.values() if a in opened.axes_read])


def _held_better(lifted: Lifted, part: Contraction, rows: set[Axis], before: int, whole: _Input) -> bool:
    """Whether the graph holds the only input in fewer steps than what it is read from, as joined heads."""
    if not whole[0].steps:
        return False
    try:
        view, _, _ = _held(lifted, part, rows, before, None)
    except No:
        return False
    return len(view.steps) < len(whole[0].steps)


def _whole(
    lifted: Lifted, parts: Sequence[Contraction], rows: set[Axis], columns: Sequence[Axis]
) -> list[_Input] | None:
    """Pieces that together read all of a host value: its weights, with those of each piece added where it reads.
    Slices, split sums, flips, permuted columns and sums that were written out are all this; of the last some columns
    may be missing."""
    first = parts[0].x.atom
    assert isinstance(first, Read)
    if not isinstance(first.leaf, Value) or any(reads_fed(lifted, p.weight) for p in parts):
        return None
    source = lifted.term[first.leaf]
    inner = [n for n, p in enumerate(first.index) if not p.axes_read & rows and source.shape[n] != 1]
    extents = [source.shape[n] for n in inner]
    if not inner or not all(isinstance(e, int) for e in extents):
        return None
    row_index = tuple(p for n, p in enumerate(first.index) if n not in inner)
    flat = int(np.prod([int(e) for e in extents]))
    width = int(np.prod([int(a.size) for a in columns])) if all(isinstance(a.size, int) for a in columns) else 0
    if not 0 < flat * width <= MAX_FOLDED:
        return None
    w = np.zeros((width, flat))
    there = np.zeros((width, flat), dtype=bool)
    for part in parts:
        read = part.x.atom
        assert isinstance(read, Read)
        if tuple(p for n, p in enumerate(read.index) if n not in inner) != row_index or any(
            read.index[n].axes_read & rows for n in inner
        ):
            return None
        if any(is_data(lifted, read.index[n]) for n in inner):
            return None
        positions = np.zeros((1,), dtype=np.int64)
        inside = np.ones((1,), dtype=bool)
        for n, extent in zip(inner, extents, strict=True):
            index = fold(lifted, Tensor((tuple(part.inner),), read.index[n])).astype(np.int64)
            positions = positions * int(extent) + index
            inside = inside & (index >= 0) & (index < int(extent))
        weight = fold(lifted, Tensor((tuple(columns), tuple(part.inner)), part.weight)).T
        if weight[~inside].any():  # only a guard, which is 0 there, may let a read leave its tensor
            return None
        np.add.at(w.T, positions[inside], weight[inside])
        own = _places(lifted, part, columns, part.inner)
        if own is None:
            there.T[positions[inside]] = True
        else:
            np.logical_or.at(there.T, positions[inside], own.T[inside])
    touched = there.any(0)
    if not touched.all() and (len(inner) > 1 or all(p.inner for p in parts) or not touched.any()):
        return None
    fresh = {n: axis(e) for n, e in zip(inner, extents, strict=True)}
    plain = single(read_atom(first, {n: coord(a) for n, a in fresh.items()}), first.dtype)
    held = sliced(plain, lifted)
    if held is None:
        return None
    if not touched.all():
        return [_cut(held, inner[0], run, rows, w, there) for run in _runs(np.flatnonzero(touched))]
    view, dims, order = arrange(held, rows, tuple(fresh.values()))
    return [(view, dims, w, there)] if order == tuple(fresh.values()) else None


def _runs(positions: Array) -> list[Array]:
    """Positions as one run of equal steps, else as runs without gaps."""
    gaps = np.diff(positions)
    if len(set(gaps.tolist())) <= 1:
        return [positions]
    return np.split(positions, np.flatnonzero(gaps != 1) + 1)


def _cut(held: Held, dim: int, run: Array, rows: set[Axis], w: Array, there: Array) -> _Input:
    """The part of an input that is read, of which nothing else may enter the product: 0 * inf is not 0."""
    first, last, step = int(run[0]), int(run[-1]), int(run[1] - run[0]) if len(run) > 1 else 1
    short: Dim = (axis(len(run)),) if len(run) > 1 else ()
    dims = (*held.dims[:dim], short, *held.dims[dim + 1 :])
    part = Held(held.value, dims, (*held.steps, Slice(dim, first, last + 1, step)))
    view, row_dims, _ = arrange(part, rows, short)
    return view, row_dims, w[:, run], there[:, run]


def read_atom(atom: Read, index: dict[int, Poly]) -> Atom:
    """The same read with some of its indices replaced."""
    found = read(atom.leaf, [index.get(n, p) for n, p in enumerate(atom.index)], atom.dtype).atom
    assert found is not None
    return found


def _held(
    lifted: Lifted, part: Contraction, rows: set[Axis], before: int, row_dims: tuple[Dim, ...] | None
) -> tuple[View, tuple[Dim, ...], tuple[Axis, ...]]:
    """The host value that holds x, as [rows..., K]: the one that needs the fewest steps."""
    axes = [a for a in ordered(part.x) if a in rows or a in part.inner]
    options = []
    for held in held_by(lifted, part.x, axes, before):
        view, dims, order = arrange(held, rows, part.inner)
        options.append(
            (
                row_dims is not None and dims != row_dims,
                len(view.steps),
                lifted.order.get(held.value, 0),
                view,
                dims,
                order,
            )
        )
    if not options:
        raise No("no value of the graph holds the product's input {}", part.x.text)
    _, _, _, view, dims, order = min(options, key=lambda o: o[:3])
    return view, dims, order


def _operand(lifted: Lifted, t: Tensor) -> Array | View:
    """A weight or bias: its folded array, or where the caller feeds it a view of what is fed."""
    if not reads_fed(lifted, t.body):
        return fold(lifted, t)
    held = sliced(t.body, lifted)
    if held is None:
        raise No("a weight that is fed at run time would have to be folded: {}", t.body.text)
    return View(held.value, t.shape, (*held.steps, *regroup(held.dims, t.dims)))


def _array(w: Array | View) -> Array:
    if isinstance(w, View):
        raise No("several weights that are fed at run time")
    return w


def _stored(lifted: Lifted, found: Product, w: Array, dtype: str) -> Array | View:
    """The parameter itself where the folded weight is bit for bit what it holds, as [N, K]."""
    atom = found.contractions[0].weight.atom
    if len(found.contractions) == 1 and isinstance(atom, Read) and isinstance(atom.leaf, Value) and not atom.leaf.node:
        stored = lifted.host.constant(atom.leaf)  # a view of the host's own storage
        if str(stored.dtype) == dtype and stored.shape == w.shape and np.array_equal(stored, w):
            return View(atom.leaf, w.shape)
    return stored_as(w, dtype)


def stored_as(array: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    return array.astype(dtype)


def _shared_weights(parts: Sequence[Contraction], columns: Sequence[Axis]) -> list[Contraction]:
    """Contractions under one weight are one contraction of the sum: (a + b) @ W."""
    merged: dict[object, Contraction] = {}
    for part in parts:
        key = Tensor(tuple((a,) for a in (*columns, *part.inner)), part.weight).canonical()
        if key in merged:
            first = merged[key]
            renamed = {a: coord(n) for a, n in zip(part.inner, first.inner, strict=True)}
            merged[key] = Contraction(add(first.x, substitute(part.x, renamed)), first.inner, first.weight)
        else:
            merged[key] = part
    return list(merged.values())
