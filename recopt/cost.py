"""The cost model: bytes moved, FLOPs and launches of host nodes and fused operators, in seconds on a target.

It ranks alternatives at a nominal batch; it does not predict latency. Figures are per target, rounded, from measured
machines; `measure=True` replaces the guess by a timing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import sympy

from .fused import (
    Attention,
    AttentionWeights,
    Bag,
    Bilinear,
    Concat,
    DotInteraction,
    EmbeddingBags,
    Gru,
    LayerNorm,
    Linear,
    TargetAttention,
    View,
)
from .hosts.base import Host, Node, Value
from .ir import sizes
from .ir.ranges import value_range
from .ir.rules import WIDTH
from .ir.sizes import nominal
from .ir.tensor import Tensor
from .ir.term import Fn, Guard, Mono, walk


@dataclass(frozen=True)
class Machine:
    """Rates of a target: seconds a launch, bytes and FLOPs a second."""

    launch: float
    bandwidth: float
    flops: float


CPU = Machine(launch=3e-6, bandwidth=1e10, flops=5e10)
GPU = Machine(launch=4e-6, bandwidth=3e12, flops=5e13)
MACHINES = {"cpu": CPU, "cuda": GPU, "portable": CPU, "ort-cpu": CPU, "ort-cuda": GPU, "recopt": GPU}
ON_CPU = ("portable", "ort-cpu")  # targets of files that ONNX Runtime is taken to run on a CPU

# Operators that only describe their input anew: no bytes move.
_VIEWS = frozenset(
    f"aten.{name}"
    for name in """
    view.default reshape.default permute.default transpose.int t.default unsqueeze.default squeeze.dim squeeze.dims
    squeeze.default expand.default select.int slice.Tensor flatten.using_ints split.Tensor chunk.default unbind.int
    alias.default detach.default unflatten.int unfold.default sym_size.int
