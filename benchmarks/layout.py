"""Tensor manipulation between inputs and layers: feature engineering, a wall of feature columns, shuffles, a concat of
many slices, against eager PyTorch, its CUDA graph, Inductor and ONNX Runtime.

`python benchmarks/layout.py [--device cuda] [--batches 1 256 2048] [--workloads features columns] [--peers eager ours]`
prints the wall time in us of a call of each peer, which take turns on rotating inputs; a CUDA graph's inputs are copied
into it within the clock, by kernels of the graph itself in "graph-copies" (of eager) and "ours-copies", but not of
"ours-replay", which reads them where they lie. On a GPU it prints the kernels a call launches, and the device time at
`--device-batch` rows beside that of a copy of as many bytes; on a CPU ONNX Runtime runs the exported file and what
recopt makes of it, with as many threads as torch.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from timing import captured, copying, device_times
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

Call: TypeAlias = Callable[..., Any]
Inputs: TypeAlias = tuple[Tensor, ...]


class FeatureEngineering(nn.Module):
    """13 numbers (log, clip, normalise, bucketise), 26 ids (hash, modulo), a sequence of 16 steps of 16 (mask, slices,
    shuffles), joined."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("mean", torch.rand(13, generator=generator))
        self.register_buffer("std", torch.rand(13, generator=generator) + 0.5)
        self.register_buffer("boundaries", torch.linspace(-2.0, 2.0, 15))
        self.sizes = [1000 + 37 * i for i in range(26)]

    def forward(self, dense: Tensor, ids: Tensor, sequence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dense [B, 13], ids [B, 26], sequence [B, 16, 16] -> features [B, 320], hashed [B, 28], buckets [B, 13]."""
        logs = torch.log1p(torch.clamp(dense, min=0.0))
        clipped = torch.clamp(dense, -3.0, 3.0)
        normalised = (dense - self.mean) / self.std
        buckets = torch.bucketize(normalised, self.boundaries)
        hashed = [(ids[:, i] * 2654435761 + i) % n for i, n in enumerate(self.sizes)]
        crossed = [(ids[:, 0] * 31 + ids[:, 1]) % 5000, (ids[:, 2] ^ (ids[:, 3] >> 7)) % 9973]
        mask = (ids[:, :16] % 5 != 0).unsqueeze(-1)
        kept = torch.where(mask, sequence, torch.zeros_like(sequence))
        turned = kept.transpose(1, 2)
        front, back = turned[:, :, :8], turned[:, :, 8:]
        swapped = torch.cat([back, front], -1).flip(1)
        first = swapped[:, ::2].reshape(dense.shape[0], -1)
        recent = kept[:, -1] - kept[:, 0]
        hot = (buckets[:, :8].unsqueeze(-1) == torch.arange(14, device=ids.device)).to(dense.dtype)
        parts = [logs, clipped, normalised, first, recent, hot.flatten(1)[:, :100], sequence[:, 3, :5], turned[:, 2]]
        parts += [torch.sqrt(torch.abs(dense[:, :6])), torch.sign(dense[:, 6:12]), dense[:, :1] * dense[:, 1:5]]
        return torch.cat(parts, 1), torch.stack([*hashed, *crossed], 1), buckets


class FeatureColumns(nn.Module):
    """200 columns, each its own chain of operators, as an exported set of feature columns has them: 60 bucketised to
    indicators, 60 hashed, 20 crossed, 40 logarithms, 20 indicators."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.ParameterList(
            nn.Parameter(torch.linspace(-1.0 - 0.01 * i, 1.0 + 0.02 * i, 7), requires_grad=False) for i in range(60)
        )

    def forward(self, dense: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """dense [B, 100], ids [B, 100] -> floats [B, 840], ids [B, 80]."""
        floats, whole = [], []
        for i, edges in enumerate(self.edges):
            floats.append(F.one_hot(torch.bucketize(dense[:, i], edges), 8).to(dense.dtype))
        for i in range(60, 100):
            floats.append(torch.log(torch.clamp(dense[:, i : i + 1], min=0.0) + (1.0 + 0.01 * i)))
        for i in range(60):
            x = ids[:, i] ^ (ids[:, i] >> 33)
            whole.append((x * -49064778989728563 + i) % (1000 + 13 * i))
        for i in range(20):
            whole.append((ids[:, i] * 1000003 + ids[:, i + 60]) % (5000 + 17 * i))
        for i in range(80, 100):
            floats.append(((ids[:, i : i + 1] % 16) == torch.arange(16, device=ids.device)).to(dense.dtype))
        return torch.cat(floats, 1), torch.stack(whole, 1)


class Shuffles(nn.Module):
    """Channels shuffled, space put into depth, depth into space, heads moved: only layout."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 16, 8, 8] -> [B, 16, 8, 8]."""
        b = x.shape[0]
        y = x.reshape(b, 4, 4, 8, 8).transpose(1, 2).reshape(b, 16, 8, 8)
        y = y.reshape(b, 16, 4, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 64, 4, 4)
        y = torch.cat([y[:, 32:], y[:, :32]], 1).flip(2)
        y = y.reshape(b, 16, 2, 2, 4, 4).permute(0, 1, 4, 2, 5, 3).reshape(b, 16, 8, 8)
        return y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).contiguous()


