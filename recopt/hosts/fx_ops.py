"""What the FX host knows of torch's operators, names and arrays; nothing here holds state."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import fx
from torch._ops import OpOverload

from ..errors import GraphError
from .base import Array, Node, Value

NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_PURE_NAMESPACES = ("aten", "prims", "recopt")
# Their result depends on memory or strides, which the graph does not say.
_UNSPECIFIED = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "as_strided")
_ALIASES = frozenset(
    "aten.dropout.default aten.feature_dropout.default aten.alpha_dropout.default aten.feature_alpha_dropout.default"
    " aten.detach.default aten.alias.default aten.lift_fresh.default aten.lift_fresh_copy.default".split()
)
_COPIES = frozenset(
    "aten.clone.default aten._to_copy.default aten.contiguous.default aten.to.dtype aten.to.dtype_layout aten.to.device"
    " aten.to.other aten.type_as.default".split()
)
_PROVENANCE = ("stack_trace", "nn_module_stack", "source_fn_stack")
# Modules whose plain functions on numbers appear in exported graphs.
_NUMERIC = {"_operator": "operator", "operator": "operator", "math": "math", "torch": "torch"}


def name(item: object) -> str:
    """A dtype, device, layout or memory format as text: "float32", "cpu", "strided", "contiguous_format"."""
    return str(item).removeprefix("torch.")


def op_name(target: Any) -> str:
    """ "aten.addmm.default", "operator.mul", "higher_order.cond"."""
    if isinstance(target, OpOverload):
        return str(target)
    return f"{_NUMERIC.get(getattr(target, '__module__', ''), 'higher_order')}.{getattr(target, '__name__', target)}"


def resolve(op: str) -> Any:
    """The function that `op` names. Raises GraphError when there is none."""
    namespace, _, rest = op.partition(".")
    try:
        if namespace == "operator":
            return getattr(__import__("operator"), rest)
        packet, overload = rest.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    except (AttributeError, ValueError, RuntimeError) as error:
        raise GraphError(f"torch has no operator {op}") from error


def is_opaque(node: fx.Node) -> bool:
    """Whether a call has a sub-graph, an effect or randomness, or is none of torch's own operators."""
    target = node.target
    if not isinstance(target, OpOverload):
        return getattr(target, "__module__", "") not in _NUMERIC
    schema = target._schema
    if target.namespace not in _PURE_NAMESPACES or not schema.returns or schema.is_mutable:
        return True
    if target._opname in _UNSPECIFIED:
        return True
    return torch.Tag.nondeterministic_seeded in target.tags and _draws(node, target)


def _draws(node: fx.Node, target: OpOverload) -> bool:
    """Whether an operator that can draw random numbers does: not in evaluation, nor with a dropout of 0."""
    given: dict[str, Any] = {}
    for i, argument in enumerate(target._schema.arguments):
        default = node.kwargs.get(argument.name, argument.default_value)
        given[argument.name] = node.args[i] if i < len(node.args) else default
    evaluating = given.get("train") is False or given.get("training") is False
    return not evaluating and given.get("dropout") != 0 and given.get("dropout_p") != 0


def is_identity(handle: Node, node: fx.Node) -> bool:
    """Whether a call that is not opaque returns its first argument as it is, strides included."""
    if handle.op in _ALIASES:
        return True
    if handle.op not in _COPIES or any(user.op == "output" for user in node.users):
        return False  # a caller that was given a copy may write to it
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return False
    a, b = source.meta["val"], node.meta["val"]
    same = a.dtype == b.dtype and a.device == b.device and a.layout == b.layout
    return same and str((a.shape, a.stride())) == str((b.shape, b.stride()))


