"""Step functions: values that count how many of some boundaries an element of data exceeds, however they do it.

before:  sum(x[:, None] > boundaries), a binary search of gathers and comparisons as exporters unroll it, ...
after:   a Bucket

Where data enters in comparisons with constants alone, what is computed cannot change between two neighbouring
constants: its values at each constant, between each two, at the infinities and at NaN are all that there is to know.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ..hosts.base import Array, Host, Node, Value
from ..ir.evaluate import evaluate
from ..ir.normal import read, substitute
from ..ir.rules import FLOATS
from ..ir.tensor import Tensor
from ..ir.term import Atom, Fn, Guard, Leaf, Poly, Read, Reduce, TooLarge, axis, coord, number, walk
from ..lift.base import Lifted

COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
MOST = 1024  # boundaries
MAX_DEPTH = 400  # operators one after the other
# Characters of a term that is followed, each step of which may repeat the one before it several times: with sums, and
# without, as torch's exporter writes a search among 63 boundaries.
MAX_SUMS, MAX_TEXT = 100_000, 100_000_000


class NoStep(Exception):
    """A value that is no step function of one element of data."""


@dataclass(frozen=True, eq=False)
class Bucket:
    """How many of the sorted `edges` lie below x, or at it where `right`; all of them for NaN where `nan_above`, else
    none. `x` has the shape of the value and says what each of its elements reads of `source`."""

    x: Tensor
    source: Value
    edges: Array
    right: bool
    nan_above: bool


def buckets(lifted: Lifted, moved: Collection[Value] = ()) -> dict[Value, Bucket]:
    """The step functions of a graph whose results are integers that hold any count, the last of each chain; those apart
    that only re-read others (`moved`)."""
    seen = _Whole(lifted)
    values = [v for node in lifted.host.nodes for v in node.outputs if seen.follow(v)]
    found: dict[Value, Bucket] = {}
    inside: set[Node] = set()
    for value in reversed(values):
        if value in moved or value.node in inside or value.dtype not in ("int32", "int64"):
            continue
        try:
            found[value] = _bucket(lifted, value, seen)
        except (NoStep, TooLarge, IndexError):
            continue
        inside.update(cone(lifted.host, value, {found[value].source}))
    return found


def cone(host: Host, value: Value, kept: Collection[Value]) -> list[Node]:
    """What nothing needs once `value` is made of `kept`: the nodes that compute it, constants apart."""
    dead: dict[Node, None] = {}
    pending = [value.node]
    while pending:
        node = pending.pop()
        if node is None or node in dead or node.opaque or any(v in kept for v in node.outputs):
            continue
        others = [v for v in node.outputs if v is not value]
        if any(host.is_output(v) or not all(u in dead for u in host.users(v)) for v in others):
            continue
        dead[node] = None
        pending += [v.node for v in node.inputs]
    return [n for n in dead if not all(host.is_constant(v) for v in n.outputs)]


class _Whole:
    """Terms of values that comparisons of data with constants begin, over that data and constants alone. Data are the
    operands of the comparisons as they are: what computes them is rounded, and terms are not."""

    def __init__(self, lifted: Lifted) -> None:
        self.lifted = lifted
        self.term: dict[Value, Tensor] = {}
        self.depth: dict[Value, int] = {}

    def follow(self, value: Value) -> bool:
        """Whether `value` is such a one; the values before it have been asked."""
        host, node = self.lifted.host, value.node
        if node is None or node.opaque or host.is_constant(value):
            return False
        before = [v for v in node.inputs if v in self.term]
        begins = value.dtype == "bool" and any(v.dtype in FLOATS for v in node.inputs)
        depth = 1 + max((self.depth[v] for v in before), default=0)
        t = self.lifted.local(value) if (before or begins) and depth <= MAX_DEPTH else None
        if t is None:
            return False
        t = t.canonical()
        flat = not any(m.axes for m in t.body.monos)

        def expand(atom: Atom) -> Poly | None:
            inner = self.known(atom.leaf) if isinstance(atom, Read) and isinstance(atom.leaf, Value) else None
            if inner is None:
                return None
            assert isinstance(atom, Read)
            own = tuple(coord(d[0]) if d else number(0) for d in inner.dims)
            same = flat and own == atom.index and all(len(d) <= 1 for d in inner.dims)
            return inner.body if same else inner.at(list(atom.index))

        try:
            body = substitute(t.body, {}, expand)
        except TooLarge:
            return False
        if len(body.text) > (MAX_SUMS if "sum[" in body.text else MAX_TEXT) or len(self.varying(body)) != 1:
            return False
        self.term[value], self.depth[value] = Tensor(t.dims, body), depth
        return True

    def known(self, value: Value) -> Tensor | None:
        """The term of such a one, or of what constants and sizes alone decide."""
        if value in self.term:
            return self.term[value]
        seen = None if self.lifted.host.is_constant(value) else self.lifted.of(value)
        return None if seen is None or self.varying(seen.body) else seen

    def varying(self, body: Poly) -> list[Value]:
        """What a term reads that is no constant."""
        return [v for v in body.leaves if isinstance(v, Value) and not self.lifted.host.is_constant(v)]

    def data(self, body: Poly) -> Read:
        """The one element of data that a term reads. Raises NoStep where there are several."""
        leaves = set(self.varying(body))
        found = {r for r in walk(body) if isinstance(r, Read) and r.leaf in leaves}
        if len(found) != 1:
            raise NoStep
        (r,) = found
        if r.dtype not in ("float16", "float32", "float64"):  # numpy's
            raise NoStep
        return r


def _bucket(lifted: Lifted, value: Value, seen: _Whole) -> Bucket:
    """Raises NoStep."""
    t = seen.term[value]
    x = seen.data(t.body)
    assert isinstance(x.leaf, Value)
    if not set().union(*(p.axes_read for p in x.index)) <= {a for d in t.dims for a in d}:
        raise NoStep  # it counts several elements
    constants = _thresholds(lifted, t.body, x)
    if not 0 < constants.size <= MOST:
        raise NoStep
    points = _points(constants, x.dtype)
    marker, feed = axis(len(points)), Value("x", (len(points),), x.dtype)
    body = substitute(t.body, {}, lambda a: read(feed, (coord(marker),), x.dtype) if a is x else None)
    if not body.axes_read <= {marker}:
        raise NoStep  # what it counts depends on where the element lies

    def array(leaf: Leaf) -> Array:
        return points if leaf is feed else lifted.host.constant(leaf)  # type: ignore[arg-type]  # leaves are values

    found = evaluate(Tensor(((marker,),), body), array)
    edges, right = _edges(constants, found[:-1])
    if found[-1] not in (0, len(edges)):
        raise NoStep
    return Bucket(Tensor(t.dims, read(x.leaf, x.index, x.dtype)), x.leaf, edges, right, bool(found[-1] == len(edges)))


def _thresholds(lifted: Lifted, body: Poly, x: Read) -> Array:
    """All that x is compared with, sorted. Raises NoStep where x is read in any other way."""
    numbers: list[Array] = []
    whole = [body]  # what must not hold x
    for item in walk(body):
        if isinstance(item, Fn) and item.name in COMPARISONS and any(a.atom is x for a in item.args):
            others = [a for a in item.args if a.atom is not x]
            if len(others) != 1:
                raise NoStep
            numbers.append(_constants(lifted, others[0]))
        elif isinstance(item, Fn):
            whole += item.args
        elif isinstance(item, Read):
            whole += item.index
        elif isinstance(item, Guard):
            whole.append(item.index)
        elif isinstance(item, Reduce):
            whole.append(item.body)
    if any(x in m.atoms for part in whole for m in part.monos):
        raise NoStep
    found = np.unique(np.concatenate([np.zeros(0), *numbers]))
    if np.isnan(found).any():
        raise NoStep
    return found


def _constants(lifted: Lifted, side: Poly) -> Array:
    """All values that a number, or an element of a constant, may have. Raises NoStep for anything else."""
    if isinstance(side.number, (int, float)):
        return np.array([side.number], np.float64)
    leaf = side.atom.leaf if isinstance(side.atom, Read) else None
    if not isinstance(leaf, Value) or not lifted.host.is_constant(leaf):
        raise NoStep
    array = lifted.host.constant(leaf)
    if array.size > MOST:
        raise NoStep
    return array.reshape(-1).astype(np.float64)


def _points(constants: Array, dtype: str) -> Array:
    """Below all, at each and above each constant, in float64, which lies closer than `dtype`'s numbers; NaN last."""
    between = (constants[:-1] + constants[1:]) / 2
    above = [*between.tolist(), np.inf if constants[-1] < np.inf else np.nan]
    points = [-np.inf if constants[0] > -np.inf else np.nan]
    for at, next_ in zip(constants.tolist(), above, strict=True):
        points += [at, next_]
    found = np.array([*points, np.nan])
    if np.isnan(found[:-1]).any() or not (np.diff(found[:-1]) > 0).all():
        raise NoStep
    return found


def _edges(constants: Array, steps: Array) -> tuple[Array, bool]:
    """The boundaries, one as often as it counts, and whether what lies at one is above it. Raises NoStep."""
    steps = steps.astype(np.int64)
    below, at, above = steps[:-1:2], steps[1::2], steps[2::2]
    times = above - below
    if steps[0] != 0 or (times < 0).any() or not 0 < times.sum() <= MOST:
        raise NoStep
    right = bool((at == above).all())
    if not right and not (at == below).all():
        raise NoStep
    return np.repeat(constants, times), right


__all__ = ["Bucket", "buckets"]
