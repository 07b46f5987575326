"""`optimize`, `inspect`, `diff`: what users call."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import cost
from .errors import LoadError, OptionError, WriteError
from .hosts.base import Array, Host
from .hosts.onnx_contrib import FUSED
from .ir import sizes
from .ir.term import TooLarge
from .lift import lift, table_of
from .load import host_of, is_module
from .match import No
from .passes import Asked
from .patterns import ALL
from .pipeline import Options, run
from .report import Report
from .view import text

if TYPE_CHECKING:
    from .kernels.replay import Replay

_CAPTURING = threading.RLock()  # torch.export serves one thread at a time, and so do the tables of terms


class Optimized:
    """A rewritten model: callable like the original, with the account of what was done.

    A module that was given without example inputs is captured at its first call, as torch.compile does; until then
    `model`, `report`, `save` and `diff` raise OptionError.
    """

    def __init__(self, source: Any, options: Options, dynamic_shapes: Any = None) -> None:
        self._source, self._options, self._dynamic_shapes = source, options, dynamic_shapes
        self._before: Host | None = None
        self._after: Host | None = None
        self._report: Report | None = None

    def _capture(self, example_inputs: Any) -> None:
        with _CAPTURING:
            if self._after is None:  # else another thread called first
                self._captured(example_inputs)

    def _captured(self, example_inputs: Any) -> None:
        start = time.perf_counter()
        before = host_of(self._source, example_inputs, self._dynamic_shapes)
        seconds = time.perf_counter() - start
        examples = before.examples(example_inputs)
        after, self._report = run(before, self._options, examples, seconds)
        self._before, self._after = before, after
        self._source = None  # the hosts share its weights; nothing else of it is needed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs: of a module in its own structure; of an ONNX model the list of arrays, computed by ONNX
        Runtime from arrays or CPU tensors given in the order of its inputs or by their names."""
        if self._after is None:
            if args and kwargs:
                raise OptionError(
                    "the first call of a module without example inputs takes positional or keyword arguments, not both"
                )
            self._capture(args or kwargs)
        return self._executable(*args, **kwargs)

    def replay(self, *example_inputs: Any, **named: Any) -> Replay:
        """The model at the shapes, strides and types of these tensors, captured once as a CUDA graph whose kernels then
        read the tensors that each call brings: `scores = run(dense, ids)`. The values given here should be typical.

        What a call returns are always the same tensors, which the next call overwrites: copy what must last, and call
        it from one thread at a time. `copied` are the numbers of the inputs that each call copies.

        Raises OptionError for an ONNX model, for anything but tensors of one GPU given by position, for a model that
        draws random numbers, writes into its inputs or asks the device for values meanwhile, and without torch 2.10, a
        driver of CUDA 12.4 and a C compiler; a call does for inputs that are not as captured."""
        if named:
            raise OptionError(f"replay: {', '.join(named)} must be given by position")
        if self._after is None:
            self._capture(example_inputs)
        if self.host.dialect != "aten":
            raise OptionError("replay is for torch models on a GPU")
        from .kernels.replay import Replay  # imports torch

        return Replay(self._executable, example_inputs, OptionError)

    @property
    def host(self) -> Host:
        """The rewritten host graph."""
        if self._after is None:
            raise OptionError("not captured yet: call the model once, or give example_inputs to optimize")
        return self._after

    @cached_property
    def model(self) -> Any:
        """The rewritten model: a torch.fx.GraphModule, or an onnx_ir.Model."""
        return self.host.native()

    @property
    def files(self) -> frozenset[Path]:
        """The files that the original's weights lie in, other than the model's own: they must stay."""
        self.host  # noqa: B018 - captures the model
        assert self._before is not None
        return self._before.files()

    @cached_property
    def _executable(self) -> Any:
        return self.model if self.host.dialect == "aten" else self.host.executable()

    def to_proto(self) -> Any:
        """The rewritten ONNX model as an onnx.ModelProto. Raises OptionError for a torch model."""
        if self.host.dialect != "onnx":
            raise OptionError("to_proto is for ONNX models; a torch model has .model and .save")
        return self.host.to_proto()  # type: ignore[attr-defined]  # only an ONNX host comes here

    @property
    def report(self) -> Report:
        """What was done, declined and measured."""
        self.host  # noqa: B018  # raises where there is no report yet
        assert self._report is not None
        return self._report

    def save(self, path: str | os.PathLike[str], force: bool = True) -> None:
        """Write the model to `path`: `.onnx` (with its external data beside it, where it has any), or `.pt2`.
        Raises OptionError for another suffix, a folder that does not exist, an existing file without `force`, and where
        the external data would replace the file that the original's weights lie in, unless `path` is the original.
        Raises WriteError where the system refuses. Nothing half-written is left."""
        target = Path(path)
        wanted = ".onnx" if self.host.dialect == "onnx" else ".pt2"
        if target.suffix != wanted:
            raise OptionError(f"{target}: this model is saved as NAME{wanted}")
        if not target.parent.is_dir():
            raise OptionError(f"{target}: its folder does not exist")
        if target.exists() and not target.is_file():
            raise OptionError(f"{target}: exists and is not a file")
        if target.exists() and not force:
            raise OptionError(f"{target}: exists already")
        try:
            self.host.save(target)
        except OSError as error:
            raise WriteError(target, error.strerror or error) from error

    def diff(self) -> str:
        """What was removed, added and rewired, as text, grouped by rewrite."""
        self.host  # noqa: B018 - captures the model
        assert self._before is not None
        return text.diff(self._before, self.host, self.report)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Optimized holds both graphs and is neither copied nor pickled: copy its .model, or save it")

    def __repr__(self) -> str:
        return "Optimized(not captured yet)" if self._after is None else f"Optimized({self.report.counts()})"


