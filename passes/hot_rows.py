"""Rows that are read most come first in their tables (optional), given how often each row is read.

before:  T[ids]
after:   T'[remap[ids]], with T'[remap[i]] = T[i]; of hashed ids remap[ids % n], so that the hash's shift goes too

Rows that are read in one batch then lie beside each other, in few pages and cache lines. Nothing else changes: an id is
looked up in `remap` first, which has a row for each of the table's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from recopt.errors import OptionError
from recopt.fused import Bag, View
from recopt.hosts.base import Array, Host, Value
from recopt.report import Refusal
from recopt.rewrite import Context
from recopt.tables import Change, Fitness, bags_of, find, fixed_ids, rewrite, with_bags


@dataclass(frozen=True)
class HotRows:
    """Optional. Rows that are read most come first in their tables: counts=FILE says how often each row is read.

    `counts` maps a table's name to a number a row, or is the path of an .npz or .json that does. Raises OptionError
    for a file that does not hold that, and where the model has no tensor of any of the names.
    """

    counts: Any = field(default="")
    name: ClassVar[str] = "hot-rows"

    def run(self, host: Host, context: Context) -> bool:
        """Whether any table was sorted."""
        counts = self._counts()
        given = host if context.given is None else context.given
        stored = {value.name for node in given.nodes for value in node.inputs if value.node is None}
        if counts and stored.isdisjoint(counts):  # where some are there, the counts may serve several models
            raise OptionError(f"hot-rows: the model reads no tensor called {' or '.join(sorted(counts))}")
        places = find(host, context, self.name)
        made: dict[Value, tuple[View, Array]] = {}
        found, fitness = bags_of(places), Fitness(host, places)
        unknown = sorted(set(counts) - {table.name for table in found})
        for name in unknown:
            context.report.refusals.append(Refusal(self.name, name, "no embedding bags read a table of this name"))
        for table, bags in found.items():
            if table.name not in counts:
                continue
            why = fitness.why_not(bags) or fixed_ids(host, bags) or self._refuses(counts[table.name], bags, table)
            if why:
                context.report.refusals.append(Refusal(self.name, table.name, why))
                continue
            order = np.argsort(-counts[table.name], kind="stable")
            place = np.empty(len(order), np.int32 if len(order) < 2**31 else np.int64)
            place[order] = np.arange(len(order), dtype=place.dtype)
            rows = host.constant(table)[order]
            made[table] = View(host.add_constant(rows, name=f"{table.name}_hot"), rows.shape), place
        remaps: dict[tuple[Value, int, int], View] = {}

        def new(bag: Bag) -> Bag:
            if bag.table.value not in made:
                return bag
            table, place = made[bag.table.value]
            assert isinstance(bag.shift, int)
            key = bag.table.value, bag.modulus, bag.shift
            if key not in remaps:
                array = place[bag.shift : bag.shift + bag.modulus if bag.modulus else None]
                value = host.add_constant(np.ascontiguousarray(array), name=f"{bag.table.value.name}_remap")
                remaps[key] = View(value, array.shape)
            pad = None if bag.pad is None else int(place[bag.pad])
            return replace(bag, table=table, remap=remaps[key], shift=0, pad=pad)

        changes = []
        for one in places:
            names = dict.fromkeys(b.table.value.name for b in one.spec.bags if b.table.value in made)
            if names:
                detail = f"rows of {', '.join(names)} by how often they are read"
                changes.append(Change(one, with_bags(one.spec, new), detail))
        return rewrite(host, context, self.name, changes)

    def _refuses(self, counts: Array, bags: Sequence[Bag], table: Value) -> str:
        assert table.shape is not None
        rows = int(table.shape[0])
        if counts.shape != (rows,):
            return f"counts of shape {list(counts.shape)} for {rows} rows"
        for bag in bags:
            assert isinstance(bag.shift, int)
            if bag.last or bag.lengths is not None:
                return "ids that no bag reads need not name a row, and would be looked up"
            if bag.pad is not None and not 0 <= bag.pad < rows:
                return f"the pad {bag.pad} is no row"
            if bag.shift < 0 or (bag.shift and not bag.modulus) or bag.shift + bag.modulus > rows:
                return f"ids % {bag.modulus} + {bag.shift} are not all rows"
        return ""

    def _counts(self) -> dict[str, Array]:
        if isinstance(self.counts, Mapping):
            given: Mapping[str, Any] = self.counts
        else:
            given = _read(Path(str(self.counts)))
        try:
            return {str(name): np.asarray(counts, np.float64) for name, counts in given.items()}
        except (ValueError, TypeError) as error:
            raise OptionError(f"hot-rows: counts that are no numbers: {error}") from None


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix not in (".npz", ".json") or not path.is_file():
        raise OptionError(f"hot-rows: counts={str(path)!r} is no .npz or .json file; it names how often rows are read")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise OptionError(f"hot-rows: {path}: {error}") from error
    if not isinstance(found, dict):
        raise OptionError(f"hot-rows: {path}: not a mapping from tables to counts")
    return found
