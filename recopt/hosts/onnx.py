"""ONNX models as hosts, over onnx_ir: loaded, saved and run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import onnx
import onnx_ir as ir

from ..errors import GraphError, LoadError, OptionError, VerifyError
from ..ir.rules import FLOATS, WIDTH
from .base import Array, Value
from .model.onnx import data_of, external_tensors, is_sorted, line, modernise, of_proto, read, root, save
from .runtime.onnx import ends_processes, open_session, run_apart, session, validate
from .surgery.onnx import OnnxSurgery
from .types.onnx import tensor_type
from .wide.onnx import widened


class OnnxHost(OnnxSurgery):
    """A graph in an `onnx_ir.Model` that this host owns."""

    # Loading and saving

    @classmethod
    def load(cls, source: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> Self:
        """A host for a file or a model in memory, which is never changed; external data stays memory-mapped.

        Raises LoadError when there is no such file, when it holds no ONNX model, when the graph is cyclic or ill-typed,
        and when its opset is older than 11 and cannot be converted, or newer than the installed onnx knows.
        """
        try:
            if isinstance(source, ir.Model):
                model = source.clone()
            elif isinstance(source, onnx.ModelProto):
                model = of_proto(source)
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

    def open(self) -> None:
        if not ends_processes(self.model):
            self._opened()

    def _opened(self) -> Any:
        if self._session is None or self._session[0] != self.revision:
            try:
                self._session = (self.revision, open_session(self.model))
            except Exception as error:  # ONNX Runtime raises errors of many unrelated classes
                raise VerifyError(f"ONNX Runtime refuses the model: {line(error)}") from error
        return self._session[1]

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        if len(feeds) != len(self.inputs):
            raise VerifyError(f"the model has {len(self.inputs)} inputs, {len(feeds)} were given")
        session = self._opened()
        try:
            outputs = [value.name for value in self.outputs]
            named = {value.name: feed for value, feed in zip(self.inputs, feeds, strict=True)}
            return cast("list[Array]", session.run(outputs, named))  # a sequence is a list of arrays
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
        if ends_processes(self.model):
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
        return [_example(value, each) for value, each in zip(self.inputs, given, strict=True)]


def _example(value: Value, given: Any) -> Any:
    """An example of an input, as an array where that is a tensor. Raises OptionError where it is not what the model
    declares."""
    if value.dtype is None:
        return given
    array = np.asarray(given)
    wanted = value.shape
    fits = wanted is None or len(wanted) == array.ndim
    fits = fits and all(not isinstance(w, int) or w == n for w, n in zip(wanted or (), array.shape, strict=False))
    if not fits or (array.dtype.kind in "fiub" and str(array.dtype) != value.dtype):
        shape = "any shape" if wanted is None else f"({', '.join(map(str, wanted))})"
        raise OptionError(
            f"the example of input {value.name} is {array.dtype} {array.shape}, the model takes {value.dtype} {shape}"
        )
    return array
