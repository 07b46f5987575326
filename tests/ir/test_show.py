"""Golden texts of terms: what operators mean, one line each."""

from __future__ import annotations

from collections.abc import Callable

from recopt.ir import ops, tensor
from recopt.ir.show import show
from recopt.ir.tensor import Tensor

from .pairs import N, source

X, W, B = source("x", N, 12), source("w", 6, 12), source("b", 6)
HISTORY, ITEM = source("history", N, 10, 8), source("item", N, 8)
IDS, TABLE = source("ids", N, 4, dtype="int64"), source("table", 50, 8)


def _relu(t: Tensor) -> Tensor:
    return ops.pointwise("max", t, tensor.scalar(0, "float32"))


TERMS: dict[str, Callable[[], Tensor]] = {
    "linear": lambda: ops.add(ops.matmul(X, tensor.permute(W, [1, 0])), B),
    "linear, scaled and activated": lambda: _relu(ops.times(ops.add(ops.einsum("nk,mk->nm", X, W), B), 0.5)),
    "1x1 convolution": lambda: ops.convolution(tensor.unsqueeze(X, 2), tensor.unsqueeze(W, 2), B, [1], [0], [1], 1),
    "convolution of three": lambda: ops.convolution(
        source("image", N, 2, 9), source("kernel", 4, 2, 3), None, [2], [1], [1], 1
    ),
    "heads": lambda: tensor.permute(tensor.reshape(X, [N, 3, 4]), [1, 0, 2]),
    "batch and heads merged": lambda: tensor.reshape(X, [3 * N, 4]),
    "across boundaries": lambda: tensor.reshape(source("m", 4, 6), [3, 8]),
    "concat": lambda: tensor.concat([X, ITEM], 1),
    "slice of concat": lambda: tensor.slice_dim(tensor.concat([X, ITEM], 1), 1, 12, 8),
    "pad with ones": lambda: tensor.pad(X, 1, 0, 1, 1),
    "flip": lambda: tensor.flip(X, [1]),
    "softmax": lambda: ops.softmax(ops.einsum("nld,nd->nl", HISTORY, ITEM), 1),
    "target attention": lambda: ops.einsum(
        "nl,nld->nd", ops.softmax(ops.einsum("nld,nd->nl", HISTORY, ITEM), 1), HISTORY
    ),
    "lookup": lambda: ops.take(TABLE, IDS),
    "bag": lambda: ops.total(ops.take(TABLE, IDS), [1]),
    "mean of a bag": lambda: ops.mean(ops.take(TABLE, IDS), [1]),
    "one-hot product": lambda: ops.matmul(ops.one_hot(IDS, 50, "float32"), TABLE),
    "hashed lookup": lambda: ops.take(TABLE, ops.pointwise("mod", IDS, tensor.scalar(50, "int64"))),
    "dot interaction": lambda: ops.einsum("nid,njd->nij", HISTORY, HISTORY),
    "factorisation machine": lambda: ops.times(
        ops.sub(ops.pointwise("square", ops.total(HISTORY, [1])), ops.total(ops.pointwise("square", HISTORY), [1])), 0.5
    ),
    "layer norm's centre": lambda: ops.sub(X, ops.mean(X, [1], keepdim=True)),
    "mean over the batch": lambda: ops.mean(X, [0]),
    "largest": lambda: ops.reduction("max", X, [1]),
    "lower triangle": lambda: ops.triangle(source("square", 6, 6), 0, True),
    "running sum": lambda: ops.cumulative_sum(X, 1),
}


def test_terms(golden: Callable[[str, str], None]) -> None:
    golden("ir/terms", "\n".join(f"{name}\n    {show(make())}" for name, make in TERMS.items()))
