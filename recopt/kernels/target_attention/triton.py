"""The launcher of ``recopt::target_attention``'s Triton kernel: what fits it, and how it is cut into programs."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..counters import counters
from ..devices import architecture, device_of, processors, shared_bytes
from ..epilogue import compile_epilogue
from ..launching import TritonLaunch, planned
from ..leading import two_counters
from ..linear import HALF
from . import Network, needed, parse_network

MAX_WIDTH = 256
MAX_HIDDEN = 3
HOPPER_BYTES = 227 << 10  # of a processor's shared memory
OTHER_BYTES = 27 << 10  # of it that the layers' matrices leave for the history and for moves between layouts


class Unit(NamedTuple):
    """How the kernel runs: items a block, warps a program, parts of a history."""

    items: int = 64
    warps: int = 4
    split: int = 1


def pieces(width: int) -> tuple[tuple[int, int], ...]:
    """(first column, columns) that a width is cut into, each of 32 but the last of 16 if that does: 80 is 32 + 32 + 16.

    Wider ones hold both halves of a split operand in more registers than there are.
    """
    wide, rest = divmod(width, 32)
    last = [] if not rest else [(32 * wide, 16 if rest <= 16 else 32)]
    return (*((32 * i, 32) for i in range(wide)), *last)


@functools.lru_cache(maxsize=4096)
def choose(rows: int, items: int, processors: int) -> Unit:
    """The block and the parts for `rows` histories of `items`, so that a few long histories fill the device too.

    Measured on an H100 with 64-80-40-1 and Dice in us, 64 items by 4 warps against 32 by 2: 1024 rows of 100 76 and 93,
    256 of 100 21 and 28, 256 of 1000 137 and 206, 1024 of 50 47 and 50. One row of 100 takes 10 in 4 parts of 32 items,
    12 in 2 of 64 and 16 in one part; one of 1000 takes 11 in 32 parts, 12 in 16 of 64.
    """
    if rows * -(-items // 64) <= processors:
        blocks = -(-items // 32)
        parts = min(blocks, processors // rows, 64)
        return Unit(32, 4, -(-blocks // -(-blocks // parts)))
    return Unit(32, 2) if items <= 32 else Unit(64, 4)


def fits(
    q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor], params: Sequence[Tensor], network: Network
) -> bool:
    """Whether the kernel takes these operands: on Ampere or newer, float32 or half precision of one dtype, at most 3
    hidden layers, widths, D and E of at most 256, matrices that a processor's shared memory holds (both halves in
    float32: 64-80-40 is 70 KiB, 128-128-64 192), something to read of each item, the layers' parameters by channel."""
    hidden = len(network.layers) - 1
    if q.is_cuda and architecture(q.device.index) < 8:  # no TF32
        return False
    if q.dtype not in (torch.float32, *HALF) or any(t.dtype != q.dtype for t in (k, v, *weights)):
        return False
    if not 1 <= hidden <= MAX_HIDDEN or max(q.shape[-1], v.shape[-1]) > MAX_WIDTH or min(*q.shape, *v.shape) == 0:
        return False
    if not weights[1].numel() and not weights[2].numel():
        return False
    biases = weights[3::2]
    at = 0
    for bias, f in zip(biases, network.layers, strict=True):
        width = bias.shape[0]
        if width > MAX_WIDTH or any(p.numel() != 1 and tuple(p.shape) != (width,) for p in params[at : at + f.params]):
            return False
        at += f.params
    if any(p.dtype == torch.float64 or p.dim() > q.dim() for p in params):
        return False
    padded = [sum(pieces(n)[-1]) for n in (q.shape[-1], *(b.shape[0] for b in biases[:-1]))]
    held = sum(a * b for a, b in itertools.pairwise(padded)) * (8 if q.dtype == torch.float32 else 2)
    there = shared_bytes(q.device.index) if q.is_cuda else HOPPER_BYTES
    return held + OTHER_BYTES <= there


_Plan = Callable[..., Tensor] | None
_plans: dict[Hashable, _Plan] = {}


