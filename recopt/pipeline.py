"""capture -> clean up -> lift -> match -> choose -> rewrite -> verify -> report: the order of things, and what goes
around the passes: timing, checks, dumps, the search for a rewrite that is wrong.

RECOPT_DEBUG=1 prints passes and timings to stderr, 2 also rewrites, 3 also refusals, 4 also the graph after each pass.
RECOPT_DUMP=DIR writes the graph's text before and after each pass. RECOPT_LIMIT=N stops after N rewrites.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

from .errors import OptionError, VerifyError
from .feeds import Span, bounds_of_bags, feeds, in_order, index_limits
from .hosts.base import Array, Host
from .ir.term import sweep
from .lower import check_target
from .passes import Asked, Pass, asked, is_lossy, is_optional
from .report import Key, Refusal, Report
from .rewrite import Context
from .verify import Verdict, shapes_of, verify_model
from .view import text

LEVELS = ("none", "shapes", "rewrites", "model")
BATCHES = (3, 1)  # symbolic sizes of the verification of whole models
SPANS: tuple[Span, ...] = ((0, None), (1, None), (0, 1))  # of integers drawn: a divisor is not 0, any index may be
SLOWER = 1.02  # measure=True: a rewrite may cost this much within noise


@dataclass(frozen=True)
class Options:
    """How to optimize: see `recopt.optimize`. Raises OptionError for a value that does not exist."""

    target: str | None = None
    passes: Sequence[Asked] | None = None
    verify: str = "model"
    measure: bool = False
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.verify not in LEVELS:
            raise OptionError(f"no verification level {self.verify!r}; there are: {', '.join(LEVELS)}")
        given = self.tolerance
        if given is not None and not (isinstance(given, Real) and 0 <= given < float("inf")):
            raise OptionError(f"a tolerance must be a number of at least 0, not {given!r}")
        self.modules  # noqa: B018  # raises where there is no such pass

    @property
    def modules(self) -> list[Pass]:
        """The passes to run, in the pipeline's order."""
        return asked(self.passes)

    def proves(self, level: str) -> bool:
        """Whether verification goes as deep as `level`."""
        return LEVELS.index(self.verify) >= LEVELS.index(level)


