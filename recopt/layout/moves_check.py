"""What a plan of moves makes, by numpy on numbered elements, against the elements that it should make."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..fused import Permute, Reshape
from ..hosts.base import Array, Value
from ..ir import sizes
from ..ir.sizes import Size
from .moves import Cut, Expand, Join, Pad, Plan, Take
from .positions import Elements


def agrees(plan: Plan, wanted: Elements) -> bool:
    """Whether a plan makes the wanted elements, every symbol a small number of its own."""
    free = {s for size in wanted.form.opens if not isinstance(size, int) for s in size.free_symbols}
    symbols = {s.name: n + 2 for n, s in enumerate(sorted(free, key=str))}
    arrays: dict[Value, Array] = {}
    first = 0
    for value in wanted.leaves:
        shape = [sizes.evaluate(s, symbols) for s in value.shape or ()]
        arrays[value] = (first + np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.float64)).reshape(shape)
        first += arrays[value].size
    marks = -1 - np.arange(len(wanted.fills), dtype=np.float64)  # a number may be one of the elements: told apart
    named = {fill: marks[n] for n, fill in reversed(list(enumerate(wanted.fills)))}
    found = _run(plan, arrays, symbols, named)
    return np.array_equal(found, _expected(wanted, arrays, symbols, named))


def _expected(
    wanted: Elements, arrays: Mapping[Value, Array], symbols: Mapping[str, int], named: Mapping[float, float]
) -> Array:
    opens = [sizes.evaluate(wanted.form.opens[n], symbols) for n in wanted.form.symbolic]
    columns: Array = np.zeros((*opens, wanted.form.total))
    for n, (value, order) in enumerate(wanted.sources):
        at = np.flatnonzero(wanted.which == n)
        columns[..., at] = _columns(arrays[value], value.shape or (), symbols, order)[..., wanted.where[at]]
    for i in np.flatnonzero(wanted.which < 0):
        columns[..., i] = named[wanted.fills[int(wanted.where[i])]]
    # [opens.., numbers] -> each open size in front of the number of its dimension
    lead = len(opens)
    table = columns.reshape([*opens, *wanted.form.counts])
    place = {n: k for k, n in enumerate(wanted.form.symbolic)}
    perm: list[int] = []
    for n in range(len(wanted.form.counts)):
        perm += [place[n], lead + n] if n in place else [lead + n]
    return table.transpose(perm).reshape([sizes.evaluate(s, symbols) for s in wanted.form.shape])


def _columns(array: Array, shape: tuple[Size, ...], symbols: Mapping[str, int], order: tuple[int, ...]) -> Array:
    """[the reader's open sizes.., all numbers]."""
    from .positions import form_of

    form = form_of(shape)
    split: list[int] = []
    opens: list[int] = []
    counts: list[int] = []
    for size, count in zip(form.opens, form.counts, strict=True):
        if size != 1:
            opens.append(len(split))
            split.append(sizes.evaluate(size, symbols))
        counts.append(len(split))
        split.append(count)
    sorted_opens = [opens[order.index(k)] for k in range(len(order))]
    parts = array.reshape(split).transpose([*sorted_opens, *counts])
    return parts.reshape(*parts.shape[: len(opens)], -1)


def _run(plan: Plan, arrays: Mapping[Value, Array], symbols: Mapping[str, int], named: Mapping[float, float]) -> Array:
    if isinstance(plan.source, Join):
        value = np.concatenate([_run(p, arrays, symbols, named) for p in plan.source.parts], plan.source.dim)
    else:
        value = arrays[plan.source]
    for move in plan.moves:
        match move:
            case Permute(perm):
                value = value.transpose(perm)
            case Reshape(shape):
                value = value.reshape([sizes.evaluate(s, symbols) for s in shape])
            case Cut(starts, counts, steps):
                for d, (start, count, step) in enumerate(zip(starts, counts, steps, strict=True)):
                    if count is not None:
                        value = np.take(value, start + step * np.arange(count), d)
            case Take(dim, index, _):
                value = np.take(value, index, dim)
            case Expand(shape):
                value = np.broadcast_to(value, [sizes.evaluate(s, symbols) for s in shape])
            case Pad(before, after, number):
                value = np.pad(value, list(zip(before, after, strict=True)), constant_values=named[number])
    return value
