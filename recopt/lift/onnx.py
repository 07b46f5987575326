"""What ONNX operators mean: the table, by family. GRU, LSTM, If and Scan are not in it: they stay opaque."""

from __future__ import annotations

from .onnx_common import Lift
from .onnx_contrib import CONTRIB
from .onnx_layout import LAYOUT
from .onnx_lookups import LOOKUPS
from .onnx_loops import LOOPS
from .onnx_pointwise import POINTWISE
from .onnx_products import PRODUCTS
from .onnx_reductions import REDUCTIONS
from .onnx_sequences import SEQUENCES

TABLE: dict[str, Lift] = {
    **POINTWISE,
    **LAYOUT,
    **SEQUENCES,
    **LOOKUPS,
    **PRODUCTS,
    **REDUCTIONS,
    **LOOPS,
    **CONTRIB,
}
