"""Reports and inspections as people see them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.console import Console

from recopt.errors import LoadError
from recopt.report import Refusal, Report, Rewrite
from recopt.view.table import inspection, si

Golden = Callable[[str, str], None]


def report() -> Report:
    """One of everything."""
    return Report(
        host="onnx",
        target="ort-cpu",
        nodes_before=40,
        nodes_after=12,
        rewrites=[
            Rewrite(
                "linear", "recopt::linear", "relu", ("mm", "add", "relu"), ("linear",), 2.5e6, 1e3, 2, 3e-7, "y = .."
            ),
            Rewrite("linear", "recopt::linear", "out", ("mm_1", "add_1"), ("linear_1",), 1e3, 0, 1, None),
        ],
        refusals=[
            Refusal("linear", "mm_2", "bias has rank 3, need 1"),
            Refusal("linear", "mm_3", "bias has rank 3, need 1"),
            Refusal("linear", "conv[0]", "the kernel is not 1x1"),
        ],
        undone=[Refusal("linear", "mm_4", "error 0.5: seed 7")],
        timings={"lift": 0.25, "verify": 1.5},
        model_error=0.125,
    )


def test_report(golden: Golden) -> None:
    golden("view/report", str(report()))


def test_an_empty_report_is_one_line() -> None:
    assert str(Report("aten", "cpu", 3, 3)) == "aten for cpu: 3 -> 3 nodes, 0 rewrites, model not verified"


def test_names_are_no_markup() -> None:
    assert "[bold]x" in str(Report("onnx", "t", undone=[Refusal("linear", "[bold]x", "wrong")]))


def test_json_there_and_back() -> None:
    assert Report.from_json(report().to_json()) == report()


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "{}", '{"counts": {}, "rewrites": [1]}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(LoadError, match="not a report"):
        Report.from_json(text)


def test_inspection(golden: Golden) -> None:
    found = SimpleNamespace(
        blocks=[
            ("linear", "relu", "y[b,n] = relu(sum_k x[b,k]*w[k,n])"),
            ("linear", "dice", "y[b,n] = " + " + ".join(["sigmoid(sum_k x[b,k]*w[k,n])"] * 20)),
        ],
        operators={"Add": 1, "MatMul": 2, "Relu": 2},
        parameters=123456,
        bytes=494000.0,
        flops=247000.0,
    )
    console = Console(width=100, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(inspection(found))
    golden("view/inspection", "\n".join(line.rstrip() for line in capture.get().splitlines()))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (12, "12 B"),
        (999.4, "999 B"),
        (999.6, "1 kB"),
        (1234567, "1.23 MB"),
        (-5e9, "-5 GB"),
        (5e15, "5e+03 TB"),
    ],
)
def test_si(value: float, text: str) -> None:
    assert si(value, "B") == text
