"""recopt rewrites recommender models into few, big, fast operations before they are deployed.

fast = recopt.optimize(model, example_inputs)      # or a path, an ONNX model, an exported program
print(fast.report)
fast(*inputs); fast.save("model.onnx")
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    from .api import Inspection, Optimized, diff, inspect, optimize
    from .errors import GraphError, LoadError, LowerError, OptionError, RecoptError, VerifyError, WriteError
    from .load import load
    from .report import Report
except KeyboardInterrupt:  # torch takes seconds, in which the command line's own code does not run yet
    if Path(sys.argv[0]).name == "recopt" or (sys.argv[0] == "-m" and "recopt" in sys.orig_argv):
        raise SystemExit(130) from None
    raise


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The `custom_translation_table` with which `torch.onnx.export(..., dynamo=True)` exports an optimized module to
    standard operators. Needs onnxscript."""
    from .lower.translation import onnx_translations as translations  # torch is imported only here

    return translations()


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
    "WriteError",
    "diff",
    "inspect",
    "load",
    "onnx_translations",
    "optimize",
]  # fmt: skip
