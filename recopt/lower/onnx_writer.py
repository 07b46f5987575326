"""What a lowering needs of an ONNX host, and a stand-in that only counts the nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..hosts.base import Array, Value
from ..hosts.onnx import OnnxHost
from ..ir.sizes import Size


class Writer(Protocol):
    """The methods of `OnnxHost` that lowerings call."""

    @property
    def opset(self) -> int: ...
    @property
    def inputs(self) -> Sequence[Value]: ...
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
    ) -> Value: ...
    def add_constant(self, array: Array, *, name: str) -> Value: ...
    def share_constant(self, array: Array, *, name: str) -> Value: ...
    def derive(self, key: object, make: Callable[[], Value]) -> Value: ...
    def is_constant(self, value: Value) -> bool: ...
    def constant(self, value: Value) -> Array: ...
    def define(
        self,
        name: str,
        inputs: Sequence[str],
        body: Callable[[OnnxHost, list[Value]], Value],
        attributes: Sequence[str] = (),
    ) -> str: ...


class Counter:
    """A writer that writes nothing: `nodes` is how many nodes the host would have got."""

    dialect = "onnx"

    def __init__(self, host: Writer) -> None:
        self.host = host
        self.nodes = 0

    @property
    def opset(self) -> int:
        return self.host.opset

    @property
    def inputs(self) -> Sequence[Value]:
        return self.host.inputs

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
        self.nodes += 1
        return Value(name, shape, dtype)

    def add_constant(self, array: Array, *, name: str) -> Value:
        return Value(name, array.shape, array.dtype.name)

    def share_constant(self, array: Array, *, name: str) -> Value:
        return self.add_constant(array, name=name)

    def derive(self, key: object, make: Callable[[], Value]) -> Value:
        return Value("derived", None, None)

    def is_constant(self, value: Value) -> bool:
        return self.host.is_constant(value)

    def constant(self, value: Value) -> Array:
        return self.host.constant(value)

    def define(
        self,
        name: str,
        inputs: Sequence[str],
        body: Callable[[OnnxHost, list[Value]], Value],
        attributes: Sequence[str] = (),
    ) -> str:
        return f"recopt::{name}"
