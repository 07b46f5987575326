"""Measure every way to run a linear on this GPU and write the table that ``recopt::linear`` ships.

    python benchmarks/tune_linear.py --measure times.json     on the GPU
    python benchmarks/tune_linear.py --write times.json       anywhere: times.json -> recopt/kernels/linear/table.py

``--kinds Panel 'Group.*split=[2-9]'`` measures the configurations alone that match one of these, against the table's
choice, largest shapes' neighbours first; shapes that were not measured keep their choice. A kernel counts only if its
error against float64 is no larger than that of cuBLAS's exact float32.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import copies, device_times
from torch import Tensor

from recopt.kernels.linear import choose_config, linear_torch, linear_triton
from recopt.kernels.linear import table as linear_table
from recopt.kernels.linear.config import Config, Group, Hopper, Panel, Reduce, Tile

M = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 16384)
N = (1, 16, 64, 128, 256, 512, 1024, 2048)
K = (16, 64, 128, 256, 512, 1024, 2048)
TABLE = Path(__file__).parent.parent / "recopt" / "kernels" / "linear" / "table.py"
# How much faster than the table's choice another way must be to take its place: times of one choice differ by chance.
GAIN = 1.03
# The error that a kernel may have, as a multiple of cuBLAS's on the same operands: two sums differ by chance.
TOLERANCE = 1.02
# Below this error a result is as exact as float32 can say it.
HALF_ULP = 2.0**-24
Sets = list[tuple[Tensor, Tensor, Tensor]]

# bm, bn, bk, warps, stages, swap, the most parts of K
_TILES = (
    (128, 128, 32, 8, 3, False, 1), (128, 128, 64, 8, 3, False, 1), (256, 64, 32, 8, 3, False, 1),
    (128, 64, 32, 4, 3, False, 2), (64, 128, 32, 4, 3, False, 2), (128, 32, 32, 4, 3, False, 1),
    (64, 64, 32, 4, 3, False, 8), (64, 64, 64, 4, 3, False, 4), (64, 32, 32, 4, 4, False, 8),
    (64, 32, 64, 4, 4, False, 8), (64, 32, 128, 4, 3, False, 4), (64, 16, 64, 4, 4, False, 8),
    (64, 16, 32, 4, 3, False, 1), (128, 16, 32, 4, 3, False, 1), (128, 16, 64, 4, 3, False, 1),
    (8, 64, 64, 4, 4, True, 16), (8, 64, 128, 4, 3, True, 8), (16, 64, 64, 4, 4, True, 16),
    (16, 64, 128, 4, 3, True, 8), (16, 128, 64, 4, 4, True, 8), (32, 64, 64, 4, 3, True, 16),
    (32, 64, 32, 4, 4, True, 8), (32, 64, 128, 4, 3, True, 4), (32, 128, 32, 4, 3, True, 1),
    (32, 32, 64, 4, 3, False, 8), (32, 32, 128, 4, 2, False, 4), (16, 32, 128, 4, 3, False, 8),
    (16, 32, 64, 2, 4, False, 4), (16, 16, 128, 2, 3, False, 8), (32, 16, 128, 4, 3, False, 8),
    (32, 64, 16, 4, 3, True, 1), (64, 64, 16, 4, 3, False, 1), (128, 64, 16, 4, 3, False, 1),
    (32, 32, 16, 2, 3, False, 1), (16, 16, 16, 1, 3, False, 1),
)  # fmt: skip
_REDUCES = (
    (1, 1, 256, 1), (1, 1, 512, 1), (1, 1, 512, 2), (1, 1, 1024, 1), (1, 1, 1024, 2), (1, 1, 1024, 4), (1, 1, 2048, 4),
    (1, 1, 2048, 8), (1, 2, 256, 1), (1, 2, 512, 1), (1, 2, 512, 4), (1, 2, 1024, 4), (1, 4, 128, 1), (1, 4, 256, 1),
    (1, 4, 256, 4), (1, 4, 512, 4), (1, 8, 64, 1), (1, 8, 256, 4), (1, 16, 16, 1), (1, 16, 64, 4), (1, 64, 16, 4),
    (4, 1, 256, 1), (4, 1, 512, 1), (4, 1, 512, 4), (4, 1, 1024, 4), (4, 2, 128, 1), (4, 2, 256, 1), (4, 2, 256, 4),
    (4, 2, 512, 4), (4, 4, 64, 1), (4, 4, 128, 4), (4, 4, 256, 4), (4, 8, 128, 4), (4, 16, 16, 1), (4, 32, 16, 4),
    (8, 1, 256, 2), (8, 2, 256, 4), (8, 4, 128, 4), (16, 1, 128, 2), (16, 1, 256, 4), (16, 1, 64, 2), (16, 4, 128, 8),
    (16, 16, 16, 4), (32, 1, 64, 2), (64, 1, 16, 2),
)  # fmt: skip


# bm, bn, bk, stages, parts, rows, columns
_PANELS = (
    (16, 16, 32, 2, 4, 1, 1), (16, 32, 32, 1, 8, 1, 1), (32, 16, 32, 1, 8, 1, 1), (32, 32, 32, 1, 8, 1, 1),
    (16, 16, 32, 1, 4, 1, 1), (16, 16, 32, 1, 2, 1, 1), (32, 32, 32, 2, 2, 1, 1), (32, 32, 32, 1, 2, 2, 2),
    (16, 16, 32, 2, 8, 1, 1), (32, 32, 16, 1, 1, 2, 2),
)  # fmt: skip
# bn, stages, registers
_GROUPS = ((16, 4, 80), (32, 4, 80), (32, 2, 80), (64, 4, 168), (128, 2, 168), (128, 3, 168))
_HOPPERS = ((128, 32, 4), (64, 32, 3), (64, 32, 4), (64, 32, 6))


def candidates(m: int, n: int, k: int) -> list[Config]:
    """The configurations worth measuring for x [m, k], w [n, k]."""
    found: list[Config] = []
    for bm, bn, bk, warps, stages, swap, most in _TILES:
        tiles = -(-m // bm) * -(-n // bn)
        if (bm > max(16, m) or bn > max(16, n)) or bk > max(16, k):
            continue
        if (tiles > 2000 and bm * bn < 4096 and k > 64) or (tiles < 24 and bm * bn > 4096):
            continue
        for split in (1, 2, 4, 8, 16):
            if split > most or (split > 1 and (split * bk * 2 > k or tiles * split > 600)):
                continue
            if split == 1 and tiles < 16 and k >= 1024 and most > 1:
                continue
            # bf16x6 is the more accurate one: for few rows or columns, where cuBLAS splits K, and for short sums.
            for precision in ("split", "bf16x6") if k <= 256 or min(m, n) <= 64 else ("split",):
                found.append(Tile(bm, bn, bk, warps, stages, split, swap, precision))
    for bm, bn, bk, stages, parts, *warps in _PANELS:
        tiles = -(-m // bm) * -(-n // bn)
        if m >= 16 and bn <= n and bk * parts <= max(k, bk) and tiles <= 600 and m * n * k <= 1 << 28:
            found.append(Panel(bm, bn, bk, stages, parts, *warps, early=True))
    for bn, stages, registers in _GROUPS:
        tiles = -(-m // 64) * -(-n // bn)
        # Processors of this kernel: 80 registers leave room for two programs on each of 132.
        room = 132 if registers > 80 else 264
        for split in (1, 2, 3, 4, 8):
            divided = k >= 128 * split and tiles * split <= 1.5 * room
            if m >= 64 and bn <= n and k >= 64 and 32 <= tiles * split <= 600 and (split == 1 or divided):
                found.append(Group(bn, stages, registers, True, split))
    for bn, bk, stages in _HOPPERS:
        if m >= 128 and bn <= n and k >= 64 and -(-m // 128) * -(-n // bn) >= 16:
            found.append(Hopper(bn, bk, stages, True))
    for bm, bn, bk, threads in _REDUCES:
        programs = -(-m // bm) * -(-n // bn)
        if bk > k or bm > m or bn > max(4, n) or programs > 20000 or programs * k > 2 << 22 or m * n * k > 1 << 27:
            continue
        found.append(Reduce(bm, bn, bk, threads, True))
    return found


def make(m: int, n: int, k: int, count: int = 1) -> Sets:
    """``count`` sets of x [m, k], w [n, k], b [n] on the GPU, outputs near 1."""

    def one() -> tuple[Tensor, Tensor, Tensor]:
        x, w, b = (torch.randn(s, device="cuda") for s in ((m, k), (n, k), (n,)))
        return x, w / k**0.5, b

    return [one() for _ in range(count)]


def error(run: Callable[..., Tensor], samples: Sequence[Sets]) -> list[float]:
    """Root mean square errors of ``run`` against float64 over each group of sets, relative to the output, with ReLU."""
    errors = []
    for group in samples:
        wrong = size = 0.0
        for x, w, b in group:
            exact = torch.relu(torch.nn.functional.linear(x.double(), w.double(), b.double()))
            wrong += float((run(x, w, b) - exact).square().sum())
            size += float(exact.square().sum())
        errors.append(math.sqrt(wrong / size))
    return errors


def _compile(config: Config, kinds: Sequence[str]) -> str:
    narrow = not kinds and any(config in candidates(m, 1, k) for m in M for k in K)
    with torch.no_grad():
        try:
            for n in (256, 1) if narrow else (256,):
                (s,) = make(256, n, 2048)
                for variant in variants(config):
                    linear_triton(*s, "relu", (), variant)
            torch.cuda.synchronize()
        except Exception as e:  # a configuration that this GPU cannot hold: reported, and left out
            return repr(e)[:200]
    return ""


def _run(config: Config, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return linear_triton(x, w, b, "relu", (), config)


def choices(m: int, n: int, k: int, kinds: Sequence[str]) -> list[Config]:
    """The candidates; of some kinds only, what the table chooses as well."""
    if not kinds:
        return candidates(m, n, k)
    found = [c for c in candidates(m, n, k) if any(re.match(kind, str(c)) for kind in kinds)]
    present = choose_config(m, n, k)
    return found if not found or present is None or present in found else [*found, present]


def variants(config: Config) -> list[Config]:
    """Launched early and not, where that is open: the Gluon kernels were never slower early."""
    both = isinstance(config, Tile | Reduce)
    return [config._replace(early=e) for e in (False, True)] if both else [config]


def measure(path: Path, budget_s: float, kinds: Sequence[str], now: str = "") -> None:
    """Time the candidates of every shape for at most ``budget_s`` seconds and write them as JSON."""
    begin = time.perf_counter()
    # Powers of four and the largest first: what is left out when time ends has a measured neighbour.
    shapes = sorted(((m, n, k) for k in K for n in N for m in M), key=lambda s: (len({128, 512} & {*s}), s[0] % 7))
    if kinds:
        # First where exact float32 leaves the tensor cores idle, then what is near.
        shapes.sort(key=lambda s: sum(max(0.0, math.log(256 / v)) for v in s) + max(0.0, math.log(s[0] / 2048)))
        shapes = [s for s in shapes if choices(*s, kinds)]
    shapes = [s for s in shapes if str(choose_config(*s)).startswith(now)]
    pool = sorted({c for s in shapes for c in choices(*s, kinds)}, key=str)
    with ProcessPoolExecutor(14, mp_context=multiprocessing.get_context("spawn")) as executor:
        problems = dict(zip(pool, executor.map(partial(_compile, kinds=kinds), pool), strict=True))
    for config, problem in problems.items():
        if problem:
            print("cannot run", config, problem)
    print(f"{len(pool)} configurations compiled after {time.perf_counter() - begin:.0f} s, {len(shapes)} shapes")
    results: list[dict[str, Any]] = []
    for m, n, k in shapes:
        if time.perf_counter() - begin > budget_s:
            print(f"out of time with {len(shapes) - len(results)} shapes left")
            break
        sets = make(m, n, k, copies(4 * (m * k + n * k + m * n), 24))
        # Rows do not depend on each other, so the error needs few, but of a few outputs chance would decide.
        some = [(x[:512], w, b) for x, w, b in sets[: max(1, 8192 // (m * n))]]
        # Non-negative operands show what has a bias.
        samples = [some, [(torch.rand_like(x), torch.rand_like(w), b) for x, w, b in some]]

        def timed(config: Config | None, count: int, sets: Sets = sets) -> float:
            if config is None:
                return device_times([partial(linear_torch, *s, "relu") for s in sets], count, 150).median
            calls = [partial(linear_triton, *s, "relu", (), config) for s in sets]
            return device_times(calls, count, 20.0 * count).median

        limits = error(partial(linear_torch, epilogue="relu"), samples)
        rows: list[tuple[float, float, Any]] = [(timed(None, 6), 1.0, None)]
        ranked = []
        for config in choices(m, n, k, kinds):
            if problems[config]:
                continue
            found = error(partial(_run, config), samples)
            worst = max(e / max(limit, HALF_ULP) for e, limit in zip(found, limits, strict=True))
            ranked.append((timed(config, 4), worst, config))
        ranked.sort(key=lambda r: r[0])
        exact = [r for r in ranked if r[1] <= TOLERANCE][:3]
        both = [(worst, v) for _, worst, c in exact for v in variants(c)]
        again = [(timed(c, 10), worst, c) for worst, c in both]
        for t, worst, c in [*again, *ranked[len(exact) :]]:
            rows.append((t, worst, [type(c).__name__, *c]))
        results.append({"shape": (m, n, k), "rows": sorted(rows, key=lambda r: r[0])})
    head = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "kinds": list(kinds)}
    path.write_text(json.dumps(head | {"results": results}))
    print(f"{len(results)} shapes in {time.perf_counter() - begin:.0f} s")


def best(rows: Sequence[Sequence[Any]], present: list[Any] | None, anywhere: bool = False) -> list[Any] | None:
    """The fastest way whose error is no larger than exact float32's; ``anywhere``: for any strides of x and w.

    ``present`` stays where it was measured as well and is as fast to within ``GAIN``.
    """
    exact = [(t, c) for t, worst, c in rows if worst <= TOLERANCE]
    time_us, choice = next((t, c) for t, c in exact if not anywhere or c is None or c[0] in ("Tile", "Reduce"))
    stays = any(_text(c) == _text(present) and t <= GAIN * time_us for t, c in exact)
    return present if stays else choice


def write(paths: Sequence[Path]) -> None:
    """Write the table from measurements; shapes in later files replace those in earlier ones and in the table."""
    rows: dict[tuple[int, int, int], list[list[Any] | None]] = {}
    for m, n, k in ((m, n, k) for k in K for n in N for m in M):
        present = [choose_config(m, n, k, wide=wide) for wide in (True, False)]
        rows[m, n, k] = [p and [type(p).__name__, *p] for p in present]
    devices = list(linear_table.MEASURED)
    for path in paths:
        data = json.loads(path.read_text())
        kinds = ", ".join(data["kinds"]) or "all kernels"
        devices.append(f"{data['device']}, torch {data['torch']}: {kinds} at {len(data['results'])} shapes")
        for r in data["results"]:
            m, n, k = r["shape"]
            wide, narrow = rows[m, n, k]
            rows[m, n, k] = [best(r["rows"], wide), narrow if data["kinds"] else best(r["rows"], narrow, True)]
    texts = {s: [_text(c) for c in both] for s, both in rows.items()}
    configs = list(dict.fromkeys(["None", *(t for both in texts.values() for t in both)]))
    tables = [
        "".join(
            f"    ({i}, {j}): ({', '.join(str(configs.index(texts[m, n, k][which])) for m in M)}),\n"
            for i, n in enumerate(N)
            for j, k in enumerate(K)
        )
        for which in (0, 1)
    ]
    listed = "".join(f"    {c},\n" for c in configs)
    cards = "".join(f'    "{d}",\n' for d in devices)
    TABLE.write_text(
        '"""The fastest way for a linear x [M, K] @ w [N, K].T on Hopper; data from benchmarks/tune_linear.py.\n\n'
        "Row (i, j) holds, for N[i] and K[j], an index into CONFIGS for every M; None is cuBLASLt.\n"
        'NARROW is for operands whose rows cannot be copied 16 bytes at a time.\n"""\n\n'
        "from .config import Config, Group, Hopper, Panel, Reduce, Tile\n\n"
        f"# What was measured where; the later replaced the earlier.\nMEASURED = (\n{cards})\n"
        f"M = {M}\nN = {N}\nK = {K}\n"
        f"CONFIGS: tuple[Config | None, ...] = (\n{listed})\n"
        f"ROWS: dict[tuple[int, int], tuple[int, ...]] = {{\n{tables[0]}}}\n"
        f"NARROW: dict[tuple[int, int], tuple[int, ...]] = {{\n{tables[1]}}}\n"
    )
    print(f"{TABLE}: {len(configs)} configurations")


def _text(choice: list[Any] | None) -> str:
    if choice is None:
        return "None"
    kinds: dict[str, Callable[..., Config]] = {k.__name__: k for k in (Tile, Reduce, Panel, Group, Hopper)}
    # Through the type: older measurements may lack fields that came later.
    literals = (f'"{v}"' if isinstance(v, str) else repr(v) for v in kinds[choice[0]](*choice[1:]))
    return f"{choice[0]}({', '.join(literals)})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="JSON")
    parser.add_argument("--write", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--kinds", nargs="+", default=(), metavar="REGEX", help="only configurations that begin so")
    parser.add_argument("--now", default="", metavar="TEXT", help="only where the table's choice begins like this")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds of measuring")
    args = parser.parse_args()
    if args.measure:
        with torch.no_grad():
            measure(args.measure, args.budget, args.kinds, args.now)
    if args.write:
        write(args.write)
