"""Every spelling of attention, through torch.export and through both exporters: one operator, and the same numbers."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
from spellings.attention import MODELS, NEAR_MISSES, PLAIN, SPELLINGS, Case, S, T
from spellings.export import BATCH, run_onnx, to_onnx, to_program

import recopt
from recopt.hosts.base import Host, Node

from .harness import check_numbers, check_refused, exporters

# What describes tensors anew, and what makes a mask of lengths or ids.
BESIDE = set(
    """
    slice select reshape view permute transpose unsqueeze squeeze split chunk unbind stack cat expand to
    bitwise_not arange ge lt rsub mul matmul linear sym_size
    Slice Reshape Transpose Unsqueeze Squeeze Split Gather Concat Expand Cast Not Sub Mul Shape Range Less Neg
    GreaterOrEqual MatMul
""".split()
)
EXPORTERS = exporters(name for name, case in SPELLINGS.items() if case.onnx)


class Called(torch.nn.Module):
    """A model whose inputs are exported as a list."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: torch.Tensor) -> Any:
        return self.model(*args)


def is_fused(node: Node) -> bool:
    return node.op == "recopt.attention.default" or node.op.startswith("recopt::Attention")


def check_one(result: recopt.Optimized, beside: tuple[str, ...]) -> None:
    """One fused operator, no softmax beside it."""
    ops = [n.op.removeprefix("aten.").split(".")[0] for n in result.host.nodes if not is_fused(n)]
    assert sum(map(is_fused, result.host.nodes)) == 1, ops
    plain = {op for op in ops if not op.startswith("recopt")}
    assert plain <= BESIDE | {*beside}, ops
    assert not result.report.undone


@pytest.mark.parametrize("name", SPELLINGS)
def test_torch(name: str) -> None:
    case = SPELLINGS[name]
    program = to_program(Called(case.module()), case.args(BATCH))
    result = recopt.optimize(program, target=case.target)
    check_one(result, case.beside)
    if case.target != "cpu":
        declined = recopt.optimize(program, target="cpu").report.refusals
        assert any("learned its queries" in r.reason for r in declined)
    check_numbers(case, result)


@pytest.mark.parametrize(("exporter", "name"), EXPORTERS)
def test_onnx(exporter: str, name: str) -> None:
    case = SPELLINGS[name]
    file = to_onnx(Called(case.module()), case.args(BATCH), dynamo=exporter == "dynamo")
    result = recopt.optimize(onnx.load_from_string(file), target="recopt")
    check_one(result, case.beside)
    optimized = result.to_proto().SerializeToString()
    check_numbers(case, lambda *args: run_onnx(optimized, args))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    result = check_refused(NEAR_MISSES[name], "attention")
    assert not any(is_fused(n) for n in result.host.nodes)


def test_on_cuda_no_kernel_weighs_by_scores() -> None:
    case = SPELLINGS["silu_over_a_number"]
    result = recopt.optimize(to_program(case.module(), case.args(BATCH)), target="cuda")
    assert not any(map(is_fused, result.host.nodes))
    assert any("no kernel weighs by scores" in r.reason for r in result.report.refusals)
    check_numbers(case, result)


def test_exponentials_over_their_sum_stay_for_onnx_runtime_on_a_cpu() -> None:
    """They look for no largest score, as Softmax does."""
    case = SPELLINGS["no_maximum"]
    file = onnx.load_from_string(to_onnx(Called(case.module()), case.args(BATCH), dynamo=False))
    result = recopt.optimize(file, target="ort-cpu")
    assert "Softmax" not in [n.op for n in result.host.nodes]
    assert "is as short as ort-cpu allows already" in [r.reason for r in result.report.refusals]


def softmaxes(host: Host) -> int:
    return sum("softmax" in n.op.lower() for n in host.nodes)


