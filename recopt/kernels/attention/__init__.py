"""recopt::attention: y[.., s, e] = sum_t softmax_t(score(sum_d q[.., s, d] k[.., t, d])) v[.., t, e].

``score`` is a text in the language of ``epilogue.py`` over ``h``, the product of queries and keys, and ``p0 .. pm``,
each of a shape that broadcasts to [.., S, T]: a scale, a mask, a bias, a soft cap. A scaled and biased score is torch's
own ``scaled_dot_product_attention``; any other is computed as it is written.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..epilogue import compile_epilogue
from .score import Affine, affine, has_operator


class AttentionError(ValueError):
    """Operands that do not fit each other."""


def check_operands(q: Tensor, k: Tensor, v: Tensor, params: Sequence[Tensor]) -> tuple[torch.SymInt | int, ...]:
    """The shape of the result. Raises AttentionError unless q is [.., S, D], k [.., T, D], v [.., T, E], of one rank
    and dtype, leading dimensions broadcast, and so do the params to [.., S, T]."""
    ranks = {q.dim(), k.dim(), v.dim(), *(p.dim() for p in params)}
    if len(ranks) > 1 or q.dim() < 2:
        raise AttentionError(f"operands of ranks {sorted(ranks)}; all need one rank, at least 2")
    if not q.dtype == k.dtype == v.dtype:
        raise AttentionError(f"queries, keys and values of {q.dtype}, {k.dtype}, {v.dtype}")
    if bool(q.shape[-1] != k.shape[-1]) or bool(k.shape[-2] != v.shape[-2]):
        raise AttentionError(f"queries {_shape(q)}, keys {_shape(k)} and values {_shape(v)} do not fit each other")
    lead = _lead(q, k, v)
    return (*lead, q.shape[-2], v.shape[-1])


def _lead(q: Tensor, k: Tensor, v: Tensor) -> torch.Size:
    """The rows of the result."""
    if q.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
        return q.shape[:-2]
    return torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])  # type: ignore[no-any-return,no-untyped-call]  # torch gives it no types


def _shape(t: Tensor) -> tuple[int, ...]:
    return tuple(t.shape)


# --- plain torch


def attention_torch(q: Tensor, k: Tensor, v: Tensor, score: str, params: Sequence[Tensor], unseen: str) -> Tensor:
    """`recopt::attention` in torch's operators: shapes as in the module's text. `unseen` says what becomes of a query
    whose scores are all -inf: "nan", as a softmax gives, "zero", or "clean": every weight that is NaN counts 0; or that
    there is no softmax: "scores" are the weights."""
    if unseen == "scores":
        return _by_scores(q, k, v, score, params)
    plan, on_cpu = affine(score), not q.is_cuda
    if not params and plan is not None and unseen == "nan" and q.dim() == 3 and on_cpu and _few(q, k, v):
        return torch.bmm(torch.softmax(_products(q, k, plan.scale), -1), v)
    tracing = torch._C._get_tracing_state() is not None
    lead, alike, pays = (_setting.__wrapped__ if tracing else _setting)(plan, q.shape, k.shape, v.shape)
    # wider masks hold what q's dtype cannot
    other = bool(params) and any(p.dtype not in (q.dtype, torch.bool) for p in params)
    if plan is None or plan.scale == 0.0 or unseen == "clean" or other:
        return _as_written(q, k, v, score, params, unseen)
    if plan.masked != -math.inf or (on_cpu and not (pays and k.stride(-1) == 1)):
        if not on_cpu or q.dtype not in (torch.float32, torch.float64) or tracing:
            return _as_written(q, k, v, score, params, unseen)
        return _in_steps(q, k, v, plan, params, unseen)
    mask, rank = _mask(plan, params, q.dtype) if params else None, len(lead) + 2
    x, y, z = (q, k, v) if alike and rank == 4 else (_four(o, lead) for o in (q, k, v))
    bias = mask if mask is None or (on_cpu and rank == 4) else _four(mask, lead)
    out = F.scaled_dot_product_attention(x, y, z, attn_mask=bias, scale=plan.scale)
    if mask is not None and unseen == "nan" and not _sees(mask):
        blind = ~mask.any(-1, keepdim=True) if mask.dtype == torch.bool else (mask == -math.inf).all(-1, keepdim=True)
        out = out.masked_fill(_four(blind, lead), math.nan)
    return out if rank == 4 else out.reshape(*lead, q.shape[-2], v.shape[-1])


@functools.lru_cache(maxsize=4096)
def _setting(plan: Affine | None, q: torch.Size, k: torch.Size, v: torch.Size) -> tuple[torch.Size, bool, bool]:
    """The leading dimensions of the result, whether all have them, and whether torch's operator pays on a CPU: found
    out once for each shape, which takes 3 us of 30."""
    alike = q[:-2] == k[:-2] == v[:-2]
    lead = q[:-2] if alike else torch.broadcast_shapes(q[:-2], k[:-2], v[:-2])  # type: ignore[no-untyped-call]  # torch gives it no types
    return lead, alike, plan is not None and _pays(lead, q[-2], k[-2], plan, alike)


# On one core of a CPU, heads of 16 to 64, torch's operator against three of its own: 256 rows of 1 x 50 to 1 x 100 take
# 1.2 to 3 times as long, 256 x 4 of 20 x 20 1.4 times, up to 64 x 4 of 50 x 50 1.1 to 1.2 times, and more of them, for
# which memory is fetched anew, 0.4; 128 x 128 0.7, 200 x 200 0.35 of the time, a few rows of any length 0.4 to 0.8, and
# single queries of 16 and 64 rows 0.66 and 0.96; 4 to 15 keys, for which torch has no quick softmax, 0.5 to 0.7, but up
# to 1.3 under a mask. With keys whose columns do not lie side by side it takes 1.95 times. With -10000 added a few
# rows gain nothing, and the look for queries that see no key costs 2 us: 1 row x 4 of 20 x 21 1.2, 2 x 4 1.4, 1 row x 3
# of 10 x 11 0.92, 4 of 1 x 17 0.86.
_FEW_ROWS, _FEW_QUERIES_IN_ALL, _FEW_SCORES, _SHORT, _LONG, _MANY, _VECTOR = 8, 64, 512, 1600, 4000, 1 << 20, 16


def _pays(lead: torch.Size, s: int, t: int, plan: Affine, alike: bool) -> bool:
    rows, masked = math.prod(lead), bool(plan.added) or plan.hidden is not None
    many = s * t >= _LONG or (s * t >= _SHORT and rows * s * t >= _MANY)
    # not matrices alone, which need views to four dimensions, nor heads that share keys, which would be copied
    four = len(lead) == 2 or (alike and len(lead) > 2)
    few = rows <= _FEW_ROWS or rows * s <= _FEW_QUERIES_IN_ALL
    few = rows * s * t < _FEW_SCORES if plan.added else few
    return many or (four and few) or (t < _VECTOR and not masked)


def _few(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether two products of matrices [R, S, D] and a softmax beat torch's operator, which takes the views to four
    dimensions besides, 0.6 to 0.9 of its time, and which itself wins from some 100 x 100 a row on and on short rows."""
    (rows, s, _), t = q.shape, k.shape[1]
    plain = q.dtype == torch.float32 and rows == k.shape[0] == v.shape[0]
    small = s * t < _SHORT or rows * s * t < _MANY // 8
    return plain and small and (t >= _VECTOR or rows * s <= _FEW_QUERIES_IN_ALL)


