"""What is done to a product: a term over contractions, as an affine pre-activation h and a function of it."""

from __future__ import annotations

from ..ir.normal import add, add_all, mul, normal_mono, read, scale
from ..ir.rules import fn
from ..ir.term import Atom, Fn, Guard, Poly, Read, number, single, walk
from ..lift.base import Lifted
from ..match import is_data
from .epilogue import H


def pre_activations(lifted: Lifted, whole: Poly, beside: bool = False) -> list[tuple[Poly, Poly]]:
    """The affine pre-activations h of a term, each with the term over H, simplest first.

    Every argument of a function that is affine in the contractions is tried, also without its per-channel factor, and
    so is the whole: gelu(s + b) -> (s + b, gelu(H)). Where `beside`, with its factor too, which the pieces beside it
    need not share: relu(-s) -> (s, relu(-H)) and (-s, relu(H)).
    """
    if _is_affine(lifted, whole):
        return [(whole, _h(whole))]
    candidates: dict[Poly, None] = {}
    for t in walk(whole):
        if isinstance(t, Fn):
            for arg in t.args:
                if is_data(lifted, arg) and _is_affine(lifted, arg):
                    if beside:
                        candidates[arg] = None
                    for scaled in _normalised(lifted, arg):
                        candidates[scaled] = None
                elif is_data(lifted, arg):
                    candidates |= dict.fromkeys(_completed(lifted, arg))
    for cofactor in _cofactors(lifted, whole).values():
        if is_data(lifted, cofactor) and _is_affine(lifted, cofactor):
            for scaled in _normalised(lifted, cofactor):
                candidates[scaled] = None
        else:
            candidates |= dict.fromkeys(_completed(lifted, cofactor))
    found = []
    for candidate in list(candidates)[:8]:
        outer = _over(lifted, whole, candidate)
        if outer is not None:
            found.append((len(outer.text), candidate, outer))
    in_one = [(c, o) for _, c, o in sorted(found, key=lambda f: (f[0], f[1].text))]
    return in_one if beside else [*in_one, *_beside(lifted, whole)]


def _beside(lifted: Lifted, whole: Poly) -> list[tuple[Poly, Poly]]:
    """Pieces that lie beside each other, one function of a pre-activation each: [n<16]*f(a) + [16<=n]*f(b) is f of
    [n<16]*a + [16<=n]*b."""
    pieces: dict[tuple[Atom, ...], list[Poly]] = {}
    for m in whole.monos:
        place: tuple[Atom, ...] = tuple(a for a in m.atoms if isinstance(a, Guard))
        rest = normal_mono(m.coef, [a for a in m.atoms if a not in place], whole.dtype)
        pieces.setdefault(place, []).append(rest)
    if len(pieces) < 2 or any(m.axes for m in whole.monos) or not _partition(list(pieces)):
        return []
    joined: list[Poly] = []
    outers: list[dict[Poly, Poly]] = []
    for parts in pieces.values():
        outers.append({o: c for c, o in pre_activations(lifted, add_all(parts, whole.dtype), beside=True)})
    shared = next((o for o in outers[0] if all(o in others for others in outers)), None)
    if shared is None:
        return []
    for place, found in zip(pieces, outers, strict=True):
        joined.append(mul(normal_mono(1, place, whole.dtype), found[shared]))
    return [(add_all(joined, whole.dtype), shared)]


def _partition(places: list[tuple[Atom, ...]]) -> bool:
    """Whether exactly one of several places holds every position of an axis."""
    guards = [p[0] for p in places if len(p) == 1 and isinstance(p[0], Guard)]
    if len(guards) != len(places) or len({g.index for g in guards}) != 1:
        return False
    return add_all([single(g, "int64") for g in guards], "int64").number == 1


def _h(like: Poly) -> Poly:
    return read(H, (), like.dtype)


def _is_affine(lifted: Lifted, term: Poly) -> bool:
    """Whether every monomial is a constant, or one contraction times constants."""
    return all(
        sum(is_data(lifted, a) for a in m.atoms) <= 1
        and all(isinstance(a, Read) for a in m.atoms if is_data(lifted, a))
        for m in term.monos
    )


def _normalised(lifted: Lifted, term: Poly) -> list[Poly]:
    """`term` divided by the factor of its first contraction: by its number, and by its constants too."""
    first = next(m for m in term.monos if any(is_data(lifted, a) for a in m.atoms))
    if not isinstance(first.coef, (int, float)):
        return [term]
    plain = scale(term, 1 / first.coef) if first.coef != 1 else term
    constants = [a for a in first.atoms if not is_data(lifted, a)]
    if not constants or any(isinstance(a, Guard) for a in constants):
        return [plain]
    factor = normal_mono(1, constants, term.dtype)
    return [plain, mul(plain, fn("reciprocal", [factor], term.dtype))]


def _powers(lifted: Lifted, term: Poly) -> tuple[Atom, dict[int, Poly]] | None:
    """A polynomial in one contraction: it, and the constant coefficient of each power."""
    sources = {a for m in term.monos for a in m.atoms if is_data(lifted, a)}
    if len(sources) != 1 or not isinstance(source := sources.pop(), Read):
        return None
    powers: dict[int, list[Poly]] = {}
    for m in term.monos:
        rest = [a for a in m.atoms if a is not source]
        powers.setdefault(len(m.atoms) - len(rest), []).append(normal_mono(m.coef, rest, term.dtype))
    return source, {n: add_all(parts, term.dtype) for n, parts in powers.items()}


