"""The launcher of ``recopt::target_attention``'s CUDA C++ kernel: what fits it, and its source for a network.

It is compiled by NVRTC through torch, once for each network, width and kind of operands. Triton keeps a row's first
layer neither split nor in the order in which the tensor cores read it, and its blocks have 32 or 64 items of one row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..cuda_math import FUNCTIONS, HALVES, MARKS, OPERANDS, PTX, cuda_text
from ..devices import architecture, device_of, processors, shared_bytes
from ..launching import cuda_kernel, launch, planned
from ..leading import two_counters
from . import Network, needed, parse_network
from .source import UNIT

MAX_WIDTH = 64  # of items and values
MAX_COLUMNS = 96  # of hidden layers: sums of both kinds stay in registers
MAX_HIDDEN = 3
TEAMS = {12: 1, 6: 2, 4: 4, 2: 6}  # warps a row: rows that a block takes side by side


class Unit(NamedTuple):
    """One kernel: what its source depends on."""

    team: int  # warps of a row
    width: int
    values: int  # their width
    hidden: tuple[int, ...]
    parts: tuple[bool, bool, bool]  # whether there are Wq, Wk, Wp
    text: str
    softmax: bool
    marks: tuple[str, ...]  # types of the score's parameters
    vectors: bool  # whether rows of items are aligned
    common: bool = False  # whether all rows have one history, whose tiles are split once

    @property
    def teams(self) -> int:
        """Rows that a block takes side by side."""
        return TEAMS[self.team]

    @property
    def warps(self) -> int:
        """Warps of a block: 12 have 168 registers a thread, 16 have 128."""
        return self.team * self.teams

    @property
    def regions(self) -> dict[str, int]:
        """Bytes of what lies in shared memory for all rows, by name, in order."""
        network = parse_network(self.text)
        found: dict[str, int] = {}
        for n, (before, width) in enumerate(itertools.pairwise(self.hidden), 2):
            found[f"uint4 w{n}"] = 16 * 32 * _pieces(before) * _tiles(width)
            found[f"float2 c{n}"] = 8 * 8 * _tiles(width)
        for n, (f, width) in enumerate(zip(network.layers, (*self.hidden, 1), strict=True), 1):
            found[f"float p{n}"] = 4 * 8 * _tiles(width) * f.params
        found["float wl"] = 4 * 8 * _tiles(self.hidden[-1])
        return {name: size for name, size in found.items() if size}

    def shared(self, items: int) -> int:
        """Bytes of shared memory that a block is given at its launch."""
        first = _pieces(self.width) * _tiles(self.hidden[0]) * 32 * 16
        columns, pairs = 8 * _tiles(self.hidden[0]), -(-self.values // 64)
        of_teams = self.teams * (first + 8 * columns + 4 * 16 * _pieces(self.width))
        given = (3 if self.parts[0] else 2) * first
        history = -(-items // 16) * (1024 * _pieces(self.width) + 4 * 16) if self.common else 0
        return given + of_teams + self.warps * 4 * (64 * pairs + 4) + sum(self.regions.values()) + history

    @property
    def source(self) -> str:
        """The whole text for the compiler."""
        network = parse_network(self.text)
        depth, mask = len(self.hidden), needed(network.score.text)
        functions = [("last" if n > depth else f"f{n}", f.text) for n, f in enumerate(network.layers, 1)]
        functions += [("score", network.score.text), ("needed", mask or "h")]
        macros = {
            "D": self.width, "E": self.values, "N1": self.hidden[0], "TEAM": self.team, "TEAMS": self.teams,
            "TARGET": int(self.parts[0]), "ITEM": int(self.parts[1]), "PRODUCT": int(self.parts[2]),
            "VECTORS": int(self.vectors), "SOFTMAX": int(self.softmax), "SKIPS": int(mask is not None),
            "COMMON": int(self.common), "COUNT_MARKS": len(self.marks),
        }  # fmt: skip
        text = (
            "".join(f"#define {name} {value}\n" for name, value in macros.items()) + FUNCTIONS + PTX + HALVES + OPERANDS
        )
        for name, f in functions:
            text += f"__device__ __forceinline__ float {name}(float h, const float* p) {{ return {cuda_text(f)}; }}\n"
        body = UNIT
        for name, part in self._parts(network).items():
            body = body.replace(name, part)
        return text + body

    def _parts(self, network: Network) -> dict[str, str]:
        """What the kernel's text has of each layer and parameter, by the word that stands for it there."""
        depth = len(self.hidden)
        of_layers = [(n, m) for n, f in enumerate(network.layers, 1) for m in range(f.params)]
        arguments = [f"const float* b{n}" for n in range(1, depth + 1)]
        arguments += [f"const float* m{n}" for n in range(2, depth + 1)] + ["const float* ml", "const float* last_bias"]
        arguments += [f"const float* a{n}_{m}, int s{n}_{m}" for n, m in of_layers]
        arguments += [f"const {t}* g{n}, int o{n}, int i{n}, int t{n}" for n, t in enumerate(self.marks)]
        begin, layout = 0, ""
        for name, size in self.regions.items():
            kind, variable = name.split()
            layout, begin = layout + f"{kind}* const {variable} = ({kind}*)(rest + {begin});\n  ", begin + size
        layout += f"uint4* const history = (uint4*)(rest + {begin});  // [tiles][pieces][high, low][32]\n  "
        layout += "float* const scales = (float*)(history + (items + 15) / 16 * PIECES(D) * 64);\n  "
        prepare, network_text = "", ""
        widths = (*self.hidden, 1)
        for n in range(2, depth + 1):
            prepare += f"prepare<{widths[n - 1]}, {widths[n - 2]}>(w{n}, c{n}, m{n}, b{n});\n  "
        copied = [
            (f"p{n} + {m * 8 * _tiles(widths[n - 1])}", widths[n - 1], f"a{n}_{m}[i * s{n}_{m}]") for n, m in of_layers
        ]
        # Each is another warp's, so that they come side by side.
        for at, (to, width, source) in enumerate([*copied, ("wl", self.hidden[-1], "ml[i]")]):
            prepare += (
                f"if (warp == {(at + 5) % self.warps})\n    for (int i = lane; i < {8 * _tiles(width)}; i += 32) "
            )
            prepare += f"({to})[i] = i < {width} ? {source} : 0.0f;\n  "
        for n, width in enumerate(self.hidden, 1):
            if n > 1:
                network_text += f"float h{n}[TILES({width})][4];\n      "
                network_text += f"layer<{widths[n - 2]}, TILES({width})>(h{n}, h{n - 1}, w{n}, c{n}, lane);\n      "
            params = network.layers[n - 1].params
            network_text += f"APPLY(f{n}, {width}, {params}, h{n}, {f'p{n}' if params else '(const float*)0'})\n      "
        network_text += (
            f'_Pragma("unroll") for (int j = 0; j < TILES({self.hidden[-1]}); j++)\n'
            '      _Pragma("unroll") for (int i = 0; i < 2; i++) {\n'
            "        const float w = wl[j * 8 + lane % 4 * 2 + i];\n"
            f"        s[0] = fmaf(h{depth}[j][i], w, s[0]), s[1] = fmaf(h{depth}[j][2 + i], w, s[1]);\n      }}"
        )
        marks = range(len(self.marks))
        last = network.layers[-1].params
        # The last layer has one column, so its parameters stand 8 apart.
        last_params = f"last_params{depth + 1}" if last else "(const float*)0"
        if last:
            network_text += f"\n      float last_params{depth + 1}[{last}];\n      "
            network_text += "".join(
                f"last_params{depth + 1}[{m}] = p{depth + 1}[{8 * m}];\n      " for m in range(last)
            )
        return {
            "ARGUMENTS": "".join(f",\n     {a}" for a in arguments),
            "LAYOUT": layout,
            "PREPARE": prepare,
            "READ_MARKS": "".join(f"p[{n}] = (float)mark{n}[(i64)t * t{n}]; " for n in marks),
            "    MARKS\n": "".join(
                f"    const {t}* const mark{n} = g{n} + outer * o{n} + inner * i{n};\n"
                for n, t in enumerate(self.marks)
            ),
            "NETWORK": network_text,
            "LAST_PARAMS": last_params,
        }