""".split()
) | {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape"}


# Operators that read of their first input as much as they write.
LOOKUPS = frozenset({"Gather", "aten.embedding.default", "aten.index_select.default", "aten.index.Tensor"})


@dataclass(frozen=True)
class Cost:
    """What something takes at the nominal batch."""

    bytes: float = 0.0
    flops: float = 0.0
    launches: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.flops + other.flops, self.launches + other.launches)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.bytes - other.bytes, self.flops - other.flops, self.launches - other.launches)

    def seconds(self, machine: Machine) -> float:
        """The time on `machine`, as if launches, bytes and FLOPs did not overlap."""
        return self.launches * machine.launch + self.bytes / machine.bandwidth + self.flops / machine.flops


@lru_cache(maxsize=65536)
def bytes_of(value: Value) -> float:
    """Bytes of a tensor."""
    if value.shape is None or value.dtype is None:
        return 0.0
    return nominal(sizes.product(value.shape)) * WIDTH.get(value.dtype, 32) / 8


# Operators that torch runs as several: a step of a GRU is two products and what is done with their gates.
_COMPOSITE = {"aten.gru_cell.default": 12.0}


def node_cost(host: Host, node: Node, flops: float = 0.0) -> Cost:
    """A host node: it reads its inputs once and writes its outputs once. Nodes on constants cost nothing."""
    if node.op in _VIEWS or all(host.is_constant(v) for v in node.outputs):
        return Cost()
    written = sum(bytes_of(v) for v in node.outputs)
    read = [bytes_of(v) for v in dict.fromkeys(node.inputs)]
    if node.op in LOOKUPS:
        read[0] = min(read[0], written)
    return Cost(sum(read) + written, flops, _COMPOSITE.get(node.op, 1.0))


def nodes_cost(host: Host, nodes: Iterable[Node]) -> Cost:
    """Several host nodes."""
    return sum((node_cost(host, n) for n in nodes), start=Cost())


def product_flops(t: Tensor) -> float:
    """A multiplication and an addition for every element of every product in a term, and of sums inside functions; of
    the pieces of a concat each counts where it lies."""
    products = [(m, (*t.axes, *m.axes)) for m in t.body.monos]
    inner = dict.fromkeys(x for m in t.body.monos for a in m.atoms if isinstance(a, Fn) for x in walk(a))
    products += [(m, (*m.axes_read, *m.axes)) for m in inner if isinstance(m, Mono) and m.axes]
    total = 0.0
    for mono, axes in products:
        guards = [a for a in mono.atoms if isinstance(a, Guard)]
        if len(mono.atoms) - len(guards) > 1:
            shares = math.prod(_share(g) for g in guards)
            total += 2.0 * nominal(sizes.product(a.size for a in axes)) * shares
    return total


def _share(guard: Guard) -> float:
    """Of the values that an index takes, those that a guard lets through; 1 where nobody knows them."""
    low, high = value_range(guard.index)
    if low is None or high is None:
        return 1.0
    first, end = nominal(low), nominal(high) + 1
    kept = (end if guard.hi is None else nominal(guard.hi)) - (first if guard.lo is None else nominal(guard.lo))
    return min(1.0, max(0.0, kept / (end - first)))


def linear_cost(spec: Linear, flops: float, fused_epilogue: bool, in_place: bool = False) -> Cost:
    """A fused linear; `fused_epilogue` is whether the target has the epilogue in the same kernel, `in_place` whether it
    reads x and writes y where they lie."""
    width = WIDTH.get(spec.dtype, 32) / 8
    views = spec.x.views if isinstance(spec.x, Concat) else (spec.x,)
    read = sum(nominal(sizes.product(v.shape)) for v in views)
    written = nominal(sizes.product(spec.shape))
    weights = float(sympy.prod(spec.w.shape))
    launches, moved = 1.0, read + written + weights
    moves = sum(_copies(v) for v in views) + sum(type(s).__name__ == "Permute" for s in spec.steps)
    moves = 0 if in_place else moves
    moved += 2 * moves * max(read, written)
    launches += moves
    if isinstance(spec.x, Concat):
        launches, moved = launches + 1, moved + 2 * read
    if spec.epilogue != "h" and not fused_epilogue:
        launches, moved = launches + 1, moved + 2 * written
    return Cost(moved * width, flops, launches)


def bags_cost(spec: EmbeddingBags, flops: float) -> Cost:
    """Fused embedding bags: ids, the rows that they name, dense columns and weights are read, the result is written."""
    rows = nominal(sizes.product(spec.shape[:-1]))
    width = WIDTH.get(spec.dtype, 32) / 8
    gathered = sum(min(nominal(b.table.shape[0]), rows * b.count) * row_bytes(b, width) for b in spec.bags)
    moved = gathered + width * rows * nominal(spec.shape[-1]) + 8 * rows * sum(bag.count for bag in spec.bags)
    return Cost(moved, flops, 1.0 + sum(type(s).__name__ == "Permute" for s in spec.steps))


def row_bytes(bag: Bag, width: float) -> float:
    """Bytes of a row of a bag's table, whose numbers take `width` where nothing else is said."""
    if bag.stored is None:
        return width * bag.columns
    return -(-bag.stored.bits * bag.columns // 8) + (8 if bag.stored.scales else 0)


def attention_cost(spec: Attention, flops: float) -> Cost:
    """A fused attention: queries, keys, values and masks are read, the result is written; the scores stay inside."""
    width = WIDTH.get(spec.dtype, 32) / 8
    read = sum(nominal(sizes.product(item.shape)) for item in (spec.q, spec.k, spec.v, *spec.params))
    return Cost(width * (read + nominal(sizes.product(spec.shape))), flops, 1.0)


def weights_cost(spec: AttentionWeights) -> Cost:
    """Attention weights: queries, keys and masks are read, the weights are written."""
    width = WIDTH.get(spec.dtype, 32) / 8
    read = sum(nominal(sizes.product(item.shape)) for item in (spec.q, spec.k, *spec.params))
    flops = 2.0 * nominal(sizes.product(spec.k.shape))
    return Cost(width * (read + nominal(sizes.product(spec.shape))), flops, 1.0)


def target_cost(spec: TargetAttention) -> Cost:
    """A fused target attention: target, history and masks are read, the result is written; products with a quarter of
    the concat's width."""
    width = WIDTH.get(spec.dtype, 32) / 8
    read = sum(nominal(sizes.product(item.shape)) for item in (spec.q, spec.k, spec.v, *spec.params))
    items = nominal(sizes.product(spec.k.shape[:-1]))
    matrices = [nominal(sizes.product(w.shape)) for w in (*spec.weights[1:2], *spec.weights[4::2])]
    flops = 2.0 * items * (sum(matrices) + nominal(spec.shape[-1]))
    return Cost(width * (read + nominal(sizes.product(spec.shape))), flops, 1.0)


def gru_cost(spec: Gru) -> Cost:
    """A fused recurrence: inputs and gates are read once, the weights in every step, the states are written. Its
    launches are those of its steps in operators of the host; one kernel has fewer."""
    width = WIDTH.get(spec.dtype, 32) / 8
    steps, hidden = nominal(spec.x.shape[1]), nominal(spec.shape[-1])
    states = nominal(spec.x.shape[0]) * steps * hidden
    read = nominal(sizes.product(spec.x.shape)) + nominal(sizes.product(spec.wi.shape))
    moved = read + steps * 3 * hidden**2 + 7 * states
    flops = 2.0 * 3 * states * (hidden + nominal(spec.x.shape[-1]))
    return Cost(width * moved, flops, 1.0 + steps * (5 if spec.plain else 9))


def norm_cost(spec: LayerNorm) -> Cost:
    """A layer normalisation: x is read, y is written, and x moved where its features are not last."""
    moved = 2.0 * nominal(sizes.product(spec.shape)) * WIDTH.get(spec.dtype, 32) / 8
    moves = _copies(spec.x) + sum(type(s).__name__ == "Permute" for s in spec.steps)
    return Cost(moved * (1 + moves), 0.0, 1.0 + moves)


def interaction_cost(spec: DotInteraction) -> Cost:
    """Dot products of pairs of vectors: each vector is read once, each product written."""
    rows, pairs = nominal(spec.shape[0]), len(spec.pairs)
    moved = rows * (len(spec.starts) * spec.size + pairs) * WIDTH.get(spec.dtype, 32) / 8
    return Cost(moved, 2.0 * rows * pairs * spec.size, 1.0)


def bilinear_cost(spec: Bilinear) -> Cost:
    """A product with what q is projected to, and that projection."""
    moved = sum(nominal(sizes.product(shape)) for shape in (spec.x.shape, spec.q.shape, spec.w.shape, spec.shape))
    rows, inner = nominal(sizes.product(spec.q.shape[:-1])), nominal(spec.x.shape[-1])
    flops = 2.0 * inner * (rows * nominal(spec.q.shape[-1]) + nominal(sizes.product(spec.shape)))
    return Cost(WIDTH.get(spec.dtype, 32) / 8 * (moved + 2 * rows * inner), flops, 2.0)


def _copies(view: View) -> int:
    return sum(type(s).__name__ in ("Permute", "Flip", "Take") for s in view.steps)
