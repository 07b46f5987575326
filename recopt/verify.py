"""Proofs on numbers: a rewrite against the float64 evaluator, a model against itself before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from .errors import VerifyError
from .hosts.base import Array, Host, Node, Value
from .ir import sizes
from .ir.evaluate import evaluate
from .ir.rules import FLOATS
from .ir.sizes import Size
from .ir.term import Coord, Fn, Leaf, Poly, Read, walk
from .lift import lift
from .lift.base import Lifted, reads
from .match import Match
from .reference import computed

# torch.testing.assert_close's defaults by dtype: (rtol, atol)
TOLERANCE = {
    "float64": (1e-7, 1e-7), "float32": (1.3e-6, 1e-5), "float16": (1e-3, 1e-5), "bfloat16": (1.6e-2, 1e-5)
}  # fmt: skip
INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
Span: TypeAlias = tuple[int, int | None]  # the first integer, and the first that is too large; None: not known
BATCHES = (3,)  # the values that symbolic sizes take; models are also run at 1


@dataclass(frozen=True)
class Verdict:
    """The largest error over its tolerance (1 is just allowed) and what reproduces it; `random`: the outputs that
    differ from run to run of one model, which nothing can be compared with."""

    error: float
    excess: float
    reproducer: str = ""
    random: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.excess <= 1.0


def compare(
    actual: Any, expected: Any, dtype: str | None, tolerance: float | None = None, allowed: Array | float = 0.0
) -> Verdict:
    """`actual` against `expected`: the largest relative error (to the largest magnitude) and the excess over
    assert_close's defaults, or over `tolerance` (relative and absolute) where it is given. NaN agrees with NaN.
    A list is compared item by item; `dtype` is the expected array's own where it is None. `allowed` is an absolute
    error on top, of each element."""
    if isinstance(expected, list) and isinstance(actual, list) and len(actual) == len(expected):
        items = [compare(a, e, dtype, tolerance) for a, e in zip(actual, expected, strict=True)]
        return max(items, key=lambda item: item.excess, default=Verdict(0.0, 0.0))
    dtype = dtype or str(np.asarray(expected).dtype)
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        return Verdict(float("inf"), float("inf"), f"shape {actual.shape} instead of {expected.shape}")
    if dtype not in FLOATS:
        same = bool(np.array_equal(actual, expected))
        return Verdict(0.0 if same else float("inf"), 0.0 if same else float("inf"))
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    if a.size == 0:
        return Verdict(0.0, 0.0)
    rtol, atol = TOLERANCE[dtype] if tolerance is None else (tolerance, tolerance)
    with np.errstate(all="ignore"):
        difference = np.abs(a - e)
        agree = (a == e) | (np.isnan(a) & np.isnan(e))
        excess = np.where(agree, 0.0, difference / (atol + rtol * np.abs(e) + allowed))
        excess = np.where(np.isnan(excess), np.inf, excess)
        finite = np.abs(e[np.isfinite(e)])
        scale = max(float(finite.max()) if finite.size else 0.0, 1e-30)
        difference = np.where(agree, 0.0, np.where(np.isnan(difference), np.inf, difference))  # NaN on one side alone
        relative = float(difference.max()) / scale
    return Verdict(relative, float(excess.max()))


def rounding(actual: Array, expected: Array, exact: Array) -> Verdict | None:
    """Whether two results differ by rounding alone: `actual` is no farther from what float64 gives than twice as far as
    `expected` is (the larger of two such errors is no steadier than that). None where it is farther."""
    a, e = (np.asarray(x).astype(np.float64) for x in (actual, expected))
    if not a.shape == e.shape == exact.shape:
        return None
    finite = np.isfinite(e)
    if not np.array_equal(a[~finite], e[~finite], equal_nan=True) or not finite.any():
        return None
    ours, theirs = (float(np.max(np.abs(x[finite] - exact[finite]))) for x in (a, e))
    if not ours <= 2 * theirs:
        return None
    return Verdict(ours / max(float(np.max(np.abs(exact[finite]))), 1e-30), ours / (2 * theirs) if theirs else 0.0)


# --- one rewrite


def verify_match(lifted: Lifted, match: Match, seed: int = 0) -> Verdict:
    """The fused operator, with the constants that will be written, against the meaning of the root: both in float64, on
    random inputs. What is left is the rounding of the folded constants to their dtype."""
    worst = Verdict(0.0, 0.0)
    for batch in BATCHES:
        symbols = _Symbols(batch)
        leaf = _Leaves(lifted, symbols, np.random.default_rng(seed), match.inside, match.meaning.body)
        try:
            stated = [v for v in match.inside if v in lifted.definition]  # not all outputs of a native operator are
            for value in sorted(stated, key=lambda v: lifted.order.get(v, 0)):  # a chain would nest too deep
                leaf(value)
            known = match.reference
            expected = evaluate(match.meaning, leaf, symbols) if known is None else known(leaf, symbols)
            actual = computed(match.spec, leaf, symbols)
        except IndexError as outside:
            return Verdict(float("inf"), float("inf"), f"symbols={batch} seed={seed}: {outside}")
        rtol = 4 * TOLERANCE[match.spec.dtype][0]
        scale = max(float(np.max(np.abs(expected[np.isfinite(expected)]), initial=0.0)), 1.0)
        verdict = compare(actual, expected, "float64", tolerance=rtol * scale)
        if not verdict.ok:
            return Verdict(
                verdict.error, verdict.excess, f"symbols={batch} seed={seed} relative error {verdict.error:.1e}"
            )
        worst = max(worst, verdict, key=lambda v: v.excess)
    return worst


class _Symbols(dict[str, int]):
    """Every symbol has the same value."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self.value = value

    def __missing__(self, key: str) -> int:
        return self.value


