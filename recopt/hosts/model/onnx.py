"""ONNX models as files and programs: read, take apart and write an `onnx_ir.Model`."""

from __future__ import annotations

import contextlib
import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.version_converter
import onnx_ir as ir
import onnx_ir.passes.common as common

from ...errors import LoadError
from ..files import staged

OLDEST_OPSET = 11
GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
EMBEDDED_LIMIT = 1_800_000_000  # bytes of weights from which a file needs external data: protobuf ends at 2 GiB
EMBEDDED_FROM_DATA = 256  # bytes of a tensor up to which it lies in the file even where the others are external data
SKELETON_LIMIT = 1024  # elements of the initializers that onnx's checks may see: shapes and axes, never a table


def read(path: Path) -> ir.Model:
    if not path.is_file():
        raise LoadError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        proto = onnx.load(path, load_external_data=False)
        model = of_proto(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)
    except ir.serde.SerdeError as error:
        raise LoadError(f"{path}: not a model that can be read: {line(root(error))}") from error
    except LoadError as error:
        raise LoadError(f"{path}: {error}") from error
    except Exception as error:  # protobuf and onnx raise errors of many unrelated classes
        raise LoadError(f"{path}: not an ONNX model") from error
    if not model.graph.outputs:
        raise LoadError(f"{path}: not an ONNX model (it has no outputs)")
    for tensor in (v.const_value for v in model.graph.initializers.values()):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        if not os.path.isfile(tensor.path):
            raise LoadError(f"{path}: its external data {tensor.path} does not exist")
        if not Path(tensor.path).resolve().is_relative_to(path.parent.resolve()):  # onnx_ir reads no such file
            raise LoadError(f"{path}: its external data {tensor.path} lies outside its folder")
        if os.path.getsize(tensor.path) < (tensor.offset or 0) + tensor.nbytes:
            raise LoadError(f"{path}: its external data {tensor.path} ends before {tensor.name} does")
    return model


def of_proto(model: onnx.ModelProto) -> ir.Model:
    """`model` as onnx_ir holds it. Raises LoadError for one with a value that is a map, as ZipMap makes."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type
        while kind.HasField("sequence_type"):
            kind = kind.sequence_type.elem_type
        if kind.HasField("map_type"):
            raise LoadError(f"{value.name} holds maps, which cannot be read: export the model without ZipMap")
    return ir.from_proto(dense(model))


def dense(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its sparse initializers as dense ones; itself where it has none."""
    if not model.graph.sparse_initializer:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for sparse in result.graph.sparse_initializer:
        values, places = (onnx.numpy_helper.to_array(part) for part in (sparse.values, sparse.indices))
        array = np.zeros(tuple(sparse.dims), values.dtype)
        if places.ndim == 1:
            array.reshape(-1)[places] = values
        else:
            array[tuple(places.T)] = values
        result.graph.initializer.append(onnx.numpy_helper.from_array(array, sparse.values.name))
    del result.graph.sparse_initializer[:]
    return result


def modernise(model: ir.Model) -> ir.Model:
    """Opset 11 at least, initializers that are no inputs (files older than IR version 4 list them as both), no second
    name for the standard domain, and open sizes where some converters write -1. Raises LoadError for an opset that
    cannot be converted, or that nobody here knows."""
    for imports in (model.graph.opset_imports, *(f.opset_imports for f in model.functions.values())):
        if "ai.onnx" in imports:
            imports[""] = imports.pop("ai.onnx")
    for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs)):
        if value.shape is not None and any(isinstance(d, int) and d < 0 for d in value.shape):
            value.shape = ir.Shape(None if isinstance(d, int) and d < 0 else d for d in value.shape)
    if model.ir_version < 4:
        inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
        model.graph.inputs.clear()
        model.graph.inputs.extend(inputs)
        model.ir_version = 4
    opset = model.graph.opset_imports.get("", OLDEST_OPSET)
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise LoadError(f"opset {opset} is newer than {newest}, the last that onnx {onnx.__version__} knows")
    if opset >= OLDEST_OPSET:
        return model
    refusal = f"opset {opset} is older than {OLDEST_OPSET} and cannot be converted"
    try:
        converted = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), OLDEST_OPSET))
    except Exception as error:  # onnx raises errors of many unrelated classes
        raise LoadError(f"{refusal}: {line(error)}") from error
    interfaces = [(*m.graph.inputs, *m.graph.outputs) for m in (model, converted)]
    if len(interfaces[0]) != len(interfaces[1]) or not all(map(_alike, *interfaces)):
        raise LoadError(f"{refusal}: the types of its inputs and outputs would change")
    for old, new in zip(*interfaces, strict=True):
        new.shape = old.shape
    return converted


def _alike(old: ir.Value, new: ir.Value) -> bool:
    """Whether `new` is what `old` is said to be. The converter infers sizes that were open, and names some itself."""
    if (old.name, old.type) != (new.name, new.type):
        return False
    if old.shape is None or new.shape is None:
        return old.shape is None
    sizes = zip(old.shape, new.shape, strict=False)
    return len(old.shape) == len(new.shape) and all(a == b for a, b in sizes if isinstance(a, int))


