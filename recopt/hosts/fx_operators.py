"""recopt's fused operators in torch: torch.library operators, and the plain functions that a module calls instead.

They stand beside the host, not in the lowering, since a saved program needs them before anything is lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..kernels.attention import attention, attention_cuda, attention_torch
from ..kernels.attention import check_operands as check_attention
from ..kernels.attention.weights import attention_weights, check_weights, weights_call
from ..kernels.dot_interaction import check_operands as check_pairs
from ..kernels.dot_interaction import dot_interaction, dot_interaction_torch
from ..kernels.embedding_bags import (
    Operands,
    check_operands,
    embedding_bags,
    embedding_bags_torch,
    parse_layout,
    result_dtype,
    rows_of,
)  # fmt: skip
from ..kernels.embedding_bags.small import small
from ..kernels.epilogue import compile_epilogue
from ..kernels.gru import KEEP, check_gru, gru
from ..kernels.gru import gru_call as run_gru
from ..kernels.linear import linear as linear_kernel
from ..kernels.linear import over_space
from ..kernels.pointwise import pointwise, pointwise_fake, pointwise_torch
from ..kernels.target_attention import check_operands as check_target_attention
from ..kernels.target_attention import target_attention
from ..kernels.target_attention import target_attention_call as run_target_attention
from .fx_define import define, must_dispatch
from .fx_norms import LAYER_NORM, RMS_NORM, layer_norm_call, rms_norm_call

LINEAR = "recopt.linear.default"


def _linear(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, epilogue: str, params: list[torch.Tensor] | None
) -> torch.Tensor:
    return linear_kernel(x, w, b, epilogue, params or ())  # AOTInductor's runtime passes an empty list as None


def _linear_fake(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, epilogue: str, params: list[torch.Tensor]
) -> torch.Tensor:
    """Shape and dtype of the result; RuntimeError for operands that do not fit each other."""
    compile_epilogue(epilogue)
    if w.dim() > 2:
        return _over_space_fake(x, w, b, params)
    fits = w.dim() == 2 and x.dim() > 0 and bool(x.shape[-1] == w.shape[1]) and x.dtype == w.dtype
    for p in params if b is None else [b, *params]:
        fits = fits and p.dim() == 1 and bool(p.shape[0] == w.shape[0] or (p.shape[0] == 1 and p is not b))
    if not fits:
        shapes = [tuple(t.shape) for t in (x, w, *params)]
        raise RuntimeError(f"operands of shapes {shapes} and types {x.dtype}, {w.dtype} do not fit each other")
    return x.new_empty((*x.shape[:-1], w.shape[0]))


def _over_space_fake(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, params: list[torch.Tensor]
) -> torch.Tensor:
    """The same with the channels second: x [B, K, space..], w [N, K, 1..], params [N, 1..]."""
    fits = x.dim() == w.dim() and bool(x.shape[1] == w.shape[1]) and x.dtype == w.dtype
    fits = fits and (b is None or (b.dim() == 1 and bool(b.shape[0] == w.shape[0])))
    for p in params:
        fits = fits and (p.numel() == 1 or (p.dim() == w.dim() - 1 and bool(p.shape[0] == w.shape[0])))
    if not fits:
        shapes = [tuple(t.shape) for t in (x, w, *params)]
        raise RuntimeError(f"operands of shapes {shapes} and types {x.dtype}, {w.dtype} do not fit each other")
    return x.new_empty((x.shape[0], w.shape[0], *x.shape[2:]))


LINEAR_OPERATOR = define(
    "linear", "(Tensor x, Tensor w, Tensor? b, str epilogue, Tensor[] params) -> Tensor", _linear, _linear_fake
)


def linear_call(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, epilogue: str, params: list[torch.Tensor]
) -> torch.Tensor:
    """`recopt::linear` without the dispatcher (about 6 us a call), except where a tracer must see the operator.

    torch.jit.trace, and with it the TorchScript exporter, sees the plain operators instead: it knows no custom ones.
    On the CPU the kernel's checks of its operands, made when the node was written, are not made again.
    """
    if must_dispatch():
        return LINEAR_OPERATOR(x, w, b, epilogue, params)
    if x.is_cuda:
        return linear_kernel(x, w, b, epilogue, params)
    h = torch._C._nn.linear(x, w, b) if w.dim() == 2 else over_space(x, w, b)
    compiled = compile_epilogue(epilogue)
    return compiled.apply(h, params) if h.requires_grad else compiled.apply_(h, params)


EMBEDDING_BAGS = "recopt.embedding_bags.default"
Tensors = list[torch.Tensor]


def _embedding_bags(
    tables: Tensors | None, ids: Tensors | None, offsets: Tensors | None, weights: Tensors | None,
    dense: Tensors | None, scales: Tensors | None, layout: str,
) -> torch.Tensor:  # fmt: skip
    result = embedding_bags(tables or (), ids or (), offsets or (), weights or (), dense or (), scales or (), layout)
    # The dispatcher hands out no input as the result of an operator that says it makes one.
    return result.clone() if any(result is d for d in dense or ()) else result


def _embedding_bags_fake(
    tables: Tensors, ids: Tensors, offsets: Tensors, weights: Tensors, dense: Tensors, scales: Tensors, layout: str
) -> torch.Tensor:
    """Shape and dtype of the result; EmbeddingBagsError for operands that do not fit the layout."""
    parsed = parse_layout(layout)
    operands = Operands(tables, ids, offsets, weights, dense, scales)
    width = sum(check_operands(parsed, operands))
    dtype = result_dtype(parsed, [t.dtype for t in tables], [d.dtype for d in dense])
    like = next(iter([*tables, *dense]))
    return like.new_empty((rows_of(parsed, operands), width), dtype=dtype)


EMBEDDING_BAGS_OPERATOR = define(
    "embedding_bags",
    "(Tensor[] tables, Tensor[] ids, Tensor[] offsets, Tensor[] weights, Tensor[] dense, Tensor[] scales, str layout)"
    " -> Tensor",
    _embedding_bags,
    _embedding_bags_fake,
)


def at_once(
    tables: Tensors, ids: Tensors, offsets: Sequence[torch.Tensor], weights: Tensors, dense: Tensors, layout: str,
    rank: int = 1, apart: bool = False,
) -> torch.Tensor | None:  # fmt: skip
    """The embedding bags of ids [*S, C], where S has `rank` dimensions, as a straight line of torch calls on a CPU, see
    `small`: at batch 1 each look of the operator's at its operands counts. None where there is none, or nothing may
    pass the operator by."""
    if (tables or dense)[0].is_cuda or must_dispatch():
        return None
    function = None if torch._C._get_tracing_state() else small(layout, rank, apart)
    try:
        return None if function is None else function(tables, ids, offsets, weights, dense)
    except (IndexError, RuntimeError):
        return None  # the operator says what is wrong


def embedding_bags_call(
    tables: Tensors, ids: Tensors, offsets: Tensors, weights: Tensors, dense: Tensors, scales: Tensors, layout: str
) -> torch.Tensor:
    """`recopt::embedding_bags` without the dispatcher, as `linear_call`."""
    found = at_once(tables, ids, offsets, weights, dense, layout)
    if found is not None:
        return found
    if must_dispatch():
        return EMBEDDING_BAGS_OPERATOR(tables, ids, offsets, weights, dense, scales, layout)
    if (tables or dense)[0].is_cuda:
        return embedding_bags(tables, ids, offsets, weights, dense, scales, layout)
    return embedding_bags_torch(tables, ids, offsets, weights, dense, scales, layout)


ATTENTION = "recopt.attention.default"


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, score: str, params: Tensors | None, unseen: str
) -> torch.Tensor:
    return attention(q, k, v, score, params or (), unseen).contiguous()  # as the fake kernel says


def _attention_fake(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, score: str, params: Tensors, unseen: str
) -> torch.Tensor:
    """Shape and dtype of the result; AttentionError for operands that do not fit each other."""
    compile_epilogue(score)
    return q.new_empty(check_attention(q, k, v, params))


ATTENTION_OPERATOR = define(
    "attention",
    "(Tensor q, Tensor k, Tensor v, str score, Tensor[] params, str unseen) -> Tensor",
    _attention,
    _attention_fake,
)


def attention_call(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, score: str, params: Tensors, unseen: str
) -> torch.Tensor:
    """`recopt::attention` without the dispatcher, as `linear_call`; its operands were checked with the node."""
    if must_dispatch():
        return ATTENTION_OPERATOR(q, k, v, score, params, unseen)
    if q.is_cuda:
        return attention_cuda(q, k, v, score, params, unseen, as_queries=True)
    return attention_torch(q, k, v, score, params, unseen)


ATTENTION_WEIGHTS = "recopt.attention_weights.default"


def _attention_weights(
    q: torch.Tensor, k: torch.Tensor, score: str, params: Tensors | None, unseen: str
) -> torch.Tensor:
    return attention_weights(q, k, score, params or (), unseen)


def _attention_weights_fake(q: torch.Tensor, k: torch.Tensor, score: str, params: Tensors, unseen: str) -> torch.Tensor:
    """Shape and dtype of the result; AttentionError for operands that do not fit each other."""
    compile_epilogue(score)
    return q.new_empty(check_weights(q, k, params))


ATTENTION_WEIGHTS_OPERATOR = define(
    "attention_weights",
    "(Tensor q, Tensor k, str score, Tensor[] params, str unseen) -> Tensor",
    _attention_weights,
    _attention_weights_fake,
)


def attention_weights_call(q: torch.Tensor, k: torch.Tensor, score: str, params: Tensors, unseen: str) -> torch.Tensor:
    """`recopt::attention_weights` without the dispatcher, as `attention_call`."""
    if must_dispatch():
        return ATTENTION_WEIGHTS_OPERATOR(q, k, score, params, unseen)
    return weights_call(q, k, score, params, unseen)


TARGET_ATTENTION = "recopt.target_attention.default"


def _target_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    weights: Tensors,
    params: Tensors | None,
    text: str,
    softmax: bool,
) -> torch.Tensor:
    return target_attention(q, k, v, weights, params or (), text, softmax)


def _target_attention_fake(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Tensors, params: Tensors, text: str, softmax: bool
) -> torch.Tensor:
    """Shape and dtype of the result; TargetAttentionError for operands that do not fit each other."""
    return q.new_empty(check_target_attention(q, k, v, weights, params, text))


TARGET_ATTENTION_OPERATOR = define(
    "target_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor[] weights, Tensor[] params, str text, bool softmax) -> Tensor",
    _target_attention,
    _target_attention_fake,
)


def target_attention_call(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Tensors, params: Tensors, text: str, softmax: bool
) -> torch.Tensor:
    """`recopt::target_attention` without the dispatcher, as `attention_call`."""
    if must_dispatch():
        return TARGET_ATTENTION_OPERATOR(q, k, v, weights, params, text, softmax)
    return run_target_attention(q, k, v, weights, params, text, softmax)


GRU = "recopt.gru.default"
AUGRU = "recopt.augru.default"
_RECURRENT = "Tensor x, Tensor? h0, Tensor wi, Tensor wh, Tensor bi, Tensor bh, bool after"


def _gru(
    x: torch.Tensor, h0: torch.Tensor | None, wi: torch.Tensor, wh: torch.Tensor, bi: torch.Tensor, bh: torch.Tensor,
    after: bool, keep: str = KEEP, gates: Tensors | None = None,
) -> torch.Tensor:  # fmt: skip
    states = gru(x, h0, wi, wh, bi, bh, after, keep, gates or ())
    return states.contiguous() if x.is_cuda else states  # as the fake kernel has it


def _gru_fake(
    x: torch.Tensor, h0: torch.Tensor | None, wi: torch.Tensor, wh: torch.Tensor, bi: torch.Tensor, bh: torch.Tensor,
    after: bool, keep: str = KEEP, gates: Tensors | None = None,
) -> torch.Tensor:  # fmt: skip
    """Shape, dtype and layout of the result; GruError for operands that do not fit each other."""
    batch, steps, hidden = check_gru(x, h0, wi, wh, bi, bh, keep, gates or ())
    if x.is_cuda:
        return x.new_empty((batch, steps, hidden))
    return x.new_empty((steps, batch, hidden)).transpose(0, 1)


GRU_OPERATOR = define("gru", f"({_RECURRENT}) -> Tensor", _gru, _gru_fake)
AUGRU_OPERATOR = define("augru", f"({_RECURRENT}, str keep, Tensor[] gates) -> Tensor", _gru, _gru_fake)


def gru_call(
    x: torch.Tensor, h0: torch.Tensor | None, wi: torch.Tensor, wh: torch.Tensor, bi: torch.Tensor, bh: torch.Tensor,
    after: bool, keep: str = KEEP, gates: Tensors | None = None,
) -> torch.Tensor:  # fmt: skip
    """`recopt::gru` and `recopt::augru` without the dispatcher, as `attention_call`."""
    if must_dispatch():
        if gates is None:
            return GRU_OPERATOR(x, h0, wi, wh, bi, bh, after)
        return AUGRU_OPERATOR(x, h0, wi, wh, bi, bh, after, keep, gates)
    return run_gru(x, h0, wi, wh, bi, bh, after, keep, gates or ())


POINTWISE = "recopt.pointwise.default"

POINTWISE_OPERATOR = define("pointwise", "(Tensor[] inputs, str program) -> Tensor[]", pointwise, pointwise_fake)


def pointwise_call(inputs: Tensors, program: str) -> Tensors:
    """`recopt::pointwise` without the dispatcher, as `attention_call`; torch's ONNX exporter sees torch's operators."""
    if torch.onnx.is_in_onnx_export():
        return pointwise_torch(inputs, program)
    if must_dispatch():
        return POINTWISE_OPERATOR(inputs, program)
    return pointwise(inputs, program)


DOT_INTERACTION = "recopt.dot_interaction.default"


def _dot_interaction_fake(x: torch.Tensor, beside: torch.Tensor | None, pairs: str, zeros: int) -> torch.Tensor:
    return x.new_empty(check_pairs(x, beside, pairs, zeros))


DOT_INTERACTION_OPERATOR = define(
    "dot_interaction",
    "(Tensor x, Tensor? beside, str pairs, int zeros) -> Tensor",
    dot_interaction,
    _dot_interaction_fake,
)


def dot_interaction_call(x: torch.Tensor, beside: torch.Tensor | None, pairs: str, zeros: int) -> torch.Tensor:
    """`recopt::dot_interaction` without the dispatcher, as `pointwise_call`."""
    if torch.onnx.is_in_onnx_export():
        return dot_interaction_torch(x, beside, pairs, zeros)
    if must_dispatch():
        return DOT_INTERACTION_OPERATOR(x, beside, pairs, zeros)
    return dot_interaction(x, beside, pairs, zeros)


CALLS: dict[str, Callable[..., Any]] = {
    LINEAR: linear_call,
    EMBEDDING_BAGS: embedding_bags_call,
    ATTENTION: attention_call,
    ATTENTION_WEIGHTS: attention_weights_call,
    TARGET_ATTENTION: target_attention_call,
    LAYER_NORM: layer_norm_call,
    RMS_NORM: rms_norm_call,
    GRU: gru_call,
    AUGRU: gru_call,
    POINTWISE: pointwise_call,
    DOT_INTERACTION: dot_interaction_call,
}
