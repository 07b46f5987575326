"""recopt::gru and recopt::augru on a CPU for many rows: oneDNN's products, which apply a gate's function themselves.

A step multiplies [x[t], h], which lie side by side, instead of adding a product of x[t] that was made before: those of
all steps are more bytes than a cache holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..epilogue import compile_epilogue

KEEP = "sigmoid(h)"  # the gate of a GRU

# FLOPs of a gate's product from which this is faster than `gru_torch`. Its time over that one's, one core of an AMD
# EPYC (torch 2.13, whose MKL multiplies half as fast there), 50 steps: AUGRU of 128 units over 128 inputs 0.76 at
# batch 64, 0.66 at 128, 0.56 at 256, 0.41 at 1024; GRU of 128 over 64 1.0, 0.79, 0.53, 0.42.
LARGE = 4_000_000


def fits(x: Tensor, wh: Tensor, others: Sequence[Tensor | None]) -> bool:
    """Whether operands are float32 without a gradient and a step's products are large."""
    hidden = wh.shape[1]
    if x.device.type != "cpu" or 2 * x.shape[0] * hidden * (hidden + x.shape[2]) < LARGE:
        return False
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):  # type: ignore[no-untyped-call]  # torch gives it no types
        return False
    grads = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, wh, *others))
    return not grads and x.dtype == torch.float32


def gru_cpu(
    x: Tensor, h0: Tensor | None, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor, after: bool,
    keep: str, gates: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """What `gru.gru_torch` computes of operands that fit; the result lies as [T, B, H]."""
    batch, steps, width, hidden = *x.shape, wh.shape[1]
    product, keeps = torch.ops.mkldnn._linear_pointwise, compile_epilogue(keep).apply_
    (wr, wz, wn), (br, bz, bn) = torch.cat([wi, wh], 1).chunk(3), (bi + bh).chunk(3)
    if after:
        wn, bn, un, cn = wi[2 * hidden :], bi[2 * hidden :], wh[2 * hidden :], bh[2 * hidden :]
    states = x.new_empty((steps, batch, hidden))
    beside = x.new_empty((batch, width + hidden))
    now, before = beside[:, :width], beside[:, width:]
    h = x.new_zeros((batch, hidden)) if h0 is None else h0.expand(batch, hidden)
    of_steps = [g.expand(batch, steps).t().unsqueeze(-1).unbind(0) for g in gates]
    for t in range(steps):
        now.copy_(x[:, t])
        before.copy_(h)
        r = product(beside, wr, br, "sigmoid", [], "")
        if keep == KEEP:
            z = product(beside, wz, bz, "sigmoid", [], "")
        else:
            z = keeps(product(beside, wz, bz, "none", [], ""), [p[t] for p in of_steps])
        if after:
            n = product(x[:, t], wn, bn, "none", [], "").addcmul_(r, product(h, un, cn, "none", [], ""))
            n = n.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)  # a quarter of the time of torch's tanh
        else:
            torch.mul(r, h, out=before)
            n = product(beside, wn, bn, "tanh", [], "")
        h = torch.lerp(n, h, z, out=states[t])
    return states.transpose(0, 1)
