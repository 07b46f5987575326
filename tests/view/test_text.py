"""Graphs and their differences, against golden texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest

from recopt.hosts.base import Host, Node, Value
from recopt.ir.sizes import symbol
from recopt.report import Report, Rewrite
from recopt.view.text import diff, line, show

Golden = Callable[[str, str], None]
BATCH = symbol("s0")


class Graph:
    """As much of a host as a view reads."""

    def __init__(self, **inputs: tuple[Any, ...]) -> None:
        self.inputs = [Value(name, shape, "float32") for name, shape in inputs.items()]
        self.nodes: list[Node] = []
        self.outputs: list[Value] = []
        self.constants: dict[str, Value] = {}

    def constant(self, name: str, *shape: int) -> Value:
        return self.constants.setdefault(name, Value(name, shape, "float32"))

    def add(self, op: str, *args: Any, out: str, shape: Sequence[Any], **attributes: Any) -> Value:
        value = Value(out, tuple(shape), "float32")
        value.node = Node(f"{out}_node", op, args, attributes, (value,))
        self.nodes.append(value.node)
        return value

    def is_constant(self, value: Value) -> bool:
        return value.name in self.constants

    def host(self, *outputs: Value) -> Host:
        self.outputs = list(outputs)
        return cast(Host, self)


def before() -> Host:
    """Two layers as MatMul, Add, Relu, and a Sigmoid."""
    g = Graph(x=(BATCH, 16))
    h = g.inputs[0]
    for i in (1, 2):
        h = g.add("MatMul", h, g.constant(f"w{i}", 16, 16), out=f"mm{i}", shape=(BATCH, 16))
        h = g.add("Add", h, g.constant(f"b{i}", 16), out=f"add{i}", shape=(BATCH, 16))
        h = g.add("Relu", h, out=f"relu{i}", shape=(BATCH, 16))
    return g.host(g.add("Sigmoid", h, out="y", shape=(BATCH, 16)))


def after() -> Host:
    """The same as two FusedGemm, with a Sigmoid that reads another name."""
    g = Graph(x=(BATCH, 16))
    h = g.inputs[0]
    for i in (1, 2):
        w, b = g.constant(f"w{i}", 16, 16), g.constant(f"b{i}", 16)
        h = g.add("com.microsoft::FusedGemm", h, w, b, out=f"linear{i}", shape=(BATCH, 16), activation="Relu")
    return g.host(g.add("Sigmoid", h, out="y", shape=(BATCH, 16)))


def report() -> Report:
    made = [
        Rewrite(
            "linear",
            "recopt::linear",
            f"relu{i}",
            (f"mm{i}_node", f"add{i}_node", f"relu{i}_node"),
            (f"linear{i}_node",),
            64.0,
            0.0,
            2.0,
            None,
            "y[b,n] = relu(sum_k x[b,k]*w[k,n] + b[n])",
        )
        for i in (1, 2)
    ]
    return Report("onnx", "ort-cpu", rewrites=made)


def test_show(golden: Golden) -> None:
    golden("view/show", show(before()))


def test_diff_by_rewrite(golden: Golden) -> None:
    golden("view/diff_by_rewrite", diff(before(), after(), report()))


def test_diff_without_report_groups_by_weight(golden: Golden) -> None:
    golden("view/diff_by_value", diff(before(), after()))


def test_diff_shows_what_no_rewrite_accounts_for() -> None:
    text = diff(before(), after(), Report("onnx", "ort-cpu", rewrites=report().rewrites[:1]))
    lost = text.split("elsewhere\n")[1].splitlines()
    assert [entry.split(":")[0].strip() for entry in lost[:4]] == ["- %mm2", "- %add2", "- %relu2", "+ %linear2"]


def test_a_node_is_told_once() -> None:
    made = report().rewrites
    text = diff(before(), after(), Report("onnx", "ort-cpu", rewrites=[*made, *made]))
    assert text == diff(before(), after(), report())


def test_no_difference_is_no_text() -> None:
    assert diff(before(), before()) == ""
    assert diff(before(), before(), Report("onnx", "ort-cpu")) == ""


def test_a_changed_attribute_is_told() -> None:
    def graph(alpha: float) -> Host:
        g = Graph(x=(4,))
        return g.host(g.add("LeakyRelu", g.inputs[0], out="y", shape=(4,), alpha=alpha))

    assert "~ %y: float32[4] = LeakyRelu(%x) {alpha=0.5}  (alpha=0.25 -> alpha=0.5)" in diff(graph(0.25), graph(0.5))


def test_the_order_of_attributes_is_no_difference() -> None:
    def graph(**attributes: float) -> Host:
        g = Graph(x=(4,))
        return g.host(g.add("Elu", g.inputs[0], out="y", shape=(4,), **attributes))

    assert diff(graph(a=1, b=2), graph(b=2, a=1)) == ""
    assert "(nothing -> b=2)" in diff(graph(a=1), graph(a=1, b=2))


def test_a_result_that_takes_anothers_place_joins_its_group() -> None:
    def graph(*ops: str) -> Host:
        g = Graph(x=(4, 4))
        h = g.inputs[0]
        for i, op in enumerate(ops):
            h = g.add(op, h, out=f"{op.lower()}{i}", shape=(4, 4))
        return g.host(h)

    assert "Exp, Neg -> Sqrt" in diff(graph("Exp", "Neg"), graph("Sqrt"))


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (None, "_"),
        (1.5, "1.5"),
        (float(np.float32(1e-5)), "1e-05"),
        (1e-5, "1e-05"),
        (1 / 3, "0.3333333333333333"),
        (1e300, "1e+300"),
        (float("-inf"), "-inf"),
        ("none", '"none"'),
        ([1, (2, None)], "[1, [2, _]]"),
        (np.arange(3), "[0, 1, 2]"),
        (np.zeros((3, 4), np.float32), "float32[3, 4]"),
    ],
)
def test_arguments(item: object, text: str) -> None:
    assert line(Node("n", "Op", (item,), {}, (Value("y", None, "float32"),))) == f"%y: float32[?] = Op({text})"


def test_outputs() -> None:
    outputs = (Value("a", (), "int64"), Value("n", (), "int64", scalar=True), Value("s", None, None))
    assert line(Node("n", "Op", (), {}, outputs)) == "%a: int64[], %n: int64, %s = Op()"
    assert line(Node("check", "Op", (), {})) == "check = Op()"
