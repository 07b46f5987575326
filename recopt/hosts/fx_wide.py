"""A torch graph in float64, whatever floats it is written in: what both it and its rewrite round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

NARROW = frozenset({torch.float16, torch.bfloat16, torch.float32})


def widened(value: Any) -> Any:
    """Float tensors as float64, and float64 for a narrower dtype; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.dtype in NARROW else value
    return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value


class Widened(fx.Interpreter):
    """Runs a graph with every float widened as soon as it is read or made."""

    def run_wide(self, args: Sequence[Any]) -> Any:
        """The outputs for the graph's inputs."""
        with torch.no_grad():
            return self.run(*pytree.tree_map(widened, list(args)), enable_io_processing=False)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return widened(super().get_attr(target, args, kwargs))

    def call_function(self, target: Callable[..., Any] | str, args: Any, kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map(widened, (args, kwargs))
        return pytree.tree_map(widened, super().call_function(target, args, kwargs))
