"""Contractions: where terms sum data against weights. A sum may also be written out, one column of data after another:
x[b, 0] * W[n, 0] + x[b, 1] * W[n, 1] + ... is one contraction, however many values of the graph hold its parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..hosts.base import Value
from ..ir.normal import substitute
from ..ir.rules import FLOATS
from ..ir.tensor import Tensor
from ..ir.term import Atom, Fn, Guard, Interned, Leaf, Mono, Poly, Read, TooLarge, walk
from ..lift.base import Lifted
from ..match import constant_leaf, is_data

MAX_SOURCES = 64  # contractions that one value may combine
MAX_WRITTEN = 100_000  # terms in an expanded one, repetitions counted
MAX_NESTED = 48  # values between one and its contractions: mish written out from exp has ten

Define: TypeAlias = Callable[[Value], Tensor | None]


def is_contraction(lifted: Lifted, value: Value) -> bool:
    """Whether a value is a leaf whose definition sums data against weights, or writes such a sum out."""
    return lifted.noted("is_contraction", value, lambda v: _is_contraction(lifted, v))


def _is_contraction(lifted: Lifted, value: Value) -> bool:
    t = lifted.definition.get(value)
    if t is None or t.dtype not in FLOATS or lifted.term[value].body is t.body:
        return False
    sums = [m for m in t.body.monos if m.axes]
    if sums:
        return any((_is_product(m) and is_data(lifted, m)) or _adds_parts(lifted, m) for m in sums)
    columns = [m for m in t.body.monos if column_of(lifted, m) is not None]
    return bool(columns) and all(m in columns or _is_part(lifted, m) for m in t.body.monos)


def _is_product(mono: Mono) -> bool:
    """Whether more than one factor reads an axis that is summed."""
    return any(sum(ax in a.axes_read for a in mono.atoms) > 1 for ax in mono.axes)


def _is_part(lifted: Lifted, mono: Mono) -> bool:
    """Whether a sum that is written out may hold a monomial beside its columns: constants, and its earlier part."""
    data = [a for a in mono.atoms if is_data(lifted, a)]
    return not data or (
        len(data) == 1
        and isinstance(data[0], Read)
        and isinstance(data[0].leaf, Value)
        and is_contraction(lifted, data[0].leaf)
    )


def _adds_parts(lifted: Lifted, mono: Mono) -> bool:
    """Whether a monomial sums what a long concat or stack joins of contractions, or one's own columns: that is one."""
    leaf = _added(lifted, mono)
    if leaf is None:
        return False
    return is_contraction(lifted, leaf) or all(
        column_of(lifted, m) is not None or _is_part(lifted, m) for m in lifted.definition[leaf].body.monos
    )


def column(lifted: Lifted, atom: Atom, mono: Mono) -> Read | None:
    """`atom` where it is the data of a product of width one: x[b, 3] * W[n, 3], whose weight lies along an axis of its
    own, a column under a number, .3 * x[b, 3], or anything under an element of a matrix, x[b] * W[0, 3]."""
    if mono.axes or not isinstance(atom, Read) or not isinstance(atom.leaf, Value) or atom.dtype not in FLOATS:
        return None
    if constant_leaf(lifted, atom.leaf) or any(is_data(lifted, p) for p in atom.index):
        return None
    weights = [a for a in mono.atoms if not is_data(lifted, a)]
    if any(not a.axes_read.isdisjoint(atom.axes_read) for a in weights):
        return None
    if any(a.axes_read and not isinstance(a, Guard) for a in weights):  # a guard alone is a place in a concat
        return atom
    if len(weights) + 1 < len(mono.atoms):  # a column times other data is a gate
        return None
    fixed = atom.index and isinstance(atom.index[-1].number, int) and lifted.term[atom.leaf].shape[-1] != 1
    return atom if fixed or any(_is_element(lifted, a) for a in weights) else None


def _is_element(lifted: Lifted, atom: Atom) -> bool:
    """Whether a factor is one element of a constant matrix: W[n, k] where n and k are one place each."""
    if not isinstance(atom, Read) or len(atom.index) < 2 or not isinstance(atom.leaf, Value):
        return False
    one = all(isinstance(p.number, int) for p in atom.index)
    return one and constant_leaf(lifted, atom.leaf) and any(e != 1 for e in lifted.term[atom.leaf].shape)


