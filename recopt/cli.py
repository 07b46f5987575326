"""The command line: `recopt optimize | inspect | diff | passes | patterns | bisect`.

Exit codes: 0 done; 1 `bisect` found a wrong rewrite; 2 an error, told in one line on stderr; 130 interrupted.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import recopt
import recopt.passes
import recopt.patterns

from .errors import LoadError, OptionError, RecoptError, VerifyError, WriteError
from .report import Report
from .view import table

ERROR, INTERRUPTED, BROKEN_PIPE = 2, 128 + signal.SIGINT, 128 + 13

app = typer.Typer(
    help="Rewrite recommender models into few, big, fast operations.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Level(StrEnum):
    """How much of the result is checked: see `recopt.optimize`."""

    NONE = "none"
    SHAPES = "shapes"
    REWRITES = "rewrites"
    MODEL = "model"


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file, or a .pt2 of torch.export.")]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="T", help="What runs the result: portable (default), ort-cpu, ort-cuda, recopt; of a .pt2 cpu, cuda."
    ),
]
Only = Annotated[list[str] | None, typer.Option(metavar="PASS", help="Run this pass alone; may be repeated.")]
Also = Annotated[
    list[str] | None,
    typer.Option(metavar="PASS[:K=V,..]", help="Run this optional pass too (see `recopt passes`); may be repeated."),
]
Skip = Annotated[list[str] | None, typer.Option(metavar="PASS", help="Leave this pass out; may be repeated.")]
Tolerance = Annotated[float | None, typer.Option(min=0.0, help="Largest relative error; default: from the dtype.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite files that exist.")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (default: the process's) and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # the caller closed it
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115  # open as long as the process
    try:
        with _quiet():
            code = app(args=args or ["--help"], prog_name="recopt", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # typer makes the one of the other
        _silence_stdout()
        return BROKEN_PIPE
    except (RecoptError, typer.TyperException) as error:
        return _fail(str(error) if isinstance(error, RecoptError) else error.format_message())
    except OSError as error:
        _silence_stdout()
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error))
    except Exception as error:
        return _fail(f"internal error, {type(error).__name__}: {error} (RECOPT_DEBUG=1 shows where)")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"recopt {importlib.metadata.version('recopt')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Rewrite recommender models into few, big, fast operations."""


@app.command()
def optimize(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Where the rewritten model goes.")],
    target: Target = None,
    only: Only = None,
    also: Also = None,
    skip: Skip = None,
    verify: Annotated[
        Level, typer.Option(help="How much is checked, each level including the ones before.")
    ] = Level.MODEL,
    report: Annotated[Path | None, typer.Option(metavar="R.json", help="Also write the report, as JSON.")] = None,
    tolerance: Tolerance = None,
    force: Force = False,
) -> None:
    """Rewrite MODEL, verify and write the result.

    The report goes to stdout, and with --report also to a file, as JSON.
    """
    _check_input(model)
    suffix = ".pt2" if model.suffix == ".pt2" else ".onnx"
    if output.suffix != suffix:
        raise OptionError(f"{output}: what becomes of {model.name} is saved as NAME{suffix}")
    files = [output] if report is None else [output, report]
    for i, path in enumerate(files):
        _check_output(path, [model, *files[:i]], force)
    passes = _passes(only or [], also or [], skip or [])
    with _progress(f"optimizing {model.name}"):
        result = recopt.optimize(model, target=target, passes=passes, verify=verify.value, tolerance=tolerance)
    with _progress(f"writing {output.name}"), _staged(files, force, result.files) as places:
        result.save(places[0])
        if report is not None:
            places[1].write_text(result.report.to_json() + "\n", encoding="utf-8")
    _show(table.table(result.report))


@app.command()
def inspect(model: Model) -> None:
    """Show what MODEL holds.

    The blocks that recopt recognises, the operators, the parameters, the bytes and FLOPs of one sample.
    """
    _check_input(model)
    with _progress(f"inspecting {model.name}"):
        found = recopt.inspect(model)
    _show(table.inspection(found))


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="A model.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="What became of it.")],
    report: Annotated[
        Path | None, typer.Option(metavar="R.json", help="The report of `optimize`: groups the changes by rewrite.")
    ] = None,
) -> None:
    """Show what changed from A to B.

    Nodes that were removed (-), added (+) and rewired (~), by what replaced what.
    """
    for path in (before, after, *([report] if report else [])):
        _check_input(path)
    account = _account(report) if report else None
    with _progress("comparing"):
        text = recopt.diff(recopt.load(before), recopt.load(after), account)
    print(text or "no difference")


@app.command()
def passes() -> None:
    """List the passes, in their order."""
    _list(recopt.passes.PIPELINE)


@app.command()
def patterns() -> None:
    """List what recopt recognises."""
    _list(recopt.patterns.ALL)


