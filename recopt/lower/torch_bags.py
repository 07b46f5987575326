"""Fused embedding bags written into an FX graph: one node, whose layout text says which columns are which lookups."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import GraphError, LowerError, VerifyError
from ..fused import Again, Bag, EmbeddingBags, Reshape, Slice, View
from ..hosts.base import Array, Value
from ..hosts.fx import FxHost
from ..hosts.fx_operators import EMBEDDING_BAGS
from ..hosts.fx_ops import to_torch
from ..ir.sizes import product
from ..kernels.embedding_bags import HINTED, hinted
from ..kernels.embedding_bags.layout import Layout, Term, parse_layout
from .torch import layout as apply
from .torch_ids import plain


def embedding_bags(host: FxHost, spec: EmbeddingBags, target: str) -> Value:
    """Write `spec` at the insertion point and return its value: one node, plus one for each layout step left.

    Every torch target takes the same operator. Raises LowerError when the operator, or a step,
    does not fit its operands.
    """
    rows = product(spec.shape[:-1])
    if target.startswith("cuda"):  # there a pointwise kernel computes all ids of a graph in one launch
        spec = _named(spec)
    try:
        operands = _Operands(host, spec, dense=target == "cpu")
        pieces = tuple(terms for piece in spec.pieces for terms in operands.pieces(piece))
        text = str(Layout(pieces))
        operands.add_scales()
        lists = [list(operands.lists[k]) for k in ("tables", "ids", "offsets", "weights", "dense", "scales")]
        first = spec.bags[0].ids.value
        y = host.call(EMBEDDING_BAGS, (*lists, text), name=spec.name, like=first)
        if y.dtype == "float16" != spec.dtype and any(bag.stored for bag in spec.bags):
            y = host.call("aten.to.dtype", (y, spec.dtype), name=spec.name, like=first)
        if y.dtype != spec.dtype:
            raise LowerError(f"{spec.name} is {y.dtype}, its pattern says {spec.dtype}")
        if len(spec.shape) != 2:
            y = apply(host, y, (Reshape(spec.shape),), spec.name)
        elif y.shape != (rows, spec.shape[-1]):
            raise LowerError(f"{spec.name} is {y.shape}, its pattern says {spec.shape}")
        return apply(host, y, spec.steps, spec.name)
    except GraphError as error:
        raise LowerError(f"recopt::embedding_bags {spec.name}: {error}") from error


def _named(spec: EmbeddingBags) -> EmbeddingBags:
    """`spec` over ids that the graph computes, where it does, and the operator would."""

    def term(item: Bag | View | Again) -> Bag | View | Again:
        if not isinstance(item, Bag) or item.named is None or item.live:
            return item
        return replace(item, ids=item.named, program="", named=None)

    return replace(spec, pieces=tuple(tuple(map(term, piece)) for piece in spec.pieces))


def hint_repeats(host: FxHost, example: Sequence[Array]) -> bool:
    """Let embedding bags of many ids say whether they repeat, from an example of the graph's inputs. True where any
    do."""
    found = [node for node in host.nodes if node.op == EMBEDDING_BAGS and _is_long(str(node.args[-1]))]
    read = list(dict.fromkeys(v for node in found for v in node.args[1]))
    if not read:
        return False
    try:
        arrays = dict(zip(read, host.tap(read).run(example), strict=True))
    except VerifyError:  # the example does not fit the graph
        return False
    for node in found:
        (old,) = node.outputs
        text = hinted(str(node.args[-1]), [to_torch(arrays[v]) for v in node.args[1]])
        with host.at(node):
            host.replace(old, host.call(EMBEDDING_BAGS, (*node.args[:-1], text), name=old.name, like=node.args[1][0]))
    host.erase_dead()
    return True


def _is_long(layout: str) -> bool:
    """Whether a hint would say something: see kernels/embedding_bags.py."""
    return any(t.pool != "dense" and t.count >= HINTED for t in parse_layout(layout).terms)


def _by_shift(t: Term, shift: Sequence[int]) -> list[Term]:
    """A term with a shift for each of its ids, as one for each run of ids that are moved alike."""
    found, first = [], 0
    for value, run in itertools.groupby(shift):
        count = len(list(run))
        at, weights_at, mask_at = t.first + first, t.weights_first + first, t.mask_first + first
        found.append(replace(t, shift=value, count=count, first=at, weights_first=weights_at, mask_first=mask_at))
        first += count
    return found or [t]


def _dtype(item: Bag | View | Again) -> str | None:
    """The type of the numbers of a term; None for such as take that of others."""
    if isinstance(item, Again):
        return None
    return item.value.dtype if isinstance(item, View) else item.table.value.dtype


class _Operands:
    """The operator's lists of tensors, each tensor once."""

    def __init__(self, host: FxHost, spec: EmbeddingBags, *, dense: bool) -> None:
        self.host, self.spec = host, spec
        self.dense = dense  # a CPU reads every second id in 4.2 us, taken first in 2.6
        self.lists: dict[str, dict[Value, int]] = {
            k: {} for k in ("tables", "ids", "offsets", "weights", "dense", "scales")
        }
        self.made: dict[View, Value] = {}
        self.scales: dict[int, Value] = {}
        # Single rows of 16 bits become float32 by standing beside such; sums would be rounded before they do.
        self.widens = any(_dtype(t) == "float32" for piece in spec.pieces for t in piece)

    def pieces(self, piece: Sequence[Bag | View | Again]) -> list[tuple[Term, ...]]:
        """A piece in the words of the layout, where all ids of a term are moved alike: rows that lie side by side are
        pieces of their own, and those of a sum add up."""
        terms = [self.term(item) for item in piece]
        shifts = [item.shift if isinstance(item, Bag) and isinstance(item.shift, tuple) else () for item in piece]
        if len(piece) == 1 and terms[0].pool == "row" and shifts[0]:
            return [(t,) for t in _by_shift(terms[0], shifts[0])]
        return [tuple(part for t, shift in zip(terms, shifts, strict=True) for part in _by_shift(t, shift))]

    def term(self, item: Bag | View | Again) -> Term:
        if isinstance(item, Again):
            rows = self.host.add_constant(item.rows.astype(self.spec.dtype), name=f"{self.spec.name}_rows")
            return Term("dense", self._number("dense", rows), every=len(item.rows))
        if isinstance(item, View):
            return Term("dense", self._number("dense", self._rows(item)))
        item = plain(self.host, item, self.spec.name)
        if item.pool == "mean" and isinstance(item.shift, tuple):  # it is taken apart by shifts, the count is not
            item = replace(item, pool="sum", factor=item.factor / item.count)
        flat = item.offsets is not None
        ids, first = self._columns(item.ids) if not flat else (self._rows(item.ids, rank=1), 0)
        weights, weights_first = (None, 0) if item.weights is None else self._columns(item.weights)
        if item.weights is not None and flat:
            weights, weights_first = self._rows(item.weights, rank=1), 0
        mask, mask_first = (None, 0) if item.mask is None else self._columns(item.mask)
        starts = item.offsets or item.lengths
        bounds = None if starts is None else self._number("offsets", self._rows(starts, rank=1))
        pool = "sum" if item.pool == "mean" else item.pool
        table = self._number("tables", self._table(item.table))
        bits = 0
        if item.stored is not None and item.stored.scales is not None:
            bits, self.scales[table] = item.stored.bits, item.stored.scales.value
        return Term(
            pool,
            table,
            self._number("ids", ids),
            first,
            item.count,
            modulus=item.modulus,
            shift=item.shift if isinstance(item.shift, int) else 0,
            weights=None if weights is None else self._number("weights", weights),
            weights_first=weights_first,
            div=(1.0, 0.0) if item.pool == "mean" else item.div,
            pad=item.pad,
            offsets=bounds if flat else None,
            last=item.last,
            wraps=item.wraps,
            lengths=None if flat else bounds,
            bits=bits,
            values=item.columns if bits == 4 else 0,
            once=item.once,
            inside=item.below > 0,
            wide=item.stored is None and self._wide(item),
            over=None if item.over is None else self._number("offsets", self._rows(item.over, rank=1)),
            factor=item.factor,
            otherwise=item.otherwise,
            least=item.least,
            program=item.program,
            live=item.live,
            mask=None if mask is None else self._number("weights", mask),
            mask_first=mask_first,
            unmask=item.unmask,
        )

    def _wide(self, item: Bag) -> bool:
        """Whether rows of 16 bits have to be said to be float32."""
        plain = item.pool == "row" and item.weights is None and item.factor == 1
        halves = item.table.value.dtype in ("float16", "bfloat16") and self.spec.dtype == "float32"
        return halves and not (plain and self.widens)

    def add_scales(self) -> None:
        """The scales of quantised tables, in the order of the tables."""
        for _, value in sorted(self.scales.items()):
            self._number("scales", value)

    def _table(self, item: View) -> Value:
        """A table as its rows lie in memory: one that is read by its columns is turned here, once; of one that is a
        part of another, the columns are."""
        if item.steps and item not in self.made:
            if isinstance(item.steps[0], Slice):
                self.made[item] = apply(self.host, item.value, item.steps, f"{item.value.name}_part")
            else:
                turned = self.host.constant(item.value).T
                made = self.host.add_constant(np.ascontiguousarray(turned), name=f"{item.value.name}_turned")
                self.made[item] = made
        return self.made[item] if item.steps else item.value

    def _number(self, which: str, value: Value) -> int:
        numbers = self.lists[which]
        return numbers.setdefault(value, len(numbers))

    def _columns(self, item: View) -> tuple[Value, int]:
        """A tensor [R, C] and the first of the columns that are meant: a slice of columns is not made."""
        shape = item.value.shape or ()
        if len(shape) == 1 and item.steps in ((), (Reshape((*shape, 1)),)):
            return item.value, 0
        match item.steps:
            case () if len(shape) == 2:
                return item.value, 0
            case (Slice(1, start, _, 1),) if len(shape) == 2:
                return item.value, start
        return self._rows(item), 0

    def _rows(self, item: View, rank: int = 2) -> Value:
        """A view as [R, C], or as [R]."""
        if item not in self.made:
            steps = item.steps
            if len(item.shape) != rank:
                shape = (product(item.shape),) if rank == 1 else (product(item.shape[:-1]), item.shape[-1])
                kept = steps[:-1] if steps and isinstance(steps[-1], Reshape) else steps
                steps = kept if not kept and item.value.shape == shape else (*kept, Reshape(shape))
            self.made[item] = apply(self.host, item.value, steps, f"{self.spec.name}_rows", dense=self.dense)
        return self.made[item]
