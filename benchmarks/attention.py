"""DIN's activation unit and multi-head attention on a GPU, float32 without TF32: recopt's kernels against eager torch,
Inductor and `scaled_dot_product_attention`, all as CUDA graphs in one process.

    python benchmarks/attention.py [--json attention.json] [--no-inductor] [--only units | heads]

Wall time is the median from before the launch until the device is done, all peers and an empty graph taking turns: what
it takes no operator can save. Device time is the median of a graph that repeats the call over rotating inputs. Beside
them stands the largest error against float64 over the root mean square of the output. Last, how many times as long as
ours the best peer takes: wall time, wall time less the empty graph's, device time. "Of new inputs" are wall times of
calls that bring others each time, and the best peer's over our replay's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import captured, copies, device_times, graph_of, turns
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from recopt.kernels.attention import attention
from recopt.kernels.replay import Replay
from recopt.kernels.target_attention import target_attention

WIDTHS = (80, 40)
DICE = "h * (p0 + (1.0 - p0) * sigmoid(h * p1 + p2))"
TEXT = f"{DICE}; {DICE}; h; where(p0, h, 0.0)"
# (rows, one history for all of them, items, dim)
UNITS = (
    (1024, True, 100, 64), (1, False, 100, 64), (256, False, 100, 64), (2048, False, 100, 64),
    (1024, True, 50, 64), (256, False, 50, 32), (2048, False, 50, 32), (2048, False, 100, 16), (1, False, 1000, 64),
    (256, False, 1000, 64), (1024, True, 1000, 64),
)  # fmt: skip
# Inductor takes many seconds each
COMPILED = {UNITS[0]: ("default", "max-autotune-no-cudagraphs"), UNITS[3]: ("default",)}
# (batch, heads, queries, keys, dim)
HEADS = (
    (2048, 4, 10, 10, 16), (2048, 8, 20, 20, 8), (2048, 4, 33, 33, 16), (2048, 8, 33, 33, 8), (2048, 2, 50, 50, 32),
    (256, 2, 50, 50, 32), (1024, 1, 50, 50, 64), (2048, 4, 64, 64, 16), (1024, 4, 100, 100, 16),
    (1024, 2, 100, 100, 32), (1024, 1, 100, 100, 64), (1024, 1, 200, 200, 64), (512, 2, 200, 200, 32),
    (2048, 1, 1, 50, 64), (2048, 4, 1, 50, 16), (2048, 1, 1, 200, 64), (1, 1, 1, 50, 64), (1, 2, 50, 50, 32),
    (1024, 1, 10, 10, 64), (1024, 1, 20, 20, 64), (1024, 2, 20, 20, 32), (1024, 1, 33, 33, 64), (1024, 1, 64, 64, 64),
)  # fmt: skip
# As many keys of each row as were drawn
MASKED = (
    (2048, 4, 10, 10, 16), (2048, 8, 33, 33, 8), (1024, 1, 50, 50, 64), (2048, 2, 50, 50, 32), (2048, 4, 64, 64, 16),
    (1024, 1, 64, 64, 64), (2048, 1, 1, 50, 64), (256, 2, 50, 50, 32),
)  # fmt: skip
Inputs = tuple[Any, ...]
Run = Callable[..., Tensor]


def walls(calls: Mapping[str, Callable[[], object]], rounds: int = 50) -> dict[str, float]:
    """Median microseconds of each call, in turns, from before the launch until the device is done."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for n in range(rounds + 10):
        for name, call in calls.items():
            call()  # the host and the device come from this peer's own call
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            if n >= 10:
                times[name].append((time.perf_counter() - start) * 1e6)
    return {name: statistics.median(t) for name, t in times.items()}


# --- DIN's unit


