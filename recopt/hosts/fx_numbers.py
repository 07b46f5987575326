"""What a module need not make at every call: tensors of numbers (`x * 2` makes one, 0.5 to 2 us), and of nothing but
numbers and tensors that forward writes out (`arange(8) * torch.tensor(3)`).

A stored number is a CPU tensor without dimensions, whose type counts as little as a number's beside one that has some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from .fx_ops import is_opaque

NAME = "_numbers"
_LARGEST = 1 << 20  # bytes of a tensor that is stored, where the graph makes it again at every call
# Operators that take a tensor where the graph gives a number: the number's place.
_SECOND = (
    "add.Tensor sub.Tensor mul.Tensor div.Tensor div.Tensor_mode floor_divide.default remainder.Scalar fmod.Scalar"
    " eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar"
    " bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Scalar bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor"
    " __and__.Scalar __or__.Scalar __xor__.Scalar __lshift__.Scalar __rshift__.Scalar"
)
_NUMBERS = {f"aten.{name}": 1 for name in _SECOND.split()} | {"aten.where.ScalarOther": 2}


class Numbers(torch.nn.Module):
    """The tensors. They move to another device, numbers not even that, and never take another type."""

    def keep(self, tensor: Tensor) -> str:
        """The path, from the module that owns this one, of a tensor stored here."""
        key = (tensor.dtype, tensor.shape, tensor.device, repr(tensor.tolist()))
        name = self.names.setdefault(key, f"n{len(self.names)}")
        self.register_buffer(name, tensor, persistent=False)
        return f"{NAME}.{name}"

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[Any, str] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Numbers:
        for name, tensor in self._buffers.items():
            if tensor is not None and tensor.dim():
                self._buffers[name] = tensor.to(fn(tensor).device)
        return self


def with_tensors(node: fx.Node, args: tuple[Any, ...], graph: fx.Graph, numbers: Numbers) -> tuple[Any, ...]:
    """The arguments of a call with a number replaced by a stored tensor, where both mean the same."""
    place = _NUMBERS.get(str(node.target))
    if place is None or place >= len(args) or (tensor := _number(node.args[place - 1], args[place])) is None:
        return args
    return (*args[:place], graph.get_attr(numbers.keep(tensor)), *args[place + 1 :])


def _number(beside: object, value: object) -> Tensor | None:
    """A number as a tensor, where what stands beside it has dimensions and decides on the type."""
    x = beside.meta.get("val") if isinstance(beside, fx.Node) else None
    if not isinstance(x, Tensor) or not x.dim() or x.device.type != "cpu":
        return None
    if x.dtype.is_floating_point and type(value) in (int, float):
        narrow = torch.tensor(
            value, dtype=x.dtype
        )  # as the operator reads it, unless rounded: x may come in another type
        if narrow.item() == value or value != value:
            return narrow
        return torch.tensor(value, dtype=torch.float64) if type(value) is float else None
    exact = x.dtype == torch.int64 and type(value) is int and -(2**63) <= value < 2**63
    return torch.tensor(value) if exact else None


def made_of_numbers(graph: fx.Graph, constants: Mapping[fx.Node, Tensor]) -> dict[fx.Node, Tensor | None]:
    """The values that calls make of numbers and constants alone, None where they go into other such values only: where
    what reads them gives none of their memory to the caller. Constants are no weights and no buffers, which may be
    loaded anew."""
    known = {node: tensor for node, tensor in constants.items() if not tensor.requires_grad}
    views = set(known)  # of constants, which are no work
    made: dict[fx.Node, Tensor] = {}
    for node in graph.nodes:
        if _is_made(node) and all(n in known for n in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            with torch.no_grad():
                known[node] = made[node] = node.target(*args, **kwargs)
            if not _is_read(node) and not views.isdisjoint(node.all_input_nodes):
                views.add(node)
    found: dict[fx.Node, Tensor | None] = {}
    for node in reversed(made):
        if all(user in found for user in node.users):
            found[node] = None
        elif node not in views and all(user in found or _is_read(user) for user in node.users):
            found[node] = made[node]
    return found


def _is_made(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if node.op != "call_function" or is_opaque(node) or not isinstance(value, Tensor):
        return False
    sizes = [s for s in value.shape if isinstance(s, int)]
    return len(sizes) == value.dim() and math.prod(sizes) * value.element_size() <= _LARGEST


def _is_read(user: fx.Node) -> bool:
    """Whether a call gives a result of its own."""
    return isinstance(user.target, OpOverload) and not any(a.alias_info for a in user.target._schema.arguments)
