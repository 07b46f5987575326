"""The smallest and largest value that an integer term can have."""

from __future__ import annotations

from . import sizes
from .sizes import Size
from .term import Atom, Coord, Fn, Guard, Mono, Poly


def value_range(term: Poly) -> tuple[Size | None, Size | None]:
    """The smallest and largest value of an integer index, None where unknown."""
    low: Size | None = 0
    high: Size | None = 0
    for mono in term.monos:
        lo, hi = _mono_range(mono)
        low = None if low is None or lo is None else sizes.add(low, lo)
        high = None if high is None or hi is None else sizes.add(high, hi)
    return low, high


def _mono_range(mono: Mono) -> tuple[Size | None, Size | None]:
    if isinstance(mono.coef, float) or mono.axes:
        return None, None
    if not mono.atoms:
        return mono.coef, mono.coef
    if len(mono.atoms) > 1:
        return None, None
    lo, hi = atom_range(mono.atoms[0])
    if isinstance(mono.coef, int) and mono.coef < 0:
        lo, hi = hi, lo
    elif not sizes.at_least(mono.coef, 0):
        if not sizes.at_least(sizes.size(-mono.coef), 0):
            return None, None
        lo, hi = hi, lo
    return (None if lo is None else sizes.mul(mono.coef, lo), None if hi is None else sizes.mul(mono.coef, hi))


def atom_range(atom: Atom) -> tuple[Size | None, Size | None]:
    """The smallest and largest value of an integer atom, None where unknown."""
    if isinstance(atom, Coord):
        return 0, sizes.size(atom.axis.size - 1)
    if isinstance(atom, Guard):
        return 0, 1
    if (
        isinstance(atom, Fn)
        and atom.name == "mod"
        and atom.args[1].number is not None
        and sizes.at_least(atom.args[1].number, 1)
    ):
        return 0, sizes.size(atom.args[1].number - 1)
    if isinstance(atom, Fn) and atom.name == "floordiv":
        low, high = value_range(atom.args[0])
        divisor = atom.args[1].number
        if isinstance(divisor, int) and divisor > 0:
            return (
                low // divisor if isinstance(low, int) else (0 if low is not None and sizes.at_least(low, 0) else None),
                high // divisor if isinstance(high, int) else None,
            )
    return None, None
