"""Fused attention as ONNX nodes."""

from __future__ import annotations

from ..fused import Attention
from ..hosts.base import Value
from .onnx_writer import Writer


def attention(host: Writer, spec: Attention, target: str) -> Value:
    raise NotImplementedError