def key(tree: object, of: Callable[[fx.Node], object] = lambda node: node) -> object:
    """Arguments as a dict key, nodes in it by `of`; 1, 1.0 and True are different, and so are 0.0 and -0.0."""
    if isinstance(tree, fx.Node):
        return of(tree)
    if isinstance(tree, (tuple, list)):
        return tuple(key(item, of) for item in tree)
    if isinstance(tree, dict):
        return tuple(sorted((k, key(item, of)) for k, item in tree.items()))
    return type(tree), repr(tree)


def arguments(
    target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], node_of: Callable[[Value], fx.Node]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Host arguments as FX arguments: values to nodes, names to torch's dtypes, devices and formats by the schema."""
    schema = target._schema.arguments if isinstance(target, OpOverload) else []
    types: dict[int | str, str] = {a.name: str(a.real_type) for a in schema}
    types.update({i: str(a.real_type) for i, a in enumerate(schema)})

    def write(arg: Any, kind: str) -> Any:
        if isinstance(arg, Value):
            return node_of(arg)
        if isinstance(arg, (tuple, list)):
            return [write(item, kind) for item in arg]
        if isinstance(arg, str) and "Device" in kind:
            return torch.device(arg)
        if isinstance(arg, str) and any(word in kind for word in ("ScalarType", "Layout", "MemoryFormat")):
            return getattr(torch, arg)
        return arg.item() if isinstance(arg, np.generic) else arg

    written = tuple(write(arg, types.get(i, "")) for i, arg in enumerate(args))
    return written, {k: write(arg, types.get(k, "")) for k, arg in kwargs.items()}


def provenance(node: fx.Node) -> dict[str, Any]:
    """The metadata that says where in the user's program a node comes from."""
    return {item: node.meta[item] for item in _PROVENANCE if item in node.meta}


class Uncompiled(fx.GraphModule):
    """A graph and what it names, without fx's code for it, which most copies never run: `compile_code` makes that."""

    def recompile(self) -> Any:
        """Nothing: called by fx whenever a graph is set."""

    def compile_code(self) -> None:
        """Make `forward` run the graph as it is now."""
        super().recompile()


def copy(source: fx.GraphModule) -> Uncompiled:
    """A copy of the graph with its metadata; sub-modules (the bodies of higher-order operators) are shared."""
    module = Uncompiled(source, copy_graph(source.graph))
    module.meta.update(source.meta)
    return module


def copy_graph(source: fx.Graph) -> fx.Graph:
    """A copy of a graph with its metadata and names."""
    graph = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(source, nodes))
    for old, new in nodes.items():
        new.name = old.name  # also where it is a builtin's, as "input" is: signatures refer to names
    return graph


def to_numpy(tensor: torch.Tensor) -> Array:
    """A view of a CPU tensor's storage, a copy of any other. Raises GraphError for sparse and quantised tensors."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise GraphError(f"a tensor of layout {name(tensor.layout)} and dtype {name(tensor.dtype)} is no plain array")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    special = _special(name(tensor.dtype))
    if special is None:
        return plain.numpy()
    return plain.view(torch.int16 if plain.element_size() == 2 else torch.uint8).numpy().view(special)


def to_torch(array: Array) -> torch.Tensor:
    """A tensor over an array's memory; only negative strides, which torch cannot hold, cost a copy."""
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    kind = array.dtype.name
    if _special(kind) is not None:
        bits = np.dtype(np.int16) if array.itemsize == 2 else np.dtype(np.uint8)
        return to_torch(array.view(bits)).view(getattr(torch, kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an array that is not writable: recopt never writes to constants
        try:
            return torch.from_numpy(array)
        except TypeError as error:
            raise GraphError(f"torch has no tensors of {kind}") from error


def on(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device, its strides kept: rows that are padded apart stay so."""
    if tensor.device == device:
        return tensor
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device).copy_(tensor)


def _special(kind: str) -> Any:
    """The ml_dtypes type of a torch dtype that numpy lacks."""
    return getattr(ml_dtypes, kind) if kind.startswith(("bfloat16", "float8")) and hasattr(ml_dtypes, kind) else None
