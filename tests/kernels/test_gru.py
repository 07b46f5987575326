"""recopt::gru and recopt::augru: the operators' contract, against torch.nn.GRU and a step-by-step reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recopt.hosts.fx_operators import AUGRU_OPERATOR, GRU_OPERATOR
from recopt.kernels.epilogue import EpilogueError
from recopt.kernels.gru import GruError, check_gru, gru

DIEN = "1.0 - p0 * sigmoid(h)"


def operands(batch: int, steps: int, width: int, hidden: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Seeded x, h0, wi, wh, bi, bh."""
    g = torch.Generator().manual_seed(batch)
    shapes = [(batch, steps, width), (batch, hidden), (3 * hidden, width), (3 * hidden, hidden), (3 * hidden,)]
    return [torch.randn(*s, generator=g, dtype=torch.float64).to(dtype) for s in (*shapes, shapes[-1])]


def reference(
    x: Tensor, h: Tensor, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor, after: bool, attention: Tensor | None
) -> Tensor:
    states = []
    (ur, uz, un), (cr, cz, cn) = wh.chunk(3), bh.chunk(3)
    for t in range(x.shape[1]):
        ar, az, an = (x[:, t] @ wi.T + bi).chunk(3, -1)
        r, z = torch.sigmoid(ar + h @ ur.T + cr), torch.sigmoid(az + h @ uz.T + cz)
        if attention is not None:
            z = 1 - attention[:, t, None] * z
        n = torch.tanh(an + (r * (h @ un.T + cn) if after else (r * h) @ un.T + cn))
        h = z * h + (1 - z) * n
        states.append(h)
    return torch.stack(states, 1)


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("batch", "steps", "width", "hidden"), [(1, 1, 1, 1), (3, 7, 5, 16), (13, 11, 31, 40)])
def test_against_the_reference(after: bool, gated: bool, batch: int, steps: int, width: int, hidden: int) -> None:
    x, h0, *weights = operands(batch, steps, width, hidden)
    attention = torch.rand(batch, steps, dtype=torch.float64) if gated else None
    extra = () if attention is None else (DIEN, [attention])
    torch.testing.assert_close(gru(x, h0, *weights, after, *extra), reference(x, h0, *weights, after, attention))
    zero = torch.zeros_like(h0)
    torch.testing.assert_close(gru(x, None, *weights, after, *extra), reference(x, zero, *weights, after, attention))


def test_gates_broadcast() -> None:
    x, h0, *weights = operands(3, 4, 5, 6)
    lengths, places = torch.tensor([[1], [4], [2]]), torch.arange(4.0)[None]
    y = gru(x, h0, *weights, False, "where(p1 < p0, sigmoid(h), 1.0)", [lengths, places])
    assert torch.equal(y[0, 0], y[0, 3]) and torch.equal(y[2, 1], y[2, 3]) and not torch.equal(y[1, 2], y[1, 3])


@pytest.mark.parametrize("after", [True, False])
def test_gradients(after: bool) -> None:
    """What needs a gradient gets one: nothing that it needs is written over."""
    x, h0, *weights = (t.requires_grad_() for t in operands(2, 3, 4, 5))
    attention = torch.rand(2, 3, dtype=torch.float64)
    found = torch.autograd.grad(gru(x, h0, *weights, after, DIEN, [attention]).sum(), [x, h0, *weights])
    exact = torch.autograd.grad(reference(x, h0, *weights, after, attention).sum(), [x, h0, *weights])
    for f, e in zip(found, exact, strict=True):
        torch.testing.assert_close(f, e)


def test_operands_stay_as_they_are() -> None:
    given = operands(3, 4, 5, 6)
    before = [t.clone() for t in given]
    x, h0, *weights = given
    gru(x, h0, *weights, False, DIEN, [torch.rand(3, 4, dtype=torch.float64)])
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


@pytest.mark.parametrize("after", [True, False])
def test_the_operators(after: bool) -> None:
    x, h0, *weights = operands(3, 4, 5, 6, torch.float32)
    torch.library.opcheck(GRU_OPERATOR, (x, h0, *weights, after), test_utils=("test_schema", "test_faketensor"))
    gates = [torch.rand(3, 4)]
    torch.library.opcheck(
        AUGRU_OPERATOR, (x, None, *weights, after, DIEN, gates), test_utils=("test_schema", "test_faketensor")
    )


def test_refusals() -> None:
    x, h0, wi, wh, bi, bh = operands(3, 4, 5, 6)
    with pytest.raises(GruError, match="do not fit"):
        check_gru(x, h0, wi[:, 1:], wh, bi, bh, "sigmoid(h)", ())
    with pytest.raises(GruError, match="0 gates"):
        check_gru(x, h0, wi, wh, bi, bh, DIEN, ())
    with pytest.raises(EpilogueError):
        check_gru(x, h0, wi, wh, bi, bh, "nope(h)", ())
