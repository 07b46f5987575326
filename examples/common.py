"""What the four examples share: layers, seeded weights, ONNX export, timing and the demonstration itself."""

from __future__ import annotations

import io
import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BATCH = torch.export.Dim("batch")


class Dice(nn.Module):
    """DIN's activation p*x + (1-p)*alpha*x, p = sigmoid(BatchNorm(x)) without affine, alpha per channel (last axis)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of x [B, C] or [B, T, C], in its shape."""
        normed = self.norm(x) if x.dim() == 2 else self.norm(x.transpose(1, 2)).transpose(1, 2)
        p = torch.sigmoid(normed)
        return p * x + (1 - p) * self.alpha * x


def _relu(_: int) -> nn.Module:
    return nn.ReLU()


def mlp(widths: Sequence[int], act: Callable[[int], nn.Module] = _relu, last: nn.Module | None = None) -> nn.Sequential:
    """Build Linear + act(width) for each step of widths; `last` takes the place of the final activation."""
    layers: list[nn.Module] = []
    for k, n in itertools.pairwise(widths):
        layers += [nn.Linear(k, n), act(n)]
    if last is not None:
        layers[-1] = last
    return nn.Sequential(*layers)


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a module in eval mode with seeded weights; statistics and slopes as training leaves them, not 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d):
                assert part.running_mean is not None and part.running_var is not None
                part.running_mean.normal_(0.0, 0.2)
                part.running_var.uniform_(0.5, 2.0)
            if isinstance(part, Dice):
                nn.init.uniform_(part.alpha, -0.25, 0.25)
    return module.eval()


def to_onnx(
    module: nn.Module, args: tuple[Tensor, ...], dynamic_shapes: tuple[dict[int, Any], ...], dynamo: bool = True
) -> bytes:
    """Return the ONNX file that one of torch's two exporters makes; dynamo=False is the TorchScript one (opset 17)."""
    names = [f"input_{i}" for i in range(len(args))]
    if dynamo:
        with warnings.catch_warnings():
            # The exporter speaks of torchvision, its own deprecated calls and merged names of the batch.
            warnings.simplefilter("ignore")
            for library in ("torch.onnx", "onnx_ir", "onnxscript"):
                logging.getLogger(library).setLevel(logging.ERROR)
            program = torch.onnx.export(
                module, args, dynamo=True, dynamic_shapes=dynamic_shapes, input_names=names, verbose=False
            )
        assert program is not None
        return bytes(program.model_proto.SerializeToString())
    file = io.BytesIO()
    axes: dict[str, dict[int, str]] = {
        name: {axis: "batch" for axis in shape} for name, shape in zip(names, dynamic_shapes, strict=True)
    }
    axes["output"] = {0: "batch"}
    torch.onnx.export(
        module,
        args,
        file,  # type: ignore[arg-type]  # the TorchScript exporter writes to a file object too
        dynamo=False,
        dynamic_axes=axes,
        input_names=names,
        output_names=["output"],
        opset_version=17,
    )
    return file.getvalue()


def ort_session(file: bytes, spins: bool = False) -> Any:
    """Open an ONNX file in ONNX Runtime on the CPU, with as many threads as torch uses; `spins`: which wait for work
    awake within a call, as they do unless told otherwise."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # A second session's idle threads would spin on the cores that the first is timed on.
    entry = ("session.force_spinning_stop", "1") if spins else ("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(*entry)
    options.log_severity_level = 3  # each EmbeddingBag of the TorchScript exporter draws a warning a pass
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def run_ort(session: Any, args: tuple[Tensor, ...]) -> list[np.ndarray[Any, Any]]:
    """Run a session on torch tensors in the order of its inputs; return its outputs."""
    feeds = {spec.name: arg.numpy() for spec, arg in zip(session.get_inputs(), args, strict=True)}
    return list(session.run(None, feeds))


def compare(
    before: Callable[..., object], after: Callable[..., object], args: tuple[Tensor, ...], seconds: float = 1.0
) -> tuple[float, float, float]:
    """Time two functions of args in turn; return (before in s, after in s, after / before), each a median.

    The ratio is the median over adjacent pairs, whose order alternates: a drift of the machine falls on both.
    """

    def once(function: Callable[..., object]) -> float:
        start = time.perf_counter()
        function(*args)
        return time.perf_counter() - start

    for _ in range(3):
        once(before)
        once(after)
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < 6 or time.perf_counter() < end:
        pairs.append((once(before), once(after)))
        late = once(after)
        pairs.append((once(before), late))
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def demo(
    name: str,
    model: Callable[[], nn.Module],
    inputs: Callable[[int], tuple[Tensor, ...]],
    dynamic_shapes: Callable[[], tuple[dict[int, Any], ...]],
) -> None:
    """Optimise a model on both hosts; check its outputs; print the report and the speed before and after."""
    import onnx
    import onnx_ir

    import recopt

    module, shapes = model(), dynamic_shapes()
    print(f"== {name}: torch")
    program = recopt.optimize(module, inputs(4), dynamic_shapes=shapes)
    print(program.report)
    print(f"== {name}: ONNX")
    file = to_onnx(module, inputs(4), shapes)
    rewritten = recopt.optimize(onnx.load_from_string(file), target="ort-cpu")
    print(rewritten.report)
    original = ort_session(file)
    session = ort_session(onnx_ir.to_proto(rewritten.model).SerializeToString())

    print(f"== {name}: speed")
    hosts: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "torch": (module, program),
        "ONNX Runtime": (lambda *args: run_ort(original, args)[0], lambda *args: run_ort(session, args)[0]),
    }
    with torch.no_grad():
        for batch in (1, 256):
            args = inputs(batch)
            for host, (before, after) in hosts.items():
                torch.testing.assert_close(torch.as_tensor(after(*args)), module(*args))
                a, b, ratio = compare(before, after, args)
                print(f"{host:13} batch {batch:4}: {a * 1e3:8.3f} ms -> {b * 1e3:8.3f} ms, {1 / ratio:.2f}x")