def _tiles(n: int) -> int:
    return -(-n // 8)


def _pieces(n: int) -> int:
    return -(-n // 16)


def choose(rows: int, items: int, processors: int, teams: Iterable[int] = TEAMS) -> int:
    """Warps a row: those of `teams` with which the last of the rows is done first."""
    tiles = -(-items // 16)

    def turns(team: int) -> float:
        return -(-rows // (processors * TEAMS[team])) * (-(-tiles // team) + 0.5)

    return min(teams, key=turns)


def fits(
    q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor], params: Sequence[Tensor], network: Network
) -> bool:
    """Whether the kernel takes these operands: float32 on Ampere or newer, items and values of at most 64 columns next
    to each other, 1 to 3 hidden layers of at most 96, the layers' parameters by channel, functions that the source
    has."""
    hidden = [b.shape[0] for b in weights[3:-2:2]]
    bounds = [0, *itertools.accumulate(f.params for f in network.layers)]
    channels = [(p, n) for a, b, n in zip(bounds, bounds[1:], (*hidden, 1), strict=False) for p in params[a:b]]
    texts = [f.text for f in (*network.layers, network.score)]
    return (
        q.is_cuda
        and not torch.version.hip
        and architecture(q.device.index) >= 8
        and all(t.dtype == torch.float32 for t in (q, k, v, *weights, *params[: bounds[-1]]))
        and 1 <= len(hidden) <= MAX_HIDDEN
        and max(hidden) <= MAX_COLUMNS
        and max(q.shape[-1], v.shape[-1]) <= MAX_WIDTH
        and min(*q.shape, *v.shape, *hidden) > 0
        and k.stride(-1) == v.stride(-1) == 1
        and all(p.numel() == 1 or tuple(p.shape) == (n,) for p, n in channels)
        and all(p.dtype in MARKS and p.dim() <= q.dim() for p in params[bounds[-1] :])
        and all(cuda_text(text) is not None for text in (*texts, needed(network.score.text) or "h"))
    )


_Plan = Callable[..., Tensor] | None
_plans: dict[Hashable, _Plan] = {}


def target_attention_halves(
    q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor], params: Sequence[Tensor], text: str, softmax: bool,
    team: int = 0,
) -> Tensor | None:  # fmt: skip
    """`recopt::target_attention` in one launch; operands as there. None where they do not fit the kernel (`fits`),
    where their leading dimensions take more than two counters, where it cannot be compiled, or where there are fewer
    rows than processors. `team` forces the warps a row."""
    key = (
        text, softmax, team, q.device.index,
        tuple((t.shape, t.stride(), t.dtype, t.data_ptr() % 16) for t in (q, k, v, *weights, *params)),
    )  # fmt: skip
    plan = planned(_plans, key, lambda: _bind(q, k, v, weights, params, text, softmax, team))
    return None if plan is None else plan(q, k, v, weights, params)


def _bind(
    q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor], params: Sequence[Tensor], text: str, softmax: bool,
    team: int,
) -> _Plan:  # fmt: skip
    network = parse_network(text)
    if not fits(q, k, v, weights, params, network):
        return None
    lead, items, (d, e) = q.shape[:-1], k.shape[-2], (q.shape[-1], v.shape[-1])
    count = sum(f.params for f in network.layers)
    marks = [p.reshape(1) if p.dim() == 0 else p for p in params[count:]]
    counters = two_counters(lead, [(q, 1), (k, 2), (v, 2), *((p, 1) for p in marks)])
    if counters is None:
        return None
    (_, inner), (q_steps, k_steps, v_steps, *of_marks) = counters
    rows, device = math.prod(lead), q.device.index
    if not team and rows < processors(device):
        return None  # Triton's kernel divides their histories: 9 us against 13 for one of 100
    steps = [*k_steps, k.stride(-2), *v_steps, v.stride(-2)]
    aligned = d % 4 == 0 and e % 2 == 0 and not any(n % 4 for n in steps)
    aligned = aligned and not any(t.data_ptr() % 16 for t in (k, v, *weights[:3]) if t.numel())
    candidates = [Unit(
        t, d, e, tuple(b.shape[0] for b in weights[3:-2:2]),
        (bool(weights[0].numel()), bool(weights[1].numel()), bool(weights[2].numel())), text, softmax,
        tuple(MARKS[p.dtype] for p in marks), aligned, common,
    ) for common in ((False, True) if not any(k_steps) else (False,)) for t in TEAMS]  # fmt: skip
    there = shared_bytes(device)
    # A history that is common to all rows and fits comes last, and stays.
    units = {u.team: u for u in candidates if u.shared(items) <= there and team in (0, u.team)}
    if not units:
        return None
    # Histories of their own have lengths of their own: half of what there is room for, if they are drawn evenly.
    ragged = any(any(steps) for steps in of_marks) and needed(network.score.text) is not None
    unit = units[choose(rows, -(-items // 2) if ragged else items, processors(device), units)]
    kernel = cuda_kernel(device, unit.source, "unit", shared_bytes(device))
    if kernel is None:
        return None
    blocks, shared = min(processors(device), -(-rows // unit.teams)), unit.shared(items)
    numbers = [rows, inner, items, *q_steps, q.stride(-1), *steps]
    of_params = [0 if p.numel() == 1 else p.stride(0) for p in params[:count]]
    tails = [p.stride(-1) if p.shape[-1] != 1 else 0 for p in marks]

    def run(q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor], params: Sequence[Tensor]) -> Tensor:
        y = torch.empty((*lead, e), dtype=q.dtype, device=q.device)
        flat = [w.contiguous() if w.numel() else weights[3] for w in weights]
        args: list[Tensor | int] = [q, k, v, y, *numbers, *flat[:3], *flat[3:-2:2], *flat[4::2], flat[-1]]
        for p, step in zip(params[:count], of_params, strict=True):
            args += [p, step]
        for p, (outer, inside), tail in zip(params[count:], of_marks, tails, strict=True):
            args += [p, outer, inside, tail]
        with device_of(q):
            launch(kernel, (blocks, 1, 1), (32 * unit.warps, 1, 1), args, shared)
        return y

    return run
