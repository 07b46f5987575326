"""What the lines that ``small`` writes call besides torch's operators."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_FILLED = 5 << 10  # values up to which masked_fill_ is the fastest way to clear some rows
with torch.inference_mode(False):
    _ONE = torch.tensor(1, dtype=torch.int32)  # a number beside a tensor would become one at every call: 1 us
FEW = 32  # ids up to which rows are added as fast as by embedding_bag, which takes another 1 to 2 us to call


def _columns(x: Tensor, firsts: tuple[int, ...], rank: int) -> Sequence[Tensor]:
    if x.dim() == rank:
        return [x] * len(firsts)
    if x.size(-1) > 2 * len(firsts):
        return [x.select(-1, n) for n in firsts]
    whole = x.unbind(-1)
    return whole if firsts == tuple(range(len(whole))) else [whole[n] for n in firsts]


def _wrapped(x: Tensor, table: Tensor) -> Tensor:
    return torch.where(x < 0, x + table.size(0), x)


def held(table: Tensor) -> Tensor:
    """A table as embedding_bag reads it: of a parameter it keeps what gradients take, asked for or not, 5.3 us for
    2.5."""
    return table if torch.is_grad_enabled() else table.detach()


@functools.lru_cache(maxsize=256)
def even(ids: int, count: int, dtype: torch.dtype) -> Tensor:
    """Bounds of bags of ``count`` ids: to make them anew is a tenth of a small bag's time."""
    with torch.inference_mode(False):
        return torch.arange(0, ids, count, dtype=dtype)


def _bags(table: Tensor, x: Tensor, count: int, w: Tensor | None) -> Tensor:
    """Sums of the rows of ids [*S, count], times weights where there are any: [*S, D]. 1.15 times as fast as reading
    the rows and adding them."""
    flat = x.reshape(-1)
    out = torch.embedding_bag(held(table), flat, even(flat.size(0), count, flat.dtype), False, 0, False, w, False)[0]
    return out if x.dim() == 2 else out.view(*x.shape[:-1], table.size(1))


def _cleared(rows: Tensor, dead: Tensor) -> Tensor:
    """Rows [*S, D], zeros where `dead` [*S]."""
    # masked_fill_ takes each value by itself under a mask that is broadcast: 10 us for 7 where half of 256 x 5 rows of
    # 6 are dead, 3 times as long for 2048 x 5 rows of 64
    if rows.numel() <= _FILLED or rows.requires_grad or rows.dtype != torch.float32:
        return rows.masked_fill_(dead.unsqueeze(-1), 0)
    rows.view(torch.int32).bitwise_and_(dead.to(torch.int32).sub_(_ONE).unsqueeze(-1))  # times 0 leaves inf and nan
    return rows


def _wide(x: Tensor) -> Tensor:
    """Numbers to divide by: at least float32."""
    return x if x.dtype == torch.float32 or x.dtype == torch.float64 else x.float()


CALLS: dict[str, Any] = {
    "bags": _bags, "cat": torch.cat, "cleared": _cleared, "columns": _columns, "embedding": torch.embedding,
    "embedding_bag": torch.embedding_bag, "even": even, "filled": _FILLED, "float32": torch.float32,
    "held": held, "stack": torch.stack, "wide": _wide, "wrapped": _wrapped,
}  # fmt: skip
