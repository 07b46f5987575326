"""Fused operators as data: what a pattern asks for and a lowering writes. No host and no framework is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeAlias, TypeVar, cast

from .hosts.base import Array, Value
from .ir.sizes import Size

T = TypeVar("T")


@dataclass(frozen=True)
class Permute:
    """Reorder dimensions: output dimension i is input dimension `perm[i]`."""

    perm: tuple[int, ...]


@dataclass(frozen=True)
class Reshape:
    """Regroup elements in row-major order to `shape` (every size given, symbolic ones too)."""

    shape: tuple[Size, ...]


@dataclass(frozen=True)
class Slice:
    """Elements start, start+step, ... below stop of dimension `dim`."""

    dim: int
    start: int
    stop: Size
    step: int = 1


@dataclass(frozen=True)
class Flip:
    """Dimension `dim` the other way round."""

    dim: int


@dataclass(frozen=True)
class Take:
    """Elements of dimension `dim` at `places`, each of which may come several times."""

    dim: int
    places: tuple[int, ...]


Step: TypeAlias = Permute | Reshape | Slice | Flip | Take


@dataclass(frozen=True)
class View:
    """A host value after layout steps, applied left to right; `shape` is the final one."""

    value: Value
    shape: tuple[Size, ...]
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Concat:
    """Views joined along their last dimension."""

    views: tuple[View, ...]
    shape: tuple[Size, ...]


@dataclass(frozen=True)
class Linear:
    """`recopt::linear`: y[..., n] = epilogue(sum_k x[..., k] * w[n, k] + b[n]), then `steps` on y.

    `w` is [N, K]: an array (folded in float64, cast to the product's dtype) or a view of a host value (a stored
    parameter that needs no folding, or a weight that is computed at run time). `b` is [N]. `epilogue` is an expression
    over `h`, the pre-activation, and `p0..`, the `params`, each [N] or [1] (grammar: kernels/epilogue.py); "h" is none.
    """

    x: View | Concat
    w: Array | View
    b: Array | View | None
    epilogue: str
    params: tuple[Array | View, ...]
    shape: tuple[Size, ...]  # of y before `steps`
    dtype: str
    steps: tuple[Step, ...] = ()
    name: str = "linear"

    @property
    def channels_second(self) -> bool:
        """Whether x and y lie as [B, K, space..] and [B, N, space..]: a convolution of width one moves neither."""
        if not isinstance(self.x, View) or self.x.value.shape is None or not 3 <= len(self.x.value.shape) <= 5:
            return False
        batch, features, *space = self.x.value.shape
        rank = len(space) + 2
        last, second = (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))
        turned: list[tuple[Step, ...]] = [(Permute(last),)]
        turned_back: list[tuple[Step, ...]] = [(Permute(second),)]
        # turning is a reshape where one of the two that change places has size 1
        if features == 1 or all(size == 1 for size in space):
            turned.append((Reshape((batch, *space, features)),))
        if self.shape[-1] == 1 or all(size == 1 for size in space):
            turned_back.append((Reshape((batch, self.shape[-1], *space)),))
        return self.x.steps in turned and self.steps in turned_back and self.shape[:-1] == (batch, *space)


@dataclass(frozen=True)
class Stored:
    """How rows of `width` numbers are stored: in `bits` each, 16 as float16, 8 and 4 as q * scale + bias, a scale and a
    bias a row in `scales` [rows, 2]. Two numbers of 4 bits share a byte."""

    bits: int
    width: int
    scales: View | None = None


@dataclass(frozen=True, eq=False)
class Again:
    """Numbers [N, C] that come again and again: row r of a result, all of its row dimensions as one, has row r % N."""

    rows: Array


@dataclass(frozen=True)
class Bag:
    """Rows of a table, pooled: y[.., d] = sum_l weights[.., l] * table[ids[.., l], d], or the mean, or the maximum.

    `ids` is [rows.., L]; pool "row" does not pool: the rows of the L ids lie side by side. `wraps` says that negative
    ids count from the end. `weights` is [rows.., L] too. The row that is read is id % modulus + shift, a number or one
    for each of the L. Ids past `lengths` [rows..] do not count, nor where the row is `pad`, or up to `pad` where only
    those `above` it do (before it is counted from the end; after that, where the pad is `of_row`), nor rows outside of
    0..`below`, which need not be there. `div` LO, EPS divides a sum by
    max(n, LO) + EPS, n being the sum of the weights or how many ids count, or `over` [rows..]. A row or a sum is
    multiplied by `factor`; the maximum of no ids is `otherwise`. With `offsets` [R], or [R + 1] where `last`,
    ids are [N] and bag r begins at offsets[r].
    `program` is what happens to an id before all that, and `live` which ids count, each a function of the id (see
    id_programs.py); `named` holds what the program gives, where the graph does. Ids do not count either where `mask`,
    [rows.., L], is zero, or where it is not (`unmask`).

    What optional passes add: `stored`, a table of fewer bits; `remap` [modulus or rows], the row that is read is
    remap[id % modulus] instead; `parts`, bags of single rows in whose place this one reads one row of a product table,
    at the sum of steps[n][row that part n reads]; `once`, each row is read once, however many ids name it. A table is
    `stacked` of L others, one for each of the L ids: where each begins, and the last ends.
    """

    table: View
    ids: View
    pool: str
    wraps: bool = False
    weights: View | None = None
    modulus: int = 0  # none
    shift: int | tuple[int, ...] = 0
    pad: int | None = None
    above: bool = False
    below: int = 0  # none
    div: tuple[float, float] | None = None
    offsets: View | None = None
    last: bool = False
    lengths: View | None = None
    stored: Stored | None = None
    remap: View | None = None
    parts: tuple[Bag, ...] = ()
    steps: tuple[View, ...] = ()
    once: bool = False
    over: View | None = None
    factor: float = 1.0
    otherwise: float = 0.0
    least: bool = False  # `otherwise` is below all rows
    taken: bool = False  # it is added to rows that do not count, which are too small to change it
    of_row: bool = False
    program: str = ""
    named: View | None = None
    live: str = ""
    mask: View | None = None
    unmask: bool = False
    stacked: tuple[int, ...] = ()

    @property
    def columns(self) -> int:
        """Numbers of a row of the table."""
        return int(self.table.shape[1]) if self.stored is None else self.stored.width

    @property
    def count(self) -> int:
        """L; 0 where the bags lie one after the other."""
        return 0 if self.offsets is not None else int(self.ids.shape[-1])

    @property
    def width(self) -> int:
        """Columns of the result."""
        return self.columns * (self.count if self.pool == "row" else 1)


@dataclass(frozen=True)
class EmbeddingBags:
    """`recopt::embedding_bags`: pieces side by side, [rows.., W], then `steps`. The terms of a piece, bags, dense
    values [rows.., C] and numbers, add up."""

    pieces: tuple[tuple[Bag | View | Again, ...], ...]
    shape: tuple[Size, ...]  # before `steps`
    dtype: str
    steps: tuple[Step, ...] = ()
    name: str = "bags"

    @property
    def bags(self) -> tuple[Bag, ...]:
        return tuple(term for piece in self.pieces for term in piece if isinstance(term, Bag))

    @property
    def views(self) -> tuple[View, ...]:
        """Everything that it reads."""
        dense = [term for piece in self.pieces for term in piece if isinstance(term, View)]
        parts = [(bag.table, bag.ids, bag.weights, bag.offsets, bag.lengths, bag.over, bag.mask) for bag in self.bags]
        read = [v for part in parts for v in part if v is not None]
        read += [bag.stored.scales for bag in self.bags if bag.stored and bag.stored.scales]
        read += [part.ids for bag in self.bags for part in bag.parts]
        return (*dense, *read)


@dataclass(frozen=True)
class Heads:
    """The operands of an attention with their heads side by side: q [B, S, H * D], k [B, T, H * D], v [B, T, H * E];
    then `steps` on y [B, S, H * E]."""

    count: int
    q: View
    k: View
    v: View
    steps: tuple[Step, ...]

    @property
    def layouts(self) -> int:
        """How many layout steps there are."""
        return sum(len(s) for s in (self.q.steps, self.k.steps, self.v.steps, self.steps))


@dataclass(frozen=True)
class _Reading:
    """What reads no other views than those that are fields of it, or in tuples that are."""

    @property
    def views(self) -> tuple[View, ...]:
        """Every value of the graph that it reads."""
        held = [getattr(self, field.name) for field in fields(self)]
        parts = [part for item in held for part in (item if isinstance(item, tuple) else (item,))]
        return tuple(part for part in parts if isinstance(part, View))


@dataclass(frozen=True)
class Attention(_Reading):
    """`recopt::attention`: y[rows.., s, e] = sum_t softmax_t(score(h)) v[rows.., t, e], h = sum_d q[rows.., s, d] *
    k[rows.., t, d], then `steps` on y.

    q is [rows.., S, D], k [rows.., T, D], v [rows.., T, E], size 1 along the rows that they do not vary with. `score`
    is an expression over `h` and `p0..`, the `params`, which broadcast to [rows.., S, T] (grammar:
    kernels/epilogue.py). `unseen` is what becomes of a query whose scores are all -inf: "nan", as a softmax gives,
    "zero", or "clean" where every weight that is NaN, for whatever reason, counts 0; "scores" where there is no softmax
    and the scores are the weights.
    """

    q: View
    k: View
    v: View
    score: str
    params: tuple[Array | View, ...]
    unseen: str
    shape: tuple[Size, ...]  # of y before `steps`
    dtype: str
    steps: tuple[Step, ...] = ()
    name: str = "attention"
    heads: Heads | None = None  # the same operands, where the graph holds them so


@dataclass(frozen=True)
class AttentionWeights(_Reading):
    """`recopt::attention_weights`: y[rows.., t] = softmax_t(score(h)), h = sum_d q[rows.., d] * k[rows.., t, d], then
    `steps` on y; q [rows.., D] and k [rows.., T, D] of size 1 along the rows that they do not vary with, `score`,
    `params` [rows.., T] and `unseen` as for an attention with a softmax."""

    q: View
    k: View
    score: str
    params: tuple[Array | View, ...]
    unseen: str
    shape: tuple[Size, ...]  # of y before `steps`
    dtype: str
    steps: tuple[Step, ...] = ()
    name: str = "attention_weights"


@dataclass(frozen=True)
class TargetAttention(_Reading):
    """`recopt::target_attention`: y[rows.., e] = sum_t g(s)[t] v[rows.., t, e], then `steps`; s[rows.., t] is what a
    network gives q[rows.., D] and k[rows.., T, D]: Wq q + Wk k + Wp (q * k) + b1, then layers one after the other.

    `weights` are Wq, Wk, Wp [N, D] (of no elements where absent), b1 [N], W2, b2, ..; `text` the functions after each
    layer and g, separated by `;`, in the grammar of kernels/epilogue.py; `params` those of all functions in order, g's
    broadcast to [rows.., T]. Where `softmax`, the weights are that of g(s).
    """

    q: View
    k: View
    v: View
    weights: tuple[Array | View, ...]
    text: str
    params: tuple[Array | View, ...]
    softmax: bool
    shape: tuple[Size, ...]  # of y before `steps`
    dtype: str
    steps: tuple[Step, ...] = ()
    name: str = "target_attention"


@dataclass(frozen=True)
class Gru(_Reading):
    """`recopt::gru` and `recopt::augru`: the states y[b, t, n] of a recurrence of gated steps, then `steps` on y.

    x is [B, T, K]; h0 [B, H], or None for zeros; wi [3H, K], wh [3H, H], bi and bh [3H] hold the reset gate r, the keep
    gate z and the candidate n. h = z * h + (1 - z) * n; `after` says that r weighs the product of h and not h. `keep`
    is z as an expression over `h`, its pre-activation, and `p0..`, the `gates`, which broadcast to [B, T].
    """

    x: View
    h0: View | Array | None
    wi: Array | View
    wh: Array | View
    bi: Array | View
    bh: Array | View
    after: bool
    keep: str
    gates: tuple[Array | View, ...]
    shape: tuple[Size, ...]  # of y before `steps`
    dtype: str
    steps: tuple[Step, ...] = ()
    name: str = "gru"
    last: bool = False  # y is the last state alone, [B, H]: what an ONNX graph need not write out in full

    @property
    def plain(self) -> bool:
        """Whether it is a GRU, with no gate beside its own."""
        return self.keep == "sigmoid(h)"


@dataclass(frozen=True)
class LayerNorm:
    """The target's own layer normalisation of x [rows.., D]: (x - mean) / sqrt(variance + eps) * g [D] + b [D], then
    `steps`. Where not `centred` x / sqrt(mean of x^2 + eps) * g + b, an RMS normalisation."""

    x: View
    g: Array
    b: Array
    eps: float
    shape: tuple[Size, ...]  # of y before `steps`
    dtype: str
    steps: tuple[Step, ...] = ()
    name: str = "layer_norm"
    centred: bool = True


@dataclass(frozen=True)
class Bilinear:
    """y[rows.., t] = sum_h x[rows.., t, h] * (sum_d q[rows.., d] * w[h, d]), then `steps`; x and q have size 1 along
    the rows that they do not vary with."""

    x: View
    q: View
    w: Array
    shape: tuple[Size, ...]  # of y before `steps`
    dtype: str
    steps: tuple[Step, ...] = ()
    name: str = "bilinear"

    @property
    def turned(self) -> View | None:
        """The items as [.., h, t] where the last of the rows have the same ones, so that one product serves them all: q
        [.., s, h] times these. None where each has its own."""
        *rows, t, h = self.x.shape
        if not rows or rows[-1] != 1 or self.q.shape[-2] == 1:
            return None
        shape, n = (*rows[:-1], t, h), len(rows) - 1
        before = self.x.steps[:-1] if self.x.steps and isinstance(self.x.steps[-1], Reshape) else self.x.steps
        steps = (*before, Reshape(shape), Permute((*range(n), n + 1, n)))
        return View(self.x.value, (*rows[:-1], h, t), steps)


@dataclass(frozen=True)
class DotInteraction:
    """`recopt::dot_interaction`: y[r, p] = sum over d < size of x[r, starts[a] + d] * x[r, starts[b] + d], where (a, b)
    is pairs[p], then `steps` on y; x is [R, K]."""

    x: View
    size: int
    starts: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    shape: tuple[Size, ...]  # of y before `steps`
    dtype: str
    steps: tuple[Step, ...] = ()
    name: str = "dot_interaction"


Averages: TypeAlias = Attention | AttentionWeights | TargetAttention
Spec: TypeAlias = DotInteraction | Linear | EmbeddingBags | Averages | Gru | LayerNorm | Bilinear


def reading(item: T, moved: Mapping[Value, Value]) -> T:
    """An operator, or a part of one, over other values: whatever it views of `moved` it views of what became of it."""
    if isinstance(item, View):
        return cast(T, replace(item, value=moved[item.value])) if item.value in moved else item
    if isinstance(item, tuple):
        parts = tuple(reading(part, moved) for part in item)
        return cast(T, parts) if any(new is not old for new, old in zip(parts, item, strict=True)) else item
    if not is_dataclass(item) or isinstance(item, type):
        return item
    parts_of = {field.name: getattr(item, field.name) for field in fields(item)}
    changed = {name: new for name, old in parts_of.items() if (new := reading(old, moved)) is not old}
    return replace(item, **changed) if changed else item
