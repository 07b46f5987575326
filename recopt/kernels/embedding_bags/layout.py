"""The layout text of ``recopt::embedding_bags``: which columns of the result are which lookups. Parsed once a text.

    layout   piece; piece; ...                        pieces lie side by side
    piece    term + term + ...                        terms add up in the same columns
    term     x2                                       dense[2], [R, C] or [R] (one column)
             x2 % 50                                  dense[2], [50, C], again and again: of row r its row r % 50
             row  t0[ids]                             every id's row, side by side
             sum  t0[ids], mean t0[ids], max t0[ids]  a bag of ids' rows, pooled
    table    t0; q8 t0: int8 or uint8 rows; q4 t0, q4:15 t0: two values a byte, the low nibble first, 15 of them
             once t0, once q8 t0: a row is read once for all ids that name it, where that is not free anyway
             wide t0: rows of 16 bits that are float32 before they are added up, and in the result
    ids      i0:4+20      ids[0][:, 4:24], of an id tensor [R, C] or [R]
             i0:4+20<o1   the same, of which only the first offsets[1][r] count; offsets[1] is [R]
             i0@o1        a flat id tensor; bag r begins at offsets[1][r], offsets[1] is [R], the last bag ends with ids
             i0@o1+1      the same with offsets[1] of R + 1 entries
             ... as P     a whole-number function of the id i, such as floordiv(i,5): see embedding_bags_ids
             ... if P     only ids count of which P holds, such as lt(-1,i); of a row zeros come of others
             ... % 1000   Python's remainder, then ... + 5000: the row that is read
             ... wrap     a row that is negative then counts from the end
             ... inside   a row that is not in the table is no error: it is zeros, and left out of a bag as a pad is
    after    * w0:5       the rows times weights[0][:, 5:], of a tensor [R, C] or [R]; * w0 with i0@o1: one an id
             mask w1:5    only ids count where weights[1][:, 5:] is not zero; unmask w1:5: where it is
             pad 0        ids of row 0 are left out: of a sum, a mean's count, a maximum; a row is zeros
             div 1 1e-8   of a sum: over max(n, 1) + 1e-8, where n is the sum of the weights, or how many ids count;
                          div -inf 0 is over n alone; div 1 0 of o1 is over offsets[1], [R], in the place of n
             by 0.5       a row or a sum times a number
             else -1e9    the maximum of no ids; it is 0 without
             least -1e9   the same of a table all of whose rows are above that: it may stand for those that do not count
    hint     hot, cold    ids of a bag repeat much, or hardly: of matter for the time alone, see embedding_bags.hinted

``mean`` is ``sum`` with ``div 1 0``. A quantised table's values are q * scale + bias; scales[k] is [rows, 2], float32
or float16, of the k-th quantised table in the order of their numbers.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace


class EmbeddingBagsError(ValueError):
    """A layout that says nothing, or operands that do not fit it."""


@dataclass(frozen=True)
class Term:
    """One term; the names are those of the grammar above."""

    pool: str  # "dense", "row", "sum", "max"
    source: int  # of dense or of tables
    ids: int = 0
    first: int = 0
    count: int = 0  # 0: ragged
    offsets: int | None = None
    last: bool = False  # offsets hold the end of the last bag too
    lengths: int | None = None
    modulus: int = 0  # 0: none
    shift: int = 0
    weights: int | None = None
    weights_first: int = 0
    pad: int | None = None
    div: tuple[float, float] | None = None
    bits: int = 0  # 0: not quantised
    values: int = 0  # of a row of 4 bits; 0: two a byte
    once: bool = False  # each row is read once
    wraps: bool = False
    hint: str = ""  # "hot", "cold"; "" is anything
    every: int = 0  # rows of a dense tensor that come again and again; 0: as many as the result has
    inside: bool = False  # rows outside of the table are left out
    wide: bool = False
    over: int | None = None  # offsets that are the n of div
    factor: float = 1.0
    otherwise: float = 0.0  # the maximum of no ids
    program: str = ""  # of ids, before the remainder
    live: str = ""  # which ids count
    mask: int | None = None  # of weights: the same
    mask_first: int = 0
    unmask: bool = False  # those count where the mask is zero
    least: bool = False  # `otherwise` is below all rows

    @property
    def ragged(self) -> bool:
        """Whether bags lie one after the other in a flat id tensor."""
        return self.offsets is not None

    @property
    def bare(self) -> bool:
        """Whether rows are pooled as they are stored, all of them and nothing else."""
        stored = not (self.bits or self.once or self.wide)
        every = self.pad is None and not self.inside and not self.live and self.mask is None
        return stored and self.weights is None and every and self.factor == 1 and not self.program

    @property
    def lookup(self) -> bool:
        """Whether the term is one whole row, whatever it is called."""
        single = self.count == 1 and self.lengths is None and self.div in (None, (1.0, 0.0)) and self.over is None
        single = single and self.mask is None and not self.live
        # A sum over its weight is no lookup; an average of one row is.
        return (
            single
            and self.otherwise == 0
            and self.pool in ("row", "sum", "max")
            and (self.div is None or self.weights is None)
        )

    def width(self, columns: int) -> int:
        """Columns of the result, from the columns that the table or the dense tensor is stored in."""
        if self.bits == 4:
            columns = self.values or 2 * columns
        return columns * self.count if self.pool == "row" else columns

    def __str__(self) -> str:
        if self.pool == "dense":
            return f"x{self.source}" + (f" % {self.every}" if self.every else "")
        ids = f"i{self.ids}:{self.first}+{self.count}" if not self.ragged else f"i{self.ids}@o{self.offsets}"
        ids += "+1" * self.last + (f"<o{self.lengths}" if self.lengths is not None else "")
        ids += (f" as {self.program}" if self.program else "") + (f" if {self.live}" if self.live else "")
        ids += (f" % {self.modulus}" if self.modulus else "") + (f" + {self.shift}" if self.shift else "")
        ids += " wrap" * self.wraps + " inside" * self.inside
        table = (f"q{self.bits}" + (f":{self.values}" if self.values else "") + " ") * (self.bits > 0)
        text = f"{self.pool} {'once ' * self.once}{'wide ' * self.wide}{table}t{self.source}[{ids}]"
        if self.weights is not None:
            text += f" * w{self.weights}" + ("" if self.ragged else f":{self.weights_first}")
        if self.mask is not None:
            text += f" {'un' * self.unmask}mask w{self.mask}" + ("" if self.ragged else f":{self.mask_first}")
        text += f" pad {self.pad}" if self.pad is not None else ""
        text += f" div {self.div[0]!r} {self.div[1]!r}" if self.div is not None else ""
        text += f" of o{self.over}" if self.over is not None else ""
        text += (f" by {self.factor!r}" if self.factor != 1 else "") + (
            f" {'least' if self.least else 'else'} {self.otherwise!r}" if self.otherwise != 0 else ""
        )
        return text + (f" {self.hint}" if self.hint else "")


@dataclass(frozen=True)
class Layout:
    """The pieces of a layout, and how many operands of each kind it names."""

    pieces: tuple[tuple[Term, ...], ...]

    def __str__(self) -> str:
        return "; ".join(" + ".join(map(str, piece)) for piece in self.pieces)

    @functools.cached_property
    def terms(self) -> tuple[Term, ...]:
        """All terms, in order."""
        return tuple(term for piece in self.pieces for term in piece)

    @functools.cached_property
    def masked(self) -> bool:
        """Whether a mask says which ids of any term count."""
        return any(term.mask is not None for term in self.terms)

    @functools.cached_property
    def lookups(self) -> tuple[Term, ...]:
        """The terms that read a table."""
        return tuple(term for term in self.terms if term.pool != "dense")

    @functools.cached_property
    def slots(self) -> tuple[tuple[str, int], ...]:
        """The operands that change from call to call: which list, which tensor; list after list."""
        found: dict[tuple[str, int], None] = {}
        for t in self.terms:
            named = (("dense" if t.pool == "dense" else "ids", t.source if t.pool == "dense" else t.ids),
                     ("offsets", t.offsets), ("offsets", t.lengths), ("offsets", t.over),
                     ("weights", t.weights), ("weights", t.mask))  # fmt: skip
            found |= {(which, n): None for which, n in named if n is not None}
        order = ("ids", "offsets", "weights", "dense")
        return tuple(sorted(found, key=lambda slot: (order.index(slot[0]), slot[1])))

    @functools.cached_property
    def flat(self) -> dict[tuple[str, int], int]:
        """The operands that lie along flat ids -> these ids."""
        found = {("ids", t.ids): t.ids for t in self.lookups if t.ragged}
        return found | {("weights", t.weights): t.ids for t in self.lookups if t.ragged and t.weights is not None}

    @functools.cached_property
    def quantised(self) -> dict[int, int]:
        """Table -> its entry of scales."""
        return {table: k for k, table in enumerate(sorted({t.source for t in self.lookups if t.bits}))}

    @functools.cached_property
    def hint(self) -> str:
        """What most lookups are hinted to be, "" where nothing holds for most."""
        hints = [t.hint for t in self.lookups]
        return next((h for h in ("hot", "cold") if 2 * hints.count(h) > len(hints)), "")

    @functools.cached_property
    def operands(self) -> dict[str, int]:
        """How many tensors each list must hold at least."""
        reads = self.lookups
        named = {
            "tables": [t.source for t in reads],
            "ids": [t.ids for t in reads],
            "offsets": [o for t in reads for o in (t.offsets, t.lengths, t.over) if o is not None],
            "weights": [w for t in reads for w in (t.weights, t.mask) if w is not None],
            "dense": [t.source for t in self.terms if t.pool == "dense"],
            "scales": list(self.quantised.values()),
        }
        return {name: 1 + max(numbers, default=-1) for name, numbers in named.items()}

    def widths(self, tables: Sequence[int], dense: Sequence[int]) -> list[int]:
        """Columns of each piece, from the stored columns of tables and dense tensors. Raises EmbeddingBagsError."""
        widths = []
        for piece in self.pieces:
            found = [t.width((dense if t.pool == "dense" else tables)[t.source]) for t in piece]
            if any(w != found[0] for w in found):
                raise EmbeddingBagsError(f"terms of {found} columns cannot add up: {' + '.join(map(str, piece))}")
            widths.append(found[0])
        return widths


_NUMBER = r"(?:-?inf|-?[0-9][-+.e0-9]*)"
_TERM = re.compile(
    r"x(?P<dense>\d+)(?: % (?P<every>\d+))?|"
    r"(?P<pool>row|sum|mean|max) (?P<once>once )?(?P<wide>wide )?(?:q(?P<bits>[48])(?::(?P<values>\d+))? )?"
    r"t(?P<table>\d+)"
    r"\[i(?P<ids>\d+)(?:@o(?P<offsets>\d+)(?P<last>\+1)?|:(?P<first>\d+)\+(?P<count>\d+)(?:<o(?P<lengths>\d+))?)"
    r"(?: as (?P<program>[^ \]]+))?(?: if (?P<live>[^ \]]+))?"
    r"(?: % (?P<modulus>\d+))?(?: \+ (?P<shift>-?\d+))?(?P<wrap> wrap)?(?P<inside> inside)?\]"
    r"(?: \* w(?P<weights>\d+)(?::(?P<weights_first>\d+))?)?"
    r"(?: (?P<un>un)?mask w(?P<mask>\d+)(?::(?P<mask_first>\d+))?)?(?: pad (?P<pad>\d+))?"
    rf"(?: div (?P<low>{_NUMBER}) (?P<eps>{_NUMBER})(?: of o(?P<over>\d+))?)?"
    rf"(?: by (?P<factor>{_NUMBER}))?(?: (?P<least>else|least) (?P<otherwise>{_NUMBER}))?(?: (?P<hint>hot|cold))?"
)
_PLUS = re.compile(r" \+ (?=x\d|row |sum |mean |max )")


@functools.lru_cache(maxsize=4096)
def parse_layout(text: str) -> Layout:
    """The layout that a text describes. Raises EmbeddingBagsError."""
    pieces = tuple(tuple(map(_term, _PLUS.split(piece.strip()))) for piece in text.split(";"))
    layout = Layout(pieces)
    kinds: dict[int, tuple[int, int]] = {}
    for t in layout.lookups:
        if kinds.setdefault(t.source, (t.bits, t.values)) != (t.bits, t.values):
            raise EmbeddingBagsError(f"table {t.source} is stored in two ways: {text!r}")
    return layout


def _term(text: str) -> Term:
    found = _TERM.fullmatch(text)
    if found is None:
        raise EmbeddingBagsError(f"no term of a layout: {text!r}")
    if found["dense"]:
        return Term("dense", int(found["dense"]), every=int(found["every"] or 0))

    def number(name: str, missing: int = 0) -> int:
        return int(found[name] or missing)

    def maybe(name: str) -> int | None:
        return None if found[name] is None else int(found[name])

    try:
        div = None if found["low"] is None else (float(found["low"]), float(found["eps"]))
        factor, otherwise = float(found["factor"] or 1), float(found["otherwise"] or 0)
    except ValueError:
        raise EmbeddingBagsError(f"no numbers after div, by, else or least: {text!r}") from None
    pool = found["pool"]
    if pool == "mean":
        pool, div = "sum", div or (1.0, 0.0)
    term = Term(
        pool, number("table"), number("ids"), number("first"), number("count"), maybe("offsets"),
        found["last"] is not None, maybe("lengths"), number("modulus"), number("shift"), maybe("weights"),
        number("weights_first"), maybe("pad"), div, number("bits"), number("values"),
        found["once"] is not None,
        found["wrap"] is not None,
        found["hint"] or "",
        inside=found["inside"] is not None, wide=found["wide"] is not None, over=maybe("over"), factor=factor,
        otherwise=otherwise, program=found["program"] or "", live=found["live"] or "", mask=maybe("mask"),
        mask_first=number("mask_first"), unmask=found["un"] is not None, least=found["least"] == "least",
    )  # fmt: skip
    wrong = (
        (not term.ragged and term.count == 0, "a bag of no columns"),
        (found["modulus"] is not None and term.modulus == 0, "a remainder of zero"),
        (pool == "row" and (term.ragged or term.lengths is not None), "single rows have no bags"),
        (pool != "sum" and div is not None, "only a sum is divided"),
        (pool == "max" and factor != 1, "a maximum is under no factor"),
        (pool != "max" and otherwise != 0, "a sum of no ids is 0"),
        (term.wide and term.bits > 0, "rows that are not stored as floats are float32 anyway"),
        (term.ragged and found["weights_first"] is not None, "weights of flat ids have no columns"),
        (term.bits == 8 and found["values"] is not None, "rows of 8 bits say their width themselves"),
    )
    for fault, reason in wrong:
        if fault:
            raise EmbeddingBagsError(f"{reason}: {text!r}")
    return term


def extends(a: Term, b: Term) -> bool:
    """Whether b reads the columns after a's in the same table."""
    return (a.source, a.ids, a.first + a.count, a.wraps, a.program) == (b.source, b.ids, b.first, b.wraps, b.program)


def sums_of(piece: Sequence[Term]) -> list[tuple[Term, ...]]:
    """The terms of a piece; bags over columns that lie side by side, of which each is shifted, are one sum."""
    runs: list[tuple[Term, ...]] = []
    for t in piece:
        last = runs[-1][-1] if runs else t
        alike = t.pool == last.pool == "sum" and replace(t, factor=1.0).bare and t.div is None and t.lengths is None
        alike = alike and t.count > 0 and t == replace(last, first=t.first, count=t.count, shift=t.shift)
        if runs and alike and extends(last, t):
            runs[-1] = (*runs[-1], t)
        else:
            runs.append((t,))
    return runs
