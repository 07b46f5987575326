"""From a host graph to terms: `base.py` lifts, `aten.py` and `onnx.py` are the tables of operators."""

from __future__ import annotations

from collections.abc import Collection

from ..hosts.base import Host, Node
from .base import Lifted, Opaque


def lift(host: Host, nodes: Collection[Node] | None = None) -> Lifted:
    """The terms of every value of `host`, or of what `nodes` compute."""
    if host.dialect == "aten":
        from .aten import TABLE as aten_table

        return Lifted(host, aten_table, nodes)
    from .onnx import TABLE as onnx_table

    return Lifted(host, onnx_table, nodes)


__all__ = ["Lifted", "Opaque", "lift"]
