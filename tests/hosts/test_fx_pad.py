"""Many rows are padded by a concat, with the elements that torch's operator makes."""

import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import recopt


@pytest.mark.parametrize(
    ("widths", "value", "dtype"),
    [
        ((0, 0, 1, 0), 0.0, torch.float32),
        ((0, 0, 0, 2), float("-inf"), torch.float64),
        ((0, 0, 0, 1), 2.0, torch.int32),
        ((0, 2), 1.5, torch.float32),
        ((0, 0, 1, 1), 0.0, torch.float32),
    ],
)
def test_padded(widths: tuple[int, ...], value: float, dtype: torch.dtype) -> None:
    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.pad(x, widths, value=value)

    padded = Padded()
    x = torch.randn(300, 20, 16).mul(4).to(dtype)
    fast = recopt.optimize(padded, (x[:3],))
    again = torch.load(_saved(fast.model), weights_only=False)
    seen = torch.jit.trace(fast.model, (x[:3],), check_trace=False)
    for rows in (x, x[:3], x[:0], x[::2]):
        for model in (fast.model, again, seen):
            assert torch.equal(model(rows), padded(rows))
    assert torch.equal(torch.export.export(fast.model, (x,)).module()(x), padded(x))


def _saved(model: torch.nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file
