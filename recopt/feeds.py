"""Inputs on which a model is verified: drawn where nobody gives any, of numbers that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from .errors import VerifyError
from .hosts.base import Array, Host, Node, Value
from .ir import sizes
from .ir.rules import FLOATS
from .ir.sizes import Size
from .ir.term import Coord, Fn, Poly, Read, walk
from .lift import lift
from .lift.base import Lifted, reads

INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
Span: TypeAlias = tuple[int, int | None]  # the first integer, and the first that is too large; None: not known


class Symbols(dict[str, int]):
    """Every symbol has the same value."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self.value = value

    def __missing__(self, key: str) -> int:
        return self.value


def feeds(
    host: Host,
    batch: int,
    examples: Sequence[Array] | None,
    limits: Mapping[Value, int],
    seed: int = 0,
    span: Span = (0, None),
) -> list[Array]:
    """Inputs for a whole model: the examples where their sizes are fixed or given, else random ones: floats from a
    normal distribution, integers of `span` and below their limit. Raises VerifyError for an input of a kind that is
    not drawn."""
    rng = np.random.default_rng(seed)
    result = []
    symbols = Symbols(batch)
    for n, value in enumerate(host.inputs):
        if value.shape is None or value.dtype is None:
            if examples is None:
                raise VerifyError(f"input {value.name} is no tensor of known rank: give example inputs")
            result.append(examples[n])
            continue
        shape = [sizes.evaluate(s, symbols) for s in value.shape]
        if examples is not None and list(examples[n].shape) == shape:
            result.append(examples[n])
        elif examples is not None and examples[n].size and _stretchable(value.shape, examples[n]):
            result.append(_stretch(examples[n], shape))
        elif value.dtype in FLOATS:
            array = rng.standard_normal(shape).astype(_numpy(value.dtype))
            result.append(np.asarray(array))
        elif value.dtype == "bool":
            result.append(rng.integers(0, 2, shape).astype(bool))
        elif value.dtype == "string":
            result.append(rng.choice(np.array(["a", "b"], dtype=object), shape))
        elif value.dtype not in INTEGERS:
            raise VerifyError(f"input {value.name} is of {value.dtype}: give example inputs")
        else:
            limit = span[1] or limits.get(value, 2)
            result.append(rng.integers(min(span[0], limit - 1), limit, shape).astype(value.dtype))
    return result


def _numpy(dtype: str) -> np.dtype[np.generic]:
    if dtype != "bfloat16":
        return np.dtype(dtype)
    import ml_dtypes

    bfloat16: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


def _stretchable(shape: Sequence[Size], example: Array) -> bool:
    return len(shape) == example.ndim and all(
        not isinstance(s, int) or s == e for s, e in zip(shape, example.shape, strict=True)
    )


def _stretch(example: Array, shape: Sequence[int]) -> Array:
    """The example's rows, repeated or cut to another batch."""
    for n, extent in enumerate(shape):
        if example.shape[n] != extent:
            example = np.take(example, np.arange(extent) % example.shape[n], axis=n)
    return example


def index_limits(host: Host) -> dict[Value, int]:
    """For integer inputs: below which number every index that they become stays in range, as far as terms show."""
    lifted = lift(host, _on_integers(host))
    limits: dict[Value, int] = {}
    definitions = {id(t): t for t in [*lifted.definition.values(), *lifted.term.values()]}
    for t in definitions.values():
        for outer in reads(t.body):
            if not isinstance(outer.leaf, Value) or outer.leaf not in lifted.term:
                continue
            for index, extent in zip(outer.index, lifted.term[outer.leaf].shape, strict=False):
                sources = _plain_sources(lifted, index) if isinstance(extent, int) else []
                limit = max(extent - _offset(lifted, index), 1) if sources and isinstance(extent, int) else 0
                for source in sources:
                    limits[source] = min(limits.get(source, limit), limit)
    return limits


