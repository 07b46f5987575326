"""Lookups in tables of one width on ONNX Runtime's CPU provider: a Gather a table, or one Gather on the stacked tables.

    python benchmarks/merged_tables.py

`unchecked` adds each table's first row to the ids: an id past the end of its table then reads the next table, where the
Gather that it replaces raises, and a negative id reads the table before. `checked` counts negative ids from the end of
their own table and sends ids outside of it outside of the stack, so that the Gather raises as before: seven elementwise
nodes more. In one process, in turns, on one thread; ratios of medians, above 1 where the stack is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

SHAPES = (  # tables, columns, ids a bag, rows of a table
    (26, 128, 1, 1000), (26, 128, 1, 100_000), (26, 16, 1, 1000), (26, 16, 1, 100_000), (26, 16, 4, 1000),
    (8, 16, 1, 1000), (8, 1, 1, 1000), (26, 1, 1, 1000), (26, 1, 1, 100_000), (100, 1, 1, 10_000),
)  # fmt: skip
PEERS = ("apart", "unchecked", "checked")
OUTSIDE = 1 << 62  # an id that is in no table


def session(peer: str, tables: list[np.ndarray[Any, Any]], hots: int) -> Any:
    """ids [B, tables * hots] int64 -> [B, tables * columns] fp32."""
    import onnxruntime as ort

    count, (rows, columns) = len(tables), tables[0].shape
    nodes: list[tuple[str, list[str], list[str], dict[str, object]]] = []
    starts = np.repeat(np.arange(count) * rows, hots)
    held: dict[str, np.ndarray[Any, Any]]
    if peer == "apart":
        parts = [f"ids{n}" for n in range(count)]
        held = {f"table{n}": table for n, table in enumerate(tables)}
        held |= {"lengths": np.array([hots] * count), "flat": np.array([-1]), "one": np.array([1])}
        nodes.append(("Split", ["ids", "lengths"], parts, {"axis": 1}))
        for n in range(count):
            if hots == 1:
                nodes.append(("Reshape", [f"ids{n}", "flat"], [f"column{n}"], {}))
                nodes.append(("Gather", [f"table{n}", f"column{n}"], [f"bag{n}"], {}))
            else:
                nodes.append(("Gather", [f"table{n}", f"ids{n}"], [f"rows{n}"], {}))
                nodes.append(("ReduceSum", [f"rows{n}", "one"], [f"bag{n}"], {"keepdims": 0}))
        nodes.append(("Concat", [f"bag{n}" for n in range(count)], ["y"], {"axis": 1}))
    else:
        held = {"table": np.concatenate(tables), "start": starts, "end": starts + rows, "last": starts + rows - 1}
        held |= {"none": np.array(0), "outside": np.array(OUTSIDE), "two": np.array([2])}
        held |= {"bags": np.array([-1, count, hots]), "shape": np.array([0, count * columns])}
        steps = [("Add", ["ids", "start"], "place")]
        if peer == "checked":
            steps = [
                ("Less", ["ids", "none"], "negative"), ("Where", ["negative", "end", "start"], "shift"),
                ("Add", ["ids", "shift"], "sum"), ("Max", ["sum", "start"], "above"),
                ("Min", ["above", "last"], "inside"), ("Equal", ["inside", "sum"], "fits"),
                ("Where", ["fits", "sum", "outside"], "place"),
            ]  # fmt: skip
        nodes += [(op, operands, [output], {}) for op, operands, output in steps]
        nodes.append(("Reshape", ["place", "bags"], ["places"], {}))
        nodes.append(("Gather", ["table", "places"], ["rows"], {}))
        if hots > 1:
            nodes.append(("ReduceSum", ["rows", "two"], ["pooled"], {"keepdims": 0}))
        nodes.append(("Reshape", ["pooled" if hots > 1 else "rows", "shape"], ["y"], {}))
    read = {name for _, operands, _, _ in nodes for name in operands}
    graph = helper.make_graph(
        [helper.make_node(op, operands, outputs, **kwargs) for op, operands, outputs, kwargs in nodes], "lookups",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", count * hots])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", count * columns])],
        [numpy_helper.from_array(array, name) for name, array in held.items() if name in read],
    )  # fmt: skip
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])


def measure(peers: dict[str, Any], ids: np.ndarray[Any, Any], rounds: int) -> dict[str, float]:
    """Median seconds of each peer, which must agree."""
    expected = peers["apart"].run(None, {"ids": ids})[0]
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, peer in peers.items():
            start = time.perf_counter()
            (y,) = peer.run(None, {"ids": ids})
            seconds[name].append(time.perf_counter() - start)
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    print(
        f"{'tables':>6} {'dim':>4} {'hots':>4} {'rows':>7} {'batch':>5} {'apart us':>9} {'unchecked':>9} {'checked':>8}"
    )
    rng = np.random.default_rng(0)
    for count, columns, hots, rows in SHAPES:
        tables = [rng.standard_normal((rows, columns), np.float32) for _ in range(count)]
        peers = {name: session(name, tables, hots) for name in PEERS}
        for outside in (rows, -rows - 1):  # what is replaced raises, and so must that which replaces it
            for name in ("apart", "checked"):
                try:
                    peers[name].run(None, {"ids": np.full((1, count * hots), outside)})
                except Exception:  # ONNX Runtime raises errors of many unrelated classes
                    continue
                raise AssertionError(f"{name} reads a row {outside} of {rows}")
        for batch in args.batch:
            ids = rng.integers(-rows, rows, (batch, count * hots))
            measure({name: peers[name] for name in ("apart", "checked")}, ids, 3)  # the other takes no negative ids
            found = measure(peers, np.abs(ids) % rows, args.rounds)
            ratios = [found["apart"] / found[name] for name in PEERS[1:]]
            sizes = f"{count:6} {columns:4} {hots:4} {rows:7} {batch:5}"
            print(f"{sizes} {found['apart'] * 1e6:9.0f} {ratios[0]:8.2f}x {ratios[1]:7.2f}x", flush=True)


if __name__ == "__main__":
    main()
