"""Linear + bias + activation, in every spelling.

    y[r.., n] = f( sum_k x[r.., k] * W[n, k] + b[n] )

with any batch axes r.. and any pointwise f, per-channel constants in it. What decides is the term: a value that is a
function of one contraction with constant weights, plus constants. Scales, BatchNorm in eval, several biases, split or
sliced sums, column pieces, a bias through a column of ones: all fold into one W and one b, in float64, cast once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recopt import epilogue
from recopt.cost import nominal
from recopt.epilogue import H
from recopt.fused import Concat, Linear, View
from recopt.hosts.base import Array, Value
from recopt.ir import sizes
from recopt.ir.rules import FLOATS
from recopt.ir.tensor import Dim, Tensor
from recopt.ir.term import (
    Atom,
    Axis,
    Guard,
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
from recopt.match import MAX_FOLDED, Match, No, constant_leaf, dead_after, fold, is_data, reads_fed
from recopt.preactivation import pre_activations
from recopt.views import arrange, held_by, regroup, sliced

name = "linear"
operator = "recopt::linear"

MAX_SOURCES = 64  # contractions that one value may combine


# --- where to look ---


@dataclass(frozen=True)
class _Reach:
    """The contractions that a value is a pointwise function of, and those under its functions that are not affine."""

    sources: frozenset[Value]
    bent: frozenset[Value] = frozenset()


def roots(lifted: Lifted) -> list[Value]:
    """The values that are pointwise functions of contractions and constants, last first: a longer match is met before
    those inside it."""
    reach: dict[Value, _Reach] = {}
    found = []
    for node in lifted.host.nodes:
        for value in node.outputs:
            mine = _reach(lifted, value, reach)
            if mine is not None:
                reach[value] = mine
                if mine.sources:
                    found.append(value)
    return found[::-1]


def _reach(lifted: Lifted, value: Value, reach: Mapping[Value, _Reach]) -> _Reach | None:
    """None where a value is something else too, or adds functions of different contractions: relu(c) + d. Pieces that
    lie beside each other may be functions of their own."""
    t = lifted.definition.get(value)
    if t is None or t.dtype not in FLOATS | {"bool"} or lifted.host.is_constant(value):
        return None
    if is_contraction(lifted, value):
        return _Reach(frozenset((value,)))
    if any(m.axes for m in t.body.monos):
        return None
    pieces: dict[tuple[Atom, ...], _Reach] = {}
    for mono in t.body.monos:
        beside = tuple(a for a in mono.atoms if isinstance(a, Guard))
        piece = pieces.get(beside, _Reach(frozenset(), frozenset()))
        for atom in mono.atoms:
            found = _reach_of(lifted, atom, reach)
            if found is None:
                return None
            bent = found.bent if isinstance(atom, Read) else found.sources
            if bent and piece.bent and bent != piece.bent:
                return None
            piece = _Reach(piece.sources | found.sources, bent or piece.bent)
        pieces[beside] = piece
    if any(p.bent and p.bent != p.sources for p in pieces.values()):
        return None
    sources = frozenset[Value]().union(*(p.sources for p in pieces.values()))
    if len(sources) > MAX_SOURCES:
        return None
    return _Reach(sources, sources if any(p.bent for p in pieces.values()) else frozenset())


def _reach_of(lifted: Lifted, atom: Atom, reach: Mapping[Value, _Reach]) -> _Reach | None:
    """What one factor reads."""
    sources: frozenset[Value] = frozenset()
    bent: frozenset[Value] = frozenset()
    for leaf in atom.leaves:
        if constant_leaf(lifted, leaf):
            continue
        inner = reach.get(leaf) if isinstance(leaf, Value) else None
        if inner is None:
            return None
        sources, bent = sources | inner.sources, bent | inner.bent
    return _Reach(sources, bent)


def is_contraction(lifted: Lifted, value: Value) -> bool:
    """Whether a value is a leaf whose definition sums data against weights."""
    t = lifted.definition.get(value)
    if t is None or t.dtype not in FLOATS or lifted.term[value].body is t.body:
        return False
    sums = [m for m in t.body.monos if m.axes]
    return any(is_data(lifted, a) for m in sums for a in m.atoms)


# --- the match ---


def match(lifted: Lifted, root: Value) -> Match | None:
    """`root` as a fused linear. None where it is nothing like one; raises No with the reason where it nearly is."""
    try:
        return _match(lifted, root)
    except TooLarge:
        raise No("the term of {} is too large", root.name) from None


def _match(lifted: Lifted, root: Value) -> Match | None:
    term = lifted.term[root] if lifted.term[root].body.atom is None else lifted.definition[root]
    if is_contraction(lifted, root):
        term = lifted.term[root]
    whole = _expand(lifted, term.body)
    if not is_data(lifted, whole):
        return None
    refused: No | None = None
    for candidate, outer in pre_activations(lifted, whole):
        joined: Match | None = None
        for define in (lifted.definition.get, lifted.local):  # seen through layout, then as the graph has it
            product = _unfold(lifted, candidate, define)
            try:
                parts = _contractions(lifted, product, root)
                if parts is None:
                    return None
                if define != lifted.local:
                    parts, product = _composed(lifted, parts, product, root)
                found = _assemble(lifted, root, term, product, parts, outer, _sources_of(lifted, candidate))
            except No as why:
                refused = refused or why
                continue
            if not isinstance(found.spec.x, Concat):
                return found
            joined = joined or found  # pieces that the graph may hold joined already
        if joined is not None:
            return joined
    raise refused or No("{} is no function of one scaled product", root.name)


def _sources_of(lifted: Lifted, term: Poly) -> frozenset[Value]:
    return frozenset(v for v in term.leaves if isinstance(v, Value) and not constant_leaf(lifted, v))


def _composed(lifted: Lifted, found: _Product, product: Poly, root: Value) -> tuple[_Product, Poly]:
    """Two products with nothing between them as one, where that is less work: (x A) B -> x (A B)."""
    while True:
        if not all(isinstance(p.x.atom, Read) for p in found.contractions):  # products of data stay products of data
            return found, product
        deeper = _unfold(lifted, product, lifted.definition.get)
        if deeper is product:
            return found, product
        try:
            whole = _contractions(lifted, deeper, root)
        except No:
            return found, product
        inner = {p.x.atom.leaf for p in found.contractions if isinstance(p.x.atom, Read)}
        layers = [lifted.definition[v].body for v in inner if isinstance(v, Value) and v in lifted.definition]
        axes = [_weight_axes(lifted, m) for body in layers for m in body.monos]
        before = _work(found) + sum(nominal(sizes.product(a.size for a in own)) for own in axes)
        if whole is None or _work(whole) > before:
            return found, product
        found, product = whole, deeper


def _work(found: _Product) -> float:
    """Multiplications a row."""
    columns = sizes.product(a.size for a in found.columns)
    return sum(nominal(sizes.mul(columns, sizes.product(a.size for a in p.inner))) for p in found.contractions)


def _weight_axes(lifted: Lifted, mono: Mono) -> set[Axis]:
    return set().union(*(a.axes_read for a in mono.atoms if not is_data(lifted, a)))


def _expand(lifted: Lifted, term: Poly) -> Poly:
    """`term` over contractions and constants: the definitions of everything between are put in."""

    def inner(atom: Atom) -> Poly | None:
        if not isinstance(atom, Read) or not isinstance(atom.leaf, Value) or constant_leaf(lifted, atom.leaf):
            return None
        if is_contraction(lifted, atom.leaf):
            return None
        t = lifted.definition.get(atom.leaf)
        return None if t is None or t.body.atom is atom else _expand(lifted, t.at(list(atom.index)))

    return term if all(is_contraction(lifted, v) for v in _sources_of(lifted, term)) else substitute(term, {}, inner)


def _unfold(lifted: Lifted, term: Poly, define: Callable[[Value], Tensor | None]) -> Poly:
    """`term` with every contraction spelled out over what it reads."""

    products = {v for v in _sources_of(lifted, term) if is_contraction(lifted, v)}

    def inner(atom: Atom) -> Poly | None:
        if isinstance(atom, Read) and atom.leaf in products:
            spelled = define(atom.leaf)
            return None if spelled is None else spelled.at(list(atom.index))
        return None

    return substitute(term, {}, inner) if products else term


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


def _contractions(lifted: Lifted, product: Poly, root: Value) -> _Product | None:
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
        if not weight.leaves:
            if len(data) > 1:
                raise No("both operands of the product are computed")
            if not summed:
                raise No("{} adds data that no weight contracts", root.name)
            return None
        if summed:
            rows |= x.axes_read - set(summed)
        split.append((mono, x, summed, weight))
    columns = [a for a in _ordered(product) if a not in rows]
    for _, x, summed, _ in split:
        if not summed and (not rows or x.axes_read - rows):  # else one more input feature: x * W[n, k] at one k
            raise No("{} adds data that no weight contracts", root.name)
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
    if root in product.leaves:
        raise No("{} reads itself", root.name)
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


def _assemble(
    lifted: Lifted, root: Value, term: Tensor, product: Poly, found: _Product, outer: Poly, sources: frozenset[Value]
) -> Match:
    before = lifted.order[root]
    rows, columns = set(found.rows), found.columns
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
    shape = (*(sizes.product(a.size for a in d) for d in row_dims), sizes.product(a.size for a in columns))
    column_dim: Dim = tuple(columns)
    b = _operand(lifted, Tensor((column_dim,), found.bias)) if found.bias.monos else None

    def per_channel(t: Poly) -> Array:
        if t.axes_read - set(columns):
            raise No("the activation's constants vary along a batch axis")
        return fold(lifted, Tensor((column_dim,), t))

    text, params = epilogue.text_of(outer, per_channel)
    steps = regroup((*row_dims, column_dim), term.dims)
    extent = sum((v.shape[-1] for v in views), start=0)
    x: View | Concat = views[0] if len(views) == 1 else Concat(tuple(views), (*views[0].shape[:-1], sizes.size(extent)))
    dtype = product.dtype
    w = weights[0] if len(weights) == 1 else np.concatenate([_array(w) for w in weights], axis=1)
    kept = [v.value for v in (*views, w, b) if isinstance(v, View)]
    spec = Linear(
        x,
        w if isinstance(w, View) else _stored(lifted, found, w, dtype),
        b if b is None or isinstance(b, View) else _as(b, dtype),
        text,
        tuple(_as(p, dtype) for p in params),
        shape,
        dtype,
        steps,
        root.name,
    )
    dead = dead_after(lifted.host, root, kept)
    return Match(
        name,
        root,
        spec,
        lambda: term.with_body(_meaning(outer, product)),
        dead,
        sources,
        flops=2.0 * nominal(sizes.product(shape)) * nominal(w.shape[1]),
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
        if whole is not None:
            left = [p for p in left if p not in mine]
            yield whole
    row_dims: tuple[Dim, ...] | None = None
    for part in _shared_weights(left, found.columns):
        view, row_dims, order = _held(lifted, part, rows, before, row_dims)
        yield view, row_dims, _operand(lifted, Tensor((tuple(found.columns), order), part.weight))


def _whole(lifted: Lifted, parts: Sequence[_Contraction], rows: set[Axis], columns: Sequence[Axis]) -> _Input | None:
    """Pieces that together read all of a host value: its weights, with those of each piece added where it reads.
    Slices, split sums, flips and permuted columns are all this."""
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
    if not touched.all():
        return None
    fresh = {n: axis(e) for n, e in zip(inner, extents, strict=True)}
    plain = single(read_atom(first, {n: coord(a) for n, a in fresh.items()}), first.dtype)
    held = sliced(plain, lifted)
    if held is None:
        return None
    view, dims, order = arrange(held, rows, tuple(fresh.values()))
    return (view, dims, w) if order == tuple(fresh.values()) else None


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
