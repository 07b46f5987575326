"""The exported DLRM on ONNX Runtime's CPU provider: as exported, rewritten for each target, and written by hand.

    python benchmarks/dlrm_onnx.py --batch 256
    python benchmarks/dlrm_onnx.py --hots multi --exporter torchscript --profile

By hand: a Slice of the ids, a Gather and, for bags, a ReduceSum a table; one Concat; the interaction as MatMul and a
Gather of the lower triangle; Gemm and Relu. All in one process, in turns, on one thread; `as exported` over each peer
is the ratio of medians. `--profile` tells where the time of one call goes, by operator.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import recopt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import dlrm  # type: ignore[import-not-found]  # examples/ is put on the path above
from common import seeded, to_onnx  # type: ignore[import-not-found]  # likewise

HOTS = {
    "one": (1,) * 26,
    "multi": (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1),
}


def by_hand(model: Any) -> bytes:
    """The ONNX file of `model` as somebody would write it who knows the runtime."""
    inits: dict[str, np.ndarray[Any, Any]] = {}
    nodes: list[onnx.NodeProto] = []

    def put(name: str, array: Any) -> str:
        inits[name] = array.detach().numpy() if isinstance(array, torch.Tensor) else array
        return name

    def call(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def layers(name: str, x: str, modules: torch.nn.Sequential) -> str:
        for n, layer in enumerate(modules):
            if isinstance(layer, torch.nn.Linear):
                operands = [x, put(f"{name}{n}w", layer.weight.T), put(f"{name}{n}b", layer.bias)]
                x = call("Gemm", operands, f"{name}{n}")
            else:
                x = call(type(layer).__name__.replace("ReLU", "Relu"), [x], f"{name}{n}")
        return x

    x = layers("bottom", "dense", model.bottom)
    one = put("one", np.array([1], np.int64))
    vectors, start = [x], 0
    for n, (table, hots) in enumerate(zip(model.tables, model.hots, strict=True)):
        weight = put(f"table{n}", table.weight)
        if hots == 1:
            column = call("Gather", ["ids", put(f"column{n}", np.array(start, np.int64))], f"ids{n}", axis=1)
            vectors.append(call("Gather", [weight, column], f"bag{n}"))
        else:
            ends = [put(f"{end}{n}", np.array([at], np.int64)) for end, at in (("from", start), ("to", start + hots))]
            column = call("Slice", ["ids", *ends, one], f"ids{n}")
            rows = call("Gather", [weight, column], f"rows{n}")
            vectors.append(call("ReduceSum", [rows, one], f"bag{n}", keepdims=0))
        start += hots
    flat = call("Concat", vectors, "flat", axis=1)
    width, count = int(model.tables[0].weight.shape[1]), len(vectors)
    cube = call("Reshape", [flat, put("cube_shape", np.array([-1, count, width], np.int64))], "cube")
    products = call("MatMul", [cube, call("Transpose", [cube], "turned", perm=[0, 2, 1])], "products")
    square = call("Reshape", [products, put("square", np.array([-1, count * count], np.int64))], "all_pairs")
    pairs = call("Gather", [square, put("lower", model.row * count + model.column)], "pairs", axis=1)
    click = layers("top", call("Concat", [x, pairs], "features", axis=1), model.top)
    call("Squeeze", [click, one], "output")
    infos = [("dense", TensorProto.FLOAT, ["batch", 13]), ("ids", TensorProto.INT64, ["batch", sum(model.hots)])]
    graph = helper.make_graph(
        nodes, "dlrm", [helper.make_tensor_value_info(*info) for info in infos],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch"])],
        [numpy_helper.from_array(a, n) for n, a in inits.items()],
    )  # fmt: skip
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(file.SerializeToString())


def session(file: bytes, threads: int, spins: bool = False, profile: str | None = None) -> Any:
    """An ONNX Runtime session on the CPU, everything that it can do switched on; `spins` as in examples/common.py."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    entry = ("session.force_spinning_stop", "1") if spins else ("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(*entry)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def profiled(
    file: bytes, feeds: list[np.ndarray[Any, Any]], threads: int, calls: int = 30
) -> dict[str, tuple[float, int]]:
    """Microseconds of a call in each operator, and how many nodes it has, as the runtime counts them."""
    with tempfile.TemporaryDirectory() as folder:
        run = session(file, threads, profile=f"{folder}/profile")
        for _ in range(calls):
            run.run(None, {i.name: f for i, f in zip(run.get_inputs(), feeds, strict=True)})
        events = json.loads(Path(run.end_profiling()).read_text(encoding="utf-8"))
    total: Counter[str] = Counter()
    names: dict[str, set[str]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            op = event["args"]["op_name"]
            total[op] += event["dur"]
            names.setdefault(op, set()).add(event["name"])
    return {op: (us / calls, len(names[op])) for op, us in total.most_common()}


def main() -> None:
    """Print the table, and write it where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[256])
    parser.add_argument("--hots", choices=tuple(HOTS), nargs="+", default=list(HOTS), help="lookups of each table")
    parser.add_argument("--exporter", choices=("dynamo", "torchscript"), nargs="+", default=["dynamo", "torchscript"])
    parser.add_argument("--rows", type=int, default=1000, help="of each table")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--spin", action="store_true", help="idle threads wait awake within a call, not asleep")
    parser.add_argument("--profile", action="store_true", help="show the time by operator")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = []
    for hots in args.hots:
        model = seeded(lambda hots=hots: dlrm.Model(args.rows, hots=HOTS[hots]))
        for exporter in args.exporter:
            file = to_onnx(model, inputs(4, args.rows, hots), dlrm.dynamic_shapes(), dynamo=exporter == "dynamo")
            files = {"as exported": file, "by hand": by_hand(model)}
            for target in ("portable", "ort-cpu", "recopt"):
                rewritten = recopt.optimize(onnx.load_from_string(file), target=target)
                files[target] = rewritten.to_proto().SerializeToString()
            for batch in args.batch:
                found += measure(model, files, hots, exporter, batch, args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def inputs(batch: int, rows: int, hots: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(dense [batch, 13] fp32, ids [batch, sum of hots] int64 below rows)."""
    g = torch.Generator().manual_seed(0)
    return torch.rand(batch, dlrm.DENSE, generator=g), torch.randint(0, rows, (batch, sum(HOTS[hots])), generator=g)


def measure(
    model: Any, files: dict[str, bytes], hots: str, exporter: str, batch: int, args: argparse.Namespace
) -> list[dict[str, object]]:
    """Time each of `files` on one batch, in turns, and print it."""
    tensors = inputs(batch, args.rows, hots)
    feeds = [t.numpy() for t in tensors]
    with torch.no_grad():
        expected = model(*tensors)
    peers = {name: session(file, args.threads, args.spin) for name, file in files.items()}
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for n in range(args.rounds + 2):
        for name, peer in peers.items():
            named = {i.name: f for i, f in zip(peer.get_inputs(), feeds, strict=True)}
            start = time.perf_counter()
            result = peer.run(None, named)[0]
            if n >= 2:
                seconds[name].append(time.perf_counter() - start)
            if n == 0:
                torch.testing.assert_close(torch.from_numpy(result), expected)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{hots}-hot, {exporter}, batch {batch}, {args.threads} threads")
    for name, time_ in median.items():
        print(f"  {name:12} {time_ * 1e3:8.3f} ms {median['as exported'] / time_:6.2f}x", flush=True)
        if args.profile and name != "as exported":
            for op, (us, count) in profiled(files[name], feeds, args.threads).items():
                print(f"    {op:22} {count:3} nodes {us:9.1f} us")
    return [
        {"hots": hots, "exporter": exporter, "batch": batch, "threads": args.threads, "peer": name, "seconds": time_}
        for name, time_ in median.items()
    ]


if __name__ == "__main__":
    main()