class Slices(nn.Module):
    """500 columns picked one by one and joined in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.order = torch.randperm(500, generator=torch.Generator().manual_seed(1)).tolist()

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 500] -> [B, 500]."""
        return torch.cat([x[:, i : i + 1] for i in self.order], 1)


def inputs_of(name: str, batch: int, seed: int = 0) -> Inputs:
    """Inputs of a workload, on the CPU."""
    g = torch.Generator().manual_seed(seed)
    if name == "features":
        dense, ids = torch.randn(batch, 13, generator=g), torch.randint(-(2**40), 2**40, (batch, 26), generator=g)
        return dense, ids, torch.randn(batch, 16, 16, generator=g)
    if name == "columns":
        return torch.randn(batch, 100, generator=g), torch.randint(-(2**62), 2**62, (batch, 100), generator=g)
    return (torch.randn(batch, 16, 8, 8, generator=g) if name == "shuffles" else torch.randn(batch, 500, generator=g),)


WORKLOADS: dict[str, Callable[[], nn.Module]] = {
    "features": FeatureEngineering,
    "columns": FeatureColumns,
    "shuffles": Shuffles,
    "slices": Slices,
}
PEERS = {
    "cuda": (
        "eager", "graph", "graph-copies", "inductor", "reduce-overhead", "max-autotune", "ours", "ours-graph",
        "ours-copies", "ours-replay",
    ),
    "cpu": ("eager", "inductor", "ours", "ort", "ort-ours"),
}  # fmt: skip
LAUNCHING = ("eager", "inductor", "ours")  # those whose device time a graph of ours can take


def wall(calls: dict[str, Call], sets: Sequence[Inputs], cuda: bool, rounds: int) -> dict[str, float]:
    """Median microseconds of a call of each over rotated inputs, until the device is done; twenty a turn after one
    that is not timed."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for n in range(21):
                start = time.perf_counter()
                call(*sets[n % len(sets)])
                if cuda:
                    torch.cuda.synchronize()
                if n:
                    times[name].append((time.perf_counter() - start) * 1e6)
    return {name: statistics.median(taken) for name, taken in times.items()}


def kernels(function: Call, args: Inputs) -> int:
    """How many kernels a call launches."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    function(*args)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        function(*args)
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    return sum(e.count for e in profile.key_averages() if e.device_type == cuda and e.key != "Activity Buffer Request")


