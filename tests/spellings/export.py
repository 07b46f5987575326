"""The three roads into the engine: torch.export and torch's two ONNX exporters, with a symbolic batch."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

# Read anew for each export it is half the time of a small one; only exports with translations of their own add to it.
TORCHLIB = functools.cache(ONNXRegistry.from_torchlib)
torch.backends.opt_einsum.enabled = False  # where it is installed, an einsum of three operands fixes the batch
BATCH = 4  # of the example inputs; any other batch must do as well


def to_program(module: nn.Module, args: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """Export a module as users do: no decompositions, dimension 0 of each input symbolic."""
    shapes = tuple({0: torch.export.Dim("batch")} for _ in args)
    return torch.export.export(module, args, dynamic_shapes=(shapes,), strict=False)


def to_onnx(module: nn.Module, args: tuple[Tensor, ...], dynamo: bool, sizes: Sequence[str] | None = None) -> bytes:
    """Return the ONNX file of torch's dynamo exporter, or of its TorchScript one (opset 17). `sizes` are the names of
    the inputs' dimension 0, "batch" where they are not given; the dynamo exporter finds out itself which are alike."""
    names = [f"x{i}" for i in range(len(args))]
    named = sizes or ["batch"] * len(args)
    if dynamo:
        alike = torch.export.Dim("batch") if sizes is None else torch.export.Dim.AUTO
        shapes = tuple({0: alike} for _ in args)
        with mock.patch.object(ONNXRegistry, "from_torchlib", staticmethod(TORCHLIB)):
            program = torch.onnx.export(
                module, args, dynamo=True, dynamic_shapes=(shapes,), input_names=names, verbose=False
            )
        assert program is not None
        return bytes(program.model_proto.SerializeToString())
    file = io.BytesIO()
    torch.onnx.export(
        module,
        args,
        file,  # type: ignore[arg-type]  # the TorchScript exporter writes to a file object too
        dynamo=False,
        input_names=names,
        output_names=["y"],
        dynamic_axes={name: {0: size} for name, size in zip([*names, "y"], [*named, named[0]], strict=True)},
        opset_version=17,
    )
    return file.getvalue()


def run_onnx(file: bytes, args: tuple[Any, ...]) -> list[np.ndarray[Any, Any]]:
    """Run an ONNX file in ONNX Runtime on the CPU, on inputs in the order of the file's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Its default multiplies a quantised 8-bit weight with an int8 x: measured error 0.02 where the file says fp32.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feeds = {spec.name: np.asarray(arg) for spec, arg in zip(session.get_inputs(), args, strict=True)}
    return list(session.run(None, feeds))


def runs_as(model: onnx.ModelProto, folder: Path) -> list[str]:
    """The operators that ONNX Runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node]
