"""Reports and inspections as rich tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..report import Refusal, Report, Rewrite

WIDTH = 120  # of text that goes to no terminal
SHORTEST = 0.005  # seconds of a stage that is shown
LONGEST = 240  # characters of a meaning that are shown


class Inspection(Protocol):
    """What `recopt.inspect` returns, as far as it is shown. Bytes and FLOPs are those of one sample."""

    @property
    def blocks(self) -> Iterable[tuple[str, str, str]]: ...  # (pattern, where, detail)
    @property
    def operators(self) -> Mapping[str, int]: ...
    @property
    def parameters(self) -> int: ...
    @property
    def bytes(self) -> float: ...
    @property
    def flops(self) -> float: ...


def si(value: float, unit: str = "") -> str:
    """`value` with three digits and a decimal prefix: 1234567 B -> "1.23 MB"."""
    prefixes = iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while abs(value) >= 999.5 and prefix != "T":
        value, prefix = value / 1000, next(prefixes)
    return f"{value:.3g} {prefix}{unit}".rstrip()


def table(report: Report) -> RenderableType:
    """What was rewritten, by pattern; what was undone; what was refused, by reason; the seconds by stage."""
    parts: list[RenderableType] = [Text(_summary(report), style="bold")]
    if report.rewrites:
        parts.append(_rewrites(report.rewrites))
    bounded = [(r.pattern, r.root, f"{r.bound:.2g}", r.detail) for r in report.rewrites if r.bound is not None]
    if bounded:
        parts.append(_table("not the same: off by at most", ("pattern", "where", "bound", "columns"), bounded))
    if report.undone:
        parts.append(_table("undone: wrong numbers", ("pattern", "where", "reason"), _rows(report.undone)))
    if report.refusals:
        parts.append(_refusals(report.refusals))
    if report.timings:
        longest = [f"{stage} {seconds:.2f}" for stage, seconds in report.timings.items() if seconds >= SHORTEST]
        whole = f"seconds: {sum(report.timings.values()):.2f}"
        parts.append(Text(f"{whole}; {', '.join(longest)}" if longest else whole, style="dim"))
    return Group(*parts)


def inspection(found: Inspection) -> RenderableType:
    """The recognised blocks, the operators by number, the size and the work of one sample."""
    blocks = [(pattern, where, _brief(meaning)) for pattern, where, meaning in found.blocks]
    operators = sorted(found.operators.items(), key=lambda item: (-item[1], item[0]))
    head = (
        f"{si(found.parameters)} parameters, {sum(found.operators.values())} operators, {len(blocks)} blocks; "
        f"a sample moves {si(found.bytes, 'B')} and computes {si(found.flops, 'FLOP')}"
    )
    parts: list[RenderableType] = [Text(head, style="bold")]
    if blocks:
        parts.append(_table("recognised", ("pattern", "where", "meaning"), blocks))
    parts.append(_table("operators", ("operator", "#"), [(name, str(count)) for name, count in operators]))
    return Group(*parts)


def _brief(meaning: str) -> str:
    """A meaning that spells its activation out repeats the product at every place."""
    return meaning if len(meaning) <= LONGEST else f"{meaning[:LONGEST]} ..."


def _summary(report: Report) -> str:
    made = len(report.rewrites)
    text = f"{report.host} for {report.target}: {report.nodes_before} -> {report.nodes_after} nodes, {made} rewrites"
    missing = f": {report.unverified}" if report.unverified else ""
    bounded = [r for r in report.rewrites if r.bound is not None]
    if bounded:
        held = "within" if all(r.error is not None for r in bounded) else "not verified to be within"
        missing += f"; {len(bounded)} places {held} the bounds stated below, in place of the tolerance"
    if report.model_error is None:
        return f"{text}, model not verified{missing}"
    return f"{text}, model verified (error {report.model_error:.2g} of the tolerance){missing}"


def _rewrites(rewrites: Iterable[Rewrite]) -> Table:
    groups: dict[tuple[str, str], list[Rewrite]] = {}
    for rewrite in rewrites:
        groups.setdefault((rewrite.pattern, rewrite.operator), []).append(rewrite)
    rows = []
    for (pattern, operator), made in groups.items():
        errors = [r.error for r in made if r.error is not None]
        rows.append(
            (
                pattern,
                operator,
                str(len(made)),
                f"{sum(len(r.before) for r in made)} -> {sum(len(r.after) for r in made)}",
                si(sum(r.bytes_saved for r in made), "B"),
                si(sum(r.flops_saved for r in made), "FLOP"),
                f"{sum(r.launches_saved for r in made):g}",
                f"{max(errors):.1e}" if errors else "-",
            )
        )
    columns = ("pattern", "becomes", "#", "nodes", "bytes saved", "FLOPs saved", "launches saved", "worst error")
    return _table("rewritten", columns, rows)


def _refusals(refusals: Iterable[Refusal]) -> Table:
    counts = Counter((r.pattern, r.reason) for r in refusals)
    first = {(r.pattern, r.reason): r.where for r in reversed(list(refusals))}
    rows = [(pattern, str(n), first[pattern, why], why) for (pattern, why), n in counts.most_common()]
    return _table("refused", ("pattern", "#", "first at", "reason"), rows)


def _rows(refusals: Iterable[Refusal]) -> list[tuple[str, ...]]:
    return [(r.pattern, r.where, r.reason) for r in refusals]


def _table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    # Text, not str: names of nodes hold brackets, which rich would read as markup.
    result = Table(title=title, title_justify="left", title_style="bold")
    numbers = {"#", "bytes saved", "FLOPs saved", "launches saved", "worst error"}
    for column in columns:
        result.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(cell) for cell in row))
    return result
