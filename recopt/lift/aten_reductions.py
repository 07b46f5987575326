"""ATen's reductions of few elements, one after the other: each as operators of kernels/pointwise.py."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

from ..hosts.base import Node, Value
from ..ir.term import number
from ..layout.element import Element, Index
from ..layout.elements import Elements
from ..match import No
from .aten_elements import Function, arguments, dtype_of, named, wide_of

MAX_REDUCED = 64  # elements that a reduction takes together


def together(node: Node, index: Index, dims: object, keepdim: object) -> list[Index]:
    """Where the elements lie that a reduction of a node's first operand takes together. Raises No where they are not
    few."""
    x = node.args[0]
    if not isinstance(x, Value) or x.shape is None:
        raise No("{} of no known shape", node.name)
    rank = len(x.shape)
    listed = (
        [dims] if isinstance(dims, int) else list(dims) if isinstance(dims, (list, tuple)) and dims else range(rank)
    )
    chosen = sorted({d % rank for d in listed}) if rank else []
    lengths = [n if isinstance(n := x.shape[d], int) else 0 for d in chosen]
    if not 0 < math.prod(lengths) <= MAX_REDUCED:
        raise No("a reduction over {}", [x.shape[d] for d in chosen])
    found = []
    for at in itertools.product(*map(range, lengths)):
        place = list(index)
        for d, n in zip(chosen, at, strict=True):
            if keepdim:
                place[d] = number(n)
            else:
                place.insert(d, number(n))
        found.append(tuple(place))
    return found


def folded(e: Elements, op: str, parts: Sequence[Element]) -> Element:
    """Elements one after the other."""
    return functools.reduce(lambda a, b: e.make(op, a.dtype, a, b), parts)


def _reduced(op: str, average: bool = False) -> Function:
    """A reduction over few elements, one after the other."""

    def element(e: Elements, node: Node, index: Index) -> Element:
        dtype = dtype_of(node)
        told, wide = arguments(node, "dim keepdim"), wide_of(dtype)
        places = together(node, index, told.get("dim"), told.get("keepdim"))
        total = folded(e, op, [e.operand(node.args[0], place, wide) for place in places])
        if average:
            total = e.make("div", wide, total, e.literal(len(places), wide))
        return e.cast(total, dtype)

    return element


REDUCTIONS: dict[str, Function] = {
    **named("sum.dim_IntList sum.default", _reduced("add")),
    **named("mean.dim", _reduced("add", average=True)),
    **named("amax.default max.dim", _reduced("max")),
    **named("amin.default min.dim", _reduced("min")),
    **named("prod.dim_int", _reduced("mul")),
}
