"""Seconds that `recopt.optimize` takes against the nodes of the graph, on both hosts, by stage.

    python benchmarks/compile_time.py --json compile_time.json
    python benchmarks/compile_time.py --family cells --nodes 1000 --host onnx

The graphs repeat what recommenders are made of, 16 wide, so that their numbers are no work and their nodes are. torch
gives an ExportedProgram: what torch.export takes is not counted. `all` is the whole call at its default depth of
verification, `cpu` its processor time, which other work on the machine stretches less; `exponent` fits
cpu = c * nodes**exponent over the three largest sizes of a family.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper

import recopt

WIDTH, STEPS, FIELDS, ROWS = 16, 8, 8, 50
NODES = (100, 300, 1000, 3000, 10_000)


class Ops(Protocol):
    """What the families are written in; a tensor is a torch.Tensor or the name of an ONNX value."""

    nodes: int  # written so far

    def weight(self, *shape: int, one: bool = False) -> Any:
        """A parameter: of ones, or random and small enough that hundreds of layers do not overflow."""

    def call(self, op: str, *args: Any, **attributes: Any) -> Any:
        """One operator."""


# --- the families: each repeats a block until the graph has `nodes` nodes


def mlp(g: Ops, x: Any, sequence: Any, ids: Any, nodes: int) -> Any:
    """Linear, BatchNorm, Dice or ReLU, residual."""
    while g.nodes < nodes:
        h = _norm(g, _linear(g, x))
        gate = g.call("sigmoid", _norm(g, h))
        h = g.call("add", h, g.call("mul", gate, h))
        h = g.call("relu", _linear(g, h))
        x = g.call("add", x, h)
    return x


def fields(g: Ops, x: Any, sequence: Any, ids: Any, nodes: int) -> Any:
    """Lookups, each with its own projection, concatenated 32 at a time."""
    found: list[Any] = []
    while g.nodes < nodes - 3:
        group = [g.call("relu", _linear(g, _lookup(g, ids, n % FIELDS))) for n in range(32)]
        wide = g.call("concat", group)
        found.append(g.call("relu", _linear(g, wide, 32 * WIDTH)))
    for part in found:
        x = g.call("add", x, part)
    return _linear(g, x)


def cells(g: Ops, x: Any, sequence: Any, ids: Any, nodes: int) -> Any:
    """GRU cells, unrolled, their weights shared as a loop's are."""
    weights = [(g.weight(WIDTH, WIDTH), g.weight(WIDTH)) for _ in range(6)]
    h, step = x, 0
    while g.nodes < nodes:
        now = g.call("column", sequence, step % STEPS)
        gates = [g.call("linear", now, *w) for w in weights[:3]]
        r = g.call("sigmoid", g.call("add", gates[0], g.call("linear", h, *weights[3])))
        z = g.call("sigmoid", g.call("add", gates[1], g.call("linear", h, *weights[4])))
        n = g.call("tanh", g.call("add", gates[2], g.call("mul", r, g.call("linear", h, *weights[5]))))
        h = g.call("add", n, g.call("mul", z, g.call("sub", h, n)))
        step += 1
    return h


def blocks(g: Ops, x: Any, sequence: Any, ids: Any, nodes: int) -> Any:
    """Transformer blocks over the sequence: attention of 2 heads, feed-forward, residuals, layer norms."""
    while g.nodes < nodes:
        h = g.call("layer_norm", sequence, g.weight(WIDTH, one=True), g.weight(WIDTH))
        q, k, v = (_heads(g, _linear(g, h)) for _ in range(3))
        scores = g.call("softmax", g.call("matmul", q, g.call("transpose", k, [0, 1, 3, 2])))
        mixed = g.call("transpose", g.call("matmul", scores, v), [0, 2, 1, 3])
        sequence = g.call("add", sequence, _linear(g, g.call("reshape", mixed, (STEPS, WIDTH))))
        h = g.call("layer_norm", sequence, g.weight(WIDTH, one=True), g.weight(WIDTH))
        h = _linear(g, g.call("relu", _linear(g, h)))
        sequence = g.call("add", sequence, h)
    return sequence


