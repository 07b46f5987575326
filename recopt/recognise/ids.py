"""What the ids of a lookup are made of: other ids under a modulus and a shift, or as a function of one of them."""

from __future__ import annotations

from collections.abc import Sequence

from ..hosts.base import Value
from ..ir.normal import add as add_terms
from ..ir.normal import scale, substitute
from ..ir.rules import FLOATS
from ..ir.sizes import Size
from ..ir.tensor import Tensor
from ..ir.term import Atom, Axis, Fn, Poly, Read, monomial, number, single
from ..lift.base import Lifted
from ..match import No, constant_leaf, fold, is_data
from .id_programs import WHOLE, program, source


def unwrapped(index: Poly, rows: Size) -> tuple[Poly, bool]:
    """The ids that an index is made of, and whether negative ones count from the end."""
    atom = index.atom
    if not isinstance(atom, Fn) or atom.name != "where":
        return index, False
    condition, wrapped, ids = atom.args
    negative = condition.atom
    if not isinstance(negative, Fn) or negative.name != "lt" or negative.args[0] is not ids:
        return index, False
    whole = add_terms(wrapped, scale(ids, -1)).number == rows and negative.args[1].number == 0
    return (ids, True) if whole else (index, False)


def hashes(lifted: Lifted, value: Value) -> bool:
    """Whether ids are other ids modulo a number, shifted or both: the operator does that itself."""
    t = lifted.definition.get(value)
    if t is None or t.dtype in FLOATS or lifted.term[value].body is t.body:
        return False
    return hashed(lifted, t.body)[1] > 0


def defined(lifted: Lifted, term: Poly) -> Poly:
    """What computes the float value that a term reads; the term itself where it is more than such a read."""
    atom = term.atom
    if not isinstance(atom, Read) or not isinstance(atom.leaf, Value) or constant_leaf(lifted, atom.leaf):
        return term
    t = lifted.definition.get(atom.leaf)
    return term if t is None or lifted.term[atom.leaf].body is t.body else t.at(list(atom.index))


def divided_as_float(lifted: Lifted, value: Value) -> str | None:
    """The float type in which ids are divided and floored, as torch's exporter writes it of whole numbers."""
    t = lifted.definition.get(value)
    cast = t.body.atom if t is not None and t.dtype in ("int32", "int64") else None
    floored = defined(lifted, cast.args[0]).atom if isinstance(cast, Fn) and cast.name == "cast" else None
    if not isinstance(floored, Fn) or floored.name != "floor":
        return None
    monos = defined(lifted, floored.args[0]).monos
    if len(monos) != 1 or len(monos[0].atoms) != 1 or monos[0].coef == 1:
        return None
    ids = defined(lifted, single(monos[0].atoms[0], floored.dtype)).atom
    whole = isinstance(ids, Fn) and ids.name == "cast" and ids.args[0].dtype in ("int32", "int64")
    return floored.dtype if whole else None


def computes(lifted: Lifted) -> bool:
    """Whether the operator computes ids: not in files of before opset 12, which has the operators of whole numbers."""
    return lifted.host.opset is None or lifted.host.opset >= 12


def of_one_id(lifted: Lifted, value: Value) -> bool:
    """Whether ids, or a condition, are a function of one other id that the operator computes itself."""
    return computes(lifted) and _of_one_id(lifted, value) is not None


def _of_one_id(lifted: Lifted, value: Value) -> Tensor | None:
    """What a value is of the id that it is a function of; None where it is of several, of none, or no function."""
    key = ("of one id", value)
    if key not in lifted.notes:
        lifted.notes[key] = None
        t = lifted.definition.get(value)

        def inner(atom: Atom) -> Poly | None:
            if not isinstance(atom, Read) or not isinstance(atom.leaf, Value) or constant_leaf(lifted, atom.leaf):
                return None
            below = _of_one_id(lifted, atom.leaf)
            return None if below is None else below.at(list(atom.index))

        if t is not None and t.dtype in WHOLE:
            body = substitute(t.body, {}, inner)
            of = source(body, lambda a: not constant_leaf(lifted, a.leaf))
            if of is not None and of.leaf is not value and program(body, of) is not None:
                lifted.notes[key] = t.with_body(body)
    found = lifted.notes[key]
    return found if isinstance(found, Tensor) else None


def hashed(lifted: Lifted, index: Poly) -> tuple[Poly, int, Poly]:
    """The ids, the modulus and the shift that an index is made of: ids % modulus + shift."""
    shift = [monomial(m, index.dtype) for m in index.monos if not is_data(lifted, m)]
    moved = add_terms(*shift) if shift else number(0, index.dtype)
    bare = add_terms(index, scale(moved, -1))
    factor = bare.monos[0].coef if len(bare.monos) == 1 else 1  # 3 * (x % 10) is (3 * x) % 30
    atom = add_terms(*(monomial(m, bare.dtype, 1) for m in bare.monos)).atom if bare.monos else None
    if isinstance(atom, Fn) and atom.name == "mod" and isinstance(factor, int) and factor > 0:
        modulus = atom.args[1].number
        if isinstance(modulus, int) and modulus > 0:
            return scale(atom.args[0], factor), factor * modulus, moved
    return bare, 0, moved


def shifts(lifted: Lifted, moved: Poly, inner: Sequence[Axis]) -> int | tuple[int, ...]:
    """A shift of ids as a number, or as one for each place along `inner`. Raises No where it varies elsewhere."""
    if isinstance(moved.number, int):
        return moved.number
    if not moved.axes_read <= {*inner} or not inner:
        raise No("ids that are moved by more than their column says: {}", moved.text)
    each = fold(lifted, Tensor(tuple((a,) for a in inner), moved)).reshape(-1)
    return tuple(int(n) for n in each)