class _Leaves:
    """The arrays of leaves: constants as they are, what is computed from other leaves computed, and what is `inside` a
    match; the rest random."""

    def __init__(
        self,
        lifted: Lifted,
        symbols: Mapping[str, int],
        rng: np.random.Generator,
        inside: frozenset[Value],
        meaning: Poly,
    ) -> None:
        self.lifted, self.symbols, self.rng, self.inside, self.meaning = lifted, symbols, rng, inside, meaning
        self.arrays: dict[Leaf, Array] = {}

    def __call__(self, leaf: Leaf) -> Array:
        if leaf not in self.arrays:
            assert isinstance(leaf, Value)
            self.arrays[leaf] = self._array(leaf)
        return self.arrays[leaf]

    def _array(self, value: Value) -> Array:
        if self.lifted.host.is_constant(value):
            return self.lifted.host.constant(value)
        if value in self.lifted.vanished:  # these arrays are finite
            return evaluate(self.lifted.vanished[value], self, self.symbols)
        t = self.lifted.term[value]
        if value.dtype not in FLOATS and value in self.lifted.definition:
            computed = self.lifted.definition[value]
            if not any(isinstance(v, Value) and v.dtype in FLOATS for v in computed.body.leaves):
                t = computed  # ids that belong together: what is made of random ones lies outside of every table
        if value in self.inside:
            return evaluate(self.lifted.local(value) or self.lifted.definition[value], self, self.symbols)
        if all(r.leaf is not value for r in reads(t.body)):
            return evaluate(t, self, self.symbols)
        shape = [sizes.evaluate(s, self.symbols) for s in t.shape]
        if value.dtype in FLOATS and value in self.names_rows:
            return self.rng.integers(0, 2, shape).astype(np.float64)
        return self.rng.standard_normal(shape) if value.dtype in FLOATS else self.rng.integers(0, 2, shape)

    @cached_property
    def names_rows(self) -> frozenset[Leaf]:
        """The floats that rows are read at: ids all the same."""
        at = [p for r in reads(self.meaning) for p in r.index]
        return frozenset(leaf for p in at for leaf in p.leaves if isinstance(leaf, Value) and leaf.dtype in FLOATS)


# --- the whole model


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
    symbols = _Symbols(batch)
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
            most = sizes.evaluate(size, _Symbols(batch))
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


def shapes_of(feed: Sequence[Any]) -> str:
    """The shapes of inputs, for an error's line; what is no array goes by its type."""
    return str([tuple(f.shape) if isinstance(f, np.ndarray) else type(f).__name__ for f in feed])


def verify_model(
    before: Host, after: Host, inputs: Sequence[Sequence[Array]], tolerance: float | None = None
) -> Verdict:
    """`after` against `before` on each of `inputs`, on which `before` must run. Where there are none, whether the
    runtime opens `after` as it opens `before`."""
    if not inputs:
        return _opened(before, after)
    worst = Verdict(0.0, 0.0)
    random: dict[str, None] = {}
    for feed in inputs:
        expected = before.run(feed)
        try:
            actual = after.run(feed)
        except VerifyError as why:
            return Verdict(float("inf"), float("inf"), f"the rewritten model does not run: {why}")
        for n, (a, e, value) in enumerate(zip(actual, expected, before.outputs, strict=True)):
            verdict = compare(a, e, value.dtype, tolerance)
            if not verdict.ok and tolerance is None and isinstance(e, np.ndarray) and value.dtype in FLOATS:
                exact = before.run_in_float64(feed)
                verdict = verdict if exact is None else rounding(a, e, exact[n]) or verdict
            # In any bit: a random part may be as small as what is wrong, and agree within the tolerance by chance.
            if not verdict.ok and not _same(before.run(feed)[n], e):
                random[value.name] = None
                continue
            if verdict.excess > worst.excess:
                where = f"output {n} ({value.name}) on inputs {shapes_of(feed)}: relative error {verdict.error:.1e}"
                worst = Verdict(verdict.error, verdict.excess, where)
    return replace(worst, random=tuple(random))


def _opened(before: Host, after: Host) -> Verdict:
    for host, excess in ((before, 0.0), (after, float("inf"))):
        try:
            host.open()
        except VerifyError as why:
            return Verdict(excess, excess, f"it does not open: {why}")
    return Verdict(0.0, 0.0)


def _same(a: Any, b: Any) -> bool:
    """Whether two results are the same, item by item."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


__all__ = ["Verdict", "compare", "feeds", "index_limits", "shapes_of", "verify_match", "verify_model"]
