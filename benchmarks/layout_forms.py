"""Each small form of tensor manipulation by itself: those of tests/spellings/layout.py and pointwise.py, against eager
PyTorch and Inductor on a GPU.

`python benchmarks/layout_forms.py [--batch 2048] [--only concat] [--peers eager ours] [--rounds 10]` prints for each
form the kernels that a call launches, the device time in us of `eager`, `inductor` and `ours`, and the wall time of
CUDA graphs whose inputs are copied within the clock: `graph` (of eager), `reduce-overhead`, `ours-graph`.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from layout import LAUNCHING, Call, Inputs, contestants, kernels, ours, wall
from timing import device_times
from torch import nn

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

PEERS = ("eager", "inductor", "ours", "graph", "reduce-overhead", "ours-graph")
Make = Callable[[int, int], Inputs]  # inputs of so many rows, and a seed


class Form(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> object:
        """What the function returns."""
        return self.function(*args)


def stated(function: Callable[..., object], args: Inputs) -> nn.Module:
    """A function as torch exports it, whose constants lie on the device: what makes them no CUDA graph can capture."""
    module = torch.export.export(Form(function), args).module()
    assert isinstance(module, torch.fx.GraphModule)
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.lift_fresh_copy.default:
            node.replace_all_uses_with(node.args[0])
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def forms() -> dict[str, tuple[Callable[..., object], Make]]:
    """Functions by name, and what makes their inputs; the constants that they read are moved to the GPU."""
    from spellings import layout, pointwise

    for module in (layout, pointwise):
        vars(module).update({n: t.cuda() for n, t in vars(module).items() if isinstance(t, torch.Tensor)})

    def rows(batch: int, seed: int) -> Inputs:
        return (torch.randn(batch, layout.WIDTH, generator=torch.Generator().manual_seed(seed)),)

    found: dict[str, tuple[Callable[..., object], Make]] = {n: (f, rows) for n, (f, _, _) in layout.FORMS.items()}
    return found | {name: (function, pointwise.inputs) for name, function in pointwise.CASES.items()}


def line(calls: dict[str, Call], sets: Sequence[Inputs], rounds: int) -> str:
    """Kernels, device times and wall times of the contestants."""
    launching = {name: call for name, call in calls.items() if name in LAUNCHING}
    counts = "/".join(str(kernels(call, sets[0])) for call in launching.values())
    device = [device_times([functools.partial(c, *s) for s in sets]).median for c in launching.values()]
    graphs = {name: call for name, call in calls.items() if name not in LAUNCHING}
    walls = wall(graphs, sets, True, rounds).values()
    return f"{counts:>8} kernels  device {_times(device)}  wall {_times(walls)}"


def _times(us: Iterable[float]) -> str:
    return " ".join(f"{t:7.2f}" for t in us)


def main() -> None:
    """Print a row for each form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--only", default="", help="forms whose names hold this")
    parser.add_argument("--peers", nargs="+", default=PEERS)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__, *args.peers, flush=True)
    torch.set_grad_enabled(False)
    torch.set_default_device("cuda")  # of the constants that the functions make
    for name, (function, make) in forms().items():
        if args.only in name:
            with torch.device("cpu"):
                sets = [tuple(t.cuda() for t in make(args.batch, seed)) for seed in range(3)]
                example = tuple(t.cuda() for t in make(4, 0))
            made = {"ours": ours(Form(function), example).model}
            calls = contestants(args.peers, stated(function, sets[0]), sets, made)
            print(f"{name:44}", line(calls, sets, args.rounds), flush=True)


if __name__ == "__main__":
    main()