def _as_written(q: Tensor, k: Tensor, v: Tensor, score: str, params: Sequence[Tensor], unseen: str) -> Tensor:
    h = _products(q, k)
    wide = h if h.dtype in (torch.float32, torch.float64) else h.float()
    scores = compile_epilogue(score).apply(wide, params)
    weights = torch.softmax(scores, -1)
    if unseen == "zero":
        weights = weights.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)
    elif unseen == "clean":
        weights = weights.masked_fill(weights.isnan(), 0.0)
    return _weighed(weights.to(v.dtype), v)


def _by_scores(q: Tensor, k: Tensor, v: Tensor, score: str, params: Sequence[Tensor]) -> Tensor:
    """Scores as weights, in the place of the products where nothing else needs those."""
    compiled, h = compile_epilogue(score), _products(q, k)
    wider = any(_is_wider(p, h) for p in params)
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in (h, *params))
    weights = compiled.apply(h, params) if wider or grad else compiled.apply_(h, params)
    return _weighed(weights.to(v.dtype), v)


def _in_steps(q: Tensor, k: Tensor, v: Tensor, plan: Affine, params: Sequence[Tensor], unseen: str) -> Tensor:
    """What `_as_written` computes of an affine score, with the fewest passes over the scores."""
    scores = _products(q, k, plan.scale)
    for n in plan.added:
        scores = scores + params[n] if _is_wider(params[n], scores) else scores.add_(params[n])
    if plan.hidden is not None:
        hidden = params[plan.hidden]
        hidden = hidden if hidden.dtype == torch.bool else hidden != 0
        hidden = ~hidden if plan.shown else hidden
        fill = scores.masked_fill if _is_wider(hidden, scores) else scores.masked_fill_
        scores = fill(hidden, plan.masked)
    weights = torch.softmax(scores, -1)
    if unseen == "zero" and weights[..., :1].isnan().any():  # as a query that sees nothing has them
        weights = weights.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)
    return _weighed(weights, v)


