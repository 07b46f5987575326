"""Models with embedding tables, through both hosts, before and after passes; usual ids, and unusual ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from spellings.export import BATCH, run_onnx, to_onnx, to_program
from torch import Tensor, nn

import recopt

ROWS, DIM, COUNT = 23, 12, 5
ROADS = ("cpu", "portable", "ort-cpu", "recopt")  # by their targets; the first is torch


class Model(nn.Module):
    """Tables of seeded numbers and what is made of ids [batch, COUNT] and weights [batch, COUNT]."""

    def __init__(self, spell: Callable[..., Any]) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(7)
        self.tables = nn.ParameterList(nn.Parameter(torch.randn(ROWS + n, DIM + n, generator=g)) for n in range(4))
        self.bag = nn.EmbeddingBag(ROWS, DIM, mode="mean", padding_idx=3)
        self.bag.weight.data.copy_(torch.randn(ROWS, DIM, generator=g))
        self.head = nn.Linear(DIM, ROWS, bias=False)
        self.register_buffer("written", torch.randn(ROWS, DIM, generator=g))
        self.spell = spell

    def forward(self, *args: Tensor) -> Any:
        return self.spell(self, *args)


def _columns(m: Any, ids: Tensor, *rest: Tensor) -> Tensor:
    return torch.cat([*(F.embedding(ids[:, n], t) for n, t in enumerate(m.tables)), *rest], 1)


MODELS: dict[str, Callable[..., Any]] = {
    "columns": lambda m, ids, w: _columns(m, ids, w),
    "one": lambda m, ids, w: F.embedding(ids[:, 0], m.tables[0]),
    "sum": lambda m, ids, w: F.embedding(ids, m.tables[0]).sum(1),
    "mean": lambda m, ids, w: F.embedding(ids, m.tables[1]).mean(1),
    "max": lambda m, ids, w: F.embedding(ids, m.tables[2]).amax(1),
    "padded": lambda m, ids, w: m.bag(ids),
    "masked": lambda m, ids, w: (F.embedding(ids, m.tables[0]) * (ids != 0).float()[..., None]).sum(1),
    "weighted": lambda m, ids, w: (F.embedding(ids, m.tables[0]) * w[..., None]).sum(1),
    "hashed": lambda m, ids, w: torch.cat(
        [F.embedding(ids[:, 0] % 19 + 2, m.tables[0]), F.embedding(ids[:, 1] % 23, m.tables[1])], 1
    ),
    "side_by_side": lambda m, ids, w: torch.cat(
        [F.embedding(ids, m.tables[0]).sum(1), F.embedding(ids[:, :2], m.tables[0]).mean(1), w], 1
    ),
    "added": lambda m, ids, w: F.embedding(ids[:, 0], m.tables[0]) + F.embedding(ids[:, 1], m.bag.weight),
}


# For ort-cpu bags are written as for portable; no exporter has embedding_bag with pads.
CASES = [(name, road) for name in MODELS for road in ROADS if road != "ort-cpu" and (name != "padded" or road == "cpu")]


def module(name: str) -> nn.Module:
    """A model, always of the same numbers."""
    return Model(MODELS[name]).eval()


def example(dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    """Ids and weights for BATCH samples."""
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, ROWS, (BATCH, COUNT), generator=g).to(dtype), torch.randn(BATCH, COUNT, generator=g)


def optimize(model: nn.Module, road: str, passes: Sequence[Any], **options: Any) -> recopt.Optimized:
    """A model on one of the roads, with the usual passes and these."""
    args = options.pop("args", None) or example()
    given: Any = to_program(model, args) if road == "cpu" else onnx.load_from_string(to_onnx(model, args, dynamo=False))
    return recopt.optimize(given, target=road, passes=["default", *passes], **options)


def runs(result: recopt.Optimized) -> Callable[..., Tensor]:
    """The optimized model as a function of tensors."""
    if result.host.dialect == "aten":
        return lambda *args: result(*args)
    file = result.to_proto().SerializeToString()
    # An input that the model does not read is none of the file's.
    count = len(result.host.inputs)
    return lambda *args: torch.as_tensor(run_onnx(file, args[:count])[0])


@functools.lru_cache(maxsize=256)
def prepared(name: str, road: str, passes: tuple[Any, ...], dtype: torch.dtype) -> tuple[recopt.Optimized, Any]:
    """A model optimized once, and as a function."""
    result = optimize(module(name), road, passes, args=example(dtype))
    assert not result.report.undone, result.report.undone
    return result, runs(result)


def before(name: str, road: str, dtype: torch.dtype) -> Any:
    """The model without any pass, as a function."""
    return _before(name, "cpu" if road == "cpu" else "onnx", dtype)


@functools.lru_cache(maxsize=64)
def _before(name: str, kind: str, dtype: torch.dtype) -> Any:
    if kind == "cpu":
        return module(name)
    file = to_onnx(module(name), example(dtype), dynamo=False)
    count = len(onnx.load_from_string(file).graph.input)
    return lambda *args: torch.as_tensor(run_onnx(file, args[:count])[0])


def outcome(run: Any, args: Sequence[Tensor]) -> Tensor | None:
    """What a model computes, None where it refuses its inputs."""
    try:
        with torch.no_grad():
            return torch.as_tensor(run(*args))
    except Exception:  # runtimes raise errors of unrelated classes
        return None


@st.composite
def inputs(draw: Any, bad: bool = False) -> tuple[Tensor, Tensor, torch.dtype]:
    """Ids of a batch that may be empty, many of them the same, of either type; with `bad` one of them out of range."""
    batch = draw(st.integers(1 if bad else 0, 6))
    few = draw(st.sampled_from([1, 2, ROWS]))
    ids = np.array(draw(st.lists(st.integers(0, few - 1), min_size=batch * COUNT, max_size=batch * COUNT)), np.int64)
    if bad:
        at = draw(st.integers(0, batch * COUNT - 1))
        # The tables have up to 3 rows more; 2 ** 31 and more overflow where products of ids are made.
        ids[at] = draw(st.sampled_from([-1, -ROWS - 4, ROWS + 3, ROWS + 4, 2 * ROWS, 2**30, 2**31 - 1, -(2**31)]))
    dtype = draw(st.sampled_from([torch.int64, torch.int32]))
    weights = torch.from_numpy(np.random.default_rng(batch).standard_normal((batch, COUNT)).astype(np.float32))
    return torch.from_numpy(ids.reshape(batch, COUNT)).to(dtype), weights, dtype


def reasons(result: recopt.Optimized, name: str) -> list[str]:
    """Why a pass refused, in words."""
    return [refusal.reason for refusal in result.report.refusals if refusal.pattern == name]


class Shared(nn.Module):
    """A table that something else needs too, or that is none, beside one that is."""

    def __init__(self, how: str) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.table = nn.Parameter(torch.randn(ROWS, DIM, generator=g))
        self.other = nn.Parameter(torch.randn(ROWS, DIM, generator=g))
        self.register_buffer("written", torch.randn(ROWS, DIM, generator=g))
        self.how = how

    def forward(self, *args: Tensor) -> Any:
        ids, w = args
        table: Tensor = self.table
        if self.how == "computed":
            table = self.table.tanh()
        elif self.how == "written":
            table = self.written
        elif self.how == "data":
            table = w.repeat(1, 3)[:, :DIM]
        first = ids[:, 0].clamp(max=0) if self.how == "data" else ids[:, 0]
        rows = torch.cat([F.embedding(first, table), F.embedding(ids[:, 1], self.other)], 1)
        if self.how == "linear":
            return rows, torch.tanh(w.repeat(1, 5)[:, :ROWS]) @ self.table
        if self.how == "output":
            return rows, self.table
        if self.how == "written":
            self.written.mul_(2.0)
        return rows


SHARED = {
    "linear": "needs the table too",
    "output": "needs the table too",
    "computed": "the table is computed",
    "written": "the table is no constant of the model",
    "data": "the table is no constant of the model",
}
