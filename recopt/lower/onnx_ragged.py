"""Bags that lie one after the other in flat ids, as ONNX nodes: rows are added to the bag that holds their id."""

from __future__ import annotations

import numpy as np

from ..hosts.base import Value
from ..ir.sizes import Size
from .onnx_bag import Nodes, offsets_of
from .onnx_layout import END

LOWEST = float("-inf")


class Ragged(Nodes):
    """The nodes of one bag with offsets. Its bounds [R + 1] are where bags begin, and where the last ends."""

    longer = False  # whether the ids are one more than there are

    def pooled(self, target: str) -> Value:
        """The rows of each bag as one."""
        most = self.bag.pool == "max"
        kept = self._weights() if most else self._kept()
        count = self.call("Shape", [self.ids], (1,), "int64")
        if kept is None and not most:
            self._lengthen()
        rows, live = self._weighted(kept), self._live() if most else None
        rows = self._times(rows) if live is None else self._or_lowest(rows, live)
        bounds = self._bounds(count)
        if most and self.host.opset < 18:  # whose ScatterND knows no maximum
            return self._largest_padded(bounds, rows, live)
        marks = self._filled(bounds, -1)
        which = self._which(count, bounds, marks)
        total = self._by_bag(which, marks, rows)
        if most and self.bag.otherwise != LOWEST:
            counted = self._lengths(bounds) if live is None else self._counted(which, marks, self.cast(live, "int64"))
            some = self.call("Less", [self.constant(0), counted], None, "bool")
            total = self._unless_empty(total, some)
        elif self.bag.div is not None and self.bag.over is None:
            low, eps = self.bag.div
            if kept is None:
                counted, low = self.cast(self._lengths(bounds), self.dtype), max(low, 0.0)
            else:
                counted = self._counted(which, marks, kept)
            total = self.call("Div", [total, self._bounded(counted, low, eps)])
        found = self._cut(total, 1, END, *self.rows, self._width)
        return found if self.bag.over is None else self._divided(found, None)

    def _bounds(self, count: Value) -> Value:
        """A slice ends with what it is taken from, whatever the offsets say."""
        given = offsets_of(self.bag)
        assert given is not None
        offsets = self.cast(self.values[given], "int64")
        if not self.bag.last:
            offsets = self.call("Concat", [offsets, count], None, "int64", axis=0)
        return self.call("Min", [offsets, count], None, "int64")

    def _lengthen(self) -> None:
        """Add an id, as there is a bound more than there are places for it among the ids: its row is in no bag."""
        rows = self.bag.table.shape[0]
        if self.ids.dtype == "int64" and isinstance(rows, int) and rows > 0:
            self.ids = self.call("Pad", [self.ids, self.constant([0, 1])], None, "int64")
            self.longer = True

    def _which(self, count: Value, bounds: Value, marks: Value) -> Value:
        """The row of each id among [R + 1], counted from the end: minus how many bounds lie behind it. Row 0 is for ids
        in no bag."""
        if self.longer:
            none = self._filled(self.ids, 0)
        else:
            room = self.call("Add", [count, self.constant([1])], (1,), "int64")
            none = self.call("Expand", [self.constant([0]), room], None, "int64")
        at = self.call("ScatterElements", [none, bounds, marks], None, "int64", reduction="add")
        behind = self.call("CumSum", [at, self.constant(0)], None, "int64", exclusive=1, reverse=1)
        return behind if self.longer else self._cut(behind, 0, -1)

    def _filled(self, x: Value, number: int) -> Value:
        """As many of a number as x has, by one node."""
        limit = self.constant(number)
        return self.call("Clip", [x, limit, limit], x.shape, "int64")

    def _by_bag(self, which: Value, marks: Value, rows: Value) -> Value:
        """The sum of the rows of each bag, or the maximum, [R + 1, D]."""
        most = self.bag.pool == "max"
        start = self.constant(np.full((1, self._width), LOWEST if most else 0.0), rows.dtype or self.dtype)
        # every mark names the one row of what there is before anything is added
        begun = self.call("Gather", [start, marks], None, axis=0)
        place = self._unsqueezed(which)
        return self.call("ScatterND", [begun, place, rows], None, reduction="max" if most else "add")

    def _counted(self, which: Value, marks: Value, x: Value) -> Value:
        """The sum [R + 1, 1] of numbers, of which each id has one."""
        begun = self.call("Gather", [self.constant([0], x.dtype or self.dtype), marks], None, x.dtype or "", axis=0)
        total = self.call("ScatterElements", [begun, which, x], None, x.dtype or "", reduction="add")
        return self._unsqueezed(total)

    def _lengths(self, bounds: Value) -> Value:
        """How many ids each bag has, and the first bound, [R + 1, 1]."""
        wide = self._unsqueezed(bounds)
        before = self.call("Pad", [wide, self.constant([1, 0, -1, 0])], None, "int64")
        return self.call("Sub", [wide, before], None, "int64")

    def _largest_padded(self, bounds: Value, rows: Value, live: Value | None) -> Value:
        """The maximum over bags that are all as long as the longest, whose last row comes again and again: more memory,
        no scatter."""
        bounds = self._unsqueezed(bounds)
        starts, ends = self._cut(bounds, 0, -1, *self.rows, 1), self._cut(bounds, 1, END, *self.rows, 1)
        lengths = self.call("Sub", [ends, starts], None, "int64")
        longest = self.call("ReduceMax", [lengths], (), "int64", keepdims=0)
        places = self.call("Range", [self.constant(0), longest, self.constant(1)], None, "int64")
        # of a bag without ids this is some id, or the last
        last = self.call("Sub", [ends, self.constant(1)], None, "int64")
        at = self.call("Min", [self.call("Add", [starts, places], None, "int64"), last], None, "int64")
        wide = self.call("Gather", [rows, at], None, axis=0)
        found = self.reduce("ReduceMax", wide, 1, (*self.rows, self._width))
        some = self.call("Less", [starts, ends], starts.shape, "bool")
        if live is not None and self.bag.otherwise != LOWEST:
            lives = self.cast(self.call("Gather", [live, at], None, "bool", axis=0), "int64")
            counted = self._unsqueezed(self.reduce("ReduceSum", lives, 1, self.rows))
            some = self.call("And", [some, self.cast(counted, "bool")], some.shape, "bool")
        return self._unless_empty(found, some)

    def _cut(self, x: Value, start: int, stop: int, *shape: Size) -> Value:
        bounds = [self.constant([n]) for n in (start, stop, 0)]
        return self.call("Slice", [x, *bounds], shape or None, x.dtype or self.dtype)
