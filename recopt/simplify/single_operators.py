"""Layouts that one ONNX operator makes which is none of a plan's: Tile, DepthToSpace, SpaceToDepth, Split, Einsum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from string import ascii_letters
from typing import Any, NamedTuple

import numpy as np

from ..hosts.base import Array, Host, Node, Value
from ..hosts.onnx import OnnxHost
from ..layout.positions import Elements, form_of
from ..report import Rewrite
from ..rewrite import Context
from .relayout import dead_nodes, find

MODES = 11  # opset from which DepthToSpace has one
EINSUM = 12
SPLIT_INPUT = 13  # opset from which the sizes of a Split are an input
IMAGES = ("float32", "float64")  # of which ONNX Runtime has both


class _Operator(NamedTuple):
    op: str
    kwargs: dict[str, Any]
    numbers: Sequence[int] | None = None  # its second operand


def write_single(host: Host, context: Context, name: str) -> bool:
    """Write layouts of several operators as one. True where any is.

    before:  Reshape(Tile(Unsqueeze(x)));  Reshape(Transpose(Reshape(x)))
    after:   Tile(x);                      DepthToSpace(x)
    """
    if not isinstance(host, OnnxHost):
        return False
    found = find(host, context)
    gone: set[Node] = set()
    for root in reversed(found.roots):
        wanted = found.deep[root]
        source, _ = wanted.sources[0]
        dead = dead_nodes(host, [root], [source], gone) if _plain(wanted) and root.node not in gone else []
        one = next(_operators(host, context, wanted), None) if len(dead) > 1 else None
        if one is None or source.node in gone or not context.allows(name, root.name):
            continue
        with host.at(dead[0]):
            args = [source] if one.numbers is None else [source, _constant(host, root, one.numbers)]
            new = host.call(
                one.op, args, one.kwargs, name=root.name, shape=wanted.form.shape, dtype=wanted.dtype, like=root
            )
        host.replace(root, new)
        _account(context, name, root, dead, [new], gone)
    return context.settle(host, bool(gone), merged=True)


def split_once(host: Host, context: Context, name: str) -> bool:
    """Write slices of one tensor as one Split of it. True where any are.

    before:  Slice(x), Slice(x);  Split(Split(x))
    after:   Split(x);            Split(x)
    """
    if not isinstance(host, OnnxHost):
        return False
    found = find(host, context)
    gone: set[Node] = set()
    read = [v for v in found.deep if host.is_output(v) or any(n.op not in ("Slice", "Split") for n in host.users(v))]
    ranges = [r for value in read if value.node not in gone and (r := _range(value, found.deep[value]))]
    for source, dim in dict.fromkeys((r.source, r.dim) for r in ranges):
        own = [r for r in ranges if (r.source, r.dim) == (source, dim) and r.root.node not in gone]
        if source.node not in gone:
            _split(host, context, name, own, gone)
    return context.settle(host, bool(gone), merged=True)


def _constant(host: OnnxHost, root: Value, numbers: Sequence[int]) -> Value:
    return host.share_constant(np.array(numbers, np.int64), name=f"{root.name}_sizes")


def _account(
    context: Context, name: str, root: Value, dead: Sequence[Node], new: Sequence[Value], gone: set[Node]
) -> None:
    gone.update(dead)
    made = tuple(dict.fromkeys(v.node.name for v in new if v.node))
    what = f"{len(dead)} layout operators are one"
    before = tuple(n.name for n in dead)
    context.report.rewrites.append(
        Rewrite(name, "layout", root.name, before, made, 0.0, 0.0, float(len(dead) - 1), None, what)
    )


def _plain(wanted: Elements) -> bool:
    """Whether all elements are of one value, along open sizes in the same order."""
    return wanted.single and wanted.sources[0][1] == tuple(range(len(wanted.sources[0][1])))


def _operators(host: OnnxHost, context: Context, wanted: Elements) -> Iterator[_Operator]:
    """Operators that make these elements."""
    value, out = wanted.sources[0][0], wanted.form
    form = form_of(value.shape or ())
    rank = len(form.counts)
    if not out.total or not form.total:
        return
    numbers = np.arange(form.total).reshape(form.counts)

    def same(array: Array) -> bool:
        return array.shape == out.counts and np.array_equal(array.reshape(-1), wanted.where)

    if out.opens == form.opens and all(b % a == 0 for a, b in zip(form.counts, out.counts, strict=True)):
        times = [b // a for a, b in zip(form.counts, out.counts, strict=True)]
        if all(n == 1 or o == 1 for n, o in zip(times, out.opens, strict=True)) and same(np.tile(numbers, times)):
            yield _Operator("Tile", {}, times)
    if rank == 4 and out.opens == form.opens and wanted.dtype in IMAGES and form.opens[1] == 1:
        yield from (o for o, array in _blocks(host, numbers, out.counts) if same(array))
    square = rank > 1 and form.counts[-2] == form.counts[-1] and form.opens[-2:] == (1, 1)
    written = context.target == "portable" and host.opset >= EINSUM and wanted.dtype in (*IMAGES, "int32", "int64")
    if square and written and out.opens == form.opens[:-1] and same(np.diagonal(numbers, axis1=-2, axis2=-1)):
        letters = ascii_letters[: rank - 1]
        yield _Operator("Einsum", {"equation": f"{letters}{letters[-1]}->{letters}"})


def _blocks(host: OnnxHost, numbers: Array, out: tuple[int, ...]) -> Iterator[tuple[_Operator, Array]]:
    """Blocks of an image that become channels of it, or the other way round."""
    n, c, h, w = numbers.shape
    if out[2] > h:
        b = out[2] // h
        if out != (n, c // b**2, h * b, w * b) or c % b**2:
            return
        for mode, split, perm in (("DCR", (b, b, c // b**2), (0, 3, 4, 1, 5, 2)),
                                  ("CRD", (c // b**2, b, b), (0, 1, 4, 2, 5, 3))):  # fmt: skip
            if mode == "DCR" or host.opset >= MODES:
                kwargs = {"blocksize": b} | ({"mode": mode} if mode == "CRD" else {})
                yield _Operator("DepthToSpace", kwargs), numbers.reshape(n, *split, h, w).transpose(perm).reshape(out)
    elif 0 < out[2] < h and h % out[2] == 0:
        b = h // out[2]
        if out == (n, c * b**2, h // b, w // b) and w % b == 0:
            blocks = numbers.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
            yield _Operator("SpaceToDepth", {"blocksize": b}), blocks.reshape(out)


class _Range(NamedTuple):
    """A value that is a run of its source along one dimension."""

    root: Value
    source: Value
    dim: int
    start: int
    size: int


def _range(root: Value, wanted: Elements) -> _Range | None:
    if not _plain(wanted) or not wanted.form.total:
        return None
    (source, _), out = wanted.sources[0], wanted.form
    form = form_of(source.shape or ())
    dims = [d for d, (a, b) in enumerate(zip(form.shape, out.shape, strict=False)) if a != b]
    if len(form.counts) != len(out.counts) or len(dims) != 1 or form.opens != out.opens or form.opens[dims[0]] != 1:
        return None
    dim, numbers = dims[0], np.arange(form.total).reshape(form.counts)
    start = int(wanted.where[0]) // int(np.prod(form.counts[dim + 1 :], dtype=np.int64)) % form.counts[dim]
    taken = numbers.take(range(start, min(start + out.counts[dim], form.counts[dim])), dim)
    same = taken.shape == out.counts and np.array_equal(taken.reshape(-1), wanted.where)
    return _Range(root, source, dim, start, out.counts[dim]) if same else None


def _split(host: OnnxHost, context: Context, name: str, ranges: Sequence[_Range], gone: set[Node]) -> None:
    """Runs that do not overlap as one Split, where little else is copied."""
    apart: list[_Range] = []
    for r in sorted(ranges, key=lambda r: (r.start, r.size)):
        if not apart or r.start >= apart[-1].start + apart[-1].size:
            apart.append(r)
    if len(apart) < 2:
        return
    source, dim, whole = apart[0].source, apart[0].dim, form_of(apart[0].source.shape or ()).counts[apart[0].dim]
    dead = dead_nodes(host, [r.root for r in apart], [source], gone)
    if len(dead) < 2 or 2 * sum(r.size for r in apart) < whole or not context.allows(name, apart[0].root.name):
        return
    ends = sorted({0, whole, *(r.start for r in apart), *(r.start + r.size for r in apart)})
    counts = [b - a for a, b in pairwise(ends)]
    assert source.shape is not None and source.dtype is not None
    shapes = [(*source.shape[:dim], count, *source.shape[dim + 1 :]) for count in counts]
    first = min((r.root.node for r in apart if r.root.node), key=host.nodes.index)
    with host.at(first):
        args: list[Value] = [source]
        kwargs: dict[str, Any] = {"axis": dim}
        if host.opset >= SPLIT_INPUT:
            args.append(_constant(host, apart[0].root, counts))
        else:
            kwargs["split"] = counts
        further = [(shape, source.dtype) for shape in shapes[1:]]
        new = host.call("Split", args, kwargs, name=apart[0].root.name, shape=shapes[0], dtype=source.dtype,
                        further=further)  # fmt: skip
    assert new.node is not None
    for r in apart:
        host.replace(r.root, new.node.outputs[ends.index(r.start)])
    _account(context, name, apart[0].root, dead, [new], gone)
