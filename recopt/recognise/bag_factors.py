"""What multiplies the rows of a bag besides weights: which ids are in it, which are left out, what it is divided by.

sum_l [start[b] <= l] [l < start[b + 1]] T[ids[l], d]      bags that lie one after the other in flat ids
sum_l [l < length[b]] T[ids[b, l], d]                      bags that are cut to their lengths
sum_l [ids[b, l] != 0] T[ids[b, l], d] / max(n[b], 1)      a padding id, the mean of the ids that count
sum_l [x[b, l] >= 0] T[max(x[b, l], 0), d]                 another condition on what the ids are made of
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..ir import sizes
from ..ir.normal import add, guard, mul, scale, substitute, sum_over
from ..ir.rules import fn
from ..ir.term import Axis, Fn, Poly, coord, number, single, walk
from ..match import No
from .largest import all_of


@dataclass
class Factors:
    """The factors of a bag, told apart; `weights` are those that are nothing else."""

    starts: Poly | None = None
    ends: Poly | None = None
    lengths: Poly | None = None
    pad: int | None = None
    above: bool = False
    of_row: bool = False  # the pad is a row, once negative ids are counted from the end
    below: int = 0
    div: tuple[float, float] | None = None
    over: Poly | None = None  # what is divided by, where that is not what the factors add up to
    live: list[Poly] = field(default_factory=list)  # conditions on what the ids are made of
    masks: list[Poly] = field(default_factory=list)  # conditions that the graph computes, of a maximum
    weights: list[Poly] = field(default_factory=list)
    uncounted: int | None = None  # the id that `over` leaves out, where that is how many others there are
    row_uncounted: bool = False  # it is a row, once negative ids are counted from the end


def factors(
    others: Sequence[Poly], ids: Poly, row: Poly, inner: Sequence[Axis], of_id: Callable[[Poly], bool]
) -> Factors:
    """`others` are the factors beside the row, `inner` the axes that are summed; `row` is what `ids` name, which counts
    negative ones from the end or is the same; `of_id` tells conditions on what the ids are made of. Raises No for a
    denominator that varies from id to id."""
    found = Factors()
    counted: list[Poly] = []
    below: list[Poly] = []
    for p in others:
        atom = p.atom
        if isinstance(atom, Fn) and atom.name == "reciprocal":
            below.append(atom.args[0])
            continue
        counted.append(p)
        for part in _conjuncts(p):
            test = condition_of(part)
            if _member(found, part, ids, row, inner):
                continue
            if test is not None and of_id(test):
                found.live.append(test)
            else:
                found.weights.append(part)
    if found.starts is None and found.ends is not None:
        found.lengths, found.ends = found.ends, None
    if len(below) > 1:
        raise No("several denominators")
    if below:
        found.div, found.over = _denominator(below[0], counted, inner)
    if found.over is None:
        return found
    for named in () if counted else (row, ids):
        found.uncounted = _uncounted(found.over, named, inner)
        if found.uncounted is not None:
            found.row_uncounted = named is not ids
            return found
    found.over = _given(found.over, inner)
    return found


def _uncounted(over: Poly, row: Poly, inner: Sequence[Axis]) -> int | None:
    """The id that a denominator leaves out, which is how many others there are, while rows are added up of all."""
    numbers = {p.number for a in walk(over) if isinstance(a, Fn) and a.name == "eq" for p in a.args}
    for pad in numbers:
        if isinstance(pad, int) and pad >= 0:
            other = fn("cast", [fn("ne", [row, number(pad, row.dtype)], "bool")], over.dtype)
            if any(over is n for n in counts(over, [other], inner)):
                return pad
    return None


def condition_of(p: Poly) -> Poly | None:
    """The condition that a factor is 1 under, and 0 else; None for other factors."""
    atom = p.atom
    cast = isinstance(atom, Fn) and atom.name == "cast" and atom.args[0].dtype == "bool"
    return atom.args[0] if cast and isinstance(atom, Fn) else None


def _conjuncts(p: Poly) -> list[Poly]:
    """The factors that a condition is made of."""
    condition = condition_of(p)
    return [p] if condition is None else [fn("cast", [c], p.dtype) for c in all_of(condition)]


def _member(found: Factors, p: Poly, ids: Poly, row: Poly, inner: Sequence[Axis]) -> bool:
    """Whether a factor says which ids count; noted if so."""
    condition = condition_of(p)
    test = None if condition is None else condition.atom
    if not isinstance(test, Fn):
        return False
    place = coord(inner[0]) if len(inner) == 1 else None
    if test.name == "le" and test.args[1] is place and found.starts is None:
        found.starts = test.args[0]
        return True
    if test.name == "lt" and test.args[0] is place and found.ends is None:
        found.ends = test.args[1]
        return True
    above = test.name == "lt" and test.args[0].number == 0 and test.args[1] is ids
    pad = 0 if above else _pad(test, ids)
    if pad is None and row is not ids:
        pad = _pad(test, row)
        found.of_row = pad is not None or found.of_row
    if pad is None or (found.pad is not None and (found.pad, found.above) != (pad, above)):
        return False
    found.pad, found.above = pad, above
    return True


def _pad(test: Fn, ids: Poly) -> int | None:
    """The id that a condition leaves out."""
    if test.name == "logical_not" and isinstance(test.args[0].atom, Fn) and test.args[0].atom.name == "eq":
        a, b = test.args[0].atom.args
        for one, other in ((a, b), (b, a)):
            if _same(one, ids) and isinstance(other.number, int) and other.number >= 0:
                return other.number
    return None


def _same(a: Poly, b: Poly) -> bool:
    """Whether two terms are the same ids, of the same type or of another: an index is int64, whatever is read."""
    one, other = _narrow(a), _narrow(b)
    return one is other or (one.atom is not None and one.atom is other.atom)


def _narrow(ids: Poly) -> Poly:
    """Ids before they were cast to more bits, if they were."""
    atom = ids.atom
    if not isinstance(atom, Fn) or atom.name != "cast" or atom.dtype != "int64" or atom.args[0].dtype != "int32":
        return ids
    return atom.args[0]


def _denominator(q: Poly, counted: Sequence[Poly], inner: Sequence[Axis]) -> tuple[tuple[float, float], Poly | None]:
    """LO and EPS of max(n, LO) + EPS, where n is what the factors add up to; n where it is not."""
    eps = sum(float(m.coef) for m in q.monos if not m.atoms and not m.axes)
    bare = add(q, number(-eps, q.dtype)) if eps else q
    low = float("-inf")
    bare = _limited(bare)
    if isinstance(bare.atom, Fn) and bare.atom.name == "max":
        limits = [a.number for a in bare.atom.args if isinstance(a.number, (int, float))]
        rest = [a for a in bare.atom.args if a.number is None]
        if len(limits) == 1 and len(rest) == 1:
            low, bare = float(limits[0]), rest[0]
    return (low, eps), None if any(bare is n for n in counts(bare, counted, inner)) else bare


def _given(over: Poly, inner: Sequence[Axis]) -> Poly:
    """A denominator that a value of the graph holds, which may be whole numbers. Raises No where it cannot."""
    atom = over.atom
    if atom is None or not over.axes_read.isdisjoint(inner):
        raise No("a denominator that is not what the weights add up to")
    whole = isinstance(atom, Fn) and atom.name == "cast" and atom.args[0].dtype in ("int64", "int32")
    return atom.args[0] if isinstance(atom, Fn) and whole else over


def _limited(q: Poly) -> Poly:
    """A limit inside of a cast outside of it, and where(n == 0, 1, n) as the limit that it is of a count."""
    atom = q.atom
    if not isinstance(atom, Fn):
        return q
    inner = atom.args[0].atom if atom.name == "cast" else None
    if isinstance(inner, Fn) and inner.name == "max" and inner.dtype in ("int64", "int32"):
        return fn("max", [fn("cast", [p], q.dtype) for p in inner.args], q.dtype)
    if atom.name == "where" and _is_count(atom.args[2]):
        test, one, n = atom.args
        if one.number == 1 and test is fn("eq", [n, number(0, n.dtype)], "bool"):
            return fn("max", [n, one], q.dtype)
    return q


def _is_count(n: Poly) -> bool:
    """Whether a term is how many conditions hold."""
    whole = n.atom.args[0] if isinstance(n.atom, Fn) and n.atom.name == "cast" else n
    if len(whole.monos) != 1 or whole.monos[0].coef != 1:
        return False
    return all(condition_of(single(a, whole.dtype)) is not None for a in whole.monos[0].atoms)


def counts(like: Poly, counted: Sequence[Poly], inner: Sequence[Axis]) -> list[Poly]:
    """What the factors add up to: as floats, and counted in integers first."""
    if not counted:
        return [number(sizes.product(a.size for a in inner), like.dtype)]
    found = [sum_over(mul(*counted), inner)]
    whole = [_as_integer(p) for p in counted]
    if all(p is not None for p in whole):
        summed = sum_over(mul(*[p for p in whole if p is not None]), inner)
        found.append(fn("cast", [summed], like.dtype))
    return found


def _as_integer(p: Poly) -> Poly | None:
    condition = condition_of(p)
    return None if condition is None else fn("cast", [condition], "int64")


def ends_of(starts: Poly, ends: Poly, row: Axis, count: sizes.Size) -> bool | None:
    """Whether bags end where the next begins: True where the starts have one entry more, for the end of the last;
    False where that is the number of ids; None where neither is so."""
    following = substitute(starts, {row: add(coord(row), number(1))})
    if ends is following:
        return True
    last = sizes.size(row.size - 1)
    place = coord(row)
    expected = add(
        mul(guard(place, None, last, ends.dtype), following),
        scale(guard(place, last, None, ends.dtype), count),
    )
    return False if ends is expected else None
