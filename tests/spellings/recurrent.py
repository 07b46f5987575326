"""Spellings of GRU and AUGRU, unrolled by hand, and what looks like them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

T, K = 6, 5  # steps, width of the inputs


class Recurrent(nn.Module):
    """Seeded weights of a recurrence, and a spelling of what is done with them."""

    def __init__(self, spell: Callable[..., Any], hidden: int) -> None:
        super().__init__()
        self.hidden, self.spell = hidden, spell
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.cell = nn.GRUCell(K, hidden)
            self.reset, self.update, self.new = (nn.Linear(K + hidden, hidden) for _ in range(3))
            self.of_input = nn.Linear(K, 3 * hidden)
            self.of_state = nn.Linear(hidden, 3 * hidden)
            self.apart = nn.ModuleList(nn.Linear(K + hidden, hidden) for _ in range(T))
            self.wide = nn.Linear(2 * K, 3 * hidden)
            self.other = nn.Linear(hidden, K)
            self.above = nn.GRUCell(hidden, hidden)

    def forward(self, *args: Tensor) -> Any:
        return self.spell(self, *args)


@dataclass(frozen=True)
class Case:
    """A spelling over inputs [B, T, K], a score for each [B, T], and how many of them count [B]."""

    spell: Callable[..., Any]
    hidden: int = 16
    reason: str = ""  # of a near miss
    fused: int = 1  # operators

    def module(self) -> nn.Module:
        """The spelling as a module in eval."""
        return Recurrent(self.spell, self.hidden).eval()

    def args(self, batch: int) -> tuple[Tensor, ...]:
        """Seeded inputs; at least one item counts."""
        g = torch.Generator().manual_seed(batch)
        scores = torch.softmax(torch.randn(batch, T, generator=g), -1)
        return torch.randn(batch, T, K, generator=g), scores, torch.randint(1, T + 1, (batch,), generator=g)


def zeros(m: Any, x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[0], m.hidden)


def joined(m: Any, x: Tensor, a: Tensor, n: Tensor, blend: Callable[..., Tensor] | None = None) -> Tensor:
    """The reset gate weighs the state, as in the first paper; gates are linears over a concat."""
    h = zeros(m, x)
    for t in range(T):
        both = torch.cat([x[:, t], h], -1)
        u, r = torch.sigmoid(m.update(both)), torch.sigmoid(m.reset(both))
        c = torch.tanh(m.new(torch.cat([x[:, t], r * h], -1)))
        h = (1 - u) * h + u * c if blend is None else blend(u, h, c, t)
    return h


def joined_turned(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    return joined(m, x, a, n, lambda u, h, c, t: h + u * (c - h))


def joined_kept(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    return joined(m, x, a, n, lambda u, h, c, t: u * h + (1.0 - u) * c)


def joined_lerp(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    return joined(m, x, a, n, lambda u, h, c, t: torch.lerp(h, c, u))


def joined_masked(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    mask = torch.arange(T) < n[:, None]

    def blend(u: Tensor, h: Tensor, c: Tensor, t: int) -> Tensor:
        return torch.where(mask[:, t : t + 1], (1 - u) * h + u * c, h)

    return joined(m, x, a, n, blend)


def by_length(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    def blend(u: Tensor, h: Tensor, c: Tensor, t: int) -> Tensor:
        return torch.where((t < n).unsqueeze(1), h + u * (c - h), h)

    return joined(m, x, a, n, blend)


def by_product(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    mask = (torch.arange(T) < n[:, None]).float()

    def blend(u: Tensor, h: Tensor, c: Tensor, t: int) -> Tensor:
        k = mask[:, t : t + 1]
        return k * ((1 - u) * h + u * c) + (1 - k) * h

    return joined(m, x, a, n, blend)


def dien(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    def blend(u: Tensor, h: Tensor, c: Tensor, t: int) -> Tensor:
        u = a[:, t : t + 1] * u
        return (1 - u) * h + u * c

    return joined(m, x, a, n, blend)


def dien_turned(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    def blend(u: Tensor, h: Tensor, c: Tensor, t: int) -> Tensor:
        keep = 1.0 - a[:, t, None] * u
        return keep * h + (1.0 - keep) * c

    return joined(m, x, a, n, blend)


def dien_official(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    """u = (1 - a) * u keeps the state."""

    def blend(u: Tensor, h: Tensor, c: Tensor, t: int) -> Tensor:
        u = (1.0 - a[:, t : t + 1]) * u
        return u * h + (1.0 - u) * c

    return joined(m, x, a, n, blend)


def dien_masked(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    mask = torch.arange(T) < n[:, None]

    def blend(u: Tensor, h: Tensor, c: Tensor, t: int) -> Tensor:
        u = a[:, t : t + 1] * u
        return torch.where(mask[:, t : t + 1], h + u * (c - h), h)

    return joined(m, x, a, n, blend)


def torch_gates(m: Any, gi: Tensor, h: Tensor) -> Tensor:
    """A step as torch.nn.GRU has it, over the products of the input."""
    ir, iz, ic = gi.chunk(3, -1)
    hr, hz, hc = m.of_state(h).chunk(3, -1)
    r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
    c = torch.tanh(ic + r * hc)
    return c + z * (h - c)


def chunked(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    h = zeros(m, x)
    for t in range(T):
        h = torch_gates(m, m.of_input(x[:, t]), h)
    return h


def hoisted(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    gi, h = m.of_input(x), zeros(m, x)
    for t in range(T):
        h = torch_gates(m, gi[:, t], h)
    return h


def unbound(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    h = zeros(m, x)
    for now in x.unbind(1):
        h = torch_gates(m, m.of_input(now), h)
    return h


def cells(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    """torch's own steps, of two layers in one loop."""
    h, above = zeros(m, x), zeros(m, x)
    for t in range(T):
        h = m.cell(x[:, t], h)
        above = m.above(h, above)
    return above


