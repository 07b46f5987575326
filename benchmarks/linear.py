"""recopt::linear against eager torch, Inductor and cuBLASLt's own epilogues, in one process, at float32 accuracy.

    python benchmarks/linear.py --json linear.json           on a GPU: device times through CUDA graphs
    python benchmarks/linear.py --device cpu                 wall times on this machine's CPU

Inputs rotate through more memory than the L2 holds. Beside each time stands the largest error against float64, over the
root mean square of the output, of ours and of eager torch (cuBLAS without TF32). cuBLASLt's GELU is the tanh form.
Launches follow each other in the graph as layers do; most of ours may be set up while the one before drains (a
programmatic dependent launch), which is part of the times: about 0.5 us of the smallest.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import copies, device_times, host_times
from torch import Tensor

from recopt.kernels.linear import bytes_moved, choose_config, flops, linear

SIZES = (16, 64, 256, 512, 1024, 2048)
BATCHES = (1, 4, 16, 64, 256, 1024, 2048, 4096, 16384)
# Shapes (M, N, K) that Inductor compiles for: it takes many seconds each.
INDUCTOR = ((1, 512, 256), (1, 1024, 1024), (64, 1024, 1024), (256, 256, 256), (1024, 512, 1024), (2048, 1024, 1024),
            (2048, 2048, 2048), (4096, 16, 512), (16384, 64, 64))  # fmt: skip
CPU_SHAPES = ((1, 256, 512), (1, 1024, 1024), (64, 256, 512), (256, 64, 256), (256, 512, 512), (2048, 64, 16),
              (1024, 1, 256))  # fmt: skip
EPILOGUES: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu": F.gelu, "": lambda h: h}
Inputs = tuple[Tensor, Tensor, Tensor]
Run = Callable[[Tensor, Tensor, Tensor], Tensor]


def eager(epilogue: str, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """What users write."""
    return EPILOGUES[epilogue](F.linear(x, w, b))


def cublaslt(epilogue: str, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """cuBLASLt with bias and activation in its epilogue, as torch offers it."""
    if not epilogue:
        return torch.addmm(b, x, w.t())
    return torch._addmm_activation(b, x, w.t(), use_gelu=epilogue == "gelu")


def ours(epilogue: str, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """recopt::linear."""
    return linear(x, w, b, epilogue)


def inductor(epilogue: str) -> Run:
    """Inductor's max-autotune of the eager code, without its own CUDA graphs: they are measured in ours."""
    torch._dynamo.reset()
    compiled: Run = torch.compile(partial(eager, epilogue), mode="max-autotune-no-cudagraphs", dynamic=False)
    return compiled


def autotuned(m: int, n: int, k: int, epilogue: str) -> bool:
    """Whether Inductor has a go at this shape on a GPU."""
    return (m, n, k) in INDUCTOR and epilogue == "relu"


def shapes(device: str) -> Iterator[tuple[int, int, int, str]]:
    """Every shape with ReLU; the diagonal with the other epilogues too."""
    if device == "cpu":
        yield from ((*s, e) for s in CPU_SHAPES for e in EPILOGUES)
        return
    for m in BATCHES:
        for n in SIZES:
            for k in SIZES:
                yield m, n, k, "relu"
                if n == k or (m, n, k) in INDUCTOR:
                    yield m, n, k, "gelu"
                    yield m, n, k, ""


def error(out: Tensor, epilogue: str, x: Tensor, w: Tensor, b: Tensor) -> float:
    """The largest error against float64 over the root mean square of the output."""
    exact = eager(epilogue, x.double(), w.double(), b.double())
    return float((out - exact).abs().max() / exact.square().mean().sqrt())


