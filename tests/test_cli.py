"""The command line: what it passes on, what it prints, how it fails, and that it leaves nothing half-written."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recopt import cli
from recopt.errors import GraphError
from recopt.report import Refusal, Report, Rewrite


class Engine:
    """Stands for `recopt.optimize`: keeps its arguments, fails or disagrees on request."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error: BaseException | None = None
        self.total, self.first_wrong = 5, 99
        self.files: set[Path] = set()  # what the model's weights lie in
        self.data = False  # whether a file of external data is written too

    def __call__(self, model: Path, **options: Any) -> SimpleNamespace:
        limit = os.environ.get("RECOPT_LIMIT")
        self.calls.append({"model": model, "limit": limit, **options})
        if self.error is not None:
            raise self.error
        made = self.total if limit is None else min(self.total, int(limit))
        rewrites = [Rewrite("linear", "recopt::linear", f"y{i}", (), (), 0, 0, 0, None) for i in range(1, made + 1)]
        report = Report(
            "onnx", "portable", 9, 4, rewrites=rewrites, model_error=2.0 if made >= self.first_wrong else 0.1
        )
        return SimpleNamespace(report=report, save=self.save, files=frozenset(self.files))

    def save(self, path: Path, force: bool = False) -> None:
        path.write_text("rewritten")
        if self.data:
            path.with_name(path.name + ".data").write_text("weights")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    fake = Engine()
    modules = tuple(
        SimpleNamespace(name=name, __doc__=f"The pass {name}.\n\nMore.") for name in ("normalise", "fuse", "tidy")
    )
    monkeypatch.setattr(cli.recopt, "optimize", fake)
    monkeypatch.setattr(cli.recopt.passes, "PIPELINE", modules)
    monkeypatch.setattr(cli.recopt.patterns, "ALL", modules[:1])
    return fake


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with a model in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECOPT_DEBUG", raising=False)
    Path("in.onnx").write_text("model")
    yield tmp_path


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def failure(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr of a command that fails with exit code 2 and prints nothing else."""
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("recopt: error: ") and err.endswith("\n") and err.count("\n") == 1
    return err.removeprefix("recopt: error: ").rstrip()


def test_optimize(engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", "in.onnx", "-o", "out.onnx", "--report", "r.json"]) == 0
    assert sorted(files(folder)) == ["in.onnx", "out.onnx", "r.json"]
    assert Path("out.onnx").read_text() == "rewritten"
    assert json.loads(Path("r.json").read_text())["counts"] == {"linear": 5}
    out, err = capsys.readouterr()
    assert "9 -> 4 nodes" in out and "recopt::linear" in out
    assert err == ""  # no progress where stderr is no terminal
    assert engine.calls == [
        {"model": Path("in.onnx"), "limit": None, "target": None, "passes": None, "verify": "model", "tolerance": None}
    ]


def test_options_reach_the_engine(engine: Engine, folder: Path) -> None:
    options = ["--target", "ort-cpu", "--verify", "rewrites", "--tolerance", "0.01"]
    assert cli.main(["optimize", "in.onnx", "-o", "out.onnx", *options, "--skip", "tidy", "--skip", "normalise"]) == 0
    call = engine.calls[0]
    assert (call["target"], call["verify"], call["tolerance"], [p.name for p in call["passes"]]) == (
        "ort-cpu",
        "rewrites",
        0.01,
        ["fuse"],
    )


def test_only_keeps_the_pipelines_order(engine: Engine, folder: Path) -> None:
    assert cli.main(["optimize", "in.onnx", "-o", "out.onnx", "--only", "tidy", "--only", "normalise"]) == 0
    assert [p.name for p in engine.calls[0]["passes"]] == ["normalise", "tidy"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["optimize", "no.onnx", "-o", "out.onnx"], "no.onnx: no such file"),
        (["optimize", ".", "-o", "out.onnx"], "not a file"),
        (["optimize", "in.onnx"], "Missing option"),
        (["optimize", "in.onnx", "-o", "in.onnx"], "named twice"),
        (["optimize", "in.onnx", "-o", "./in.onnx", "--force"], "named twice"),
        (["optimize", "in.onnx", "-o", "link.onnx", "--force"], "named twice"),
        (["optimize", "in.onnx", "-o", "out.onnx", "--report", "out.onnx"], "named twice"),
        (["optimize", "in.onnx", "-o", "old.onnx"], "old.onnx: exists; --force overwrites it"),
        (["optimize", "in.onnx", "-o", "out.onnx", "--report", "old.onnx"], "old.onnx: exists"),
        (["optimize", "in.onnx", "-o", "out.pt2"], "out.pt2: what becomes of in.onnx is saved as NAME.onnx"),
        (["optimize", "in.onnx", "-o", ".onnx"], ".onnx: what becomes of in.onnx is saved as NAME.onnx"),
        (["optimize", "in.onnx", "-o", "no/out.onnx"], "its folder does not exist"),
        (["optimize", "in.onnx", "-o", "dir.onnx", "--force"], "not a file"),
        (["optimize", "in.onnx", "-o", "out.onnx", "--report", "/dev/full", "--force"], "not a file"),
        (
            ["optimize", "in.onnx", "-o", "out.onnx", "--only", "inline"],
            "no pass is called 'inline'; there are: normalise",
        ),
        (["optimize", "in.onnx", "-o", "out.onnx", "--verify", "fully"], "verify"),
        (["optimize", "in.onnx", "-o", "out.onnx", "--tolerance", "-1"], "tolerance"),
        (["optimise"], "No such command 'optimise'"),
        (["diff", "in.onnx", "no.onnx"], "no.onnx: no such file"),
        (["diff", "in.onnx", "in.onnx", "--report", "old.onnx"], "old.onnx: not a report of recopt"),
        (["optimize", "in.onnx", "-o", "gone.onnx"], "gone.onnx: exists"),
        (["optimize", "in.onnx", "-o", "gone.onnx", "--force"], "gone.onnx: is a link to nothing.onnx"),
        (["inspect", "no.onnx"], "no.onnx: no such file"),
        (["bisect", "no.onnx"], "no.onnx: no such file"),
    ],
)
def test_wrong_use(
    argv: list[str], words: str, engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("old.onnx").write_text("old")
    Path("link.onnx").symlink_to("in.onnx")
    before = files(folder)
    Path("gone.onnx").symlink_to("nothing.onnx")
    Path("dir.onnx").mkdir()
    assert words in failure(capsys, *argv)
    Path("dir.onnx").rmdir()
    Path("gone.onnx").unlink()
    assert files(folder) == before
    assert engine.calls == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GraphError("the graph\nis cyclic"), "the graph is cyclic"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "in.onnx"), "in.onnx: Permission denied"),
        (ZeroDivisionError("a bug"), "internal error, ZeroDivisionError: a bug"),
    ],
)
def test_an_engine_that_fails(
    error: Exception, words: str, engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.error = error
    assert words in failure(capsys, "optimize", "in.onnx", "-o", "out.onnx")
    assert list(files(folder)) == ["in.onnx"]


def test_a_disk_that_fills_up_leaves_nothing(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(engine, "save", save)
    Path("out.onnx").write_text("old")
    assert "out.onnx: No space left" in failure(capsys, "optimize", "in.onnx", "-o", "out.onnx", "--force")
    assert files(folder) == {"in.onnx": "model", "out.onnx": "old"}


def test_a_report_that_cannot_be_written_leaves_no_model(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def to_json(_: Report) -> str:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(Report, "to_json", to_json)
    assert "Disk quota" in failure(capsys, "optimize", "in.onnx", "-o", "out.onnx", "--report", "r.json")
    assert list(files(folder)) == ["in.onnx"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_write_permission(engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("locked").mkdir(mode=0o500)
    assert "locked/out.onnx: Permission denied" in failure(capsys, "optimize", "in.onnx", "-o", "locked/out.onnx")


def test_a_folder_that_takes_no_files(engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "/proc/out.onnx: " in failure(capsys, "optimize", "in.onnx", "-o", "/proc/out.onnx")


def test_external_data_moves_with_the_model(engine: Engine, folder: Path) -> None:
    engine.data = True
    written = {"in.onnx": "model", "out.onnx": "rewritten", "out.onnx.data": "weights"}
    assert cli.main(["optimize", "in.onnx", "-o", "out.onnx"]) == 0
    assert files(folder) == written
    assert cli.main(["optimize", "in.onnx", "-o", "out.onnx", "--force"]) == 0
    assert files(folder) == written


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_external_data_of_another_model_stays(
    force: list[str], engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.data = True
    Path("out.onnx.data").write_text("perhaps in.onnx reads it")
    before = files(folder)
    assert "out.onnx.data: exists" in failure(capsys, "optimize", "in.onnx", "-o", "out.onnx", *force)
    assert files(folder) == before


@pytest.mark.parametrize("report", ["weights.bin", "r.json"])
def test_the_data_of_the_input_stays(
    report: str, engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.data = True
    for name in ("out.onnx", "out.onnx.data", "weights.bin"):
        Path(name).write_text("before")
    engine.files = {folder / "weights.bin"} if report == "weights.bin" else {folder / "out.onnx.data"}
    before = files(folder)
    argv = ["optimize", "in.onnx", "-o", "out.onnx", "--report", report, "--force"]
    assert "the original's weights lie there" in failure(capsys, *argv)
    assert files(folder) == before


def test_frameworks_do_not_speak(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> None:
        logging.getLogger("framework").warning("trouble ahead")
        warnings.warn("deprecated", stacklevel=1)
        raise GraphError("the graph is cyclic")

    monkeypatch.setattr(cli.recopt, "load", load)
    assert failure(capsys, "diff", "in.onnx", "in.onnx") == "the graph is cyclic"
    assert logging.getLogger("framework").isEnabledFor(logging.WARNING)


def test_interrupt_is_quiet(engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine.error = KeyboardInterrupt()
    assert cli.main(["optimize", "in.onnx", "-o", "out.onnx"]) == 130
    assert capsys.readouterr() == ("", "")
    assert list(files(folder)) == ["in.onnx"]


def test_debug_shows_the_traceback(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECOPT_DEBUG", "1")
    engine.error = ZeroDivisionError("a bug")
    assert cli.main(["optimize", "in.onnx", "-o", "out.onnx"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_lists(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["passes"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "normalise  The pass normalise.",
        "fuse       The pass fuse.",
        "tidy       The pass tidy.",
    ]
    assert cli.main(["patterns"]) == 0
    assert capsys.readouterr().out == "normalise  The pass normalise.\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in ("optimize", "inspect", "diff", "passes", "patterns", "bisect"))


@pytest.mark.parametrize("wrong", [1, 2, 3, 4, 5])
def test_bisect(wrong: int, engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine.first_wrong = wrong
    assert cli.main(["bisect", "in.onnx"]) == 1
    assert f"rewrite {wrong} is the first wrong one: linear at y{wrong}" in capsys.readouterr().out
    assert "RECOPT_LIMIT" not in os.environ


def test_bisect_finds_what_verification_undid(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def optimize(model: Path, **options: Any) -> SimpleNamespace:
        report = engine(model, **options).report
        if len(report.rewrites) >= 3:
            report.undone.append(Refusal("linear", report.rewrites.pop(2).root, "error 1"))
        return SimpleNamespace(report=report)

    monkeypatch.setattr(cli.recopt, "optimize", optimize)
    assert cli.main(["bisect", "in.onnx"]) == 1
    assert "rewrite 3 is the first wrong one: linear at y3: error 1" in capsys.readouterr().out


def test_bisect_without_a_fault(engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bisect", "in.onnx"]) == 0
    assert capsys.readouterr().out == "all 5 rewrites agree with the original\n"


def test_diff_passes_the_report_on(
    engine: Engine, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def diff(a: str, b: str, report: Report | None) -> str:
        seen.append((a, b, report))
        return ""

    monkeypatch.setattr(cli.recopt, "load", lambda path: path.name)
    monkeypatch.setattr(cli.recopt, "diff", diff)
    account = Report("onnx", "portable")
    Path("r.json").write_text(account.to_json())
    assert cli.main(["diff", "in.onnx", "r.json", "--report", "r.json"]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert seen == [("in.onnx", "r.json", account)]


def test_progress_only_on_a_terminal(engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert cli.main(["optimize", "in.onnx", "-o", "out.onnx"]) == 0
    assert "optimizing in.onnx" in sys.stderr.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("target", "code", "words"), [("/dev/full", 2, "No space left"), ("closed pipe", 141, "")])
def test_a_stdout_that_takes_nothing(target: str, code: int, words: str) -> None:
    if target == "/dev/full":
        out = os.open(target, os.O_WRONLY)
    else:
        read, out = os.pipe()
        os.close(read)
    command = [sys.executable, "-m", "recopt", "--help"]
    done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    os.close(out)
    assert done.returncode == code
    assert done.stderr.count("\n") == (1 if words else 0) and words in done.stderr


def test_optional_passes_are_asked_for_with_parameters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Engine()
    monkeypatch.setattr(cli.recopt, "optimize", fake)
    command = ["optimize", "in.onnx", "-o", "out.onnx", "--also", "quantize_tables:bits=4,error=0.5"]
    assert cli.main([*command, "--also", "dedupe-ids", "--skip", "fuse-linear"]) == 0
    names = [p.name for p in fake.calls[0]["passes"]]
    wanted = [p.name for p in cli.recopt.passes.PIPELINE if p.name not in ("cartesian-tables", "hot-rows")]
    assert names == [name for name in wanted if name != "fuse-linear"]
    assert fake.calls[0]["passes"][names.index("quantize-tables")] == cli.recopt.passes.QuantizeTables(4, 0.5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("quantize-table", "no pass is called 'quantize-table'; there are: clean-up"),
        ("quantize-tables:bit=4", "pass quantize-tables has no parameter 'bit'; there are: bits, error"),
        ("quantize-tables:", "pass quantize-tables lacks a parameter after the ':' or ','; there are: bits, error"),
        ("quantize-tables:bits=few", "pass quantize-tables: bits is a int, not 'few'"),
        ("quantize-tables:bits=8,bits=4", "bits is given twice"),
        ("quantize-tables:bits=5", "tables of 16, 8 or 4 bits, not 5"),
        ("quantize-tables:error=0", "an error above 0"),
        ("cartesian-tables:budget=-1", "at least 0 bytes"),
        ("clean-up:fast=1", "pass clean-up has no parameter 'fast'; there are: none"),
    ],
)
def test_passes_that_do_not_exist_are_named(
    asked: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["optimize", "in.onnx", "-o", "out.onnx", "--also", asked]) == cli.ERROR
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("program", "code"), [("recopt", 130), ("server.py", 1)])
def test_an_interrupt_while_the_package_is_imported(program: str, code: int) -> None:
    """Quiet for the command line; another program's own interrupt stays one."""
    script = f"""
import sys
class Interrupted:
    def find_spec(self, name, *_):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
sys.argv[0] = {program!r}
try:
    import recopt
except KeyboardInterrupt:
    sys.exit(1)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
