"""How large a value can be, whatever the inputs: where it is bounded it is neither infinite nor NaN, and 0 times it is
0. Tables of numbers, casts of integers and products of what is bounded are; a float that the caller passes is not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..hosts.base import Node, Value
from ..ir.rules import FLOATS
from ..ir.tensor import Tensor
from ..ir.term import Atom, Fn, Guard, Leaf, Mono, Poly, Read, Reduce, single
from ..lift.base import Lifted
from ..match import No, constant_leaf, fold, is_data

ANY_SIZE = 2.0**40  # elements along an axis, where nobody knows how many
# What a dtype holds, far enough below its largest number that no order of rounded steps passes it.
_MOST = {"float16": 2.0**15, "bfloat16": 2.0**126, "float32": 2.0**126, "float64": 2.0**1022}

# In a layout of `recopt::embedding_bags`: anything done to rows but adding them up. A mean is over one at least.
_TO_ROWS = (" div ", " by ", " else ", " least ", " * w", "q8 ", "q4")

# Bounds of |f| from those of its arguments, all finite.
_FUNCTIONS: dict[str, Callable[..., float]] = {
    **dict.fromkeys("sigmoid tanh erf sin cos sign softsign hardsigmoid".split(), lambda x: 1.0),
    **dict.fromkeys("abs relu gelu gelu_tanh silu mish hardswish trunc cast".split(), lambda x: x),
    **dict.fromkeys("floor ceil round".split(), lambda x: x + 1),
    **dict.fromkeys("max min".split(), max),
    **dict.fromkeys("leaky_relu elu".split(), lambda x, a=1.0: x * max(1.0, a)),
    "where": lambda condition, a, b: max(a, b),
    "exp": lambda x: math.exp(x) if x < 700 else math.inf,
}


def is_finite(lifted: Lifted, value: Value) -> bool:
    """Whether no element of a value can be infinite or NaN."""
    return _read(lifted, value) < math.inf


def _read(lifted: Lifted, leaf: Leaf) -> float:
    """The largest magnitude of what a leaf holds; infinity where that is not known."""
    if not isinstance(leaf, Value) or leaf in lifted.fed:
        return math.inf
    if lifted.host.is_constant(leaf):
        key = ("largest", leaf)
        if key not in lifted.notes:
            lifted.notes[key] = _largest(lifted.host.constant(leaf))
        found = lifted.notes[key]
        assert isinstance(found, float)
        return found
    return lifted.noted("bound", leaf, lambda v: _bound(lifted, v))


def _largest(array: np.ndarray) -> float:
    """The largest magnitude in an array; infinity where it holds NaN."""
    if not array.size:
        return 0.0
    ends = float(array.max()), float(array.min())  # a table may be larger than memory: no copy of it
    return math.inf if any(math.isnan(e) for e in ends) else max(map(abs, ends))


def _bound(lifted: Lifted, value: Value) -> float:
    if value.dtype is not None and value.dtype not in FLOATS:
        return _of_integers(value.dtype)
    if value.node is not None and value.node.op == "recopt.embedding_bags.default":  # an earlier pass wrote it
        return _bags(lifted, value.node)
    t = lifted.definition.get(value)
    if t is None or lifted.host.is_constant(value) or value in t.body.leaves:
        return math.inf
    return _poly(lifted, t.body)


def _bags(lifted: Lifted, node: Node) -> float:
    """The bound of rows of tables, and of their sums and means."""
    text = str(node.args[-1]).replace(" div 1.0 0.0", "")
    if any(word in text for word in _TO_ROWS):
        return math.inf
    rows = max((_read(lifted, v) for v in node.inputs if v.dtype in FLOATS), default=math.inf)
    most = rows * ANY_SIZE**2  # so many rows a bag, and bags that are added
    return most if most <= _MOST.get(node.outputs[0].dtype or "", 0.0) else math.inf


def _of_integers(dtype: str) -> float:
    return 1.0 if dtype == "bool" else 2.0 ** int("".join(c for c in dtype if c.isdigit()))


def _poly(lifted: Lifted, term: Poly) -> float:
    if term.dtype not in FLOATS:
        return _of_integers(term.dtype)
    if any(_read(lifted, v) == math.inf for v in term.leaves if not constant_leaf(lifted, v)):
        return math.inf  # before any table is looked through
    total = sum(_mono(lifted, m) for m in term.monos)
    return total if total <= _MOST[term.dtype] else math.inf


def _mono(lifted: Lifted, mono: Mono) -> float:
    if not isinstance(mono.coef, (int, float)):
        return math.inf
    counts = [float(a.size) if isinstance(a.size, int) else ANY_SIZE for a in mono.axes]
    factors = [abs(mono.coef), *counts, *(_atom(lifted, a) for a in mono.atoms)]
    return math.inf if math.inf in factors else math.prod(factors)


def _atom(lifted: Lifted, atom: Atom) -> float:
    if isinstance(atom, Guard):
        return 1.0
    if atom.dtype not in FLOATS:
        return _of_integers(atom.dtype)
    if isinstance(atom, Read):
        return _read(lifted, atom.leaf)
    if isinstance(atom, Reduce):
        some = all(isinstance(a.size, int) and a.size > 0 for a in atom.axes)  # the maximum of nothing is infinite
        return _poly(lifted, atom.body) if atom.op in ("max", "min") and some else math.inf
    if not isinstance(atom, Fn):
        return math.inf
    if not is_data(lifted, atom):
        return _constant(lifted, atom)
    attributes = [abs(a) if isinstance(a, float) else math.inf for a in atom.attrs]
    arguments = [*(_poly(lifted, a) for a in atom.args), *attributes]
    if atom.name not in _FUNCTIONS or math.inf in arguments:
        return math.inf
    return _FUNCTIONS[atom.name](*arguments)


def _constant(lifted: Lifted, atom: Fn) -> float:
    """The largest magnitude of a function of constants, such as the reciprocal root of a variance."""
    axes = sorted(atom.axes_read, key=lambda a: a.id)
    try:
        return _largest(fold(lifted, Tensor(tuple((a,) for a in axes), single(atom, atom.dtype))))
    except No:
        return math.inf
