"""The first layer of target attention, split into its parts on q, k and q * k: a layer over target q and item k side by
side, their differences and products, or the sum of a layer of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from ..fused import Linear, Permute, View
from ..hosts.base import Array, Value
from ..ir.normal import add, add_all, read, substitute
from ..ir.tensor import Tensor
from ..ir.term import Atom, Axis, Guard, Mono, Poly, Read, axis, coord, monomial, number, single
from ..lift.base import Lifted
from ..match import No, fold, is_data
from .epilogue import text_of
from .operands import stored_as
from .preactivation import pre_activations

# Target, items, the axis that both are summed over, and the weights on q, k and q * k.
First: TypeAlias = tuple[Poly, Poly, Axis, tuple[Array | None, Array | None, Array | None]]
LayerOf: TypeAlias = Callable[[Lifted, Value], Linear | None]  # the linear that a value is


def side_by_side(lifted: Lifted, x: Value, rows: Sequence[Poly], along: Axis, layer: Linear) -> First | None:
    """The target, the items and the weights on q, k and q * k, where x is pieces of these side by side."""
    width = lifted.term[x].shape[-1]
    if len(lifted.term[x].dims) != len(rows) + 1 or not isinstance(width, int):
        return None
    column = axis(width)
    body = _joined(lifted, read(x, [*rows, coord(column)], layer.dtype))
    if body is None:
        return None
    body = _grounded(lifted, body, along)
    w = _weights(lifted, layer)
    parts: dict[tuple[bool, bool], Array] = {}
    bases: dict[bool, Poly] = {}  # by whether it varies along the history
    inner: Axis | None = None
    for mono in body.monos:
        piece = _piece(lifted, mono, column)
        if piece is None or w is None:
            return None
        low, high, coef, atoms = piece
        inner = inner or axis(high - low)
        if inner.size != high - low or len(atoms) > 2:
            return None
        kinds = [along in a.axes_read for a in atoms]
        if len(set(kinds)) != len(kinds):
            return None  # the square of an item, say
        for varies, atom in zip(kinds, atoms, strict=True):
            base = substitute(single(atom, atom.dtype), {column: add(coord(inner), number(low))})
            if bases.setdefault(varies, base) is not base:
                return None
        key = (False in kinds, True in kinds)
        parts[key] = parts.get(key, 0.0) + coef * w[:, low:high]
    if inner is None or set(bases) != {False, True}:
        return None
    first = (parts.get((True, False)), parts.get((False, True)), parts.get((True, True)))
    return bases[False], bases[True], inner, first


def added(
    lifted: Lifted, value: Value, rows: Sequence[Poly], along: Axis, layer_of: LayerOf
) -> tuple[Linear, First] | None:
    """The first layer as a function of what it makes of the target plus what it makes of the items: tanh(W q + U k)."""
    own = lifted.definition[value]
    if len(own.dims) != len(rows) + 1 or not isinstance(own.shape[-1], int):
        return None
    column, dtype = axis(own.shape[-1]), own.dtype

    def per_channel(term: Poly) -> Array:
        if not term.axes_read <= {column}:
            raise No("constants of the first layer vary along more than its columns")
        return fold(lifted, Tensor(((column,),), term))

    for candidate, outer in pre_activations(lifted, own.at([*rows, coord(column)])):
        try:
            constants = [monomial(m, dtype) for m in candidate.monos if not is_data(lifted, m)]
            bias = per_channel(add_all(constants, dtype))
            found = _summed(lifted, [m for m in candidate.monos if is_data(lifted, m)], column, along, layer_of)
            text, params = text_of(outer, per_channel)
        except No:
            continue
        if found is not None:
            x, first, more = found
            stored = tuple(stored_as(p, dtype) for p in params)
            return Linear(x, np.zeros(0), stored_as(bias + more, dtype), text, stored, own.shape, dtype), first
    return None


def _summed(
    lifted: Lifted, monos: Sequence[Mono], column: Axis, along: Axis, layer_of: LayerOf
) -> tuple[View, First, Array] | None:
    """Layers of target and items, added up: what one reads, both as `side_by_side` has them, and their bias."""
    bases: dict[bool, Poly] = {}  # by whether it varies along the history
    weights: dict[bool, Array] = {}
    bias = np.zeros(int(column.size))
    inner: Axis | None = None
    for mono in monos:
        atom = mono.atoms[0]
        if mono.axes or len(mono.atoms) != 1 or not isinstance(atom, Read) or not isinstance(atom.leaf, Value):
            return None
        layer = layer_of(lifted, atom.leaf) if atom.index and atom.index[-1] is coord(column) else None
        w = None if layer is None or layer.epilogue != "h" else _weights(lifted, layer)
        if layer is None or w is None or not isinstance(layer.x, View) or layer.x.steps or isinstance(layer.b, View):
            return None
        x, coef = layer.x, float(mono.coef)
        inner = inner or axis(x.shape[-1])
        base = read(x.value, [*atom.index[:-1], coord(inner)], layer.dtype)
        varies = along in base.axes_read
        if x.shape[-1] != inner.size or bases.setdefault(varies, base) is not base:
            return None
        weights[varies] = weights.get(varies, 0.0) + coef * w
        bias = bias + (0.0 if layer.b is None else coef * layer.b)
    if inner is None or set(bases) != {False, True}:
        return None
    return x, (bases[False], bases[True], inner, (weights[False], weights[True], None)), bias


def _weights(lifted: Lifted, layer: Linear) -> Array | None:
    """The first layer's W in float64."""
    if not isinstance(layer.w, View):
        return layer.w.astype(np.float64)
    if not lifted.host.is_constant(layer.w.value):
        return None
    stored = lifted.host.constant(layer.w.value).astype(np.float64)
    if layer.w.steps == (Permute((1, 0)),):
        return stored.T
    return stored if not layer.w.steps else None


