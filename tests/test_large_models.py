"""A model whose tables are larger than the memory that it is rewritten in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import recopt

TABLES, COLUMNS, HOTS = 3, 64, 4
LARGE, SMALL = 1_500_000, 2_000  # rows of a table: 384 MB and half a MB
# Bytes at the peak above what the small model takes: pages of the files that are mapped while a row is read, up to 2 MB
# each. One table in memory would be more.
ALLOWED = 220 << 20

MEASURED = """
import sys
from recopt import cli
code = cli.main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", int(peak.split()[1]) << 10)
sys.exit(code)
"""


def write(folder: Path, rows: int) -> Path:
    """Bags of ids, those of the last table masked where an id is 0, and a layer on top. The tables are files full of
    holes: some rows hold numbers, the rest are zero."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((TABLES * COLUMNS, 8), np.float32) / 8, "b": np.ones(8, np.float32)}
    weights |= {"zero": np.array(0), "last": np.array([-1]), "lengths": np.array([HOTS] * TABLES)}
    inits = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    nodes = [helper.make_node("Split", ["ids", "lengths"], [f"i{n}" for n in range(TABLES)], axis=1)]
    names = []
    for n in range(TABLES):
        nodes += [helper.make_node("Gather", [f"t{n}", f"i{n}"], [f"g{n}"])]
        if n == TABLES - 1:
            nodes += [
                helper.make_node("Equal", [f"i{n}", "zero"], ["pads"]),
                helper.make_node("Not", ["pads"], ["real"]),
                helper.make_node("Cast", ["real"], ["ones"], to=TensorProto.FLOAT),
                helper.make_node("Unsqueeze", ["ones", "last"], ["mask"]),
                helper.make_node("Mul", [f"g{n}", "mask"], ["kept"]),
            ]
        read = "kept" if n == TABLES - 1 else f"g{n}"
        nodes.append(helper.make_node("Transpose", [read], [f"r{n}"], perm=[0, 2, 1]))
        nodes.append(helper.make_node("ReduceSum", [f"r{n}", "last"], [f"p{n}"], keepdims=1))
        nodes.append(helper.make_node("Squeeze", [f"p{n}", "last"], [f"q{n}"]))
        names.append(f"q{n}")
        size = rows * COLUMNS * 4
        tensor = TensorProto(name=f"t{n}", data_type=TensorProto.FLOAT, dims=[rows, COLUMNS])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "tables.bin", "offset": n * size, "length": size}.items():
            tensor.external_data.add(key=key, value=str(value))
        inits.append(tensor)
    nodes.append(helper.make_node("Concat", names, ["x"], axis=1))
    nodes.append(helper.make_node("MatMul", ["x", "w"], ["m"]))
    nodes.append(helper.make_node("Add", ["b", "m"], ["y"]))
    graph = helper.make_graph(
        nodes, "bags", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", TABLES * HOTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])], inits,
    )  # fmt: skip
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "in.onnx").write_bytes(file.SerializeToString())
    with open(folder / "tables.bin", "wb") as tables:
        tables.truncate(TABLES * rows * COLUMNS * 4)
    held = np.memmap(folder / "tables.bin", np.float32, "r+", shape=(TABLES, rows, COLUMNS))
    for table in held:
        table[filled(rows)] = rng.standard_normal((len(filled(rows)), COLUMNS))
    return folder / "in.onnx"


def filled(rows: int) -> list[int]:
    """The rows that hold numbers."""
    return [0, 1, rows // 2, rows - 1]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that does not outlive the test: a GB of tables is written to it."""
    place = tmp_path / "models"
    place.mkdir()
    yield place
    shutil.rmtree(place)


def optimize(folder: Path, rows: int) -> int:
    """Rewrite a model in a process of its own, as a user would; the bytes that it had in memory at its peak."""
    folder.mkdir()
    path = write(folder, rows)
    command = [sys.executable, "-c", MEASURED, "optimize", path.name, "-o", "out.onnx", "--report", "r.json"]
    env = os.environ | {"PYTHONPATH": str(Path(recopt.__file__).parents[1])}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "model verified" in done.stdout
    assert json.loads((folder / "r.json").read_text())["counts"]["embedding-bags"] >= 1
    return int(done.stdout.rsplit("peak", 1)[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_tables_are_never_in_memory(folder: Path) -> None:
    small, large = (optimize(folder / str(rows), rows) for rows in (SMALL, LARGE))
    tables = TABLES * LARGE * COLUMNS * 4
    print(f"{tables >> 20} MB of tables, {large >> 20} MB at the peak, {small >> 20} MB where they are small")
    assert large < small + ALLOWED < small + tables // TABLES
    out = folder / str(LARGE) / "out.onnx"
    assert out.stat().st_size < 1 << 16 and out.with_name("out.onnx.data").stat().st_size >= tables
    for tensor in onnx.load(out, load_external_data=False).graph.initializer:
        if tensor.name.startswith("t"):
            held = {entry.key: entry.value for entry in tensor.external_data}
            shape = (LARGE, COLUMNS)
            source = np.memmap(folder / str(LARGE) / "tables.bin", np.float32, "r", shape=(TABLES, *shape))
            copied = np.memmap(out.with_name(held["location"]), np.float32, "r", int(held["offset"]), shape)
            for row in (*filled(LARGE), 2):
                np.testing.assert_array_equal(copied[row], source[int(tensor.name[1:]), row])
