"""Dot products of pairs of vectors, in every spelling: on CUDA they are one operator, and the same numbers come out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import recopt

F, D = 6, 13
BELOW = torch.tril_indices(F, F, -1)


class Unit(nn.Module):
    """Vectors of a table, or of several and a layer's, and a spelling of what is done with them."""

    def __init__(self, spell: Callable[..., Any], joined: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(50, D)
        self.tables = nn.ModuleList(nn.EmbeddingBag(50, D, mode="sum") for _ in range(F - 1))
        self.layer = nn.Linear(4, D)
        self.spell, self.joined = spell, joined
        self.register_buffer("row", BELOW[0])
        self.register_buffer("column", BELOW[1])
        self.register_buffer("flat", BELOW[0] * F + BELOW[1])

    def forward(self, x: Tensor, ids: Tensor) -> Any:
        if not self.joined:
            return self.spell(self, self.table(ids))
        bags = [table(ids[:, n : n + 1]) for n, table in enumerate(self.tables)]
        return self.spell(self, torch.stack([torch.relu(self.layer(x)), *bags], 1))


def gathered(m: Unit, v: Tensor) -> Tensor:
    return torch.bmm(v, v.transpose(1, 2))[:, m.row, m.column]


SPELLINGS: dict[str, Callable[[Unit, Tensor], Tensor]] = {
    "gathered": gathered,
    "all": lambda m, v: v @ v.mT,
    "einsum": lambda m, v: torch.einsum("bid,bjd->bij", v, v)[:, m.row, m.column],
    "pairs": lambda m, v: (v[:, m.row] * v[:, m.column]).sum(-1),
    "flattened": lambda m, v: torch.matmul(v, v.transpose(-1, -2)).flatten(1)[:, m.flat],
    "others with the first": lambda m, v: (v[:, 1:] * v[:, :1]).sum(2, keepdim=True),
    "neighbours": lambda m, v: (v[:, 1:] * v[:, :-1]).sum(2),
    "turned": lambda m, v: torch.bmm(v, v.transpose(1, 2))[:, m.row, m.column].t(),
}
NEAR_MISSES: dict[str, Callable[[Unit, Tensor], Tensor]] = {
    "of another tensor": lambda m, v: torch.bmm(v, torch.tanh(v).transpose(1, 2)),
    "of columns": lambda m, v: torch.bmm(v.transpose(1, 2), v),
    "of other rows": lambda m, v: (v[1:] * v[:-1]).sum(-1),
    "of one value": lambda m, v: v[:, :, 3] * v[:, :, 4],
    "of vectors that data names": lambda m, v: (v * v[:, v[0, :, 0].argsort()]).sum(-1),
}


def optimized(module: nn.Module) -> tuple[Any, tuple[Tensor, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        args = torch.randn(7, 4), torch.randint(50, (7, F))
    with torch.no_grad():
        return recopt.optimize(module.eval(), args, target="cuda"), args


@pytest.mark.parametrize(
    ("name", "joined"), [*((name, False) for name in SPELLINGS), ("gathered", True), ("neighbours", True)]
)
def test_spellings(name: str, joined: bool) -> None:
    module = Unit(SPELLINGS[name], joined)
    exact = copy.deepcopy(module).double()
    fast, (x, ids) = optimized(module)
    nodes = [n for n in fast.model.graph.nodes if n.op == "call_function" and "dot_interaction" in str(n.target)]
    assert len(nodes) == 1, fast.report
    assert not [n for n in fast.model.graph.nodes if "bmm" in str(n.target) or "sum" in str(n.target)]
    for batch in (7, 3):
        out, want = fast(x[:batch], ids[:batch]), exact(x[:batch].double(), ids[:batch])
        torch.testing.assert_close(out, want.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    module = Unit(NEAR_MISSES[name], False)
    fast, args = optimized(module)
    assert not [n for n in fast.model.graph.nodes if "dot_interaction" in str(n.target)]
    torch.testing.assert_close(fast(*args), module(*args))
