"""What patterns share: the match they return, the refusal they raise, and the search for host values that hold a term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .fused import Concat, Linear, Permute, Reshape, Slice, Step, View
from .hosts.base import Array, Host, Node, Value
from .ir import sizes
from .ir.evaluate import evaluate
from .ir.sizes import Size
from .ir.tensor import Dim, Tensor, closed_order, new_dims
from .ir.term import Axis, Coord, Interned, Leaf, Poly, Read, coord, substitute, walk
from .lift.base import Lifted, closed

MAX_FOLDED = 64 << 20  # elements of a constant that a pattern may compute


class No(Exception):
    """A refusal: the place looks like the pattern and is not, for the reason given. Formatted only when read."""

    def __init__(self, reason: str, *args: object) -> None:
        super().__init__(reason, *args)

    def __str__(self) -> str:
        return str(self.args[0]).format(*self.args[1:])


@dataclass(frozen=True)
class Match:
    """A place that a pattern recognised: `root` can be computed by the fused operator `spec`."""

    pattern: str
    root: Value
    spec: Linear
    meaning: Tensor  # of root, over the leaves that the spec reads
    dead: tuple[Node, ...]  # host nodes that nothing needs once root is replaced
    products: frozenset[Value]  # the contractions inside
    flops: float = 0.0
    detail: str = ""


def is_data(lifted: Lifted, term: Interned) -> bool:
    """Whether a term reads anything that is not a constant of the model."""
    return any(isinstance(t, Read) and not constant_leaf(lifted, t.leaf) for t in walk(term))


def constant_leaf(lifted: Lifted, leaf: Leaf) -> bool:
    """Whether a leaf is a constant of the model."""
    return isinstance(leaf, Value) and lifted.host.is_constant(leaf)


def fold(lifted: Lifted, t: Tensor) -> Array:
    """The float64 array of a term of constants. Raises No where it has a symbolic size or would be huge."""
    if not all(isinstance(s, int) for s in t.shape):
        raise No("a constant of symbolic shape {}", t.shape)
    if int(np.prod(t.shape, dtype=np.float64)) > MAX_FOLDED:
        raise No("a constant of {} elements is not folded", np.prod(t.shape))

    def array(leaf: Leaf) -> Array:
        assert isinstance(leaf, Value)
        return lifted.host.constant(leaf)

    return evaluate(t, array)


def dead_after(host: Host, root: Value, kept: Sequence[Value]) -> tuple[Node, ...]:
    """The nodes that nothing needs once every use of `root` reads something else, `kept` values apart; root's node last."""
    if root.node is None or len(root.node.outputs) != 1:
        return ()
    dead: dict[Node, None] = {}
    pending = [root.node]
    needed = set(kept)
    while pending:
        node = pending.pop()
        if node in dead or node.opaque:
            continue
        for v in node.outputs:
            if v is root:
                continue
            if v in needed or host.is_output(v) or any(u not in dead for u in host.users(v)):
                break
        else:
            dead[node] = None
            pending += [v.node for v in node.inputs if v.node is not None]
    return tuple(reversed(dead))


# --- layout: a term that some host value holds ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """A host value whose dimensions, after `steps`, are these products of the axes of a term."""

    value: Value
    dims: tuple[Dim, ...]
    steps: tuple[Step, ...] = ()


def held_by(lifted: Lifted, term: Poly, axes: Sequence[Axis], before: int) -> list[Held]:
    """The host values computed before position `before` that hold `term` over `axes`, as they are or after slices."""
    found: list[Held] = []
    t = Tensor(tuple((a,) for a in axes), term)
    key = closed(t)
    if key is not None:
        order = dict(enumerate(key[1]))
        for value, theirs in lifted.by_meaning.get(key[0], ()):
            if lifted.order.get(value, 0) >= before:
                continue
            rename = {a: order[n] for n, a in enumerate(theirs)}
            found.append(Held(value, tuple(tuple(rename[a] for a in dim) for dim in lifted.term[value].dims)))
    direct = sliced(term, lifted)
    return found if direct is None else [*found, direct]


