"""A case: one spelling as a module, its canonical twin, its inputs; and the seeded weights that spellings draw on."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# All different, and none a batch size that a test would try, so that no axis is mistaken for another.
K, N, T = 24, 40, 5
CUT_K, CUT_N = 7, 16  # where the spellings that work in pieces cut


class Plain(nn.Module):
    """A spelling without weights as a module."""

    def __init__(self, spell: Callable[..., Any]) -> None:
        super().__init__()
        self.spell = spell

    def forward(self, *args: Tensor) -> Any:
        return self.spell(*args)


@dataclass(frozen=True)
class Case:
    """One spelling: `module()` computes what `reference()` does, on any `inputs(batch)`; all seeded, all in eval.

    `linears` is the number of fused operators it should become, with nothing left over unless `note` says so.
    """

    module: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    rank: int
    reference: Callable[[], nn.Module]
    note: str = ""
    linears: int = 1
    exporters: tuple[str, ...] = ("dynamo", "torchscript")  # those of torch's ONNX exporters that can carry it


@dataclass(frozen=True)
class NearMiss:
    """A module that looks like a linear and differs; `reason` is a word of the refusal, "" if it must only stay right.

    A part of it may still be fused. Where `random`, the numbers of two runs differ, and the operator must stay.
    """

    module: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    rank: int
    reason: str = ""
    note: str = ""
    random: bool = False
    exporters: tuple[str, ...] = ("dynamo", "torchscript")


# A spelling: what it computes of the pool of weights and its inputs.
Spell = Callable[..., Any]


@dataclass(frozen=True)
class Spelling:
    """A row of the tables: the spelling, its canonical form (None: the table's), the ranks it is meant for."""

    spell: Spell
    reference: Spell | None = None
    ranks: tuple[int, ...] = (2, 3)
    inputs: int = 1
    note: str = ""
    linears: int = 1


@functools.cache
def _pool() -> dict[str, Tensor | nn.Module]:
    g = torch.Generator().manual_seed(7)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=g) * scale

    def positive(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g) + 0.5

    weight, bias = normal(N, K, scale=K**-0.5), normal(N, scale=0.5)
    slope = positive(N) * 0.2
    mean, var, gamma, beta = normal(N, scale=0.3), positive(N), positive(N), normal(N, scale=0.3)
    in_mean, in_var, in_gamma, in_beta = normal(K, scale=0.3), positive(K), positive(K), normal(K, scale=0.3)
    quantised = torch.randint(-128, 128, (N, K), generator=g, dtype=torch.int8)

    def norm(module: Any, *values: Tensor) -> nn.Module:
        names = ("running_mean", "running_var", "weight", "bias")
        for name, value in zip(names, values, strict=False):
            getattr(module, name).data.copy_(value)
        return module.eval()  # type: ignore[no-any-return]

    def filled(module: Any, w: Tensor, b: Tensor | None = None) -> nn.Module:
        module.weight.data.copy_(w)
        if b is not None:
            module.bias.data.copy_(b)
        return module  # type: ignore[no-any-return]

    return {
        "weight": weight,
        "bias": bias,
        "weight_t": weight.T.contiguous(),
        "weight2": normal(N, K, scale=K**-0.5),
        "bias2": normal(N, scale=0.5),
        "bias_1n": bias[None].clone(),
        "bias_11n": bias[None, None].clone(),
        "bias_n1": bias[:, None].clone(),
        "scale": positive(N),
        "scale_n1": positive(N, 1),
        "shift": normal(N, scale=0.3),
        "in_scale": positive(K),
        "in_shift": normal(K, scale=0.3),
        "mean": mean,
        "var": var,
        "gamma": gamma,
        "beta": beta,
        "left": weight[:, :CUT_K].clone(),
        "right": weight[:, CUT_K:].clone(),
        "top": weight[:CUT_N].clone(),
        "bottom": weight[CUT_N:].clone(),
        "top_bias": bias[:CUT_N].clone(),
        "bottom_bias": bias[CUT_N:].clone(),
        "heads": weight.reshape(4, N // 4, K).clone(),
        "even": weight[0::2].clone(),
        "odd": weight[1::2].clone(),
        "augmented": torch.cat([weight, bias[:, None]], dim=1),
        "padded": torch.cat([weight, normal(3, K)], dim=0),
        "conv1": weight[:, :, None].clone(),
        "conv2": weight[:, :, None, None].clone(),
        "wide": normal(64, K, scale=K**-0.5),
        "wide_bias": normal(64, scale=0.3),
        "back": normal(N, 64, scale=0.125),
        "down": normal(8, K, scale=K**-0.5),
        "up": normal(N, 8, scale=8**-0.5),
        "pair": torch.tensor([0.1, 0.0]),
        "one_row": weight[:1].clone(),
        "one_column": weight[:, :1].clone(),
        "magnitude": positive(N, 1),
        "mask": (torch.rand(N, K, generator=g) > 0.3).float(),
        "order": torch.randperm(N, generator=g),
        "in_order": torch.randperm(K, generator=g),
        "quantised": quantised,
        "step": torch.tensor(0.011),
        "steps": positive(N, 1) * 0.01,
        "zeros": torch.randint(-9, 9, (N, 1), generator=g, dtype=torch.int8),
        "slope": slope,
        "slope1": torch.tensor([0.2]),
        "alpha": normal(N, scale=0.3),
        "square": normal(K, K, scale=K**-0.5),
        "square_bias": normal(K, scale=0.5),
        "bias_31n": normal(3, 1, N),
        "bias_tn": normal(T, N),
        "bias_t1": normal(T, 1),
        "step_mean": normal(T),
        "step_var": positive(T),
        "time_weight": normal(T, T, scale=T**-0.5),
        "time_bias": normal(T),
        "experts": normal(4, N, K, scale=K**-0.5),
        "conv3": normal(N, K, 3, scale=0.1),
        "conv_groups": normal(N, K // 4, 1, scale=0.4),
        "calls": torch.tensor(0.0),
        "linear": filled(nn.Linear(K, N), weight, bias),
        "linear_no_bias": filled(nn.Linear(K, N, bias=False), weight),
        "conv1d": filled(nn.Conv1d(K, N, 1), weight[:, :, None], bias),
        "conv2d": filled(nn.Conv2d(K, N, 1), weight[:, :, None, None], bias),
        "norm": norm(nn.BatchNorm1d(N), mean, var, gamma, beta),
        "norm_plain": norm(nn.BatchNorm1d(N, affine=False), mean, var),
        "norm_2d": norm(nn.BatchNorm2d(N), mean, var, gamma, beta),
        "in_norm": norm(nn.BatchNorm1d(K), in_mean, in_var, in_gamma, in_beta),
        "prelu": filled(nn.PReLU(N), slope),
        "dropout": nn.Dropout(0.4).eval(),
    }


BUFFERS = {
    "mean",
    "var",
    "mask",
    "calls",
    "step_mean",
    "step_var",
}  # the rest of the floating-point tensors are parameters


class _Used:
    """A copy of the pool, noting what a spelling reads of it."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        self.names.append(name)
        return copy.deepcopy(_pool()[name])


class Spelled(nn.Module):
    """A spelling as a module that owns just the weights it reads."""

    def __init__(self, spell: Spell, args: tuple[Tensor, ...]) -> None:
        super().__init__()
        used = _Used()
        with torch.no_grad():
            spell(used, *args)
        for name in dict.fromkeys(used.names):
            value = _pool()[name]
            if isinstance(value, nn.Module):
                self.add_module(name, copy.deepcopy(value))
            elif name in BUFFERS or not value.is_floating_point():
                self.register_buffer(name, value.clone())
            else:
                self.register_parameter(name, nn.Parameter(value.clone()))
        self._spell = spell

    def forward(self, *args: Tensor) -> Any:
        """Return what the spelling makes of its inputs, each [B, K] or [B, T, K]."""
        return self._spell(self, *args)


def sample(rank: int, count: int, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Return `count` inputs [batch, K] (rank 2) or [batch, T, K] (rank 3), normal, of one seed."""
    g = torch.Generator().manual_seed(seed)
    shape = (batch, K) if rank == 2 else (batch, T, K)
    return tuple(torch.randn(shape, generator=g) for _ in range(count))


def build(spell: Spell, rank: int, count: int = 1) -> nn.Module:
    """Return a spelling as a module in eval mode."""
    return Spelled(spell, sample(rank, count, 2)).eval()


def cases(
    table: dict[str, Spelling],
    wrap: Callable[[Spell], Spell],
    default: Spell,
    exporters: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, Case]:
    """Spell out a table: "name_2d", "name_3d"; `wrap` adds what surrounds a row, `default` is a missing reference,
    `exporters` has those rows that not every exporter can carry."""
    out: dict[str, Case] = {}
    for name, row in table.items():
        for rank in row.ranks:
            out[f"{name}_{rank}d"] = Case(
                module=functools.partial(build, wrap(row.spell), rank, row.inputs),
                inputs=functools.partial(sample, rank, row.inputs),
                rank=rank,
                reference=functools.partial(build, wrap(row.reference or default), rank, row.inputs),
                note=row.note,
                linears=row.linears,
                exporters=(exporters or {}).get(name, ("dynamo", "torchscript")),
            )
    return out