def measure(m: int, n: int, k: int, epilogue: str, device: str, with_inductor: bool) -> dict[str, Any]:
    """Times in microseconds of every peer and errors of ours and of eager at one shape."""

    def one() -> Inputs:
        x, w, b = (torch.randn(s, device=device) for s in ((m, k), (n, k), (n,)))
        return x, w / k**0.5, b

    sets = [one() for _ in range(copies(bytes_moved(m, n, k), 24) if device == "cuda" else 2)]
    peers: dict[str, Run] = {"ours": partial(ours, epilogue), "eager": partial(eager, epilogue)}
    if device == "cuda":
        peers["cublaslt"] = partial(cublaslt, epilogue)
    if with_inductor:
        peers["inductor"] = inductor(epilogue)
    outputs = {name: run(*sets[0]) for name, run in peers.items()}
    calls = {name: [partial(run, *s) for s in sets] for name, run in peers.items()}
    times = host_times(calls) if device == "cpu" else {name: device_times(c) for name, c in calls.items()}
    return {
        "shape": (m, n, k), "epilogue": epilogue,
        "config": str(choose_config(m, n, k)) if device == "cuda" else "torch",
        "times_us": {name: t._asdict() for name, t in times.items()},
        "error_ours": error(outputs["ours"], epilogue, *sets[0]),
        "error_eager": error(outputs["eager"], epilogue, *sets[0]),
        "flops": flops(m, n, k, epilogue), "bytes": bytes_moved(m, n, k),
    }  # fmt: skip


def ratio(row: dict[str, Any]) -> float:
    """How many times faster ours is than the best peer."""
    times = row["times_us"]
    best: float = min(t["median"] for name, t in times.items() if name != "ours")
    return best / float(times["ours"]["median"])


def idle_tensor_cores(row: dict[str, Any]) -> bool:
    """Where exact float32 leaves the tensor cores idle and a product is large enough for them."""
    m, n, k = row["shape"]
    return 256 <= m <= 2048 and min(n, k) >= 256


def show(row: dict[str, Any]) -> str:
    """One line: shape, every time with its spread, ratio to the best peer, errors."""
    m, n, k = row["shape"]
    times = "  ".join(
        f"{name} {t['median']:8.2f} ({t['p10']:.2f}-{t['p90']:.2f})" for name, t in row["times_us"].items()
    )
    errors = f"error {row['error_ours']:.1e} / {row['error_eager']:.1e}"
    return f"{m:6d} x {n:4d} x {k:4d} {row['epilogue'] or 'bias':5s} {times}  x{ratio(row):.2f}  {errors}"


def main() -> None:
    """Measure, print a short table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-inductor", action="store_true")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds; what is left out is counted")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    begin, rows, left_out = time.perf_counter(), [], 0
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}; microseconds: median (p10-p90); error: ours / eager, against float64")
    # What Inductor compiles comes last: a budget that ends sooner leaves out the fewest.
    for m, n, k, epilogue in sorted(shapes(args.device), key=lambda s: autotuned(*s)):
        if time.perf_counter() - begin > args.budget:
            left_out += 1
            continue
        with_inductor = not args.no_inductor and (args.device == "cpu" or autotuned(m, n, k, epilogue))
        rows.append(measure(m, n, k, epilogue, args.device, with_inductor))
        if with_inductor or (n == k and epilogue == "relu"):
            print(show(rows[-1]))
    if args.json:
        args.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "rows": rows}))
    slower = sorted((r for r in rows if ratio(r) < 1 / 1.05), key=ratio)
    print(f"\n{len(rows)} cases in {time.perf_counter() - begin:.0f} s, {left_out} left out for time")
    print(f"slower than the best peer by more than 5 %: {len(slower)}", *map(show, slower[:12]), sep="\n  ")
    if args.device == "cuda":
        idle = [r for r in rows if idle_tensor_cores(r)]
        below = sorted((r for r in idle if ratio(r) < 2), key=ratio)
        print(f"at least 2x, batch 256 to 2048, N and K >= 256: {len(idle) - len(below)} of {len(idle)}; the others:")
        print(*(f"  {show(r)}" for r in below[:12]), sep="\n")
    worse = [r for r in rows if r["error_ours"] > 1.2 * max(r["error_eager"], 4e-7)]
    print(f"largest error above 1.2 times eager's: {len(worse)}", *map(show, worse[:6]), sep="\n  ")


if __name__ == "__main__":
    with torch.no_grad():
        main()
