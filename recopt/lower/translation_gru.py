"""`recopt::gru` and `recopt::augru` over the operators of onnxscript, for torch's ONNX exporter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def gru(op: Any, x: Any, h0: Any, weights: Sequence[Any], after: bool) -> Any:
    """`GRU`, whose gates are in the order z, r, n, of weights wi, wh, bi, bh; `op` is an opset. As `onnx_gru.Filled`
    does, it gives a batch without rows, or rows without steps, one, and cuts it off again."""
    wi, wh, bi, bh = (_turned(op, w) for w in weights)
    counts = {d: op.Shape(x, start=d, end=d + 1) for d in (0, 1) if not isinstance(x.shape[d], int) or x.shape[d] == 0}
    more = {d: _missing(op, n) for d, n in counts.items()}
    if h0 is not None:
        h0 = _wide(op, x, h0) if h0.shape[0] == 1 else h0
        h0 = _front(op, _padded(op, h0, [more.get(0), None]))
    biases = _front(op, op.Concat(bi, bh, axis=0))
    turned = op.Transpose(_padded(op, x, [more.get(0), more.get(1), None]), perm=[1, 0, 2])
    operands = (turned, _front(op, wi), _front(op, wh), biases, None, h0)
    y, _ = op.GRU(*operands, hidden_size=weights[1].shape[-1], linear_before_reset=int(after))
    y = op.Transpose(op.Squeeze(y, op.Constant(value_ints=[1])), perm=[1, 0, 2])
    for d, n in counts.items():
        y = op.Slice(y, op.Constant(value_ints=[0]), n, op.Constant(value_ints=[d]))
    return y


def _missing(op: Any, count: Any) -> Any:
    """1 where a count [1] is 0, else 0; by TopK, which nobody folds who takes every size for at least 1."""
    one = op.Constant(value_ints=[1])
    least, _ = op.TopK(op.Concat(count, one, axis=0), one, axis=0, largest=0)
    return op.Sub(one, least)


def _padded(op: Any, value: Any, more: Sequence[Any]) -> Any:
    """`value` with as many zeros behind each dimension as `more` says; None is 0."""
    if all(m is None for m in more):
        return value
    nothing = op.Constant(value_ints=[0])
    pads = [nothing] * len(more) + [nothing if m is None else m for m in more]
    return op.Pad(value, op.Concat(*pads, axis=0))


def augru(
    op: Any, x: Any, h0: Any, weights: Sequence[Any], after: bool, gates: Sequence[Any], keep: Callable[..., Any]
) -> Any:
    """Steps one after the other; `keep` writes the gate z of its pre-activation and of the columns of `gates`."""
    wi, wh, bi, bh = (_thirds(op, w) for w in weights)
    inputs = [op.Add(op.MatMul(x, op.Transpose(w, perm=[1, 0])), b) for w, b in zip(wi, bi, strict=True)]
    (ur, uz, un), (cr, cz, cn) = wh, bh
    h, states = None if h0 is None else _wide(op, x, h0), []
    for t in range(x.shape[1]):
        r, z, n = (op.Gather(v, op.Constant(value_int=t), axis=1) for v in inputs)
        now = [op.Gather(g, op.Constant(value_ints=[t if g.shape[1] != 1 else 0]), axis=1) for g in gates]

        def product(u: Any, c: Any, state: Any = h) -> Any:
            return c if state is None else op.Gemm(state, u, c, transB=1)

        r, z = op.Sigmoid(op.Add(r, product(ur, cr))), keep(op.Add(z, product(uz, cz)), now)
        if after:
            n = op.Add(n, op.Mul(r, product(un, cn)))
        else:
            n = op.Add(n, product(un, cn, None if h is None else op.Mul(r, h)))
        n = op.Tanh(n)
        h = op.Sub(n, op.Mul(z, n)) if h is None else op.Add(n, op.Mul(z, op.Sub(h, n)))
        states.append(op.Unsqueeze(h, op.Constant(value_ints=[1])))
    return op.Concat(*states, axis=1)


def _turned(op: Any, w: Any) -> Any:
    r, z, n = _thirds(op, w)
    return op.Concat(z, r, n, axis=0)


def _thirds(op: Any, w: Any) -> list[Any]:
    size = w.shape[0] // 3
    return [op.Slice(w, *(op.Constant(value_ints=[i]) for i in (n * size, n * size + size, 0))) for n in range(3)]


def _wide(op: Any, x: Any, h0: Any) -> Any:
    """h0 with a row for each of x."""
    rows = op.Shape(x, start=0, end=1)
    return op.Expand(h0, op.Concat(rows, op.Shape(h0, start=1, end=2), axis=0))


def _front(op: Any, w: Any) -> Any:
    """With a dimension of size 1 in front."""
    return op.Unsqueeze(w, op.Constant(value_ints=[0]))
