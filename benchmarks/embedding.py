"""recopt::embedding_bags against eager torch, Inductor, FBGEMM and a bare Triton kernel, in one process.

    python benchmarks/embedding.py --json embedding.json        on a GPU: device times through CUDA graphs, wall times
    python benchmarks/embedding.py --device cpu                 wall times on this machine's CPU

Requests rotate, up to 24, through more memory than the L2 holds: a graph of few launches shows its own start as theirs.
Gathered bytes count every row that an id names, unique bytes each row of a table once; ids and the result are in both.
FBGEMM (fbgemm_gpu's inference TBE, without its check of ids)
and ONNX Runtime take part where they can be imported. Ours checks its ids, and its layout holds the hint that
``hinted`` finds in the first request of a class; "no hint" is without.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timing import copies, device_times, graph_of, host_times, turns
from torch import Tensor

from recopt.kernels.embedding_bags import bytes_moved, embedding_bags, hinted
from recopt.kernels.replay import Replay


class Workload(NamedTuple):
    """Tables as (rows, columns, ids a bag), and the batch."""

    tables: tuple[tuple[int, int, int], ...]
    batch: int


def same(count: int, rows: int, dim: int, length: int, batch: int) -> Workload:
    """``count`` tables alike."""
    return Workload(((rows, dim, length),) * count, batch)


def recflex(pools: Sequence[tuple[int, int]], dims: Sequence[int], rows: int = 10_000, batch: int = 256) -> Workload:
    """Many small tables of mixed widths: ``pools`` as (how many, ids a bag)."""
    lengths = [length for count, length in pools for _ in range(count)]
    return Workload(tuple((rows, dims[n % len(dims)], length) for n, length in enumerate(lengths)), batch)


MIXED = (4, 8, 16, 32, 64, 128)
WORKLOADS = {
    "32x500Kx128 L150 B2048": same(32, 500_000, 128, 150, 2048),
    "12x500Kx128 L150 B2048": same(12, 500_000, 128, 150, 2048),
    "26x1Mx128 L1 B2048": same(26, 1_000_000, 128, 1, 2048),
    "26x1Mx128 L1 B256": same(26, 1_000_000, 128, 1, 256),
    "100x100Kx32 L20 B512": same(100, 100_000, 32, 20, 512),
    "8x1Mx32 L80 B256": same(8, 1_000_000, 32, 80, 256),
    "RecFlex A": recflex([(500, 1), (500, 30)], MIXED),
    "RecFlex B": recflex([(600, 1), (600, 30)], MIXED),
    "RecFlex C": recflex([(800, 30)], MIXED),
    "RecFlex D": recflex([(500, 1), (500, 30)], (8,)),
    "RecFlex E": recflex([(500, 1), (500, 30)], (32,)),
    "TINY T26 B1": same(26, 10_000, 16, 1, 1),
    "TINY T26 B256": same(26, 10_000, 16, 1, 256),
    "TINY T128 B1": same(128, 10_000, 16, 1, 1),
    "TINY T128 B256": same(128, 10_000, 16, 1, 256),
    "TINY T1000 B1": same(1000, 10_000, 16, 1, 1),
    "TINY T1000 B256": same(1000, 10_000, 16, 1, 256),
}
CPU_WORKLOADS = {
    "26x10Kx16 L4 B256": same(26, 10_000, 16, 4, 256),
    "26x10Kx16 L1 B1": same(26, 10_000, 16, 1, 1),
    "26x10Kx64 L1 B256": same(26, 10_000, 64, 1, 256),
    "8x100Kx32 L80 B16": same(8, 100_000, 32, 80, 16),
    "40x1Kx128 L1 B16": same(40, 1_000, 128, 1, 16),
}
CLASSES = ("one", "zipf 1.2", "zipf 0.9", "uniform")


def layout(w: Workload, pool: str = "sum", apart: bool = False) -> str:
    """The workload's tables one after the other, its ids in one matrix, or in one for each table."""
    pieces, column = [], 0
    for n, (_, _, length) in enumerate(w.tables):
        ids = f"i{n}:0+{length}" if apart else f"i0:{column}+{length}"
        pieces.append(f"{pool if length > 1 else 'row'} t{n}[{ids}]")
        column += length
    return "; ".join(pieces)