def optimize(
    model: Any,
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
    target: str | None = None,
    passes: Sequence[Asked] | None = None,
    verify: str = "model",
    measure: bool = False,
    tolerance: float | None = None,
) -> Optimized:
    """Rewrite a model into fewer, bigger, faster operations that compute the same. `model` itself is never changed.

    `model` is an nn.Module, an ExportedProgram, the path of an ONNX file or of a `.pt2`, an onnx.ModelProto or an
    onnx_ir.Model. `example_inputs` is a tuple of positional or a dict of keyword arguments; a module without any is
    captured at its first call. `dynamic_shapes` is torch.export's; without it dimension 0 is symbolic wherever it is
    the batch. `target`: "cpu" (default) or "cuda" for torch; "portable" (default), "ort-cpu", "ort-cuda" or "recopt"
    for ONNX. `passes` names the passes to run: "default" for all that are not optional, "quantize_tables" or
    "quantize_tables:bits=4", or `recopt.passes.QuantizeTables(4)`. `verify`: "none", "shapes", "rewrites" (each rewrite
    against the float64 evaluator) or "model" (also the whole model before and after, to `tolerance`, relative and
    absolute; default torch.testing.assert_close's). `measure=True` times each rewrite and leaves out the slower ones.

    Raises LoadError, GraphError, OptionError, LowerError, VerifyError, all of them RecoptError.
    """
    result = Optimized(model, Options(target, passes, verify, measure, tolerance), dynamic_shapes)
    if not (is_module(model) and example_inputs is None):
        result._capture(example_inputs)
    return result


@dataclass(frozen=True)
class Inspection:
    """What a model holds: recognised blocks as (pattern, where, meaning), operators by number, parameters, and the
    bytes and FLOPs of one sample."""

    blocks: list[tuple[str, str, str]]
    operators: dict[str, int]
    parameters: int
    bytes: float
    flops: float


def inspect(model: Any, example_inputs: Any = None) -> Inspection:
    """What recopt recognises in a model, which is not changed. Raises LoadError, GraphError."""
    with _CAPTURING:
        return _inspected(host_of(model, example_inputs))


def _inspected(host: Host) -> Inspection:
    host.inline(table_of(host).keys() - FUSED)
    host.normalise()
    lifted = lift(host)
    blocks, inside, flops = [], set(), 0.0
    for pattern in ALL:
        for root in pattern.roots(lifted):
            if root.node in inside:
                continue
            try:
                found = pattern.match(lifted, root)
            except (No, TooLarge, RecursionError):
                continue
            if found is not None:
                inside.update(found.dead)
                flops += found.flops
                blocks.append((pattern.name, root.name, found.detail))
    moved = cost.nodes_cost(host, host.nodes)
    return Inspection(
        blocks[::-1],
        dict(Counter(n.op for n in host.nodes if not all(host.is_constant(v) for v in n.outputs))),
        host.count_parameters(),
        moved.bytes / sizes.NOMINAL,
        flops / sizes.NOMINAL,
    )


def diff(before: Host, after: Host, report: Report | None = None) -> str:
    """What was removed (-), added (+) and rewired (~) between two graphs, as text; "" when nothing was.

    The graphs are what `recopt.load` returns, or an Optimized's `.host`; with a `report` the changes are grouped by
    rewrite. Raises LoadError for anything else."""
    for host in (before, after):
        if not isinstance(host, Host):
            raise LoadError(f"cannot compare an object of type {type(host).__name__}: load it first")
    return text.diff(before, after, report)


__all__ = ["Array", "Inspection", "Optimized", "diff", "inspect", "optimize"]
