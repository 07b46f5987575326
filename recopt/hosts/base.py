"""The one interface through which recopt reads and changes a host graph (torch.export or ONNX).

A host is the truth: terms are only an analysis of it. Nodes and values are handles, compared by identity; they stay
valid until the value is erased. Everything that recopt does not understand is left as it is.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt

from ..ir.sizes import Size

Array = npt.NDArray[Any]


@dataclass(eq=False, slots=True)
class Value:
    """One tensor of a host graph. `shape` is None where the host does not know the rank; `dtype` is a numpy-like name
    ("float32", "bfloat16", "int64", "bool") or None for something that is no tensor."""

    name: str
    shape: tuple[Size, ...] | None
    dtype: str | None
    node: Node | None = None
    index: int = 0
    scalar: bool = False  # a Python number of the host graph (a SymInt of torch.export), not a tensor

    def __repr__(self) -> str:
        return f"%{self.name}"


@dataclass(eq=False, slots=True)
class Node:
    """One operator call. `op` is "aten.addmm.default" in the aten dialect, "Gemm" or "com.microsoft::FusedGemm" in the
    onnx dialect. `args`/`kwargs` hold Values, Python numbers, strings, None and nested lists of them; in the onnx
    dialect args are the inputs (None where omitted) and kwargs the attributes (numpy arrays for tensors)."""

    name: str
    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Value, ...] = ()
    inputs: tuple[Value, ...] = field(init=False)  # the Values anywhere in args and kwargs, in order, repeats kept
    opaque: bool = False  # has a sub-graph, side effects or randomness: never lifted, moved, merged or evaluated

    def __post_init__(self) -> None:
        self.inputs = tuple(values_in((self.args, dict(self.kwargs))))

    def __repr__(self) -> str:
        return f"{self.name} = {self.op}"


@dataclass(frozen=True, eq=False)
class Region:
    """A sub-graph of a node: what it is handed, its nodes in order, what it hands back. Its nodes also read values of
    the graph around it."""

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]

    @cached_property
    def own(self) -> frozenset[Node]:
        """Its nodes, to ask whether one is among them."""
        return frozenset(self.nodes)


def values_in(tree: object) -> Iterator[Value]:
    """The Values in nested tuples, lists and dicts, in order."""
    if isinstance(tree, Value):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from values_in(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from values_in(item)


class Host(abc.ABC):
    """A graph that can be read, evaluated and changed.

    Reading: `nodes` in topological order, `inputs` (what the caller feeds, parameters excluded) and `outputs` in the
    caller's order. Changing: `call`, `add_constant`, `replace`, `erase_dead`; only `rewrite.py` and the lowerings do.
    """

    dialect: str  # "aten" or "onnx": which lift table reads it
    opset: int | None = None  # of the default ONNX domain; None elsewhere

    @property
    def device(self) -> str:
        """Where the parameters are: "cpu", "cuda", ...; "" where the graph does not say."""
        return ""

    @property
    @abc.abstractmethod
    def nodes(self) -> Sequence[Node]:
        """All nodes of the main graph, topologically ordered, constants and parameters excluded."""

    @property
    @abc.abstractmethod
    def inputs(self) -> Sequence[Value]: ...

    @property
    @abc.abstractmethod
    def outputs(self) -> Sequence[Value]: ...

    def regions(self, node: Node) -> Mapping[str, Region]:
        """The sub-graphs of a node, by the name of the attribute that holds them, as the graph stands now."""
        return {}

    @abc.abstractmethod
    def users(self, value: Value) -> Sequence[Node]:
        """The nodes that read `value`, each once; uses by sub-graphs of opaque nodes count as uses by that node."""

    @abc.abstractmethod
    def is_output(self, value: Value) -> bool: ...

    @abc.abstractmethod
    def is_constant(self, value: Value) -> bool:
        """Whether `value` is a parameter, buffer, initializer, or computed from such alone by pure nodes."""

    def is_view(self, node: Node) -> bool:
        """Whether the first result of `node` lay in the memory of its first operand when it was captured."""
        return False

    def is_contiguous(self, value: Value) -> bool:
        """Whether `value` lay in memory in the order of its dimensions when it was captured."""
        return True

    @abc.abstractmethod
    def constant(self, value: Value) -> Array:
        """The value of a constant, computed by the host's own operators where it is computed, cached; never copied
        for a stored parameter. Raises GraphError when `value` is not constant."""

    def blocks(self, value: Value) -> Iterator[Array]:
        """The rows of a constant a few at a time, for who reads a table whole: it may be larger than memory."""
        array = self.constant(value)
        for start, stop in row_blocks(array.shape, array.itemsize):
            yield array[start:stop]

    @abc.abstractmethod
    def at(self, node: Node) -> AbstractContextManager[None]:
        """While open, `call` inserts new nodes just before `node`."""

    @abc.abstractmethod
    def call(
        self,
        op: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        name: str,
        shape: tuple[Size, ...] | None = None,
        dtype: str | None = None,
        like: Value | None = None,
    ) -> Value:
        """Append a one-output node at the insertion point and return its value; `name` is a hint made unique.
        Metadata (source location, doc string) is taken over from `like`'s producer. A lowering gives the shape and
        dtype in ONNX; the FX host finds them itself by running the operator's fake kernel on its arguments'
        metadata."""

    def contents(self) -> Mapping[Value, Sequence[Size]]:
        """What the small integer tensors of shape arithmetic hold, where all of it is known."""
        return {}

    @abc.abstractmethod
    def add_constant(self, array: Array, *, name: str) -> Value:
        """A new parameter/initializer holding `array`, as it is (no copy); `name` is a hint made unique."""

    @abc.abstractmethod
    def replace(self, old: Value, new: Value) -> None:
        """Every use of `old`, graph outputs and sub-graphs included, reads `new`. A graph output keeps its name, its
        place, its type and its declared dynamic dimensions. `old`'s producer stays until `erase_dead`."""

    @abc.abstractmethod
    def erase_dead(self) -> int:
        """Remove nodes (and parameters, initializers, ONNX functions) that nothing reads; graph inputs always stay.
        Returns the number of nodes removed."""

    @abc.abstractmethod
    def normalise(self) -> None:
        """The host's own clean-up: inline functions that are not fused operators, common sub-expressions, dead code.
        No constant folding of tensors above a few KB; no decomposition that hides meaning (SDPA stays)."""

    def inline(self, known: Container[str]) -> None:  # noqa: B027  # a host may have no such operators
        """Put what they are made of in the place of operators outside `known` that the framework writes as calls of
        operators in it."""

    @abc.abstractmethod
    def clone(self) -> Self:
        """An independent graph that shares (never copies) the constants' storage."""

    @abc.abstractmethod
    def tap(self, values: Sequence[Value]) -> Self:
        """A clone whose outputs are these values (each once), and that computes nothing else."""

    @abc.abstractmethod
    def check(self) -> None:
        """Raise GraphError, in one line, when the graph is not valid in its host (lint, onnx.checker, shapes)."""

    def open(self) -> None:
        """What the runtime does before it sees inputs, where that cannot end this process. Raises VerifyError, in one
        line, when it refuses the graph."""
        return None

    @abc.abstractmethod
    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """The outputs for the inputs `feeds` (in the order of `inputs`), in the host's own runtime on the CPU.
        Raises VerifyError, in one line, when the runtime refuses the graph."""

    def run_in_float64(self, feeds: Sequence[Array]) -> list[Array] | None:
        """What `run` computes, every float widened; None where this host or graph cannot."""
        return None

    def probe(self, feeds: Sequence[Array]) -> None:
        """`run` for its errors alone, on inputs that nobody has vouched for: a runtime that ends the process on such
        must not end this one. Raises VerifyError."""
        self.run(feeds)

    @abc.abstractmethod
    def save(self, path: Path) -> None:
        """Write the graph to `path`, complete with its external data: whole or not at all, over what is there."""

    def files(self) -> frozenset[Path]:
        """The files other than the model's own that its weights lie in."""
        return frozenset()

    @abc.abstractmethod
    def native(self) -> Any:
        """The graph in its framework's own form: a torch.fx.GraphModule, an onnx_ir.Model."""

    @abc.abstractmethod
    def executable(self) -> Callable[..., Any]:
        """The graph as a function, called like the original model, without needless cost a call."""

    @abc.abstractmethod
    def examples(self, given: Any) -> list[Array] | None:
        """Example inputs as arrays in the order of `inputs`: `given` (positional, or by name) or those that the graph
        was captured with; None where there are none. Raises OptionError where they do not fit the inputs."""

    @abc.abstractmethod
    def count_parameters(self) -> int:
        """Elements of all stored parameters that the graph reads."""

    @abc.abstractmethod
    def count_nodes(self) -> int:
        """Operator calls in the graph, constants and parameters excluded."""


BLOCK = 64 << 20  # bytes of a table that are read at a time


def row_blocks(shape: Sequence[int], itemsize: int) -> Iterator[tuple[int, int]]:
    """(first, end) of the rows of blocks of an array of at least one dimension."""
    most = max(1, BLOCK // max(1, math.prod(shape[1:]) * itemsize))
    return ((start, min(start + most, shape[0])) for start in range(0, shape[0], most))
