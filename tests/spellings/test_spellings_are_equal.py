"""Every spelling computes what its reference does; patterns/test_linear.py has the roads into the engine."""

from __future__ import annotations

import pytest
import torch

from .export import BATCH
from .linear import SPELLINGS


@pytest.mark.parametrize("name", SPELLINGS)
def test_eager(name: str) -> None:
    case = SPELLINGS[name]
    module, reference = case.module(), case.reference().double()
    for batch in (1, 3, BATCH):
        args = case.inputs(batch)
        with torch.no_grad():
            torch.testing.assert_close(module(*args), reference(*(arg.double() for arg in args)).float())