def sliced(term: Poly, lifted: Lifted) -> Held | None:
    """A term that reads a host value at unit stride in every dimension: slices, then a dimension for each index."""
    read = term.atom
    if not isinstance(read, Read) or not isinstance(read.leaf, Value):
        return None
    source = lifted.term[read.leaf]
    dims: list[Dim] = []
    steps: list[Step] = []
    for n, (index, extent) in enumerate(zip(read.index, source.shape, strict=True)):
        offset = 0
        parts: list[tuple[Size, Axis]] = []
        for mono in index.monos:
            if not mono.atoms:
                if not isinstance(mono.coef, int):
                    return None
                offset = mono.coef
            elif (
                len(mono.atoms) == 1
                and isinstance(mono.atoms[0], Coord)
                and not mono.axes
                and isinstance(mono.coef, (int, sizes.sympy.Expr))
            ):
                parts.append((mono.coef, mono.atoms[0].axis))
            else:
                return None
        dim: list[Axis] = []
        stride: Size = 1
        while parts:  # minor axis first: each stride is the product of the sizes inside it
            part = next((p for p in parts if sizes.size(p[0] - stride) == 0), None)
            if part is None:
                return None
            parts.remove(part)
            dim.insert(0, part[1])
            stride = sizes.mul(stride, part[1].size)
        if offset != 0 or sizes.size(stride - extent) != 0:
            if offset < 0:
                return None
            steps.append(Slice(n, offset, sizes.size(offset + stride)))
        dims.append(tuple(dim))
    return Held(read.leaf, tuple(dims), tuple(steps))


def arrange(held: Held, rows: set[Axis], columns: Sequence[Axis]) -> tuple[View, tuple[Dim, ...], tuple[Axis, ...]]:
    """`held` as [rows..., columns flattened]: the view, the row dimensions, and the order of the column axes in the last
    dimension. Row dimensions stay in the order of the host value."""
    dims, steps = list(held.dims), list(held.steps)
    if any(d and {a in rows for a in d} == {True, False} for d in dims):  # a dimension that holds both is split
        dims = [(a,) for d in dims for a in d]
        steps.append(Reshape(tuple(a.size for d in dims for a in d)))
    inner = [n for n, d in enumerate(dims) if d and d[0] not in rows]
    outer = [n for n in range(len(dims)) if n not in inner]
    perm = outer + inner
    if perm != sorted(perm):
        if _moves(dims, perm):
            steps.append(Permute(tuple(perm)))
            dims = [dims[p] for p in perm]
        else:  # only dimensions of size 1 move: that is a reshape
            dims = [dims[p] for p in perm]
            steps.append(Reshape(_shape(dims)))
    row_dims = tuple(dims[: len(outer)])
    order = tuple(a for d in dims[len(outer) :] for a in d)
    extent = sizes.product(a.size for a in order)
    shape = (*_shape(row_dims), extent)
    if len(inner) != 1:
        if steps and isinstance(steps[-1], Reshape):
            steps.pop()
        steps.append(Reshape(shape))
    return View(held.value, shape, tuple(steps)), row_dims, order


def _moves(dims: Sequence[Dim], perm: Sequence[int]) -> bool:
    """Whether a permutation moves more than dimensions of size 1."""
    real = [p for p in perm if dims[p]]
    return real != sorted(real)


def _shape(dims: Sequence[Dim]) -> tuple[Size, ...]:
    return tuple(sizes.product(a.size for a in d) for d in dims)


def regroup(source: Sequence[Dim], target: Sequence[Dim]) -> tuple[Step, ...]:
    """The steps from a value with dimensions `source` to one with dimensions `target`, over the same axes."""
    if tuple(source) == tuple(target):
        return ()
    flat = [a for d in source for a in d]
    wanted = [a for d in target for a in d]
    if set(flat) != set(wanted):
        raise No("the result is broadcast after the product")
    if flat == wanted:
        return (Reshape(_shape(target)),)
    steps: list[Step] = []
    atoms = [d for d in source if d]
    if any(len(d) > 1 for d in atoms) and not _is_permutation(atoms, [d for d in target if d]):
        atoms = [(a,) for a in flat]
    if tuple(atoms) != tuple(source):
        steps.append(Reshape(_shape(atoms)))
    order: list[Dim] = []
    left = list(atoms)
    for a in wanted:
        found = next((d for d in left if d[0] == a), None)
        if found is not None:
            order.append(found)
            left.remove(found)
    steps.append(Permute(tuple(atoms.index(d) for d in order)))
    if tuple(order) != tuple(target):
        steps.append(Reshape(_shape(target)))
    return tuple(steps)


def _is_permutation(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    return sorted(map(repr, a)) == sorted(map(repr, b))


def rename(t: Tensor) -> tuple[Tensor, dict[Axis, Axis]]:
    """`t` over fresh axes, and the fresh axis of each."""
    names = {a: new_dims([a.size])[0][0] for a in t.axes}
    body = substitute(t.body, {a: coord(n) for a, n in names.items()})
    return Tensor(tuple(tuple(names[a] for a in d) for d in t.dims), body), names


__all__ = [
    "Concat", "Held", "Match", "No", "arrange", "closed_order", "constant_leaf", "dead_after", "fold", "held_by",
    "is_data", "regroup", "rename", "sliced",
]  # fmt: skip
