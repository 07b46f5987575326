"""Every form of layout by both hosts: the fewest operators, the same elements, nothing seen of it in torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail as RuntimeException
from spellings.export import BATCH, run_onnx, to_onnx, to_program
from spellings.layout import FORMS, LAUNCHES, NOT_SCRIPTED, WIDTH
from torch import Tensor, nn

import recopt
from recopt.layout.memory import copies


class Spelled(nn.Module):
    """A form as a module."""

    def __init__(self, spell: Callable[..., Tensor]) -> None:
        super().__init__()
        self.spell = spell

    def forward(self, *args: Tensor) -> Tensor:
        return self.spell(*args)


def example(batch: int) -> Tensor:
    """Elements that are all different, so that none can stand for another."""
    return torch.arange(batch * WIDTH, dtype=torch.float32).reshape(batch, WIDTH) / 7


@pytest.mark.parametrize(
    ("name", "dynamo"), [(n, dynamo) for n in FORMS for dynamo in (False, True) if dynamo or n not in NOT_SCRIPTED]
)
def test_onnx(name: str, dynamo: bool) -> None:
    spell, fewest, _ = FORMS[name]
    file = to_onnx(Spelled(spell), (example(BATCH),), dynamo)
    result = recopt.optimize(onnx.load_from_string(file), target="portable")
    assert result.report.nodes_after <= fewest, [n.op for n in result.host.nodes]
    assert not result.report.undone
    optimized = result.to_proto().SerializeToString()
    onnx.checker.check_model(onnx.load_from_string(optimized), full_check=True)
    for x in map(example, (1, 3, 0)):
        try:
            expected = run_onnx(file, (x,))[0]
        except RuntimeException:  # a -1 beside an empty batch
            assert len(x) == 0
            continue
        np.testing.assert_array_equal(run_onnx(optimized, (x,))[0], expected)


@pytest.mark.parametrize("name", FORMS)
def test_torch(name: str) -> None:
    spell = FORMS[name][0]
    result = recopt.optimize(to_program(Spelled(spell), (example(BATCH),)))
    assert not result.report.undone and result.report.nodes_after <= result.report.nodes_before
    left = [n for n in result.host.nodes if not n.op.startswith("aten._assert_")]
    assert sum(map(copies, left)) == LAUNCHES[name], [n.op for n in left]
    for batch in (1, 3, 0):
        x = example(batch)
        try:
            expected = spell(x)
        except RuntimeError:  # likewise
            assert batch == 0
            continue
        found = result(x)
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride() or found.is_contiguous()


@pytest.mark.parametrize("name", FORMS)
def test_cuda_takes_one_kernel(name: str) -> None:
    spell = FORMS[name][0]
    result = recopt.optimize(to_program(Spelled(spell), (example(BATCH),)), target="cuda")
    left = [n for n in result.host.nodes if not n.op.startswith("aten._assert_")]
    assert not result.report.undone and sum(map(copies, left)) == 1, [n.op for n in left]
    assert torch.equal(result(example(3)), spell(example(3)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", FORMS)
def test_a_gpu_runs_one_kernel(name: str) -> None:
    spell, x = FORMS[name][0], example(5).cuda()
    result = recopt.optimize(to_program(Spelled(spell), (example(BATCH),)), target="cuda", verify="none").model.cuda()
    result(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        found = result(x)
        torch.cuda.synchronize()
    ran = [e.key for e in profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert sum("Activity Buffer" not in key for key in ran) == 1, ran
    torch.testing.assert_close(found.cpu(), spell(example(5)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_constants_go_where_the_inputs_lie() -> None:
    spell, x = FORMS["steps_written"][0], example(BATCH)  # whose one number torch stores on the CPU
    torch.testing.assert_close(recopt.optimize(Spelled(spell), (x.cuda(),))(x.cuda()).cpu(), spell(x))


def test_outputs_do_not_share_what_they_did_not() -> None:
    def spell(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x.abs()
        return torch.cat([y[:, :9], y[:, 9:]], 1), y[:, :3], torch.stack(list(x.exp().unbind(1)), 1)  # type: ignore[return-value]

    result = recopt.optimize(to_program(Spelled(spell), (example(BATCH),)))  # type: ignore[arg-type]  # three outputs
    whole, part, other = result(example(3))
    expected = part.clone()
    whole.zero_()
    assert torch.equal(part, expected) and torch.equal(other, example(3).exp())
    assert [n.op for n in result.host.nodes].count("aten.clone.default") == 1


def test_outputs_lie_in_memory_as_they_did() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        heads = x.view(x.shape[0], -1, 3, 2).squeeze(1).unsqueeze(1).transpose(1, 2).contiguous()
        return heads, x.unfold(1, 4, 4).reshape(x.shape[0], -1)  # what is unfolded so lies there already

    result = recopt.optimize(Spelled(function).eval(), (example(BATCH),))
    assert "simplify-layout" in result.report.counts()
    x = example(3)
    heads, patches = result(x)
    assert heads.is_contiguous() and torch.equal(heads, function(x)[0])
    assert patches.data_ptr() == x.data_ptr() and torch.equal(patches, x)


@pytest.mark.parametrize("host", ["torch", "onnx"])
def test_what_is_zero_for_most_is_not_for_all(host: str) -> None:
    def spell(x: Tensor) -> Tensor:
        return torch.cat([x[:, :2] * 0.0, x[:, 2:4] - x[:, 2:4], 0.0 / x[:, 4:6], x[:, 6:]], 1)

    x = example(3)
    x[:, :6] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 0.0, -1.0])
    if host == "torch":
        found = recopt.optimize(to_program(Spelled(spell), (example(BATCH),)))(x)
    else:
        file = recopt.optimize(onnx.load_from_string(to_onnx(Spelled(spell), (example(BATCH),), False))).to_proto()
        found = torch.as_tensor(run_onnx(file.SerializeToString(), (x,))[0])
    assert torch.equal(found.isnan(), spell(x).isnan())
    torch.testing.assert_close(1 / found, 1 / spell(x), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_whole_numbers_wrap_around(target: str) -> None:
    def spell(x: Tensor) -> Tensor:
        a, b = x[:, 0], x[:, 1]
        divided = [
            a * 7 % 7,
            (b + 7) % 7,
            (a << 48) >> 56,
            b * 8 // 8,
            (a << 3) & 7,
            (b + 14) // 7,
            a // 5 // 7,
            b % 99 % 11,
        ]
        return torch.stack([*divided, a * 7 % 7 + b], 1)

    ends = torch.tensor([2**63 - 1, -(2**63), -1, 0, 1, 2**62 + 5])
    x = torch.stack([ends, ends.flip(0)], 1)
    result = recopt.optimize(to_program(Spelled(spell), (x,)), target=target)
    assert not result.report.undone and torch.equal(result(x), spell(x))


# operators on x [n, 6], c [n, 6], p [n, 4] -> those that are left
PAIRS = {
    "b = Not(c)  y = Where(b, x, one)": ["Where"],
    "b = Not(c)  t = Where(b, x, one)  y = Where(b, t, x)": ["Where", "Where"],
    "b = Not(c)  t = Cast <to = 1> (b)  y = Where(b, x, t)": ["Cast", "Not", "Where"],
    "t = Relu(x)  y = Clip(t, low, one)": ["Clip"],
    "t = Clip(x, low)  y = Relu(t)": ["Clip"],
    "t = Clip(x, low, one)  y = Clip(t, zero)": ["Clip"],
    "t = Clip(x, one)  y = Clip(t, low, zero)": ["Clip", "Clip"],  # of -0.0 one Clip would make -0.0
    "t = Clip(x, minus)  y = Relu(t)": ["Clip", "Relu"],
    "t = ReduceMax <axes = [1], keepdims = 0> (x)  y = Unsqueeze(t, last)": ["ReduceMax"],
    "t = ReduceSum <keepdims = 0> (x, last)  y = Unsqueeze(t, first)": ["ReduceSum", "Unsqueeze"],
    "t = Transpose(x)  y = Gemm(t, p)": ["Gemm"],
    "t = Transpose(x)  y = Gemm <transA = 1> (t, w)": ["Gemm"],
    "t = Transpose(x)  u = Gemm(t, p)  y = MatMul(x, u)": ["Gemm", "MatMul"],
    "t = MatMul(x, w)  y = Add(p, t)": ["Gemm"],
    "t = Gemm(x, w)  u = Relu(t)  y = Add(u, t)": ["Add", "Gemm", "Relu"],
}


@pytest.mark.parametrize("body", PAIRS)
def test_one_operator_of_two(body: str) -> None:
    numbers = ", ".join(str(n % 7 - 3) for n in range(24))
    constants = f"float one = {{1}}, float low = {{-1}}, float zero = {{0}}, float[6, 4] w = {{{numbers}}}, "
    constants += "int64[1] last = {1}, int64[1] first = {0}"
    text = f"(float[n, 6] x, bool[n, 6] c, float[n, 4] p) => (float[a, b] y) <{constants}> {{ {body} }}"
    file = onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 17]> g ' + text)
    file.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(-0.0), "minus"))
    result = recopt.optimize(file, target="portable")
    assert sorted(n.op for n in result.host.nodes) == PAIRS[body] and not result.report.undone
    for rows in (0, 1, 5):
        rng = np.random.default_rng(rows)
        x = rng.normal(size=(rows, 6)).astype(np.float32)
        if "Gemm" not in PAIRS[body]:
            x[:1, :4], x[1:2, 0] = (-0.0, np.inf, 2.0, -np.inf), np.nan
        feeds = (x, rng.random((rows, 6)) > 0.5, rng.normal(size=(rows, 4)).astype(np.float32))
        found, expected = (run_onnx(m.SerializeToString(), feeds)[0] for m in (result.to_proto(), file))
        np.testing.assert_allclose(found, expected, rtol=1.3e-6, atol=1e-5)
        np.testing.assert_array_equal(np.signbit(found) & (found == 0), np.signbit(expected) & (expected == 0))


IDLE = {
    "t = Flatten(x)  u = Cos(t)  y = Add(t, u)": ["Add", "Cos"],
    "s = Reshape(x, whole)  t = Flatten(s)  u = Cos(x)  y = Add(t, u)": ["Add", "Cos"],
    "r = Sin(x)  u = Flatten(r)  y = Concat <axis = 1> (x, u)": ["Concat", "Sin"],
    "s = Concat <axis = 1> (q, q)  t = Flatten(s)  u = Flatten(x)  y = Concat <axis = 1> (t, u)": ["Concat"] * 2
    + ["Flatten"],
}


@pytest.mark.parametrize("body", IDLE)
def test_what_leaves_a_value_as_it_is_goes(body: str) -> None:
    constants = "int64[2] whole = {0, 6}"
    text = f"(float[n, 6] x, float[n, 1, 3] q) => (float[a, b] y) <{constants}> {{ {body} }}"
    file = onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 17]> g ' + text)
    result = recopt.optimize(file, target="ort-cpu")
    assert sorted(n.op for n in result.host.nodes) == IDLE[body] and not result.report.undone
    for rows in (0, 1, 5):
        feeds = [np.random.default_rng(rows).normal(size=(rows, *s)).astype(np.float32) for s in ((6,), (1, 3))]
        found, expected = (run_onnx(m.SerializeToString(), tuple(feeds))[0] for m in (result.to_proto(), file))
        np.testing.assert_array_equal(found, expected)


# operators on x [n, 3, 8] -> those that are left
CONVOLUTIONS = {
    "h = Conv(x, w, b)  y = Mul(h, g)": ["Conv"],
    "h = Conv <pads = [1, 1], dilations = [2]> (x, w)  t = Div(h, g)  y = Sub(g, t)": ["Conv"],
    "h = Conv(x, w, b)  t = BatchNormalization(h, b, b, b, v)  y = Relu(t)": ["Conv", "Relu"],
    "h = Conv(x, w, b)  y = Mul(h, z)": ["Conv", "Mul"],  # by 0 somewhere: infinity there would be NaN, or not
    "h = Conv(x, w, b)  y = Mul(h, e)": ["Conv", "Mul"],  # by numbers of the positions
    "h = Conv(x, w, b)  y = Mul(h, h)": ["Conv", "Mul"],
    "h = Conv(x, w, b)  t = Mul(h, g)  y = Add(h, t)": ["Add", "Conv", "Mul"],
    "p = Pad(x, k)  y = Conv <pads = [0, 1]> (p, w, b)": ["Conv"],
    'p = Pad <mode = "edge"> (x, k)  y = Conv(p, w, b)': ["Conv", "Pad"],
    "p = Pad(x, k, o)  y = Conv(p, w, b)": ["Conv", "Pad"],
    "p = Pad(x, r)  y = Conv(p, w, b)": ["Conv", "Pad"],  # before the first channel too
}


@pytest.mark.parametrize("body", CONVOLUTIONS)
def test_convolutions(body: str) -> None:
    numbers = ", ".join(str(n % 7 - 3) for n in range(36))
    constants = f"float[4, 3, 3] w = {{{numbers}}}, float[4] b = {{1, -2, 3, 5}}, float[4] v = {{1, 2, 3, 0.5}}, "
    constants += "float[4, 1] g = {2, -1, 0.5, 3}, float[4, 1] z = {0, 1, 1, 2}, float[6] e = {1, 2, 3, 4, 5, 6}, "
    constants += "int64[6] k = {0, 0, 1, 0, 0, 2}, int64[6] r = {0, 1, 0, 0, -1, 0}, float o = {1}"
    text = f"(float[n, 3, 8] x) => (float[n, 4, m] y) <{constants}> {{ {body} }}"
    file = onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 17]> g ' + text)
    file = onnx.shape_inference.infer_shapes(file)
    result = recopt.optimize(file, target="portable")
    assert sorted(n.op for n in result.host.nodes) == CONVOLUTIONS[body] and not result.report.undone
    for rows in (0, 1, 5):
        x = np.random.default_rng(rows).normal(size=(rows, 3, 8)).astype(np.float32)
        found, expected = (run_onnx(m.SerializeToString(), (x,))[0] for m in (result.to_proto(), file))
        np.testing.assert_allclose(found, expected, rtol=1.3e-6, atol=1e-5)
