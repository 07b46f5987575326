"""recopt::target_attention: in torch against the concat, its kernel in Triton's interpreter, and on a GPU if any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recopt.kernels.cpu_math import MACHINES
from recopt.kernels.leading import two_counters
from recopt.kernels.target_attention import (
    TargetAttentionError,
    cpu,
    halves,
    needed,
    parse_network,
    target_attention,
    target_attention_torch,
)
from recopt.kernels.target_attention.triton import Unit, choose, fits, pieces

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
MASK = "where(p0, h, -inf)"


def unit(rows: int, items: int, d: int, widths: tuple[int, ...]) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """q, k, the layers over [q, k, q - k, q * k] as W, b, W, b, .. and the same with the first one split."""
    q, k = torch.randn(rows, d), torch.randn(rows, items, d)
    layers: list[Tensor] = []
    for a, b in zip((4 * d, *widths), (*widths, 1), strict=True):
        layers += [torch.randn(b, a) / a**0.5, torch.randn(b)]
    wq, wk, wd, wp = layers[0].split(d, 1)
    return q, k, layers, [wq + wd, wk - wd, wp, *layers[1:]]


@pytest.mark.parametrize("softmax", [False, True])
def test_is_the_network_over_the_concat(softmax: bool) -> None:
    q, k, layers, weights = unit(13, 31, 17, (20, 9))
    mask = torch.rand(13, 31) > 0.3
    mask[:, 0] = True
    text = "relu; sigmoid; h; " + (MASK if softmax else "where(p0, h, 0.0)")
    out = target_attention(q, k, k, weights, [mask], text, softmax)
    wide = q[:, None].double().expand(-1, 31, -1)
    items = k.double()
    h = torch.cat([wide, items, wide - items, wide * items], -1)
    for n, f in enumerate((torch.relu, torch.sigmoid, torch.nn.Identity())):
        h = f(F.linear(h, layers[2 * n].double(), layers[2 * n + 1].double()))
    s = h.squeeze(-1)
    s = torch.softmax(s.masked_fill(~mask, -torch.inf), -1) if softmax else torch.where(mask, s, 0.0)
    torch.testing.assert_close(out, torch.einsum("rt,rtd->rd", s, items).float())


@pytest.mark.parametrize(
    ("score", "found"),
    [
        ("where(p0, h, 0.0)", "where(p0, h, 0.0)"),
        ("where(p1 > 2.0, p0, 3.0 * h)", "where(p1 > 2.0, 0.0, h)"),
        ("where(p0, where(p1, -inf, exp(h)), 0.0)", "where(p0, where(p1, 0.0, h), 0.0)"),
        ("where(p0, h, 2.0 * h)", None),
        ("where(h > 0.0, 1.0, 0.0)", None),  # what h is decides
        ("h * p0", None),  # 0 times an infinity is nan
        ("h", None),
        ("", None),
    ],
)
def test_what_of_a_score_needs_the_network(score: str, found: str | None) -> None:
    assert needed(score) == found


def test_operands_that_do_not_fit() -> None:
    q, k, _, weights = unit(3, 5, 4, (6,))
    for bad in ((q[:, :3], k, k), (q, k, k[:, :4]), (q[0], k, k)):
        with pytest.raises(TargetAttentionError):
            target_attention(*bad, weights, [], "relu; h; h", False)
    with pytest.raises(TargetAttentionError):
        target_attention(q, k, k, weights, [], "relu; relu; h; h", False)
    with pytest.raises(TargetAttentionError):
        target_attention(q, k, k, weights, [], "h", False)


@pytest.mark.parametrize("width", [1, 8, 16, 17, 36, 40, 80, 200, 256])
def test_pieces_cover_a_width_once(width: int) -> None:
    cut = pieces(width)
    assert [at for at, _ in cut] == [sum(n for _, n in cut[:i]) for i in range(len(cut))]
    assert all(n in (16, 32) for _, n in cut)
    assert width <= sum(n for _, n in cut) < width + 16


@pytest.mark.parametrize("rows", [1, 7, 132, 256, 2048])
@pytest.mark.parametrize("items", [1, 10, 50, 100, 1000, 5000])
def test_every_part_of_a_history_has_items(rows: int, items: int) -> None:
    found = choose(rows, items, 132)
    blocks = -(-items // found.items)
    each = -(-blocks // found.split)
    assert (found.split - 1) * each < blocks <= found.split * each


def test_what_the_kernel_takes() -> None:
    network = parse_network("prelu(h, p0); h; h")
    q, k, _, weights = unit(3, 5, 4, (6,))
    assert fits(q, k, k, weights, [torch.rand(6)], network)
    assert fits(q, k, k, weights, [torch.rand(1)], network)
    assert not fits(q, k, k, weights, [torch.rand(3, 5, 6)], network)
    assert not fits(q.double(), k.double(), k.double(), [w.double() for w in weights], [torch.rand(6)], network)
    assert not fits(q, k[:, :0], k[:, :0], weights, [torch.rand(6)], network)
    wide = unit(3, 5, 4, (300,))[3]
    assert not fits(q, k, k, wide, [torch.rand(300)], network)
    q, k, _, large = unit(3, 5, 128, (256,))  # 256 KiB
    assert not fits(q, k, k, large, [], parse_network("h; h; h"))
    assert fits(q.half(), k.half(), k.half(), [w.half() for w in large], [], parse_network("h; h; h"))
    q, k, _, weights = unit(3, 5, 4, (6,))
    deep = unit(3, 5, 4, (6, 6, 6, 6))[3]
    assert not fits(q, k, k, deep, [], parse_network("h; h; h; h; h; h"))


def test_the_kernel_on_halves() -> None:
    """Its source for a network, with every word of the template gone; a row's warps, and what they share."""
    text = "h * (p0 + (1.0 - p0) * sigmoid(h * p1)); relu; h * p0; where(p0, h, 0.0)"
    for softmax, team in ((False, 2), (True, 12)):
        made = halves.Unit(team, 64, 64, (80, 40), (True, True, True), text, softmax, ("unsigned char",), True)
        assert made.shared(100) == made.shared(1) <= made._replace(common=True).shared(
            1
        ) <= 227 << 10 and made.source.count("{") == made.source.count("}")
        for word in ("ARGUMENTS", "LAYOUT", "PREPARE", "MARKS\n", "READ_MARKS", "NETWORK", "LAST_PARAMS", "None"):
            assert word not in made.source
    chosen = [halves.choose(rows, items, 132) for rows, items in ((1, 100), (132, 100), (264, 100), (1024, 100))]
    assert chosen == [12, 12, 6, 4] and halves.choose(1024, 100, 132, (12, 6)) == 6
    q, k, _, weights = unit(3, 5, 4, (6,))
    assert not halves.fits(q, k, k, weights, [], parse_network("h; h; h"))  # a CPU's