def target_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor], params: Sequence[Tensor], text: str, softmax: bool,
    unit: Unit | None = None,
) -> Tensor | None:  # fmt: skip
    """`recopt::target_attention` in one launch; operands as there. None where they do not fit the kernel (`fits`), or
    where their leading dimensions take more than two counters.

    ``unit`` forces a configuration. The first call at new shapes compiles or binds the kernel; later ones only launch
    it. Operands that share storage with a row for all (a step of 0) are read in place.
    """
    key = (
        text, softmax, unit, q.device.index,
        tuple((t.shape, t.stride(), t.dtype, t.data_ptr() % 16) for t in (q, k, v, *weights, *params)),
    )  # fmt: skip
    plan = planned(_plans, key, lambda: _bind(q, k, v, weights, params, text, softmax, unit))
    if plan is None:
        return None
    with device_of(q):
        return plan(q, k, v, weights, params)


def _bind(
    q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor], params: Sequence[Tensor], text: str, softmax: bool,
    unit: Unit | None,
) -> _Plan:  # fmt: skip
    from .kernels import unit_kernel

    network = parse_network(text)
    if not fits(q, k, v, weights, params, network):
        return None
    lead, (items, d), e = q.shape[:-1], k.shape[-2:], v.shape[-1]
    layers = len(network.layers)
    bounds = [0, *itertools.accumulate(f.params for f in network.layers)]
    marks = [p.reshape(1) if p.dim() == 0 else p for p in params[bounds[-1] :]]
    found = two_counters(lead, [(q, 1), (k, 2), (v, 2), *((p, 1) for p in marks)])
    if found is None:
        return None
    (_, inner), (q_steps, k_steps, v_steps, *of_marks) = found
    rows = math.prod(lead)
    unit = unit or choose(rows, items, processors(q.device.index) if q.is_cuda else 1)
    layer_params = [params[a:b] for a, b in itertools.pairwise(bounds)]
    steps = tuple(tuple(0 if p.numel() == 1 else p.stride(0) for p in layer) for layer in layer_params)
    mark_steps = tuple((*s, p.stride(-1) if p.shape[-1] != 1 else 0) for s, p in zip(of_marks, marks, strict=True))
    widths = (d, *(b.shape[0] for b in weights[3 : 2 * layers + 1 : 2]))
    functions = [f.triton_function() for f in network.layers]
    hidden = (*functions[:-1], *[None] * (MAX_HIDDEN - layers + 1))
    whole = q.dtype == torch.float32
    wide = max(16, 1 << (e - 1).bit_length())
    mask = needed(network.score.text)
    constants = (
        (*q_steps, q.stride(-1)), (*k_steps, k.stride(-2), k.stride(-1)), (*v_steps, v.stride(-2), v.stride(-1)),
        inner, items, e, widths, tuple(pieces(w) for w in widths), *hidden, functions[-1],
        network.score.triton_function(), mask and compile_epilogue(mask).triton_function(), softmax, whole,
        unit.items, wide, unit.split,
    )  # fmt: skip
    launch = TritonLaunch(unit_kernel, (rows, unit.split, 1), num_warps=unit.warps, num_stages=1)
    scratch = rows * unit.split * (wide + 2) if unit.split > 1 else 0

    def run(q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor], params: Sequence[Tensor]) -> Tensor:
        out = torch.empty((*lead, e), dtype=q.dtype, device=q.device)
        flat = [w.contiguous() if w.numel() else None for w in weights]
        partial = locks = None
        if scratch:
            partial = torch.empty(scratch, dtype=torch.float32, device=q.device)
            locks = counters(q.device, rows)
        layer_params = tuple(tuple(map(plain, params[a:b])) for a, b in itertools.pairwise(bounds))
        launch(
            q, k, v, out, partial, locks, *flat[:3], tuple(flat[4::2]), tuple(flat[3::2]), layer_params, steps,
            tuple(map(plain, params[bounds[-1] :])), mark_steps, *constants,
        )  # fmt: skip
        return out

    return run


def plain(p: Tensor) -> Tensor:
    """A parameter as the kernel reads it: a truth value as a byte."""
    return p.view(torch.uint8) if p.dtype == torch.bool else p
