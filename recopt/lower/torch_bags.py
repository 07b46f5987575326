"""Fused embedding bags written into an FX graph: one node, whose layout text says which columns are which lookups."""

from __future__ import annotations

from ..errors import GraphError, LowerError
from ..fused import Bag, EmbeddingBags, Reshape, Slice, View
from ..hosts.base import Value
from ..hosts.fx import FxHost
from ..hosts.fx_operators import EMBEDDING_BAGS
from ..ir.sizes import product
from ..kernels.embedding_bags_layout import Layout, Term
from .torch import layout as apply


def embedding_bags(host: FxHost, spec: EmbeddingBags, target: str) -> Value:
    """Write `spec` at the insertion point and return its value: one node, plus one for each layout step left.

    `target` is not used: every torch target takes the same operator. Raises LowerError when the operator, or a step,
    does not fit its operands.
    """
    rows = product(spec.shape[:-1])
    operands = _Operands(host, spec)
    try:
        pieces = tuple(tuple(map(operands.term, piece)) for piece in spec.pieces)
        text = str(Layout(pieces))
        lists = [list(operands.lists[k]) for k in ("tables", "ids", "offsets", "weights", "dense", "scales")]
        first = spec.bags[0].ids.value
        y = host.call(EMBEDDING_BAGS, (*lists, text), name=spec.name, like=first)
        if y.dtype != spec.dtype:
            raise LowerError(f"{spec.name} is {y.dtype}, its pattern says {spec.dtype}")
        if len(spec.shape) != 2:
            y = apply(host, y, (Reshape(spec.shape),), spec.name)
        elif y.shape != (rows, spec.shape[-1]):
            raise LowerError(f"{spec.name} is {y.shape}, its pattern says {spec.shape}")
        return apply(host, y, spec.steps, spec.name)
    except GraphError as error:
        raise LowerError(f"recopt::embedding_bags {spec.name}: {error}") from error


class _Operands:
    """The operator's lists of tensors, each tensor once."""

    def __init__(self, host: FxHost, spec: EmbeddingBags) -> None:
        self.host, self.spec = host, spec
        self.lists: dict[str, dict[Value, int]] = {
            k: {} for k in ("tables", "ids", "offsets", "weights", "dense", "scales")
        }
        self.made: dict[View, Value] = {}

    def term(self, item: Bag | View) -> Term:
        if isinstance(item, View):
            return Term("dense", self._number("dense", self._rows(item)))
        ids, first = self._columns(item.ids)
        weights, weights_first = (None, 0) if item.weights is None else self._columns(item.weights)
        pool = "sum" if item.pool == "mean" else item.pool
        return Term(
            pool,
            self._number("tables", item.table.value),
            self._number("ids", ids),
            first,
            item.count,
            modulus=item.modulus,
            shift=item.shift,
            weights=None if weights is None else self._number("weights", weights),
            weights_first=weights_first,
            div=(1.0, 0.0) if item.pool == "mean" else None,
        )

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

    def _rows(self, item: View) -> Value:
        """A view as [R, C]."""
        if item not in self.made:
            steps = item.steps
            if len(item.shape) != 2:
                steps = (*steps, Reshape((product(item.shape[:-1]), item.shape[-1])))
            self.made[item] = apply(self.host, item.value, steps, f"{self.spec.name}_rows")
        return self.made[item]