@pytest.mark.parametrize("name", MODELS)
def test_models_in_torch(name: str) -> None:
    """torch's exporter may write one operator itself; then there is nothing to fuse."""
    case = MODELS[name]
    result = recopt.optimize(to_program(Called(case.module()), case.args(BATCH)), target="cpu")
    plain = [n for n in result.host.nodes if n.op == "aten.scaled_dot_product_attention.default"]
    assert sum(map(is_fused, result.host.nodes)) + len(plain) == 1
    assert not softmaxes(result.host)
    assert not result.report.undone
    check_numbers(case, result)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_models_in_onnx(name: str, dynamo: bool) -> None:
    case = MODELS[name]
    file = to_onnx(Called(case.module()), case.args(BATCH), dynamo)
    for target in ("recopt", "portable", "ort-cpu"):
        result = recopt.optimize(onnx.load_from_string(file), target=target)
        assert not result.report.undone
        assert target != "recopt" or (sum(map(is_fused, result.host.nodes)) == 1 and not softmaxes(result.host))
        optimized = result.to_proto().SerializeToString()
        check_numbers(case, lambda *args, o=optimized: run_onnx(o, args))
    result = recopt.optimize(onnx.load_from_string(file), target="ort-cuda")
    assert sum(n.op == "com.microsoft::MultiHeadAttention" for n in result.host.nodes) == 1
    onnx.checker.check_model(result.to_proto())
    optimized = result.to_proto().SerializeToString()
    check_numbers(case, lambda *args: run_onnx(optimized, args))  # its CPU provider has the operator too


@pytest.mark.parametrize("name", ["encoder", "packed_chunks"])
def test_the_standard_operator(name: str) -> None:
    """From opset 23 on there is one, and ONNX Runtime is faster with it where heads lie side by side."""
    case = MODELS.get(name) or SPELLINGS[name]
    names = [f"x{n}" for n in range(len(case.shapes))]
    shapes = (tuple({0: torch.export.Dim("batch")} for _ in names),)
    program = torch.onnx.export(
        Called(case.module()), case.args(BATCH), dynamo=True, dynamic_shapes=shapes, input_names=names,
        opset_version=23, verbose=False,
    )  # fmt: skip
    assert program is not None
    result = recopt.optimize(program.model_proto, target="portable")
    assert sum(n.op == "Attention" for n in result.host.nodes) == 1
    assert not softmaxes(result.host)
    optimized = result.to_proto().SerializeToString()
    check_numbers(case, lambda *args: run_onnx(optimized, args))


@pytest.mark.parametrize(
    "target, keys, width, masked, fused",
    [("cuda", 50, 64, False, True), ("cuda", 50, 8, True, True), ("cuda", 520, 64, False, False),
     ("cuda", 50, 128, False, False), ("cpu", 50, 64, False, False)],
)  # fmt: skip
def test_torchs_operator_stays_where_it_is_the_quicker(
    target: str, keys: int, width: int, masked: bool, fused: bool
) -> None:
    shapes = [(4, 2, n, width) for n in (keys, keys, keys)] + [(4, 1, 1, keys)] * masked
    args = tuple(torch.randn(shape) for shape in shapes)
    case = Case(torch.nn.functional.scaled_dot_product_attention, PLAIN)
    result = recopt.optimize(to_program(case.module(), args), target=target)
    assert sum(map(is_fused, result.host.nodes)) == fused
    if not fused:
        assert "is one operator already" in [r.reason for r in result.report.refusals if r.pattern == "attention"]
    torch.testing.assert_close(result(*args), case.module()(*args))


def test_a_query_that_sees_nothing_is_what_it_was() -> None:
    case = SPELLINGS["masked_fill_inf"]
    result = recopt.optimize(to_program(case.module(), case.args(BATCH)), target="cpu")
    q, k, v, seen = case.args(2)
    seen[0] = False
    y = result(q, k, v, seen)
    assert y[0].isnan().all()
    torch.testing.assert_close(y, case.module()(q, k, v, seen), equal_nan=True)


