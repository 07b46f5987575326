"""Every lifted definition against what its host computes, node by node: names the operator whose meaning is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sympy

from recopt.hosts.base import Array, Host, Value
from recopt.ir import sizes
from recopt.ir.evaluate import evaluate
from recopt.ir.rules import FLOATS
from recopt.ir.term import Leaf
from recopt.lift import lift

# Relative to the largest magnitude: sums of thousands of float32 products, and functions that the runtimes approximate.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
LARGEST = 1 << 22  # elements that the evaluator may be asked for


def values_of(host: Host, feeds: Sequence[Array]) -> dict[Value, Array]:
    """What the host itself computes for every value of its main graph."""
    return _onnx(host, feeds) if host.dialect == "onnx" else _fx(host, feeds)


def _onnx(host: Any, feeds: Sequence[Array]) -> dict[Value, Array]:
    import onnx
    import onnx_ir
    import onnxruntime

    proto = onnx_ir.to_proto(onnx_ir.external_data.load_to_model(host.model.clone()))
    known = {out.name for out in proto.graph.output}
    wanted = [v for node in host.nodes for v in node.outputs if v.name and v.dtype is not None]
    proto.graph.output.extend(onnx.ValueInfoProto(name=v.name) for v in wanted if v.name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {v.name: np.asarray(f) for v, f in zip(host.inputs, feeds, strict=True)}
    results = session.run([v.name for v in wanted], given)
    return dict(zip(host.inputs, map(np.asarray, feeds), strict=True)) | {
        v: r for v, r in zip(wanted, results, strict=True) if isinstance(r, np.ndarray)
    }


def _fx(host: Any, feeds: Sequence[Array]) -> dict[Value, Array]:
    import torch

    from recopt.hosts import fx_ops

    found: dict[Any, Any] = {}

    class Recorder(torch.fx.Interpreter):  # type: ignore[misc]
        def run_node(self, n: torch.fx.Node) -> Any:
            found[n] = super().run_node(n)
            return found[n]

    given = iter(feeds)
    args = []
    for node, spec in host._specs_in_order().items():
        if node in host._fed():
            feed = next(given)
            args.append(feed.item() if host._values[node].scalar else fx_ops.to_torch(np.asarray(feed)))
        else:
            args.append(getattr(spec.arg, "value", None) if spec.target is None else host._tensors[spec.target])
    with torch.no_grad():
        Recorder(host._gm).run(*args)
    result = {}
    for n, out in found.items():
        values = [host._values[n]] if n in host._values else list(host._nodes[n].outputs) if n in host._nodes else []
        for value, item in zip(values, [out] if n in host._values else out, strict=False):
            if isinstance(item, (torch.Tensor, int, float, bool)):
                result[value] = fx_ops.to_numpy(torch.as_tensor(item).detach())
    return result


def bind(symbols: dict[str, int], shape: Sequence[Any], actual: Sequence[int]) -> str | None:
    """Give symbols the values that a shape shows; what is wrong with the shape, else None."""
    for size, extent in zip(shape, actual, strict=True):
        if isinstance(size, sympy.Symbol):
            symbols.setdefault(size.name, extent)
        try:
            expected = sizes.evaluate(size, symbols)
        except KeyError:
            continue
        if expected != extent:
            return f"shape {tuple(shape)} where the host has {tuple(actual)} at {symbols}"
    return None


def disagreements(host: Host, feeds: Sequence[Array]) -> list[str]:
    """`value (operator): what differs` for every definition that is not what the host computes on `feeds`."""
    lifted = lift(host)
    actual = values_of(host, feeds)
    symbols: dict[str, int] = {}
    found = []
    for value in [*host.inputs, *(v for node in host.nodes for v in node.outputs)]:
        if value in actual and value.shape is not None and len(value.shape) == actual[value].ndim:
            wrong = bind(symbols, value.shape, actual[value].shape)
            if wrong is not None:
                found.append(f"{value.name} ({value.node.op if value.node else 'input'}): declared {wrong}")

    def leaf(source: Leaf) -> Array:
        assert isinstance(source, Value)
        return actual[source] if source in actual else host.constant(source)

    for value, meaning in lifted.definition.items():
        if value not in actual or actual[value].size > LARGEST or value.node is None:
            continue
        where = f"{value.name} ({value.node.op})"
        truth = actual[value]
        try:
            wrong = bind(symbols, meaning.shape, truth.shape) if truth.ndim == len(meaning.dims) else "another rank"
            got = evaluate(meaning, leaf, symbols)
        except Exception as error:  # whatever it is, the meaning cannot be what the host computed
            found.append(f"{where}: {type(error).__name__}: {error}")
            continue
        wrong = wrong or _differs(got, truth, value.dtype or "float32")
        if wrong is not None:
            found.append(f"{where}: {wrong}")
    return found


def _differs(got: Array, truth: Array, dtype: str) -> str | None:
    if got.shape != truth.shape:
        return f"shape {got.shape} instead of {truth.shape}"
    if dtype not in FLOATS:
        return None if np.array_equal(got, truth) else f"{int((got != truth).sum())} of {truth.size} elements differ"
    a, e = got.astype(np.float64), truth.astype(np.float64)
    finite = np.abs(e[np.isfinite(e)])
    scale = max(float(finite.max()) if finite.size else 0.0, 1.0)
    with np.errstate(all="ignore"):
        off = np.where((a == e) | (np.isnan(a) & np.isnan(e)), 0.0, np.abs(a - e) / scale)
    off = np.where(np.isnan(off), np.inf, off)
    worst = float(off.max()) if off.size else 0.0
    return None if worst <= TOLERANCE[dtype] else f"off by {worst:.1e} of the largest magnitude"
