"""Layout, hashes, buckets and pointwise chains between inputs and layers, each several launches as written."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[[Tensor, Tensor], object]
EDGES = torch.tensor([-1.5, -0.5, 0.0, 0.25, 0.25, 1.0, 2.5])
MANY = torch.linspace(-2.0, 2.0, 50)
TABLE = torch.arange(40, dtype=torch.float32).flip(0)
ORDER = torch.tensor([3, 0, 5, 1])
LARGEST = 2**63 - 1


def inputs(batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x [B, 6] and ids [B, 6], what is special among them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 6, generator=g) * 2
    ids = torch.randint(-(2**62), 2**62, (batch, 6), generator=g)
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 0.25])
    whole = torch.tensor([LARGEST, -LARGEST - 1, -1, 0, 1, -7])
    if batch > 1:
        x[1], ids[1] = special, whole
    return x, ids


class Module(nn.Module):
    """A function as a module, its constants as buffers."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, ids: Tensor) -> object:
        return self.function(x, ids)


def _columns(x: Tensor, ids: Tensor) -> Tensor:
    sizes = (2, 3, 1000, 64, 2**40 + 1, 2**62 + 1)
    return torch.stack([(ids[:, i] * (31 + i) + i) % n for i, n in enumerate(sizes)], 1)


def _mixed(x: Tensor, ids: Tensor) -> Tensor:
    # Of -0.0 and 0.0 torch's clamp gives the one on a CPU and the other on a GPU, so the bound is neither.
    return torch.cat([torch.log1p(x.clamp(min=-0.5)), x[:, 1:3] * 2, (ids % 7).float(), x.flip(1)[:, ::2]], 1)


def _buckets(x: Tensor, ids: Tensor) -> Tensor:
    return torch.stack([torch.bucketize(x[:, i].contiguous(), EDGES + 0.1 * i, right=i % 2 == 0) for i in range(6)], 1)


def _indicators(x: Tensor, ids: Tensor) -> Tensor:
    return F.one_hot(torch.bucketize(x, EDGES), 8).to(x.dtype).flatten(1)


