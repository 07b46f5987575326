"""`recopt::target_attention` over the operators of onnxscript, for torch's ONNX exporter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .onnx_epilogue import parameters


def target_attention(
    op: Any,
    operands: tuple[Any, Any, Any],
    weights: Sequence[Any],
    params: Sequence[Any],
    text: str,
    softmax: bool,
    applied: Callable[[str, Any, Sequence[Any]], Any],
) -> Any:
    """y [.., E] of q [.., D], k [.., T, D] and v [.., T, E]; `op` is an opset, `applied` a text's function of h."""
    q, k, v = operands
    *layers, score = (part.strip() for part in text.split(";"))
    left = list(params)

    def function(part: str, h: Any) -> Any:
        count = parameters(part)
        mine, left[:] = left[:count], left[count:]
        return applied(part, h, mine)

    def turned(w: Any) -> Any:
        return op.Transpose(w, perm=[1, 0])

    wq, wk, wp = (w if 0 not in tuple(w.shape) else None for w in weights[:3])
    own = None if wk is None else turned(wk)
    if wp is not None:
        scaled = op.Mul(op.Unsqueeze(q, [-1]), turned(wp))
        own = scaled if own is None else op.Add(scaled, own)
    c = weights[3] if wq is None else op.Unsqueeze(op.Add(op.MatMul(q, turned(wq)), weights[3]), [-2])
    h = op.Add(op.MatMul(k, own), c)
    for n, part in enumerate(layers):
        if n:
            h = op.Add(op.MatMul(h, turned(weights[2 + 2 * n])), weights[3 + 2 * n])
        h = function(part, h)
    s = function(score, op.Squeeze(h, [-1]))
    s = op.Softmax(s, axis=-1) if softmax else s
    return op.Squeeze(op.MatMul(op.Unsqueeze(s, [-2]), v), [-2])


def products(op: Any, q: Any, k: Any) -> Any:
    """Of the one query of each row, q [.., D], with its keys, k [.., T, D]: [.., T]."""
    return op.Squeeze(op.MatMul(k, op.Unsqueeze(q, [-1])), [-1])
