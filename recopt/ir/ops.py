"""What operators mean, as functions of tensors: the vocabulary in which the lift tables are written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence

from . import sizes, tensor
from .functions import BOOLEAN
from .normal import add as add_terms
from .normal import guard, mul, reduce, scale, substitute, sum_over
from .ranges import value_range
from .rules import FLOATS, WIDTH, fn
from .sizes import Size
from .tensor import Dim, ShapeError, Tensor, aligned, new_dims, ravel, retyped, unravel
from .term import Axis, Poly, number

FEW = 8  # elements whose product is written out


def cast(t: Tensor, dtype: str) -> Tensor:
    """The values as another dtype."""
    return t.with_body(fn("cast", [t.body], dtype))


def result_type(*tensors: Tensor) -> str:
    """The dtype that torch's promotion of tensors of equal standing gives (ONNX demands equal ones)."""
    dtypes = {t.dtype for t in tensors}
    floats = dtypes & FLOATS
    if {"float16", "bfloat16"} <= floats:
        return "float32"
    candidates = floats or dtypes - {"bool"} or dtypes
    if "uint8" in candidates and "int8" in candidates:
        return "int16"
    return max(candidates, key=lambda d: (WIDTH[d], d))


def pointwise(name: str, *tensors: Tensor, dtype: str | None = None, attrs: tuple[Hashable, ...] = ()) -> Tensor:
    """name(tensors...) with broadcasting; operands must have one dtype (`where`'s condition apart)."""
    dims, bodies = aligned(tensors)
    if name in BOOLEAN:
        dtype = "bool"
    return Tensor(dims, fn(name, bodies, dtype or bodies[-1].dtype, attrs))


def add(*tensors: Tensor) -> Tensor:
    """The sum, with broadcasting."""
    dims, bodies = aligned(tensors)
    return Tensor(dims, add_terms(*bodies))


def sub(a: Tensor, b: Tensor) -> Tensor:
    """a - b."""
    return add(a, times(b, -1))


def times(t: Tensor, coef: float | Size) -> Tensor:
    """coef * t for a number."""
    return t.with_body(scale(t.body, coef))


def multiply(*tensors: Tensor) -> Tensor:
    """The product, with broadcasting."""
    dims, bodies = aligned(tensors)
    return Tensor(dims, mul(*bodies))


def divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b of floats."""
    return multiply(a, pointwise("reciprocal", b))


def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where condition, else b."""
    dims, bodies = aligned([condition, a, b])
    return Tensor(dims, fn("where", bodies, bodies[1].dtype))


def _axes_of(t: Tensor, dims: Sequence[int]) -> list[Axis]:
    return [a for d in dims for a in t.dims[d]]


def normal_dims(t: Tensor, dims: Sequence[int] | None) -> list[int]:
    """Non-negative dimension numbers; all of them for None."""
    rank = len(t.dims)
    return list(range(rank)) if dims is None else sorted({d % rank if rank else 0 for d in dims})


def _without(t: Tensor, dims: Sequence[int], keepdim: bool) -> list[Dim]:
    if keepdim:
        return [() if n in dims else d for n, d in enumerate(t.dims)]
    return [d for n, d in enumerate(t.dims) if n not in dims]


def total(t: Tensor, dims: Sequence[int] | None, keepdim: bool = False) -> Tensor:
    """The sum over `dims`."""
    dims = normal_dims(t, dims) if t.dims else []
    return Tensor(tuple(_without(t, dims, keepdim)), sum_over(t.body, _axes_of(t, dims)))


def mean(t: Tensor, dims: Sequence[int] | None, keepdim: bool = False) -> Tensor:
    """The mean over `dims`. Raises ShapeError where there are no elements."""
    dims = normal_dims(t, dims) if t.dims else []
    extent = sizes.product(t.shape[d] for d in dims)
    if extent == 0:
        raise ShapeError("a mean of no elements")
    summed = total(t, dims, keepdim)
    if isinstance(extent, int):
        return times(summed, 1.0 / extent)
    return summed.with_body(mul(summed.body, fn("reciprocal", [number(extent, t.dtype)], t.dtype)))