def _piece(lifted: Lifted, mono: Mono, column: Axis) -> tuple[int, int, float, list[Read]] | None:
    """The columns [low, high) that a monomial fills, its number and what it reads there."""
    low, high = 0, column.size
    atoms: list[Read] = []
    for atom in mono.atoms:
        if isinstance(atom, Guard):
            if atom.index is not coord(column):
                return None
            low, high = (0 if atom.lo is None else atom.lo), (column.size if atom.hi is None else atom.hi)
        elif isinstance(atom, Read) and is_data(lifted, atom) and column in atom.axes_read:
            atoms.append(atom)
        else:
            return None
    if mono.axes or not (isinstance(low, int) and isinstance(high, int) and isinstance(mono.coef, (int, float))):
        return None
    return low, high, float(mono.coef), atoms


def _joined(lifted: Lifted, term: Poly) -> Poly | None:
    """What a read reads, with layout seen through: the pieces of the concat at its end."""
    while isinstance(term.atom, Read) and isinstance(term.atom.leaf, Value):
        own = lifted.local(term.atom.leaf)
        if own is None:
            return None
        term = own.at(list(term.atom.index))
    return term


def _grounded(lifted: Lifted, term: Poly, along: Axis) -> Poly:
    """`term` with layout seen through, and sums and products of the target with the items put in."""

    def inner(atom: Atom) -> Poly | None:
        if not isinstance(atom, Read) or not isinstance(atom.leaf, Value) or not is_data(lifted, atom):
            return None
        own = lifted.local(atom.leaf)
        if own is None or any(m.axes or len(m.atoms) > 2 for m in own.body.monos) or len(own.body.monos) > 2:
            return None
        if not all(isinstance(a, Read) and not any(p.leaves for p in a.index) for m in own.body.monos for a in m.atoms):
            return None  # nor a lookup, whose rows no value need hold
        opened = _grounded(lifted, own.at(list(atom.index)), along)
        varies = {along in a.axes_read for m in opened.monos for a in m.atoms}
        layout = len(own.body.monos) == 1 and len(own.body.monos[0].atoms) == 1 and own.body.monos[0].coef == 1
        return opened if layout or varies == {False, True} else None

    return substitute(term, {}, inner)