with torch.inference_mode(False):
    _NOTHING = {dtype: torch.zeros((), dtype=dtype) for dtype in (torch.float32, torch.float64)}


def _products(q: Tensor, k: Tensor, scale: float = 1.0) -> Tensor:
    """scale * q k, [.., S, T]: one operator where no row is shared."""
    if _flat(q, k):
        y = k.transpose(1, 2)
        return torch.bmm(q, y) if scale == 1.0 else torch.baddbmm(_NOTHING[q.dtype], q, y, beta=0, alpha=scale)
    if scale == 1.0 or q.shape[:-2] != k.shape[:-2] or q.numel() < _MUCH:
        return (q if scale == 1.0 else q * scale) @ k.transpose(-1, -2)
    s, t, d = q.shape[-2], k.shape[-2], q.shape[-1]
    flat = k.reshape(-1, t, d).transpose(1, 2)
    return torch.baddbmm(q.new_empty(()), q.reshape(-1, s, d), flat, beta=0, alpha=scale).view(*q.shape[:-1], t)


_MUCH = 1 << 16  # numbers that take longer to scale than views: of [4, 50, 16] 10.6 us, and 12.7 with views


def _weighed(weights: Tensor, v: Tensor) -> Tensor:
    """The sums of values, [.., S, E]."""
    return torch.bmm(weights, v) if _flat(weights, v) else weights @ v


def _flat(a: Tensor, b: Tensor) -> bool:
    """Whether operands on a CPU that nobody watches are as many matrices, [R, .., ..]: 2 us are what `@` asks first."""
    if a.dim() != 3 or a.is_cuda or a.dtype not in _NOTHING or a.shape[0] != b.shape[0]:
        return False
    return not torch._C._get_tracing_state() and torch._C._len_torch_dispatch_stack() == 0


def _is_wider(p: Tensor, scores: Tensor) -> bool:
    return not all(map(operator.le, p.shape, scores.shape))


