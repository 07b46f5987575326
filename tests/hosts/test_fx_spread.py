"""A module's embedding bags take the dimensions of their ids as they are: the host's reshapes are not called."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import recopt
from recopt.hosts import fx_operators, fx_spread


class Sequence(nn.Module):
    """Rows of a masked sequence and where they stand, and the mean of several a step."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.tags = nn.Embedding(31, 6), nn.Embedding(17, 3)
        self.places = nn.Parameter(torch.randn(5, 6))

    def forward(self, ids: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
        shown = (ids >= 0).unsqueeze(-1)
        several = self.tags(tags) * (tags != 2).unsqueeze(-1)
        return self.items(ids.clamp(min=0)) * shown + self.places, several.sum(2)


def test_dimensions_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Sequence().eval()
    args = torch.randint(-1, 31, (4, 5)), torch.randint(0, 17, (4, 5, 3))
    fast = recopt.optimize(model, args, target="cpu")
    assert [r.pattern for r in fast.report.rewrites] == ["embedding-bags"] * 2
    functions = [n.target for n in fast.model.graph.nodes if n.op == "call_function"]
    assert functions == [fx_spread.embedding_bags_spread] * 2
    for program in (fast.model, pickle.loads(pickle.dumps(fast.model))):
        for batch in (1, 7):
            again = torch.randint(-1, 31, (batch, 5)), torch.randint(0, 17, (batch, 5, 3))
            torch.testing.assert_close(program(*again), model(*again))
    with pytest.raises(IndexError):
        fast(args[0] + 1000, args[1])
    exported = torch.export.export(fast.model, args)  # where tensors stand for others the operator is called
    torch.testing.assert_close(exported.module()(*args), model(*args))
    compiled = torch.compile(fast.model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*args), model(*args))
    monkeypatch.setattr(fx_operators, "small", lambda *_: None)
    torch.testing.assert_close(fast.model(*args), model(*args))


class Below(nn.Module):
    """Rows of a stacked table and numbers times their own rows, one below the other."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.rows = nn.Parameter(torch.randn(30, 6)), nn.Parameter(torch.randn(3, 6))
        self.register_buffer("first", torch.tensor([0, 7, 12, 20]))

    def forward(self, embedding_bags_call: Tensor, x: Tensor) -> Tensor:
        return torch.cat([self.table[embedding_bags_call + self.first], x.unsqueeze(2) * self.rows], 1)


def test_rows_below_each_other_are_left_apart() -> None:
    model, args = Below().eval(), (torch.randint(0, 7, (4, 4)), torch.randn(4, 3))
    fast = recopt.optimize(model, args, target="cpu")
    (call,) = fast.model.graph.find_nodes(op="call_function", target=fx_spread.embedding_bags_spread)
    assert call.args[-1] == 7 and not fast.model.graph.find_nodes(op="call_function", target=torch.reshape)
    for batch in (1, 70):
        again = torch.randint(0, 5, (batch, 4)), torch.randn(batch, 3)
        for call in (fast.model, fast.model.forward):
            torch.testing.assert_close(call(*again), model(*again))
    with pytest.raises(IndexError):
        fast(args[0] + 30, args[1])


def test_modes_see_the_operator() -> None:
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    args = torch.randint(0, 7, (4, 4)), torch.randn(4, 3)
    fast = recopt.optimize(Below().eval(), args, target="cpu")
    with Watch():
        fast(*args)
    assert "recopt.embedding_bags.default" in seen