def test_leading_dimensions_as_two_counters() -> None:
    a, b = torch.empty(2, 3, 4, 5), torch.empty(3, 1, 5)
    assert two_counters((2, 3, 4), [(a, 1)]) == ((1, 24), [(0, 5)])
    assert two_counters((2, 3, 4), [(a, 1), (b, 1)]) is None
    assert two_counters((2, 3), [(a[:, :, 0], 1), (b[:, 0], 1)]) == ((2, 3), [(60, 20), (0, 5)])
    assert two_counters((6, 1), [(torch.empty(6, 1, 7), 1), (torch.empty(1, 1, 7), 1)]) == ((1, 6), [(0, 7), (0, 0)])
    assert two_counters((), [(torch.empty(7), 1)]) == ((1, 1), [(0, 0)])


def run(script: str, device: str) -> None:
    """One of this folder's scripts in a process of its own: the interpreter is chosen when Triton is imported."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    if device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, str(Path(__file__).parent / script), device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cases agree" in done.stdout


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def test_kernel_agrees_with_float64(device: str) -> None:
    """Odd sizes, one to three hidden layers, shared histories, parts, softmax, infinities: see the script."""
    run("target_attention_agrees.py", device)


DEEP = "h * sigmoid(p0 * (h - p1)); prelu(h, p0); h; where(p0, h, 0.5)"
FLAT = "sigmoid(h); where(p1 < p0, h * 3.0, -inf)"


@pytest.mark.parametrize("machine", MACHINES)
def test_one_call_of_c(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks whole and in part, sizes that no vector divides, rows of which all or no item counts, two threads; one
    layer alone, rows of several dimensions, marks of other types, values of their own; one row, with and without Wk."""
    has = torch.backends.cpu.get_cpu_capability()
    if has not in MACHINES or (machine, has) == ("AVX512", "AVX2"):
        pytest.skip(f"the processor is {has}")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: machine)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(cpu, "THREAD", 1)
    cpu._compiled.cache_clear()
    if cpu._compiled(DEEP) is None:
        pytest.skip("no compiler")
    q, k, _, weights = unit(13, 61, 37, (53, 20))
    units = [torch.rand(53), torch.rand(1), torch.rand(20)]
    counts = torch.arange(13) * 5
    k[2, 3, 1] = torch.nan
    v = torch.randn(61, 13, 9).transpose(0, 1)
    deep = (q, k, k, weights, [*units, torch.arange(61) < counts[:, None]], DEEP, False)
    flat_k = k[:12].nan_to_num().view(2, 6, 61, 37)[:, :1]
    flat_weights = [torch.zeros(0), torch.randn(1, 37), torch.randn(1, 37), torch.randn(1)]
    marks = [counts[1:].view(2, 6, 1), torch.arange(61.0)]
    flat = (q[:12].view(2, 6, 37), flat_k, v[:12].view(2, 6, 61, 9), flat_weights, marks, FLAT, True)
    one = (q[3:4], k[3:4], k[3:4], weights, [*units, deep[4][-1][3:4]], DEEP, False)
    without = (*one[:3], [*weights[:1], torch.zeros(0), *weights[2:]], *one[4:])
    for operands in (deep, flat, one, without):
        monkeypatch.setattr(cpu, "WORTH", 0)
        y = cpu.target_attention_cpu(*operands)
        assert y is not None
        tensors = [[t.double() if t.dtype == torch.float32 else t for t in part] for part in operands[3:5]]
        exact = target_attention_torch(*(t.double() for t in operands[:3]), *tensors, *operands[5:])
        torch.testing.assert_close(y, exact.float(), equal_nan=True)
        traced = torch.jit.trace(lambda q, rest=operands[1:]: target_attention(q, *rest), operands[0])
        again = (operands[0] + 1, *operands[1:])
        torch.testing.assert_close(traced(again[0]), target_attention(*again), equal_nan=True)
        monkeypatch.setattr(cpu, "WORTH", 10**9)
        assert cpu.target_attention_cpu(*operands) is None
    cpu._compiled.cache_clear()