@dataclass
class _Run:
    """Several tries of the passes on one model, each without the rewrites that earlier ones found wrong or slow."""

    before: Host
    options: Options
    target: str
    limit: int | None
    inputs: list[list[Array]] = field(default_factory=list)  # on which the model runs
    example: Sequence[Array] | None = None  # what the caller gave
    banned: set[Key] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)  # passes that are wrong without any rewrite that could be undone
    undone: list[Refusal] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    def passes(
        self,
        *,
        limit: int | None = None,
        only: Key | None = None,
        quiet: bool = True,
        exact: bool = True,
        first: int | None = None,
    ) -> tuple[Host, Report]:
        """The passes, or the `first` of them, on a copy of the model; `exact` leaves out those that do not compute the
        same."""
        with _uncollected():
            host = self.before.clone()
            report = Report(host.dialect, self.target, nodes_before=host.count_nodes())
            context = Context(
                self.target,
                report,
                self.options.proves("rewrites"),
                limit,
                frozenset(self.banned),
                only,
                self.inputs,
                self.example,
                self.before,
            )
            for n, module in enumerate(self.options.modules[:first]):
                if module.name in self.left_out or (exact and is_lossy(module)):
                    continue
                with self.timed(module.name):
                    module.run(host, context)
                if not quiet:
                    _dump(host, f"{n + 1:02d}-{module.name}")
                    _say(1, f"{module.name}: {host.count_nodes()} nodes, {self.timings[module.name]:.3f} s")
            if self.options.proves("shapes"):
                with self.timed("check"):
                    host.check()
        report.nodes_after = host.count_nodes()
        return host, report

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start

    def agree(self, after: Host, inputs: Sequence[Sequence[Array]]) -> Verdict:
        """The rewritten model against the original on inputs."""
        with self.timed("verify"):
            return verify_model(self.before, after, inputs, self.options.tolerance)

    def undo_wrong(self, report: Report, verdict: Verdict, inputs: Sequence[Sequence[Array]]) -> bool:
        """Ban the first rewrite after which the model disagrees, or the first pass, where it needs none; False where
        neither is to blame."""
        good, bad = 0, len(report.rewrites)
        if not self.agree(self.passes(limit=0)[0], inputs).ok:
            return self.leave_out_wrong(verdict, inputs)
        if bad == 0:
            return False
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if self.agree(self.passes(limit=middle)[0], inputs).ok else (good, middle)
        before = {r.key for r in self.passes(limit=good)[1].rewrites}
        culprit = next(r for r in self.passes(limit=bad)[1].rewrites if r.key not in before)
        if culprit.key in self.banned:
            return False
        self.banned.add(culprit.key)
        reason = f"the model disagrees: {verdict.reproducer}; RECOPT_LIMIT={bad} shows it"
        self.undone.append(Refusal(culprit.pattern, culprit.root, reason))
        return True

    def leave_out_wrong(self, verdict: Verdict, inputs: Sequence[Sequence[Array]]) -> bool:
        """Leave out the first pass after which the model disagrees without any rewrite; False where it does so
        before."""
        firsts = range(len(self.options.modules) + 1)
        n = next((n for n in firsts if not self.agree(self.passes(limit=0, first=n)[0], inputs).ok), 0)
        if n == 0:
            return False
        name = self.options.modules[n - 1].name
        self.left_out.add(name)
        self.undone.append(Refusal(name, "the whole pass", f"the model disagrees: {verdict.reproducer}"))
        return True


def run(
    host: Host, options: Options, examples: Sequence[Array] | None = None, capture_seconds: float = 0.0
) -> tuple[Host, Report]:
    """The optimized copy of `host` and the account of it. Raises OptionError, GraphError, VerifyError, LowerError."""
    state = _Run(host, options, check_target(host, options.target), _limit(), example=examples)
    state.timings["capture"] = capture_seconds
    _dump(host, "00-captured")
    unverified = ""
    compares = options.proves("rewrites") and any(map(is_optional, options.modules))
    if options.proves("model") or options.measure or compares:
        with state.timed("verify"):
            state.inputs, refused = _runnable(host, examples)
            unverified = "" if state.inputs else refused
    inputs = state.inputs
    if options.measure:
        if not inputs:
            raise VerifyError(f"cannot measure: {unverified}")
        _ban_slow(state, inputs)
    lossy = any(map(is_lossy, options.modules))
    after, report = state.passes(limit=state.limit, quiet=lossy)
    if options.proves("model"):
        verdict = state.agree(after, inputs)
        while not verdict.ok and state.undo_wrong(report, verdict, inputs):
            after, report = state.passes(limit=state.limit, quiet=lossy)
            verdict = state.agree(after, inputs)
        report.model_error = verdict.excess if inputs and len(verdict.random) < len(host.outputs) else None
        if verdict.random:
            unverified = f"the original gives other values of {', '.join(verdict.random)} each time it runs"
        if not verdict.ok:
            raise VerifyError(f"the model disagrees with itself even without any rewrite: {verdict.reproducer}")
    if lossy:  # proved without them; what they do is held against their bounds where they do it
        proved, (after, report) = report, state.passes(limit=state.limit, quiet=False, exact=False)
        report.model_error = proved.model_error
    report.undone += state.undone
    report.unverified = unverified
    report.timings = {stage: round(seconds, 4) for stage, seconds in state.timings.items()}
    for rewrite in report.rewrites:
        _say(2, f"{rewrite.pattern} at {rewrite.root}: {rewrite.detail}")
    for refusal in report.refusals:
        _say(3, f"{refusal.pattern} not at {refusal.where}: {refusal.reason}")
    return after, report


