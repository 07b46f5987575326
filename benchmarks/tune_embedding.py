"""Measure the ways to run ``recopt::embedding_bags`` on this GPU, for the table of choices that it ships.

python benchmarks/tune_embedding.py --measure times.json [--only 500Kx128 ...]       on the GPU
    python benchmarks/tune_embedding.py --write times.json        anywhere -> recopt/kernels/embedding_bags/table.py
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bare_bags import bare_kernel
from embedding import CLASSES, WORKLOADS, Workload, fbgemm, make_ids, make_tables, operands
from timing import copies, device_times
from torch import Tensor

from recopt.kernels.embedding_bags import bytes_moved
from recopt.kernels.embedding_bags.config import Config, Staged
from recopt.kernels.embedding_bags.launch import embedding_bags_triton
from recopt.kernels.embedding_bags.operands import Operands

TABLE = Path(__file__).parent.parent / "recopt" / "kernels" / "embedding_bags" / "table.py"
HINTS = {
    "one": "hot",
    "zipf 1.2": "hot",
    "zipf 0.9": "cold",
    "uniform": "cold",
}  # the classes that embedding_bags.hinted calls so
Shape = tuple[int, int, int, int]
SHAPES = ("32x500Kx128 L150 B2048", "26x1Mx128 L1 B2048", "26x1Mx128 L1 B256", "100x100Kx32 L20 B512",
          "8x1Mx32 L80 B256", "RecFlex A", "RecFlex D", "RecFlex E", "TINY T1000 B1")  # fmt: skip


def largest(w: Workload) -> tuple[int, int]:
    """Columns and ids of the bag that reads most, which the choice goes by."""
    _, dim, length = max(w.tables, key=lambda t: t[1] * t[2])
    return dim, length


def candidates(w: Workload, stored: str) -> list[Config | Staged]:
    """The configurations worth measuring, Triton's and those in CUDA C++."""
    return [*triton_candidates(w, stored), *staged_candidates(w, stored)]


def staged_candidates(w: Workload, stored: str) -> list[Config | Staged]:
    """Warps, quads of rows, bytes of a slice, programs a processor, and for shorter bags how many a warp makes, whether
    launches overlap more and whether rows pass by the L1; few for single rows, and of batches none."""
    dim, length = largest(w)
    if length == 1:
        return [Staged(warps, 2, 512, 1, True, early) for warps in (1, 2, 4, 8) for early in (1, 2)] * (w.batch == 1)
    slices = (256, 512) if stored == "fp32" and dim == 128 else (256,)
    if length >= 100:
        ways = ((4, 2, 8), (4, 2, 4), (4, 3, 6), (4, 4, 1), (4, 5, 1), (1, 3, 16), (2, 3, 8), (2, 6, 1), (1, 6, 1))
        return [Staged(warps, quads, wide, blocks) for warps, quads, blocks in ways for wide in slices]
    ways = ((4, 1, 8), (4, 2, 6), (4, 2, 8), (4, 2, 12), (1, 4, 8), (4, 4, 1), (2, 5, 1), (4, 5, 1), (8, 5, 1))
    overlap = ((False, 1), (True, 1), (True, 2))
    found = [Staged(warps, quads, slices[-1], blocks, *early, bags) for warps, quads, blocks in ways
             for early in overlap for bags in (1, 2, 3)]  # fmt: skip
    ways = ((8, 2, 1), (8, 5, 1), (16, 5, 1), (4, 2, 2))
    more = [Staged(warps, quads, slices[-1], 1, True, 2, bags) for warps, quads, bags in ways]
    return [*found, *more, *(way._replace(pass_by=True) for way in more)]


def triton_candidates(w: Workload, stored: str) -> list[Config | Staged]:
    """Warps, values a thread, columns of a slice, ids at once."""
    dim, length = largest(w)
    first = "evict_first"
    if length == 1:
        sizes = ((4, 16, 8), (4, 16, 16), (8, 16, 8), (2, 16, 16), (2, 16, 8), (4, 16, 4), (1, 16, 16), (4, 16, 32))
        return [Config(*s, 128, evict=first) for s in sizes]
    if stored == "int8":
        shapes = ((1, 32), (1, 64), (2, 64))
        return [Config(*s, 16, dim, n, "" if dim > 32 else first) for s in shapes for n in (8, 32)]
    if dim <= 32:
        once = [Config(*s, 16, 32, n, first) for s, n in (((2, 32), 64), ((4, 16), 64), ((4, 32), 128), ((2, 64), 128))]
        return once + [Config(*s, 16, 32, n, first) for s in ((1, 16), (1, 32), (2, 16)) for n in (4, 8, 16, 32)]
    if stored == "fp16":
        return [Config(*s, 16, columns, n) for columns in (64, 128) for s in ((1, 32), (2, 16)) for n in (8, 16)]
    shapes = ((1, 16), (1, 32), (2, 16), (4, 16))
    found: list[Config | Staged] = [Config(*s, 16, columns, n) for columns in (32, 64) for s in shapes for n in (8, 16)]
    found += [Config(*s, 16, 128, n) for s, n in (((2, 16), 2), ((4, 32), 32), ((2, 16), 16), ((2, 32), 8))]
    found += [Config(4, 16, 16, 64, 32)]
    # What registers, prefetching and hints to the L2 give beside them.
    base = Config(2, 16, 16, 64, 16)
    levers = ({"registers": 40}, {"registers": 64}, {"stages": 3}, {"evict": "evict_last"}, {"evict": first})
    return [*found, *(base._replace(**lever) for lever in levers)]


