"""The range of an element holds whatever torch computes of operands within theirs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recopt.kernels.pointwise import OPERATORS
from recopt.layout.element import Element
from recopt.layout.element_ranges import RANGES, limits, whole_range

DIVIDING = ("rem", "fmod", "floordiv", "truncdiv")


@pytest.mark.parametrize("op", sorted(RANGES.keys() - {"cast", "where", "rem_by"}))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_computed_lies_inside(op: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["int8", "int16"]))
    operands = [Element("load", dtype) for _ in range(OPERATORS[op][0])]
    known, values = {}, []
    for n, x in enumerate(operands):
        low, high = (0, 7) if n and op in ("shl", "shr") else limits(dtype)
        found = sorted(data.draw(st.integers(low, high) | st.integers(max(low, -3), 3)) for _ in range(3))
        known[x] = found[0], found[2]
        values.append(found[1])
    assume(op not in DIVIDING or values[1] not in (0, -1))
    low, high = whole_range(Element(op, dtype, tuple(operands)), known, {})
    kind = getattr(torch, dtype)
    assert low <= OPERATORS[op][1](*(torch.tensor(v, dtype=kind) for v in values)).item() <= high