def in_onnx(model: nn.Module, args: Inputs) -> bytes:
    """The model as torch's dynamo exporter writes it."""
    import io

    file = io.BytesIO()
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in args)
    exported = torch.onnx.export(model, args, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    assert exported is not None
    exported.save(file)
    return file.getvalue()


def session(file: bytes) -> Call:
    """A file in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    run = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in run.get_inputs()]
    return lambda *given: run.run(None, {n: t.numpy() for n, t in zip(names, given, strict=True)})


def ours(model: Any, args: Inputs | None, target: str | None = None) -> Any:
    """What recopt makes of a module, or of a file."""
    import recopt

    optimized = recopt.optimize(model, args, target=target)
    print("  ", optimized, flush=True)
    return optimized


def peer(name: str, model: nn.Module, args: Inputs, made: dict[str, Any]) -> Call:
    """One contestant, ready to be called; `made` keeps what does not depend on the batch."""
    if name == "eager":
        return model
    if name == "graph":
        return captured(model, args)
    if name == "ours-graph":
        return captured(peer("ours", model, args, made), args)
    if name in ("ours-replay", "ours-copies", "graph-copies"):
        from recopt.kernels.replay import Replay

        function = model if name == "graph-copies" else peer("ours", model, args, made)
        return Replay(function if name == "ours-replay" else copying(function, args), args)
    if name == "inductor":
        return torch.compile(model, dynamic=False)
    if name in ("reduce-overhead", "max-autotune"):
        return torch.compile(model, mode=name, dynamic=False)
    if name not in made:
        example = tuple(torch.cat([t] * 4)[:4] for t in args)  # a batch of one would be taken for a fixed size
        if name == "ours":
            made[name] = ours(model, example).model
        else:
            made["file"] = made.get("file") or in_onnx(model, example)
            rewritten = name == "ort-ours"
            made[name] = session(
                ours(_proto(made["file"]), None, "ort-cpu").to_proto().SerializeToString()
                if rewritten
                else made["file"]
            )
    return made[name]  # type: ignore[no-any-return]  # a module or a function


def _proto(file: bytes) -> Any:
    import onnx

    return onnx.load_from_string(file)


def check(expected: Any, actual: Any) -> None:
    """Raise AssertionError where a peer's numbers are not the model's."""
    pairs = zip(expected, actual, strict=True) if isinstance(expected, tuple) else [(expected, actual)]
    for e, a in pairs:
        a = a[0] if isinstance(a, list) else a
        torch.testing.assert_close(a if isinstance(a, Tensor) else torch.as_tensor(a), e, equal_nan=True)


def nbytes(args: Inputs, result: Any) -> int:
    """Bytes of inputs and outputs."""
    outputs = result if isinstance(result, tuple) else (result,)
    return sum(t.nbytes for t in (*args, *outputs))


def device_line(call: Call, sets: Sequence[Inputs], result: Any) -> str:
    """Device us of a call, and of a copy that moves as many bytes."""
    moved = nbytes(sets[0], result)
    source = torch.empty(max(moved // 2, 1), dtype=torch.uint8, device="cuda")
    target = [torch.empty_like(source) for _ in range(4)]
    copies = device_times([functools.partial(t.copy_, source) for t in target])
    times = device_times([functools.partial(call, *args) for args in sets])
    return f"device {times.median:9.1f} us, a copy of its {moved / 1e6:.2f} MB {copies.median:.1f} us"


def contestants(
    names: Sequence[str], model: nn.Module, sets: Sequence[Inputs], made: dict[str, Any]
) -> dict[str, Call]:
    """Those that give the model's numbers; of others a line says what they do."""
    calls = {}
    torch._dynamo.reset()
    for name in names:
        try:
            call = peer(name, model, sets[0], made)
            for args in sets:
                check(model(*args), call(*args))
            calls[name] = call
        except Exception as error:  # one that fails must not take the rest along
            print(f"  {name} failed: {type(error).__name__} {str(error)[:300]}", flush=True)
    return calls


def main() -> None:
    """Print a row for each workload, batch and peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 256, 2048])
    parser.add_argument("--device-batch", type=int, default=65536, help="rows for the device time; 0: none")
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--peers", nargs="+")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    cuda = args.device == "cuda"
    names = args.peers or PEERS[args.device]
    print(torch.cuda.get_device_name() if cuda else "cpu", "torch", torch.__version__, flush=True)
    torch.set_grad_enabled(False)
    for workload in args.workloads:
        model = WORKLOADS[workload]().eval().to(args.device)
        made: dict[str, Any] = {}
        for batch in [*args.batches, *([args.device_batch] if cuda and args.device_batch else [])]:
            last = batch == args.device_batch
            sets = [tuple(t.to(args.device) for t in inputs_of(workload, batch, seed)) for seed in range(3)]
            calls = contestants([n for n in names if not last or n in LAUNCHING], model, sets, made)
            for name, us in wall(calls, sets, cuda, args.rounds).items():
                line = f"{workload:9} batch {batch:6} {name:16} {us:9.1f} us"
                if cuda and name in LAUNCHING:
                    line += f"  {kernels(calls[name], sets[0]):4} kernels"
                if last:
                    line += "  " + device_line(calls[name], sets, model(*sets[0]))
                print(line, flush=True)


if __name__ == "__main__":
    main()
