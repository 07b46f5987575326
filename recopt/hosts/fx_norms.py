"""recopt's normalisations in torch, as fx_operators.py has the other fused operators."""

from __future__ import annotations

import torch

from ..kernels.layer_norm import check_layer_norm, layer_norm, rms_norm
from .fx_define import define, must_dispatch

LAYER_NORM = "recopt.layer_norm.default"


def _layer_norm_fake(
    x: torch.Tensor, g: torch.Tensor, b: torch.Tensor, eps: float, beside: torch.Tensor | None = None
) -> torch.Tensor:
    """Shape and dtype of the result; LayerNormError for operands that do not fit each other."""
    check_layer_norm(x, g, b, beside)
    return x.new_empty(x.shape)


LAYER_NORM_OPERATOR = define(
    "layer_norm",
    "(Tensor x, Tensor g, Tensor b, float eps, Tensor? beside=None) -> Tensor",
    layer_norm,
    _layer_norm_fake,
)


def layer_norm_call(
    x: torch.Tensor, g: torch.Tensor, b: torch.Tensor, eps: float, beside: torch.Tensor | None = None
) -> torch.Tensor:
    """`recopt::layer_norm` without the dispatcher, as `attention_call`."""
    if must_dispatch():
        return LAYER_NORM_OPERATOR(x, g, b, eps, beside)
    return layer_norm(x, g, b, eps, beside)


RMS_NORM = "recopt.rms_norm.default"


def _rms_norm_fake(x: torch.Tensor, g: torch.Tensor, eps: float, beside: torch.Tensor | None = None) -> torch.Tensor:
    """As `_layer_norm_fake`."""
    check_layer_norm(x, g, g, beside)
    return x.new_empty(x.shape)


RMS_NORM_OPERATOR = define(
    "rms_norm", "(Tensor x, Tensor g, float eps, Tensor? beside=None) -> Tensor", rms_norm, _rms_norm_fake
)


def rms_norm_call(x: torch.Tensor, g: torch.Tensor, eps: float, beside: torch.Tensor | None = None) -> torch.Tensor:
    """`recopt::rms_norm` without the dispatcher, as `attention_call`."""
    if must_dispatch():
        return RMS_NORM_OPERATOR(x, g, eps, beside)
    return rms_norm(x, g, eps, beside)