def make_tables(w: Workload, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Random tables."""
    return [torch.empty(rows, dim, device=device, dtype=dtype).normal_() for rows, dim, _ in w.tables]


def make_ids(w: Workload, kind: str, device: str, seed: int) -> Tensor:
    """One request: ids [batch, all lengths], int64, of one class; hot rows lie anywhere."""
    g = torch.Generator(device=device).manual_seed(seed)
    columns: list[Tensor] = []
    known: dict[int, Tensor] = {}
    for n, (rows, _, length) in enumerate(w.tables):
        shape = (w.batch, length)
        if kind == "one":
            columns.append(torch.full(shape, (n * 7919) % rows, device=device))
        elif kind == "uniform":
            columns.append(torch.randint(rows, shape, device=device, generator=g))
        else:
            if rows not in known:
                ranks = torch.arange(1, rows + 1, device=device, dtype=torch.float64)
                share = ranks.pow(-float(kind.split()[1])).cumsum(0)
                known[rows] = share / share[-1]
            drawn = torch.rand(shape, device=device, generator=g, dtype=torch.float64)
            rank = torch.searchsorted(known[rows], drawn).clamp_(max=rows - 1)
            order = torch.Generator(device=device).manual_seed(n)  # the same rows are hot in every request
            columns.append(torch.randperm(rows, device=device, generator=order)[rank])
    return torch.cat(columns, 1)


def eager(w: Workload, tables: Sequence[Tensor], ids: Tensor) -> Tensor:
    """What users write: a bag or a lookup for each table, and a concat."""
    outs, column = [], 0
    for table, (_, _, length) in zip(tables, w.tables, strict=True):
        if length == 1:
            outs.append(torch.nn.functional.embedding(ids[:, column], table))
        else:
            outs.append(torch.nn.functional.embedding_bag(ids[:, column : column + length], table, mode="sum"))
        column += length
    return torch.cat(outs, 1)


def fbgemm(w: Workload, weights: str = "fp32") -> Callable[[Tensor], Callable[[], Tensor]] | None:
    """FBGEMM's inference TBE on random tables: ids -> the call on them; None where it cannot be imported."""
    try:
        import fbgemm_gpu  # noqa: F401 - registers its operators
        from fbgemm_gpu.split_embedding_configs import SparseType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
            BoundsCheckMode,
            EmbeddingLocation,
            PoolingMode,
        )  # fmt: skip
        from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
    except (ImportError, OSError) as e:
        print("no FBGEMM:", e)
        return None
    kind = {"fp32": SparseType.FP32, "fp16": SparseType.FP16, "int8": SparseType.INT8}[weights]
    specs = [(f"t{n}", rows, dim, kind, EmbeddingLocation.DEVICE) for n, (rows, dim, _) in enumerate(w.tables)]
    module = IntNBitTableBatchedEmbeddingBagsCodegen(
        specs, device="cuda", output_dtype=SparseType.FP32, pooling_mode=PoolingMode.SUM,
        bounds_check_mode=BoundsCheckMode.NONE,
    )  # fmt: skip
    module.initialize_weights()
    view = module.weights_dev
    if kind == SparseType.FP32:
        view.view(torch.float32).normal_()
    elif kind == SparseType.FP16:
        view.view(torch.float16).normal_()
    else:
        view.random_(0, 60)  # as half, scales and biases of such bytes are small

    def bind(ids: Tensor) -> Callable[[], Tensor]:
        lengths = [length for _, _, length in w.tables]
        indices = torch.cat([c.reshape(-1) for c in torch.split(ids, lengths, 1)]).int()
        counts = torch.tensor(lengths, device=ids.device).repeat_interleave(w.batch)
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
        return partial(module, indices, offsets)

    return bind