def _completed(lifted: Lifted, term: Poly) -> list[Poly]:
    """a*s**n + b*s**(n-1) + ... as a power of h = s + b/(n*a): the shift that a squared bias leaves."""
    found = _powers(lifted, term)
    if found is None:
        return []
    source, powers = found
    degree = max(powers)
    shift = mul(powers.get(degree - 1, number(0, term.dtype)), fn("reciprocal", [powers[degree]], term.dtype))
    return [add(single(source, term.dtype), scale(shift, 1 / degree))]


def _cofactors(lifted: Lifted, term: Poly) -> dict[tuple[Atom, ...], Poly]:
    """A term as a sum of products of functions of the contractions, each with its polynomial cofactor."""
    groups: dict[tuple[Atom, ...], list[Poly]] = {}
    for m in term.monos:
        outer = tuple(a for a in m.atoms if not isinstance(a, Read) and is_data(lifted, a))
        rest = [a for a in m.atoms if a not in outer]
        groups.setdefault(outer, []).append(normal_mono(m.coef, rest, term.dtype))
    return {outer: add_all(parts, term.dtype) for outer, parts in groups.items()}


def _over(lifted: Lifted, term: Poly, h: Poly) -> Poly | None:
    """`term` with H in place of the affine term `h`; None where contractions remain."""
    result = []
    for outer, cofactor in _cofactors(lifted, term).items():
        rebuilt = _cofactor_over(lifted, cofactor, h)
        factors = [_function_over(lifted, a, h) for a in outer]
        if rebuilt is None or any(f is None for f in factors):
            return None
        result.append(mul(rebuilt, *(f for f in factors if f is not None)))
    return add_all(result, term.dtype)


def _function_over(lifted: Lifted, atom: Atom, h: Poly) -> Poly | None:
    if not isinstance(atom, Fn):
        return None
    args = [_over(lifted, a, h) if is_data(lifted, a) else a for a in atom.args]
    return (
        None
        if any(a is None for a in args)
        else fn(atom.name, [a for a in args if a is not None], atom.dtype, atom.attrs)
    )


def _cofactor_over(lifted: Lifted, term: Poly, h: Poly) -> Poly | None:
    """term = c*h + rest, with rest free of contractions, as c*H + rest."""
    if not is_data(lifted, term):
        return term
    if term is h:
        return _h(h)
    if not _is_affine(lifted, term):
        return _power_over(lifted, term, h)
    first = next(m for m in h.monos if any(is_data(lifted, a) for a in m.atoms))
    like = next((m for m in term.monos if m.atoms == first.atoms and m.axes == first.axes), None)
    if like is not None and isinstance(like.coef, (int, float)) and isinstance(first.coef, (int, float)):
        factor = number(like.coef / first.coef, term.dtype)
        rest = add(term, scale(mul(factor, h), -1))
        if not is_data(lifted, rest):
            return add(mul(factor, _h(h)), rest)
    source = next(a for a in first.atoms if is_data(lifted, a))
    mine = add_all(
        [
            normal_mono(m.coef, [a for a in m.atoms if a is not source], term.dtype)
            for m in term.monos
            if source in m.atoms
        ],
        term.dtype,
    )
    theirs = normal_mono(first.coef, [a for a in first.atoms if a is not source], term.dtype)
    if any(isinstance(a, Guard) for a in first.atoms):  # the guards of column pieces are part of what is read
        if len(mine.monos) != 1 or [a for a in mine.monos[0].atoms if isinstance(a, Guard)] != [
            a for a in first.atoms if isinstance(a, Guard)
        ]:
            return None
        mine = normal_mono(mine.monos[0].coef, [a for a in mine.monos[0].atoms if not isinstance(a, Guard)], term.dtype)
        theirs = normal_mono(
            first.coef, [a for a in first.atoms if a is not source and not isinstance(a, Guard)], term.dtype
        )
    factor = (
        mul(mine, fn("reciprocal", [theirs], term.dtype)) if theirs.number is None else scale(mine, 1 / theirs.number)
    )
    rest = add(term, scale(mul(factor, h), -1))
    return None if is_data(lifted, rest) else add(mul(factor, _h(h)), rest)


def _power_over(lifted: Lifted, term: Poly, h: Poly) -> Poly | None:
    """A polynomial in a contraction s, with s = (h - b)/a put in for h = a*s + b."""
    mine, theirs = _powers(lifted, term), _powers(lifted, h)
    if mine is None or theirs is None or mine[0] is not theirs[0] or set(theirs[1]) - {0, 1}:
        return None
    offset, factor = theirs[1].get(0, number(0, h.dtype)), theirs[1][1]
    source = mul(add(_h(h), scale(offset, -1)), fn("reciprocal", [factor], h.dtype))
    return add_all([mul(c, *[source] * n) for n, c in mine[1].items()], term.dtype)
