"""Changes of an ONNX graph: new nodes and constants, replacements, what is dead, what a branch or a function hides."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from ...errors import GraphError
from ...ir.sizes import Size
from ..base import Array, Node, Value
from ..graph.onnx import MERGED_LIMIT, OnnxGraph
from ..model.onnx import inner_nodes, line, remove_unused_functions, rename
from ..onnx_contrib import parts
from ..onnx_sizes import Sizes
from ..runtime.onnx import validate
from ..types.onnx import Inference, Type, symbols, tensor_type

DOMAIN_VERSIONS = {"com.microsoft": 1, "recopt": 1, "ai.onnx.ml": 3}


class OnnxSurgery(OnnxGraph):
    """The graph, and how it changes."""

    @contextlib.contextmanager
    def at(self, node: Node) -> Iterator[None]:
        previous, self._before = self._before, self._ir_nodes[node]
        try:
            yield
        finally:
            self._before = previous

    def call(
        self,
        op: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        name: str,
        shape: tuple[Size, ...] | None = None,
        dtype: str | None = None,
        like: Value | None = None,
        further: Sequence[tuple[tuple[Size, ...] | None, str]] = (),
    ) -> Value:
        """As `Host.call`; `further` are the shapes and dtypes of the node's other outputs."""
        domain, _, op_type = op.rpartition("::")
        types = [(shape, dtype), *further]
        outputs = [ir.Value(name=self._unique(name), shape=self._dimensions(s), type=tensor_type(d)) for s, d in types]
        output = outputs[0]
        node = ir.node(
            op_type,
            [None if arg is None else self._ir_values[arg] for arg in args],
            {key: value for key, value in (kwargs or {}).items() if value is not None},
            domain=domain,
            outputs=outputs,
            name=f"{output.name}/{op_type}",
        )
        source = self._ir_values[like].producer() if like is not None else None
        if source is not None:
            node.doc_string = source.doc_string
            node.metadata_props.update(source.metadata_props)
        graph = self.model.graph
        if domain and domain not in graph.opset_imports:
            graph.opset_imports[domain] = DOMAIN_VERSIONS.get(domain, 1)
        if self._before is None:
            graph.append(node)
        else:
            graph.insert_before(self._before, node)
        self._types |= {cast(str, made.name): kind for made, kind in zip(outputs, types, strict=True)}
        self._suspects.append(output)
        self._changed()
        return self._see_node(node).outputs[0]

    def add_constant(self, array: Array, *, name: str) -> Value:
        unique = self._unique(name)
        tensor = ir.Tensor(array, name=unique)
        value = ir.Value(name=unique, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.model.graph.register_initializer(value)
        self._suspects.append(value)
        self._changed()
        return self._see_value(value)

    def is_named(self, value: Value) -> bool:
        """Whether the file has a name for a size of `value`."""
        shape = self._ir_values[value].shape
        return shape is not None and any(isinstance(d, ir.SymbolicDim) and d.value is not None for d in shape)

    def leave_open(self, value: Value) -> None:
        """The file no longer names the sizes of `value` that are no numbers: a runtime is to find them out."""
        inner = self._ir_values[value]
        if inner.shape is not None:
            inner.shape = ir.Shape(d if isinstance(d, int) else None for d in inner.shape)
            self._changed()

    def share_constant(self, array: Array, *, name: str) -> Value:
        """`add_constant`, but one initializer for equal arrays: scalars, and weights that several steps share."""
        array = np.asarray(array)
        key = (array.dtype.name, array.shape, hashlib.blake2b(array.tobytes()).digest())
        return self.derive(key, lambda: self.add_constant(array, name=name))

    def derive(self, key: object, make: Callable[[], Value]) -> Value:
        """`make()`, once for every `key` for as long as its result lives."""
        if key not in self._shared or not self.holds(self._shared[key]):
            self._shared[key] = make()
        return self._shared[key]

    def define(
        self,
        name: str,
        inputs: Sequence[str],
        body: Callable[[Self, list[Value]], Value],
        attributes: Sequence[str] = (),
    ) -> str:
        """The operator `recopt::name`, a model-local function whose body `body` writes on a host of its own, once.
        `inputs` are the dtypes of its parameters, `attributes` the names of its string attributes."""
        if ("recopt", name, "") in self.model.functions:
            return f"recopt::{name}"
        values = [ir.Value(name=f"x{i}", type=tensor_type(dtype)) for i, dtype in enumerate(inputs)]
        graph = ir.Graph(values, [], nodes=[], name=name, opset_imports=dict(self.model.opset_imports))
        types: dict[str, Type] = {f"x{i}": (None, dtype) for i, dtype in enumerate(inputs)}
        inner = type(self)(ir.Model(graph, ir_version=self.model.ir_version), types)
        result = inner.body_of(body)
        graph.outputs.append(result)
        first = next(iter(graph))
        for value in list(graph.initializers.values()):  # a function has none
            graph.initializers.pop(cast(str, value.name))
            constant = ir.node("Constant", [], {"value": value.const_value}, name=f"{value.name}/Constant")
            constant.outputs[0].name = f"{value.name}_constant"
            graph.insert_before(first, constant)
            value.replace_all_uses_with(constant.outputs[0])
        declared = [ir.Attr(attribute, ir.AttributeType.STRING, None) for attribute in attributes]
        function = ir.Function("recopt", name, graph=graph, attributes=declared)
        self.model.functions[function.identifier()] = function
        self.model.ir_version = max(self.model.ir_version, 8)  # the first with functions
        self._changed()
        return f"recopt::{name}"

    def body_of(self, body: Callable[[Self, list[Value]], Value]) -> ir.Value:
        """The onnx_ir value of what `body` returns for this host's inputs."""
        return self._ir_values[body(self, list(self.inputs))]

    def replace(self, old: Value, new: Value) -> None:
        if old is new:
            return
        if self.is_constant(old) != self.is_constant(new):
            self._constant.clear()
        source, target = self._ir_values[old], self._ir_values[new]
        touched: dict[ir.Node, None] = {}
        for node, index in source.uses():
            if node is not target.producer():
                node.replace_input_with(index, target)
                touched[self._top(node)] = None
        for node in touched:
            self._refresh(node)
        if source.is_graph_output():
            self._move_output(source, target)
        self._suspects.append(source)
        self._changed()

    def _move_output(self, source: ir.Value, target: ir.Value) -> None:
        """Make `target` the graph output that `source` is, under the same name and declared type."""
        graph = self.model.graph
        if target.producer() is None or target.is_graph_output():  # its own name must stay
            outer, self._before = self._before, None
            view = self._values[source]
            copied = self.call(
                "Identity", [self._values[target]], name=view.name, shape=view.shape, dtype=view.dtype, like=view
            )
            self._before = outer
            target = self._ir_values[copied]
        name, other = cast(str, source.name), cast(str, target.name)
        rename(source, other)
        rename(target, name)
        for value in (source, target):
            view = self._values[value]
            view.name = cast(str, value.name)
            self._types[view.name] = (view.shape, view.dtype)
        target.type = source.type
        target.shape = source.shape.copy() if source.shape is not None else None
        target.doc_string = source.doc_string
        target.metadata_props.update(source.metadata_props)
        for index, value in enumerate(graph.outputs):
            if value is source:
                graph.outputs[index] = target

    def erase_dead(self) -> int:
        graph = self.model.graph
        work: list[ir.Node] = list(graph) if self._sweep else []
        loose = list(graph.initializers.values()) if self._sweep else []
        for value in self._suspects:
            producer = value.producer()
            if producer is None:
                loose.append(value)
            elif producer.graph is graph:
                work.append(producer)
        self._sweep, self._suspects = False, []
        removed = 0
        erased: set[ir.OperatorIdentifier] = set()
        while work:
            node = work.pop()
            if node.graph is not graph or any(v.uses() or v.is_graph_output() for v in node.outputs):
                continue
            read = self._nodes[node].inputs if node in self._nodes else ()
            for inner in inner_nodes(node):
                for index in range(len(inner.inputs)):
                    inner.replace_input_with(index, None)
            graph.remove(node)
            erased.add(node.op_identifier())
            removed += node in self._nodes
            self._forget(node)
            for view in read:
                source = self._ir_values[view]
                producer = source.producer()
                if producer is None:
                    loose.append(source)
                else:
                    work.append(producer)
        for value in loose:
            if value.is_initializer() and not (value.uses() or value.is_graph_input() or value.is_graph_output()):
                graph.initializers.pop(cast(str, value.name), None)
                self._forget_value(value)
        if erased & set(self.model.functions):
            remove_unused_functions(self.model)
        if removed or loose:
            self._changed()
        return removed

    def _unique(self, name: str) -> str:
        result = name
        while result in self._names or not result:
            self._counts[name] = self._counts.get(name, 0) + 1
            result = f"{name}_{self._counts[name]}"
        self._names.add(result)
        return result

    def _dimensions(self, shape: tuple[Size, ...] | None) -> ir.Shape | None:
        """`shape` for the file: a size in symbols that its author did not name is left open."""
        if shape is None:
            return None
        return ir.Shape(d if isinstance(d, int) else str(d) if symbols((d,)) <= self._named else None for d in shape)

    # The host's own clean-up

    def inline(self, known: Container[str]) -> None:
        for node in [n for n in self.nodes if n.op not in known]:
            output = node.outputs[0]
            made: Value | None = None
            for op, args, attributes in parts(node) or ():
                operands = args if made is None else [made]
                with self.at(node):
                    made = self.call(
                        op, operands, attributes, name=output.name, shape=output.shape, dtype=output.dtype, like=output
                    )
            if made is not None:
                self.replace(output, made)
        self.erase_dead()

    def normalise(self) -> None:
        model = self.model
        self.erase_dead()
        inlined = [f for f in model.functions.values() if f.domain != "recopt" and _fits(f, model)]
        if inlined:
            names = {f.identifier() for f in inlined}
            try:
                common.InlinePass(criteria=lambda function: function.identifier() in names)(model)
            except (ir.passes.PassError, ValueError) as error:
                raise GraphError(f"a function cannot be inlined: {line(error)}") from error
            inference = Inference(model)
            self._types = inference.run() | {v.name: (v.shape, v.dtype) for v in self._values.values()}
            self._names |= set(self._types)
            for gone in set(self._nodes) - set(model.graph):
                self._forget(gone)
            self._see()
            self._refine(inference)
        while decided := self._decided():
            trial = self.clone()
            try:
                trial._take(trial._decided())
                validate(trial.model, strict=self.strict)
            except GraphError:
                break  # what a branch computes may only fit the types that are known of it at run time
            self._take(decided)
        self._bypass_identities()
        self._merge_equal()
        self._sweep = True
        self.erase_dead()
        remove_unused_functions(model)

    def _decided(self) -> dict[Node, int]:
        """Conditionals whose condition follows from shapes, and what it is: TorchScript writes a squeeze of one
        dimension as such."""
        rules = Sizes(self._small_constant, self._named)
        rules.hints(self.nodes)
        conditions = {node: rules.numbers(node.args[0]) for node in self.nodes if node.op == "If"}
        return {node: found[0] for node, found in conditions.items() if found is not None and len(found) == 1}

    def _take(self, decided: Mapping[Node, int]) -> None:
        """Put the branch that is taken in the place of each conditional."""
        for node, taken in decided.items():
            conditional = self._ir_nodes[node]
            branch = conditional.attributes["then_branch" if taken else "else_branch"].as_graph()
            results, body = list(branch.outputs), list(branch)
            branch.outputs.clear()
            branch.remove(body)
            for value in list(branch.initializers.values()):
                branch.initializers.pop(cast(str, value.name))
                rename(value, self._unique(cast(str, value.name)))
                self.model.graph.register_initializer(value)
            for value in [v for inner in body for v in inner.outputs if v.name]:
                value.name = self._unique(cast(str, value.name))
            self.model.graph.insert_before(conditional, body)
            self._see()
            for old, new in zip(node.outputs, results, strict=True):
                self.replace(old, self._values[new])
        self._sweep = True
        self.erase_dead()
        inference = Inference(self.model)
        self._types |= inference.run()
        for view in self._values.values():
            view.shape, view.dtype = self._types.get(view.name, (view.shape, view.dtype))
        self._refine(inference)
        self._bypass_identities()

    def _bypass_identities(self) -> None:
        for node in list(self.nodes):
            if node.op == "Identity":
                self.replace(node.outputs[0], node.args[0])

    def _merge_equal(self) -> None:
        """Common sub-expressions and small equal constants become one."""
        seen: dict[object, Sequence[Value]] = {}
        place = {node: n for n, node in enumerate(self.model.graph)}  # what was inlined was seen late, but stands early
        sources = [v for v in self._values.values() if v.node is None]
        for value in sorted(sources, key=lambda v: place.get(cast(ir.Node, self._ir_values[v].producer()), -1)):
            stored = self._stored(value)
            if stored is not None and stored.size <= MERGED_LIMIT and stored.dtype != ir.DataType.STRING:
                first = seen.setdefault((stored.dtype, tuple(stored.shape), stored.tobytes()), [value])[0]
                self.replace(value, first)
        for node in list(self.nodes):
            if node.opaque:
                continue
            attributes = tuple((k, _key(v)) for k, v in sorted(node.kwargs.items()))
            args = tuple(sorted(node.args, key=id)) if node.op in SYMMETRIC else node.args
            first_outputs = seen.setdefault((node.op, args, attributes, len(node.outputs)), node.outputs)
            for old, new in zip(node.outputs, first_outputs, strict=True):
                self.replace(old, new)


# of which the order of two operands says nothing; of Max and Min it may say which zero is taken
SYMMETRIC = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor"})


def _fits(function: ir.Function, model: ir.Model) -> bool:
    """Whether `function` means the same with the main graph's opsets, so that it can be inlined."""
    opsets = model.graph.opset_imports
    return all(opsets.get(domain, version) == version for domain, version in function.opset_imports.items())


def _key(value: object) -> object:
    """An attribute's value as something to compare by."""
    return (value.dtype.name, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
