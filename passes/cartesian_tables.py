"""Small tables of single lookups side by side become one table of all pairs of their rows (optional).

before:  T0[i], T1[j], side by side
after:   T[S0[i] + S1[j]], with T[a * rows1 + b] = T0[a], T1[b] side by side, S0[a] = a * rows1 and S1[b] = b

Source: MicroRec (Jiang et al., MLSys 2021). S0 and S1 have the rows of T0 and T1, so that a bad id is an error before
there is a sum in which it could name another row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral
from typing import ClassVar

import numpy as np

from recopt.errors import OptionError
from recopt.fused import Again, Bag, View
from recopt.hosts.base import Array, Host, Value
from recopt.report import Refusal
from recopt.rewrite import Context, Place
from recopt.tables import Change, Fitness, bags_of, find, fixed_ids, rewrite


@dataclass(frozen=True)
class CartesianTables:
    """Optional. Small tables side by side become one of all pairs of their rows, within budget=1048576 bytes.

    The budget is that of all product tables of the model. Raises OptionError for a budget below 0.
    """

    budget: int = 1 << 20
    name: ClassVar[str] = "cartesian-tables"

    def __post_init__(self) -> None:
        if not (isinstance(self.budget, Integral) and self.budget >= 0):
            raise OptionError(f"cartesian-tables: a budget of at least 0 bytes, not {self.budget!r}")

    def run(self, host: Host, context: Context) -> bool:
        """Whether any tables were joined."""
        places = find(host, context, self.name)
        fitness = Fitness(host, places)
        reasons = {table: fitness.why_not(bags) or fixed_ids(host, bags) for table, bags in bags_of(places).items()}
        for table, why in reasons.items():
            if why:
                context.report.refusals.append(Refusal(self.name, table.name, why))
        made: dict[tuple[Value, ...], tuple[View, tuple[View, ...]]] = {}
        left, changes = self.budget, []
        for place in places:
            runs, left = _runs(place, reasons, left, made)
            joined = [run for run in runs if len(run) > 1]
            if not joined:
                context.report.refusals.append(Refusal(self.name, place.value.name, self._alone(place)))
                continue
            pieces: list[tuple[Bag | View | Again, ...]] = []
            for run in runs:
                if len(run) == 1:
                    pieces.append(run[0])
                else:
                    bags = tuple(t for piece in run for t in piece if isinstance(t, Bag))
                    key = tuple(bag.table.value for bag in bags)
                    if key not in made:
                        made[key] = _product(host, bags)
                    pieces.append((_joint(bags, *made[key]),))
            detail = "; ".join(
                " x ".join(t.table.value.name for piece in run for t in piece if isinstance(t, Bag)) for run in joined
            )
            changes.append(Change(place, replace(place.spec, pieces=tuple(pieces)), detail))
        return rewrite(host, context, self.name, changes)

    def _alone(self, place: Place) -> str:
        return f"no neighbours of single lookups whose product table fits into what is left of {self.budget} bytes"


Piece = tuple[Bag | View | Again, ...]


def _runs(
    place: Place, reasons: dict[Value, str], left: int, made: dict[tuple[Value, ...], tuple[View, tuple[View, ...]]]
) -> tuple[list[list[Piece]], int]:
    """The pieces of a place by which are joined, and the bytes that are left then."""
    runs: list[list[Piece]] = []
    tables: list[tuple[Value, ...]] = []
    taken = 0  # bytes of the last run's product
    for piece in place.spec.pieces:
        single = _single(piece, reasons)
        if single and runs and tables[-1] and all(_single(p, reasons) for p in runs[-1]):
            key = (*tables[-1], single)
            size = 0 if key in made else _bytes(key)
            if size - taken <= left:
                left, taken = left - (size - taken), size
                runs[-1].append(piece)
                tables[-1] = key
                continue
        runs.append([piece])
        tables.append((single,) if single else ())
        taken = 0
    return runs, left


def _single(piece: Piece, reasons: dict[Value, str]) -> Value | None:
    """The table of a piece that is one plain lookup."""
    bag = piece[0]
    if len(piece) > 1 or not isinstance(bag, Bag) or bag.pool != "row" or bag.count != 1:
        return None
    if not isinstance(bag.shift, int):
        return None
    plain = bag.weights is None and bag.pad is None and bag.stored is None and not bag.parts and bag.shift >= 0
    inside = not bag.modulus or bag.modulus + bag.shift <= int(bag.table.shape[0])
    return bag.table.value if plain and inside and not reasons[bag.table.value] else None


def _bytes(tables: tuple[Value, ...]) -> int:
    rows, width = 1, 0
    for table in tables:
        assert table.shape is not None
        rows, width = rows * int(table.shape[0]), width + int(table.shape[1])
    return 4 * rows * width if len(tables) > 1 else 0


def _product(host: Host, bags: tuple[Bag, ...]) -> tuple[View, tuple[View, ...]]:
    """The product table, and for each part the steps of its rows."""
    arrays = [host.constant(bag.table.value) for bag in bags]
    rows = [len(array) for array in arrays]
    width = sum(array.shape[1] for array in arrays)
    whole = np.empty((*rows, width), np.float32)
    first = 0
    for n, array in enumerate(arrays):
        shape = (*(len(array) if k == n else 1 for k in range(len(rows))), array.shape[1])
        whole[..., first : first + array.shape[1]] = array.reshape(shape)
        first += array.shape[1]
    names = "_x_".join(bag.table.value.name for bag in bags)
    flat: Array = whole.reshape(-1, width)
    steps = []
    for n, count in enumerate(rows):
        step = np.arange(count, dtype=np.int64) * int(np.prod(rows[n + 1 :], dtype=np.int64))
        value = host.add_constant(step, name=f"{bags[n].table.value.name}_steps")
        steps.append(View(value, step.shape))
    return View(host.add_constant(flat, name=names), flat.shape), tuple(steps)


def _joint(bags: tuple[Bag, ...], table: View, steps: tuple[View, ...]) -> Bag:
    return Bag(table, bags[0].ids, "row", parts=bags, steps=steps)
