"""The readable half of the torch.export host: handles over a lifted `torch.fx` graph, its sizes and its constants."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeGuard

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    SymIntArgument,
    TensorArgument,
)

from ..errors import GraphError, LoadError
from ..ir import sizes
from ..ir.sizes import Size
from . import fx_capture, fx_ops
from .base import Array, Host, Node, Region, Value, values_in

# What the program stores: parameters are placeholders of the lifted graph.
STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
# Python's numbers and torch's symbolic ones; bool first, which is an int.
_NUMBERS = (((bool, torch.SymBool), "bool"), ((int, torch.SymInt), "int64"), ((float, torch.SymFloat), "float64"))


class FxGraph(Host):
    """Everything of the FX host that leaves the graph as it is."""

    dialect = "aten"

    def __init__(self, program: ExportedProgram) -> None:
        program = fx_capture.functional(program)
        signature = program.graph_signature
        tensors: dict[str, Any] = {}
        for spec in signature.input_specs:
            if spec.kind is InputKind.TOKEN:
                raise LoadError("the program orders side effects by tokens, which recopt does not read")
            if spec.target is not None and spec.kind is not InputKind.USER_INPUT:
                stored = program.state_dict.get(spec.target)
                tensors[spec.target] = program.constants[spec.target] if stored is None else stored
        self._sizes: dict[sympy.Expr, Size] = {}
        self._bind(program.graph_module, signature.input_specs, signature.output_specs, tensors, program)

    def _bind(
        self,
        source: fx.GraphModule,
        input_specs: Sequence[InputSpec],
        output_specs: Sequence[OutputSpec],
        tensors: Mapping[str, Any],
        template: ExportedProgram,
    ) -> None:
        self._gm = fx_ops.copy(source)
        self._graph = self._gm.graph
        self._tensors = dict(tensors)
        self._template = template  # for what a rewrite never changes: call structure, ranges, examples, verifiers
        self._output_specs = list(output_specs)
        placeholders = self._graph.find_nodes(op="placeholder")
        self._specs: dict[fx.Node, InputSpec] = dict(zip(placeholders, input_specs, strict=True))
        fed = (n for n, s in self._specs.items() if s.kind is InputKind.USER_INPUT)
        self._first_input = next(fed, None)  # stays, as all inputs do
        self._mutated = {s.target for s in output_specs if s.kind is not OutputKind.USER_OUTPUT}
        self._taken = {*self._tensors, *template.state_dict, *(t.split(".")[0] for t in self._tensors)}
        self._values: dict[fx.Node, Value] = {}
        self._nodes: dict[fx.Node, Node] = {}
        self._source: dict[Value, fx.Node | None] = {}  # None: an element of a tuple that nothing picks out
        self._producer: dict[Node, fx.Node] = {}
        self._evaluated: dict[fx.Node, Any] = {}
        self._pure: dict[fx.Node, bool] = {}
        self._holders: dict[Size, tuple[fx.Node, int | None]] = {}  # inputs that have a size, and in which dimension
        self._vals: dict[Hashable, Any] = {}  # what fake kernels said, by what they were asked
        self._order: tuple[Node, ...] | None = None
        self._compiled = False
        self._at: fx.Node | None = None
        self._fake: FakeTensorMode | None = None
        # Inputs first, so that s0 is the first input's batch.
        for node, spec in sorted(self._specs.items(), key=lambda item: item[1].kind is not InputKind.USER_INPUT):
            self._fake = self._fake or getattr(node.meta.get("val"), "fake_mode", None)
            name = spec.target if spec.kind in STORED and spec.target else node.name
            self._own(self._value(name, node.meta.get("val")), node)
        for node in list(self._graph.nodes):
            if node.op == "call_function":
                self._wrap(node)
        self._fake = self._fake or FakeTensorMode()

    # Handles

    def _own(self, value: Value, node: fx.Node | None) -> None:
        self._source[value] = node
        if node is not None:
            self._values[node] = value

    def _value(self, name: str, val: object, index: int = 0) -> Value:
        if isinstance(val, torch.Tensor):
            return Value(name, tuple(self._size(s) for s in val.shape), fx_ops.name(val.dtype), None, index)
        for kinds, dtype in _NUMBERS:
            if isinstance(val, kinds):
                return Value(name, (), dtype, None, index, scalar=True)
        return Value(name, None, None, None, index)

    def _wrap(self, node: fx.Node) -> None:
        """Make the handles of one call; a getitem of a known tuple becomes that tuple's element."""
        source = node.args[0] if node.target is operator.getitem else None
        if isinstance(source, fx.Node) and source not in self._values and source in self._nodes:
            value = self._nodes[source].outputs[node.args[1]]  # type: ignore[index]  # getitem's argument is an int
            first = self._source[value]
            if first is None:
                return self._own(value, node)
            node.replace_all_uses_with(first)
            return self._graph.erase_node(node)
        op, val = fx_ops.op_name(node.target), node.meta.get("val")
        handle = Node(node.name, op, self._read(node.args), self._read(node.kwargs), opaque=fx_ops.is_opaque(node))
        if isinstance(val, (tuple, list)) and all(user.target is operator.getitem for user in node.users):
            outputs = tuple(self._value(f"{node.name}.{i}", item, i) for i, item in enumerate(val))
            for value in outputs:
                self._own(value, None)
        else:
            outputs = (self._value(node.name, val),)
            self._own(outputs[0], node)
        for value in outputs:
            value.node = handle
        handle.outputs = outputs
        self._nodes[node] = handle
        self._producer[handle] = node
        return None

    def _read(self, tree: Any, values: Mapping[fx.Node, Any] | None = None) -> Any:
        """FX arguments as host arguments: over the graph's values, or a body's."""
        if isinstance(tree, fx.Node):
            return (self._values if values is None else values).get(tree, f"@{tree.target}")
        if isinstance(tree, (tuple, list)):
            items = [self._read(item, values) for item in tree]
            return tuple(items) if isinstance(tree, tuple) else items
        if isinstance(tree, dict):
            return {key: self._read(item, values) for key, item in tree.items()}
        return fx_ops.name(tree) if isinstance(tree, fx_ops.NAMED) else tree

    def _refresh(self, node: fx.Node) -> None:
        handle = self._nodes.get(node)
        if handle is not None:
            handle.args, handle.kwargs = self._read(node.args), self._read(node.kwargs)
            handle.inputs = tuple(values_in((handle.args, dict(handle.kwargs))))

    def _node_of(self, value: Value) -> fx.Node:
        """The FX node of a value; picks it out of its tuple where nothing did yet."""
        if value not in self._source:
            raise GraphError(f"{value!r} is no value of this graph")
        node = self._source[value]
        if node is None:
            assert value.node is not None
            producer = self._producer[value.node]
            with self._graph.inserting_after(producer):
                node = self._graph.call_function(operator.getitem, (producer, value.index))
            node.meta.update(producer.meta | {"val": producer.meta["val"][value.index]})
            self._own(value, node)
        return node

    def _size(self, size: int | torch.SymInt) -> Size:
        return size if isinstance(size, int) else self._expr(size.node.expr)

    def _expr(self, expr: sympy.Expr) -> Size:
        """A torch size as a polynomial; a part that is none (a floor division) is one more symbol, always the same."""
        if expr.is_Integer:
            return int(expr)
        if expr not in self._sizes:
            power = isinstance(expr, sympy.Pow) and expr.exp.is_Integer and expr.exp > 0
            integral = all(arg.is_Integer or not arg.is_Number for arg in expr.args)
            if integral and (power or isinstance(expr, (sympy.Add, sympy.Mul))):
                self._sizes[expr] = sizes.size(expr.func(*(self._expr(arg) for arg in expr.args)))
            else:
                used = sum(isinstance(s, sympy.Symbol) for s in self._sizes.values())
                self._sizes[expr] = sizes.symbol(f"s{used}")
        return self._sizes[expr]

    # Reading

    @property
    def nodes(self) -> Sequence[Node]:
        if self._order is None:
            self._order = tuple(self._nodes[node] for node in self._graph.nodes if node in self._nodes)
        return self._order

    @property
    def inputs(self) -> Sequence[Value]:
        return [self._values[node] for node in self._fed()]

    @property
    def outputs(self) -> Sequence[Value]:
        results = zip(self._output_specs, self._output().args[0], strict=True)  # type: ignore[arg-type]  # an output node's argument is a tuple
        users = (node for spec, node in results if spec.kind is OutputKind.USER_OUTPUT)
        return [self._values[node] for node in users if isinstance(node, fx.Node)]

    def users(self, value: Value) -> Sequence[Node]:
        node = self._source[value]
        return [] if node is None else [self._nodes[user] for user in node.users if user in self._nodes]

    def regions(self, node: Node) -> Mapping[str, Region]:
        producer = self._producer.get(node)
        named = [str(a.target) for a in producer.args if _is_attribute(a)] if producer is not None else []
        held = {name: operator.attrgetter(name)(self._gm) for name in named}
        return {name: self._region(body.graph) for name, body in held.items() if isinstance(body, fx.GraphModule)}

    def _region(self, graph: fx.Graph) -> Region:
        """Handles for a body, which reads nothing around it; they live as long as the caller keeps them."""
        seen: dict[fx.Node, Any] = {}
        nodes = []
        for node in graph.nodes:
            val = node.meta.get("val")
            if node.op == "placeholder":
                seen[node] = self._value(node.name, val)
            elif node.target is operator.getitem and isinstance(seen.get(node.args[0]), tuple):
                seen[node] = seen[node.args[0]][node.args[1]]
            elif node.op == "call_function":
                args, kwargs = self._read(node.args, seen), self._read(node.kwargs, seen)
                handle = Node(node.name, fx_ops.op_name(node.target), args, kwargs, opaque=fx_ops.is_opaque(node))
                several = isinstance(val, (tuple, list))
                handle.outputs = tuple(self._value(node.name, v, n) for n, v in enumerate(val if several else [val]))
                for value in handle.outputs:
                    value.node = handle
                seen[node] = handle.outputs if several else handle.outputs[0]
                nodes.append(handle)
        inputs = tuple(seen[node] for node in graph.find_nodes(op="placeholder"))
        made = graph.output_node().args[0]
        results = self._read(made if isinstance(made, (tuple, list)) else (made,), seen)
        return Region(inputs, tuple(nodes), tuple(results))

    def is_output(self, value: Value) -> bool:
        """Whether the caller, or a buffer that the program writes, gets `value`."""
        node = self._source[value]
        return node is not None and any(user.op == "output" for user in node.users)

    def is_constant(self, value: Value) -> bool:
        node = self._source[value]
        if node is None:
            assert value.node is not None
            node = self._producer[value.node]
        return value.dtype is not None and not value.scalar and self._is_pure(node)

    def is_view(self, node: Node) -> bool:
        tensors = [self._node_of(v).meta.get("val") for v in (*node.inputs[:1], *node.outputs[:1])]
        kept = [t.untyped_storage()._cdata for t in tensors if isinstance(t, torch.Tensor)]
        return len(kept) == 2 and kept[0] == kept[1]

    def is_contiguous(self, value: Value) -> bool:
        val = self._node_of(value).meta["val"]
        step: int | torch.SymInt = 1
        for size, stride in zip(reversed(val.shape), reversed(val.stride()), strict=True):
            if str(size) != "1" and str(stride) != str(step):
                return False
            step = step * size
        return True

    def _is_pure(self, root: fx.Node) -> bool:
        """Whether `root` needs stored tensors only. A loop, not a recursion: graphs are thousands of nodes deep."""
        stack = [root]
        while stack:
            node = stack[-1]
            if node in self._pure:
                stack.pop()
                continue
            if node.op != "call_function":
                spec = self._specs.get(node)
                self._pure[node] = spec is not None and spec.kind in STORED and spec.target not in self._mutated
                continue
            handle = self._nodes.get(node)
            if handle is not None and handle.opaque:
                self._pure[node] = False
                continue
            unknown = [n for n in node.all_input_nodes if n not in self._pure]
            if not unknown:
                self._pure[node] = all(self._pure[n] for n in node.all_input_nodes)
            stack.extend(unknown)
        return self._pure[root]

    def constant(self, value: Value) -> Array:
        """The array of a constant. A stored CPU tensor is viewed, not copied; bfloat16 and float8 come as ml_dtypes."""
        if not self.is_constant(value):
            raise GraphError(f"{value!r} is not constant")
        return fx_ops.to_numpy(self._evaluate(self._node_of(value)))

    def _evaluate(self, root: fx.Node) -> Any:
        stack = [root]
        while stack:
            node = stack[-1]
            if node in self._evaluated:
                stack.pop()
            elif node.op == "placeholder":
                self._evaluated[node] = self._tensors[self._specs[node].target or ""]
            elif unknown := [n for n in node.all_input_nodes if n not in self._evaluated]:
                stack.extend(unknown)
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), self._evaluated.__getitem__)
                with torch.no_grad():
                    self._evaluated[node] = node.target(*args, **kwargs)  # type: ignore[operator]  # a call_function's target is callable
        return self._evaluated[root]

    def _changed(self) -> None:
        self._order, self._compiled = None, False

    def _output(self) -> fx.Node:
        return self._graph.output_node()

    def _fed(self) -> list[fx.Node]:
        order = self._specs_in_order().items()
        return [n for n, s in order if s.kind is InputKind.USER_INPUT and not isinstance(s.arg, ConstantArgument)]

    def _specs_in_order(self) -> dict[fx.Node, InputSpec]:
        return {node: self._specs[node] for node in self._graph.find_nodes(op="placeholder")}

    def _input_specs(self) -> list[InputSpec]:
        return list(self._specs_in_order().values())

    def _results(self) -> list[OutputSpec]:
        """The output specs, naming the nodes that the outputs are now."""
        specs = []
        for spec, node in zip(self._output_specs, self._output().args[0], strict=True):  # type: ignore[arg-type]  # an output node's argument is a tuple
            kind = SymIntArgument if isinstance(spec.arg, SymIntArgument) else TensorArgument
            specs.append(OutputSpec(spec.kind, kind(node.name), spec.target) if isinstance(node, fx.Node) else spec)
        return specs

    def _device(self) -> torch.device:
        """Where the program runs: numbers that torch wrote as tensors lie on the CPU also where all else does not."""
        held = (*self._tensors.values(), *(n.meta["val"] for n in self._fed()))
        devices = [t.device for t in held if isinstance(t, torch.Tensor)]
        return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))


def _is_attribute(arg: object) -> TypeGuard[fx.Node]:
    return isinstance(arg, fx.Node) and arg.op == "get_attr"
