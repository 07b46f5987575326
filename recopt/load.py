"""From what users hold (a module, an exported program, a file, an ONNX model) to a host. Frameworks are imported
late."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .errors import LoadError, OptionError
from .hosts.base import Host


def load(path: str | os.PathLike[str]) -> Host:
    """The host for an ONNX file or a `.pt2` of torch.export. Raises LoadError where there is none or it holds no
    model."""
    file = Path(path)
    if not file.is_file():
        raise LoadError(f"{file}: {'not a file' if file.exists() else 'no such file'}")
    if file.suffix != ".pt2":
        from .hosts.onnx import OnnxHost

        return OnnxHost.load(file)
    from .hosts.fx import FxHost

    return FxHost.load(file)


def is_module(model: object) -> bool:
    """Whether `model` is a torch.nn.Module (and so must be captured with example inputs)."""
    return _is(model, "torch.nn.modules.module", "Module")


def host_of(model: Any, example_inputs: Any = None, dynamic_shapes: Any = None) -> Host:
    """The host for anything that `optimize` takes. Raises LoadError, OptionError."""
    if isinstance(model, Host):
        return model.clone()
    if isinstance(model, (str, os.PathLike)):
        _no_capture(dynamic_shapes)
        return load(model)
    if is_module(model):
        from .hosts.fx import FxHost

        return FxHost.capture(model, example_inputs, dynamic_shapes)
    if _is(model, "torch.export.exported_program", "ExportedProgram"):
        from .hosts.fx import FxHost

        _no_capture(dynamic_shapes)
        return FxHost(model)
    if _is(model, "onnx", "ModelProto") or _is(model, "onnx_ir", "Model"):
        from .hosts.onnx import OnnxHost

        _no_capture(dynamic_shapes)
        return OnnxHost.load(model)
    if _is(model, "recopt.api", "Optimized"):
        raise LoadError("the model is optimized already: give its .model, or the original")
    raise LoadError(
        f"cannot optimize an object of type {type(model).__name__}: need an nn.Module, an ExportedProgram, an ONNX or "
        ".pt2 path, a ModelProto or an onnx_ir.Model"
    )


def _no_capture(dynamic_shapes: object) -> None:
    if dynamic_shapes is not None:
        raise OptionError("dynamic_shapes only applies to an nn.Module: this model has its shapes already")


def _is(model: object, module: str, name: str) -> bool:
    return any(c.__name__ == name and c.__module__.split(".")[0] == module.split(".")[0] for c in type(model).__mro__)
