"""The graph of an `onnx_ir.Model` as handles, and its constants.

Handles map one to one to onnx_ir's nodes and values and are kept up to date by every change, so that a rewrite costs
what it touches. Shapes that onnx infers live in the handles only: the file keeps the ones that its author wrote.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from ...errors import GraphError
from ...ir.sizes import Size
from ..base import Array, Host, Node, Region, Value, row_blocks
from ..model.onnx import GRAPHS, OLDEST_OPSET, inner_graphs, inner_nodes
from ..onnx_sizes import Sizes
from ..runtime.onnx import evaluate
from ..types.onnx import Inference, Type, declared_type, symbols

KNOWN_DOMAINS = {"", "ai.onnx.ml", "com.microsoft", "recopt"}
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
ROUNDS = 8  # of shape inference
EVALUATED_LIMIT = 256 << 20  # bytes of a computed constant
MERGED_LIMIT = 1024  # elements of the constants that are compared by content: never a table


class OnnxGraph(Host):
    """What a model's graph holds: nodes, values, their types and constants."""

    dialect = "onnx"

    def __init__(self, model: ir.Model, types: Mapping[str, Type] | None = None) -> None:
        """Take `model` over, which must be valid; `load` is the way in for all others. `types` spares the inference."""
        self.model = model
        self.revision = 0  # grows with every change
        self.strict = True  # whether onnx's own checks accept the model as it came, so that a rewrite must please them
        self.source: Path | None = None  # the file that the model was loaded from
        self.weights: frozenset[Path] = frozenset()  # the files that the weights came in, where not in that one
        self._values: dict[ir.Value, Value] = {}
        self._nodes: dict[ir.Node, Node] = {}
        self._ir_values: dict[Value, ir.Value] = {}
        self._ir_nodes: dict[Node, ir.Node] = {}
        self._owners: dict[ir.Graph, ir.Node] = {}  # a sub-graph -> the node that holds it
        self._order: list[Node] | None = None
        self._constant: dict[Value, bool] = {}
        self._computed: dict[Value, Array] = {}
        self._shared: dict[object, Value] = {}
        self._before: ir.Node | None = None
        self._suspects: list[ir.Value] = []  # values that may have lost their last reader
        self._sweep = True  # erase_dead has to look at every node
        self._session: tuple[int, Any] | None = None
        inference = Inference(model) if types is None else None
        self._types = dict(types or {}) if inference is None else inference.run()
        self._names = set(self._types)
        self._counts: dict[str, int] = {}  # a name hint -> the last number appended to it
        self._see()
        self._named = symbols(size for value in self.inputs for size in value.shape or ())
        if inference is not None:
            self._refine(inference)

    def _refine(self, inference: Inference) -> None:
        """Give shapes to values whose shapes the graph computes, then to what onnx infers from them, as long as any is
        found: a shape that depends on one that is computed takes one more round."""
        rules = Sizes(self._small_constant, self._named)
        for _ in range(ROUNDS):
            hints = rules.hints(self.nodes)
            if not hints:
                return
            for name, shape in hints.items():
                inference.tell(name, shape, self._types[name][1] or "float32")
            self._types |= inference.run()
            for value in self._values.values():
                if value.name in self._types:
                    value.shape, value.dtype = self._types[value.name]

    def contents(self) -> Mapping[Value, Sequence[Size]]:
        rules = Sizes(self._small_constant, self._named)
        rules.hints(self.nodes)
        return {v: [n for n in c if n is not None] for v, c in rules.contents.items() if c and None not in c}

    def _small_constant(self, value: Value) -> Array | None:
        stored = self._stored(value) if value.node is None else None
        return stored.numpy() if stored is not None and stored.size <= MERGED_LIMIT else None

    # Reading

    @property
    def opset(self) -> int:  # type: ignore[override]  # read-only here: the model holds it
        return self.model.graph.opset_imports.get("", OLDEST_OPSET)

    @property
    def nodes(self) -> Sequence[Node]:
        if self._order is None:
            self._order = [self._nodes[node] for node in self.model.graph if node in self._nodes]
        return self._order

    @property
    def inputs(self) -> Sequence[Value]:
        graph = self.model.graph
        return [self._values[value] for value in graph.inputs if value.name not in graph.initializers]

    @property
    def outputs(self) -> Sequence[Value]:
        return [self._values[value] for value in self.model.graph.outputs]

    def users(self, value: Value) -> Sequence[Node]:
        nodes = dict.fromkeys(self._top(node) for node, _ in self._ir_values[value].uses())
        return [self._nodes[node] for node in nodes]

    def is_output(self, value: Value) -> bool:
        return self._ir_values[value].is_graph_output()

    def holds(self, value: Value) -> bool:
        """Whether `value` is (still) a value of this graph."""
        return value in self._ir_values

    def count_nodes(self) -> int:
        return len(self._nodes)

    def count_parameters(self) -> int:
        return sum(
            value.const_value.size for value in self.model.graph.initializers.values() if value.const_value is not None
        )

    def _top(self, node: ir.Node) -> ir.Node:
        """The node of the main graph in which `node` is or lies."""
        while node.graph is not self.model.graph:
            node = self._owners[cast(ir.Graph, node.graph)]
        return node

    # Constants

    def is_constant(self, value: Value) -> bool:
        if _held(value) is not None:
            return True
        work = [value]
        while work:
            top = work[-1]
            if top in self._constant:
                work.pop()
            elif (node := top.node) is None:
                self._constant[top] = self._stored(top) is not None
            elif node.opaque or not node.inputs or any(self._constant.get(v) is False for v in node.inputs):
                self._constant[top] = False
            else:
                unknown = [v for v in node.inputs if v not in self._constant]
                if not unknown:
                    self._constant[top] = True
                work += unknown
        return self._constant[value]

    def constant(self, value: Value) -> Array:
        if not self.is_constant(value):
            raise GraphError(f"{value.name!r} is not constant")
        if (held := _held(value)) is not None:
            return held
        if value not in self._computed:
            stored = self._stored(value)
            self._computed[value] = self._compute(value) if stored is None else stored.numpy()
        return self._computed[value]

    def blocks(self, value: Value) -> Iterator[Array]:
        tensor = self._stored(value)
        if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth < 8:
            yield from super().blocks(value)
            return
        dtype, (rows, *rest) = tensor.dtype.numpy(), tensor.shape.numpy()
        step = dtype.itemsize * math.prod(rest)
        for start, stop in row_blocks((rows, *rest), dtype.itemsize):  # a mapping each, whose pages go with it
            at = (tensor.offset or 0) + start * step
            yield np.memmap(tensor.path, dtype, "r", at, (stop - start, *rest))

    def _stored(self, value: Value) -> ir.TensorProtocol | None:
        source = self._ir_values[value]
        producer = source.producer()
        if producer is None:
            return None if source.is_graph_input() else source.const_value  # with a default, the caller may override it
        if producer in self._nodes:
            return None
        name, attribute = next(iter(producer.attributes.items()))
        if name == "value":
            return attribute.as_tensor()
        kind = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
        if name in kind:
            return ir.Tensor(np.array(attribute.value, dtype=kind[name]))
        if name in {"value_string", "value_strings"}:
            return ir.StringTensor(np.array(attribute.value, dtype=np.bytes_))
        return None  # a sparse tensor

    def _compute(self, value: Value) -> Array:
        """Run the nodes behind `value` in ONNX Runtime, unoptimised: the host's own operators."""
        if value.shape is not None and all(isinstance(d, int) for d in value.shape):
            self._refuse_large(value, math.prod(cast(tuple[int, ...], value.shape)) * 8)
        needed: set[Node] = set()
        feeds: dict[str, Array] = {}
        work = [value]
        while work:
            top = work.pop()
            if top is not value and (top.node is None or top in self._computed):
                feeds[top.name] = self.constant(top)
            elif top.node is not None and top.node not in needed:
                needed.add(top.node)
                work += top.node.inputs
        for name, array in feeds.items():
            self._refuse_large(value, array.nbytes, name)
        order = [self._ir_nodes[node] for node in self.nodes if node in needed]
        array = evaluate(self.model, order, feeds, value.name)
        self._refuse_large(value, array.nbytes)
        return array

    def _refuse_large(self, value: Value, nbytes: int, part: str | None = None) -> None:
        if nbytes > EVALUATED_LIMIT:
            raise GraphError(f"the constant {value.name!r} takes {nbytes >> 20} MB{f' at {part!r}' if part else ''}")

    # Sub-graphs

    def regions(self, node: Node) -> Mapping[str, Region]:
        handle = self._ir_nodes.get(node)
        return {} if handle is None else self._regions(handle, self._values)

    def _regions(self, node: ir.Node, outer: Mapping[ir.Value, Value]) -> dict[str, Region]:
        graphs = {name: a.as_graph() for name, a in node.attributes.items() if a.type == ir.AttributeType.GRAPH}
        return {name: self._region(graph, outer) for name, graph in graphs.items()}

    def _region(self, graph: ir.Graph, outer: Mapping[ir.Value, Value]) -> Region:
        """Handles for a sub-graph that live as long as the caller keeps them; a constant is a node without inputs."""
        seen = dict(outer)

        def see(value: ir.Value, node: Node | None = None, index: int = 0) -> Value:
            seen[value] = Value(value.name or "", *declared_type(value), node, index)
            return seen[value]

        inputs = tuple(see(v) for v in graph.inputs)
        nodes = []
        for value in graph.initializers.values():
            held = Node(value.name or "", "Constant", (), {"value": cast(Any, value.const_value).numpy()})
            held.outputs = (see(value, held),)
            nodes.append(held)
        for node in graph:
            args = tuple(None if v is None else seen[v] for v in node.inputs)
            kwargs: dict[str, Any] = {k: _attribute(a) for k, a in node.attributes.items() if a.type not in GRAPHS}
            kwargs |= self._regions(node, seen)
            op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            handle = Node(node.name or "", op, args, kwargs, opaque=_is_opaque(node, self.model))
            handle.outputs = tuple(see(v, handle, i) for i, v in enumerate(node.outputs))
            nodes.append(handle)
        return Region(inputs, tuple(nodes), tuple(seen[v] for v in graph.outputs))

    # Handles

    def _see(self) -> None:
        """Handles for everything in the graph that has none yet."""
        graph = self.model.graph
        for value in (*graph.inputs, *graph.initializers.values()):
            self._see_value(value)
        for node in graph:
            self._see_node(node)
        self._changed()

    def _see_value(self, value: ir.Value, node: Node | None = None, index: int = 0) -> Value:
        if value in self._values:
            return self._values[value]
        name = value.name or ""
        self._names.add(name)
        shape, dtype = self._types.get(name) or declared_type(value)
        view = Value(name, shape, dtype, node, index)
        self._values[value] = view
        self._ir_values[view] = value
        return view

    def _see_node(self, node: ir.Node) -> Node:
        if node in self._nodes:
            return self._nodes[node]
        if node.op_type == "Constant" and node.domain == "":
            self._see_value(node.outputs[0])
            return Node(node.name or "", "Constant", (), {}, (self._values[node.outputs[0]],))
        op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        kwargs = {name: _attribute(attribute) for name, attribute in node.attributes.items()}
        opaque = _is_opaque(node, self.model)
        name = node.name or next((v.name for v in node.outputs if v.name), "")
        view = Node(name, op, (), kwargs, opaque=opaque)
        view.outputs = tuple(self._see_value(v, view, i) for i, v in enumerate(node.outputs))
        self._nodes[node] = view
        self._ir_nodes[view] = node
        for inner in inner_nodes(node):
            if inner.graph is not self.model.graph:
                self._owners[cast(ir.Graph, inner.graph)] = node
                self._names.update(v.name or "" for v in inner.outputs)
        for graph in inner_graphs(node):
            self._names.update(v.name or "" for v in (*graph.inputs, *graph.initializers.values()))
        self._refresh(node)
        return view

    def _refresh(self, node: ir.Node) -> None:
        """Read the inputs of `node`, and those that its sub-graphs capture, again."""
        view = self._nodes[node]
        view.args = tuple(None if v is None else self._values[v] for v in node.inputs)
        read = [v for inner in inner_nodes(node) for v in inner.inputs if v is not None and v in self._values]
        view.inputs = tuple(self._values[v] for v in read)

    def _forget(self, node: ir.Node) -> None:
        view = self._nodes.pop(node, None)
        if view is not None:
            del self._ir_nodes[view]
        for value in node.outputs:
            self._forget_value(value)

    def _forget_value(self, value: ir.Value) -> None:
        view = self._values.pop(value, None)
        if view is not None:
            del self._ir_values[view]
            self._constant.pop(view, None)
            self._computed.pop(view, None)

    def _changed(self) -> None:
        self.revision += 1
        self._order = None


def _held(value: Value) -> Array | None:
    """The array of a constant of a sub-graph."""
    node = value.node
    return np.asarray(next(iter(node.kwargs.values()))) if node is not None and node.op == "Constant" else None


def _is_opaque(node: ir.Node, model: ir.Model) -> bool:
    function = model.functions.get(node.op_identifier())
    if function is not None:
        return any(_is_opaque(inner, model) for inner in function)
    if any(attribute.type in GRAPHS for attribute in node.attributes.values()) or node.domain not in KNOWN_DOMAINS:
        return True
    if node.op_type == "Dropout":
        mode = node.inputs[2] if len(node.inputs) > 2 else None
        return mode is not None and not (mode.const_value is not None and not mode.const_value.numpy().any())
    return node.op_type in RANDOM


def _attribute(attribute: ir.Attr) -> Any:
    """An attribute as a Python value, a tensor as a numpy array."""
    if attribute.is_ref():
        return None
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor().numpy()
    return tuple(attribute.value) if isinstance(attribute.value, (list, tuple)) else attribute.value
