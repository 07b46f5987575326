"""`recopt::embedding_bags` through torch's ONNX exporter: every layout that standard operators can say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from spellings.export import run_onnx
from torch import Tensor, nn

import recopt
from recopt.errors import LowerError
from recopt.kernels.embedding_bags.layout import parse_layout
from recopt.kernels.embedding_bags.operands import Operands
from recopt.lower.translation_bags import embedding_bags

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from embedding_bags_reference import operands, reference
from test_embedding_bags import COMPUTED, LAYOUTS

TEXTS = (*LAYOUTS, *COMPUTED)
SAID = [t for t in TEXTS if not any(x.bits or (x.ragged and x.pool == "max") for x in parse_layout(t).terms)]
pytestmark = pytest.mark.slow


class Layouts(nn.Module):
    """Several layouts, an output each, over operands of their own."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.texts, self.tables = texts, nn.ParameterList()
        self.given: list[Operands] = [operands(text, 5, 7) for text in texts]
        for o in self.given:
            self.tables.extend(nn.Parameter(t) for t in o.tables)

    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(t for o in self.given for part in o[1:] for t in part)

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        tables, rest, found = iter(self.tables), iter(args), []
        for o, text in zip(self.given, self.texts, strict=True):
            first = [next(tables) for _ in o.tables]
            others = [[next(rest) for _ in part] for part in o[1:]]
            found.append(torch.ops.recopt.embedding_bags(first, *others, text))
        return tuple(found)


def test_layouts() -> None:
    module = Layouts(SAID).eval()
    args = module.inputs()
    program = torch.onnx.export(
        module, args, dynamo=True, custom_translation_table=recopt.onnx_translations(), verbose=False
    )
    assert program is not None
    file = program.model_proto
    assert {n.domain for n in file.graph.node} == {""}
    names = [value.name for value in file.graph.input]
    assert len(names) == len(args)
    results = run_onnx(file.SerializeToString(), args)
    for text, o, found in zip(SAID, module.given, results, strict=True):
        half = any(t.dtype == torch.float16 for t in o.tables)
        tolerance: dict[str, Any] = {"rtol": 2e-3, "atol": 2e-3} if half else {}
        expected = reference(o, text)
        given = torch.from_numpy(found)
        assert given.dtype == expected.dtype, text
        torch.testing.assert_close(given, expected, equal_nan=True, **tolerance)


@pytest.mark.parametrize("text", ["row q8 t0[i0:0+2]", "max t0[i0@o0]"])
def test_what_standard_operators_cannot_say(text: str) -> None:
    o = operands(text)
    with pytest.raises(LowerError, match="no ONNX operators for"):
        embedding_bags(None, list(o), text)
