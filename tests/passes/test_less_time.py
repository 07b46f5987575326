"""As many operators, of which ONNX Runtime takes less time on a CPU: counts as products, rows for single numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from spellings.export import run_onnx

import recopt

HEAD = '<ir_version: 9, opset_import: ["": 18]>'
ABOVE = "b = Greater(x, edges)  o = Cast <to = 1> (b)"
EDGES = "float[3, 1, 1] edges = {-1, 0, 1}"
TURNED = "t = Transpose <perm = [0, 2, 1]> (x)  y = Relu(t)"
COLUMN = "z = Gather <axis = 2> (x, two)"
LABELS = ", ".join(str(n % 16 - 8) for n in range(320))
PLACES = ", ".join(f"int64[1] p{n} = {{{n}}}" for n in range(27))
DONE = ("Clip({}, zero)", "Identity({})", "Clip({}, lo, hi)", "Sub({}, hi)")
SLICED = "  ".join(f"s{n} = Slice(x, p{n}, p{n + 1}, p1)  c{n} = {DONE[n % 4].format(f's{n}')}" for n in range(26))
SLICED += f"  y = Concat <axis = 1> ({', '.join(f'c{n}' for n in range(26))})"
BOUNDS = "int64 low = {0}, " + ", ".join(f"int64 b{n} = {{{n + 100}}}" for n in range(26))
CLIPPED = "i = Cast <to = 7> (x)  " + "  ".join(
    f"s{n} = Slice(i, p{n}, p{n + 1}, p1)  c{n} = {f'Identity(s{n})' if n % 2 else f'Clip(s{n}, low, b{n})'}"
    for n in range(26)
)
CLIPPED += f"  y = Concat <axis = 1> ({', '.join(f'c{n}' for n in range(26))})"
TURNS = "  ".join(
    f"s{n} = Slice(x, p{n}, p{n + 1}, p1)  c{n} = {f'Clip(s{n}, zero, hi)' if n % 2 else f'Sqrt(s{n})'}"
    for n in range(12)
)
TURNS += f"  y = Concat <axis = 1> ({', '.join(f'c{n}' for n in range(12))})"
# of several operators more, or one of another kind, which a portable file does not have
MORE = ("a count", "hashes of one column", "repeated numbers beside labels", "half of the rows, turned and swapped")
APART = {"portable": MORE, "ort-cpu": ("a count in one operator",)}  # what each target writes otherwise
# name -> (the input's shape, the outputs, constants, operators, those that are left)
CASES: dict[str, tuple[str, str, str, str, list[str]]] = {
    "a count": ("n, 4", "float[n, 4] y", f"{EDGES}, int64[1] axis = {{0}}",
                f"{ABOVE}  s = ReduceSum <keepdims = 0> (o, axis)  y = Mul(s, s)",
                ["Cast", "Greater", "MatMul", "Mul", "Reshape", "Reshape"]),
    "a count in one operator": ("n, 60", "float[n, 60] y", f"{EDGES}, int64[1] axis = {{0}}",
                                f"{ABOVE}  s = ReduceSum <keepdims = 0> (o, axis)  y = Mul(s, s)",
                                ["Cast", "Einsum", "Greater", "Mul"]),
    "a count that keeps its dimension": ("n, 4", "float[1, n, 4] y", f"{EDGES}, int64[1] axis = {{0}}",
                                         f"{ABOVE}  y = ReduceSum <keepdims = 1> (o, axis)",
                                         ["Cast", "Greater", "ReduceSum"]),
    "a sum of numbers": ("n, 4", "float[n, 4] y", f"{EDGES}, int64[1] axis = {{0}}",
                         "o = Div(x, edges)  y = ReduceSum <keepdims = 0> (o, axis)", ["Div", "ReduceSum"]),
    "repeated numbers beside labels": (
        "n, 20", "bool[n, 320] y",
        f"int64[3] s = {{0, 20, 1}}, int64[3] e = {{1, 1, 16}}, int64[2] f = {{0, 320}}, int64[320] row = {{{LABELS}}}",
        "i = Cast <to = 7> (x)  r = Reshape(i, s)  w = Expand(r, e)  q = Reshape(w, f)  y = Equal(q, row)",
        ["Cast", "Cast", "Equal", "MatMul", "Reshape", "Reshape"],
    ),
    "a column before its transpose": ("n, 4, 6", "float[n, 6, 4] y, float[n, 4] z", "int64 two = {2}",
                                      f"{COLUMN}  {TURNED}", ["Gather", "Relu", "Transpose"]),
    "a column after its transpose": ("n, 4, 6", "float[n, 6, 4] y, float[n, 4] z", "int64 two = {2}",
                                     f"{TURNED}  {COLUMN}", ["Gather", "Relu", "Transpose"]),
    "half of the rows, turned and swapped": (
        "n, 6, 8", "float[n, 24] y",
        "int64[4] s = {0, 2, 3, 8}, int64[1] a = {7}, int64[1] e = {-99}, int64[1] one = {1}, "
        "int64[1] two = {2}, int64[1] back = {-1}, int64[1] every = {-2}, int64[2] f = {0, 24}",
        "r = Reshape(x, s)  t = Transpose <perm = [0, 3, 1, 2]> (r)  p = Slice(t, a, e, one, every)  "
        "q = Slice(p, one, e, two, back)  y = Reshape(q, f)",
        ["Gather", "Reshape", "Reshape", "Slice", "Transpose", "Transpose"]),
    "parts of a choice": (
        "n, 16, 16", "float[n, 3, 16] y, float[n, 16] z, float[n, 16] w",
        "int64 k = {2}, int64 e = {-1}, int64[1] last = {-1}, int64[3] some = {5, 0, 3}, float o = {0}",
        "g = Gather <axis = 2> (x, k)  b = Less(g, o)  c = Unsqueeze(b, last)  t = Where(c, x, o)  "
        "u = Transpose <perm = [0, 2, 1]> (t)  y = Gather <axis = 1> (u, some)  p = Gather <axis = 1> (t, e)  "
        "q = Gather <axis = 1> (t, k)  z = Sub(p, q)  w = Gather <axis = 2> (t, k)",
        ["Cast", *["Gather"] * 8, "Less", "Slice", "Sub", "Transpose", "Transpose", "Where", "Where", "Xor"]),
    "a choice that is read whole": (
        "n, 16, 16", "float[n, 16, 16] y, float[n, 16] z", "int64 k = {2}, int64[1] last = {-1}, float o = {0}",
        "g = Gather <axis = 2> (x, k)  b = Less(g, o)  c = Unsqueeze(b, last)  t = Where(c, x, o)  y = Relu(t)  "
        "z = Gather <axis = 1> (t, k)",
        ["Cast", "Gather", "Gather", "Gather", "Less", "Relu", "Where"]),
    "a choice by remainders": (
        "n, 16, 8", "float[n, 16, 8] y",
        "int64 k = {2}, int64 m = {3}, int64[1, 1] zero = {0}, int64[1] last = {-1}, float o = {0}",
        "g = Gather <axis = 2> (x, k)  i = Cast <to = 7> (g)  j = Mod(i, m)  e = Equal(j, zero)  b = Not(e)  "
        "c = Unsqueeze(b, last)  y = Where(c, o, x)",
        ["Cast", "Gather", "Gather", "Mod", "Where"]),
    "a choice by remainders, the other way": (
        "n, 16, 8", "float[n, 16, 8] y", "int64 k = {2}, int64 m = {3}, int64[1] last = {-1}, float o = {0}",
        "g = Gather <axis = 2> (x, k)  i = Cast <to = 7> (g)  j = Mod(i, m)  e = Equal(j, m)  b = Not(e)  "
        "c = Unsqueeze(b, last)  y = Where(c, x, o)",
        ["Cast", "Gather", "Gather", "Mod", "Where"]),
    "columns in their places": (
        "n, 26", "float[n, 26] y", f"float zero = {{0}}, float lo = {{-1}}, float hi = {{2}}, {PLACES}",
        SLICED, ["Concat", "Gather", "Gather", "Gather", "Less", "Min", "Sub", "Transpose", "Transpose", "Where"]),
    "operators in turns": (
        "n, 12", "float[n, 12] y", f"float zero = {{0}}, float hi = {{0.5}}, {PLACES}", TURNS,
        ["Clip", "Concat", "Gather", "Gather", "Gather", "Sqrt", "Transpose", "Transpose"]),
    "hashes of one column": (
        "n, 3", "int64[n, 2] y",
        "int64[1] zero = {0}, int64[1] one = {1}, int64 a = {31}, int64 b = {37}, int64 m = {7}",
        "s = Slice(x, zero, one, one)  i = Cast <to = 7> (s)  p = Mul(i, a)  q = Mul(i, b)  j = Mod(p, m)  "
        "k = Mod(q, m)  y = Concat <axis = 1> (j, k)",
        ["Cast", "Concat", "Mod", "Mul", "Mul", "Slice"]),
    "integers clipped one by one": (
        "n, 26", "int64[n, 26] y", f"{BOUNDS}, {PLACES}", CLIPPED,
        sorted(["Cast", "Concat", *["Clip"] * 13, "Split"])),
    "one-hots of remainders": (
        "n, 3", "float[n, 3, 5] y, bool[n, 3, 4] z, int64[n, 3, 5] w",
        "int64 m = {7}, int64 d = {5}, int64[2] v = {0, 1}, int64[1] last = {-1}, int64[4] r = {3, 1, 6, 9}",
        "i = Cast <to = 7> (x)  j = Mod(i, m)  h = OneHot <axis = 2> (j, d, v)  y = Cast <to = 1> (h)  "
        "u = Unsqueeze(j, last)  e = Equal(u, r)  z = Not(e)  w = OneHot(i, d, v)",
        ["Cast", "Gather", "Gather", "Mod", "OneHot"]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "target"), [(n, t) for n in CASES for t in APART if n not in APART[t]])
def test_the_answers_are_the_same(name: str, target: str) -> None:
    shape, outputs, constants, body, left = CASES[name]
    file = onnx.parser.parse_model(f"{HEAD} g (float[{shape}] x) => ({outputs}) <{constants}> {{ {body} }}")
    result = recopt.optimize(file, target=target)
    assert sorted(n.op for n in result.host.nodes) == left and not result.report.undone
    for node in result.host.nodes:
        if node.op == "Gather" and name.startswith("a column"):
            assert node.args[0].node is not None and node.args[0].node.op == "Transpose"
    for rows in (0, 1, 5):
        x = np.random.default_rng(rows).normal(size=(rows, *map(int, shape.split(",")[1:]))).astype(np.float32)
        x[1:2, 0], x[2:3, 1], x[3:4, 2] = np.nan, np.inf, -0.0
        made = result.to_proto()
        onnx.checker.check_model(made, full_check=True)
        for found, expected in zip(
            run_onnx(made.SerializeToString(), (x,)), run_onnx(file.SerializeToString(), (x,)), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
            if found.dtype.kind == "f":
                np.testing.assert_array_equal(np.signbit(found) & (found == 0), np.signbit(expected) & (expected == 0))
