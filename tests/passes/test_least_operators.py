"""Forms of layout around other operators: what is left of each in a portable file, and the same elements to the bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail as RuntimeException
from spellings.export import run_onnx

import recopt

# operators on x [n, 3, 8], z [n, 12, 2, 3], i [n, 6] and v0 to v3 [n] of int64, m [n, 4, 4],
# b [n, 6] of bool -> those that are left
FORMS = {
    # pointwise operators between layouts
    "p, q, r = Split <axis = 1> (x)  s = Relu(p)  t = Relu(q)  u = Relu(r)  y = Concat <axis = 1> (s, t, u)": "Relu",
    "p, q = Split <axis = 2> (x)  s = Mul(p, lo)  t = Mul(q, hi)  y = Concat <axis = 2> (t, s)": "Gather Mul",
    "p = Reshape(x, flat)  q = Relu(p)  y = Reshape(q, back)": "Relu",
    "p = Transpose <perm = [0, 2, 1]> (x)  q = Mul(p, three)  y = Transpose <perm = [0, 2, 1]> (q)": "Mul",
    "p = Transpose <perm = [0, 2, 1]> (x)  q = Add(p, p)  r = Abs(q)  y = Transpose <perm = [0, 2, 1]> (r)": "Abs Add",
    "p = Slice(x, one, seven, two)  q = Cast <to = 11> (p)  y = Slice(q, one, five, two)": "Cast Slice",
    "p = Transpose <perm = [0, 2, 1]> (x)  g = Less(p, h)  q = Where(g, p, h)  y = Transpose <perm = [0, 2, 1]> (q)":
        "Less Where",
    "p = Slice(x, zero, one, two)  q = Max(p, null)  y = Slice(q, zero, five, one)": "Max Slice",
    # of -0.0 and 0.0 it would depend on the place which one is taken
    "p = Transpose <perm = [0, 2, 1]> (x)  r = Abs(p)  q = Max(p, r)  y = Transpose <perm = [0, 2, 1]> (q)":
        "Abs Max Transpose Transpose",
    # reductions and softmaxes of what is transposed
    "p = Transpose <perm = [0, 2, 1]> (x)  q = Softmax <axis = 1> (p)  y = Transpose <perm = [0, 2, 1]> (q)":
        "Softmax",
    "p = Transpose <perm = [0, 2, 1]> (x)  y = ReduceMax <axes = [1], keepdims = 0> (p)": "ReduceMax",
    "p = Transpose <perm = [0, 2, 1]> (x)  y = ReduceMax <axes = [1], keepdims = 1> (p)": "ReduceMax Transpose",
    "p = Transpose <perm = [2, 1, 0]> (x)  y = ReduceMin <axes = [1], keepdims = 0> (p)": "ReduceMin Transpose",
    # one operator of several
    "p = Slice(x, one, five, two)  q = Slice(x, five, seven, two)  s = Sin(p)  t = Cos(q)  y = Concat <axis = 2>(s, t)":
        "Concat Cos Sin Split",
    "p = Slice(x, one, five, two)  q = Slice(x, one, seven, two)  s = Sin(p)  t = Cos(q)  y = Concat <axis = 2>(s, t)":
        "Concat Cos Sin Slice Slice",
    "p = Unsqueeze(i, one)  q = Tile(p, times)  y = Reshape(q, rows)": "Tile",
    "p = Reshape(z, dcr)  q = Transpose <perm = [0, 3, 4, 1, 5, 2]> (p)  y = Reshape(q, large)": "DepthToSpace",
    "p = Reshape(z, crd)  q = Transpose <perm = [0, 1, 4, 2, 5, 3]> (p)  y = Reshape(q, large)": "DepthToSpace",
    "p = Reshape(z, crd)  q = Transpose <perm = [0, 2, 4, 1, 5, 3]> (p)  y = Reshape(q, large)":
        "Reshape Reshape Transpose",
    "p = Reshape(m, wide)  y = Gather <axis = 1> (p, diagonal)": "Einsum",
    # changes of type
    "p = Cast <to = 6> (b)  q = Cast <to = 11> (p)  y = Cast <to = 7> (q)": "Cast",
    "p = Cast <to = 1> (i)  y = Cast <to = 7> (p)": "Cast Cast",
    "p = And(b, true)  q = Or(p, false)  r = Xor(q, false)  s = Equal(r, true)  y = Not(s)": "Not",
    # one-hots, triangles, pads, broadcasts
    "p = OneHot(i, depth, values)  q = Mul(p, h)  r = Cast <to = 7> (q)  y = Transpose <perm = [0, 2, 1]> (r)":
        "OneHot",
    "p = Trilu <upper = 0> (x, k)  y = Trilu <upper = 0> (p)": "Trilu",
    "p = Trilu <upper = 0> (x, k)  y = Trilu <upper = 1> (p)": "Trilu Trilu",
    "p = Pad(i, some, k)  y = Pad(p, some, k)": "Pad",
    "p = Pad(i, some, k)  y = Pad(p, some)": "Pad Pad",
    "p = Slice(x, zero, one, one)  q = Tile(p, thrice)  y = Mul(q, x)": "Gather Mul",
    "p = Add(x, h)  q = Add(h, x)  y = Sub(p, q)": "Add Sub",
    # vectors beside each other, scatters to known places, less of a pad, truths as numbers, counts over a shape
    "p = Unsqueeze(v0, one)  q = Unsqueeze(v1, one)  r = Unsqueeze(v2, one)  s = Unsqueeze(v3, one)"
    "  t = Concat <axis = 1> (p, q, r, s)  y = Neg(t)": "Concat Neg Reshape Transpose",
    "p = Unsqueeze(v0, zero)  q = Unsqueeze(v1, zero)  r = Unsqueeze(v2, zero)  s = Concat <axis = 0> (p, q, r)"
    "  y = Neg(s)": "Concat Neg Reshape",
    "s = Shape(i)  p = Expand(line, s)  y = ScatterElements <axis = 1> (i, p, i)": "Gather",
    "p = Pad <mode = \"edge\"> (i, above)  y = Slice(p, one, end, zero)": "Pad",
    "p = Pad(i, above)  y = Slice(p, two, end, zero)": "Pad",
    "p = Pad(i, above)  y = Slice(p, five, end, zero)": "Pad Slice",
    "p = Cast <to = 1> (b)  q = Greater(p, half)  y = Not(q)": "Not",
    "p = Cast <to = 1> (b)  q = Less(null, p)  y = Not(q)": "Cast Less Not",
    "s = Shape(i)  p = Expand(k, s)  q = CumSum <reverse = 1, exclusive = 1> (p, k)  y = Mul(i, q)": "Mul",
    "s = Shape(x)  p = ConstantOfShape(s)  q = CumSum(p, k)  r = Sub(q, h)  y = Add(x, r)": "Add",
    "p = SequenceConstruct(x, z)  q = SequenceAt(p, k)  y = Sin(q)": "Sin",
}  # fmt: skip
CONSTANTS = """int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] five = {5},
    int64[1] seven = {7}, int64[2] flat = {-1, 8}, int64[3] back = {-1, 3, 8}, float[4] lo = {1, 2, 3, 4},
    float[4] hi = {5, 6, 7, 8}, float[3] three = {2, -1, 3}, float h = {2}, float null = {1},
    int64[3] times = {1, 5, 1}, int64[2] rows = {-1, 30}, int64[6] dcr = {-1, 2, 2, 3, 2, 3},
    int64[6] crd = {-1, 3, 2, 2, 2, 3},
    int64[4] large = {-1, 3, 4, 6}, int64[2] wide = {-1, 16}, int64[4] diagonal = {0, 5, 10, 15},
    bool true = {1}, bool false = {0}, int64[1] depth = {4}, float[2] values = {0, 1}, int64 k = {1},
    int64[4] some = {0, 1, 0, 2}, int64[3] thrice = {1, 3, 1}, int64[6] line = {2, 0, 1, 3, 5, 4},
    int64[4] above = {2, 0, 1, 0},
    int64[1] end = {9223372036854775807}, float half = {0.5}"""
WHOLE = ("Unsqueeze(", "to = 7", "(i, above)", "Pad(i", "Shape(i")  # what makes the answer int64


@pytest.mark.parametrize("body", FORMS)
def test_what_is_left(body: str) -> None:
    """Every form at batches of none, one and several, with zeros of both signs, infinities and NaN."""
    kind = "int64" if any(w in body for w in WHOLE) else "bool" if "Not" in body else "float"
    kind = "double" if "to = 11> (p)  y = Slice" in body else kind
    inputs = "float[n, 3, 8] x, float[n, 12, 2, 3] z, float[n, 4, 4] m, int64[n, 6] i, bool[n, 6] b"
    inputs += ", int64[n] v0, int64[n] v1, int64[n] v2, int64[n] v3"
    text = f"({inputs}) => ({kind} y) <{CONSTANTS}> {{ {body} }}"
    file = onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 17]> g ' + text)
    file.graph.output[0].type.tensor_type.ClearField("shape")
    result = recopt.optimize(onnx.shape_inference.infer_shapes(file), target="portable")
    assert " ".join(sorted(n.op for n in result.host.nodes)) == FORMS[body] and not result.report.undone
    made = result.to_proto().SerializeToString()
    for rows in (0, 1, 5):
        rng = np.random.default_rng(rows)
        floats = [rng.normal(size=(rows, *shape)).astype(np.float32) for shape in ((3, 8), (12, 2, 3), (4, 4))]
        for held in floats:
            np.put(held, rng.choice(held.size, min(held.size, 6), False), [-0.0, 0.0, np.inf, -np.inf, np.nan, -0.0])
        feeds = (*floats, rng.integers(-4, 4, (rows, 6)), rng.random((rows, 6)) > 0.5)
        feeds = (*feeds, *rng.integers(-4, 4, (4, rows)))
        try:
            expected = run_onnx(file.SerializeToString(), feeds)[0]
        except RuntimeException:  # a -1 beside an empty batch
            assert rows == 0
            continue
        found = run_onnx(made, feeds)[0]
        np.testing.assert_array_equal(found, expected)
        if found.dtype.kind == "f":
            np.testing.assert_array_equal(np.signbit(found) & (found == 0), np.signbit(expected) & (expected == 0))
