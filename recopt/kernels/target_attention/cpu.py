"""recopt::target_attention on a CPU as one call of C, for float32 networks that are worth to call a compiler.

torch's operators read and write every layer of all items; here a block of items goes through all layers, those that a
mask hides left out. The C of `cpu_source` is compiled once for each text (`cpu_math`).
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..cpu_math import compiled, run_rows
from ..cuda_math import cuda_text
from . import needed, parse_network
from .cpu_source import SOURCE

# Multiplications. A row's, from which the compiler is called, which takes two seconds:
WORTH = 100_000
# From which a thread of its own is worth starting: torch's threads spin on the cores for milliseconds after their work.
# With 832 000 a row, after layers on two threads, 16 rows take 1.5 ms by two and 0.6 by one; 256 rows 7.2 and 4.5.
THREAD = 1 << 29
FLOAT = {torch.float32}
BYTES = {torch.float32: 4, torch.bool: 1, torch.uint8: 1}
# Methods by their functions: of 20 operands each takes a third less time so than looked up again and again.
_dtype, _address = operator.attrgetter("dtype"), torch.Tensor.data_ptr
_numel, _is_contiguous = torch.Tensor.numel, torch.Tensor.is_contiguous


def target_attention_cpu(
    q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor], params: Sequence[Tensor], text: str, softmax: bool
) -> Tensor | None:
    """What `target_attention_torch` computes; None where that is to be called."""
    counts, total = _counts(text)
    of_units = params[:total]
    stored = *weights, *of_units
    (*lead, width), items, values = q.shape, k.shape[-2], v.shape[-1]
    units, work, before = [*map(_numel, weights[3::2])], 0, width
    for n in units:
        work, before = work + items * before * n, n
    if work < WORTH or not _plain(q, (k, v, *stored), params) or (module := _compiled(text)) is None:
        return None
    marks = [p if p.dtype in BYTES else p.float() for p in params[total:]]
    if len(lead) != 1 or not q.size(0) == k.size(0) == v.size(0):  # a history may be of several rows
        marks = [p.expand(*lead, items).reshape(-1, items) for p in marks]
        same, q, k = v is k, q.reshape(-1, width), k.expand(*lead, items, width).reshape(-1, items, width)
        v = k if same else v.expand(*lead, items, values).reshape(-1, items, values)
    if not q.stride(-1) == k.stride(-1) == v.stride(-1) == 1:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    if not all(map(_is_contiguous, stored)):
        weights, of_units = [w.contiguous() for w in weights], [p.contiguous() for p in of_units]
    y, rows, at = q.new_empty((*lead, values)), q.size(0), [*map(_address, weights)]
    words = [q.data_ptr(), k.data_ptr(), v.data_ptr(), y.data_ptr(), rows, items, width, values]
    steps = k.stride()[:2]
    words += [q.stride(0), *steps, *(steps if v is k else v.stride()[:2]), softmax, len(marks)]
    words += [place if size else 0 for place, size in zip(at, map(_numel, weights[:3]), strict=False)]
    words += [0, at[3], units[0], counts[0]]
    for n in range(1, len(units)):
        words += (at[2 + 2 * n], at[3 + 2 * n], units[n], counts[n])
    for place, size in zip(map(_address, of_units), map(_numel, of_units), strict=True):
        words += (place, size > 1)
    words += (0, 0)
    for p in marks:
        (several, many), (row, item) = (1, 1, *p.shape)[-2:], (0, 0, *p.stride())[-2:]
        words += (p.data_ptr(), row if several > 1 else 0, item if many > 1 else 0, BYTES[p.dtype])
    run_rows(module, words, rows, -(-THREAD // work))
    return y


def _plain(q: Tensor, others: Sequence[Tensor], params: Sequence[Tensor]) -> bool:
    """Whether operands are float32 on a CPU, but for what says of items; not for a gradient, nor for a trace, which
    would not see C."""
    return (
        q.numel() > 0
        and torch._C._get_tracing_state() is None
        and q.is_cpu
        and {q.dtype, *map(_dtype, others)} == FLOAT
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, *others, *params)))
    )


@functools.lru_cache(maxsize=256)
def _counts(text: str) -> tuple[tuple[int, ...], int]:
    """How many parameters each layer's function has, and all together."""
    counts = tuple(f.params for f in parse_network(text).layers)
    return counts, sum(counts)


@functools.lru_cache(maxsize=256)
def _compiled(text: str) -> Any:
    """The module in C for a text; None where it calls what C does not have, or there is no compiler."""
    network = parse_network(text)
    layers = [cuda_text(f.text) for f in network.layers]
    score, mask = cuda_text(network.score.text), cuda_text(needed(network.score.text) or "h")
    if None in (*layers, score, mask):
        return None
    depth = len(layers)
    functions = [
        f"INLINE float layer_{n}(float h, const float* p, i64 n) {{ return {_apart(layer)}; }}"
        for n, layer in enumerate(layers)
    ]
    functions += [f"#define last layer_{depth - 1}"]
    functions += [f"INLINE float score(float h, const float* p) {{ return {score}; }}"]
    functions += [f"INLINE float needed(float h, const float* p) {{ return {mask}; }}"]
    cases = [f"case {n}: after_{n}(rows, x, h, units, at->layer[{n}].b); break;" for n in range(1, depth - 1)]
    texts = {
        "LAYERS": depth,
        "PARAMS": _counts(text)[1],
        "MARKS": network.score.params,
        "FUNCTIONS": "\n".join(functions),
        "AFTERS": "\n".join(f"AFTER({n})" for n in range(max(depth - 1, 1))),
        "CASES": "\n".join(cases),
    }
    return compiled("recopt_target_attention", SOURCE, texts)


def _apart(text: str | None) -> str:
    """A function's text with its parameters `n` numbers apart."""
    return re.sub(r"\bp\[(\d+)\]", r"p[\1 * n]", text or "")
