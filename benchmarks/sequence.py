"""GRU, AUGRU and the whole of DIEN, float32 without TF32: recopt against eager torch (for the GRU that is cuDNN), CUDA
graphs of it as it is and with its parts compiled, and Inductor's two modes on a GPU; against eager torch, Inductor and
ONNX Runtime on a CPU.

    python benchmarks/sequence.py [--device cpu] [--only dien] [--peers ours eager graph] [--json sequence.json]

Wall time, median and 10th and 90th percentile, is from before the copies of the inputs until the device is done: every
CUDA graph pays for them, ours as "ours-copies"; "ours" is its replay, which reads inputs where they lie. Beside each
stands the largest error against float64 over the root mean square of the output. Inductor compiles an unrolled AUGRU
for minutes, once a shape.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import Times, graph_of, summary, turns
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import recopt
from examples import dien

MODELS = ("gru", "augru", "dien")
PEERS = {
    "cuda": ("ours", "ours-copies", "eager", "graph", "compiled-graph", "inductor", "reduce-overhead"),
    "cpu": ("ours", "eager", "inductor", "onnxruntime"),
}
Inputs = tuple[Tensor, ...]
Call = Callable[[], object]


class Gru(nn.Module):
    """The interest extractor of DIEN alone: embeddings of half its width in."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layer = nn.GRU(max(16, hidden // 2), hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """All states [B, T, H] of x [B, T, K]."""
        states: Tensor = self.layer(x)[0]
        return states


class Augru(nn.Module):
    """The interest evolution of DIEN alone, as a user unrolls it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = dien.AUGRUCell(hidden, hidden)

    def forward(self, x: Tensor, attention: Tensor) -> Tensor:
        """The last state [B, H] of x [B, T, H] under attention [B, T]."""
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h, attention[:, t : t + 1])
        return h


def built(name: str, hidden: int, steps: int) -> tuple[nn.Module, Callable[[int], Inputs]]:
    """A seeded model, and what makes its inputs for a batch."""
    torch.manual_seed(0)
    if name == "gru":
        model: nn.Module = Gru(hidden)
        return model.eval(), lambda batch: (torch.randn(batch, steps, model.layer.input_size),)  # type: ignore[union-attr, arg-type]  # nn.Module types no attributes
    if name == "augru":
        return Augru(hidden).eval(), lambda b: (torch.randn(b, steps, hidden).tanh(), torch.rand(b, steps))
    dien.HIDDEN, dien.HISTORY = hidden, {True: steps, False: steps}
    return dien.model(small=False), lambda batch: dien.inputs(batch, small=False)


