"""The rows that bags read, as nodes of an FX graph: where optional passes gave rows other places than their ids say."""

from __future__ import annotations

from dataclasses import replace

from ..fused import Bag, Reshape, View
from ..hosts.base import Value
from ..hosts.fx import FxHost
from ..ir.sizes import product
from .torch import layout as apply


def plain(host: FxHost, bag: Bag, name: str) -> Bag:
    """`bag` with ids that name its rows themselves: no remap, no parts. An id out of range stays an error: it is looked
    up in a table of as many rows as the original's."""
    if bag.remap is None and not bag.parts:
        return bag
    return replace(bag, ids=View(_rows(host, bag, name), bag.ids.shape), modulus=0, shift=0, remap=None, parts=())


def _rows(host: FxHost, bag: Bag, name: str) -> Value:
    if bag.parts:
        found = [
            _looked_up(host, step, replace(part, ids=bag.ids), _rows(host, part, name), name)
            for part, step in zip(bag.parts, bag.steps, strict=True)
        ]
        total = found[0]
        for value in found[1:]:
            total = host.call("aten.add.Tensor", (total, value), name=f"{name}_ids", like=total)
        return total
    ids = apply(host, bag.ids.value, bag.ids.steps, f"{name}_ids")
    if bag.modulus:
        # A modulus past the range of int32 changes a negative id alone, and is no number of that type.
        wide = ids if ids.dtype == "int64" else host.call("aten.to.dtype", (ids, "int64"), name=f"{name}_ids", like=ids)
        ids = host.call("aten.remainder.Scalar", (wide, bag.modulus), name=f"{name}_ids", like=ids)
    if bag.remap is not None:
        return _looked_up(host, bag.remap, bag, ids, name)
    return host.call("aten.add.Tensor", (ids, bag.shift), name=f"{name}_ids", like=ids) if bag.shift else ids


def _looked_up(host: FxHost, table: View, bag: Bag, ids: Value, name: str) -> Value:
    """table[ids] of a table [rows] of integers. `aten.index` would take a negative id from the end, and be slower."""
    flat = (product(bag.ids.shape),)
    ids = ids if ids.shape == flat else apply(host, ids, (Reshape(flat),), f"{name}_ids")
    found = host.call("aten.index_select.default", (table.value, 0, ids), name=f"{name}_ids", like=ids)
    return found if found.shape == bag.ids.shape else apply(host, found, (Reshape(bag.ids.shape),), f"{name}_ids")
