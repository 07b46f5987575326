"""The FX host's graph as a callable module with the original's signature and little work besides the operators.

Measured on torch 2.13, one CPU thread, batch 1: an operator called through its overload costs 0.8 to 1.5 us more than
through torch's own binding (relu 1.97 / 1.16 us, cat 2.91 / 1.40 us), so known overloads are called by the bindings.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, OutputKind, OutputSpec
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.fx.graph_module import reduce_graph_module
from torch.utils._pytree import TreeSpec

from ..errors import GraphError
from . import fx_call, fx_index, fx_pad
from .fx_numbers import NAME, Numbers, made_of_numbers, with_tensors
from .fx_spread import spread

# Overloads whose schema is that of the binding torch.<name> or torch._C._nn.<name>, argument by argument.
_TORCH = frozenset(
    "abs adaptive_avg_pool1d add addcdiv addcmul addmm all amax amin any arange argmax argmin argsort atan2"
    " avg_pool1d baddbmm batch_norm bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift"
    " bitwise_xor bmm broadcast_to bucketize cat ceil celu channel_shuffle chunk clamp clamp_max clamp_min clone"
    " column_stack concat constant_pad_nd conv1d conv2d conv3d cos cosh count_nonzero cumprod cumsum diagonal div dot"
    " embedding embedding_bag eq erf exp exp2 expm1 flatten flip fliplr flipud floor floor_divide fmod frac full"
    " full_like gather ge group_norm gt hstack hypot index_select isclose isfinite isinf isnan layer_norm le lerp log"
    " log10 log1p log2 log_softmax logical_and logical_not logical_or logical_xor logit logsumexp lt masked_fill"
    " matmul max max_pool1d maximum mean min minimum mm movedim mul mv nan_to_num narrow ne neg ones_like outer"
    " permute pixel_shuffle pixel_unshuffle pow prelu prod reciprocal relu remainder repeat_interleave reshape"
    " rms_norm roll rot90 round rsqrt rsub scatter scatter_add searchsorted select selu sgn sigmoid sign signbit sin"
    " sinh softmax sort split_with_sizes sqrt square squeeze stack std sub sum t take tan tanh tensor_split tile topk"
    " transpose tril triu trunc unbind unsqueeze var vstack where zeros_like".split()
)
_NN = frozenset(
    "elu gelu hardsigmoid hardswish hardtanh leaky_relu linear log_sigmoid mish one_hot relu6"
    " scaled_dot_product_attention silu softplus".split()
)
_DIMENSIONS = frozenset("amax amin mean sum".split())
_METHODS = {
    "aten.sym_size.int": "size", "aten.expand.default": "expand", "aten.contiguous.default": "contiguous",
    "aten.to.dtype": "to", "aten.unfold.default": "unfold", "aten.repeat.default": "repeat",
    "aten.expand_as.default": "expand_as",
}  # fmt: skip
_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor,
    "__lshift__": operator.lshift, "__rshift__": operator.rshift,
}  # fmt: skip
_CASTS = {
    torch.float64: "double", torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat16",
    torch.int64: "long", torch.int32: "int", torch.bool: "bool",
}  # fmt: skip
_ASSERTION = torch.ops.aten._assert_tensor_metadata.default

Calls: TypeAlias = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Parts:
    """What a module is built from: the lifted graph, its specs, the stored tensors and the structure of a call."""

    graph: fx.Graph
    submodules: Mapping[str, Any]
    inputs: Mapping[fx.Node, InputSpec]
    shapes: Mapping[fx.Node, tuple[int | str, ...] | None]  # of the inputs; None where there is nothing to check
    outputs: Sequence[OutputSpec]
    tensors: Mapping[str, tuple[torch.Tensor, bool | None]]  # persistent: None for a parameter
    in_spec: TreeSpec
    out_spec: TreeSpec
    names: Sequence[str]
    calls: Calls  # plain functions that stand for operators, by operator


class Program(fx.GraphModule):
    """An optimized model: a GraphModule that can be moved between devices, copied and pickled."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Program:
        """Move tensors as nn.Module does, and with them the devices that the graph names (of arange, zeros, ...)."""
        before = _device(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's method is untyped
        after = _device(self)
        if before is None or after is None or before == after:
            return self
        for node in self.graph.nodes:
            if any(isinstance(arg, torch.device) for arg in (*node.args, *node.kwargs.values())):
                node.args = tuple(after if isinstance(arg, torch.device) else arg for arg in node.args)
                node.kwargs = {k: after if isinstance(arg, torch.device) else arg for k, arg in node.kwargs.items()}
        self.recompile()
        return self

    def recompile(self) -> Any:
        """fx's code, and a call past nn.Module's. Each GraphModule has a class of its own, where fx puts its call."""
        code = super().recompile()
        type(self).__call__ = fx_call.entry(self, code)  # type: ignore[method-assign]  # as fx does
        return code

    def __reduce__(self) -> tuple[Any, ...]:
        _, state = super().__reduce__()
        return _load_program, state

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        state = {key: copy.deepcopy(self.__dict__[key], memo) for key in _STATE}
        return _assemble(state, copy.deepcopy(self.graph, memo))


# What fx.GraphModule rebuilds from the graph's uses alone, losing second names and which buffers are persistent.
_STATE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def _assemble(state: Mapping[str, Any], graph: fx.Graph) -> Program:
    """A Program over `graph` that stores exactly what `state`, a module's __dict__, does."""
    root = torch.nn.Module()
    root.__dict__.update({key: state[key] for key in _STATE})
    program = Program(root, graph, "Program")
    program.__dict__.update({key: state[key] for key in _STATE})
    program.graph.on_generate_code(lambda _: lambda lines: _read_directly(program, lines))
    program.recompile()
    return program


def _read_directly(program: Program, lines: list[str]) -> list[str]:
    """The generated code with tensors read from their modules' own dictionaries: through nn.Module.__getattr__ a weight
    that lies two modules deep costs 2 us a call, which for tables by the dozen is most of a batch of one."""
    direct = {}
    for path, module in program.named_modules(remove_duplicate=False):
        steps = path.split(".") if path else []
        within = "".join(["self", *(f"._modules[{step!r}]" for step in steps)])
        for kind in ("_parameters", "_buffers"):
            for name in getattr(module, kind):
                direct[_attribute([*steps, name])] = f"{within}.{kind}[{name!r}]"

    def read(line: str) -> str:
        text = line.partition(" = ")[2].partition(";")[0].strip()
        return line.replace(text, direct[text], 1) if text in direct else fx_index.without_calls(line)

    return [read(line) for line in lines]


def _attribute(path: Sequence[str]) -> str:
    """How generated code spells the attribute at a path."""
    text = "self"
    for step in path:
        text = f"{text}.{step}" if step.isidentifier() else f'getattr({text}, "{step}")'
    return text


def _load_program(body: dict[Any, Any], imports: str) -> Program:
    state = {key: body[key] for key in _STATE}
    module = reduce_graph_module(body, imports)
    assert isinstance(module, fx.GraphModule)
    return _assemble(state, module.graph)


def expect(name: str, value: object, expected: object) -> None:
    """Raise GraphError unless a number, string or None that capture froze is given again."""
    if type(value) is not type(expected) or value != expected:
        raise GraphError(f"input {name} was {expected!r} when the model was captured and is part of it, got {value!r}")


def items(name: str, value: Any, keys: tuple[Any, ...]) -> tuple[Any, ...]:
    """The members of a dict by `keys`, or of a list or tuple of as many; GraphError for another structure."""
    if isinstance(value, dict):
        if len(value) == len(keys) and all(key in value for key in keys):
            return tuple([value[key] for key in keys])
    elif isinstance(value, (list, tuple)) and len(value) == len(keys):
        return tuple(value)
    raise GraphError(f"input {name} needs {len(keys)} members {list(keys)}, got a {type(value).__name__}")


def einsum(equation: str, operands: list[torch.Tensor]) -> torch.Tensor:
    """The operator by torch's binding, 2.9 us where the overload takes 4.0 and torch.einsum, which plans, 4.8."""
    if torch.compiler.is_compiling():  # Dynamo does not know the binding
        return torch.ops.aten.einsum.default(equation, operands)  # type: ignore[no-any-return]  # torch.ops is untyped
    return torch._VF.einsum(equation, operands)  # type: ignore[attr-defined, no-any-return]  # no stub


def build(parts: Parts) -> Program:
    """A callable module: same arguments and results as the captured one, parameters under their original names."""
    graph = fx.Graph()
    root = torch.nn.Module()
    for name, submodule in parts.submodules.items():
        root.add_module(name, submodule)
    for target, (tensor, persistent) in parts.tensors.items():
        _register(root, target, tensor, persistent)
    plain = _plain(parts.in_spec, True) and _plain(parts.out_spec, False)
    if not plain:
        graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(list(parts.names), parts.in_spec, parts.out_spec)))
    users = [node for node, spec in parts.inputs.items() if spec.target is None]
    fed = _unpack(graph, parts, [node.name for node in users], plain)
    env = dict(zip(users, fed, strict=True))
    for user, node in env.items():
        node.meta.update({k: v for k, v in user.meta.items() if k == "val"})
    _guard(graph, root, env, parts)
    written = {n: s.target or "" for n, s in parts.inputs.items() if s.kind is InputKind.CONSTANT_TENSOR}
    constants = {n: parts.tensors[target][0] for n, target in written.items() if target in parts.tensors}
    numbers, made = Numbers(), made_of_numbers(parts.graph, constants)
    for node in parts.graph.nodes:
        if node in made:
            if (known := made[node]) is not None:
                env[node] = graph.get_attr(numbers.keep(known))
        elif node.op == "placeholder":
            if node in env or not node.users:
                continue
            stored = parts.inputs[node].target
            assert stored is not None
            env[node] = graph.get_attr(stored)
            env[node].meta.update({k: v for k, v in node.meta.items() if k == "val"})
        elif node.target is _ASSERTION and node.args[0] in env and parts.shapes.get(node.args[0]) is not None:
            continue  # the check of the inputs asks
        elif fx_index.is_whole(node):
            env[node] = env[node.args[0]]
        elif node.op == "output":
            _finish(graph, env, parts, node.args[0], plain)
        else:
            env[node] = _translate(graph, node, env, parts.calls, numbers)
    if numbers.names:
        root.add_module(NAME, numbers)
    spread(graph)
    return _assemble(root.__dict__, graph)