def test_rows_that_constants_or_data_hide_are_nan() -> None:
    stored = torch.tensor([0.0, -torch.inf, 0.0])[:, None]

    def spell(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        masks = (
            stored,
            torch.nn.functional.pad(torch.zeros(2, 3), (0, 0, 0, 1), value=-torch.inf),
            torch.full((3, 3), -torch.inf).triu(1),
            torch.where(x[:, :, :1] > 0, 0.0, -torch.inf),
        )
        return tuple((x @ x.transpose(1, 2) + mask).softmax(-1) @ x for mask in masks)

    x = torch.randn(5, 3, 4)
    result = recopt.optimize(to_program(Called(spell), (x,)), target="cpu", verify="none")
    assert sum(map(is_fused, result.host.nodes)) == 4
    torch.testing.assert_close(result(x), spell(x), equal_nan=True)


def test_a_mask_that_multiplies_leaves_nan_as_it_is() -> None:
    case = SPELLINGS["masked_exponentials"]
    result = recopt.optimize(to_program(Called(case.module()), case.args(BATCH)), target="cpu")
    q, k, v, seen = case.args(2)
    seen[..., 3], k[0, 0, 3] = False, torch.nan
    y = result(q, k, v, seen)
    assert y[0, 0].isnan().all() and not y[1].isnan().any()
    torch.testing.assert_close(y, case.module()(q, k, v, seen), equal_nan=True)


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_the_exporters_make_of_a_masked_operator(dynamo: bool) -> None:
    """They set every weight that is NaN to 0, as torch's operator gives 0 for a query that sees nothing."""
    case = Case(torch.nn.functional.scaled_dot_product_attention, (*PLAIN, ("mask", 1, S, T)))
    file = to_onnx(case.module(), case.args(BATCH), dynamo)
    result = recopt.optimize(onnx.load_from_string(file), target="recopt")
    assert sum(map(is_fused, result.host.nodes)) == 1 and not softmaxes(result.host)
    optimized = result.to_proto().SerializeToString()
    check_numbers(case, lambda *args: run_onnx(optimized, args))
    q, k, v, seen = case.args(2)
    seen[0, 0, 3] = False
    q[1, 2, 1] = torch.nan
    torch.testing.assert_close(
        torch.from_numpy(run_onnx(optimized, (q, k, v, seen))[0]),
        torch.from_numpy(run_onnx(file, (q, k, v, seen))[0]),
        equal_nan=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masked_fill", "bias", "soft_cap", "mask_of_rows", "silu_over_a_number"])
def test_an_optimized_module_exports(name: str) -> None:
    case = SPELLINGS[name]
    result = recopt.optimize(to_program(case.module(), case.args(BATCH)), target="cpu")
    names = [f"x{n}" for n in range(len(case.shapes))]
    program = torch.onnx.export(
        result.model, case.args(BATCH), dynamo=True, input_names=names, verbose=False,
        dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in names),
        custom_translation_table=recopt.onnx_translations(),
    )  # fmt: skip
    assert program is not None
    file = program.model_proto.SerializeToString()
    check_numbers(case, lambda *args: run_onnx(file, args))


class _Causal(torch.nn.Module):
    """Attention over [B, L, 16] under a mask that is made of the length L, which only the call knows."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.query = torch.nn.Linear(16, 16)
        self.scaled = scaled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        scores = self.query(x) @ x.transpose(1, 2) / (length if self.scaled else 4)
        unseen = torch.ones(length, length, dtype=torch.bool).triu(1)
        return scores.masked_fill(unseen, float("-inf")).softmax(-1) @ x


@pytest.mark.parametrize("scaled", [False, True])
def test_a_mask_of_any_length(scaled: bool) -> None:
    """The graph's own mask is read; a scale that only the call knows is refused, and named."""
    model = _Causal(scaled).eval()
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=60)}
    result = recopt.optimize(model, (torch.randn(4, 7, 16),), dynamic_shapes=(sizes,))
    assert result.report.counts().get("attention", 0) == (0 if scaled else 1)
    assert not result.report.undone
    reasons = [r.reason for r in result.report.refusals if r.pattern == "attention"]
    assert not scaled or any("depends on the size" in reason for reason in reasons), reasons
    for shape in ((1, 2, 16), (3, 31, 16)):
        x = torch.randn(shape)
        torch.testing.assert_close(result(x), model(x))
