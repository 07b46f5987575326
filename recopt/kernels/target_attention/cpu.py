"""recopt::target_attention on a CPU as one call of C, for float32 networks that are worth to call a compiler.

torch's operators read and write every layer of all items; here a block of items goes through all layers, those that a
mask hides left out. The C of `cpu_source` is compiled once for each text (`cpu_math`).
"""

from __future__ import annotations

import functools
import re
from array import array
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


def target_attention_cpu(
    q: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor], params: Sequence[Tensor], text: str, softmax: bool
) -> Tensor | None:
    """What `target_attention_torch` computes; None where that is to be called."""
    counts = _counts(text)
    of_units = params[: sum(counts)]
    (*lead, width), items, values = q.shape, k.size(-2), v.size(-1)
    units = [b.size(0) for b in weights[3::2]]
    work = items * sum(a * b for a, b in zip((width, *units), units, strict=False))
    if work < WORTH or not _plain(q, (k, v, *weights, *of_units), params) or (module := _compiled(text)) is None:
        return None
    marks = [p if p.dtype in BYTES else p.float() for p in params[sum(counts) :]]
    if len(lead) != 1:
        marks = [p.expand(*lead, items).reshape(-1, items) for p in marks]
        same, q, k = v is k, q.reshape(-1, width), k.reshape(-1, items, width)
        v = k if same else v.reshape(-1, items, values)
    if not q.stride(-1) == k.stride(-1) == v.stride(-1) == 1:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    weights = [w if w.is_contiguous() else w.contiguous() for w in weights]
    y, rows = q.new_empty((*lead, values)), q.size(0)
    words = [q.data_ptr(), k.data_ptr(), v.data_ptr(), y.data_ptr(), rows, items, width, values]
    words += [q.stride(0), *k.stride()[:2], *v.stride()[:2], softmax, len(marks)]
    words += [w.data_ptr() if w.numel() else 0 for w in weights[:3]]
    words += [0, weights[3].data_ptr(), units[0], counts[0]]
    for w, b, n, count in zip(weights[4::2], weights[5::2], units[1:], counts[1:], strict=True):
        words += (w.data_ptr(), b.data_ptr(), n, count)
    for p in of_units:
        words += (p.data_ptr(), p.stride(0) if p.numel() > 1 else 0)
    words += (0, 0)
    for p in marks:
        sizes, strides = (1, 1, *p.shape)[-2:], (0, 0, *p.stride())[-2:]
        words += (p.data_ptr(), *(step if n > 1 else 0 for n, step in zip(sizes, strides, strict=True)), BYTES[p.dtype])
    run_rows(module, array("q", words), rows, -(-THREAD // work))
    return y


def _plain(q: Tensor, others: Sequence[Tensor], params: Sequence[Tensor]) -> bool:
    """Whether operands are float32 on a CPU, but for what says of items; not for a gradient, nor for a trace, which
    would not see C."""
    return (
        q.numel() > 0
        and torch._C._get_tracing_state() is None
        and q.device.type == "cpu"
        and {t.dtype for t in (q, *others)} == FLOAT
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, *others, *params)))
    )


@functools.lru_cache(maxsize=256)
def _counts(text: str) -> tuple[int, ...]:
    """How many parameters each layer's function has."""
    return tuple(f.params for f in parse_network(text).layers)


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
        "PARAMS": sum(_counts(text)),
        "MARKS": network.score.params,
        "FUNCTIONS": "\n".join(functions),
        "AFTERS": "\n".join(f"AFTER({n})" for n in range(max(depth - 1, 1))),
        "CASES": "\n".join(cases),
    }
    return compiled("recopt_target_attention", SOURCE, texts)


def _apart(text: str | None) -> str:
    """A function's text with its parameters `n` numbers apart."""
    return re.sub(r"\bp\[(\d+)\]", r"p[\1 * n]", text or "")