def _compile(job: tuple[Workload, str, Config | Staged]) -> str:
    w, stored, config = job
    if isinstance(config, Staged):  # compiled where it runs
        return ""
    alike = len(set(w.tables)) == 1
    small = Workload(tuple((1000, dim, length) for _, dim, length in w.tables[: 1 if alike else None]), w.batch)
    try:
        tables, scales, text = operands(small, stored, make_tables(small, "cuda"))
        embedding_bags_triton(
            Operands(tables, [make_ids(small, "uniform", "cuda", 0)], [], [], [], scales), text, config
        )
        torch.cuda.synchronize()
    except Exception as e:  # a configuration that this GPU cannot hold: reported, and left out
        return repr(e)[-300:]
    return ""


def exact(w: Workload, tables: Sequence[Tensor], scales: Sequence[Tensor], ids: Tensor, bags: int = 64) -> Tensor:
    """The first bags in float64."""
    outs, column = [], 0
    for n, (_, _, length) in enumerate(w.tables):
        i = ids[:bags, column : column + length]
        rows = tables[n][i].double()
        if scales:
            rows = rows * scales[n][i][..., :1].double() + scales[n][i][..., 1:].double()
        outs.append(rows.sum(1))
        column += length
    return torch.cat(outs, 1)


def measure(
    path: Path, only: Sequence[str], kinds: Sequence[str], stored: Sequence[str], budget: float, with_peers: bool
) -> None:
    """Time every candidate on every shape and class of ids."""
    begin = time.perf_counter()
    names = [n for n in WORKLOADS if n in SHAPES and (not only or any(o in n for o in only))]
    jobs = [(WORKLOADS[n], s, c) for n in names for s in stored for c in candidates(WORKLOADS[n], s)]
    with ProcessPoolExecutor(14, mp_context=multiprocessing.get_context("spawn")) as executor:
        problems = dict(zip(jobs, executor.map(_compile, jobs), strict=True))
    for job, problem in problems.items():
        if problem:
            print("cannot run", job[1:], problem)
    print(f"{len(jobs)} configurations compiled after {time.perf_counter() - begin:.0f} s")
    results: list[dict[str, Any]] = []
    for name in names:
        w = WORKLOADS[name]
        full = make_tables(w, "cuda")
        dim, length = largest(w)
        for store in stored:
            tables, scales, text = operands(w, store, full)
            peer = fbgemm(w, store) if with_peers else None
            for kind in kinds:
                if time.perf_counter() - begin > budget:
                    print("out of time before", name, store, kind)
                    continue
                count = 3 if length > 100 else copies(w.batch * len(w.tables) * dim * 8, 24)
                requests = [make_ids(w, kind, "cuda", seed) for seed in range(count)]
                unique = bytes_moved(text, tables, [requests[0]], (), True, scales)
                times: dict[str, float] = {}
                if peer is not None:
                    times["fbgemm"] = device_times([peer(i) for i in requests], 8).median
                if store == "fp32" and with_peers and len(set(w.tables)) == 1:
                    found = []
                    for u, warps in ((16, 2), (32, 4), (16, 1), (32, 8)) if length > 1 else ((1, 1), (1, 2)):
                        bind = bare_kernel(full, w, min(u, 1 << (length - 1).bit_length()), warps)
                        found.append(device_times([bind(i) for i in requests], 6).median)
                    times["bare"] = min(found)
                want = exact(w, tables, scales, requests[0])
                ranked = []
                for config in candidates(w, store):
                    if problems[w, store, config]:
                        continue
                    o = [Operands(tables, [i], [], [], [], scales) for i in requests]
                    got = embedding_bags_triton(o[0], text, config)
                    error = float((got[:64] - want).norm() / want.norm())
                    t = device_times([partial(embedding_bags_triton, r, text, config) for r in o], 6).median
                    ranked.append((t, error, config))
                ranked.sort(key=lambda r: r[0])
                results.append({"shape": name, "stored": store, "ids": kind, "unique": unique, "peers": times,
                                "rows": ranked})  # fmt: skip
                print(f"{name} {store} {kind}: bound {unique / 3.03e6:.1f}", {k: round(v, 2) for k, v in times.items()})
                for t, error, c in ranked[:4]:
                    print(f"    {t:9.2f} {error:.0e} {tuple(c)}")
                if max(r[1] for r in ranked) > 1e-3:
                    print("    WRONG:", [r for r in ranked if not r[1] < 1e-3][:3])
            del peer, tables, scales
        del full
        torch.cuda.empty_cache()
    path.write_text(
        json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "results": results})
    )
    print(f"{time.perf_counter() - begin:.0f} s")


