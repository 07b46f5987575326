"""The ATen table: what each operator of a torch.export graph means, by family."""

from __future__ import annotations

from . import aten_layers, aten_layout, aten_lookups, aten_new, aten_pointwise, aten_special, aten_sums
from .base import Table

TABLE: Table = {
    **aten_pointwise.TABLE,
    **aten_special.TABLE,
    **aten_layout.TABLE,
    **aten_lookups.TABLE,
    **aten_new.TABLE,
    **aten_sums.TABLE,
    **aten_layers.TABLE,
}
