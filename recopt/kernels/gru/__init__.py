"""recopt::gru and recopt::augru: a recurrence of gated steps over a sequence, from its inputs to all of its states.

    r = sigmoid(Wr x[t] + bi_r + Ur h + bh_r)       z = keep(Wz x[t] + bi_z + Uz h + bh_z, gates[t])
    n = tanh(Wn x[t] + bi_n + r * (Un h + bh_n))    or, where not `after`,  tanh(Wn x[t] + bi_n + Un (r * h) + bh_n)
    h = z * h + (1 - z) * n

``wi`` [3H, K] and ``wh`` [3H, H] hold r, z and n one below the other, as ``torch.nn.GRU`` stores them. For a GRU
``keep`` is the sigmoid; for an AUGRU it is a text in the language of ``epilogue.py`` over ``h``, the pre-activation,
and ``p0..``, the ``gates``, which broadcast to [B, T]: ``1.0 - p0 * sigmoid(h)`` is the gate of DIEN, and a mask by
length one that is 1 where a step does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..epilogue import compile_epilogue
from . import native as gru_native
from .cpu import KEEP as KEEP
from .cpu import fits, gru_cpu

# Up to this batch torch.gru is used on a CPU. Its time over that of the steps below, one core, 50 steps of 64 to 128:
# 0.82 at batch 1, 0.90 at 4, 1.03 at 16, 0.96 at 32, 0.97 at 64, 1.09 at 256.
MAX_TORCH = 64


class GruError(ValueError):
    """Operands that do not fit each other."""


def check_gru(
    x: Tensor, h0: Tensor | None, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor, keep: str, gates: Sequence[Tensor]
) -> tuple[torch.SymInt | int, torch.SymInt | int, torch.SymInt | int]:
    """The shape [B, T, H] of the result. Raises GruError unless x is [B, T, K], h0 [B, H] and the others are as the
    module's text has them, EpilogueError for a text outside the language."""
    if compile_epilogue(keep).params != len(gates):
        raise GruError(f"{len(gates)} gates for {keep!r}")
    hidden = wh.shape[-1]
    fits = x.dim() == 3 and wi.dim() == wh.dim() == 2 and wi.shape[1] == x.shape[-1]
    fits = fits and all(t.shape[0] == 3 * hidden for t in (wi, wh, bi, bh)) and bi.dim() == bh.dim() == 1
    fits = fits and (h0 is None or (h0.dim() == 2 and h0.shape[-1] == hidden))
    if not fits or any(g.dim() != 2 for g in gates):
        shapes = [tuple(t.shape) for t in (x, h0, wi, wh, bi, bh, *gates) if t is not None]
        raise GruError(f"operands of shapes {shapes} do not fit each other")
    return x.shape[0], x.shape[1], hidden


