"""Linear + bias + activation, in every spelling.

    y[r.., n] = f( sum_k x[r.., k] * W[n, k] + b[n] )

with any batch axes r.. and any pointwise f, per-channel constants in it. What decides is the term: a value that is a
function of one contraction with constant weights, plus constants. Scales, BatchNorm in eval, several biases, split or
sliced sums, column pieces, a bias through a column of ones: all fold into one W and one b, in float64, cast once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from recopt import epilogue
from recopt.contractions import Reach, expand, is_contraction, reach, sources_of, unfold, weighs_columns
from recopt.cost import nominal
from recopt.epilogue import H
from recopt.fused import Concat, Linear, Slice, View
from recopt.hosts.base import Array, Value
from recopt.ir import sizes
from recopt.ir.rules import FLOATS
from recopt.ir.tensor import Dim, Tensor
from recopt.ir.term import (
    Atom,
    Axis,
    Guard,
    Leaf,
    Mono,
    Poly,
    Read,
    TooLarge,
    add,
    add_all,
    axis,
    coord,
    monomial,
    normal_mono,
    read,
    single,
    substitute,
    sum_over,
)  # fmt: skip
from recopt.lift.base import Lifted
from recopt.match import MAX_FOLDED, Match, No, dead_after, fold, is_data, reads_fed
from recopt.preactivation import pre_activations
from recopt.views import Held, arrange, held_by, regroup, sliced

name = "linear"
operator = "recopt::linear"


# --- where to look ---


def roots(lifted: Lifted) -> list[Value]:
    """The values that are pointwise functions of contractions and constants, last first: a longer match is met before
    those inside it. What an operator that is not understood makes of one is among them, to be refused."""
    known: dict[Leaf, Reach] = {}
    found = []
    for node in lifted.host.nodes:
        for value in node.outputs:
            mine = reach(lifted, value, known)
            if mine is None:
                continue
            known[value] = mine
            if mine.sources and value.dtype in FLOATS:
                found.append(value)
        if node in lifted.opaque and any(v in known and known[v].sources for v in node.inputs):
            found += node.outputs[:1]
    return found[::-1]


# --- the match ---


def match(lifted: Lifted, root: Value) -> Match | None:
    """`root` as a fused linear. None where it is nothing like one; raises No with the reason where it nearly is."""
    try:
        return _match(lifted, root)
    except TooLarge:
        raise No("the term of {} is too large", root.name) from None


def _match(lifted: Lifted, root: Value) -> Match | None:
    if root.node in lifted.opaque:
        raise No("{} is not understood: {}", root.node.op, lifted.opaque[root.node])
    term = lifted.term[root] if lifted.term[root].body.atom is None else lifted.definition[root]
    if is_contraction(lifted, root):
        term = lifted.term[root]
    whole = expand(lifted, term.body)
    if not is_data(lifted, whole):
        return None
    refused: No | None = None
    for candidate, outer in pre_activations(lifted, whole):
        joined: Match | None = None
        for layout in (True, False):  # seen through layout, then as the graph has it
            try:
                found = _operands(lifted, candidate, layout)
                if found is None:
                    return None
                made = _assemble(lifted, root, term, found, outer)
            except No as why:
                refused = refused or why
                continue
            if made.spec.epilogue == "h" and len(found.product.monos) == 1 and not found.product.monos[0].axes:
                return None  # a multiplication by constants, which is as good as a product of width one
            if not isinstance(made.spec.x, Concat):
                return made
            joined = joined or made  # pieces that the graph may hold joined already
        if joined is not None:
            return joined
    inside = sources_of(lifted, whole)
    if not any(is_contraction(lifted, v) for v in inside):
        return None  # nobody takes a scaled column for a linear, nor a gate or a concat
    if refused is None and (len(inside) > 1 or any(isinstance(a, Guard) for m in whole.monos for a in m.atoms)):
        return None
    raise refused or No("{} is no function of one scaled product", root.name)


def _operands(lifted: Lifted, candidate: Poly, layout: bool) -> _Operands | None:
    """`_found_operands`, found once for all the values that are functions of one pre-activation."""
    key = (name, candidate, layout)
    if key not in lifted.notes:
        try:
            lifted.notes[key] = _found_operands(lifted, candidate, layout)
        except No as why:
            lifted.notes[key] = why.args  # the exception itself would hold the frames that it came through
    found = lifted.notes[key]
    if isinstance(found, tuple):
        raise No(*found)
    assert found is None or isinstance(found, _Operands)
    return found


def _found_operands(lifted: Lifted, candidate: Poly, layout: bool) -> _Operands | None:
    """x, W and b of a pre-activation, its contractions spelled out through layout or as their nodes have them."""
    product = unfold(lifted, candidate, lifted.definition.get if layout else lifted.local)
    parts = _contractions(lifted, product)
    if parts is None:
        return None
    if layout:
        parts, product = _composed(lifted, parts, product)
    return _gathered(lifted, product, parts, sources_of(lifted, candidate))


def _composed(lifted: Lifted, found: _Product, product: Poly) -> tuple[_Product, Poly]:
    """Two products with nothing between them as one, where that is less work: (x A) B -> x (A B)."""
    while True:
        if not all(isinstance(p.x.atom, Read) for p in found.contractions):  # products of data stay products of data
            return found, product
        deeper = unfold(lifted, product, lifted.definition.get)
        if deeper is product:
            return found, product
        try:
            whole = _contractions(lifted, deeper)
        except No:
            return found, product
        inner = {p.x.atom.leaf for p in found.contractions if isinstance(p.x.atom, Read)}
        layers = [lifted.definition[v].body for v in inner if isinstance(v, Value) and v in lifted.definition]
        axes = [_weight_axes(lifted, m) for body in layers for m in body.monos]
        before = _work(lifted, found) + sum(nominal(sizes.product(a.size for a in own)) for own in axes)
        if whole is None or _work(lifted, whole) > before:
            return found, product
        found, product = whole, deeper


def _work(lifted: Lifted, found: _Product) -> float:
    """Multiplications a row. Contractions of one value are made at once, each of its columns read once."""
    widths: dict[object, list[float]] = {}
    for part in found.contractions:
        atom = part.x.atom
        key = atom.leaf if isinstance(atom, Read) else part.x
        widths.setdefault(key, []).append(nominal(sizes.product(a.size for a in part.inner)))
    rows = set(found.rows)
    total = 0.0
    for leaf, own in widths.items():
        reads = [p.x.atom for p in found.contractions if isinstance(p.x.atom, Read) and p.x.atom.leaf is leaf]
        whole = [
            nominal(
                sizes.product(
                    e for e, p in zip(lifted.term[leaf].shape, a.index, strict=True) if not p.axes_read & rows
                )
            )
            for a in reads
            if isinstance(leaf, Value)
        ]
        total += min([sum(own), *whole])
    return total * nominal(sizes.product(a.size for a in found.columns))


def _weight_axes(lifted: Lifted, mono: Mono) -> set[Axis]:
    return set().union(*(a.axes_read for a in mono.atoms if not is_data(lifted, a)))


# --- the product: x, W and b ---


@dataclass(frozen=True)
class _Contraction:
    """sum over `inner` of x * weight."""

    x: Poly
    inner: tuple[Axis, ...]
    weight: Poly


@dataclass(frozen=True)
class _Product:
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    contractions: tuple[_Contraction, ...]
    bias: Poly


def _contractions(lifted: Lifted, product: Poly) -> _Product | None:
    """A pre-activation as contractions with constant weights and a constant bias; None where it has no weights."""
    rows: set[Axis] = set()
    split: list[tuple[Mono, Poly, list[Axis], Poly]] = []
    bias: list[Mono] = []
    for mono in product.monos:
        inner = {a: axis(a.size) for a in mono.axes}
        opened = substitute(normal_mono(mono.coef, mono.atoms, product.dtype), {a: coord(n) for a, n in inner.items()})
        (bare,) = opened.monos if opened.monos else (mono,)
        data = [a for a in bare.atoms if is_data(lifted, a)]
        if not data:
            bias.append(mono)
            continue
        x = normal_mono(1, data, product.dtype)
        summed = [a for a in inner.values() if a in x.axes_read]
        others = [a for a in inner.values() if a not in summed]
        weight = sum_over(normal_mono(bare.coef, [a for a in bare.atoms if a not in data], product.dtype), others)
        if len(data) > 1 and not weight.leaves:
            raise No("both operands of the product are computed")
        weighed = summed and weight.leaves
        if weighed or (weight.axes_read and weight.axes_read.isdisjoint(x.axes_read)):
            rows |= x.axes_read - set(summed)
        split.append((mono, x, summed, weight))
    alone = not rows and not any(summed for _, _, summed, _ in split)
    if (alone or not any(weight.leaves for _, _, _, weight in split)) and not weighs_columns(
        lifted, [(x, weight) for _, x, _, weight in split]
    ):
        return None
    if alone:
        rows = set().union(*(x.axes_read for _, x, _, _ in split))
    columns = [a for a in _ordered(product) if a not in rows]
    for _, x, summed, weight in split:
        if not (summed and weight.leaves) and x.axes_read - set(summed) - rows:
            if summed:
                return None
            raise No("it adds data that no weight contracts")  # else one more input feature: x * W[n, k] at one k
    for _, _, summed, weight in split:
        if weight.axes_read & rows:
            raise No("the weight depends on a batch axis (size {})", next(iter(weight.axes_read & rows)).size)
        if weight.axes_read - set(summed) - set(columns):
            raise No("the weight reads an axis that is not the product's")
    constant = add_all([monomial(m, product.dtype) for m in bias], product.dtype)
    own = set().union(*(weight.axes_read for _, _, _, weight in split))
    widening = [a for a in columns if a not in own]
    if widening:
        raise No("a bias of higher rank widens the output along an axis of size {}", widening[0].size)
    if constant.axes_read & rows:
        raise No("the bias varies along a batch axis (size {})", next(iter(constant.axes_read & rows)).size)
    parts = tuple(_Contraction(x, tuple(summed), weight) for _, x, summed, weight in split)
    return _Product(tuple(a for a in _ordered(product) if a in rows), tuple(columns), parts, constant)


def _ordered(term: Poly) -> list[Axis]:
    return sorted(term.axes_read, key=lambda a: a.id)


def _shared_weights(parts: Sequence[_Contraction], columns: Sequence[Axis]) -> list[_Contraction]:
    """Contractions under one weight are one contraction of the sum: (a + b) @ W."""
    merged: dict[object, _Contraction] = {}
    for part in parts:
        key = Tensor(tuple((a,) for a in (*columns, *part.inner)), part.weight).canonical()
        if key in merged:
            first = merged[key]
            renamed = {a: coord(n) for a, n in zip(part.inner, first.inner, strict=True)}
            merged[key] = _Contraction(add(first.x, substitute(part.x, renamed)), first.inner, first.weight)
        else:
            merged[key] = part
    return list(merged.values())


@dataclass(frozen=True)
class _Operands:
    """x as [rows..., K], W as [N, K] and b as [N] of a product; its dimensions; the contractions that it replaces."""

    product: Poly
    x: View | Concat
    w: Array | View
    b: Array | View | None
    row_dims: tuple[Dim, ...]
    columns: Dim
    sources: frozenset[Value]


def _gathered(lifted: Lifted, product: Poly, found: _Product, sources: frozenset[Value]) -> _Operands:
    """The operands of a product as the graph holds them and as arrays."""
    # what holds x stands before the product that it replaces; a column is read where it lies
    before = max(lifted.order.get(v, 0) + (not is_contraction(lifted, v)) for v in sources)
    rows, columns, dtype = set(found.rows), found.columns, product.dtype
    views: list[View] = []
    weights: list[Array | View] = []
    row_dims: tuple[Dim, ...] | None = None
    for view, dims, w in _inputs(lifted, found, rows, before):
        if row_dims is not None and dims != row_dims:
            raise No("the pieces of the product read their rows in different orders")
        row_dims = dims
        same = next((n for n, v in enumerate(views) if v == view), None)
        if same is None:
            views.append(view)
            weights.append(w)
        else:
            weights[same] = _array(weights[same]) + _array(w)
    assert row_dims is not None
    extent = sizes.size(sum((v.shape[-1] for v in views), start=0))
    x = views[0] if len(views) == 1 else Concat(tuple(views), (*views[0].shape[:-1], extent))
    w = weights[0] if len(weights) == 1 else np.concatenate([_array(w) for w in weights], axis=1)
    b = _operand(lifted, Tensor((columns,), found.bias)) if found.bias.monos else None
    return _Operands(
        product,
        x,
        w if isinstance(w, View) else _stored(lifted, found, w, dtype),
        b if b is None or isinstance(b, View) else _as(b, dtype),
        row_dims,
        columns,
        sources,
    )


def _assemble(lifted: Lifted, root: Value, term: Tensor, found: _Operands, outer: Poly) -> Match:
    """`root` as `outer` of a product."""

    def per_channel(t: Poly) -> Array:
        if t.axes_read - set(found.columns):
            raise No("the activation's constants vary along a batch axis")
        return fold(lifted, Tensor((found.columns,), t))

    text, params = epilogue.text_of(outer, per_channel)
    product = found.product
    shape = (*(sizes.product(a.size for a in d) for d in found.row_dims), sizes.product(a.size for a in found.columns))
    spec = Linear(
        found.x,
        found.w,
        found.b,
        text,
        tuple(_as(p, product.dtype) for p in params),
        shape,
        product.dtype,
        regroup((*found.row_dims, found.columns), term.dims),
        root.name,
    )
    views = found.x.views if isinstance(found.x, Concat) else (found.x,)
    kept = [v.value for v in (*views, found.w, found.b) if isinstance(v, View)]
    return Match(
        name,
        root,
        spec,
        lambda: term.with_body(_meaning(outer, product)),
        dead_after(lifted.host, root, kept),
        found.sources,
        flops=2.0 * nominal(sizes.product(shape)) * nominal(found.w.shape[1]),
    )


def _meaning(outer: Poly, product: Poly) -> Poly:
    """The root over what the operator reads."""
    return substitute(outer, {}, lambda a: product if isinstance(a, Read) and a.leaf is H else None)


_Input = tuple[View, tuple[Dim, ...], Array | View]  # x as [rows..., K], its row dimensions, W as [N, K]


def _inputs(lifted: Lifted, found: _Product, rows: set[Axis], before: int) -> Iterable[_Input]:
    """The inputs of a product and the weights on each."""
    left = list(found.contractions)
    for leaf in dict.fromkeys(p.x.atom.leaf for p in left if isinstance(p.x.atom, Read)):
        mine = [p for p in left if isinstance(p.x.atom, Read) and p.x.atom.leaf is leaf]
        whole = _whole(lifted, mine, rows, found.columns)
        if whole:
            left = [p for p in left if p not in mine]
            yield from whole
    row_dims: tuple[Dim, ...] | None = None
    for part in _shared_weights(left, found.columns):
        view, row_dims, order = _held(lifted, part, rows, before, row_dims)
        yield view, row_dims, _operand(lifted, Tensor((tuple(found.columns), order), part.weight))


def _whole(
    lifted: Lifted, parts: Sequence[_Contraction], rows: set[Axis], columns: Sequence[Axis]
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
    touched = np.zeros(flat, dtype=bool)
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
        touched[positions[inside]] = True
    if not touched.all() and (len(inner) > 1 or all(p.inner for p in parts)):
        return None
    fresh = {n: axis(e) for n, e in zip(inner, extents, strict=True)}
    plain = single(read_atom(first, {n: coord(a) for n, a in fresh.items()}), first.dtype)
    held = sliced(plain, lifted)
    if held is None:
        return None
    if not touched.all():
        return [_cut(held, inner[0], run, rows, w) for run in _runs(np.flatnonzero(touched))]
    view, dims, order = arrange(held, rows, tuple(fresh.values()))
    return [(view, dims, w)] if order == tuple(fresh.values()) else None


def _runs(positions: Array) -> list[Array]:
    """Positions as one run of equal steps, else as runs without gaps."""
    gaps = np.diff(positions)
    if len(set(gaps.tolist())) <= 1:
        return [positions]
    return np.split(positions, np.flatnonzero(gaps != 1) + 1)


def _cut(held: Held, dim: int, run: Array, rows: set[Axis], w: Array) -> _Input:
    """The part of an input that is read, of which nothing else may enter the product: 0 * inf is not 0."""
    first, last, step = int(run[0]), int(run[-1]), int(run[1] - run[0]) if len(run) > 1 else 1
    short: Dim = (axis(len(run)),) if len(run) > 1 else ()
    dims = (*held.dims[:dim], short, *held.dims[dim + 1 :])
    part = Held(held.value, dims, (*held.steps, Slice(dim, first, last + 1, step)))
    view, row_dims, _ = arrange(part, rows, short)
    return view, row_dims, w[:, run]


def read_atom(atom: Read, index: dict[int, Poly]) -> Atom:
    """The same read with some of its indices replaced."""
    found = read(atom.leaf, [index.get(n, p) for n, p in enumerate(atom.index)], atom.dtype).atom
    assert found is not None
    return found


def _held(
    lifted: Lifted, part: _Contraction, rows: set[Axis], before: int, row_dims: tuple[Dim, ...] | None
) -> tuple[View, tuple[Dim, ...], tuple[Axis, ...]]:
    """The host value that holds x, as [rows..., K]: the one that needs the fewest steps."""
    axes = [a for a in _ordered(part.x) if a in rows or a in part.inner]
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


def _stored(lifted: Lifted, found: _Product, w: Array, dtype: str) -> Array | View:
    """The parameter itself where the folded weight is bit for bit what it holds, as [N, K]."""
    atom = found.contractions[0].weight.atom
    if len(found.contractions) == 1 and isinstance(atom, Read) and isinstance(atom.leaf, Value) and not atom.leaf.node:
        stored = lifted.host.constant(atom.leaf)  # a view of the host's own storage
        if str(stored.dtype) == dtype and stored.shape == w.shape and np.array_equal(stored, w):
            return View(atom.leaf, w.shape)
    return _as(w, dtype)


def _as(array: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    return array.astype(dtype)