@contextlib.contextmanager
def skeleton(model: ir.Model) -> Iterator[onnx.ModelProto]:
    """`model` as a protobuf in which every larger initializer is an input: small, whatever the tables weigh."""
    graph = model.graph
    initializers = list(graph.initializers.values())
    large = [v for v in initializers if v.const_value is not None and v.const_value.size > SKELETON_LIMIT]
    external = [(v, v.const_value) for v in initializers if isinstance(v.const_value, ir.ExternalTensor)]
    inputs = list(graph.inputs)
    try:
        for value in large:
            graph.initializers.pop(cast(str, value.name))
        for value, tensor in external:
            value.const_value = None if value in large else ir.Tensor(tensor.numpy(), name=value.name)
        graph.inputs.extend(value for value in large if value not in inputs)
        yield ir.to_proto(model)
    finally:
        for value, tensor in external:
            value.const_value = tensor
        graph.inputs.clear()
        graph.inputs.extend(inputs)
        for value in large:
            graph.initializers.pop(cast(str, value.name), None)
        for value in initializers:
            graph.initializers.pop(cast(str, value.name), None)
        for value in initializers:
            graph.register_initializer(value)


def is_sorted(graph: ir.Graph) -> bool:
    later = set(graph)
    for node in graph:
        if any(v is not None and v.producer() in later for inner in inner_nodes(node) for v in inner.inputs):
            return False
        later.discard(node)
    return True


def inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The sub-graphs of `node`, those inside them too."""
    for attribute in node.attributes.values():
        if attribute.type in GRAPHS and not attribute.is_ref():
            for graph in [attribute.value] if attribute.type == ir.AttributeType.GRAPH else attribute.value:
                yield graph
                for inner in graph:
                    yield from inner_graphs(inner)


def inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """`node` and the nodes of its sub-graphs."""
    yield node
    for graph in inner_graphs(node):
        yield from graph


def line(error: BaseException) -> str:
    """An error's text on one line, without the frames that onnx appends."""
    text = re.sub(r"==> Context:.*", "", str(error), flags=re.DOTALL)
    return " ".join(text.split())[:300] or type(error).__name__


def root(error: BaseException) -> BaseException:
    """The error that the others on its way up were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def remove_unused_functions(model: ir.Model) -> None:
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]  # onnx_ir's pass is untyped


def save(model: ir.Model, path: Path, external: bool = False) -> None:
    """Write `model` to `path`, its weights to `path` + ".data" beside it where `external` says so, where some are
    external data, and where they are too big for one file. Both appear whole or not at all (OSError). Tables go
    from file to file, in blocks. A model that lies in the very file that is replaced lies in the new one from then
    on."""
    data = data_of(path) if external or is_external(model) else None
    for value in initialized(model):  # small ones come into the file itself, from maps that others may hold
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= EMBEDDED_FROM_DATA:
            value.const_value = ir.Tensor(tensor.numpy().copy(), name=tensor.name, dtype=tensor.dtype)
    old = [v for v in initialized(model) if data is not None and _lies_in(v, data)]
    with staged(path) as place:
        ir.save(
            model,
            place,
            format="protobuf",
            external_data=None if data is None else data.name,
            size_threshold_bytes=EMBEDDED_FROM_DATA,
        )
    if old:
        written = {v.name: v.const_value for v in initialized(read(path))}
        for value in old:
            value.const_value = written[value.name]


def data_of(path: Path) -> Path:
    """Where the external data of a model that is saved as `path` goes."""
    return path.with_name(f"{path.name}.data")


def _lies_in(value: ir.Value, file: Path) -> bool:
    tensor = value.const_value
    return isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).resolve() == file.resolve()


def initialized(model: ir.Model) -> Iterator[ir.Value]:
    """The initializers of a model, those of sub-graphs too."""
    yield from model.graph.initializers.values()
    for node in model.graph:
        for graph in inner_graphs(node):
            yield from graph.initializers.values()


def rename(value: ir.Value, name: str) -> None:
    """Give `value` another name. onnx_ir writes it into the constant too, which may be that of the model that the user
    holds: the value gets one of its own."""
    tensor = value.const_value
    if isinstance(tensor, ir.TensorProtoTensor):
        value.const_value = ir.serde.deserialize_tensor(ir.serde.serialize_tensor(tensor))
    elif tensor is not None:
        value.const_value = copy.copy(tensor)
    value.name = name


def external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    tensors = (value.const_value for value in initialized(model))
    return [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]


def is_external(model: ir.Model) -> bool:
    """Whether the weights belong in a file of their own."""
    return bool(external_tensors(model)) or embedded_bytes(model) > EMBEDDED_LIMIT


def embedded_bytes(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(t.nbytes for t in tensors if t is not None and not isinstance(t, ir.ExternalTensor))
