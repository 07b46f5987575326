"""Runs the kernel of embedding bags in Triton's interpreter against float64; test_embedding_bags.py starts it."""

from __future__ import annotations

import os
import sys

import torch
from embedding_bags_reference import operands, reference
from interpreted import interpreter  # its repair of the interpreter
from test_embedding_bags import LAYOUTS

from recopt.kernels.embedding_bags.config import Config
from recopt.kernels.embedding_bags.launch import _plans, embedding_bags_triton
from recopt.kernels.embedding_bags.operands import Operands

CONFIGS = [Config(1, 4, 2, 4), Config(2, 8, 8, 128)]


def check(text: str, config: Config, rows: int, dim: int, ids: torch.dtype) -> None:
    o = operands(text, rows, dim, ids=ids)
    out = embedding_bags_triton(o, text, config)
    half = any(t.dtype == torch.float16 for t in o.tables)
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if half else {}
    torch.testing.assert_close(
        out, reference(o, text), msg=lambda s: f"{text} {config}\n{s}", equal_nan=True, **tolerance
    )


def check_types_and_strides() -> None:
    """Tables of double and bfloat16, at odd addresses, with padded rows; ids column by column."""
    text = "sum t0[i0:0+5] * w0:3 pad 1 div 1e-09 0.0; row t0[i0:1+1]"
    o = operands(text, 5, 16)
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        held = o._replace(tables=[torch.randn(50, 40, dtype=dtype)[3:, 1:14]])
        for ids in (held.ids[0], held.ids[0].t().contiguous().t()):
            held = held._replace(ids=[ids])
            out = embedding_bags_triton(held, text)
            assert out.dtype == dtype
            torch.testing.assert_close(out, reference(held, text), rtol=tolerance, atol=tolerance)


def check_of_ids() -> None:
    """An id outside of its table is not read, unless nobody is to look; the rows around the table are memory too.
    That it is an error on a GPU too is the assertion, which the interpreter leaves out."""
    around = torch.randn(20, 8)
    for text, outside in (("row t0[i0:0+1]; x0", -1), ("sum t0[i0:0+2]; x0", 7)):
        ids, row = torch.full((3, 2), outside), around[5 + outside].expand(3, 8)
        for checked, columns in ((True, 1), (False, 2)):  # bound anew for other columns: the switch is looked at then
            os.environ["RECOPT_UNCHECKED_IDS"] = "0" if checked else "1"
            out = embedding_bags_triton(Operands([around[5:12]], [ids], [], [], [torch.zeros(3, columns)], []), text)
            outside_read = torch.allclose(out[:, :8], row * (2 if "sum" in text else 1))
            assert outside_read != checked, (text, checked)
    del os.environ["RECOPT_UNCHECKED_IDS"]


def check_tables_that_move() -> None:
    """A table whose memory is another's since the last call; ids apart; a plan ends with its tables."""
    text = "; ".join(f"row t0[i{n}:0+1]; sum t1[i{n}:0+2]" for n in range(20))
    o = operands(text, 5, 16)
    for _ in range(2):
        torch.testing.assert_close(embedding_bags_triton(o, text), reference(o, text))
        o.tables[1].data = torch.randn(o.tables[1].shape)
    other = o._replace(ids=[i.int() if n % 2 else i.t().contiguous().t() for n, i in enumerate(o.ids)])
    torch.testing.assert_close(embedding_bags_triton(other, text), reference(o, text))
    for rows in (4, 7):
        fewer = o._replace(ids=[torch.cat([i, i])[:rows] for i in o.ids])
        torch.testing.assert_close(embedding_bags_triton(fewer, text), reference(fewer, text))
    assert any(key[0] == text for key in _plans)
    o.tables.clear()
    assert not any(key[0] == text for key in _plans)


if __name__ == "__main__":
    assert interpreter
    chosen = sys.argv[1:] or LAYOUTS
    for n, text in enumerate(chosen):
        for config in CONFIGS:
            check(text, config, 5, 7 if n % 2 else 16, torch.int64 if n % 3 else torch.int32)
    check_tables_that_move()
    check_types_and_strides()
    check_of_ids()
    print(len(chosen), "layouts agree")