def gru_torch(
    x: Tensor, h0: Tensor | None, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor, after: bool,
    keep: str = KEEP, gates: Sequence[Tensor] = (),
) -> Tensor:  # fmt: skip
    """`recopt::gru` and `recopt::augru` in torch's operators; shapes as in the module's text. The result lies as
    [T, B, H]."""
    batch, steps, hidden = x.shape[0], x.shape[1], wh.shape[1]
    h = x.new_zeros((batch, hidden)) if h0 is None else h0.expand(batch, hidden)
    if not steps:
        return h.unsqueeze(1)[:, :0]
    if after and keep == KEEP and (x.is_cuda or batch <= MAX_TORCH):
        h = h.contiguous().unsqueeze(0)
        states: Tensor = torch.gru(x, h, [wi, wh, bi, bh], True, 1, 0.0, False, False, True)[0]
        return states
    operands = [t for t in (x, h, wi, wh, bi, bh, *gates) if t.requires_grad]
    do, y = (_KEPT, None) if operands and torch.is_grad_enabled() else (_IN_PLACE, x.new_empty((steps, batch, hidden)))
    gate = compile_epilogue(keep)
    keeps = gate.apply if y is None else gate.apply_
    # The products of the inputs, of all steps at once; what is added to them in every step is added here. Gates apart:
    # at batch 1 and 16 a step is 1.2 and 1.1 times as fast as with r and z in one product, at 256 the same.
    inputs = x.transpose(0, 1)
    weights, of_state, (br, bz, bn) = wi.chunk(3), [w.t() for w in wh.chunk(3)], bh.chunk(3)
    added = [br, bz, torch.zeros_like(bn) if after else bn]
    biases = [b + c for b, c in zip(bi.chunk(3), added, strict=True)]
    ar, az, an = (F.linear(inputs, w, b).unbind(0) for w, b in zip(weights, biases, strict=True))
    ur, uz, un = of_state
    of_steps = [g.expand(batch, steps).t().unsqueeze(-1).unbind(0) for g in gates]
    found = []
    for t in range(steps):
        r = do.sigmoid(do.addmm(ar[t], h, ur))
        z = keeps(do.addmm(az[t], h, uz), [p[t] for p in of_steps])
        n = do.addcmul(an[t], r, torch.addmm(bn, h, un)) if after else do.addmm(an[t], do.mul(r, h), un)
        h = torch.lerp(do.tanh(n), h, z, out=None if y is None else y[t])
        found.append(h)
    return (torch.stack(found) if y is None else y).transpose(0, 1)


class _Step(NamedTuple):
    """The operators of a step: those that leave what a gradient needs, or those that write where they read."""

    addmm: Callable[..., Tensor]
    addcmul: Callable[..., Tensor]
    mul: Callable[..., Tensor]
    sigmoid: Callable[..., Tensor]
    tanh: Callable[..., Tensor]


_KEPT = _Step(Tensor.addmm, Tensor.addcmul, Tensor.mul, Tensor.sigmoid, Tensor.tanh)
_IN_PLACE = _Step(Tensor.addmm_, Tensor.addcmul_, Tensor.mul_, Tensor.sigmoid_, Tensor.tanh_)


def gru(
    x: Tensor, h0: Tensor | None, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor, after: bool,
    keep: str = KEEP, gates: Sequence[Tensor] = (),
) -> Tensor:  # fmt: skip
    """All states [B, T, H] of a recurrence over x [B, T, K] from h0 [B, H], zeros where it is None: see the module's
    text. Raises GruError for operands that do not fit, EpilogueError for a text outside the language."""
    check_gru(x, h0, wi, wh, bi, bh, keep, gates)
    return gru_call(x, h0, wi, wh, bi, bh, after, keep, gates)


def gru_call(
    x: Tensor, h0: Tensor | None, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor, after: bool,
    keep: str = KEEP, gates: Sequence[Tensor] = (),
) -> Tensor:  # fmt: skip
    """The same of operands that are known to fit: one kernel where they suit it (`cuda.fits`), on a CPU one call of
    C (`native.fits`) or oneDNN's products where they are large (`cpu.fits`), else torch's operators."""
    if x.is_cuda and not (torch.is_grad_enabled() and any(_needs_grad(x, h0, wi, wh, bi, bh, *gates))):
        from .cuda import gru_cuda

        y = gru_cuda(x, h0, wi, wh, bi, bh, after, keep, gates)
        if y is not None:
            return y
    if gru_native.fits(x, h0, wi, wh, bi, bh, keep, gates):
        return gru_native.gru_native(x, h0, wi, wh, bi, bh, after, keep, gates)
    if fits(x, wh, (h0, wi, bi, bh, *gates)):
        return gru_cpu(x, h0, wi, wh, bi, bh, after, keep, gates)
    return gru_torch(x, h0, wi, wh, bi, bh, after, keep, gates)


def _needs_grad(*operands: Tensor | None) -> Iterator[bool]:
    return (t.requires_grad for t in operands if t is not None)
