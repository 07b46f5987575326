"""On CUDA a normalisation adds up the two values that it normalises the sum of, and only then."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm

import recopt

D = 24


class Normed(nn.Module):
    """A normalisation of what is made of x and y."""

    def __init__(self, spell: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.spell = spell
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, D))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.spell(x, y, self.gain)


ADDED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sum": lambda x, y, g: layer_norm(x + y, (D,), g, g),
    "rms": lambda x, y, g: rms_norm(y + x, (D,), g, 1e-6),
    "one of another": lambda x, y, g: layer_norm(layer_norm(x + y, (D,), g) + y, (D,), g),
    "a layer's": lambda x, y, g: layer_norm(torch.nn.functional.linear(y, g.outer(g)) + x, (D,), g, g),
}
LEFT: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "read again": lambda x, y, g: (x + y) + layer_norm(x + y, (D,), g),
    "scaled": lambda x, y, g: layer_norm(x + 2.0 * y, (D,), g),
    "spread": lambda x, y, g: layer_norm(x + y[:1], (D,), g),
    "turned": lambda x, y, g: layer_norm(x + y.flip(1), (D,), g),
    "three": lambda x, y, g: layer_norm(x + y + x.sin(), (D,), g),
}


@pytest.mark.parametrize("name", ADDED | LEFT)
def test_residuals(name: str) -> None:
    module = Normed((ADDED | LEFT)[name]).eval()
    fast = recopt.optimize(module, (torch.randn(4, 7, D), torch.randn(4, 7, D)), target="cuda")
    norms = [n for n in fast.host.nodes if "_norm" in n.op]
    assert fast.report.counts().get("join-residuals", 0) == (len(norms) if name in ADDED else 0), fast.report
    if name in ADDED:
        assert not [n for n in fast.host.nodes if n.op.startswith("aten.add")]
    for batch in (1, 5):
        x, y = torch.randn(2, batch, 7, D)
        torch.testing.assert_close(fast(x, y), module(x, y))


def test_a_cpu_is_left_alone() -> None:
    fast = recopt.optimize(Normed(ADDED["sum"]).eval(), (torch.randn(4, 7, D), torch.randn(4, 7, D)), target="cpu")
    assert "join-residuals" not in fast.report.counts()