def _unpack(graph: fx.Graph, parts: Parts, flat_names: list[str], plain: bool) -> list[fx.Node]:
    """Placeholders named as the original's parameters, and what picks the flat inputs out of them."""
    if not plain:
        return [graph.placeholder(name) for name in flat_names]
    positional, keywords = children(parts.in_spec)
    tops = [*children(positional), *children(keywords)]
    names = list(parts.names) if len(parts.names) == len(tops) else [f"arg{i}" for i in range(len(tops))]
    placeholders = [graph.placeholder(name) for name in names]

    def leaves(spec: TreeSpec, node: fx.Node, name: str) -> Iterator[fx.Node]:
        if spec.is_leaf():
            yield node
            return
        keys = tuple(spec.context) if spec.type is dict else tuple(range(spec.num_children))
        members = _call(graph, items, (name, node, keys))
        for i, child in enumerate(children(spec)):
            yield from leaves(child, graph.call_function(operator.getitem, (members, i)), f"{name}[{keys[i]!r}]")

    return [leaf for top, node, name in zip(tops, placeholders, names, strict=True) for leaf in leaves(top, node, name)]


def _guard(graph: fx.Graph, root: torch.nn.Module, env: dict[fx.Node, fx.Node], parts: Parts) -> None:
    asserted = {n.args[0] for n in parts.graph.nodes if n.target is _ASSERTION}
    expected: list[fx_call.Expected] = []
    tensors: list[fx.Node] = []
    for node, fed in env.items():
        argument = parts.inputs[node].arg
        if isinstance(argument, ConstantArgument):
            _call(graph, expect, (node.name, fed, argument.value))
        elif (shape := parts.shapes.get(node)) is not None:
            expected.append((node.name, shape, node.meta["val"].dtype if node in asserted else None))
            tensors.append(fed)
    if tensors:
        root.add_module(fx_call.CHECK, fx_call.InputCheck(expected))
        graph.call_module(fx_call.CHECK, tuple(tensors))