def column_of(lifted: Lifted, mono: Mono) -> Read | None:
    """The data of a monomial that is a product of width one."""
    data = [a for a in mono.atoms if is_data(lifted, a)]
    return column(lifted, data[0], mono) if len(data) == 1 else None


def weighs_columns(lifted: Lifted, parts: Sequence[tuple[Poly, Poly]]) -> bool:
    """Whether these are several columns of data under numbers of which not all are alike, a*x[b, 0] + b*x[b, 1], or
    under elements of a matrix; alone or in one place of a concat. Under one number they are pooled, not weighed."""
    places: dict[tuple[Atom, ...], set[object]] = {}
    for x, weight in parts:
        if len(x.monos) != 1 or len(weight.monos) != 1:
            return False
        (w,) = weight.monos
        if column_of(lifted, x.monos[0]) is None and not any(_is_element(lifted, a) for a in w.atoms):
            return False
        guards = tuple(a for a in w.atoms if isinstance(a, Guard))
        size = abs(w.coef) if isinstance(w.coef, (int, float)) else w.coef
        places.setdefault(guards, set()).add((size, *(a for a in w.atoms if a not in guards)))
    return any(len(found) > 1 for found in places.values())


@dataclass(frozen=True)
class Reach:
    """The contractions that a value is a pointwise function of, and those under its functions that are not affine."""

    sources: frozenset[Value] = frozenset()
    bent: frozenset[Value] = frozenset()
    nested: int = 0  # values between


def reach(lifted: Lifted, value: Value, known: Mapping[Leaf, Reach]) -> Reach | None:
    """None where a value is something else too, or adds functions of different contractions: relu(c) + d. Pieces that
    lie beside each other may be functions of their own."""
    t = lifted.definition.get(value)
    if t is None or lifted.host.is_constant(value):
        return None
    if is_contraction(lifted, value):
        return Reach(frozenset((value,)))
    if any(m.axes for m in t.body.monos):
        return None
    pieces: dict[tuple[Atom, ...], Reach] = {}
    again = _added_again(lifted, t.body, known)
    for mono in t.body.monos:
        beside = tuple(a for a in mono.atoms if isinstance(a, Guard))
        piece = pieces.get(beside, Reach())
        for atom in mono.atoms:
            if (mono, atom) in again:
                continue
            found = _reach_of(lifted, atom, mono, known)
            if found is None or (found.bent and piece.bent and found.bent != piece.bent):
                return None
            piece = Reach(piece.sources | found.sources, found.bent or piece.bent)
        pieces[beside] = piece
    if any(p.bent and p.bent != p.sources for p in pieces.values()):
        return None
    sources = frozenset[Value]().union(*(p.sources for p in pieces.values()))
    nested = 1 + max((known[leaf].nested for leaf in t.body.leaves if leaf in known), default=0)
    if len(sources) > MAX_SOURCES or nested > MAX_NESTED:
        return None
    return Reach(sources, sources if any(p.bent for p in pieces.values()) else frozenset(), nested)


def _added_again(lifted: Lifted, term: Poly, known: Mapping[Leaf, Reach]) -> set[tuple[Mono, Atom]]:
    """The inputs in a sum that its contractions read too: x @ W + x is x under W + I, also where a function multiplies
    both. Narrow floats would lose what is small in W beside 1."""
    if len(term.monos) < 2 or term.dtype not in ("float32", "float64"):
        return set()
    inputs: list[tuple[Mono, Read, frozenset[Atom]]] = []
    reached: dict[frozenset[Atom], set[Value]] = {}  # what is contracted, by the other data of the monomial
    for mono in term.monos:
        data = [a for a in mono.atoms if is_data(lifted, a)]
        for atom in data:
            if mono.axes or not isinstance(atom, Read) or not isinstance(atom.leaf, Value):
                continue
            others = frozenset(a for a in data if a is not atom)
            if atom.leaf in known:
                reached.setdefault(others, set()).update(known[atom.leaf].sources - known[atom.leaf].bent)
            if atom.dtype in FLOATS and not is_contraction(lifted, atom.leaf):
                inputs.append((mono, atom, others))
    return {
        (mono, atom)
        for mono, atom, others in inputs
        if isinstance(atom.leaf, Value)
        and any(_added_up(lifted, atom.leaf) in contracted_by(lifted, v) for v in reached.get(others, ()))
    }


