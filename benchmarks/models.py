"""The four example models before and after `recopt.optimize`, on both hosts and every target that a CPU runs.

    python benchmarks/models.py --json models.json
    python benchmarks/models.py --model din --batch 256 --full --seconds 3

torch runs the module against the optimized program, ONNX Runtime the exporter's file against the rewritten one, both in
this process, in turns, with the same number of threads. `ratio` is the median over adjacent pairs of after over before.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import onnx
import torch

import recopt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from common import compare, ort_session, run_ort, to_onnx  # type: ignore[import-not-found]  # examples/ is put on the path above

MODELS = ("wdl", "din", "dien", "dlrm")
TARGETS = ("cpu", "portable", "ort-cpu", "recopt")
BATCHES = (1, 16, 256)


def subjects(name: str, full: bool, exporter: str, targets: list[str], spins: bool) -> dict[str, tuple[Any, Any]]:
    """For each target (what to call before, what to call after)."""
    example = importlib.import_module(name)
    module, inputs, shapes = example.model(small=not full), example.inputs(4), example.dynamic_shapes()
    found: dict[str, tuple[Any, Any]] = {}
    if "cpu" in targets:
        found["cpu"] = module, recopt.optimize(module, inputs, dynamic_shapes=shapes)
    onnx_targets = [t for t in targets if t != "cpu"]
    if onnx_targets:
        file = to_onnx(module, inputs, shapes, dynamo=exporter == "dynamo")
        original = ort_session(file, spins)
        for target in onnx_targets:
            rewritten = recopt.optimize(onnx.load_from_string(file), target=target)
            session = ort_session(rewritten.to_proto().SerializeToString(), spins)
            found[target] = (
                lambda *args, run=original: run_ort(run, args),
                lambda *args, run=session: run_ort(run, args),
            )
    return found


def main() -> None:
    """Print the table, and write it where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--target", choices=TARGETS, nargs="+", default=list(TARGETS))
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--exporter", choices=("dynamo", "torchscript"), default="dynamo")
    parser.add_argument("--seconds", type=float, default=0.7, help="of timing for each row")
    parser.add_argument("--full", action="store_true", help="the papers' tables, not small ones")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--spin", action="store_true", help="ONNX Runtime's threads wait awake within a call")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = []
    print(f"{'model':5} {'target':9} {'batch':>5} {'before ms':>10} {'after ms':>10} {'ratio':>6}")
    with torch.no_grad():
        for name in args.model:
            pairs = subjects(name, args.full, args.exporter, args.target, args.spin)
            for target, (before, after) in pairs.items():
                for batch in args.batch:
                    inputs = importlib.import_module(name).inputs(batch)
                    a, b, ratio = compare(before, after, inputs, args.seconds)
                    print(f"{name:5} {target:9} {batch:5} {a * 1e3:10.3f} {b * 1e3:10.3f} {ratio:6.2f}", flush=True)
                    rows.append({"model": name, "target": target, "batch": batch, "before": a, "after": b,
                                 "ratio": ratio})  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