def _mask(plan: Affine, params: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
    """What is added to the scaled scores, of the queries' dtype, or which keys are seen; None for nothing."""
    total: Tensor | None = None
    for n in plan.added:
        total = params[n].to(dtype) if total is None else total + params[n]
    if plan.hidden is None:
        return total
    hidden = params[plan.hidden]
    hidden = hidden if hidden.dtype == torch.bool else hidden != 0
    if total is None and not hidden.is_cuda:
        return hidden if plan.shown else ~hidden
    kept = torch.zeros((), dtype=dtype, device=hidden.device) if total is None else total
    nothing = torch.full((), -math.inf, dtype=dtype, device=hidden.device)
    return torch.where(hidden, *((kept, nothing) if plan.shown else (nothing, kept)))


def _sees(mask: Tensor) -> bool:
    """Whether every query surely sees a key: looked up on a CPU, where that is less work than what follows if not."""
    if mask.is_cuda or mask.numel() == 0 or torch._C._get_tracing_state():
        return False
    return bool(mask.any(-1).all()) if mask.dtype == torch.bool else float(mask.min()) > -math.inf


def _four(t: Tensor, lead: torch.Size) -> Tensor:
    """[.., a, b] as [rows, heads, a, b], its leading dimensions broadcast to `lead`."""
    if t.shape[:-2] != lead:
        t = t.expand(*lead, *t.shape[-2:])
    if len(lead) == 1:
        return t.unsqueeze(0)
    return t if len(lead) == 2 else t.reshape(-1, *lead[-1:], *t.shape[-2:]) if lead else t[None, None]


def attention_cuda(
    q: Tensor, k: Tensor, v: Tensor, score: str, params: Sequence[Tensor], unseen: str, as_queries: bool = False
) -> Tensor:
    """The same on a GPU: one kernel where it fits (`fits` of `halves` and of `triton`) and torch
    has none or a slower one. ``as_queries``: heads may lie beside each other in the result where they do in q, so that
    the layer after it need not copy them there."""
    wanted = unseen != "scores" and (not has_operator(affine(score)) or _short(q, k, v))
    if wanted and not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, *params))):
        from .halves import attention_halves
        from .triton import attention_triton

        y = attention_halves(q, k, v, score, params, unseen, as_queries) if q.shape[-2] > _FEW_QUERIES else None
        y = attention_triton(q, k, v, score, params, unseen) if y is None else y
        if y is not None:
            return y
    return attention_torch(q, k, v, score, params, unseen)


# Measured on an H100 in float32 without TF32, batches of 256 to 2048: torch's operator takes 17 times as long for 10
# queries and keys, 6 for 20, 1.2 (one head of 64) to 3 for 33 to 100, 1.5 to 2.5 for 200, 4 to 12 for single queries;
# on an H200 1.7 to 3.9 for 201 to 512, under masks by length 1.3 to 3.1, and 1.2 to 3.4 in 1 to 64 rows. Half
# precision, wider heads, longer histories and few queries of more than 200 keys are not measured: torch's own.
_LONGEST, _LONGEST_OF_FEW, _WIDEST = 512, 200, 64


def _short(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return q.dtype == torch.float32 and is_short(q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1])


def is_short(s: int, t: int, d: int, e: int) -> bool:
    """Whether a kernel beats torch's own operator in float32 on a GPU, of s queries and t keys, d and e wide."""
    longest = _LONGEST if s > _FEW_QUERIES else _LONGEST_OF_FEW
    return max(s, t) <= longest and max(d, e) <= _WIDEST


# Too few for the tiles of the kernel on halves. Device time on an H200 in us of Triton's and of that one, rows x heads
# x queries and keys x width: 2048 x 4 x 10 x 16 12 and 14, 1024 x 1 x 20 x 64 13 and 12, 2048 x 8 x 20 x 8 52 and 40,
# 2048 x 4 x 33 x 16 82 and 41, 1024 x 1 x 50 x 64 41 and 28, 2048 x 2 x 50 x 32 80 and 56, 2048 x 4 x 64 x 16 90 and
# 67, 1024 x 1 x 100 x 64 140 and 81, 1024 x 2 x 100 x 32 134 and 97, 1024 x 4 x 100 x 16 150 and 145, 1024 x 1 x 200 x
# 64 403 and 273, 512 x 2 x 200 x 32 194 and 170.
_FEW_QUERIES = 16


def attention(q: Tensor, k: Tensor, v: Tensor, score: str, params: Sequence[Tensor], unseen: str) -> Tensor:
    """y[.., s, e] = sum_t softmax_t(score(h)) v[.., t, e] with h = sum_d q[.., s, d] k[.., t, d]: the module's text.

    Raises AttentionError for operands that do not fit, EpilogueError for a text outside the language.
    """
    check_operands(q, k, v, params)
    run = attention_cuda if q.is_cuda else attention_torch
    return run(q, k, v, score, params, unseen)
