"""recopt rewrites recommender models into few, big, fast operations before they are deployed.

fast = recopt.optimize(model, example_inputs)      # or a path, an ONNX model, an exported program
print(fast.report)
fast(*inputs); fast.save("model.onnx")
"""

from __future__ import annotations

from .api import Inspection, Optimized, diff, inspect, optimize
from .errors import GraphError, LoadError, LowerError, OptionError, RecoptError, VerifyError
from .load import load
from .report import Report

__all__ = [
    "GraphError",
    "Inspection",
    "LoadError",
    "LowerError",
    "Optimized",
    "OptionError",
    "RecoptError",
    "Report",
    "VerifyError",
    "diff",
    "inspect",
    "load",
    "optimize",
]  # fmt: skip