def pieces(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The numbers of all, in views of 16384 or more."""
    return [piece for t in tensors for piece in t.flatten().split(max(1 << 14, t.numel() // 32))]


def graphed(function: Callable[..., object], inputs: Inputs) -> Call:
    """A CUDA graph of one call that copies the inputs into its own first: all of them in one launch, in pieces, since a
    block of torch's would copy up to 65536 numbers, for 17 us; or, where one has a million numbers, each by its own."""
    own = [t.clone() for t in inputs]
    large = max(t.numel() for t in inputs) >= 1 << 20
    to, given = (own, list(inputs)) if large else (pieces(own), pieces(inputs))
    graph, result = graph_of(lambda: function(*own))

    def call() -> object:
        if large:
            for a, b in zip(to, given, strict=True):
                a.copy_(b)
        else:
            torch._foreach_copy_(to, given)
        graph.replay()
        return result

    return call


def session(model: nn.Module, inputs: Inputs) -> Call:
    """ONNX Runtime on the CPU, from torch's own exporter."""
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(model, inputs, file, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    runtime = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {node.name: t.numpy() for node, t in zip(runtime.get_inputs(), inputs, strict=True)}
    return lambda: torch.from_numpy(runtime.run(None, feed)[0])


def with_compiled_parts(model: nn.Module) -> nn.Module:
    """A copy whose parts but torch's recurrences are compiled by Inductor, each once: of a whole model it compiles the
    unrolled steps for minutes, or, as it does not take `nn.GRU`, each part in a graph of its own."""
    model = copy.deepcopy(model)
    for part in model.children():
        if not isinstance(part, nn.RNNBase):
            part.compile(dynamic=False)
    return model


def peer(name: str, model: nn.Module, fast: recopt.Optimized, inputs: Inputs) -> Call:
    """A peer's call at these inputs, compiled and warm."""
    cuda = inputs[0].is_cuda
    if name == "ours":
        return turns(fast.replay(*inputs), [inputs]) if cuda else partial(fast, *inputs)
    if name == "ours-copies":
        return graphed(fast, inputs)
    if name == "eager":
        return partial(model, *inputs)
    if name == "graph":
        return graphed(model, inputs)
    if name == "compiled-graph":
        return graphed(with_compiled_parts(model), inputs)
    if name == "onnxruntime":
        return session(model, inputs)
    torch._dynamo.reset()
    compiled = torch.compile(model, dynamic=False, mode=None if name == "inductor" else name)
    return partial(compiled, *inputs)


def wall(call: Call, cuda: bool, seconds: float) -> Times:
    """Microseconds of one call, over as many as fit into `seconds`, 20 at least and 200 at most."""
    times: list[float] = []
    for _ in range(3):
        call()
    began = time.perf_counter()
    while len(times) < 20 or (time.perf_counter() - began < seconds and len(times) < 200):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e6)
    return summary(times)


def measure(name: str, hidden: int, steps: int, batches: Sequence[int], peers: Sequence[str], device: str,
            seconds: float) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A row for each batch: times and errors of every peer."""
    model, make = built(name, hidden, steps)
    exact_model = built(name, hidden, steps)[0].double()
    model = model.to(device)
    fast = recopt.optimize(model, tuple(t.to(device) for t in make(4)), target=device, verify="none")
    for batch in batches:
        inputs = make(batch)
        exact = exact_model(*(t.double() if t.is_floating_point() else t for t in inputs))
        scale = exact.square().mean().sqrt()
        placed = tuple(t.to(device) for t in inputs)
        row: dict[str, Any] = {"model": name, "hidden": hidden, "history": steps, "batch": batch, "us": {}, "error": {}}
        for other in peers:
            call = peer(other, model, fast, placed)
            out = call()
            assert isinstance(out, Tensor)
            row["error"][other] = float((out.double().cpu() - exact).abs().max() / scale)
            row["us"][other] = wall(call, device == "cuda", seconds)._asdict()
        yield row


def show(row: dict[str, Any]) -> str:
    """One line: the shape; median, 10th to 90th percentile and error of each; the best other's time over ours."""
    cells = [
        f"{name} {t['median']:.0f} [{t['p10']:.0f}, {t['p90']:.0f}] ({row['error'][name]:.0e})"
        for name, t in row["us"].items()
    ]
    medians = {name: t["median"] for name, t in row["us"].items()}
    others = [v for name, v in medians.items() if not name.startswith("ours")]
    ratio = "".join(f"  {name} x{min(others) / us:.2f}" for name, us in medians.items() if "ours" in name and others)
    shape = f"{row['model']} {row['batch']} x {row['history']}, hidden {row['hidden']}"
    return f"{shape:30s} {'  '.join(cells)}{ratio}"


def main() -> None:
    """Measure and print; JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(PEERS), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--peers", nargs="+")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 256, 2048])
    parser.add_argument("--histories", nargs="+", type=int, default=[50, 100])
    parser.add_argument("--hidden", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring a peer at a shape")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # the exporter's and cuDNN's
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}; wall us: median [p10, p90] (error against float64)")
    found = []
    for model in MODELS if args.only is None else (args.only,):
        for steps in args.histories:
            for hidden in args.hidden:
                peers = args.peers or PEERS[args.device]
                for row in measure(model, hidden, steps, args.batches, peers, args.device, args.seconds):
                    print(show(row), flush=True)
                    found.append(row)
    if args.json:
        args.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "rows": found}))


if __name__ == "__main__":
    with torch.no_grad():
        main()