def quantise(table: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of int8 and their [rows, 2] scales and biases, in float16 as FBGEMM's and those of ``quantize_tables``."""
    low, high = table.float().aminmax(dim=1, keepdim=True)
    scales = torch.cat([(high - low) / 255, low], 1).half()
    scale, bias = scales.float().split(1, 1)
    return ((table.float() - bias) / scale).round().clamp(0, 255).to(torch.uint8), scales


def operands(w: Workload, stored: str, tables: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], str]:
    """Tables stored as fp32, fp16 or int8, the scales of the last, and the layout of the workload on them."""
    if stored == "int8":
        pairs = [quantise(t) for t in tables]
        text = layout(w).replace("sum t", "sum q8 t").replace("row t", "row q8 t")
        return [q for q, _ in pairs], [s for _, s in pairs], text
    return [t.half() if stored == "fp16" else t for t in tables], [], layout(w)


def ours(text: str, tables: Sequence[Tensor], scales: Sequence[Tensor], ids: Tensor) -> Tensor:
    """recopt::embedding_bags."""
    return embedding_bags(tables, [ids], [], [], [], scales, text)


def inductor(w: Workload, tables: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """Inductor on the eager code, without its own CUDA graphs: they are measured in ours."""
    torch._dynamo.reset()
    compiled: Callable[[Tensor], Tensor] = torch.compile(
        lambda ids: eager(w, tables, ids), mode="max-autotune-no-cudagraphs", dynamic=False
    )
    return compiled


def copy_bandwidth() -> float:
    """Bytes a microsecond, read and written, of a copy of 1 GiB on this device: the driver's, which an H200 was seen to
    do at two thirds of its speed in a graph, or that of a kernel."""
    source = torch.empty(1 << 28, device="cuda").normal_()
    target = torch.empty_like(source)
    ways = (lambda: target.copy_(source), lambda: torch.neg(source, out=target))
    return 2 * source.numel() * 4 / min(device_times([way], 8).median for way in ways)


def graphed(call: Callable[[], Tensor]) -> Callable[[], object]:
    """A CUDA graph of one call, replayed and waited for."""
    return waited(graph_of(call)[0].replay)


def waited(call: Callable[[], object]) -> Callable[[], object]:
    """A call and the wait for its result."""

    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def on_cpu(name: str, w: Workload) -> dict[str, Any]:
    """Wall times on this machine's CPU."""
    tables, ids = make_tables(w, "cpu"), make_ids(w, "uniform", "cpu", 0)
    text = layout(w)
    calls: dict[str, Sequence[Callable[[], object]]] = {
        "ours": [partial(ours, text, tables, (), ids)],
        "eager": [partial(eager, w, tables, ids)],
        "inductor": [partial(inductor(w, tables), ids)],
    }
    from embedding_onnx import onnx_peers

    found = onnx_peers([length for _, _, length in w.tables], tables, ids, eager(w, tables, ids))
    calls |= {peer: [call] for peer, call in found.items()}
    times = host_times(calls)
    print(name, "  ".join(f"{n} {t.median:.1f} ({t.p10:.1f}-{t.p90:.1f})" for n, t in times.items()))
    return {"workload": name, "wall_us": {n: t._asdict() for n, t in times.items()}}


def on_gpu(name: str, w: Workload, kinds: Sequence[str], with_inductor: bool, bandwidth: float) -> list[dict[str, Any]]:
    """Device and wall times of every peer on every class of ids."""
    from bare_bags import bare_calls

    tables = make_tables(w, "cuda")
    peer, plain, rows = fbgemm(w), layout(w), []
    many = len(w.tables) > 200
    for kind in kinds:
        fetched = w.batch * sum(dim * length for _, dim, length in w.tables) * 4
        requests = [make_ids(w, kind, "cuda", seed) for seed in range(3 if many else copies(fetched, 24, 512 << 20))]
        text = hinted(plain, [requests[0]])
        calls: dict[str, list[Callable[[], Tensor]]] = {"ours": [partial(ours, text, tables, (), i) for i in requests]}
        if text != plain:
            calls["no hint"] = [partial(ours, plain, tables, (), i) for i in requests]
        if not many:
            calls["eager"] = [partial(eager, w, tables, i) for i in requests[:6]]
        if with_inductor and kind == kinds[-1]:
            compiled = inductor(w, tables)
            calls["inductor"] = [partial(compiled, i) for i in requests[:6]]
        if peer is not None:
            calls["fbgemm"] = [peer(i) for i in requests]
        calls |= bare_calls(tables, w, requests)
        want = eager(w, tables, requests[0])
        for one in ("ours", "bare 16, 2" if "bare 16, 2" in calls else "bare 1, 1"):
            torch.testing.assert_close(calls[one][0](), want, rtol=1e-4, atol=1e-4)  # two sums of 150 in float32
        times = {n: device_times(c, 8) for n, c in calls.items()}
        wall = {n: [waited(c[0])] for n, c in calls.items() if n in ("ours", "fbgemm", "eager")}
        if many:
            wall["eager"] = [waited(partial(eager, w, tables, requests[0]))]
            apart = [i.contiguous() for i in torch.split(requests[0], [length for _, _, length in w.tables], 1)]
            wall["ours, ids apart"] = [
                waited(partial(embedding_bags, tables, apart, [], [], [], [], layout(w, apart=True)))
            ]
            # What FBGEMM needs of such ids first.
            wall["joined ids"] = [waited(lambda apart=apart: torch.cat([i.reshape(-1) for i in apart]))]
        wall |= {f"{n} graph": [graphed(c[0])] for n, c in calls.items() if n in ("ours", "fbgemm")}
        replay = Replay(partial(ours, text, tables, ()), [requests[0]])
        wall["ours replay"] = [waited(turns(replay, [[i] for i in requests]))]
        # What replaying and waiting cost by themselves.
        one = torch.zeros(1, device="cuda")
        wall["empty graph"] = [graphed(lambda one=one: one.add_(1))]
        walls = host_times(wall, 11)
        gathered = bytes_moved(text, tables, [requests[0]])
        unique = bytes_moved(text, tables, [requests[0]], unique=True)
        us = times["ours"].median
        print(f"{name:24s} {kind:8s} bound {unique / bandwidth:8.1f}  device:",
              "  ".join(f"{n} {t.median:.2f}" for n, t in times.items()), " wall:",
              "  ".join(f"{n} {t.median:.1f}" for n, t in walls.items()),
              f" {gathered / us / 1e3:.0f} GB/s gathered, {unique / us / 1e3:.0f} unique,"
              f" {100 * unique / us / bandwidth:.0f} % of a copy")  # fmt: skip
        rows.append({
            "workload": name, "stored": "fp32", "ids": kind, "gathered_bytes": gathered, "unique_bytes": unique,
            "device_us": {n: t._asdict() for n, t in times.items()},
            "wall_us": {n: t._asdict() for n, t in walls.items()},
        })  # fmt: skip
    return rows


def on_gpu_stored(name: str, w: Workload, stored: str, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Device times, ours, FBGEMM's and the plain Triton start's, on tables of fp16 or int8."""
    from bare_bags import bare_calls

    tables, scales, text = operands(w, stored, make_tables(w, "cuda"))
    peer, rows = fbgemm(w, stored), []
    for kind in kinds:
        fetched = w.batch * sum(dim * length for _, dim, length in w.tables) * tables[0].element_size()
        requests = [make_ids(w, kind, "cuda", seed) for seed in range(copies(fetched, 24, 512 << 20))]
        hint = hinted(text, [requests[0]])
        calls: dict[str, list[Callable[[], Tensor]]] = {
            "ours": [partial(ours, hint, tables, scales, i) for i in requests]
        }
        calls |= bare_calls(tables, w, requests, scales)
        if peer is not None:
            calls["fbgemm"] = [peer(i) for i in requests]
        times = {n: device_times(c, 8) for n, c in calls.items()}
        gathered, unique = (bytes_moved(text, tables, [requests[0]], (), u, scales) for u in (False, True))
        print(f"{name:24s} {kind:8s} {stored}  device:", "  ".join(f"{n} {t.median:.2f}" for n, t in times.items()))
        rows.append({
            "workload": name, "stored": stored, "ids": kind, "gathered_bytes": gathered, "unique_bytes": unique,
            "device_us": {n: t._asdict() for n, t in times.items()}, "wall_us": {},
        })  # fmt: skip
    return rows


def roofline(rows: Sequence[dict[str, Any]], bandwidth: float) -> str:
    """An SVG: unique bytes against device time, ours and FBGEMM's, and the line that a copy's bandwidth draws."""
    points = [(r["unique_bytes"], n, r["device_us"][n]["median"]) for r in rows for n in ("ours", "fbgemm")
              if n in r["device_us"]]  # fmt: skip
    xs, ys = [math.log10(b) for b, _, _ in points], [math.log10(t) for _, _, t in points]
    left, low = min(xs) - 0.2, min(*ys, min(xs) - math.log10(bandwidth)) - 0.2
    sx, sy = 600 / (max(xs) + 0.2 - left), 400 / (max(ys) + 0.2 - low)

    def at(x: float, y: float) -> tuple[float, float]:
        return 60 + (x - left) * sx, 420 - (y - low) * sy

    colours = {"ours": "#0a7", "fbgemm": "#c40"}
    marks = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colours[n]}"/>'
             for (_, n, _), (x, y) in zip(points, map(at, xs, ys), strict=True)]  # fmt: skip
    ends = [at(x, x - math.log10(bandwidth)) for x in (left, max(xs) + 0.2)]
    line = '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="#555"/>'.format(*ends[0], *ends[1])
    ticks = [f'<text x="{at(k, low)[0]:.0f}" y="440">1e{k} B</text>' for k in range(math.ceil(left), int(max(xs)) + 1)]
    ticks += [
        f'<text x="4" y="{at(left, k)[1]:.0f}">{10**k:g} us</text>' for k in range(math.ceil(low), int(max(ys)) + 1)
    ]
    names = [f'<text x="80" y="{30 + 18 * k}" fill="{c}">{n}</text>' for k, (n, c) in enumerate(colours.items())]
    body = "".join([line, *marks, *ticks, *names])
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="450" font-size="12">{body}</svg>\n'


def main() -> None:
    """Measure, print a table, write JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--only", nargs="+", default=(), help="parts of workloads' names")
    parser.add_argument("--ids", nargs="+", default=CLASSES)
    parser.add_argument("--stored", nargs="*", default=("fp16", "int8"), help="types besides fp32")
    parser.add_argument("--inductor", nargs="+", default=("TINY T26",), help="parts of names; it compiles for minutes")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds; what is left out is told")
    args = parser.parse_args()
    begin, rows = time.perf_counter(), []
    workloads = WORKLOADS if args.device == "cuda" else CPU_WORKLOADS
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    bandwidth = copy_bandwidth() if args.device == "cuda" else 0.0
    print(f"{device}, torch {torch.__version__}, copy {bandwidth / 1e3:.0f} GB/s; microseconds, medians")
    for name, w in workloads.items():
        if args.only and not any(part in name for part in args.only):
            continue
        if time.perf_counter() - begin > args.budget:
            print("left out for time:", name)
        elif args.device == "cpu":
            rows.append(on_cpu(name, w))
        else:
            kinds = args.ids if w.batch > 1 else args.ids[-1:]
            rows += on_gpu(name, w, kinds, any(part in name for part in args.inductor), bandwidth)
            torch.cuda.empty_cache()
            for stored in args.stored:
                if len(set(w.tables)) == 1 and len(w.tables) <= 200 and w.batch > 1:
                    rows += on_gpu_stored(name, w, stored, kinds)
                    torch.cuda.empty_cache()
    if args.json:
        args.json.write_text(json.dumps({"device": device, "torch": torch.__version__, "rows": rows}))
    if args.svg and args.device == "cuda":
        args.svg.write_text(roofline(rows, bandwidth))


if __name__ == "__main__":
    with torch.no_grad():
        main()
