"""Many small tables as one, in ONNX files: the same rows, and the same errors for ids that are in none."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import recopt
from recopt.passes import merge_tables

FIELDS, ROWS, DIM = 21, 11, 8


class Model(nn.Module):
    """Lookups side by side, beside dense columns, and a wide part of single weights."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.deep = nn.ModuleList(nn.Embedding(ROWS + n % 3, DIM) for n in range(FIELDS))
        self.wide = nn.ModuleList(nn.Embedding(ROWS + n % 3, 1) for n in range(FIELDS))
        self.shared = shared

    def forward(self, ids: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        deep = torch.cat([dense, *(table(ids[:, n]) for n, table in enumerate(self.deep))], 1)
        first = self.wide[0](ids[:, 0])
        wide = sum((table(ids[:, n]) for n, table in enumerate(self.wide) if n), first)
        return deep, wide + (dense[:, :1, None] * self.deep[3].weight).sum(2) if self.shared else wide


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(batch)
    return torch.randint(-ROWS, ROWS, (batch, FIELDS), generator=g), torch.rand(batch, 3, generator=g)


@functools.cache
def exported(shared: bool = False) -> onnx.ModelProto:
    program = torch.onnx.export(
        Model(shared).eval(), inputs(4), dynamo=True, dynamic_shapes=({0: "batch"},) * 2, verbose=False
    )
    assert program is not None
    return onnx.load_from_string(program.model_proto.SerializeToString())


def session(file: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])


def outcome(run: ort.InferenceSession, ids: Tensor, dense: Tensor) -> list[np.ndarray] | None:
    names = [i.name for i in run.get_inputs()]
    try:
        return list(run.run(None, {names[0]: ids.numpy(), names[1]: dense.numpy()}))
    except Exception as error:
        assert "out of data bounds" in str(error)
        return None


@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
def test_two_lookups_and_the_same_rows(target: str) -> None:
    result = recopt.optimize(exported(), target=target)
    assert result.report.counts()[merge_tables.name] == 2
    assert sum(n.op == "Gather" for n in result.host.nodes) == 2
    assert len(result.host.nodes) <= 13, [n.op for n in result.host.nodes]
    before, after = session(exported()), session(result.to_proto())
    for batch in (0, 1, 7):
        for a, b in zip(outcome(before, *inputs(batch)) or (), outcome(after, *inputs(batch)) or (), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_ids_of_no_row_are_the_errors_that_they_were() -> None:
    before, after = session(exported()), session(recopt.optimize(exported()).to_proto())
    for column in (0, 7, FIELDS - 1):
        rows = ROWS + column % 3
        for bad in (-(1 << 63), -rows - 1, -rows, rows - 1, rows, (1 << 63) - 1):
            ids, dense = inputs(2)
            ids[1, column] = bad
            expected, found = outcome(before, ids, dense), outcome(after, ids, dense)
            assert (expected is None) == (found is None) == (not -rows <= bad < rows)
            for a, b in zip(expected or (), found or (), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_tables_stay_apart_where_that_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recopt.optimize(exported(shared=True)).report.counts()[merge_tables.name] == 1  # a table is needed elsewhere
    assert merge_tables.name not in recopt.optimize(exported(), target="ort-cuda").report.counts()
    monkeypatch.setattr(merge_tables, "LARGEST", 4 * FIELDS * (ROWS + 1) * DIM - 1)
    assert recopt.optimize(exported()).report.counts()[merge_tables.name] == 1  # the wide part alone is small enough
    monkeypatch.setattr(merge_tables, "FEWEST", FIELDS + 1)
    assert merge_tables.name not in recopt.optimize(exported()).report.counts()
