"""recopt's torch operators for torch's ONNX exporter: an optimized module exports as standard operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..hosts.base import Array, Value
from ..hosts.fx_norms import LAYER_NORM_OPERATOR, RMS_NORM_OPERATOR
from ..hosts.fx_operators import (
    ATTENTION_OPERATOR,
    ATTENTION_WEIGHTS_OPERATOR,
    AUGRU_OPERATOR,
    EMBEDDING_BAGS_OPERATOR,
    GRU_OPERATOR,
    LINEAR_OPERATOR,
    TARGET_ATTENTION_OPERATOR,
)
from .onnx_epilogue import emit
from .translation_bags import embedding_bags
from .translation_gru import augru, gru
from .translation_target import products, target_attention

OPSET = 18  # what torch's exporter translates to


@dataclass
class _Exporter:
    """The part of a host that an epilogue writes to, over the operators of onnxscript."""

    operators: Any
    opset: int = OPSET
    inputs: Sequence[Value] = ()
    made: dict[Value, Any] = field(default_factory=dict)

    def value(self, tensor: Any, dtype: str) -> Value:
        """A handle of one of the exporter's tensors."""
        handle = Value("", None, dtype)
        self.made[handle] = tensor
        return handle

    def beside(self, h: Any, dtype: str, tensors: Sequence[Any], known: Sequence[Any]) -> list[Value]:
        """Parameters beside h, of the types that are `known`; whole numbers are made what h is."""
        names = [dtype if k.dtype is None else k.dtype.numpy().name for k in known]
        cast = [self.operators.CastLike(t, h) if "int" in n else t for t, n in zip(tensors, names, strict=True)]
        return [self.value(t, dtype if "int" in n else n) for t, n in zip(cast, names, strict=True)]

    def call(
        self,
        op: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        name: str,
        shape: object = None,
        dtype: str | None = None,
        like: Value | None = None,
    ) -> Value:
        operands = [None if arg is None else self.made[arg] for arg in args]
        return self.value(getattr(self.operators, op)(*operands, **(kwargs or {})), dtype or "float32")

    def share_constant(self, array: Array, *, name: str) -> Value:
        return self.value(array.item(), array.dtype.name)  # the exporter gives a number the type of its neighbour


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `torch.onnx.export(module, args, dynamo=True, custom_translation_table=...)` needs to export an optimized
    module: `recopt::linear` as MatMul, Add (or Conv) and the operators of its epilogue, `recopt::embedding_bags` as
    Gathers and reductions, `recopt::attention` as MatMul, Softmax, MatMul, `recopt::attention_weights` as two of these,
    `recopt::target_attention` as products with a row's own weights, `recopt::layer_norm` as LayerNormalization,
    `recopt::rms_norm` as what ONNX Runtime makes one kernel of, `recopt::gru` as GRU, `recopt::augru` step by step.
    Needs onnxscript."""
    from onnxscript import opset18

    def linear(x: Any, w: Any, b: Any, epilogue: str, params: Sequence[Any]) -> Any:
        dtype = x.dtype.numpy().name if x.dtype is not None else "float32"
        if len(w.shape) > 2:
            h = opset18.Conv(x, w, b)
        else:
            h = opset18.MatMul(x, opset18.Transpose(w, perm=[1, 0]))
            h = h if b is None else opset18.Add(h, b)
        exporter = _Exporter(opset18)
        return exporter.made[
            emit(exporter, epilogue, exporter.value(h, dtype), [exporter.value(p, dtype) for p in params or ()], "y")  # type: ignore[arg-type]  # the part of a host that emit calls
        ]

    def bags(tables: Any, ids: Any, offsets: Any, weights: Any, dense: Any, scales: Any, layout: str) -> Any:
        return embedding_bags(opset18, (tables, ids, offsets, weights, dense, scales), layout)

    def weighed(q: Any, h: Any, score: str, params: Sequence[Any], unseen: str) -> Any:
        dtype = q.dtype.numpy().name if q.dtype is not None else "float32"
        exporter = _Exporter(opset18)
        operands = exporter.beside(q, dtype, params or (), params or ())
        scores = exporter.made[emit(exporter, score, exporter.value(h, dtype), operands, "y")]  # type: ignore[arg-type]  # the part of a host that emit calls
        weights = scores if unseen == "scores" else opset18.Softmax(scores, axis=-1)
        if unseen == "clean":
            weights = opset18.Where(opset18.IsNaN(weights), 0.0, weights)
        elif unseen == "zero":
            weights = opset18.Where(opset18.Equal(scores, float("-inf")), 0.0, weights)
        return weights

    def attention(q: Any, k: Any, v: Any, score: str, params: Sequence[Any], unseen: str) -> Any:
        rank = len(k.shape)
        h = opset18.MatMul(q, opset18.Transpose(k, perm=[*range(rank - 2), rank - 1, rank - 2]))
        return opset18.MatMul(weighed(q, h, score, params, unseen), v)

    def attention_weights(q: Any, k: Any, score: str, params: Sequence[Any], unseen: str) -> Any:
        return weighed(q, products(opset18, q, k), score, params, unseen)

    def target(q: Any, k: Any, v: Any, weights: Sequence[Any], params: Sequence[Any], text: str, softmax: bool) -> Any:
        dtype = q.dtype.numpy().name if q.dtype is not None else "float32"

        def applied(part: str, h: Any, mine: Sequence[Any]) -> Any:
            exporter = _Exporter(opset18)
            operands = [exporter.value(p, dtype if p.dtype is None else p.dtype.numpy().name) for p in mine]
            return exporter.made[emit(exporter, part, exporter.value(h, dtype), operands, "y")]  # type: ignore[arg-type]  # the part of a host that emit calls

        return target_attention(opset18, (q, k, v), weights, params or (), text, softmax, applied)

    def layer_norm(x: Any, g: Any, b: Any, eps: float, beside: Any = None) -> Any:
        x = x if beside is None else opset18.Add(x, beside)
        y, _, _ = opset18.LayerNormalization(x, g, b, axis=-1, epsilon=eps)
        return y

    def rms_norm(x: Any, g: Any, eps: float, beside: Any = None) -> Any:
        return _rms_norm(opset18, x if beside is None else opset18.Add(x, beside), g, eps)

    def plain(x: Any, h0: Any, wi: Any, wh: Any, bi: Any, bh: Any, after: bool) -> Any:
        return gru(opset18, x, h0, (wi, wh, bi, bh), after)

    def gated(x: Any, h0: Any, wi: Any, wh: Any, bi: Any, bh: Any, after: bool, keep: str, gates: Sequence[Any]) -> Any:
        dtype = x.dtype.numpy().name if x.dtype is not None else "float32"

        def kept(z: Any, now: Sequence[Any]) -> Any:
            exporter = _Exporter(opset18)
            operands = exporter.beside(x, dtype, now, gates or ())
            return exporter.made[emit(exporter, keep, exporter.value(z, dtype), operands, "z")]  # type: ignore[arg-type]  # the part of a host that emit calls

        return augru(opset18, x, h0, (wi, wh, bi, bh), after, gates or (), kept)

    return {
        LINEAR_OPERATOR: linear,
        EMBEDDING_BAGS_OPERATOR: bags,
        ATTENTION_OPERATOR: attention,
        ATTENTION_WEIGHTS_OPERATOR: attention_weights,
        TARGET_ATTENTION_OPERATOR: target,
        LAYER_NORM_OPERATOR: layer_norm,
        RMS_NORM_OPERATOR: rms_norm,
        GRU_OPERATOR: plain,
        AUGRU_OPERATOR: gated,
    }


def _rms_norm(op: Any, x: Any, g: Any, eps: float) -> Any:
    spread = op.Add(op.ReduceMean(op.Pow(x, 2.0), op.Constant(value_ints=[-1])), eps)
    return op.Mul(op.Div(x, op.Sqrt(spread)), g)


__all__ = ["onnx_translations"]
