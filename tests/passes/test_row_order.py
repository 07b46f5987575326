"""Linears whose rows are turned before them and turned back behind them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import recopt

HEADS, WIDTH, STEPS = 2, 12, 5
Body = Callable[[nn.Linear, Tensor], Tensor]


def turned(x: Tensor) -> Tensor:
    """Heads [B, H, S, D] as rows [S * B, H * D], as `nn.MultiheadAttention` has them."""
    return x.permute(2, 0, 1, 3).reshape(-1, WIDTH)


def back(y: Tensor, batch: int) -> Tensor:
    return y.view(STEPS, batch, -1).transpose(1, 0)


REWRITTEN: dict[str, Body] = {
    "as attention": lambda f, x: back(f(turned(x)), x.shape[0]) + 1.0,
    "with an activation": lambda f, x: back(torch.relu(f(turned(x))), x.shape[0]).sin(),
    "columns turned too": lambda f, x: back(f(x.permute(2, 0, 3, 1).reshape(-1, WIDTH)), x.shape[0]).sum(1),
    "rows that end in order": lambda f, x: (back(f(turned(x)), x.shape[0]) * 2.0).flatten(1),
}
KEPT: dict[str, Body] = {
    "not turned back": lambda f, x: f(turned(x)).sin(),
    "rows are read elsewhere": lambda f, x: back(f(turned(x)), x.shape[0]) + turned(x).sum(),
    "the product is read elsewhere": lambda f, x: back(y := f(turned(x)), x.shape[0]) + y.amax(),
    "in order": lambda f, x: f(x.transpose(1, 2).reshape(-1, WIDTH)).view(-1, STEPS, 8).sin(),
}


class Model(nn.Module):
    """A body over a linear of its own."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body, self.linear = body, nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.linear, x)


@pytest.mark.parametrize("static", [False, True], ids=["any batch", "a batch of as many as steps"])
@pytest.mark.parametrize(("name", "rewritten"), [*((n, True) for n in REWRITTEN), *((n, False) for n in KEPT)])
def test_rows_stay_as_they_lie(name: str, rewritten: bool, static: bool) -> None:
    model = Model((REWRITTEN if rewritten else KEPT)[name]).eval()
    dynamic = None if static else ({0: torch.export.Dim("batch")},)
    batch = STEPS if static else 3
    example = torch.randn(batch, HEADS, STEPS, WIDTH // HEADS)
    result = recopt.optimize(torch.export.export(model, (example,), dynamic_shapes=dynamic))
    assert not result.report.undone
    turns = [r for r in result.report.rewrites if r.operator == "turn"]
    assert len(turns) == rewritten
    for rows in (batch,) if static else (1, 3, STEPS, 7):
        x = torch.randn(rows, HEADS, STEPS, WIDTH // HEADS)
        torch.testing.assert_close(result(x), model(x))
