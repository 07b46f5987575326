"""What each lever of the MICRO 2024 paper on embedding bags gives here, on its workload: 500 000 x 128 fp32, 150 ids.

    python benchmarks/embedding_levers.py [--tables 32] [--json levers.json]        on a GPU

Its classes of reuse by the share of distinct ids in a batch, as power laws over the rows that have that share: low 64 %
(exponent 0.55), medium 26 % (1.0), high (1.15, as the paper has it); random ids and a single row beside them. A lever
is moved alone from the first line of its group; device time through CUDA graphs, requests rotate, us.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from embedding import copy_bandwidth, eager, layout, make_ids, make_tables, same
from timing import device_times

from recopt.kernels.embedding_bags import bytes_moved, hinted
from recopt.kernels.embedding_bags.config import Config, Staged
from recopt.kernels.embedding_bags.launch import embedding_bags_triton
from recopt.kernels.embedding_bags.operands import Operands

CLASSES = {"one": "one", "high": "zipf 1.15", "medium": "zipf 1.0", "low": "zipf 0.55", "random": "uniform"}
# One program a bag in Triton, and what registers, prefetching and the L2's hints change; then CUDA C++, where rows that
# a thread has under way are the distance in registers, and programs that a processor must hold cap the registers.
TRITON = Config(1, 32, 16, 128, 8)
STAGED = Staged(4, 1, 512, 1)
VARIANTS: dict[str, Config | Staged | None] = {
    "Triton": TRITON,
    "prefetched 2 ahead": TRITON._replace(stages=2),
    "prefetched 4 ahead": TRITON._replace(stages=4),
    "at most 40 registers": TRITON._replace(registers=40),
    "at most 64 registers": TRITON._replace(registers=64),
    "rows kept in the L2": TRITON._replace(evict="evict_last"),
    "rows leave the L2 first": TRITON._replace(evict="evict_first"),
    "slices of 64 columns": TRITON._replace(columns=64),
    "slices of 32 columns": TRITON._replace(columns=32),
    "CUDA C++, 4 rows a thread": STAGED,
    "8 rows a thread": STAGED._replace(quads=2),
    "16 rows a thread": STAGED._replace(quads=4),
    "24 rows a thread": STAGED._replace(quads=6),
    "8 rows, 8 programs a processor": STAGED._replace(quads=2, blocks=8),
    "8 rows, slices of 256 bytes": STAGED._replace(quads=2, slice=256),
    "the choice that is shipped": None,
}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=32)
    parser.add_argument("--only", nargs="+", default=tuple(CLASSES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    w = same(args.tables, 500_000, 128, 150, 2048)
    tables, plain, bandwidth = make_tables(w, "cuda"), layout(w), copy_bandwidth()
    rows: dict[str, dict[str, float]] = {name: {} for name in ("bound", "eager", *VARIANTS)}
    for name in args.only:
        requests = [make_ids(w, CLASSES[name], "cuda", seed) for seed in range(3)]
        rows["bound"][name] = bytes_moved(plain, tables, requests[:1], unique=True) / bandwidth
        rows["eager"][name] = device_times([partial(eager, w, tables, i) for i in requests], 6).median
        want, hint = eager(w, tables, requests[0]), hinted(plain, requests[:1])
        for variant, config in VARIANTS.items():
            text = plain if config else hint
            calls = [partial(embedding_bags_triton, Operands(tables, [i], [], [], [], []), text, config)
                     for i in requests]  # fmt: skip
            torch.testing.assert_close(calls[0](), want, rtol=1e-4, atol=1e-4)  # two sums of 150 in float32
            rows[variant][name] = device_times(calls, 6).median
        torch.cuda.empty_cache()
    print(f"{torch.cuda.get_device_name()}, {args.tables} tables, copy {bandwidth / 1e3:.0f} GB/s")
    print(f"{'':32s}" + "".join(f"{name:>9s}" for name in args.only))
    for variant, times in rows.items():
        print(f"{variant:32s}" + "".join(f"{times[name]:9.0f}" for name in args.only))
    if args.json:
        args.json.write_text(json.dumps({"device": torch.cuda.get_device_name(), "us": rows}))


if __name__ == "__main__":
    with torch.no_grad():
        main()