def bounds_of_bags(host: Host) -> dict[Value, tuple[Size, bool]]:
    """The inputs that say where bags begin in flat ids: how many ids there are, and whether the last bag's end stands
    there too. Places are compared with them."""
    candidates = [v for v in host.inputs if v.dtype in INTEGERS and v.shape is not None and len(v.shape) == 1]
    if len(host.inputs) < 2 or not candidates:
        return {}
    found: dict[Value, tuple[Size, bool]] = {}
    lifted = lift(host, _on_integers(host))
    for t in lifted.definition.values():
        for item in walk(t.body):
            if not isinstance(item, Fn) or item.name != "le":
                continue
            start, place = (p.atom for p in item.args)
            if isinstance(start, Read) and isinstance(place, Coord) and start.leaf in candidates:
                bags = start.index[0].atom
                last = isinstance(bags, Coord) and sizes.size(bags.axis.size + 1) == lifted.term[start.leaf].shape[0]
                found[start.leaf] = place.axis.size, last
    return found


def in_order(
    feed: Sequence[Array], host: Host, bounds: Mapping[Value, tuple[Size, bool]], batch: int
) -> list[Array] | None:
    """`feed` with bounds of bags that go up, from 0, not past the ids, and to their end where the last says it: what
    other bounds mean nobody says, and torch's maximum writes past its result. None where ids are in no bag at all."""
    result = list(feed)
    for n, value in enumerate(host.inputs):
        if value in bounds and result[n].size:
            size, last = bounds[value]
            most = sizes.evaluate(size, Symbols(batch))
            result[n] = np.sort(np.clip(result[n], 0, most))
            if last:
                result[n][-1] = most
            if last and result[n].size == 1 and most:
                return None
            result[n][0] = 0
    return result


def _on_integers(host: Host) -> set[Node]:
    """The nodes that make integers, and those that read what becomes of integer inputs until it is a float."""
    integers = {v for v in host.inputs if v.dtype not in FLOATS}
    found: set[Node] = set()
    for node in host.nodes:
        if not integers.isdisjoint(node.inputs) or any(v.dtype not in FLOATS for v in node.outputs):
            found.add(node)
            integers.update(v for v in node.outputs if v.dtype not in FLOATS)
    return found


def _offset(lifted: Lifted, index: Poly) -> int:
    """The largest constant that an index adds to what it reads: tables that are stacked have their rows' offsets."""
    total = 0
    for mono in index.monos:
        coef, atom = mono.coef, mono.atoms[0] if len(mono.atoms) == 1 else None
        if not mono.atoms and isinstance(coef, int):
            total += coef
        elif isinstance(atom, Fn) and atom.name == "where":  # ONNX counts negative indices from the end
            total += _offset(lifted, atom.args[-1])
        elif isinstance(atom, Read) and isinstance(atom.leaf, Value) and isinstance(coef, int):
            definition = lifted.definition.get(atom.leaf)
            if lifted.host.is_constant(atom.leaf):
                total += coef * int(lifted.host.constant(atom.leaf).max(initial=0))
            elif definition is not None and coef == 1:
                total += _offset(lifted, definition.body)
    return max(total, 0)


def _plain_sources(lifted: Lifted, index: Poly) -> list[Value]:
    """The integer inputs that an index reads other than through a modulo."""
    found: list[Value] = []
    for item in walk(index):
        if isinstance(item, Fn) and item.name == "mod":
            return []
        if isinstance(item, Read) and isinstance(item.leaf, Value):
            t = lifted.definition.get(item.leaf)
            if item.leaf in lifted.host.inputs:
                found.append(item.leaf)
            elif t is not None and not any(isinstance(a, Fn) and a.name == "mod" for a in walk(t.body)):
                found += [r.leaf for r in reads(t.body) if isinstance(r.leaf, Value) and r.leaf in lifted.host.inputs]
    return found
