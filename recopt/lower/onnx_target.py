"""Fused target attention as ONNX nodes."""

from __future__ import annotations

from ..fused import TargetAttention
from ..hosts.base import Value
from .onnx_writer import Writer


def target_attention(host: Writer, spec: TargetAttention, target: str) -> Value:
    raise NotImplementedError
