"""Models on a GPU: the four examples, BST and SASRec (encoders.py), ranking models at their full sizes (rankers.py).

Wall time of eager PyTorch, of what recopt makes of it, of both as CUDA graphs, and of recopt's replay; with
``--inductor`` also of Inductor in the modes named, or in both (a minute or two a model).

    python benchmarks/models_gpu.py [--models din wdl ..] [--batches 1 256 ..] [--inductor [reduce-overhead default]]

Every call brings inputs that lie elsewhere on the device: a CUDA graph copies them first, inside the clock ("reduce-
overhead" does so itself); a replay reads them there. Medians, the peers taking turns; the largest errors of eager and
ours against float64.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

import recopt
from benchmarks.encoders import ENCODERS
from benchmarks.rankers import RANKERS
from benchmarks.timing import captured

EXAMPLES = ("wdl", "din", "dlrm", "dien")
MODELS = (*EXAMPLES, *ENCODERS, *RANKERS)
BATCHES = (1, 256, 2048)
MODES = ("default", "reduce-overhead")
SETS = 4  # inputs that take turns
Inputs = tuple[Tensor, ...]
Model = Callable[..., Any]


def walls(peers: Mapping[str, Model], sets: Sequence[Inputs], rounds: int = 60) -> dict[str, float]:
    """Median microseconds of a call of each peer, from before it until the device is done."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    for function in peers.values():
        for inputs in itertools.chain(*[sets] * 4):
            function(*inputs)
    for n in range(rounds):
        for name, function in peers.items():
            inputs = sets[n % len(sets)]
            function(*sets[n % len(sets) - 1])  # the device and the host come from this peer's own call
            torch.cuda.synchronize()
            start = time.perf_counter()
            function(*inputs)
            torch.cuda.synchronize()
            times[name].append((time.perf_counter() - start) * 1e6)
    return {name: statistics.median(t) for name, t in times.items()}


def measure(
    name: str,
    batch: int,
    inputs: Callable[[int, int], Inputs],
    model: torch.nn.Module,
    fast: recopt.Optimized,
    modes: Sequence[str],
) -> str:
    """A row: each peer's time, how many times as long as ours, with and without a replay, the best of the others takes;
    the errors."""
    sets = [tuple(t.cuda() for t in inputs(batch, seed)) for seed in range(SETS)]
    exact = copy.deepcopy(model).double()(*(t.double() if t.is_floating_point() else t for t in sets[0]))
    peers = {
        "eager": model,
        "recopt": fast,
        "eager-graph": captured(model, sets[0]),
        "recopt-graph": captured(fast, sets[0]),
        "recopt-replay": fast.replay(*sets[0]),
    }
    torch._dynamo.reset()
    peers |= {mode: torch.compile(model, dynamic=False, mode=mode) for mode in modes}
    for function in peers.values():
        torch.testing.assert_close(function(*sets[0]), model(*sets[0]))
    errors = [(f(*sets[0]).double() - exact).abs().max().item() for f in (model, fast)]
    times = walls(peers, sets)
    others = min(t for peer, t in times.items() if not peer.startswith("recopt"))
    ratio, replay = others / min(times["recopt"], times["recopt-graph"]), others / times["recopt-replay"]
    figures = "  ".join(f"{peer} {t:.0f}" for peer, t in times.items())
    ratios = f"x{ratio:.2f}, replay x{replay:.2f}"
    return f"{name:9} batch {batch:5}: {figures}  {ratios}   error {errors[0]:.1e} {errors[1]:.1e}"


def main() -> None:
    """Print a row for each model and batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--inductor", nargs="*", choices=MODES)
    args = parser.parse_args()
    modes = () if args.inductor is None else args.inductor or MODES
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; wall us of a call, x: best other over best ours")
    for name in args.models:
        example = ENCODERS.get(name) or RANKERS.get(name) or importlib.import_module(f"examples.{name}")
        model = example.model().cuda()
        fast = recopt.optimize(model, tuple(t.cuda() for t in example.inputs(4, 0)), target="cuda")
        row = functools.partial(measure, name, inputs=example.inputs, model=model, fast=fast, modes=modes)
        for batch in args.batches:
            with torch.no_grad():
                print(row(batch), flush=True)


if __name__ == "__main__":
    main()