@app.command()
def bisect(model: Model, target: Target = None, tolerance: Tolerance = None) -> None:
    """Find the first rewrite that is wrong.

    MODEL is optimized with fewer and more rewrites until the first is found after which it disagrees with the
    original; the exit code is 1 if there is one.
    """
    _check_input(model)

    def run(limit: int | None) -> Report:
        with _limit(limit):
            report = recopt.optimize(model, target=target, verify="model", tolerance=tolerance).report
        if report.unverified and report.model_error is None:
            raise VerifyError(report.unverified)
        return report

    with _progress(f"bisecting {model.name}"):
        whole = run(None)
        if not _wrong(whole):
            print(f"all {len(whole.rewrites)} rewrites agree with the original")
            return
        good, bad = 0, len(whole.rewrites) + len(whole.undone)
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (good, middle) if _wrong(run(middle)) else (middle, bad)
        first = run(bad)
    print(f"rewrite {bad} is the first wrong one: {_culprit(first)}; RECOPT_LIMIT={bad} stops after it")
    raise typer.Exit(1)


def _wrong(report: Report) -> bool:
    return bool(report.undone) or (report.model_error is not None and report.model_error > 1)


def _culprit(report: Report) -> str:
    if report.undone:
        return f"{report.undone[0].pattern} at {report.undone[0].where}: {report.undone[0].reason}"
    return f"{report.rewrites[-1].pattern} at {report.rewrites[-1].root}: model error {report.model_error:.2g}"


@contextmanager
def _limit(rewrites: int | None) -> Iterator[None]:
    """RECOPT_LIMIT set to `rewrites` (None: unset) for the block."""
    before = os.environ.pop("RECOPT_LIMIT", None)
    if rewrites is not None:
        os.environ["RECOPT_LIMIT"] = str(rewrites)
    try:
        yield
    finally:
        os.environ.pop("RECOPT_LIMIT", None)
        if before is not None:
            os.environ["RECOPT_LIMIT"] = before


def _passes(only: list[str], also: list[str], skip: list[str]) -> list[recopt.passes.Pass] | None:
    """The passes to run, in the pipeline's order; None for all that are not optional."""
    left_out = {found.name for found in recopt.passes.asked(skip)}
    chosen = recopt.passes.asked([*(only or [recopt.passes.DEFAULT]), *also])
    return [found for found in chosen if found.name not in left_out] if only or also or skip else None


def _account(path: Path) -> Report:
    try:
        return Report.from_json(path.read_text(encoding="utf-8", errors="replace"))
    except LoadError as error:
        raise LoadError(f"{path}: {error}") from error


def _check_input(path: Path) -> None:
    if not path.exists():
        raise LoadError(f"{path}: no such file")
    if not path.is_file():
        raise LoadError(f"{path}: not a file")


def _check_output(path: Path, taken: Sequence[Path], force: bool) -> None:
    if not path.parent.is_dir():
        raise OptionError(f"{path}: its folder does not exist")
    if any(
        path.resolve() == other.resolve() or (path.exists() and other.exists() and path.samefile(other))
        for other in taken
    ):
        raise OptionError(f"{path}: named twice; every file that is read or written must be another")
    if path.exists() and not path.is_file():
        raise OptionError(f"{path}: exists and is not a file")
    if path.is_symlink() and force:
        raise OptionError(f"{path}: is a link to {path.readlink()}; name the file itself, or remove the link")
    if os.path.lexists(path) and not force:  # also a link to nothing
        raise OptionError(f"{path}: exists; --force overwrites it")


@contextmanager
def _staged(paths: Sequence[Path], force: bool, kept: Set[Path]) -> Iterator[list[Path]]:
    """A place beside each of `paths`, of the same name: when the block ends well, what is written there moves to them,
    all of it or nothing. `kept` are files that nothing may overwrite."""
    path = paths[0]
    try:
        with ExitStack() as stack:
            places = []
            for path in paths:
                folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
                places.append(Path(stack.enter_context(folder)) / path.name)
            yield places
            moves = []
            for path, place in zip(paths, places, strict=True):
                # External data that exists beside no model of this name may be another's, whatever --force says.
                replaceable = force and path.exists()
                for file in place.parent.iterdir():
                    target = path.parent / file.name
                    if target.resolve() in kept:
                        raise OptionError(f"{target}: the original's weights lie there")
                    if target.exists() and not replaceable:
                        raise OptionError(f"{target}: exists, and would be overwritten")
                    moves.append((file, target))
            # The models go last: until then nobody reads the external data that they name.
            for file, path in sorted(moves, key=lambda move: move[1] in paths):
                file.replace(path)
    except OSError as error:
        raise WriteError(path, error.strerror or error) from error


@contextmanager
def _progress(task: str) -> Iterator[None]:
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        progress.add_task(task, total=None)
        yield


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _show(tables: RenderableType) -> None:
    _Console(file=sys.stdout, width=None if sys.stdout.isatty() else table.WIDTH, highlight=False).print(tables)


def _list(modules: Iterable[Any]) -> None:
    width = max((len(module.name) for module in modules), default=0)
    for module in modules:
        print(f"{module.name:{width}}  {(module.__doc__ or '').strip().splitlines()[0]}")


def _debugging() -> bool:
    return os.environ.get("RECOPT_DEBUG", "0") != "0"


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and log lines of the frameworks around an error's one line; RECOPT_DEBUG keeps them."""
    if _debugging():
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def _fail(message: str) -> int:
    if _debugging():
        traceback.print_exc()
    print(f"recopt: error: {' '.join(message.split())}", file=sys.stderr)
    return ERROR


def _silence_stdout() -> None:
    """Where stdout takes nothing more, let the interpreter's own flush at exit find an open door."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