def _added_up(lifted: Lifted, value: Value) -> Value:
    """What a value sums up, weighing nothing, else the value: sum_k x[b, k] is x under a column of ones."""
    t = lifted.definition.get(value)
    mono = t.body.monos[0] if t is not None and len(t.body.monos) == 1 else None
    data = mono.atoms[0] if mono is not None and mono.axes and len(mono.atoms) == 1 else None
    leaf = data.leaf if isinstance(data, Read) else None
    return leaf if isinstance(leaf, Value) and leaf.dtype == value.dtype else value


def contracted_by(lifted: Lifted, value: Value) -> frozenset[Value]:
    """What a contraction reads that is no constant."""
    t = lifted.definition.get(value)
    return frozenset() if t is None or not is_contraction(lifted, value) else sources_of(lifted, t.body)


def _reach_of(lifted: Lifted, atom: Atom, mono: Mono, known: Mapping[Leaf, Reach]) -> Reach | None:
    """What one factor of a monomial reads."""
    if isinstance(atom, Fn):
        inner = []
        for arg in atom.args:
            again = _added_again(lifted, arg, known)
            inner += [_reach_of(lifted, a, m, known) for m in arg.monos for a in m.atoms if (m, a) not in again]
    elif not is_data(lifted, atom):
        return Reach()
    elif (x := column(lifted, atom, mono)) is not None and _stands_alone(lifted, x, mono, known):
        return Reach(frozenset((x.leaf,)) if _is_weighted(mono) and isinstance(x.leaf, Value) else frozenset())
    elif isinstance(atom, Read) and any(is_data(lifted, p) for p in atom.index):
        return None  # what is looked up is no function of the position
    else:
        inner = [known.get(leaf) for leaf in atom.leaves if not constant_leaf(lifted, leaf)]
    sources: frozenset[Value] = frozenset()
    bent: frozenset[Value] = frozenset()
    for part in inner:
        if part is None:
            return None
        sources, bent = sources | part.sources, bent | part.bent
    return Reach(sources, bent if isinstance(atom, Read) else sources)


def _stands_alone(lifted: Lifted, x: Read, mono: Mono, known: Mapping[Leaf, Reach]) -> bool:
    """Whether a column is data of its own here, and not what it is a function of: one that is merely picked is not."""
    return x.leaf not in known or (_is_weighted(mono) and column_of(lifted, mono) is x)


def _is_weighted(mono: Mono) -> bool:
    return len(mono.atoms) > 1 or mono.coef not in (1, -1)


def sources_of(lifted: Lifted, term: Poly) -> frozenset[Value]:
    """What a term reads that is no constant."""
    return frozenset(v for v in term.leaves if isinstance(v, Value) and not constant_leaf(lifted, v))


def expand(lifted: Lifted, term: Poly) -> Poly:
    """`term` over contractions, columns of data and constants: the definitions of everything between are put in.

    Raises TooLarge where that is, written out: each step of x + sin(x), many times over, repeats the last one twice."""
    made: dict[Poly, Poly] = {}
    lengths: dict[Interned, int] = {}

    def whole(term: Poly) -> Poly:
        if term not in made:
            made[term] = _expanded(lifted, term, whole)
            if _written_out(made[term], lengths) > MAX_WRITTEN:
                raise TooLarge
        return made[term]

    return whole(term)


def _expanded(lifted: Lifted, term: Poly, whole: Callable[[Poly], Poly]) -> Poly:
    monos = [m for p in walk(term) if isinstance(p, Poly) for m in p.monos]
    columns = {x.leaf for m in monos for a in m.atoms if (x := column(lifted, a, m)) is not None}
    contracted = {leaf for v in sources_of(lifted, term) for leaf in contracted_by(lifted, v)}

    def inner(atom: Atom) -> Poly | None:
        if not isinstance(atom, Read) or not isinstance(atom.leaf, Value) or constant_leaf(lifted, atom.leaf):
            return None
        if is_contraction(lifted, atom.leaf) or atom.leaf in columns:
            return None
        t = lifted.definition.get(atom.leaf)
        if t is None or t.body.atom is atom:
            return None
        return None if atom.leaf in contracted else whole(t.at(list(atom.index)))

    return term if all(is_contraction(lifted, v) for v in sources_of(lifted, term)) else substitute(term, {}, inner)


