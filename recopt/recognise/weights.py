"""Averages under weights that are a pointwise function of products, with no softmax: HSTU's silu(q k) / n * mask."""

from __future__ import annotations

from ..hosts.base import Value
from ..ir.normal import normal_mono, scale, substitute
from ..ir.rules import FLOATS
from ..ir.term import Atom, Fn, Mono, Poly, Read, axis, coord, single, walk
from ..lift.base import Lifted
from ..match import is_data
from .scores import carries
from .softmax import Average


def weighted(lifted: Lifted, term: Poly) -> Average | None:
    """A term as such a sum: its score is the weight itself, and `unseen` says so. None where it is none."""
    mono = term.monos[0] if len(term.monos) == 1 else None
    if mono is None or not _sums(lifted, mono) or not isinstance(mono.coef, (int, float)):
        return None
    along = tuple(axis(a.size) for a in mono.axes)
    names = {a: coord(n) for a, n in zip(mono.axes, along, strict=True)}
    atoms = [a for atom in mono.atoms if (a := substitute(single(atom, atom.dtype), names).atom) is not None]
    if len(atoms) < len(mono.atoms):
        return None
    asked = [a for a in atoms if _is_weight(lifted, a)]
    read = {a for atom in asked for a in atom.axes_read}
    rest = [a for a in atoms if a not in asked and not a.axes_read <= read]
    score = normal_mono(1, [a for a in atoms if a not in rest], term.dtype)
    return Average(scale(score, mono.coef), along, tuple(rest), 1, "scores", frozenset())


def weighs_by_scores(lifted: Lifted, value: Value) -> bool:
    """Whether a value may be such a sum, as far as its last product shows."""
    terms = [t.body for t in (lifted.definition.get(value), lifted.local(value)) if t is not None]
    return value.dtype in FLOATS and any(len(t.monos) == 1 and _sums(lifted, t.monos[0]) for t in terms)


def _sums(lifted: Lifted, mono: Mono) -> bool:
    """Whether data that is summed is weighed by a function of products."""
    summed = [a for a in mono.atoms if not a.axes_read.isdisjoint(mono.axes) and is_data(lifted, a)]
    return len(summed) > 1 and any(_is_weight(lifted, a) for a in summed)


def _is_weight(lifted: Lifted, atom: Atom) -> bool:
    if isinstance(atom, Read):
        return isinstance(atom.leaf, Value) and carries(lifted, atom.leaf)
    leaves = {t.leaf for t in walk(single(atom, atom.dtype)) if isinstance(t, Read)} if isinstance(atom, Fn) else set()
    return any(isinstance(leaf, Value) and carries(lifted, leaf, itself=True) for leaf in leaves)
