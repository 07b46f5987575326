"""Proofs on numbers: a rewrite against the float64 evaluator, a model against itself before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .errors import VerifyError
from .feeds import Symbols
from .hosts.base import Array, Host, Value
from .ir import sizes
from .ir.evaluate import evaluate
from .ir.rules import FLOATS
from .ir.term import Leaf, Poly
from .lift.base import Lifted, reads
from .match import Match
from .reference import computed

# torch.testing.assert_close's defaults by dtype: (rtol, atol)
TOLERANCE = {
    "float64": (1e-7, 1e-7), "float32": (1.3e-6, 1e-5), "float16": (1e-3, 1e-5), "bfloat16": (1.6e-2, 1e-5)
}  # fmt: skip
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
        symbols = Symbols(batch)
        try:
            leaf, expected = _meant(lifted, match, symbols, seed)
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


def _meant(lifted: Lifted, match: Match, symbols: Symbols, seed: int, first: int = 0) -> tuple[_Leaves, Array]:
    """The arrays of leaves, and the meaning of the root on them; integers are drawn from 0, and from 1 where those name
    places outside of a tensor, as lengths less one do. Raises IndexError where both do."""
    leaf = _Leaves(lifted, symbols, np.random.default_rng(seed), match.inside, match.meaning.body, first)
    try:
        stated = [v for v in match.inside if v in lifted.definition]  # not all outputs of a native operator are
        for value in sorted(stated, key=lambda v: lifted.order.get(v, 0)):  # a chain would nest too deep
            leaf(value)
        known = match.reference
        return leaf, evaluate(match.meaning, leaf, symbols) if known is None else known(leaf, symbols)
    except IndexError:
        if first:
            raise
    return _meant(lifted, match, symbols, seed, first=1)


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
        first: int,
    ) -> None:
        self.lifted, self.symbols, self.rng, self.inside, self.meaning = lifted, symbols, rng, inside, meaning
        self.first = first
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
            return self.rng.integers(self.first, self.first + 2, shape).astype(np.float64)
        if value.dtype in FLOATS:
            return self.rng.standard_normal(shape)
        first = self.first if value.dtype != "bool" else 0
        return self.rng.integers(first, first + 2, shape)

    @cached_property
    def names_rows(self) -> frozenset[Leaf]:
        """The floats that rows are read at: ids all the same."""
        at = [p for r in reads(self.meaning) for p in r.index]
        return frozenset(leaf for p in at for leaf in p.leaves if isinstance(leaf, Value) and leaf.dtype in FLOATS)


# --- the whole model


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
