"""Operators that torch itself writes as calls of others, as an ONNX function is written: `chain_matmul` is `mm`s."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from . import fx_ops

MAX_CALLS = 12  # more of them hide what the operator is
_UNROLLED = ("aten.gru", "aten.lstm", "aten.rnn")  # written as their steps: hundreds of calls, traced for seconds
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def is_composite(target: object) -> bool:
    """Whether torch makes an operator of a few others, on every device."""
    if not isinstance(target, torch._ops.OpOverload) or str(target).startswith(_UNROLLED):
        return False
    return target.has_kernel_for_dispatch_key(_COMPOSITE)


def operands(node: fx.Node) -> list[fx.Node]:
    """The nodes among a call's arguments, each as often as it stands there."""
    return [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, fx.Node)]


def body(node: fx.Node, known: Container[str]) -> tuple[fx.Graph, list[fx.Node]] | None:
    """The calls that a composite operator makes for the types and sizes that it has here, a placeholder for each of
    `operands`, and its results; None where these are many, or one is not `known` or needs a tensor of its own."""
    target, (leaves, spec) = node.target, pytree.tree_flatten((node.args, node.kwargs))
    places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, fx.Node)]

    def call(*given: Any) -> Any:
        for place, value in zip(places, given, strict=True):
            leaves[place] = value
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return target(*args, **kwargs)  # type: ignore[operator]  # an operator

    try:
        with torch.no_grad(), enable_python_dispatcher():
            graph = make_fx(call, tracing_mode="symbolic")(*(n.meta["val"] for n in operands(node))).graph
    except Exception:  # operators and the tracer raise anything; the call stays as it is then
        return None
    calls = [n for n in graph.nodes if n.op not in ("placeholder", "output")]
    if len(calls) > MAX_CALLS or any(n.op != "call_function" or fx_ops.op_name(n.target) not in known for n in calls):
        return None
    results = pytree.tree_leaves(graph.output_node().args)
    return (graph, results) if all(isinstance(r, fx.Node) for r in results) else None
