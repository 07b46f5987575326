"""The four example models on a GPU: wall time of eager PyTorch and of what recopt makes of it, as they are and as CUDA
graphs, with the largest error of both against float64. Run from the repository: `python benchmarks/models_gpu.py`."""

from __future__ import annotations

import functools
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import recopt

MODELS = ("wdl", "din", "dlrm", "dien")
BATCHES = (1, 256, 2048)


def captured(function: Callable[..., Any], args: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    """A CUDA graph of one call, after a warm-up on a stream of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(*args)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(*args)
    return graph.replay


def wall(function: Callable[[], Any], rounds: int = 60) -> float:
    """Median microseconds of a call, from before the launch until the device is done."""
    for _ in range(10):
        function()
    torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)


def main() -> None:
    """Print a row for each model and batch."""
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("wall us: eager, recopt; as CUDA graphs: eager, recopt")
    for name in MODELS:
        example = importlib.import_module(f"examples.{name}")
        model = example.model().cuda()
        fast = recopt.optimize(model, tuple(t.cuda() for t in example.inputs(4)))
        exact = example.model().double()
        for batch in BATCHES:
            inputs = example.inputs(batch)
            args = tuple(t.cuda() for t in inputs)
            with torch.no_grad():
                reference = exact(*(t.double() if t.is_floating_point() else t for t in inputs))
                errors = [(f(*args).double().cpu() - reference).abs().max().item() for f in (model, fast)]
                torch.testing.assert_close(fast(*args), model(*args))
                calls = [functools.partial(f, *args) for f in (model, fast)] + [
                    captured(f, args) for f in (model, fast)
                ]
                figures = " ".join(f"{wall(call):8.0f}" for call in calls)
            print(f"{name:5} batch {batch:5}: {figures}   error {errors[0]:.1e} {errors[1]:.1e}", flush=True)


if __name__ == "__main__":
    main()
