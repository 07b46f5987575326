"""From a host graph to terms: `base.py` lifts, `aten.py` and `onnx.py` are the tables of operators."""

from __future__ import annotations

from collections.abc import Collection

from ..hosts.base import Host, Node
from .base import Lifted, Opaque, Table


def lift(host: Host, nodes: Collection[Node] | None = None) -> Lifted:
    """The terms of every value of `host`, or of what `nodes` compute."""
    return Lifted(host, table_of(host), nodes)


def table_of(host: Host) -> Table:
    """The operators of a host's dialect that can be lifted, and how."""
    if host.dialect == "aten":
        from .aten import TABLE as aten_table

        return aten_table
    from .onnx import TABLE as onnx_table

    return onnx_table


__all__ = ["Lifted", "Opaque", "lift", "table_of"]