def unit_eager(q: Tensor, k: Tensor, mask: Tensor, w: list[Tensor], p: list[Tensor]) -> Tensor:
    """What users write; w: W1 over [q, k, q - k, q * k], b1, W2, b2, W3, b3; p: alpha, and a BatchNorm's scale and
    shift for each of two Dice."""
    wide = q.unsqueeze(1).expand_as(k)
    h = torch.cat([wide, k, wide - k, wide * k], -1)
    for n in range(2):
        h = F.linear(h, w[2 * n], w[2 * n + 1])
        gate = torch.sigmoid(h * p[3 * n + 1] + p[3 * n + 2])
        h = gate * h + p[3 * n] * (1 - gate) * h
    s = F.linear(h, w[4], w[5]).squeeze(-1)
    return torch.bmm(torch.where(mask, s, torch.zeros_like(s)).unsqueeze(1), k).squeeze(1)


def unit_ours(q: Tensor, k: Tensor, mask: Tensor, w: list[Tensor], p: list[Tensor]) -> Tensor:
    """recopt::target_attention; w as the pattern writes it, in `p` lists."""
    return target_attention(q, k, k, w, [*p, mask], TEXT, False)


def unit_weights(dim: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights for eager, the same split for ours, and Dice's parameters."""
    sizes = (4 * dim, *WIDTHS, 1)
    w: list[Tensor] = []
    for a, b in itertools.pairwise(sizes):
        w += [torch.randn(b, a, device="cuda") / a**0.5, torch.randn(b, device="cuda") / 4]
    wq, wk, wd, wp = w[0].split(dim, 1)
    ours = [(wq + wd).contiguous(), (wk - wd).contiguous(), wp.contiguous(), *w[1:]]
    p = [torch.rand(n, device="cuda") for n in (WIDTHS[0],) * 3 + (WIDTHS[1],) * 3]
    return w, ours, p


def unit_inputs(rows: int, shared: bool, items: int, dim: int) -> Inputs:
    """q, k and a mask by length: drawn for many histories, full for a single one, whose draw would decide the time."""
    q, k = (torch.randn(n, device="cuda") for n in ((rows, dim), (1 if shared else rows, items, dim)))
    length = torch.full((1, 1), items, device="cuda")
    if not shared:
        length = torch.randint(1 if rows > 1 else items, items + 1, (rows, 1), device="cuda")
    mask = torch.arange(items, device="cuda") < length
    return q, k.expand(rows, items, dim), mask.expand(rows, items)


def measure_unit(rows: int, shared: bool, items: int, dim: int, modes: Sequence[str]) -> dict[str, Any]:
    """Times of every peer and the errors at one shape of DIN's unit."""
    w, ours, p = unit_weights(dim)
    some = copies(4 * dim * items * (1 if shared else rows), 8)
    sets = [unit_inputs(rows, shared, items, dim) for _ in range(some)]
    peers: dict[str, Run] = {
        "ours": lambda q, k, m: unit_ours(q, k, m, ours, p), "eager": lambda q, k, m: unit_eager(q, k, m, w, p)
    }  # fmt: skip
    torch._dynamo.reset()
    for mode in modes:
        compiled = torch.compile(unit_eager, dynamic=False, mode=mode)
        peers[f"inductor {mode}"] = lambda q, k, m, compiled=compiled: compiled(q, k, m, w, p)
    q, k, mask = sets[0]
    few = slice(0, 64)  # float64 of the whole concat would take much of the memory
    exact = unit_eager(q[few].double(), k[few].double(), mask[few], [t.double() for t in w], [t.double() for t in p])
    row = {"unit": (rows, "shared" if shared else "own", items, dim)} | _measured(peers, sets, exact)
    # A shared history comes, and is copied, once.
    once = [(q, k[:1], m[:1]) for q, k, m in sets] if shared else sets
    whole: dict[str, Run] = {
        name: lambda q, k, m, run=run: run(q, k.expand(rows, items, dim), m.expand(rows, items))
        for name, run in peers.items()
    }
    return row | {"request_us": requests(whole, once)}


# --- attention


def measure_heads(batch: int, heads: int, s: int, t: int, d: int, masked: bool) -> dict[str, Any]:
    """Times of every peer and the errors at one shape of multi-head attention, heads second in storage."""

    def one() -> Inputs:
        parts = [torch.randn(batch, n, heads, d, device="cuda").movedim(2, 1) for n in (s, t, t)]
        length = torch.randint(1, t + 1, (batch, 1, 1, 1), device="cuda")
        return (*parts, *([torch.arange(t, device="cuda") < length] if masked else ()))

    sets = [one() for _ in range(copies(4 * batch * heads * d * (s + 2 * t), 8))]
    score = f"where(p0, {d**-0.5!r} * h, -inf)" if masked else f"{d**-0.5!r} * h"
    peers: dict[str, Run] = {
        "ours": lambda q, k, v, *mask: attention(q, k, v, score, mask, "nan"), "sdpa": F.scaled_dot_product_attention
    }  # fmt: skip
    exact = F.scaled_dot_product_attention(*(x[:64].double() for x in sets[0][:3]), *(m[:64] for m in sets[0][3:]))
    row = {"heads": (batch, heads, s, t, d, *(["masked"] if masked else []))} | _measured(peers, sets, exact)
    return row | {"request_us": requests(peers, sets)}


def requests(peers: dict[str, Run], sets: list[Inputs]) -> dict[str, float]:
    """Wall times where each call brings new inputs: a plain call, a graph that copies them first, our replay."""
    calls: dict[str, Run] = {}
    for name, run in peers.items():
        calls |= {f"{name} call": run, f"{name} copies": captured(run, sets[0])}
    calls["ours replay"] = Replay(peers["ours"], sets[0])
    return walls({name: turns(call, sets) for name, call in calls.items()})


def _measured(peers: dict[str, Run], sets: list[Inputs], exact: Tensor) -> dict[str, Any]:
    scale = exact.square().mean().sqrt()
    row: dict[str, Any] = {"device_us": {}, "error": {}}
    graphs = {"empty": graph_of(lambda: None)[0].replay}
    for name, run in peers.items():
        calls = [partial(run, *s) for s in sets]
        out = calls[0]()[: exact.shape[0]].double()
        row["error"][name] = float((out - exact).abs().max() / scale)
        row["device_us"][name] = device_times(calls, least_us=1000.0).median
        graphs[name] = graph_of(calls[0])[0].replay
    wall = walls(graphs)
    row["empty_us"] = wall.pop("empty")
    return row | {"wall_us": wall, "operator_us": {name: us - row["empty_us"] for name, us in wall.items()}}


def show(row: dict[str, Any]) -> str:
    """One line: the shape, wall and device time and error of each peer, how much faster ours is than the best peer."""
    shape = " x ".join(map(str, row.get("unit") or row["heads"]))
    cells = [
        f"{name} {row['wall_us'][name]:.1f} / {row['device_us'][name]:.2f} ({row['error'][name]:.0e})"
        for name in row["wall_us"]
    ]
    best = {key: min(v for name, v in row[key].items() if name != "ours") / row[key]["ours"] for key in TIMES}
    ratios = " / ".join(f"x{best[key]:.2f}" for key in TIMES)
    us = row["request_us"]
    others = min(t for name, t in us.items() if not name.startswith("ours"))
    cells += [
        "of new inputs:",
        *[f"{name} {t:.1f}" for name, t in us.items()],
        f"x{others / us['ours replay']:.2f}",
    ]
    return f"{shape:32s} {'  '.join(cells)}  empty {row['empty_us']:.1f}  {ratios}"


TIMES = ("wall_us", "operator_us", "device_us")


def rows(inductor: bool, only: str | None) -> Iterator[dict[str, Any]]:
    """Every case, as it is measured."""
    for unit in UNITS if only != "heads" else ():
        yield measure_unit(*unit, COMPILED.get(unit, ()) if inductor else ())
    for heads in HEADS if only != "units" else ():
        yield measure_heads(*heads, False)
    for heads in MASKED if only != "units" else ():
        yield measure_heads(*heads, True)


def main() -> None:
    """Measure and print; JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-inductor", action="store_true")
    parser.add_argument("--only", choices=("units", "heads"))
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}; us as CUDA graphs: wall / device (error against float64)")
    found = []
    for row in rows(not args.no_inductor, args.only):
        print(show(row), flush=True)
        found.append(row)
    if args.json:
        args.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "rows": found}))


if __name__ == "__main__":
    with torch.no_grad():
        main()
