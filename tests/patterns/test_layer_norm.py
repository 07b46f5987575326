"""Every spelling of layer and RMS normalisation, by torch.export and by both exporters: the target's own operator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from spellings.case import Plain
from spellings.export import BATCH, run_onnx, runs_as, to_onnx, to_program
from torch import Tensor, nn

import recopt

T, D = 5, 8
G, B = torch.rand(D, generator=torch.Generator().manual_seed(1)) + 0.5, torch.arange(D) / 7 - 0.4


def mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)


def spread(x: Tensor) -> Tensor:
    return ((x - mean(x)) ** 2).mean(-1, keepdim=True) + 1e-5


def over_channels(x: Tensor) -> Tensor:
    x = x.transpose(1, 2)
    m = x.mean(1, keepdim=True)
    y = (x - m) / torch.sqrt(((x - m) ** 2).mean(1, keepdim=True) + 1e-5) * G[:, None] + B[:, None]
    return y.transpose(1, 2)


def residual(x: Tensor) -> Tensor:
    x = x + x.sin()
    return (x - mean(x)) / torch.sqrt(spread(x)) * G + B


def by_sums(x: Tensor) -> Tensor:
    m = x.sum(-1, keepdim=True) / D
    return (x - m) * (((x - m) * (x - m)).sum(-1, keepdim=True) / D + 1e-5) ** -0.5 * G + B


def folded(x: Tensor) -> Tensor:
    s = G / torch.sqrt(spread(x))
    return x * s + (B - mean(x) * s)


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: (x - mean(x)) / torch.sqrt(spread(x)) * G + B,
    "reciprocal_root": lambda x: G * ((x - mean(x)) * torch.rsqrt(spread(x))) + B,
    "mean_of_squares": lambda x: (x - mean(x)) / (mean(x * x) - mean(x) ** 2 + 1e-5).sqrt() * G + B,
    "variance": lambda x: (x - mean(x)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5) * G + B,
    "unbiased_variance": lambda x: (x - mean(x)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5) * G + B,
    "no_scale": lambda x: (x - mean(x)) / torch.sqrt(spread(x)),
    "by_sums": by_sums,
    "folded": folded,
    "residual": residual,
    "over_channels": over_channels,
}


def rms_over_channels(x: Tensor) -> Tensor:
    x = x.transpose(1, 2)
    return (x / torch.sqrt((x * x).mean(1, keepdim=True) + 1e-5) * G[:, None]).transpose(1, 2)


RMS_SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x / torch.sqrt(mean(x * x) + 1e-5) * G,
    "reciprocal_root": lambda x: G * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
    "cast": lambda x: G * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)).type_as(x),
    "one_more_than_the_gain": lambda x: (1 + B) * (x * (mean(x**2) + 1e-5) ** -0.5),
    "norm": lambda x: x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) * D**-0.5) * G,
    "unit_length": lambda x: x / x.square().sum(-1, keepdim=True).sqrt() * G,
    "einsum": lambda x: x * (torch.einsum("btd,btd->bt", x, x) / D + 1e-5).rsqrt()[..., None] * G,
    "offset": lambda x: x * G / (mean(x * x) + 1e-5) ** 0.5 + B,
    "over_channels": rms_over_channels,
}
MODULE = nn.RMSNorm(D, eps=1e-5).requires_grad_(False)
MODULE.weight.copy_(G)
NEAR_MISSES: dict[str, Callable[[Tensor], Tensor]] = {
    "added_to_the_deviation": lambda x: G * (x - mean(x)) / (x.std(-1, keepdim=True) + 1e-6) + B,
    "added_to_the_root": lambda x: x / (torch.sqrt(mean(x * x)) + 1e-5) * G,
    "least_length": lambda x: nn.functional.normalize(x, dim=-1) * G,
    "mean_of_another_square": lambda x: x * torch.rsqrt(mean(x * x.sin()) + 1e-5) * G,
    "another_axis": lambda x: (x - mean(x)) / torch.sqrt(mean((x - x.mean(1, keepdim=True)) ** 2) + 1e-5),
    "another_input": lambda x: (x - mean(x)) / torch.sqrt(spread(x.sin())),
}


def check_numbers(spell: Callable[[Tensor], Tensor], run: Callable[[Tensor], Any]) -> None:
    for batch in (1, 3):
        x = torch.randn(batch, T, D, generator=torch.Generator().manual_seed(batch)) + 0.3
        torch.testing.assert_close(torch.as_tensor(run(x)), spell(x))


@pytest.mark.parametrize("name", SPELLINGS)
def test_torch(name: str) -> None:
    result = recopt.optimize(to_program(Plain(SPELLINGS[name]), (torch.randn(BATCH, T, D),)))
    assert result.report.counts()["layer-norm"] == 1 and not result.report.undone
    ops = {n.op for n in result.host.nodes}
    assert "aten.layer_norm.default" in ops and not ops & {"aten.sqrt.default", "aten.rsqrt.default", "aten.div.Tensor"}
    check_numbers(SPELLINGS[name], result)


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SPELLINGS)
def test_onnx(name: str, dynamo: bool) -> None:
    file = to_onnx(Plain(SPELLINGS[name]), (torch.randn(BATCH, T, D),), dynamo)
    result = recopt.optimize(onnx.load_from_string(file), target="portable")
    assert sum(n.op == "LayerNormalization" for n in result.host.nodes) == 1
    assert not result.report.undone and not any(n.op == "Sqrt" for n in result.host.nodes)
    optimized = result.to_proto()
    onnx.checker.check_model(optimized, full_check=True)
    check_numbers(SPELLINGS[name], lambda x: run_onnx(optimized.SerializeToString(), (x,))[0])


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("name", [*RMS_SPELLINGS, "module"])
def test_rms_torch(name: str, target: str) -> None:
    spell = RMS_SPELLINGS.get(name, MODULE)
    result = recopt.optimize(to_program(Plain(spell), (torch.randn(BATCH, T, D),)), target=target)
    assert result.report.counts()["layer-norm"] == 1 and not result.report.undone
    ops = {n.op for n in result.host.nodes}
    assert ops - {"aten._assert_tensor_metadata.default"} <= {"recopt.rms_norm.default", "aten.add.Tensor"}
    check_numbers(spell, result)


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RMS_SPELLINGS)
def test_rms_onnx(name: str, dynamo: bool, tmp_path: Path) -> None:
    """What ONNX Runtime makes one kernel of, or one node in the domain recopt; the second time nothing is done."""
    file = onnx.load_from_string(to_onnx(Plain(RMS_SPELLINGS[name]), (torch.randn(BATCH, T, D),), dynamo))
    for target in ("portable", "recopt"):
        result = recopt.optimize(file, target=target)
        if target == "portable" and name in ("norm", "unit_length"):  # without an epsilon that makes no kernel
            assert any("is as short as portable allows" in r.reason for r in result.report.refusals)
            continue
        assert result.report.counts()["layer-norm"] == 1 and not result.report.undone
        optimized = result.to_proto()
        onnx.checker.check_model(optimized, full_check=True)
        ran = runs_as(optimized, tmp_path)
        if name not in ("norm", "unit_length"):
            assert ran.count("SimplifiedLayerNormalization") == 1 and not {"Sqrt", "ReduceMean"} & {*ran}
        check_numbers(RMS_SPELLINGS[name], lambda x, file=optimized: run_onnx(file.SerializeToString(), (x,))[0])
        assert "layer-norm" not in recopt.optimize(optimized, target=target).report.counts()


def test_rms_has_an_operator_since_opset_23(tmp_path: Path) -> None:
    file = onnx.load_from_string(to_onnx(Plain(RMS_SPELLINGS["einsum"]), (torch.randn(BATCH, T, D),), False))
    file.opset_import[0].version = 23
    result = recopt.optimize(file, target="ort-cpu")
    assert [n.op for n in result.host.nodes] == ["RMSNormalization"]
    check_numbers(RMS_SPELLINGS["einsum"], lambda x: run_onnx(result.to_proto().SerializeToString(), (x,))[0])


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    result = recopt.optimize(to_program(Plain(NEAR_MISSES[name]), (torch.randn(BATCH, T, D),)))
    assert "layer-norm" not in result.report.counts()
    check_numbers(NEAR_MISSES[name], result)


def test_an_old_opset_has_no_such_operator() -> None:
    file = to_onnx(Plain(SPELLINGS["plain"]), (torch.randn(BATCH, T, D),), dynamo=False)
    old = onnx.load_from_string(file)
    old.opset_import[0].version = 13
    result = recopt.optimize(old, target="portable")
    assert any("needs opset 17" in r.reason for r in result.report.refusals)
    check_numbers(SPELLINGS["plain"], lambda x: run_onnx(result.to_proto().SerializeToString(), (x,))[0])


@pytest.mark.parametrize(
    "width, dtype, own", [(24, torch.float32, True), (600, torch.float32, False), (24, torch.float64, False)]
)
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_narrow_rows_have_a_kernel_on_cuda(kind: type[nn.Module], width: int, dtype: torch.dtype, own: bool) -> None:
    x, norm = torch.randn(BATCH, T, width, dtype=dtype), kind(width, dtype=dtype).requires_grad_(False)
    model = Plain(lambda x: norm(x).cumsum(-1))
    result = recopt.optimize(to_program(model, (x,)), target="cuda")
    assert sum(n.op.startswith("recopt.") for n in result.host.nodes) == own
    torch.testing.assert_close(result(x[:1]), model(x[:1]))
    if not own:
        return
    translations = recopt.onnx_translations()
    exported = torch.onnx.export(result.model, (x,), dynamo=True, verbose=False, custom_translation_table=translations)
    assert exported is not None
    y = run_onnx(exported.model_proto.SerializeToString(), (x,))[0]
    torch.testing.assert_close(torch.as_tensor(y), model(x))


def test_a_view_of_a_normalisation_is_no_second_one() -> None:
    norm, project = nn.LayerNorm(D).requires_grad_(False), nn.Linear(D, D).requires_grad_(False)

    def spell(x: Tensor) -> Tensor:
        y = norm(x)
        return y + project(y.transpose(0, 1)).transpose(0, 1)

    x = torch.randn(BATCH, T, D)
    result = recopt.optimize(to_program(Plain(spell), (x,)), target="cuda")
    assert sum(n.op == "recopt.layer_norm.default" for n in result.host.nodes) == 1
    torch.testing.assert_close(result(x[:3]), spell(x[:3]))
