"""The four example models through `recopt.optimize`, as `make demo` has them: what is fused, and the same numbers."""

from __future__ import annotations

import importlib

import pytest
import torch

import recopt

FUSED = {
    "wdl": {"embedding-bags": 2, "linear": 5},
    "din": {"target-attention": 1, "embedding-bags": 2, "linear": 3},
    "dien": {"embedding-bags": 2, "gru": 2, "linear": 3},
    "dlrm": {"embedding-bags": 1, "linear": 8},
}


@pytest.mark.parametrize("name", FUSED)
def test_torch(name: str) -> None:
    example = importlib.import_module(f"examples.{name}")
    module = example.model(small=True)
    fast = recopt.optimize(module, example.inputs(4), dynamic_shapes=example.dynamic_shapes())
    counts = fast.report.counts()
    assert {pattern: counts.get(pattern) for pattern in FUSED[name]} == FUSED[name]
    assert not fast.report.undone
    for batch in (1, 3):
        inputs = example.inputs(batch)
        with torch.no_grad():
            torch.testing.assert_close(fast(*inputs), module(*inputs))
