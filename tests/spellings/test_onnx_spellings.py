"""The hand-made ONNX models are valid, run in ONNX Runtime and compute what their reference does."""

from __future__ import annotations

import numpy as np
import onnx as onnx_package
import pytest
import torch

from . import onnx as spellings
from .export import run_onnx


@pytest.mark.parametrize("name", spellings.ONNX_SPELLINGS)
def test_spelling(name: str) -> None:
    model = spellings.ONNX_SPELLINGS[name]()
    onnx_package.checker.check_model(model, full_check=True)
    file = model.SerializeToString()
    for batch in (1, 3):
        x = spellings.inputs(model, batch)
        expected = spellings.reference(name, x).astype(np.float32)
        torch.testing.assert_close(run_onnx(file, (x,))[0], expected)


@pytest.mark.parametrize("name", spellings.ONNX_NEAR_MISSES)
def test_near_miss_runs(name: str) -> None:
    model = spellings.ONNX_NEAR_MISSES[name].model()
    onnx_package.checker.check_model(model, full_check=True)
    x = spellings.inputs(model, 3)
    shape = [dim.dim_value or 3 for dim in model.graph.output[0].type.tensor_type.shape.dim]
    assert list(run_onnx(model.SerializeToString(), (x,))[0].shape) == shape
