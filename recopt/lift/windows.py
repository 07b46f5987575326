"""Windows of the spatial dimensions of x [B, C, ...], and the pools over them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..ir import ops, sizes, tensor
from ..ir.normal import add, scale, substitute
from ..ir.sizes import Size
from ..ir.tensor import Tensor, new_dims, ravel, unravel
from ..ir.term import Axis, Poly
from .base import Opaque


def padded(x: Tensor, dims: Sequence[int], widths: Sequence[Size], fill: float) -> Tensor:
    """`fill` around x: `widths` are all the numbers before, then all the numbers after."""
    if not math.isfinite(fill):  # inf * 0 is no number: choose instead
        inside = padded(tensor.full(x.shape, 1, "bool"), dims, widths, 0)
        return ops.where(inside, padded(x, dims, widths, 0), tensor.scalar(fill, x.dtype))
    for n, d in enumerate(dims):
        before, after = widths[n], widths[n + len(dims)]
        if before != 0 or after != 0:
            x = tensor.pad(x, d, before, after, fill)
    return x


def windows(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """Every window of the spatial dimensions: its elements lie along as many new dimensions at the end."""
    x = x.fresh()
    places, inner = [], []
    mapping: dict[Axis, Poly] = {}
    for n, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        room = sizes.size(x.shape[n + 2] - d * (k - 1) - 1)
        count = room // s if isinstance(room, int) else sizes.divide(room, s)
        if count is None:
            raise Opaque("strided windows over a run-time size")
        (out,), (window,) = new_dims([sizes.size(count + 1)]), new_dims([k])
        position = add(scale(ravel(out), s), scale(ravel(window), d))
        dim = x.dims[n + 2]
        mapping.update(zip(dim, unravel(position, [a.size for a in dim]), strict=True))
        places.append(out)
        inner.append(window)
    return Tensor((*x.dims[:2], *places, *inner), substitute(x.body, mapping))


def pool(
    x: Tensor, average: bool, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    edges: Sequence[int], counts_edges: bool,
) -> Tensor:  # fmt: skip
    """The mean or the maximum of every window of x [B, C, ...]. `edges` are the elements around it, all those before
    and then all those after; the mean takes them as zeros where they count at all."""
    inner = list(range(len(x.dims), len(x.dims) + len(kernel)))

    def seen(t: Tensor, fill: float) -> Tensor:
        return windows(padded(t, range(2, len(t.dims)), edges, fill), kernel, strides, dilations)

    if not average:
        return ops.reduction("max", seen(x, -math.inf), inner)
    if counts_edges or not any(edges):
        return ops.mean(seen(x, 0), inner)
    here = ops.total(seen(tensor.full(x.shape, 1, x.dtype), 0), inner)
    return ops.divide(ops.total(seen(x, 0), inner), here)