def write(paths: Sequence[Path]) -> None:
    """Write the table. A shape of a later file replaces that of an earlier one, and of any that of the present table.

    For each shape the way of the least geometric mean, over classes of ids, of time over the best time: in Triton over
    all classes; in CUDA C++, where that is faster, over the classes of each hint, and without one over all, among those
    that are nowhere slower than the bare kernel.
    """
    from recopt.kernels.embedding_bags.table import CHOICES, MEASURED, STAGED

    choices, staged = dict(CHOICES), {key: dict(ways) for key, ways in STAGED.items()}
    times: dict[Shape, dict[Config | Staged, dict[str, float]]] = {}
    bare: dict[tuple[Shape, str], float] = {}
    for path in paths:
        data = json.loads(path.read_text())
        here: dict[Shape, dict[Config | Staged, dict[str, float]]] = {}
        for r in data["results"]:
            w = WORKLOADS[r["shape"]]
            dim, length = largest(w)
            key = ({"fp32": 4, "fp16": 2, "int8": 1}[r["stored"]], dim, length, w.batch)
            if "bare" in r["peers"]:
                bare[key, r["ids"]] = r["peers"]["bare"]
            for t, error, c in r["rows"]:
                if error < 1e-3:
                    way = Staged(*c) if len(c) < len(Config._fields) else Config(*c)
                    here.setdefault(key, {}).setdefault(way, {})[r["ids"]] = t
        times |= here
    for key, ways in times.items():
        classes = set().union(*ways.values())
        measured = {way: ts for way, ts in ways.items() if set(ts) == classes}
        choices[key] = _fastest([w for w in measured if isinstance(w, Config)], measured, classes)
        staged[key] = {}
        for hint in ("", "hot", "cold"):
            part = {k for k in classes if hint in ("", HINTS.get(k))}
            able = [w for w, ts in measured.items() if hint or all(ts[k] <= bare.get((key, k), ts[k]) for k in classes)]
            way = _fastest(able or list(measured), measured, part)
            if isinstance(way, Staged):
                staged[key][hint] = way
    device = f"{data['device']}, torch {data['torch']}"
    measured_on = MEASURED if device in MEASURED else f"{MEASURED}; {', '.join(map(str, times))}: {device}"
    lines = "".join(f"    {key}: {_text(c)},\n" for key, c in choices.items())
    fast = "".join(f"    {key}: {{{', '.join(f'{h!r}: {_text(c)}' for h, c in ways.items())}}},\n".replace("'", '"')
                   for key, ways in staged.items() if ways)  # fmt: skip
    TABLE.write_text(
        '"""The fastest way for embedding bags on Hopper; data from benchmarks/tune_embedding.py."""\n\n'
        "from .config import Config, Staged\n\n"
        f'MEASURED = "{measured_on}"\n'
        "# Bytes a value is stored in, columns as stored, ids a bag, bags -> the least geometric mean over classes of "
        "ids.\nCHOICES: dict[tuple[int, int, int, int], Config] = {\n" + lines + "}\n"
        "# The same shapes, where the kernel in CUDA C++ is faster in that mean, by the hint of the layout.\n"
        "STAGED: dict[tuple[int, int, int, int], dict[str, Staged]] = {\n" + fast + "}\n"
    )
    print(TABLE.read_text())


def _fastest(
    ways: Sequence[Config | Staged], times: dict[Config | Staged, dict[str, float]], classes: set[str]
) -> Config | Staged:
    return min(ways, key=lambda way: sum(math.log(times[way][k]) for k in classes))


def _text(c: Config | Staged) -> str:
    return f"{type(c).__name__}({', '.join(chr(34) + v + chr(34) if isinstance(v, str) else str(v) for v in c)})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="JSON", default=None)
    parser.add_argument("--write", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--only", nargs="+", default=())
    parser.add_argument("--ids", nargs="+", default=CLASSES)
    parser.add_argument("--stored", nargs="+", default=("fp32",))
    parser.add_argument("--budget", type=float, default=400.0, help="seconds")
    args = parser.parse_args()
    with torch.no_grad():
        if args.measure:
            measure(args.measure, args.only, args.ids, args.stored, args.budget, not args.no_peers)
    if args.write:
        write(args.write)
