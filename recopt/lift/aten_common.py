"""What the tables of ATen's families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ..ir.tensor import Tensor
from .base import Result

Lift: TypeAlias = Callable[..., Result]


def named(names: str, function: Lift) -> dict[str, Lift]:
    """One function for several operators."""
    return {f"aten.{name}": function for name in names.split()}


def dim_of(t: Tensor, dim: int, extra: int = 0) -> int:
    """A dimension number, counted from the front."""
    return dim % max(len(t.dims) + extra, 1)