def separate(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    """Slices of the weights, a product each."""
    s, h = m.hidden, zeros(m, x)
    wi, wh, bi, bh = m.of_input.weight, m.of_state.weight, m.of_input.bias, m.of_state.bias
    for t in range(T):
        i = [x[:, t] @ wi[n * s : n * s + s].t() + bi[n * s : n * s + s] for n in range(3)]
        g = [torch.einsum("bk,nk->bn", h, wh[n * s : n * s + s]) + bh[n * s : n * s + s] for n in range(3)]
        r, z = 1 / (1 + torch.exp(-(i[0] + g[0]))), torch.sigmoid(i[1] + g[1])
        h = (1 - z) * torch.tanh(i[2] + r * g[2]) + z * h
    return h


def first_state(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    h = m.of_input(x.mean(1))[:, : m.hidden].tanh()
    for t in range(T):
        h = torch_gates(m, m.of_input(x[:, t]), h)
    return h


def sequence(m: Any, x: Tensor, a: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """All states, and the last."""
    h, states = zeros(m, x), []
    for t in range(T):
        h = torch_gates(m, m.of_input(x[:, t]), h)
        states.append(h)
    return torch.stack(states, 1), h


def side_by_side(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    h, states = zeros(m, x), []
    for t in range(T):
        h = torch_gates(m, m.of_input(x[:, t]), h)
        states.append(h.unsqueeze(1))
    return m.other(torch.cat(states, 1))


def in_the_middle(m: Any, x: Tensor, a: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Another user of a state in the middle."""
    h, kept = zeros(m, x), x[:, 0]
    for t in range(T):
        h = torch_gates(m, m.of_input(x[:, t]), h)
        kept = m.other(h) if t == 2 else kept
    return h, kept


def two_inputs(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    """Inputs that lie side by side in a concat of the graph."""
    wide, h = torch.cat([x.sin(), x.cos()], -1), zeros(m, x)
    for t in range(T):
        h = torch_gates(m, m.wide(wide[:, t]), h)
    return h


def after_another(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    """One recurrence over the states of another."""
    h, states = zeros(m, x), []
    for t in range(T):
        h = torch_gates(m, m.of_input(x[:, t]), h)
        states.append(h)
    x = m.other(torch.stack(states, 1)) + x
    return dien(m, x, a, n)


def over_again(m: Any, x: Tensor, a: Tensor, n: Tensor, turns: int = 2) -> Tensor:
    """A sequence gone through more than once: what the input weighs is computed once, for all turns."""
    h = zeros(m, x)
    for t in range(turns * T):
        h = torch_gates(m, m.of_input(x[:, t % T]), h)
    return h


def backwards(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    """From the last position on; the states where their positions are."""
    h, states = zeros(m, x), []
    for t in reversed(range(T)):
        h = m.cell(x[:, t], h)
        states.insert(0, h)
    return torch.stack(states, 1)


def attention_alone(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    """AGRU: attention in place of the update gate."""
    return joined(m, x, a, n, lambda u, h, c, t: (1 - a[:, t, None]) * h + a[:, t, None] * c)


SPELLINGS: dict[str, Case] = {
    "joined": Case(joined),
    "joined_turned": Case(joined_turned),
    "joined_kept": Case(joined_kept, 40),
    "joined_lerp": Case(joined_lerp),
    "joined_masked": Case(joined_masked),
    "by_length": Case(by_length),
    "by_product": Case(by_product),
    "dien": Case(dien, 40),
    "dien_turned": Case(dien_turned),
    "dien_official": Case(dien_official),
    "dien_masked": Case(dien_masked),
    "chunked": Case(chunked),
    "hoisted": Case(hoisted, 40),
    "unbound": Case(unbound),
    "cells": Case(cells, fused=2),
    "separate": Case(separate),
    "first_state": Case(first_state),
    "sequence": Case(sequence),
    "side_by_side": Case(side_by_side),
    "in_the_middle": Case(in_the_middle),
    "two_inputs": Case(two_inputs),
    "after_another": Case(after_another, fused=2),
    "over_again": Case(over_again, fused=2),
    "backwards": Case(backwards),
    "attention_alone": Case(attention_alone),
}


def other_weights(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    """Weights that change from step to step."""
    h = zeros(m, x)
    for t in range(T):
        both = torch.cat([x[:, t], h], -1)
        u, r = torch.sigmoid(m.apart[t](both)), torch.sigmoid(m.reset(both))
        h = (1 - u) * h + u * torch.tanh(m.new(torch.cat([x[:, t], r * h], -1)))
    return h


def short(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    h = m.other.weight.new_zeros(x.shape[0], m.hidden)
    for t in range(3):
        h = torch_gates(m, m.of_input(x[:, t]), h)
    return h


def no_reset(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    h = zeros(m, x)
    for t in range(T):
        both = torch.cat([x[:, t], h], -1)
        u = torch.sigmoid(m.update(both))
        h = (1 - u) * h + u * torch.tanh(m.new(both))
    return h


def leaky(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    return joined(m, x, a, n, lambda u, h, c, t: (1 - u) * h + 0.9 * u * c)


def feeds_back(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    """Inputs that read the state before."""
    h = zeros(m, x)
    for t in range(T):
        h = torch_gates(m, m.of_input(x[:, t] * m.other(h)), h)
    return h


def irregular(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    """Positions that do not follow each other."""
    h = zeros(m, x)
    for t in (0, 1, 3, 2, 5, 4):
        h = torch_gates(m, m.of_input(x[:, t]), h)
    return h


def rectified(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    h = zeros(m, x)
    for t in range(T):
        both = torch.cat([x[:, t], h], -1)
        u, r = torch.sigmoid(m.update(both)), torch.sigmoid(m.reset(both))
        h = (1 - u) * h + u * F.relu(m.new(torch.cat([x[:, t], r * h], -1)))
    return h


# --- loops of the graph


def scanned(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    return scan(lambda h, now: (m.cell(now, h), h.clone()), zeros(m, x), x, dim=1)[0]


def scanned_back(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Any:
    """All states and the last, from the end on, where the items count."""
    mask = (torch.arange(T) < n[:, None]).unsqueeze(-1)

    def step(h: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        h = torch.where(now[1], torch_gates(m, m.of_input(now[0]), h), h)
        return h, h.clone()

    return scan(step, zeros(m, x), (x, mask), dim=1, reverse=True)


def scanned_dien(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    def step(h: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        both = torch.cat([now[0], h], -1)
        u, r = now[1] * torch.sigmoid(m.update(both)), torch.sigmoid(m.reset(both))
        h = (1 - u) * h + u * torch.tanh(m.new(torch.cat([now[0], r * h], -1)))
        return h, h.clone()

    return scan(step, zeros(m, x), (x, a.unsqueeze(-1)), dim=1)[1]


def counted(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    def step(t: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        now = torch.index_select(x, 1, t.view(1)).squeeze(1)
        return t + 1, torch.where((t < n)[:, None], m.cell(now, h), h)

    first = m.of_input(x.mean(1))[:, : m.hidden].tanh()
    return while_loop(lambda t, h: t < T, step, (torch.zeros((), dtype=torch.int64), first))[1]


LOOPS: dict[str, Case] = {
    "scanned": Case(scanned),
    "scanned_back": Case(scanned_back),
    "scanned_dien": Case(scanned_dien),
    "counted": Case(counted),
}


def scanned_before(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    """The states before each step."""
    return scan(lambda h, now: (m.cell(now, h), h.clone()), zeros(m, x), x, dim=1)[1]


def scanned_layers(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    def step(states: tuple[Tensor, ...], now: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        h = m.cell(now, states[0])
        above = m.above(h, states[1])
        return (h, above), above.clone()

    return scan(step, (zeros(m, x), zeros(m, x)), x, dim=1)[1]


def ends_early(m: Any, x: Tensor, a: Tensor, n: Tensor) -> Tensor:
    def step(t: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return t + 1, m.cell(torch.index_select(x, 1, t.view(1)).squeeze(1), h)

    first = (torch.zeros((), dtype=torch.int64), zeros(m, x))
    return while_loop(lambda t, h: (t < T) & (h.sum() < 1), step, first)[1]


NEAR_MISSES: dict[str, Case] = {
    "other_weights": Case(other_weights),
    "short": Case(short),
    "no_reset": Case(no_reset, reason="past the reset gate"),
    "leaky": Case(leaky, reason="do not add up to 1"),
    "feeds_back": Case(feeds_back),
    "irregular": Case(irregular),
    "rectified": Case(rectified),
    "scanned_before": Case(scanned_before, reason="more than states"),
    "scanned_layers": Case(scanned_layers, reason="hands on 2 states"),
    "ends_early": Case(ends_early, reason="what an earlier one computed"),
}
