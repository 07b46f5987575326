"""One-hots that become floating-point numbers in torch on a CPU: rows of a table."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import recopt


class Form(nn.Module):
    def __init__(self, form: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.form = form

    def forward(self, ids: Tensor) -> object:
        return self.form(ids)


FORMS: dict[str, tuple[Callable[[Tensor], object], bool]] = {
    "flattened": (lambda i: F.one_hot(i, 8).flatten(1).to(torch.float32), True),
    "of one table": (lambda i: F.one_hot(i, 8).float() + F.one_hot(i.flip(1), 8).float(), True),
    "float": (lambda i: F.one_hot(i, 8).float() * 2, True),
    "turned": (lambda i: F.one_hot(i[:, 0], 8).unsqueeze(1).transpose(1, 2).to(torch.float64), True),
    "read as whole numbers too": (lambda i: (hot := F.one_hot(i, 8), hot.float()), False),
    "of whole numbers": (lambda i: F.one_hot(i, 8).to(torch.int32), False),
    "of many labels": (lambda i: F.one_hot(i, 5000).float(), False),
}


@pytest.mark.parametrize("name", FORMS)
def test_one_hots_are_looked_up(name: str) -> None:
    form, looked_up = FORMS[name]
    ids = torch.tensor([[0, 7, 3], [1, 1, 6], [5, 2, 0]])
    fast = recopt.optimize(Form(form), (ids,), target="cpu")
    assert ("aten.embedding.default" in [n.op for n in fast.host.nodes]) == looked_up and not fast.report.undone
    assert len([name for name in fast.model.state_dict() if name.endswith("_labels")]) == looked_up
    for batch in (ids, ids[:1], ids[:0]):
        torch.testing.assert_close(fast(batch), form(batch), rtol=0, atol=0)
    if looked_up:
        for outside in (8, -1):
            with pytest.raises((IndexError, RuntimeError)):
                fast(torch.full_like(ids, outside))