def _finish(graph: fx.Graph, env: dict[fx.Node, fx.Node], parts: Parts, results: Any, plain: bool) -> None:
    """Write mutated buffers and inputs back, and return what is left in the original's structure."""
    by_name = {node.name: env[node] for node in env if node.op == "placeholder"}
    flat: list[Any] = []
    for spec, result in zip(parts.outputs, results, strict=True):
        value = env[result] if isinstance(result, fx.Node) else result
        if spec.kind is OutputKind.USER_OUTPUT:
            flat.append(value)
            continue
        assert spec.target is not None
        place = by_name[spec.target] if spec.kind is OutputKind.USER_INPUT_MUTATION else graph.get_attr(spec.target)
        graph.call_function(torch.ops.aten.copy_.default, (place, value))
    rest = iter(flat)

    def structure(spec: TreeSpec) -> Any:
        if spec.is_leaf():
            return next(rest)
        parts = [structure(child) for child in children(spec)]
        return dict(zip(spec.context, parts, strict=True)) if spec.type is dict else spec.type(parts)

    graph.output(structure(parts.out_spec) if plain else tuple(flat))


def _translate(graph: fx.Graph, node: fx.Node, env: dict[fx.Node, fx.Node], calls: Calls, numbers: Numbers) -> fx.Node:
    args = with_tensors(node, fx.map_arg(node.args, env.__getitem__), graph, numbers)
    kwargs = fx.map_arg(node.kwargs, env.__getitem__)
    new = _cheapest(graph, node, args, kwargs, calls)
    new.meta.update({k: v for k, v in node.meta.items() if k != "is_wrapped"} | new.meta)
    return new


