"""The source of a layout of ``recopt::embedding_bags`` as a straight line of torch calls; see ``small``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from .ids import keeps
from .layout import Term, extends, sums_of
from .small_calls import FEW
from .small_ids import Words, joint_of, number_of

# Values of rows, some of which do not count, from which embedding_bag is faster than reading, clearing and adding them,
# and ids, for narrow rows: of 256 bags of 5 rows of 6 it takes 22 us for 28.
_MOST = 1 << 14
_MOST_IDS = 1 << 10
_CHAIN = 3  # terms that are added one by one; more are stacked, which is two operators instead of as many


class Source(Words):
    """The lines of one layout."""

    def lines(self) -> list[str]:
        """The lines of the function. Raises NoSource."""
        if self.apart and any(t.every for t in self.layout.terms):
            self._none()
        runs: list[list[Term] | tuple[Term, ...]] = []  # rows that lie side by side in a list, other pieces as they are
        for piece in self.layout.pieces:
            t, last = piece[0], runs[-1] if runs else ()
            if len(piece) > 1 or not _side_by_side(t):
                runs.append(piece)
            elif isinstance(last, list) and joins(last[-1], t):
                last.append(t)
            else:
                runs.append([t])
        self._take_apart([joint_of(run) for run in runs if isinstance(run, list)])
        pieces = []
        for key, group in itertools.groupby(runs, self._but_rows):
            for run in [tuple(t for (t,) in group)] if key else group:
                pieces.append(self._side_by_side(run) if isinstance(run, list) else self._piece(run, key is not None))
        if any(p.startswith("dense") for p in pieces):
            like = next((p for p in pieces if not p.startswith("dense")), None)
            pieces = [self._spread(p, like) for p in pieces]
        if self.apart:
            pieces = [self._row(p, piece) for p, piece in zip(pieces, runs, strict=True)]
        whole = pieces[0] if len(pieces) == 1 else f"cat(({', '.join(pieces)}), {-2 if self.apart else -1})"
        return [*self._guards, *self._lines, f"return {whole}"]

    # --- pieces ---

    def _but_rows(self, run: Sequence[Term]) -> tuple[Term, str] | None:
        """What pieces of one term have in common that are made as one: all but which rows they are. None for others."""
        t = run[0]
        apart = isinstance(run, list) or len(run) > 1 or t.pool == "dense" or (t.pool == "row" and t.count > 1)
        if self.apart or apart or t.ragged or t.wraps or t.weights is not None:
            return None
        dead = self._dead(t, self._rows(run))
        alike = Term(t.pool, 0, count=t.count, div=t.div, wide=t.wide, over=t.over, factor=t.factor, least=t.least,
                     otherwise=t.otherwise)  # fmt: skip
        return (replace(alike, lengths=t.lengths), dead)

    def _piece(self, piece: Sequence[Term], beside: bool = False) -> str:
        """A sum of terms; or such as stand ``beside`` each other, alike in all but their rows."""
        if beside:
            return self._term(piece[:1], piece[1:])
        factors = {t.factor for t in piece}
        if len(piece) > 1 and len(factors) == 1 and factors != {1.0} and all(t.pool != "dense" for t in piece):
            return self.let(f"{self._piece([replace(t, factor=1.0) for t in piece])} * {self.number(piece[0].factor)}")
        groups = sums_of(piece)
        self._take_apart([joint_of(group) for group in groups])
        minus = [not t.every and t.pool != "dense" and t.factor == -1 for (t, *_) in groups]
        if len(groups) > _CHAIN or all(m or t.every for m, (t, *_) in zip(minus, groups, strict=True)):
            minus = [False] * len(groups)  # nothing to take them from
        for n, group in enumerate(groups):
            groups[n] = tuple(replace(t, factor=1.0) for t in group) if minus[n] else group
        terms = [self._term(group) for group in groups]
        fixed = [t for t, group in zip(terms, groups, strict=True) if group[0].every]
        moving = [t for t in terms if t not in fixed]
        if not moving:
            return terms[0] if len(terms) == 1 else self._none()
        first = next(group[0] for group in groups if not group[0].every)
        for term, group in zip(terms, groups, strict=True):
            fits = term == moving[0] or group[0].every or _alike(group[0], first)
            if not fits:  # add would stretch one row over all
                self._unless(f"{term}.shape != {moving[0]}.shape")
        if len(moving) > _CHAIN:
            total = self.let(f"stack(({', '.join(moving)})).sum(0)")
        else:
            less = [t for t, m in zip(terms, minus, strict=True) if m]
            more = [t for t, m, (first, *_) in zip(terms, minus, groups, strict=True) if not (m or first.every)]
            total = self.let(" - ".join([" + ".join(more), *less]))
        for term, every in zip(fixed, [group[0].every for group in groups if group[0].every], strict=True):
            total = self._again(total, term, every)
        return total

    def _again(self, total: str, rows: str, every: int) -> str:
        """The sum with rows that come again and again."""
        if every == 1:
            return self.let(f"{total} + {rows}")
        if self.rank > 1:
            last = {self.shapes.get(f"ids[{t.ids}]", ())[self.rank - 1 : self.rank] for t in self.layout.lookups}
            if last != {(every,)}:
                self._unless(f"{total}.size(-2) != {every}")
            return self.let(f"{total} + {rows}")
        self._unless(f"{total}.size(0) % {every}")
        return self.let(f"({total}.view(-1, {every}, {total}.size(1)) + {rows}).view({total}.shape)")

    def _spread(self, piece: str, like: str | None) -> str:
        """A dense piece over all rows."""
        number = next((t for p in self.layout.pieces for t in p if f"dense[{t.source}]" == piece and t.every), None)
        if number is None:
            return piece
        if like is None or (self.rank == 1 and number.every > 1):
            return self._none()
        if number.every > 1:
            self._unless(f"{like}.size(-2) != {number.every}")
        return f"{piece}.expand(*{like}.shape[:-1], -1)"

    def _row(self, piece: str, run: Sequence[Term]) -> str:
        """A piece as rows of one width, one below the other."""
        t = joint_of(run) if isinstance(run, list) else run[0]
        if t is run[0] and len(run) > 1 and any(u.pool == "dense" for u in run):
            self._none()
        several = t.pool == "dense" or (t.pool == "row" and t.count > 1)
        return piece if several else f"{piece}.unsqueeze(-2)"

    # --- terms ---

    def _side_by_side(self, run: Sequence[Term]) -> str:
        x, t = self._rows(run), run[0]
        rows = self._read(t, x)
        return self.let(rows if joint_of(run).count == 1 else self._flat(rows, t, joint_of(run).count))

    def _flat(self, rows: str, t: Term, count: int) -> str:
        if self.apart:
            return rows
        table = f"tables[{t.source}]"
        width = self.shapes[table][-1] if table in self.shapes else f"{table}.size(1)"
        return f"{rows}.view(-1, {count} * {width})" if self.rank == 1 else f"{rows}.flatten(-2)"

    def _term(self, run: Sequence[Term], beside: Sequence[Term] = ()) -> str:
        t = joint_of(run)
        if t.pool == "dense":
            return self._dense(t)
        if t.ragged:
            return self._ragged(t) if self.rank == 1 else self._none()
        x, table = self._rows(run), f"tables[{t.source}]"
        single, dead, weights = t.count == 1, self._dead(t, self._rows(run)), self._weights(t)
        reads = [(f"tables[{b.source}]", self.let(self._rows([b]))) for b in beside]
        rows = self._read(t, x)
        for b, (other, ids) in zip(beside, reads, strict=True):
            rows += f", {self._read(b, ids)}"
            if other != table:
                self._guards[f"if {table}.dtype != {other}.dtype: return None"] = None
        rows = f"cat(({rows}), -1)" if beside else rows
        mean = t.over is None and t.div is not None and max(t.count, t.div[0]) + t.div[1] == t.count
        if t.pool == "sum" and not (single or dead or weights or t.wraps or t.wide):
            x = self.let(x)
            width = self.shapes.get(table, (None,))[-1]
            most = FEW if width is None else max(20, min(96, 1280 // max(width, 1)))
            few = f"{rows}.{'mean' if mean else 'sum'}(-2)"
            many = ", ".join(f"bags({other}, {ids}, {t.count}, None)" for other, ids in [(table, x), *reads])
            many = f"cat(({many}), -1)" if beside else many
            if mean:
                many += f".div_({self.number(float(t.count), torch.float32)})"
            # rows of 16 bits would be rounded once, and other ways twice; torch's own mean of a fixed number is slower
            rows = f"{few} if {x}.numel() <= {most} and {table}.itemsize >= 4 else {many}"
            t = replace(t, div=None) if mean else t
        elif t.pool == "sum" and not (single or dead or t.wraps or t.wide):
            # of a type that holds fewer digits than the weights do the products would be rounded
            self._guards[f"if {table}.itemsize < 4: return None"] = None
            x = self.let(x)
            many = f"bags({table}, {x}, {t.count}, {weights}.reshape(-1).to({table}.dtype))"
            rows = f"({rows} * {weights}.unsqueeze(-1)).sum(-2) if {x}.numel() <= {FEW} else {many}"
        elif t.pool == "sum" and not single:
            read = f"ids[{t.ids}].size(0) * {t.count}" if self.rank == 1 else f"ids[{t.ids}].numel()"
            # a mask that is a tensor becomes weights there: 6 us more; and so is what counts, once for each table
            most = _MOST_IDS if t.lengths is None and t.mask is None and not beside else _MOST
            for other, _ in [(table, x), *reads] if dead or not t.wide else []:  # wide rows lie in memory anyway
                width = self.shapes.get(other, (None,))[-1]
                large = f"{read} > {most} or {read} * {other}.size(1) > {_MOST}"
                if width is not None:
                    large = f"{read} > {min(most, _MOST // max(width, 1))}"
                self._guards[f"if {large}: return None"] = None
            rows = f"({self._shown(t, rows, dead, weights)}).sum(-2)"
        else:
            rows = self._shown(t, rows, dead, weights)
            if t.pool == "max" and not single:
                rows = f"({rows}).amax(-2)"
            elif not single:
                rows = self._flat(f"({rows})", t, t.count)
        if t.pool == "max" and dead and not (single or t.least or t.otherwise == -math.inf):
            rows = f"{rows}.masked_fill({dead}.all(-1, True), {number_of(t.otherwise)})"
        if t.div is not None:
            rows = self._divided(t, rows, dead, weights)
        if t.factor != 1:
            rows = f"({rows}).neg()" if t.factor == -1 else f"({rows}) * {self.number(t.factor)}"
        out = self.let(rows)
        kind = "float32" if t.wide else f"{table}.dtype"
        exact = not weights and (t.div is None or (not dead and t.over is None))
        return out if exact else self.let(f"{out} if {out}.dtype == {kind} else {out}.to({kind})")

    def _ragged(self, t: Term) -> str:
        """Sums or means of bags that lie one after the other."""
        x, bounds, mean = self._rows([t]), f"offsets[{t.offsets}]", int(t.div is not None)
        starts = self.let(f"{bounds} if {bounds}.dtype == {x}.dtype else {bounds}.to({x}.dtype)")
        bag = f"embedding_bag(held(tables[{t.source}]), {x}, {starts}, False, {mean}, False, None, {t.last})"
        return self.let(f"{bag}[0]")

    def _shown(self, t: Term, rows: str, dead: str, weights: str) -> str:
        """Rows times their weights, and something else in the place of those that do not count."""
        rows = f"{rows} * {weights}.unsqueeze(-1)" if weights else rows
        if not dead:
            return rows
        if t.pool != "max":
            # the fastest of the ways of `cleared` where rows are few
            few = f"r.masked_fill_({dead}.unsqueeze(-1), 0)"
            return f"{few} if (r := {rows}).numel() <= filled else cleared(r, {dead})"
        lowest = t.otherwise if t.least or t.count == 1 else -math.inf
        return f"({rows}).masked_fill_({dead}.unsqueeze(-1), {number_of(lowest)})"

    def _dense(self, t: Term) -> str:
        x = f"dense[{t.source}]"
        known = self.shapes.get(x)
        if t.every:
            if known is None or len(known) < 2:
                self._guards[f"if {x}.dim() < 2: return None"] = None
            return x
        if self.apart or (known is not None and len(known) > self.rank):
            return x
        return self.let(f"{x} if {x}.dim() > {self.rank} else {x}.unsqueeze(-1)")

    def _dead(self, t: Term, x: str) -> str:
        """Which ids do not count; "" where all do."""
        tests = [] if t.pad is None else [f"{x}.eq({self.number(t.pad)})"]
        if keeps(t.program, t.live):
            tests.append(f"{self._given(t, t.program)}.ne({self._given(t, '')})")
        elif t.live:
            tests.append(self._given(t, t.live, negated=True))
        if t.mask is not None:
            mask = self._cut(f"weights[{t.mask}]", t.mask_first, t.count)
            tests.append(f"{mask}.bool()" if t.unmask else f"{mask}.logical_not()")
        if t.lengths is not None:
            lengths = f"offsets[{t.lengths}]"
            places = "" if t.count == 1 else self._constant(tuple(range(t.count)))
            tests.append(f"{places}.ge({lengths}.unsqueeze(-1))" if places else f"{lengths}.le({self.number(0)})")
        names = [self.let(test) for test in tests]
        return self.let(" | ".join(names)) if len(names) > 1 else "".join(names)

    def _weights(self, t: Term) -> str:
        return "" if t.weights is None else self._cut(f"weights[{t.weights}]", t.weights_first, t.count)

    def _divided(self, t: Term, rows: str, dead: str, weights: str) -> str:
        assert t.div is not None
        low, eps = t.div
        if t.over is None and not (dead or weights):
            by = max(float(t.count), low) + eps
            return f"({rows}).div_({self.number(by)})" if by != 1 else rows
        if t.over is not None:
            n = f"wide(offsets[{t.over}]).unsqueeze(-1)"
        elif weights:
            w = f"{weights}.masked_fill({dead}, 0)" if dead else weights
            n = f"wide({w}).unsqueeze(-1)" if t.count == 1 else f"wide({w}).sum(-1, True)"
        elif t.count == 1:
            n = f"{dead}.logical_not().unsqueeze(-1)"
        else:
            n = f"({self.number(t.count)} - {dead}.sum(-1, True))"
        if low != -math.inf:
            n = f"{n}.clamp_min({number_of(low)})"
        if not eps:
            return f"({rows}) / {n}"
        # a count is a whole number, beside which a number is a float32
        small = number_of(eps) if weights or t.over is not None else self.number(eps, torch.float32)
        return f"({rows}) / ({n} + {small})"


def _side_by_side(t: Term) -> bool:
    """Whether a term is rows as they are stored."""
    return t.pool == "row" and replace(t, program="").bare


def joins(a: Term, b: Term) -> bool:
    """Whether a piece of one term is read together with the piece after it."""
    return _side_by_side(a) and _side_by_side(b) and extends(a, b) and a.modulus == b.modulus


def _alike(a: Term, b: Term) -> bool:
    """Whether two terms have the same shape, whatever their operands are."""
    return a.pool == b.pool != "dense" and (a.source, a.ids, a.count) == (b.source, b.ids, b.count)
