"""The torch.export host: reads and changes a lifted `torch.fx` graph in which parameters are placeholders."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import sympy
import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch.export.graph_signature import (
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)

from ..errors import GraphError, LoadError
from ..ir import sizes
from ..ir.sizes import Size
from . import fx_capture, fx_composites, fx_layers, fx_ops, fx_writes
from .base import Array, Node, Value
from .fx_graph import STORED
from .fx_program import FxProgram


class FxHost(FxProgram):
    """A `torch.export.ExportedProgram` as a host graph. The program given stays as it is; storage is shared.

    Raises LoadError for a program that needs effect tokens or that cannot be made functional.
    """

    @classmethod
    def capture(cls, module: torch.nn.Module, example_inputs: object, dynamic_shapes: Any = None) -> FxHost:
        """The graph of `module` as it stands, by torch.export (not strict); `module` is not changed.

        `example_inputs` is a tuple of positional or a dict of keyword arguments. Without `dynamic_shapes`, dimension 0
        is symbolic wherever it is the batch, if export can. Raises LoadError when the module cannot be captured.
        """
        return cls(fx_capture.capture(module, example_inputs, dynamic_shapes))

    @classmethod
    def load(cls, path: Path) -> FxHost:
        """The program in a `.pt2` archive. Raises LoadError where there is none."""
        try:
            with fx_capture.quiet():
                program = torch.export.load(path)
        except Exception as error:  # torch raises anything for a file that is none of its own
            raise LoadError(f"{path}: not a program of torch.export: {fx_capture.one_line(error)}") from error
        return cls(program)

    # Changing

    @contextmanager
    def at(self, node: Node) -> Iterator[None]:
        before, self._at = self._at, self._producer[node]
        try:
            yield
        finally:
            self._at = before

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
    ) -> Value:
        """Append "aten.permute.default", "operator.mul", ... Shape and dtype are found by the operator's fake kernel.
        Raises GraphError for an operator that does not exist or that refuses its arguments."""
        target = fx_ops.resolve(op)
        fx_args, fx_kwargs = fx_ops.arguments(target, args, kwargs or {}, self._node_of)
        val = self._val(op, target, fx_args, fx_kwargs)
        with self._graph.inserting_before(self._at or self._output()):
            node = self._graph.create_node("call_function", target, fx_args, fx_kwargs, name=re.sub(r"\W", "_", name))
        if like is not None and (origin := self._source[like]) is not None:
            node.meta.update(fx_ops.provenance(origin))
        node.meta["val"] = val
        self._changed()
        self._wrap(node)
        return self._nodes[node].outputs[0]

    def _val(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator's fake kernel makes of its arguments. Calls whose operands have the same sizes, strides and
        types share it: with symbols in them, torch takes 1 to 2 ms for each."""
        key = target, fx_ops.key(args, self._kind), fx_ops.key(kwargs, self._kind)
        if key in self._vals:
            return self._vals[key]
        fake_args, fake_kwargs = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        assert self._fake is not None
        try:
            with self._fake, enable_python_dispatcher(), torch.no_grad():
                val = target(*fake_args, **fake_kwargs)
        except Exception as error:  # operators raise anything; all mean that the call is not valid
            raise GraphError(f"{op} refuses its arguments: {fx_capture.one_line(error)}") from error
        if torch.Tag.dynamic_output_shape not in getattr(target, "tags", ()):  # a size of its own each time
            self._vals[key] = val
        return val

    def _kind(self, node: fx.Node) -> object:
        """All that a fake kernel can see of an operand."""
        val = node.meta["val"]
        if not isinstance(val, torch.Tensor) or val.layout is not torch.strided:
            return node
        extents = (*val.shape, *val.stride(), val.storage_offset())
        sized = tuple(s if isinstance(s, int) else s.node.expr for s in extents)
        return type(val), val.dtype, val.device, val.requires_grad, sized

    def size(self, size: Size) -> int | Value:
        """`size` as an argument for `call`: a number, or nodes that compute it at the insertion point.
        Raises GraphError for a symbol that no tensor before that point has as a dimension."""
        if isinstance(size, int):
            return size
        if size in self._holders:
            node, dim = self._holders[size]
            return self._dimension(node, dim)
        end = self._at or self._output()
        for node in self._graph.nodes:
            if node is end:
                break
            val = node.meta.get("val")
            dims = (self._values[node].shape or ()) if isinstance(val, torch.Tensor) and node in self._values else ()
            dim = dims.index(size) if size in dims else None
            if dim is not None or (isinstance(val, torch.SymInt) and self._size(val) == size):
                if node.op == "placeholder":  # inputs stay, and stand before all else
                    self._holders[size] = node, dim
                return self._dimension(node, dim)
        if isinstance(size, sympy.Symbol):
            raise GraphError(f"size {size} is no dimension of a tensor computed so far")
        base, exponent = size.as_base_exp()
        factors = [base] * int(exponent) if isinstance(size, sympy.Pow) else size.args
        op = "operator.add" if isinstance(size, sympy.Add) else "operator.mul"
        total = self.size(sizes.size(factors[0]))
        for factor in factors[1:]:
            total = self.call(op, (total, self.size(sizes.size(factor))), name="size")
        return total

    def _dimension(self, node: fx.Node, dim: int | None) -> Value:
        """Dimension `dim` of a tensor, or a size itself."""
        value = self._values[node]
        return value if dim is None else self.call("aten.sym_size.int", (value, dim), name="size")

    def add_constant(self, array: Array, *, name: str) -> Value:
        """A new buffer holding `array` on the program's device; shared, not copied, on the CPU."""
        tensor = fx_ops.on(fx_ops.to_torch(array), self._device())
        base = target = re.sub(r"\W", "_", name)
        count = 0
        while target in self._taken:
            count += 1
            target = f"{base}_{count}"
        self._taken.add(target)
        first = self._first_input or next(n for n in self._graph.nodes if n.op != "placeholder")
        with self._graph.inserting_before(first):
            node = self._graph.create_node("placeholder", f"b_{target}", name=f"b_{target}")
        assert self._fake is not None
        node.meta["val"] = self._fake.from_tensor(tensor, static_shapes=True)
        self._tensors[target] = tensor
        self._specs[node] = InputSpec(InputKind.BUFFER, TensorArgument(node.name), target, True)
        self._own(self._value(target, node.meta["val"]), node)
        self._changed()
        return self._values[node]

    def replace(self, old: Value, new: Value) -> None:
        """Every use of `old` after `new` reads `new`, which takes over source location and module path where it has
        none. Uses before it, those that `new` is computed from, stay."""
        source, target = self._source[old], self._node_of(new)
        if source is None or source is target:
            return
        for key, item in fx_ops.provenance(source).items():
            target.meta.setdefault(key, item)
        for user in source.replace_all_uses_with(target, delete_user_cb=lambda user: target < user):
            self._refresh(user)
        self._changed()

    def erase_dead(self) -> int:
        removed = 0
        for node in reversed(list(self._graph.nodes)):
            handle, spec = self._nodes.get(node), self._specs.get(node)
            if node.users or node.op == "output" or (handle is not None and self._acts(handle)):
                continue
            if spec is not None and (spec.kind not in STORED or spec.target in self._mutated):
                continue
            removed += handle is not None
            self._forget(node)
        self._changed()
        return removed

    def _acts(self, handle: Node) -> bool:
        """Whether a call may do more than compute its results: one with bodies does what they do."""
        inner = [n for body in self.regions(handle).values() for n in body.nodes]
        return handle.opaque and (not inner or any(n.opaque for n in inner))

    def _forget(self, node: fx.Node) -> None:
        handle, spec, value = self._nodes.pop(node, None), self._specs.pop(node, None), self._values.pop(node, None)
        if handle is not None:
            self._producer.pop(handle)
            for output in handle.outputs:
                self._source.pop(output, None)
        elif value is not None:
            self._source.pop(value)
            if value.node is not None:
                self._source[value] = None  # the tuple that it is picked from stays
        if spec is not None and spec.target is not None:
            self._tensors.pop(spec.target)
        self._pure.pop(node, None)
        self._evaluated.pop(node, None)
        self._graph.erase_node(node)

    def normalise(self) -> None:
        """Drop operators that change nothing, merge equal calls, erase dead ones; assertions on inputs stay.

        A view becomes a reshape, since a rewrite may change the strides of what it reads.
        """
        seen: dict[Any, Node] = {}
        for handle in list(self.nodes):
            node = self._producer[handle]
            if handle.op == "aten._assert_tensor_metadata.default" and handle.inputs[0] not in self.inputs:
                self._forget(node)  # only what the caller feeds can have another type than the graph says
                continue
            if handle.opaque:
                continue
            if node.target is torch.ops.aten.view.default:
                node.target, handle.op = torch.ops.aten.reshape.default, "aten.reshape.default"
            if fx_ops.is_identity(handle, node):
                self.replace(handle.outputs[0], handle.inputs[0])
                continue
            with self.at(handle):
                plain = fx_writes.written(self, handle)
            if plain is not None:
                self.replace(handle.outputs[0], plain)
                continue
            first = seen.setdefault((handle.op, fx_ops.key(node.args), fx_ops.key(node.kwargs)), handle)
            if first is not handle:
                for old, new in zip(handle.outputs, first.outputs, strict=True):
                    self.replace(old, new)
        self.erase_dead()

    def inline(self, known: Container[str]) -> None:
        for handle in list(self.nodes):
            node = self._producer[handle]
            if handle.op == fx_layers.GRU and not handle.opaque:
                with self.at(handle):
                    layers = fx_layers.apart(self, handle)
                for old, new in zip(handle.outputs, layers or (), strict=layers is not None):
                    self.replace(old, new)
            if handle.opaque or handle.op in known or not fx_composites.is_composite(node.target):
                continue
            found = fx_composites.body(node, known)
            if found is not None and len(found[1]) == len(handle.outputs):
                self._inline(handle, node, *found)
        self.erase_dead()

    def _inline(self, handle: Node, node: fx.Node, calls: fx.Graph, results: Sequence[fx.Node]) -> None:
        """Put what a composite operator calls before it, and its results in its place."""
        inner = dict(zip(calls.find_nodes(op="placeholder"), fx_composites.operands(node), strict=True))
        with self._graph.inserting_before(node):
            for call in [n for n in calls.nodes if n.op == "call_function"]:
                inner[call] = self._graph.node_copy(call, inner.__getitem__)
                inner[call].meta = fx_ops.provenance(node) | {"val": call.meta["val"]}
                self._wrap(inner[call])
        self._changed()
        for old, new in zip(handle.outputs, results, strict=True):
            self.replace(old, self._values[inner[new]])

    def clone(self) -> Self:
        new = object.__new__(type(self))
        new._sizes = dict(self._sizes)
        new._bind(self._gm, self._input_specs(), self._output_specs, self._tensors, self._template)
        return new

    def tap(self, values: Sequence[Value]) -> Self:
        names = [self._node_of(value).name for value in dict.fromkeys(values)]
        new = self.clone()
        found = {node.name: node for node in new._graph.nodes}
        new._output().args = (tuple(found[name] for name in names),)
        new._output_specs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name), None) for name in names]
        new.erase_dead()
        return new
