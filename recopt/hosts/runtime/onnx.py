"""What runs an `onnx_ir.Model`: ONNX Runtime in this process or in one of its own, onnx's checker before it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import onnx.shape_inference
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from ...errors import GraphError, VerifyError
from ..base import Array
from ..model.onnx import (
    EMBEDDED_LIMIT,
    OLDEST_OPSET,
    embedded_bytes,
    external_tensors,
    initialized,
    inner_nodes,
    line,
    save,
    skeleton,
)


def validate(model: ir.Model, *, strict: bool = False) -> bool:
    """Raise GraphError unless onnx's checker and type inference accept `model`; returns whether both do.

    Both refuse some programs that run (outputs without a shape, shape rules stricter than the operators), so that
    unless `strict` what they refuse is an error only when ONNX Runtime refuses it as well.
    """
    with skeleton(model) as proto:
        try:
            kind = "not a valid graph"
            onnx.checker.check_model(proto)
            kind = "ill-typed graph"
            onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
        except Exception as error:  # onnx raises errors of many unrelated classes
            if strict or not _loads(proto):
                raise GraphError(f"{kind}: {line(error)}") from error
            return False
    return True


def _loads(proto: onnx.ModelProto) -> bool:
    try:
        session(proto, optimise=False)
    except Exception:  # ONNX Runtime's too
        return False
    return True


def session(model: onnx.ModelProto | Path, *, optimise: bool = True, folder: str | None = None) -> Any:
    """An ONNX Runtime CPU session that takes no more threads than there are cores and leaves none spinning."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    for entry in _settings(folder).items():
        options.add_session_config_entry(*entry)
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    source = os.fspath(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _settings(folder: str | None) -> dict[str, str]:
    # Its default multiplies a float by an 8-bit weight in int8: measured error 0.004 where the file says fp32.
    settings = {"session.intra_op.allow_spinning": "0", "session.qdq_matmulnbits_accuracy_level": "1"}
    if folder is not None:
        settings["session.model_external_initializers_file_folder_path"] = folder
    return settings


def open_session(model: ir.Model) -> Any:
    """An ONNX Runtime session of `model`; external data is read where it lies."""
    folders = {os.fspath(tensor.base_dir) for tensor in external_tensors(model)}
    if len(folders) > 1 or embedded_bytes(model) > EMBEDDED_LIMIT:
        with tempfile.TemporaryDirectory() as folder:
            save(model, Path(folder) / "model.onnx")
            return session(Path(folder) / "model.onnx")
    return session(ir.to_proto(model), folder=(folders.pop() or ".") if folders else None)


def element_type(array: Array) -> int:
    return onnx.TensorProto.STRING if array.dtype.kind in "OUS" else int(ir.DataType.from_numpy(array.dtype))


def evaluate(model: ir.Model, nodes: Sequence[ir.Node], feeds: Mapping[str, Array], output: str) -> Array:
    """The value `output` that `nodes` of `model` compute from `feeds`, in ONNX Runtime without optimisation."""
    infos = [onnx.helper.make_tensor_value_info(n, element_type(a), a.shape) for n, a in feeds.items()]
    graph = onnx.GraphProto(name="constant", node=[ir.to_proto(node) for node in nodes], input=infos)
    graph.output.append(onnx.ValueInfoProto(name=output))
    proto = onnx.ModelProto(
        ir_version=model.ir_version, graph=graph, functions=[ir.to_proto(f) for f in model.functions.values()]
    )
    try:
        opsets = _as_old_as_can_be(model, nodes)
        proto.opset_import.extend(onnx.OperatorSetIdProto(domain=d, version=v) for d, v in opsets.items())
        if any(element_type(a) == onnx.TensorProto.BFLOAT16 for a in feeds.values()):  # ORT takes none from numpy
            return cast(Array, ReferenceEvaluator(proto).run(None, dict(feeds))[0])  # type: ignore[index]  # one output was asked for
        return np.asarray(session(proto, optimise=False).run([output], dict(feeds))[0])
    except Exception as error:  # onnx and ONNX Runtime raise errors of many unrelated classes
        raise GraphError(f"the constant {output!r} cannot be computed: {line(error)}") from error


def _as_old_as_can_be(model: ir.Model, nodes: Sequence[ir.Node]) -> dict[str, int]:
    """The operator sets of `model`, the standard one as old as its operators in `nodes` are: ONNX Runtime computes what
    has not changed though the model's own opset is newer than it knows."""
    opsets = dict(model.opset_imports)
    inner = [n for node in nodes for n in inner_nodes(node)]
    if all(n.domain in ("", "ai.onnx") for n in inner) and "" in opsets:
        schemas = [onnx.defs.get_schema(n.op_type, opsets[""], "") for n in inner]
        opsets[""] = max(OLDEST_OPSET, *(schema.since_version for schema in schemas))
    return opsets


def has_recurrence(model: ir.Model) -> bool:
    """Whether a node is recurrent: ONNX Runtime 1.31 ends the process on one whose batch is empty, as it may become
    where rows are picked by their values."""
    nodes = [*model.graph, *(node for function in model.functions.values() for node in function)]
    return any(inner.op_type in {"GRU", "LSTM", "RNN"} for node in nodes for inner in inner_nodes(node))


APART_SECONDS = 60  # what the other process may take: 0.3 s is usual
# What it does: it imports nothing of recopt, which takes seconds.
_APART = """
import pickle, sys
import onnxruntime as ort
model, settings, feeds = pickle.load(sys.stdin.buffer)
options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 4
for entry in settings.items():
    options.add_session_config_entry(*entry)
ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)
"""


def ends_processes(model: ir.Model) -> bool:
    """Whether ONNX Runtime may end the process on `model`: where a node is recurrent, and on some float16 models before
    it runs them (1.31 on a half precision `nn.MultiheadAttention` that TorchScript exported)."""
    values = [*model.graph.inputs, *initialized(model)]
    half = any(v.dtype == ir.DataType.FLOAT16 for v in values)
    return has_recurrence(model) or (half and not external_tensors(model) and embedded_bytes(model) <= EMBEDDED_LIMIT)


def run_apart(model: ir.Model, feeds: Mapping[str, Array]) -> None:
    """Run `model` in a process of its own. Raises VerifyError where that fails, however it does."""
    folders = {os.fspath(tensor.base_dir) for tensor in external_tensors(model)}
    if len(folders) > 1 or embedded_bytes(model) > EMBEDDED_LIMIT:
        raise VerifyError("the model is too large to be tried on inputs that nobody has vouched for")
    settings = _settings((folders.pop() or ".") if folders else None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _APART],
            input=pickle.dumps((ir.to_proto(model).SerializeToString(), settings, dict(feeds))),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=False,
            timeout=APART_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise VerifyError(f"ONNX Runtime does not end within {APART_SECONDS} s on them") from None
    if done.returncode < 0:
        raise VerifyError("ONNX Runtime ends its process on them")
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        raise VerifyError(f"ONNX Runtime refuses the model: {last[:300]}")
