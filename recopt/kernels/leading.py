"""Leading dimensions that a kernel's operands share, as at most two counters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Steps = tuple[int, int]


def two_counters(lead: Sequence[int], operands: Sequence[tuple[Tensor, int]]) -> tuple[Steps, list[Steps]] | None:
    """Dimensions ``lead`` as (outer, inner) sizes, and each operand's steps along them; None if it takes more than two.

    An operand is a tensor and how many trailing dimensions it has beyond the leading ones, which broadcast to ``lead``:
    a step of 0 where it is shared.
    """
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in operands]
    for at, size in enumerate(lead):
        if size == 1:
            continue
        here = [_step(t, at - (len(lead) - (t.dim() - own)), size) for t, own in operands]
        merges = bool(sizes) and all(s[-1] == h * size for s, h in zip(steps, here, strict=True))
        if merges:
            sizes[-1] *= size
        else:
            sizes.append(size)
        for s, h in zip(steps, here, strict=True):
            if merges:
                s[-1] = h
            else:
                s.append(h)
    if len(sizes) > 2:
        return None
    pad = 2 - len(sizes)
    outer, inner = [1] * pad + sizes
    return (outer, inner), [((*[0] * pad, *s)[0], (*[0] * pad, *s)[1]) for s in steps]


def _step(t: Tensor, at: int, size: int) -> int:
    return t.stride(at) if at >= 0 and t.shape[at] == size else 0