@pytest.mark.gpu
@needs_gpu
def test_gpu_error_is_no_larger_than_exact_float32s() -> None:
    from recopt.kernels.target_attention.halves import target_attention_halves
    from recopt.kernels.target_attention.triton import target_attention_triton

    torch.manual_seed(0)
    q, k, _, weights = unit(256, 100, 64, (80, 40))
    q, k, weights = q.cuda(), k.cuda(), [w.cuda() for w in weights]
    text = "sigmoid; sigmoid; h; h"
    wide = target_attention_torch(q.double(), k.double(), k.double(), [w.double() for w in weights], [], text, False)
    theirs = target_attention_torch(q, k, k, weights, [], text, False)
    for ours in (
        target_attention_triton(q, k, k, weights, [], text, False, Unit()),
        target_attention_halves(q, k, k, weights, [], text, False),
    ):
        assert ours is not None
        assert (ours - wide).norm() <= 1.02 * (theirs - wide).norm()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("which", range(3))
def test_gpu_weights_that_begin_between_vectors(which: int) -> None:
    torch.manual_seed(0)
    q, k, _, weights = unit(200, 20, 16, (20,))
    q, k, weights = q.cuda(), k.cuda(), [w.cuda() for w in weights]
    exact = target_attention(q.double(), k.double(), k.double(), [w.double() for w in weights], [], "relu; h; h", False)
    w = weights[which]
    weights[which] = torch.cat([w.new_zeros(1), w.flatten()])[1:].view_as(w)
    assert weights[which].data_ptr() % 16
    torch.testing.assert_close(target_attention(q, k, k, weights, [], "relu; h; h", False), exact.float())
