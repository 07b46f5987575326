"""ONNX models as hosts, over onnx_ir.

Handles map one to one to onnx_ir's nodes and values and are kept up to date by every change, so that a rewrite costs
what it touches. Shapes that onnx infers live in the handles only: the file keeps the ones that its author wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from ..errors import GraphError, LoadError, OptionError, VerifyError
from ..ir.rules import FLOATS, WIDTH
from ..ir.sizes import Size
from .base import Array, Host, Node, Region, Value, row_blocks
from .model.onnx import (
    GRAPHS,
    OLDEST_OPSET,
    data_of,
    dense,
    evaluate,
    external_tensors,
    has_recurrence,
    inner_graphs,
    inner_nodes,
    is_sorted,
    line,
    modernise,
    open_session,
    read,
    remove_unused_functions,
    rename,
    root,
    run_apart,
    save,
    session,
    validate,
)
from .onnx_sizes import Sizes
from .types.onnx import Inference, Type, declared_type, symbols, tensor_type
from .wide.onnx import widened

DOMAIN_VERSIONS = {"com.microsoft": 1, "recopt": 1, "ai.onnx.ml": 3}
KNOWN_DOMAINS = {"", "ai.onnx.ml", "com.microsoft", "recopt"}
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
ROUNDS = 8  # of shape inference
EVALUATED_LIMIT = 256 << 20  # bytes of a computed constant
MERGED_LIMIT = 1024  # elements of the constants that are compared by content: never a table


class OnnxHost(Host):
    """A graph in an `onnx_ir.Model` that this host owns."""

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

    def _small_constant(self, value: Value) -> Array | None:
        stored = self._stored(value) if value.node is None else None
        return stored.numpy() if stored is not None and stored.size <= MERGED_LIMIT else None

    # Loading and saving

    @classmethod
    def load(cls, source: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> Self:
        """A host for a file or a model in memory, which is never changed; external data stays memory-mapped.

        Raises LoadError when there is no such file, when it holds no ONNX model, when the graph is cyclic or ill-typed,
        and when its opset is older than 11 and cannot be converted.
        """
        try:
            if isinstance(source, ir.Model):
                model = source.clone()
            elif isinstance(source, onnx.ModelProto):
                model = ir.from_proto(dense(source))
            else:
                model = read(Path(source))
            if not is_sorted(model.graph):
                model.graph.sort()
        except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
            cyclic = "cycle" in str(error)
            raise LoadError(
                "the graph is cyclic" if cyclic else f"not a valid ONNX model: {line(root(error))}"
            ) from error
        model = modernise(model)
        try:
            strict = validate(model)
        except GraphError as error:
            raise LoadError(str(error)) from error
        host = cls(model)
        host.strict = strict
        host.source = Path(source) if isinstance(source, (str, os.PathLike)) else None
        host.weights = host.files()
        return host

    def clone(self) -> Self:
        types = {value.name: (value.shape, value.dtype) for value in self._values.values()}
        copy = type(self)(self.model.clone(), types)
        copy.strict = self.strict
        copy.source = self.source
        copy.weights = self.weights
        return copy

    def to_proto(self) -> onnx.ModelProto:
        """The model as a protobuf; weights that came as external data stay references to it."""
        return ir.to_proto(self.model)

    def save(self, path: Path) -> None:
        """Raises OptionError where the original's weights lie in the file that this model's would go to."""
        data = data_of(path)
        over = self.source is not None and path.exists() and path.samefile(self.source)
        if data.resolve() in self.files() and not over:
            raise OptionError(f"{data}: the original's weights lie there")
        save(self.model, path, external=bool(self.weights))

    def files(self) -> frozenset[Path]:
        now = frozenset(Path(tensor.path).resolve() for tensor in external_tensors(self.model))
        return now | self.weights  # whatever was made of the tables

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

    def _top(self, node: ir.Node) -> ir.Node:
        """The node of the main graph in which `node` is or lies."""
        while node.graph is not self.model.graph:
            node = self._owners[cast(ir.Graph, node.graph)]
        return node

    # Constants

    def is_constant(self, value: Value) -> bool:
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

    # Changing

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
        body: Callable[[OnnxHost, list[Value]], Value],
        attributes: Sequence[str] = (),
    ) -> str:
        """The operator `recopt::name`, a model-local function whose body `body` writes on a host of its own, once.
        `inputs` are the dtypes of its parameters, `attributes` the names of its string attributes."""
        if ("recopt", name, "") in self.model.functions:
            return f"recopt::{name}"
        values = [ir.Value(name=f"x{i}", type=tensor_type(dtype)) for i, dtype in enumerate(inputs)]
        graph = ir.Graph(values, [], nodes=[], name=name, opset_imports=dict(self.model.opset_imports))
        types: dict[str, Type] = {f"x{i}": (None, dtype) for i, dtype in enumerate(inputs)}
        inner = OnnxHost(ir.Model(graph, ir_version=self.model.ir_version), types)
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

    def body_of(self, body: Callable[[OnnxHost, list[Value]], Value]) -> ir.Value:
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
            first_outputs = seen.setdefault((node.op, node.args, attributes, len(node.outputs)), node.outputs)
            for old, new in zip(node.outputs, first_outputs, strict=True):
                self.replace(old, new)

    def _changed(self) -> None:
        self.revision += 1
        self._order = None

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

    def tap(self, values: Sequence[Value]) -> Self:
        types = {value.name: (value.shape, value.dtype) for value in self._values.values()}
        model = self.model.clone()
        found = {v.name: v for node in model.graph for v in node.outputs}
        found |= {v.name: v for v in (*model.graph.inputs, *model.graph.initializers.values())}
        model.graph.outputs.clear()
        for value in values:
            output = found[value.name]
            output.type = output.type or tensor_type(value.dtype)
            if output not in model.graph.outputs:
                model.graph.outputs.append(output)
        tapped = type(self)(model, types)
        tapped.erase_dead()
        return tapped

    # Running

    def check(self) -> None:
        if not is_sorted(self.model.graph):
            raise GraphError("a node reads a value that is computed after it")
        validate(self.model, strict=self.strict)

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        if len(feeds) != len(self.inputs):
            raise VerifyError(f"the model has {len(self.inputs)} inputs, {len(feeds)} were given")
        try:
            if self._session is None or self._session[0] != self.revision:
                self._session = (self.revision, open_session(self.model))
            outputs = [value.name for value in self.outputs]
            named = {value.name: feed for value, feed in zip(self.inputs, feeds, strict=True)}
            return cast("list[Array]", self._session[1].run(outputs, named))  # a sequence is a list of arrays
        except Exception as error:  # ONNX Runtime raises errors of many unrelated classes
            raise VerifyError(f"ONNX Runtime refuses the model: {line(error)}") from error

    def run_in_float64(self, feeds: Sequence[Array]) -> list[Array] | None:
        """For a model of half precision, in float32, of which ONNX Runtime has all operators; None for any other, for
        one whose outputs are wider than what it rounds to, and for one with external data."""
        values = [*self.inputs, *(v for node in self.nodes for v in node.outputs)]
        narrowest = min((WIDTH[v.dtype] for v in values if v.dtype in FLOATS), default=0)
        wider = any(WIDTH[v.dtype] > narrowest for v in self.outputs if v.dtype in FLOATS)
        if narrowest != WIDTH["float16"] or wider or external_tensors(self.model):
            return None
        halves = [v.dtype in FLOATS and WIDTH[v.dtype] == narrowest for v in self.inputs]
        given = zip(self.inputs, feeds, halves, strict=True)
        wide = {v.name: feed.astype(np.float32) if half else feed for v, feed, half in given}
        try:
            results = session(widened(ir.to_proto(self.model))).run([v.name for v in self.outputs], wide)
        except Exception:  # ONNX Runtime raises errors of many unrelated classes
            return None
        return cast("list[Array]", results)

    def probe(self, feeds: Sequence[Array]) -> None:
        if has_recurrence(self.model):
            run_apart(self.model, {value.name: feed for value, feed in zip(self.inputs, feeds, strict=True)})
        else:
            self.run(feeds)

    def native(self) -> ir.Model:
        return self.model

    def executable(self) -> Callable[..., list[Array]]:
        """ONNX Runtime on inputs given in order or by name; arrays, or anything numpy takes (tensors on the CPU)."""
        names = [value.name for value in self.inputs]
        tensors = {value.name for value in self.inputs if value.dtype is not None}  # others are passed on as they are
        session = open_session(self.model)
        outputs = [value.name for value in self.outputs]

        def call(*args: Any, **kwargs: Any) -> list[Array]:
            feeds = dict(zip(names, args, strict=False)) | kwargs
            if len(args) > len(names) or set(feeds) != set(names):
                raise OptionError(f"the model takes the inputs {', '.join(names)}")
            given = {name: np.asarray(feed) if name in tensors else feed for name, feed in feeds.items()}
            results = session.run(outputs, given)
            return cast("list[Array]", results)

        return call

    def examples(self, given: Any) -> list[Array] | None:
        if given is None:
            return None
        names = [value.name for value in self.inputs]
        if isinstance(given, Mapping):
            if set(given) != set(names):
                raise OptionError(f"example inputs must name the inputs {', '.join(names)}")
            given = [given[name] for name in names]
        elif not isinstance(given, (tuple, list)):
            given = [given]
        if len(given) != len(names):
            raise OptionError(
                f"the model takes {len(names)} inputs ({', '.join(names)}), {len(given)} examples were given"
            )
        return [g if v.dtype is None else np.asarray(g) for v, g in zip(self.inputs, given, strict=True)]

    def count_parameters(self) -> int:
        return sum(
            value.const_value.size for value in self.model.graph.initializers.values() if value.const_value is not None
        )

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


def _fits(function: ir.Function, model: ir.Model) -> bool:
    """Whether `function` means the same with the main graph's opsets, so that it can be inlined."""
    opsets = model.graph.opset_imports
    return all(opsets.get(domain, version) == version for domain, version in function.opset_imports.items())


def _attribute(attribute: ir.Attr) -> Any:
    """An attribute as a Python value, a tensor as a numpy array."""
    if attribute.is_ref():
        return None
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor().numpy()
    return tuple(attribute.value) if isinstance(attribute.value, (list, tuple)) else attribute.value


def _key(value: object) -> object:
    """An attribute's value as something to compare by."""
    return (value.dtype.name, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