def slices(g: Ops, x: Any, sequence: Any, ids: Any, nodes: int) -> Any:
    """Linear, ReLU, add, halves that change places: pieces of pieces."""
    while g.nodes < nodes:
        h = g.call("add", x, g.call("relu", _linear(g, x)))
        x = g.call("concat", [g.call("slice", h, WIDTH // 2, WIDTH), g.call("slice", h, 0, WIDTH // 2)])
    return x


def columns(g: Ops, x: Any, sequence: Any, ids: Any, nodes: int) -> Any:
    """Chains on single columns, each with numbers of its own, joined under a linear."""
    while g.nodes < nodes:
        parts = []
        for n in range(WIDTH):
            scaled = g.call("mul", g.call("slice", x, n, n + 1), g.weight(1, one=True))
            parts.append(g.call("tanh" if n % 2 else "sigmoid", g.call("add", scaled, g.weight(1))))
        x = g.call("relu", _linear(g, g.call("concat", parts)))
    return x


def _linear(g: Ops, x: Any, width: int = WIDTH) -> Any:
    return g.call("linear", x, g.weight(WIDTH, width), g.weight(WIDTH))


def _norm(g: Ops, x: Any) -> Any:
    return g.call("norm", x, g.weight(WIDTH), g.weight(WIDTH, one=True), g.weight(WIDTH, one=True), g.weight(WIDTH))


def _lookup(g: Ops, ids: Any, field: int) -> Any:
    return g.call("lookup", g.weight(ROWS, WIDTH), g.call("column", ids, field))


def _heads(g: Ops, x: Any) -> Any:
    return g.call("transpose", g.call("reshape", x, (STEPS, 2, WIDTH // 2)), [0, 2, 1, 3])


Family: TypeAlias = Callable[[Ops, Any, Any, Any, int], Any]
FAMILIES: dict[str, Family] = {f.__name__: f for f in (mlp, fields, cells, blocks, slices, columns)}


# --- the hosts


def _draw(seed: int, shape: Sequence[int], one: bool) -> npt.NDArray[np.float32]:
    if one:
        return np.ones(shape, np.float32)
    scale = 0.1 if len(shape) == 1 or shape[0] == ROWS else 0.3 / math.sqrt(shape[-1])
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


class TorchOps(torch.nn.Module):
    """A module that runs a family; its first run draws the parameters."""

    def __init__(self, family: Family, limit: int) -> None:
        super().__init__()
        self.family, self.limit = family, limit
        self.drawn = torch.nn.ParameterList()
        self.used = self.nodes = 0

    def forward(self, x: torch.Tensor, sequence: torch.Tensor, ids: torch.Tensor) -> Any:
        """The family on x [B, 16], sequence [B, 8, 16] and ids [B, 8]."""
        self.used = self.nodes = 0
        return self.family(self, x, sequence, ids, self.limit)

    def weight(self, *shape: int, one: bool = False) -> Any:
        self.used += 1
        if self.used > len(self.drawn):
            self.drawn.append(torch.nn.Parameter(torch.from_numpy(_draw(self.used, shape, one)), requires_grad=False))
        return self.drawn[self.used - 1]

    def call(self, op: str, *args: Any, **attributes: Any) -> Any:
        self.nodes += 1
        return CALLS[op](*args, **attributes)


CALLS: dict[str, Callable[..., Any]] = {
    "linear": F.linear,
    "norm": F.batch_norm,
    "layer_norm": lambda x, w, b: F.layer_norm(x, (WIDTH,), w, b),
    "softmax": lambda x: torch.softmax(x, -1),
    "lookup": lambda table, ids: F.embedding(ids, table),
    "column": lambda x, n: x[:, n],
    "slice": lambda x, start, stop: x[:, start:stop],
    "concat": lambda parts: torch.cat(parts, -1),
    "transpose": lambda x, perm: x.permute(perm),
    "reshape": lambda x, shape: x.reshape(x.shape[0], *shape),
    **{name: getattr(torch, name) for name in ("relu", "tanh", "sigmoid", "add", "mul", "sub", "matmul")},
}


SAME = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "add": "Add", "mul": "Mul", "sub": "Sub",
        "matmul": "MatMul"}  # fmt: skip


class OnnxOps:
    """Appends ONNX nodes, as the TorchScript exporter spells them."""

    def __init__(self) -> None:
        self.graph = onnx.GraphProto(name="generated")
        self.ranks: dict[str, int] = {}
        self.nodes = 0

    def weight(self, *shape: int, one: bool = False) -> Any:
        return self.constant(_draw(len(self.graph.initializer) + 1, shape, one))

    def constant(self, array: npt.NDArray[Any]) -> str:
        name = f"w{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        self.ranks[name] = array.ndim
        return name

    def node(self, op: str, args: Sequence[str], rank: int, **attributes: Any) -> str:
        self.nodes += 1
        name = f"v{self.nodes}"
        self.graph.node.append(helper.make_node(op, args, [name], name=f"n{self.nodes}", **attributes))
        self.ranks[name] = rank
        return name

    def call(self, op: str, *args: Any, **attributes: Any) -> Any:
        if op in SAME:
            return self.node(SAME[op], args, max(self.ranks[a] for a in args))
        return getattr(self, op)(*args, **attributes)

    def linear(self, x: str, w: str, b: str) -> str:
        if self.ranks[x] == 2:
            return self.node("Gemm", [x, w, b], 2, transB=1)
        stored = self.graph.initializer[int(w[1:])]
        turned = self.constant(np.ascontiguousarray(numpy_helper.to_array(stored).T))
        return self.node("Add", [self.node("MatMul", [x, turned], self.ranks[x]), b], self.ranks[x])

    def norm(self, x: str, mean: str, variance: str, w: str, b: str) -> str:
        return self.node("BatchNormalization", [x, w, b, mean, variance], 2)

    def layer_norm(self, x: str, w: str, b: str) -> str:
        return self.node("LayerNormalization", [x, w, b], self.ranks[x], axis=-1)

    def softmax(self, x: str) -> str:
        return self.node("Softmax", [x], self.ranks[x], axis=-1)

    def lookup(self, table: str, ids: str) -> str:
        return self.node("Gather", [table, ids], 2)

    def column(self, x: str, n: int) -> str:
        return self.node("Gather", [x, self.constant(np.array(n))], self.ranks[x] - 1, axis=1)

    def slice(self, x: str, start: int, stop: int) -> str:
        bounds = [self.constant(np.array([n])) for n in (start, stop, 1)]
        return self.node("Slice", [x, *bounds], self.ranks[x])

    def concat(self, parts: Sequence[str]) -> str:
        return self.node("Concat", parts, 2, axis=-1)

    def transpose(self, x: str, perm: Sequence[int]) -> str:
        return self.node("Transpose", [x], len(perm), perm=perm)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        return self.node("Reshape", [x, self.constant(np.array([0, *shape]))], len(shape) + 1)


def torch_graph(family: Family, nodes: int) -> tuple[Any, int]:
    """An ExportedProgram and its number of operator calls."""
    module = TorchOps(family, nodes).eval()
    inputs = (torch.randn(4, WIDTH), torch.randn(4, STEPS, WIDTH), torch.randint(0, ROWS, (4, FIELDS)))
    with torch.no_grad():
        module(*inputs)
        batch = torch.export.Dim("batch", min=2)
        program = torch.export.export(module, inputs, dynamic_shapes=({0: batch},) * 3, strict=False)
    return program, sum(n.op == "call_function" for n in program.graph.nodes)


def onnx_graph(family: Family, nodes: int) -> tuple[onnx.ModelProto, int]:
    """A ModelProto and its number of nodes."""
    g = OnnxOps()
    kinds = {"x": (WIDTH,), "sequence": (STEPS, WIDTH), "ids": (FIELDS,)}
    for name, shape in kinds.items():
        kind = onnx.TensorProto.INT64 if name == "ids" else onnx.TensorProto.FLOAT
        g.graph.input.append(helper.make_tensor_value_info(name, kind, ["batch", *shape]))
        g.ranks[name] = len(shape) + 1
    result = family(g, "x", "sequence", "ids", nodes)
    extents: list[str | int | None] = ["batch", *kinds["x" if g.ranks[result] == 2 else "sequence"]]
    g.graph.output.append(helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, extents))
    opset = helper.make_opsetid("", 17)
    return helper.make_model(g.graph, opset_imports=[opset], ir_version=9), len(g.graph.node)


HOSTS: dict[str, Callable[[Family, int], tuple[Any, int]]] = {"torch": torch_graph, "onnx": onnx_graph}


def measure(host: str, family: str, nodes: int, verify: str) -> dict[str, Any]:
    """One call of optimize: the nodes, the seconds of the whole and of each stage, the rewrites."""
    model, count = HOSTS[host](FAMILIES[family], nodes)
    start, used = time.perf_counter(), time.process_time()
    result = recopt.optimize(model, verify=verify)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    report = result.report
    return {"host": host, "family": family, "nodes": count, "after": report.nodes_after, "all": seconds, "cpu": used,
            "rewrites": len(report.rewrites), "undone": len(report.undone), "stages": report.timings}  # fmt: skip


def exponent(rows: Sequence[dict[str, Any]]) -> float:
    """The slope of log processor seconds over log nodes."""
    logs = np.log([[r["nodes"], r["cpu"]] for r in rows[-3:]])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0]) if len(rows) > 1 else math.nan


def main() -> None:
    """Print the table, and write it where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", choices=HOSTS, nargs="+", default=list(HOSTS))
    parser.add_argument("--family", choices=FAMILIES, nargs="+", default=list(FAMILIES))
    parser.add_argument("--nodes", type=int, nargs="+", default=list(NODES))
    parser.add_argument("--verify", default="model")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    measure("onnx", "mlp", 30, args.verify)  # imports
    rows: list[dict[str, Any]] = []
    print(
        f"{'host':5} {'family':7} {'nodes':>6} {'after':>6} {'all s':>8} {'cpu s':>8} {'rewrites':>8}  seconds by stage"
    )
    for host in args.host:
        for family in args.family:
            mine = []
            for nodes in args.nodes:
                row = measure(host, family, nodes, args.verify)
                mine.append(row)
                stages = " ".join(f"{name} {seconds:.2f}" for name, seconds in row["stages"].items())
                print(f"{host:5} {family:7} {row['nodes']:6} {row['after']:6} {row['all']:8.2f} "
                      f"{row['cpu']:8.2f} {row['rewrites']:8}  "
                      f"{stages}{' UNDONE ' + str(row['undone']) if row['undone'] else ''}", flush=True)  # fmt: skip
            print(f"{host:5} {family:7} exponent {exponent(mine):.2f}", flush=True)
            rows += mine
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
