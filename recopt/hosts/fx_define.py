"""How an operator of recopt becomes one of torch's, and when a module must call that."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch

R = TypeVar("R", torch.Tensor, list[torch.Tensor])


def define(name: str, schema: str, kernel: Callable[..., R], fake: Callable[..., R]) -> Callable[..., R]:
    """The `torch.library` operator `recopt::name`, which `kernel` computes on a CPU and on CUDA; `fake` gives shapes,
    types and layout of its results, and raises for operands that do not fit each other."""
    torch.library.define(f"recopt::{name}", schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(f"recopt::{name}", ("cpu", "cuda"), kernel)
    torch.library.register_fake(f"recopt::{name}", fake)
    return cast("Callable[..., R]", getattr(torch.ops.recopt, name).default)


def must_dispatch() -> bool:
    """Whether a tracer must see the operator: torch.compile, or a mode of the dispatcher."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
