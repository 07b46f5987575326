"""Masks that are made of rows: whether what an id names is a table's one row of zeros."""

from __future__ import annotations

import numpy as np

from ..hosts.base import Value
from ..ir.rules import FLOATS, fn
from ..ir.tensor import Tensor
from ..ir.term import Coord, Fn, Read, number, single
from ..lift.base import Lifted
from ..match import constant_leaf, is_data
from .ids import defined


def row_test(lifted: Lifted, value: Value) -> Tensor | None:
    """sum_d |T[ids, d]| != 0 -> ids != k, where row k of a table alone is zeros: how a mask is made of rows. None for
    other values, and where a sum of signed numbers may be zero but for its rounding."""
    key = ("row test", value)
    if key not in lifted.notes:
        lifted.notes[key] = _row_test(lifted, value)
    found = lifted.notes[key]
    return found if isinstance(found, Tensor) else None


def _row_test(lifted: Lifted, value: Value) -> Tensor | None:
    t = lifted.definition.get(value)
    test = t.body.atom if t is not None else None
    if t is None or not isinstance(test, Fn) or test.dtype != "bool":
        return None
    equal = test.args[0].atom if test.name == "logical_not" else test
    if isinstance(equal, Fn) and equal.name == "eq":
        zero, total = equal.args if equal.args[0].number == 0 else equal.args[::-1]
    elif test.name == "lt":
        equal = None
        zero, total = test.args
    else:
        return None
    summed = defined(lifted, total)
    if zero.number != 0 or total.dtype not in FLOATS or len(summed.monos) != 1 or len(summed.monos[0].atoms) != 1:
        return None
    mono = summed.monos[0]
    inner = defined(lifted, single(mono.atoms[0], total.dtype)).atom
    signed = not (isinstance(inner, Fn) and inner.name == "abs")
    row = defined(lifted, inner.args[0]).atom if isinstance(inner, Fn) and not signed else inner
    if not isinstance(row, Read) or not isinstance(row.leaf, Value) or not constant_leaf(lifted, row.leaf):
        return None
    columns = [p.atom.axis if isinstance(p.atom, Coord) else None for p in row.index[1:]]
    if mono.coef != 1 or columns != [*mono.axes] or len(columns) != 1 or not is_data(lifted, row.index[0]):
        return None
    if columns[0] is None or columns[0].size != lifted.term[row.leaf].shape[1] or (signed and test.name == "lt"):
        return None
    only = _row_of_zeros(lifted, row.leaf, signed)
    if only is None:
        return None
    ids = row.index[0]
    return t.with_body(fn("eq" if equal is test else "ne", [ids, number(only, ids.dtype)], "bool"))


def _row_of_zeros(lifted: Lifted, table: Value, signed: bool) -> int | None:
    """The one row of a table that is zeros; None where there are others, or rows whose sum might be rounded to zero."""
    found, start = [], 0
    for rows in lifted.host.blocks(table):
        size = np.abs(rows).sum(1, dtype="float64")
        found += (start + np.flatnonzero(size == 0)).tolist()
        rounded = np.abs(rows.sum(1, dtype="float64")) <= 1e-4 * size if signed else size < 1e-30
        if len(found) > 1 or not np.isfinite(size).all() or (rounded & (size > 0)).any():
            return None
        start += len(rows)
    return found[0] if found else None
