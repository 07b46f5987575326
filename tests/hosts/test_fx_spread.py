"""A module's embedding bags take the dimensions of their ids as they are: the host's reshapes are not called."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn

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