def _narrow(x: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    narrow = ids.to(torch.int32)
    small = (narrow >> 3).to(torch.int16)
    return narrow * 77 - (narrow & 12), small, (small // 3).to(torch.int8) + 1, (ids.to(torch.uint8) * 3) ^ 5


def _wide(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    d = x.double()
    return (d * 1.5 - 0.1).clamp(max=2.0), torch.where(d > 0, d, d / 3)


def _half(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    h, b = x.half(), x.bfloat16()
    return torch.cat([h.flip(1), (h * 0.1 + 1).relu()], 1), torch.stack([b, -b], 1)


def _space(x: Tensor, ids: Tensor) -> Tensor:
    y = (x * 2).reshape(-1, 2, 3).transpose(1, 2)
    return torch.cat([y[:, 1:], y[:, :1]], 1).reshape(-1, 6).roll(2, 1)


def _limits(x: Tensor, ids: Tensor) -> Tensor:
    parts = [
        F.hardtanh(x, -0.5, 1.5),
        F.relu6(x * 4 + 0.5),
        F.leaky_relu(x, 0.2),
        F.threshold(x, 0.25, -1.0),
        torch.frac(x),
    ]
    return torch.cat([*parts, torch.round(x, decimals=2), torch.sgn(x)], 1)


def _truths(x: Tensor, ids: Tensor) -> Tensor:
    few = torch.tensor([1, -7, LARGEST, 3])
    rows = torch.stack([(x > 1).any(1), torch.isfinite(x).all(1), (ids[:, :3] != 0).all(-1)], 1)
    counts = torch.count_nonzero(ids % 3, 1).unsqueeze(1)
    listed = torch.isin(ids % 8, few), torch.isin(ids, few, invert=True)
    return torch.cat([*listed, rows, counts, torch.cumsum(ids % 3 == 0, 1)], 1)


def _bits(x: Tensor, ids: Tensor) -> Tensor:
    by = torch.tensor([0, 5, 63, 64, -1, 100])
    narrow = ids.to(torch.int32)
    parts = [ids >> by, ids << by, narrow >> by.to(torch.int32), (ids.unsqueeze(-1) >> torch.arange(9)).flatten(1) & 1]
    return torch.cat(parts, 1)


def _written(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    hot = x.new_zeros(ids.shape[0], 9).scatter(1, ids[:, :4] % 9, 2.5)
    return hot * 2 - 1, torch.scatter_add(ids, 1, ids[:, 2:] % 6, ids[:, 1:] + 1)


CASES: dict[str, Function] = {
    "columns hashed, each by its own size": _columns,
    "pieces of many kinds joined": _mixed,
    "columns in buckets of their own": _buckets,
    "indicators of buckets": _indicators,
    "a bucket of many": lambda x, ids: torch.searchsorted(MANY, x, side="right") * 2,
    "narrow integers": _narrow,
    "double": _wide,
    "half precision": _half,
    "shuffles": _space,
    "python's modulo by a negative number": lambda x, ids: (ids % -13) + 1,
    "modulo of columns": lambda x, ids: ids[:, :3] % (ids[:, 3:] | 1),
    "fmod": lambda x, ids: torch.fmod(ids + 1, 17),
    "floor division": lambda x, ids: (ids // 9) - (ids // -9),
    "division toward zero": lambda x, ids: torch.div(ids + 3, 10, rounding_mode="trunc"),
    "mixed bits": lambda x, ids: ((ids ^ (ids >> 33)) * -49064778989728563) ^ ((ids << 5) | 3),
    "crossed columns": lambda x, ids: ((ids[:, :1] * 1000003 + ids[:, 1:]) % 997).float(),
    "comparisons and truth values": lambda x, ids: (x > 0.1) & ~(ids == 3) | torch.isnan(x),
    "masks": lambda x, ids: x.masked_fill((ids % 3 == 0) | (ids * 641 % 641 != 0), torch.nan).clamp(-10, 10),
    "a condition along another axis": lambda x, ids: torch.where((ids[:, :1] > 0), x, torch.zeros_like(x)) * 0.5,
    "constant columns": lambda x, ids: (x[:, ORDER] + 1)[:, [2, 0]],
    "small tables at computed places": lambda x, ids: torch.stack(
        [TABLE[ids & 31], TABLE[ids.clamp(-1, 38) + 1], TABLE[torch.bucketize(x, EDGES).clamp(1, 6) - 1 + (ids > 3)]], 1
    ),
    "a small table": lambda x, ids: TABLE[ids % 40] * x,
    "one-hot by comparison": lambda x, ids: ((ids % 5).unsqueeze(-1) == torch.arange(5)).float().sum(1),
    "multi-hot": lambda x, ids: F.one_hot(ids % 5, 5).amax(1).to(x.dtype),
    "sums of few": lambda x, ids: torch.cat(
        [x.round().sum(1, keepdim=True), (ids % 9).sum(1, keepdim=True).float()], 1
    ),
    "largest of few": lambda x, ids: torch.stack([x.amax(1), x.amin(1), x.max(1).values, x.prod(1)], 1),
    "padded and cut": lambda x, ids: F.pad(x * 2, (1, 2))[:, 2:8],
    "stacked": lambda x, ids: torch.stack([x, x.abs(), -x], 2).flatten(1),
    "split and joined": lambda x, ids: torch.cat([c + n for n, c in enumerate(reversed(x.split(2, 1)))], 1),
    "expanded": lambda x, ids: (x.unsqueeze(1).expand(-1, 4, -1) * torch.arange(1.0, 5.0).unsqueeze(1) + 1).flatten(1),
    "casts": lambda x, ids: torch.nan_to_num(x, 0.0, 9.0, -9.0).to(torch.int64).to(torch.float32) + (x > 0),
    "roots and signs": lambda x, ids: torch.cat([torch.sqrt(x.abs()), x.ceil(), x.floor(), torch.round(x)], 1),
    "limits": _limits,
    "curves": lambda x, ids: torch.cat([F.silu(x), torch.logit(x, 0.01)], 1),
    "truths of few": _truths,
    "shifts by columns": _bits,
    "written to places": _written,
    "every pair": lambda x, ids: torch.einsum("bi,bj->bij", x, x + 1)[:, [1, 2, 2], [0, 0, 1]] - 1,
    "normalised": lambda x, ids: ((x - EDGES[:6]) / (MANY[:6] + 3)).reciprocal(),
}
