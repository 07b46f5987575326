"""What patterns share: the match they return, the refusal they raise, folded constants, what a match makes dead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from .fused import Spec, Step
from .hosts.base import Array, Host, Node, Value
from .ir.evaluate import evaluate
from .ir.show import show
from .ir.tensor import Tensor
from .ir.term import Interned, Leaf, TooLarge
from .lift.base import Lifted

MAX_FOLDED = 64 << 20  # elements of a constant that a pattern may compute
LONGEST = 300  # characters of a term in a refusal: of a whole model's none reads on


Reference: TypeAlias = Callable[[Callable[[Leaf], Array], Mapping[str, int]], Array]  # of leaves and symbolic sizes


class No(Exception):
    """A refusal: the place looks like the pattern and is not, for the reason given. Formatted only when read."""

    def __init__(self, reason: str, *args: object) -> None:
        super().__init__(reason, *args)

    def __str__(self) -> str:
        return str(self.args[0]).format(*map(_brief, self.args[1:]))


def _brief(arg: object) -> object:
    return f"{arg[:LONGEST]} .." if isinstance(arg, str) and len(arg) > LONGEST else arg


class Attempts:
    """Ways to match that are tried one after the other, each `with attempts:`, which takes its refusal. What is too
    large to follow is no attempt."""

    def __init__(self) -> None:
        self.refused: No | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, No):
            self.refused = self.refused or error
        return isinstance(error, (No, TooLarge))

    def none(self) -> None:
        """That none matched: raises the first refusal, if there was any."""
        if self.refused is not None:
            raise self.refused


@dataclass(frozen=True)
class Match:
    """A place that a pattern recognised: `root` can be computed by the fused operator `spec`."""

    pattern: str
    root: Value
    spec: Spec
    means: Callable[[], Tensor]  # computes `meaning`
    dead: tuple[Node, ...]  # host nodes that nothing needs once root is replaced
    products: frozenset[Value]  # the contractions inside
    flops: float = 0.0
    inside: frozenset[Value] = frozenset()  # leaves of the meaning that the operator computes by itself
    serves: tuple[tuple[Value, tuple[Step, ...]], ...] = ()  # what is made of the operator, where it is not just root
    reference: Reference | None = None  # what the nodes compute, where no term has it
    at: Node | None = None  # before which the operator has to stand, where that is not root's
    again: frozenset[Value] = frozenset()  # what is computed inside, and by the graph for others too

    @cached_property
    def meaning(self) -> Tensor:
        """The root over the leaves that the spec reads."""
        return self.means()

    @property
    def detail(self) -> str:
        """The meaning as text."""
        return show(self.meaning)


def understood(lifted: Lifted) -> Iterator[Value]:
    """The values of a graph that its nodes make, but for nodes without a meaning, in order."""
    return (value for node in lifted.host.nodes if node not in lifted.opaque for value in node.outputs)


def is_data(lifted: Lifted, term: Interned) -> bool:
    """Whether a term reads anything that is not a constant of the model."""
    leaves = term.leaves
    known = lifted.constants.get(leaves)
    if known is None:  # asked a hundred times a node, of terms over few sets of leaves
        known = lifted.constants[leaves] = all(constant_leaf(lifted, leaf) for leaf in leaves)
    return not known


def constant_leaf(lifted: Lifted, leaf: Leaf) -> bool:
    """Whether a leaf is a constant of the model, or a weight that the caller feeds."""
    known = lifted.constants.get(leaf)
    if known is None:
        known = isinstance(leaf, Value) and (lifted.host.is_constant(leaf) or leaf in lifted.fed)
        lifted.constants[leaf] = known
    return known


def reads_fed(lifted: Lifted, term: Interned) -> bool:
    """Whether a term reads a weight that the caller feeds: it cannot be folded."""
    return not term.leaves.isdisjoint(lifted.fed)


class _KnownAtRunTime(dict[str, int]):
    """Symbolic sizes, none of which a constant may depend on."""

    def __missing__(self, key: str) -> int:
        raise No("a constant depends on the size {}", key)


def fold(lifted: Lifted, t: Tensor) -> Array:
    """The float64 array of a term of constants.
    Raises No where it has a symbolic size, would be huge, or reads a weight that is fed at run time."""
    if reads_fed(lifted, t.body):
        raise No("a weight that is fed at run time would have to be folded")
    if not all(isinstance(s, int) for s in t.shape):
        raise No("a constant of symbolic shape {}", t.shape)
    if int(np.prod(t.shape, dtype=np.float64)) > MAX_FOLDED:
        raise No("a constant of {} elements is not folded", np.prod(t.shape))

    def array(leaf: Leaf) -> Array:
        assert isinstance(leaf, Value)
        return lifted.host.constant(leaf)

    try:
        return evaluate(t, array, _KnownAtRunTime())
    except IndexError as outside:  # a guard that stands elsewhere in the match hid these elements
        raise No("a constant is read where only a guard allows it: {}", outside) from outside


def dead_after(lifted: Lifted, root: Value, kept: Sequence[Value], also: Sequence[Value] = ()) -> tuple[Node, ...]:
    """The nodes that nothing needs once every use of `root`, and of the values in `also`, reads something else, `kept`
    values apart; root's last."""
    return needless(lifted.host, root, kept, lifted.opaque, also)


def needless(
    host: Host,
    root: Value,
    kept: Iterable[Value],
    opaque: Collection[Node] | None = None,
    also: Sequence[Value] = (),
    gone: Set[Node] = frozenset(),
) -> tuple[Node, ...]:
    """`dead_after` of a graph as it is; `opaque` are the nodes that must stay (default: all that the host says), `gone`
    those that nothing needs already."""
    if root.node is None:
        return ()
    dead: dict[Node, None] = {}
    replaced = {root, *also}
    pending = [v.node for v in (*also, root) if v.node is not None]
    needed = set(kept)
    while pending:
        node = pending.pop()
        if node in dead or node in gone or (node.opaque and (opaque is None or node in opaque)):
            continue
        for v in node.outputs:
            if v in replaced:
                continue
            if v in needed or host.is_output(v) or any(u not in dead and u not in gone for u in host.users(v)):
                break
        else:
            dead[node] = None
            pending += [v.node for v in node.inputs if v.node is not None]
    return tuple(reversed(dead))
