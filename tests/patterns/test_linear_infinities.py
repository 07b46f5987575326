"""Products of different inputs that lie side by side: one of all has zeros between them, and 0 * inf is NaN."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import onnx
import pytest
import torch
from spellings.export import run_onnx, to_onnx
from torch import Tensor, nn

import recopt
from recopt.hosts.fx import FxHost
from recopt.lift import lift
from recopt.recognise.finite import is_finite

from .harness import behind, is_fused, reasons

WIDTH, ROWS, CASES = 12, 9, 24
Source = Callable[[nn.Module, Tensor, Tensor], Tensor]

# What blocks read [B, n] of x [B, WIDTH] and ids [B], and whether it is bounded whatever x holds.
SOURCES: dict[str, tuple[Source, bool]] = {
    "slice": (lambda m, x, ids: x[:, m.first : m.first + m.n], False),
    "sigmoid": (lambda m, x, ids: torch.sigmoid(x[:, m.first : m.first + m.n]), False),  # of NaN it is NaN
    "clipped": (lambda m, x, ids: x[:, m.first : m.first + m.n].clamp(-1, 1), False),
    "rows": (lambda m, x, ids: m.table(ids), True),
    "rows_tanh": (lambda m, x, ids: torch.tanh(m.table(ids) * 3 - 1), True),
    "layer": (lambda m, x, ids: nn.functional.gelu(m.inner(m.table(ids))), True),
    "normed": (lambda m, x, ids: m.norm(m.table(ids)), True),
    "overflows": (lambda m, x, ids: m.table(ids).exp().exp().exp().exp(), False),
    "divided": (lambda m, x, ids: 1 / m.table(ids), False),
    "integers": (lambda m, x, ids: (ids[:, None] * m.steps).to(torch.float32), True),
    "compared": (lambda m, x, ids: (x[:, m.first : m.first + m.n] > 0).float(), True),
    "hot": (lambda m, x, ids: nn.functional.one_hot(ids % m.n, m.n).float(), True),
}


class Block(nn.Module):
    """A layer over a source, with or without an activation."""

    def __init__(self, draw: random.Random, source: str) -> None:
        super().__init__()
        self.first, self.n = draw.randrange(WIDTH - 3), draw.randint(2, 3)
        self.read = SOURCES[source][0]
        self.table, self.inner = nn.Embedding(ROWS, self.n), nn.Linear(self.n, self.n)
        self.norm = nn.BatchNorm1d(self.n)
        self.layer = nn.Linear(self.n, draw.randint(2, 4), bias=draw.random() < 0.7)
        self.register_buffer("steps", torch.arange(self.n))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        y: Tensor = self.layer(self.read(self, x, ids))
        return y


class Blocks(nn.Module):
    """Blocks joined, and some of them through an activation."""

    def __init__(self, draw: random.Random, sources: list[str]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(draw, s) for s in sources)
        self.act = draw.choice([None, torch.relu, torch.sigmoid])
        self.each = draw.random() < 0.5

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        parts = [b(x, ids) for b in self.blocks]
        if self.act is None:
            return torch.cat(parts, 1)
        return torch.cat([self.act(p) for p in parts], 1) if self.each else self.act(torch.cat(parts, 1))


class Many(nn.Module):
    """Several of these, an output each: an export takes a second whatever its size."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        names = [s for s in SOURCES if s != "overflows"]  # whose large sums may round in another order
        self.cases = nn.ModuleList(Blocks(draw, draw.choices(names, k=draw.randint(2, 4))) for _ in range(CASES))

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        return tuple(case(x, ids) for case in self.cases)


def _inputs(broken: float | None = None) -> tuple[Tensor, Tensor]:
    """As many rows as columns; where `broken`, row n holds that at column n."""
    x = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1))
    return (x if broken is None else x.diagonal_scatter(torch.full((WIDTH,), broken))), torch.arange(WIDTH) % ROWS


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_infinities_stay_in_their_block(target: str, seed: int) -> None:
    model = Many(seed).eval()
    if target == "cpu":
        result = recopt.optimize(model, _inputs(), verify="rewrites")
        run: Callable[..., Sequence[object]] = result
    else:
        given = onnx.load_from_string(to_onnx(model, _inputs(), dynamo=False))
        result = recopt.optimize(given, target=target, verify="rewrites")
        file = result.to_proto().SerializeToString()
        run = lambda *args: run_onnx(file, args)  # noqa: E731
    assert not result.report.undone
    for broken in (None, torch.inf, -torch.inf, torch.nan):
        args = _inputs(broken)
        with torch.no_grad():
            expected = model(*args)
        for found, wanted in zip(run(*args), expected, strict=True):
            torch.testing.assert_close(torch.as_tensor(found), wanted, equal_nan=True)


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_bounded_is_one_product(name: str) -> None:
    model = Blocks(random.Random(0), [name, name]).eval()
    result = recopt.optimize(model, _inputs(), verify="rewrites", passes=["fuse-linear"])
    bounded = SOURCES[name][1]
    host = FxHost.capture(model, _inputs())
    lifted = lift(host)
    inputs = [node.inputs[0] for node in host.nodes if node.op == "aten.linear.default"][-2:]
    assert [is_finite(lifted, v) for v in inputs] == [bounded] * 2
    fused = sum(map(is_fused, behind(result.host, result.host.outputs[0])))
    assert bounded or fused == 2
    assert any("an infinity in" in why for why in reasons(result)) != bounded


def test_what_bags_add_up_is_bounded() -> None:
    model = Blocks(random.Random(0), ["rows", "rows"]).eval()
    ops = [n.op for n in recopt.optimize(model, _inputs(), target="cuda", verify="none").host.nodes]
    assert ops.count("recopt.embedding_bags.default") == 2 and ops.count("recopt.linear.default") == 1