def _cheapest(graph: fx.Graph, node: fx.Node, args: Any, kwargs: Any, calls: Calls) -> fx.Node:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return graph.create_node(node.op, node.target, args, kwargs, name=node.name)
    op = str(node.target)
    if op in calls:
        return _call(graph, calls[op], args, kwargs, node.name)
    namespace, name, _ = op.split(".")
    if namespace != "aten":
        return graph.call_function(node.target, args, kwargs)
    kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory" or v}
    if name in _DIMENSIONS and len(args) > 1 and isinstance(args[1], list) and len(args[1]) == 1:
        args = (args[0], args[1][0], *args[2:])  # a list costs 0.1 us
    if op == "aten.roll.default" and len(args) == 3 and len(args[1]) == len(args[2]) == 1:
        args = (args[0], args[1][0], args[2][0])  # and two 0.3
    if op == "aten.to.dtype" and not kwargs and len(args) == 2 and (cast := _CASTS.get(args[1])) is not None:
        return graph.create_node("call_method", cast, args[:1], name=node.name)
    if op in _METHODS and not kwargs:
        return graph.create_node("call_method", _METHODS[op], args, name=node.name)
    if op == "aten.einsum.default" and not kwargs:
        return _call(graph, einsum, args, None, node.name)
    if fx_pad.is_joined(node):
        return _call(graph, fx_pad.pad, args, None, node.name)
    if (found := fx_index.bracketed(graph, node, args)) is not None:
        return found
    if name in _OPERATORS and not kwargs:
        return graph.create_node("call_function", _OPERATORS[name], args, name=node.name)
    if name in _TORCH and hasattr(torch, name):
        return graph.create_node("call_function", getattr(torch, name), args, kwargs, name=node.name)
    if name in _NN and hasattr(torch._C._nn, name):
        return graph.create_node("call_function", getattr(torch._C._nn, name), args, kwargs, name=node.name)
    return graph.create_node("call_function", node.target, args, kwargs, name=node.name)


def _call(graph: fx.Graph, function: Any, args: Any, kwargs: Any = None, name: str | None = None) -> fx.Node:
    node = graph.create_node("call_function", function, args, kwargs or {}, name=name)
    node.meta["is_wrapped"] = True  # unpickling traces the code again: not through this function
    return node


def _register(root: torch.nn.Module, target: str, tensor: torch.Tensor, persistent: bool | None) -> None:
    *path, name = target.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, torch.nn.Module())
        child = root._modules[part]
        assert child is not None
        root = child
    if persistent is None and isinstance(tensor, torch.nn.Parameter):
        root.register_parameter(name, tensor)
    else:
        root.register_buffer(name, tensor, persistent=bool(persistent))


def _plain(spec: TreeSpec, top: bool) -> bool:
    """Whether a structure is made of tuples, lists and dicts only."""
    return spec.is_leaf() or (spec.type in (tuple, list, dict) and all(_plain(c, False) for c in children(spec)))


def children(spec: TreeSpec) -> list[TreeSpec]:
    """The parts of a structure."""
    parts = getattr(spec, "children", None)  # torch 2.11 may only have children_specs
    return list(parts() if callable(parts) else spec.children_specs)


def _device(module: torch.nn.Module) -> torch.device | None:
    tensors = (*module.named_parameters(), *module.named_buffers())
    return next((t.device for name, t in tensors if not name.startswith(f"{NAME}.")), None)