def moments(t: Tensor, dims: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """The mean and the variance over `dims`, kept: mean(x*x) - mean*mean is what mean((x - mean)**2) distributes to."""
    found = mean(t, dims, keepdim=True)
    return found, sub(mean(multiply(t, t), dims, keepdim=True), multiply(found, found))


def reduction(op: str, t: Tensor, dims: Sequence[int] | None, keepdim: bool = False) -> Tensor:
    """max, min, prod, any, all over `dims`. A product of few elements, as of a shape, is written out."""
    dims = normal_dims(t, dims) if t.dims else []
    axes = _axes_of(t, dims)
    extents = [a.size for a in axes if isinstance(a.size, int)]
    if op == "prod" and len(extents) == len(axes) and 0 < math.prod(extents) <= FEW:
        places = itertools.product(*map(range, extents))
        factors = [substitute(t.body, dict(zip(axes, map(number, at), strict=True))) for at in places]
        return Tensor(tuple(_without(t, dims, keepdim)), mul(*factors))
    return Tensor(tuple(_without(t, dims, keepdim)), reduce(op, _axes_of(t, dims), t.body))


def softmax(t: Tensor, dim: int) -> Tensor:
    """exp(x) / sum(exp(x)): the maximum that implementations subtract does not change it."""
    exponent = pointwise("exp", t)
    return divide(exponent, total(exponent, [dim], keepdim=True))


def softmax_or_zero(t: Tensor, dim: int) -> Tensor:
    """softmax, but 0 where a whole row is -inf: what attention operators do with a query that sees nothing."""
    hidden = pointwise("eq", t, tensor.scalar(-math.inf, t.dtype))
    masked = reduction("all", hidden, [dim], keepdim=True)
    return where(masked, tensor.scalar(0, t.dtype), softmax(t, dim))


def einsum(equation: str, *tensors: Tensor) -> Tensor:
    """A sum of products in Einstein's notation, explicit or implicit output, ellipsis allowed."""
    equation = equation.replace(" ", "")
    inputs, _, output = equation.partition("->")
    specs = [list(spec.replace("...", ".")) for spec in inputs.split(",")]
    wide = max((len(t.dims) - (len(s) - 1) for s, t in zip(specs, tensors, strict=True) if "." in s), default=0)
    dots = [f".{n}" for n in range(wide)]

    def spelled(spec: list[str], rank: int) -> list[str]:
        if "." not in spec:
            return spec
        at, missing = spec.index("."), rank - (len(spec) - 1)
        return spec[:at] + dots[wide - missing :] + spec[at + 1 :]

    labels = [spelled(s, len(t.dims)) for s, t in zip(specs, tensors, strict=True)]
    if "->" in equation:
        raw = list(output.replace("...", "."))
        result = spelled(raw, len(raw) - 1 + wide)
    else:
        flat = [x for row in labels for x in row]
        result = dots + sorted(x for x in set(flat) if flat.count(x) == 1 and x not in dots)
    order = list(dict.fromkeys([*result, *(x for row in labels for x in row)]))
    # every operand becomes a tensor over all letters, size 1 where it lacks one, so that broadcasting aligns them
    spread = [_spread(t, row, order) for t, row in zip(tensors, labels, strict=True)]
    product = multiply(*spread)
    return total(product, list(range(len(result), len(order)))) if len(order) > len(result) else product


def _spread(t: Tensor, labels: list[str], order: list[str]) -> Tensor:
    dims: dict[str, Dim] = {}
    body = t.body
    for label, dim in zip(labels, t.dims, strict=True):
        if label in dims and dim and dims[label]:  # a repeated letter is a diagonal
            position = ravel(dims[label])
            body = substitute(body, dict(zip(dim, unravel(position, [a.size for a in dim]), strict=True)))
        else:
            dims[label] = dim or dims.get(label, ())
    return Tensor(tuple(dims.get(label, ()) for label in order), body)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """numpy's matmul: 1-D operands, and broadcast batch dimensions."""
    if not a.dims or not b.dims:
        raise ShapeError("matmul of a rank-0 tensor")
    left = "k" if len(a.dims) == 1 else "...mk"
    right = "k" if len(b.dims) == 1 else "...kn"
    out = "..." + ("" if len(a.dims) == 1 else "m") + ("" if len(b.dims) == 1 else "n")
    if len(a.dims) == 1 and len(b.dims) == 1:
        out = ""
    elif len(a.dims) <= 2 and len(b.dims) <= 2:
        left, right, out = left.replace("...", ""), right.replace("...", ""), out.replace("...", "")
    return einsum(f"{left},{right}->{out}", a, b)


def take(table: Tensor, ids: Tensor, dim: int = 0, wrap_negative: bool = False) -> Tensor:
    """numpy's take: table[..., ids, ...] along `dim`, the dimensions of `ids` in place of `dim`."""
    ids = ids.fresh()
    table = table.fresh()
    position = ids.body
    extent = table.shape[dim]
    if wrap_negative and position.number is not None:
        if not sizes.at_least(position.number, 0):
            position = number(sizes.size(position.number + extent), position.dtype)
    elif wrap_negative and not sizes_known_non_negative(position):
        negative = fn("lt", [position, number(0, position.dtype)], "bool")
        position = fn(
            "where", [negative, add_terms(position, number(extent, position.dtype)), position], position.dtype
        )
    mapping = dict(zip(table.dims[dim], unravel(position, [a.size for a in table.dims[dim]]), strict=True))
    return Tensor((*table.dims[:dim], *ids.dims, *table.dims[dim + 1 :]), substitute(table.body, mapping))


def truncated_quotient(a: Tensor, b: Tensor) -> Tensor:
    """Integers a / b rounded towards zero: the floor, and one more where it is inexact and the signs differ."""
    quotient, divisor = pointwise("floordiv", a, b), b.body.number
    positive = (isinstance(divisor, int) and divisor > 0) or sizes_known_non_negative(b.body)
    if sizes_known_non_negative(a.body) and positive:
        return quotient
    zero = tensor.scalar(0, a.dtype)
    inexact = pointwise("ne", pointwise("mod", a, b), zero, dtype="bool")
    negative = pointwise("logical_xor", pointwise("lt", a, zero), pointwise("lt", b, zero))
    return add(quotient, cast(pointwise("logical_and", inexact, negative), a.dtype))


def sizes_known_non_negative(position: Poly) -> bool:
    """Whether an index is at least 0 by its form."""
    low, _ = value_range(position)
    return low is not None and sizes.at_least(low, 0)


def one_hot(ids: Tensor, depth: Size, dtype: str, dim: int = -1) -> Tensor:
    """1 where the position along a new last dimension (or `dim`) equals the id, else 0."""
    dims = list(ids.dims)
    ids = ids.fresh()
    (hot,) = new_dims([depth])
    body = fn("cast", [fn("eq", [retyped(ravel(hot), ids.dtype), ids.body], "bool")], dtype)
    dims = list(ids.dims)
    dims.insert(dim % (len(dims) + 1), hot)
    return Tensor(tuple(dims), body)


def scatter_add(t: Tensor, dim: int, ids: Tensor, source: Tensor) -> Tensor:
    """t, to which source[.., k, ..] is added at place ids[.., k, ..] of dimension `dim`; both have t's other sizes."""
    t, hit, added, places = _hits(t, dim, ids, source)
    return t.with_body(add_terms(t.body, sum_over(mul(fn("cast", [hit], t.dtype), added), places)))


def scatter_one(t: Tensor, dim: int, ids: Tensor, source: Tensor) -> Tensor:
    """t with source in the one place of dimension `dim` that ids [.., 1, ..] name."""
    place = ids.body.number
    if place is not None and sizes.at_least(place, 0) and sizes.at_least(sizes.size(t.shape[dim] - place), 1):
        return tensor.overwritten(t, source, [place if n == dim else 0 for n in range(len(t.dims))])
    t, hit, added, _ = _hits(t, dim, ids, source)
    if t.body.number == 0:
        return t.with_body(mul(fn("cast", [hit], t.dtype), added))
    return t.with_body(fn("where", [hit, added, t.body], t.dtype))


def _hits(t: Tensor, dim: int, ids: Tensor, source: Tensor) -> tuple[Tensor, Poly, Poly, Dim]:
    """Where id k names a place, source k, and the axes of k."""
    t = t.fresh()
    (places,) = new_dims([ids.shape[dim]])
    index = [ravel(d) for d in t.dims]
    place, index[dim] = index[dim], ravel(places)
    hit = fn("eq", [retyped(place, ids.dtype), ids.at(index)], "bool")
    return t, hit, source.at(index), places


def cumulative_sum(t: Tensor, dim: int) -> Tensor:
    """The running sum along `dim`."""
    t = t.fresh()
    (result,) = new_dims([t.shape[dim]])
    inside = guard(add_terms(ravel(result), scale(ravel(t.dims[dim]), -1)), 0, None)
    body = sum_over(mul(retyped(inside, t.dtype), t.body), t.dims[dim])
    return Tensor((*t.dims[:dim], result, *t.dims[dim + 1 :]), body)


def triangle(t: Tensor, diagonal: int, lower: bool) -> Tensor:
    """tril / triu of the last two dimensions: the rest is 0."""
    t = t.fresh()
    row, column = ravel(t.dims[-2]), ravel(t.dims[-1])
    distance = add_terms(column, scale(row, -1))
    inside = guard(distance, None, diagonal + 1) if lower else guard(distance, diagonal, None)
    return t.with_body(mul(retyped(inside, t.dtype), t.body))


def diagonal(t: Tensor, offset: int, dim1: int, dim2: int) -> Tensor:
    """The elements [.., n, n + offset, ..], along a new last dimension."""
    t = t.fresh()
    rows, columns = t.shape[dim1], t.shape[dim2]
    start1, start2 = max(0, -offset), max(0, offset)
    room1, room2 = sizes.size(rows - start1), sizes.size(columns - start2)
    length = room1 if sizes.at_least(room2, room1) else room2
    if not sizes.at_least(room1, length):
        raise ShapeError(f"a diagonal of a {rows} x {columns} matrix, whose shorter side is not known")
    (line,) = new_dims([length])
    mapping: dict[Axis, Poly] = {}
    for dim, start in ((dim1, start1), (dim2, start2)):
        position = add_terms(ravel(line), number(start))
        mapping.update(zip(t.dims[dim], unravel(position, [a.size for a in t.dims[dim]]), strict=True))
    rest = [d for n, d in enumerate(t.dims) if n not in (dim1, dim2)]
    return Tensor((*rest, line), substitute(t.body, mapping))


def convolution(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """y[b, n, p..] = sum over c, k.. of x[b, c, p*stride + k*dilation - padding] * w[n, c, k..], zero outside."""
    x, w = x.fresh(), w.fresh()
    for n, p in enumerate(padding):
        x = tensor.pad(x, n + 2, p, p) if p else x
    spatial: list[Dim] = []
    mapping: dict[Axis, Poly] = {}
    for n, (s, d) in enumerate(zip(stride, dilation, strict=True)):
        extent, window = x.shape[n + 2], w.shape[n + 2]
        room = sizes.size(extent - d * (window - 1) - 1)
        steps = sizes.divide(room, s) if not isinstance(room, int) else room // s
        if steps is None:
            raise ShapeError("strided convolution over a symbolic size")
        (out,) = new_dims([sizes.size(steps + 1)])
        position = add_terms(scale(ravel(out), s), scale(ravel(w.dims[n + 2]), d))
        mapping.update(zip(x.dims[n + 2], unravel(position, [a.size for a in x.dims[n + 2]]), strict=True))
        spatial.append(out)
    outputs, inputs = w.shape[0], w.shape[1]
    channel = ravel(w.dims[1])
    if groups != 1:
        (outputs_axes,) = [w.dims[0]]
        group = fn("floordiv", [ravel(outputs_axes), number(sizes.divide(outputs, groups) or 1)], "int64")
        channel = add_terms(channel, scale(group, inputs))
    mapping.update(zip(x.dims[1], unravel(channel, [a.size for a in x.dims[1]]), strict=True))
    product = mul(substitute(x.body, mapping), w.body)
    reduced = [a for d in w.dims[1:] for a in d]
    y = Tensor((x.dims[0], w.dims[0], *spatial), sum_over(product, reduced))
    if bias is None:
        return y
    return add(y, tensor.reshape(bias, [outputs, *[1] * len(spatial)]))
