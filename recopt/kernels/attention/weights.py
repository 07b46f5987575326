"""recopt::attention_weights: y[.., t] = softmax_t(score(sum_d q[.., d] k[.., t, d])), one query a row.

What an average weighs by, where something else than an average needs it: the gates of DIEN's AUGRU, say. ``score`` is a
text in the language of ``epilogue.py`` over ``h``, the product, and ``p0 .. pm``, which broadcast to [.., T].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from ..devices import device_of, starts_early
from ..epilogue import compile_epilogue
from ..launching import TritonLaunch, early_options, planned
from ..leading import two_counters
from . import AttentionError

MAX_SIZE = 1 << 14  # keys times width that a program holds
FEW_ROWS = 132  # up to which each has a processor of its own


def check_weights(q: Tensor, k: Tensor, params: Sequence[Tensor]) -> tuple[torch.SymInt | int, ...]:
    """The shape of the result. Raises AttentionError unless q is [.., D] and k [.., T, D], of one dtype, leading
    dimensions broadcast, and the params have the rank of [.., T]."""
    if q.dim() < 1 or k.dim() != q.dim() + 1 or any(p.dim() != q.dim() for p in params):
        raise AttentionError(f"queries of rank {q.dim()}, keys of rank {k.dim()}, masks of {[p.dim() for p in params]}")
    if q.dtype != k.dtype or bool(q.shape[-1] != k.shape[-1]):
        raise AttentionError(f"queries {q.dtype} {tuple(q.shape)} and keys {k.dtype} {tuple(k.shape)} do not fit")
    return (*_lead(q, k), k.shape[-2])


def _lead(q: Tensor, k: Tensor) -> torch.Size:
    if q.shape[:-1] == k.shape[:-2]:
        return q.shape[:-1]
    return torch.broadcast_shapes(q.shape[:-1], k.shape[:-2])  # type: ignore[no-any-return,no-untyped-call]  # torch gives it no types


def weights_torch(q: Tensor, k: Tensor, score: str, params: Sequence[Tensor], unseen: str) -> Tensor:
    """`recopt::attention_weights` in torch's operators. `unseen` says what becomes of a row whose scores are all -inf:
    "nan", as a softmax gives, "zero", or "clean": every weight that is NaN counts 0."""
    h = torch.matmul(k, q.unsqueeze(-1)).squeeze(-1)
    scores = compile_epilogue(score).apply(h if h.dtype in (torch.float32, torch.float64) else h.float(), params)
    weights = torch.softmax(scores, -1)
    if unseen == "zero":
        weights = weights.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)
    elif unseen == "clean":
        weights = weights.masked_fill(weights.isnan(), 0.0)
    return weights.to(q.dtype)


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def is_held(keys: int, width: int) -> bool:
    """Whether a program holds so many keys of a width."""
    return _power(keys) * max(16, _power(width)) <= MAX_SIZE


def fits(q: Tensor, k: Tensor, params: Sequence[Tensor]) -> bool:
    """Whether the kernel takes these operands: float32, nothing empty, few keys (`is_held`)."""
    return (
        q.dtype == k.dtype == torch.float32
        and min(*q.shape, *k.shape) > 0
        and is_held(k.shape[-2], k.shape[-1])
        and not any(p.dtype == torch.float64 for p in params)
    )


_Plan = Callable[..., Tensor] | None
_plans: dict[Hashable, _Plan] = {}


def weights_triton(q: Tensor, k: Tensor, score: str, params: Sequence[Tensor], unseen: str) -> Tensor | None:
    """`recopt::attention_weights` in one launch, early on Hopper. None where the operands do not fit the kernel
    (`fits`), or where their leading dimensions take more than two counters."""
    key = (
        score, unseen, q.device.index,
        tuple((t.shape, t.stride(), t.dtype, t.data_ptr() % 16) for t in (q, k, *params)),
    )  # fmt: skip
    plan = planned(_plans, key, lambda: _bind(q, k, score, params, unseen))
    if plan is None:
        return None
    with device_of(q):
        return plan(q, k, params)


def _bind(q: Tensor, k: Tensor, score: str, params: Sequence[Tensor], unseen: str) -> _Plan:
    from ..target_attention.triton import plain
    from .kernels import weights_kernel

    if not fits(q, k, params):
        return None
    lead, (t, d) = _lead(q, k), k.shape[-2:]
    counters = two_counters(lead, [(q, 1), (k, 2), *((p, 1) for p in params)])
    if counters is None:
        return None
    (_, inner), (q_steps, k_steps, *of_marks) = counters
    marks = tuple((*at, 0, 0 if p.shape[-1] == 1 else p.stride(-1)) for p, at in zip(params, of_marks, strict=True))
    rows, keys, width = math.prod(lead), _power(t), max(16, _power(d))
    each = max(1, 2048 // (keys * width))
    early = starts_early(q.device)
    # On an H200 2048 and 256 rows of 50 x 128 take 2 warps 15.7 and 2.8 us, 8 warps 18.6 and 3.0; one row 1.8 and 1.7.
    warps = min(8, max(1, each * keys * width // (1024 if rows <= FEW_ROWS else 4096)))
    launch = TritonLaunch(weights_kernel, (-(-rows // each), 1, 1), num_warps=warps, **early_options(early))
    function = compile_epilogue(score).triton_function()
    steps = (*q_steps, q.stride(-1)), (*k_steps, k.stride(-2), k.stride(-1))
    tail = (marks, *steps, inner, rows, t, d, function, unseen, each, keys, width, early)

    def run(q: Tensor, k: Tensor, params: Sequence[Tensor]) -> Tensor:
        out = torch.empty((*lead, t), dtype=q.dtype, device=q.device)
        launch(q, k, out, tuple(map(plain, params)), *tail)
        return out

    return run


def weights_call(q: Tensor, k: Tensor, score: str, params: Sequence[Tensor], unseen: str) -> Tensor:
    """`recopt::attention_weights` of operands that are known to fit: one kernel where it takes them (`fits`)."""
    if q.is_cuda and not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, *params))):
        y = weights_triton(q, k, score, params, unseen)
        if y is not None:
            return y
    return weights_torch(q, k, score, params, unseen)


def attention_weights(q: Tensor, k: Tensor, score: str, params: Sequence[Tensor], unseen: str) -> Tensor:
    """y[.., t] = softmax_t(score(h)) with h = sum_d q[.., d] k[.., t, d]: the module's text.

    Raises AttentionError for operands that do not fit, EpilogueError for a text outside the language.
    """
    check_weights(q, k, params)
    return weights_call(q, k, score, params, unseen)