def _written_out(term: Interned, known: dict[Interned, int]) -> int:
    """Terms within a term, each as often as its text would repeat it."""
    if term not in known:
        known[term] = 1 + sum(_written_out(t, known) for t in term.inside())
    return known[term]


def unfold(lifted: Lifted, term: Poly, define: Define) -> Poly:
    """`term` with every contraction spelled out by `define`, what these only add up over what that reads, and sums of
    what is contracted too."""
    contractions = {v for v in sources_of(lifted, term) if is_contraction(lifted, v)}
    result = _spelled(term, contractions, define)
    while added := _added_leaves(lifted, result):
        result = _spelled(result, added, lifted.definition.get)
    return _spelled(result, _summed_inputs(lifted, result), lifted.definition.get)


def _added_leaves(lifted: Lifted, term: Poly) -> set[Value]:
    """What a term only adds up, moves or scales, unless it contracts that too: x + x @ W is a function of x, whatever x
    adds up. A chain of these would double at each step."""
    added = {m: v for m in term.monos if (v := _added(lifted, m)) is not None}
    contracted = {leaf for m in term.monos if m not in added and _is_product(m) for leaf in m.leaves}
    return set(added.values()) - contracted


def _summed_inputs(lifted: Lifted, term: Poly) -> set[Value]:
    """The values that a term adds which sum up what it contracts: sum_k x[b, k] * (W[n, k] - z[n]) may be spelled as
    x @ W - z * x.sum(). Narrow floats would lose what is small in one beside the other."""
    if term.dtype not in ("float32", "float64"):
        return set()
    contracted = {_operand(m, a) for m in term.monos if _is_product(m) for a in m.atoms}
    data = {a.leaf for m in term.monos if not m.axes for a in m.atoms if isinstance(a, Read)}
    found = set()
    for value in data:
        if isinstance(value, Value) and _added_up(lifted, value) is not value:
            (whole,) = lifted.definition[value].body.monos
            if _operand(whole, whole.atoms[0]) in contracted:
                found.add(value)
    return found


def _operand(mono: Mono, atom: Atom) -> tuple[object, ...]:
    """What a factor reads, and the sizes of the axes over which it is summed."""
    return (*atom.leaves, *sorted(str(a.size) for a in mono.axes if a in atom.axes_read))


def _spelled(term: Poly, leaves: Collection[Value], define: Define) -> Poly:
    def inner(atom: Atom) -> Poly | None:
        if not isinstance(atom, Read) or not isinstance(atom.leaf, Value) or atom.leaf not in leaves:
            return None
        spelled = define(atom.leaf)
        return None if spelled is None else spelled.at(list(atom.index))

    return substitute(term, {}, inner) if leaves else term


def _added(lifted: Lifted, mono: Mono) -> Value | None:
    """The leaf that a monomial adds up, moves or scales without weighing it, where it is no more than that itself: a
    long concat, the first terms of a sum that is written out."""
    data = [a for a in mono.atoms if is_data(lifted, a)]
    if len(data) != 1 or not isinstance(data[0], Read) or not isinstance(data[0].leaf, Value):
        return None
    x, leaf = data[0], data[0].leaf
    if _adds_columns(lifted, mono, x):
        return leaf
    own = x.axes_read - set(mono.axes)
    if any(isinstance(a, Read) and not a.axes_read <= own for a in mono.atoms if a is not x):
        return None
    t = lifted.definition.get(leaf)
    if t is None or t.body is lifted.term[leaf].body or any(m.axes for m in t.body.monos):
        return None
    plain = all(isinstance(a, Read) for m in t.body.monos for a in m.atoms if is_data(lifted, a))
    return leaf if plain else None


def _adds_columns(lifted: Lifted, mono: Mono, x: Read) -> bool:
    """Whether a monomial adds up, weighed or not, columns that a contraction makes of the same data: the mean of what
    experts say is what their mean says, and less work."""
    if not mono.axes or not isinstance(x.leaf, Value) or not is_contraction(lifted, x.leaf):
        return False
    inside = lifted.definition[x.leaf].at(list(x.index))
    return all(a.axes_read.isdisjoint(mono.axes) for m in inside.monos for a in m.atoms if is_data(lifted, a))
