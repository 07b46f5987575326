"""Every row of the ATen table, against torch: the term of each call evaluates to what the operator computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from torch import nn
from torch.utils import _pytree as pytree

from recopt.errors import LoadError
from recopt.hosts.base import Array, Value
from recopt.hosts.fx import FxHost
from recopt.hosts.fx_ops import resolve
from recopt.ir.evaluate import evaluate
from recopt.lift import Lifted, lift
from recopt.lift.aten import TABLE

from .aten_cases import CASES, REFUSED, B, Case

BY_OP: dict[str, list[Case]] = {}
for _case in CASES:
    BY_OP.setdefault(_case.op, []).append(_case)


# On sizes: what a graph does with the batch before it becomes a shape or a number.
ON_SIZES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "aten.sym_size.int": lambda x: x.new_zeros(x.shape[0], 2) + x.shape[0],
    "operator.add": lambda x: torch.arange(x.shape[0] + 2) + (x.shape[0] + 2),
    "operator.sub": lambda x: x * (20 - x.shape[0]),
    "operator.mul": lambda x: x.reshape(x.shape[0] * 7) * (x.shape[0] * 7),
    "operator.truediv": lambda x: x * (x.shape[0] / 2),
    "operator.floordiv": lambda x: x * (x.shape[0] // 2),
    "operator.mod": lambda x: x * (x.shape[0] % 4),
    "operator.neg": lambda x: x * -x.shape[0],
    "operator.pow": lambda x: x * x.shape[0] ** 2,
    "torch.sym_max": lambda x: x * torch.sym_max(x.shape[0], 4),
    "torch.sym_min": lambda x: x * torch.sym_min(x.shape[0], 4),
    "torch.sym_float": lambda x: x * torch.sym_float(x.shape[0]),
}


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.function(*tensors)


class Apply(nn.Module):
    """A call whose tensors are the module's inputs."""

    def __init__(self, target: Any, leaves: list[Any], spec: Any) -> None:
        super().__init__()
        self.target, self.leaves, self.spec = target, leaves, spec

    def forward(self, *tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        filled = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(filled, self.spec)
        return self.target(*args, **kwargs)


def values_of(lifted: Lifted, feeds: Mapping[Value, Array], symbols: Mapping[str, int]) -> Any:
    """The evaluator's leaves: inputs as fed, constants as stored, the rest by their definitions."""

    def leaf(value: Any) -> Array:
        if value in feeds:
            return feeds[value]
        if lifted.host.is_constant(value):
            return lifted.host.constant(value)
        return evaluate(lifted.definition[value], leaf, symbols)

    return leaf


def check(host: FxHost, op: str, module: nn.Module, tensors: list[torch.Tensor]) -> None:
    """Every output that the lift of `op` states, on the inputs `tensors`."""
    lifted = lift(host)
    node = next(n for n in host.nodes if n.op == op)
    assert node not in lifted.opaque, lifted.opaque[node]
    symbols: dict[str, int] = {}
    for value, tensor in zip(host.inputs, tensors, strict=True):
        for size, extent in zip(value.shape or (), tensor.shape, strict=True):
            if isinstance(size, sympy.Symbol):
                symbols[size.name] = extent
    feeds = dict(zip(host.inputs, (t.numpy() for t in tensors), strict=True))
    expected = pytree.tree_leaves(module(*tensors))
    assert node.outputs[0] in lifted.definition
    for value in node.outputs:
        if value not in lifted.definition:
            continue  # an output that the table leaves open, such as argmax
        want = expected[value.index].numpy()
        got = evaluate(lifted.definition[value], values_of(lifted, feeds, symbols), symbols)
        assert got.shape == want.shape
        if want.dtype.kind == "f":
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(got, want)


def capture(module: nn.Module, tensors: list[torch.Tensor]) -> FxHost:
    """The graph with the batch as one symbol, or for this batch alone where torch says that it holds for no other."""
    if not tensors:
        return FxHost.capture(module, ())
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if t.dim() and t.shape[0] == B else None for t in tensors)
    try:
        return FxHost.capture(module, tuple(tensors), (shapes,))
    except LoadError:
        return FxHost.capture(module, tuple(tensors), (tuple(None for _ in tensors),))


def larger(host: FxHost, tensors: list[torch.Tensor], batch: int) -> list[torch.Tensor] | None:
    """Inputs of another batch; None where the graph holds for one batch only."""
    dynamic = [bool(v.shape) and not isinstance(v.shape[0], int) for v in host.inputs]
    if not any(dynamic):
        return None
    return [torch.cat([t, t])[:batch] if wide else t for t, wide in zip(tensors, dynamic, strict=True)]


@pytest.mark.parametrize("op", sorted(BY_OP))
def test_term_is_what_torch_computes(op: str) -> None:
    for case in BY_OP[op]:
        leaves, spec = pytree.tree_flatten((case.args, case.kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        module = Apply(resolve(op), leaves, spec)
        host = capture(module, tensors)
        check(host, op, module, tensors)
        wide = larger(host, tensors, B + 2)
        if wide is not None:
            check(host, op, module, wide)


@pytest.mark.parametrize(("why", "case"), REFUSED, ids=[f"{c.op}-{why}" for why, c in REFUSED])
def test_what_cannot_be_stated_is_opaque(why: str, case: Case) -> None:
    leaves, spec = pytree.tree_flatten((case.args, case.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    host = FxHost.capture(Apply(resolve(case.op), leaves, spec), tuple(tensors), (tuple(None for _ in tensors),))
    reasons = [reason for node, reason in lift(host).opaque.items() if node.op == case.op]
    assert reasons and why in reasons[0]


@pytest.mark.parametrize("op", ON_SIZES)
def test_number_of_a_size(op: str) -> None:
    module, x = Function(ON_SIZES[op]), torch.randn(B, 7)
    host = capture(module, [x])
    assert any(n.op == op for n in host.nodes)
    for batch in (B, B + 4):
        given = torch.randn(batch, 7)
        lifted = lift(host)
        assert not lifted.opaque
        (size,) = (s for s in host.inputs[0].shape or () if isinstance(s, sympy.Symbol))
        symbols = {size.name: batch}
        got = evaluate(
            lifted.definition[host.outputs[0]], values_of(lifted, {host.inputs[0]: given.numpy()}, symbols), symbols
        )
        np.testing.assert_allclose(got, module(given).numpy(), rtol=1e-5, atol=1e-6)


def test_every_row_has_a_case() -> None:
    assert set(TABLE) == set(BY_OP) | set(ON_SIZES)