def _runnable(host: Host, examples: Sequence[Array] | None) -> tuple[list[list[Array]], str]:
    """Inputs on which the model runs. It may refuse some batch sizes, and all that is drawn where no examples are
    given: then there are none, and the reason. Raises VerifyError for a model that runs on none of its examples."""
    refused = ""
    for span in SPANS:
        found = []
        try:
            for feed in _inputs(host, examples, span):
                try:
                    (host.run if examples is not None else host.probe)(feed)
                    found.append(feed)
                except VerifyError as why:
                    shapes = shapes_of(feed)
                    refused = refused or f"the original model does not run on inputs of shapes {shapes}: {why}"
        except VerifyError as why:  # no inputs can be made
            refused = str(why)
        if found or examples is not None:
            break
    if not found and examples is not None:
        raise VerifyError(refused)
    return found, refused


def _inputs(host: Host, examples: Sequence[Array] | None, span: Span = SPANS[0]) -> list[list[Array]]:
    """Inputs of several batch sizes, or of the one that the model is fixed to."""
    drawn = examples is None and any(v.dtype is not None and "int" in v.dtype for v in host.inputs)
    limits = index_limits(host) if drawn else {}
    dynamic = any(not isinstance(s, int) for v in host.inputs for s in v.shape or ())
    batches = BATCHES if dynamic else BATCHES[:1]
    bounds = bounds_of_bags(host)
    drawn_feeds = (feeds(host, batch, examples, limits, seed, span) for seed, batch in enumerate(batches))
    ordered = [in_order(feed, host, bounds, batch) for feed, batch in zip(drawn_feeds, batches, strict=True)]
    found = [feed for feed in ordered if feed is not None]
    return found if examples is None else [list(examples), *(found if dynamic else [])]


def _ban_slow(state: _Run, inputs: Sequence[Sequence[Array]]) -> None:
    """measure=True: each rewrite alone against the original, interleaved; the ones that are slower are not made, and
    what takes their place is measured likewise."""
    measured: set[Key] = set()
    while True:
        keys = [r.key for r in state.passes()[1].rewrites if r.key not in measured]
        if not keys:
            return
        for key in keys:
            measured.add(key)
            alone, made = state.passes(only=key)
            ratio = _ratio(state.before, alone, inputs[0]) if made.rewrites else 1.0
            if ratio > SLOWER:
                state.banned.add(key)
                reason = f"measured {ratio:.2f} times the original's time"
                state.undone.append(Refusal(*key, reason))


def _ratio(before: Host, after: Host, feed: Sequence[Array], rounds: int = 15) -> float:
    """Seconds of `after` over seconds of `before`, medians of interleaved runs."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for n in range(rounds + 2):
        for host, kept in zip((before, after), seconds, strict=True):
            start = time.perf_counter()
            host.run(feed)
            if n >= 2:
                kept.append(time.perf_counter() - start)
    return statistics.median(seconds[1]) / statistics.median(seconds[0])


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's collector of cycles: it would walk all terms, again and again, which hold none."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        sweep()
        if was:
            gc.enable()


# --- switches


def _limit() -> int | None:
    setting = os.environ.get("RECOPT_LIMIT")
    if setting is None:
        return None
    if not setting.isdigit():
        raise OptionError(f"RECOPT_LIMIT must be a number of rewrites, not {setting!r}")
    return int(setting)


def _say(level: int, message: str) -> None:
    if _debug() >= level:
        print(f"recopt: {message}", file=sys.stderr)


def _debug() -> int:
    setting = os.environ.get("RECOPT_DEBUG", "0")
    return int(setting) if setting.isdigit() else 1


def _dump(host: Host, stage: str) -> None:
    folder = os.environ.get("RECOPT_DUMP")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{stage}.txt").write_text(text.show(host) + "\n", encoding="utf-8")
    if _debug() >= 4:
        _say(4, f"after {stage}:\n{text.show(host)}")
