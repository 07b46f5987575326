"""Optional passes over embedding tables on a CPU: bytes of the tables, and seconds after over seconds before.

Each line is a model with and without the pass in one process, interleaved: the ratio of the medians, below 1 faster.
Usage: python benchmarks/optional_passes.py [--rounds 61] [--only quantize]
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import recopt
from recopt.passes import CartesianTables, DedupeIds, HotRows, QuantizeTables

DEFAULT = "default"


class Bags(nn.Module):
    """Tables of one shape, `count` ids of each, pooled, side by side."""

    def __init__(self, tables: int, rows: int, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.bags = nn.ModuleList(nn.EmbeddingBag(rows, dim, mode="sum") for _ in range(tables))
        for bag in self.bags:
            bag.weight.data.mul_(0.1)

    def forward(self, ids: Tensor) -> Tensor:
        parts = ids.split(self.count, 1)
        return torch.cat([bag(part) for bag, part in zip(self.bags, parts, strict=True)], 1)


@dataclass
class Case:
    """A model, the pass to measure and those that run before and after alike."""

    name: str
    model: nn.Module
    ids: Callable[[int], Tensor]
    batches: Sequence[int]
    measured: Any
    common: Sequence[Any] = ()


def zipf(rng: np.random.Generator, alpha: float, rows: int, shape: tuple[int, ...]) -> Tensor:
    """Ids by a power law, the frequent ones anywhere in the table."""
    weights = 1 / np.arange(1, rows + 1) ** alpha
    places = np.random.default_rng(0).permutation(rows)
    return torch.from_numpy(places[rng.choice(rows, shape, p=weights / weights.sum())])


def cases() -> list[Case]:
    """What is measured: each pass where it was made for, and where it was not."""
    rng = np.random.default_rng(1)
    torch.manual_seed(0)
    found = []
    for dim in (16, 64, 128):
        model = Bags(8, 100_000, dim, 20)

        def uniform(batch: int) -> Tensor:
            return torch.from_numpy(rng.integers(0, 100_000, (batch, 160)))

        def skewed(batch: int) -> Tensor:
            return zipf(rng, 1.2, 100_000, (batch, 160))

        for bits in (16, 8, 4):
            small = QuantizeTables(bits, error=100.0)
            found.append(Case(f"quantize {bits}, 8x100k x{dim}, 20 ids", model, uniform, (1, 256), small))
        small = QuantizeTables(8, error=100.0)
        found.append(Case(f"dedupe of 8 bits, x{dim}, Zipf 1.2", model, skewed, (1, 256), DedupeIds(always=1), [small]))
        found.append(Case(f"dedupe of float32, x{dim}, Zipf 1.2", model, skewed, (256,), DedupeIds(always=1)))
    for dim in (4, 16):
        single = Bags(26, 50, dim, 1)

        def few(batch: int) -> Tensor:
            return torch.from_numpy(rng.integers(0, 50, (batch, 26)))

        found.append(Case(f"cartesian, 26x50 x{dim}", single, few, (1, 256), CartesianTables(1 << 23)))
    rows = 2_000_000
    hot = Bags(1, rows, 32, 20)
    weights = np.empty(rows)
    weights[np.random.default_rng(0).permutation(rows)] = 1 / np.arange(1, rows + 1) ** 0.9
    sort = HotRows({"bags.0.weight": weights})
    for alpha in (0.9, 1.2):
        found.append(
            Case(f"hot rows, 2M x32, Zipf {alpha}", hot, lambda b, a=alpha: zipf(rng, a, rows, (b, 20)), (256,), sort)
        )
    return found


def on(road: str, case: Case, passes: Sequence[Any]) -> tuple[Callable[[Tensor], Any], int]:
    """The model on a road as a function, and the bytes of what it stores."""
    args = (case.ids(4),)
    asked = [DEFAULT, *passes]
    if road == "torch":
        result = recopt.optimize(case.model.eval(), args, passes=asked, verify="none")
        return result, sum(t.numel() * t.element_size() for t in result.model.state_dict().values())
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            case.model.eval(), args, file, dynamo=False, input_names=["ids"], dynamic_axes={"ids": {0: "batch"}}
        )
    result = recopt.optimize(onnx.load_from_string(file.getvalue()), target="ort-cpu", passes=asked, verify="none")
    run = result.host.executable()
    return lambda ids: run(ids.numpy()), result.to_proto().ByteSize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print(f"{'pass and shape':38} {'road':8} {'batch':>5} {'before us':>10} {'after us':>9} {'ratio':>6} {'bytes':>6}")
    for case in cases():
        if options.only not in case.name:
            continue
        for road in ("torch", "ort-cpu"):
            (before, old), (after, new) = (on(road, case, [*case.common, *m]) for m in ((), (case.measured,)))
            for batch in case.batches:
                feeds = [case.ids(batch) for _ in range(8)]
                seconds: tuple[list[float], list[float]] = ([], [])
                with torch.no_grad():
                    for n in range(options.rounds + 3):
                        for run, kept in zip((before, after), seconds, strict=True):
                            start = time.perf_counter()
                            run(feeds[n % 8])
                            if n >= 3:
                                kept.append((time.perf_counter() - start) * 1e6)
                a, b = map(statistics.median, seconds)
                print(f"{case.name:38} {road:8} {batch:5} {a:10.0f} {b:9.0f} {b / a:6.2f} {new / old:6.2f}", flush=True)


if __name__ == "__main__":
    main()
