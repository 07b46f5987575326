"""From a host graph to terms: `base.py` lifts, `aten.py` and `onnx.py` are the tables of operators."""

from __future__ import annotations

from ..hosts.base import Host
from .base import Lifted, Opaque


def lift(host: Host) -> Lifted:
    """The terms of every value of `host`."""
    if host.dialect == "aten":
        from .aten import TABLE as aten_table

        return Lifted(host, aten_table)
    from .onnx import TABLE as onnx_table

    return Lifted(host, onnx_table)


__all__ = ["Lifted", "Opaque", "lift"]
