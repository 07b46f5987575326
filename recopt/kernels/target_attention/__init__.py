"""recopt::target_attention: a history averaged by scores that a small network gives each item beside the target.

    h1[.., t] = f1( Wq q + Wk k[t] + Wp (q * k[t]) + b1 ),   h2 = f2(W2 h1 + b2), ...,   s[t] = the last layer, one wide
    y[.., e]  = sum_t g(s)[t] v[t, e]                        g: a function of s and masks, or the softmax of one

A first layer over a concat of q, k, q - k, q * k is this: the concat is never made. ``text`` has the functions f1; f2;
..; g in the language of ``epilogue.py``; ``weights`` are Wq, Wk, Wp, b1 [N] and W2, b2, .. (a matrix that is absent is
of no elements), ``params`` the parameters of all functions one after the other.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..epilogue import Epilogue, compile_epilogue


class TargetAttentionError(ValueError):
    """Operands that do not fit each other."""


@dataclass(frozen=True)
class Network:
    """The functions of a text: one a layer, and the score's."""

    layers: tuple[Epilogue, ...]
    score: Epilogue

    @property
    def params(self) -> int:
        """How many parameters there are."""
        return sum(f.params for f in (*self.layers, self.score))


@functools.lru_cache(maxsize=256)
def parse_network(text: str) -> Network:
    """The functions of ``text``. Raises EpilogueError, TargetAttentionError."""
    functions = [compile_epilogue(part.strip()) for part in text.split(";")]
    if len(functions) < 2:
        raise TargetAttentionError(f"{text!r} needs a function for each layer and one for the score")
    return Network(tuple(functions[:-1]), functions[-1])


def needed(score: str) -> str | None:
    """A function that is 0 where ``score`` is the same whatever h is, and h elsewhere; None where no ``where`` over
    parameters alone says so."""
    found = _needed(ast.parse(score.strip() or "h", mode="eval").body)
    return None if found == "h" else found


def _needed(tree: ast.expr) -> str:
    if not _depends(tree):
        return "0.0"
    match tree:
        case ast.Call(func=ast.Name(id="where"), args=[condition, a, b]) if not _depends(condition):
            one, other = _needed(a), _needed(b)
            return "h" if one == other == "h" else f"where({ast.unparse(condition)}, {one}, {other})"
    return "h"


def _depends(tree: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "h" for node in ast.walk(tree))


def check_operands(
    q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor], params: Sequence[Tensor], text: str
) -> tuple[torch.SymInt | int, ...]:
    """The shape of the result. Raises TargetAttentionError unless q is [.., D], k [.., T, D], v [.., T, E], the leading
    dimensions of q those of the result, and weights and parameters are as many as the text needs."""
    network = parse_network(text)
    if len(weights) != 2 + 2 * len(network.layers) or len(params) != network.params:
        raise TargetAttentionError(f"{len(weights)} weights and {len(params)} parameters for {text!r}")
    fits = q.dim() >= 1 and k.dim() == v.dim() == q.dim() + 1
    fits = fits and bool(q.shape[-1] == k.shape[-1]) and bool(k.shape[-2] == v.shape[-2])
    matrices = [weights[0], weights[1], weights[2], *weights[4::2]]
    width = next((w.shape[0] for w in matrices[:3] if w.numel()), 0)
    for w in matrices[:3]:
        fits = fits and (w.numel() == 0 or tuple(w.shape) == (width, int(q.shape[-1])))
    for w in matrices[3:]:
        fits, width = fits and w.dim() == 2 and w.shape[1] == width, w.shape[0]
    if not fits or width != 1:
        shapes = [tuple(t.shape) for t in (q, k, v, *weights)]
        raise TargetAttentionError(f"operands of shapes {shapes} do not fit each other")
    return (*q.shape[:-1], v.shape[-1])


def target_attention_torch(
    q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor], params: Sequence[Tensor], text: str, softmax: bool
) -> Tensor:
    """`recopt::target_attention` in torch's operators; shapes as in the module's text."""
    network = parse_network(text)
    wq, wk, wp, b1 = weights[:4]
    # Each row has a matrix of its own, Wk + diag(q) Wp: a product of a quarter of the concat's width.
    own = wp * q.unsqueeze(-2) if wp.numel() else None
    if own is not None and wk.numel():
        own = own.add_(wk)
    h = k @ (wk.t() if own is None else own.transpose(-1, -2))
    c = (F.linear(q, wq, b1) if wq.numel() else b1.expand(*q.shape[:-1], -1)).unsqueeze(-2)
    h = h + c if own is None else h.add_(c)  # of a history that several rows share k has fewer rows than q
    at = 0
    for n, f in enumerate(network.layers):
        if n:
            h = F.linear(h, weights[2 + 2 * n], weights[3 + 2 * n])
        h = f.apply_(h, params[at : at + f.params])
        at += f.params
    s = network.score.apply_(h.squeeze(-1), params[at:])
    if softmax:
        s = torch.softmax(s, -1)
    return (s.unsqueeze(-2) @ v).squeeze(-2)


def target_attention_call(
    q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor], params: Sequence[Tensor], text: str, softmax: bool
) -> Tensor:
    """The same by what suits the operands, which are known to fit: on a GPU one kernel (`halves`, the faster, or
    `triton`), on a CPU one call of C (`cpu`), else torch's operators."""
    if not q.is_cuda:
        from .cpu import target_attention_cpu

        y = target_attention_cpu(q, k, v, weights, params, text, softmax)
    elif torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, *weights, *params)):
        y = None
    else:
        from .halves import target_attention_halves
        from .triton import target_attention_triton

        y = target_attention_halves(q, k, v, weights, params, text, softmax)
        if y is None:
            y = target_attention_triton(q, k, v, weights, params, text, softmax)
    return target_attention_torch(q, k, v, weights, params, text, softmax) if y is None else y


def target_attention(
    q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor], params: Sequence[Tensor], text: str, softmax: bool
) -> Tensor:
    """y[.., e] = sum_t g(s)[t] v[.., t, e], s from a network over q [.., D] and k [.., T, D]: see the module's text.

    Raises TargetAttentionError for operands that do not fit, EpilogueError for a text outside the language.
    """
    check_operands(q, k, v, weights, params, text)
    return target_attention_call(q, k, v, weights, params, text, softmax)
