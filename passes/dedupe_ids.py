"""Each row is read once a batch, however many of its ids name it (optional).

before:  rows of the ids of a batch, many of them the same
after:   u, where = distinct ids and the place of each id among them; rows of u, then of those the places'

It pays where a row costs more than to find out whether it was read already: on a CPU, in torch, where it is dequantised
and wide. To sort 12 800 ids took 384 us, to read and add up that many rows of 64 float32 32 us.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from recopt.fused import Bag
from recopt.hosts.base import Host
from recopt.report import Refusal
from recopt.rewrite import Context
from recopt.tables import Change, find, fixed_ids, rewrite, with_bags

# Numbers of a row from which it was faster: 0.67 to 0.77 of the time at batch 256, Zipf 1.2; of 64 0.97 to 1.2.
WIDE = 128


@dataclass(frozen=True)
class DedupeIds:
    """Optional. Wide quantised rows are made once a batch for all ids that name them; with always=1 all rows."""

    always: int = 0
    name: ClassVar[str] = "dedupe-ids"

    def run(self, host: Host, context: Context) -> bool:
        """Whether any rows are read once now."""
        changes = []

        def why_not(bag: Bag) -> str:
            padded = host.dialect == "onnx" and bag.pad is not None  # places among distinct ids are no rows
            return fixed_ids(host, [bag]) or "a padding id" * padded or self._refuses(bag, context.target)

        for place in find(host, context, self.name):
            once = [bag for bag in place.spec.bags if not why_not(bag)]
            refused = {bag.table.value.name: why for bag in place.spec.bags if (why := why_not(bag))}
            for table, why in refused.items():
                context.report.refusals.append(Refusal(self.name, table, why))
            if once:

                def new(bag: Bag) -> Bag:
                    return bag if why_not(bag) else replace(bag, once=True)

                detail = f"rows of {', '.join(dict.fromkeys(b.table.value.name for b in once))} once a batch"
                changes.append(Change(place, with_bags(place.spec, new), detail))
        return rewrite(host, context, self.name, changes)

    def _refuses(self, bag: Bag, target: str) -> str:
        if bag.once:
            return "is read once already"
        if self.always:
            return ""
        if bag.stored is None or bag.stored.scales is None:
            return "rows that lie in memory as they are are read faster than ids are sorted"
        if target != "cpu":
            return f"on {target} rows are dequantised faster than ids are sorted"
        if bag.columns < WIDE:
            return f"rows of {bag.columns} numbers are dequantised faster than ids are sorted: {WIDE} are not"
        return ""
