"""What an optimisation did and declined to do: plain data first, a rich table when printed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from .errors import LoadError

if TYPE_CHECKING:
    from rich.console import RenderableType


Key: TypeAlias = tuple[str, str]  # which rewrite: its pattern and its root


@dataclass(frozen=True)
class Rewrite:
    """One rewrite that was made."""

    pattern: str
    operator: str  # the fused operator, e.g. "recopt::linear"
    root: str  # the host value that it computes
    before: tuple[str, ...]  # host nodes that it replaced, by name
    after: tuple[str, ...]  # host nodes that it wrote, by name
    bytes_saved: float  # at the nominal batch
    flops_saved: float
    launches_saved: float
    error: float | None  # largest relative error against the float64 evaluator; None when not verified
    detail: str = ""  # the meaning, in index notation
    bound: float | None = None  # largest absolute error that it may make; None: it computes the same

    @property
    def key(self) -> Key:
        return self.pattern, self.root


@dataclass(frozen=True)
class Refusal:
    """One place where a pattern looked and did not rewrite, and why."""

    pattern: str
    where: str
    reason: str


@dataclass
class Report:
    """The account of one `optimize` call."""

    host: str  # "aten" or "onnx"
    target: str
    nodes_before: int = 0
    nodes_after: int = 0
    rewrites: list[Rewrite] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    undone: list[Refusal] = field(default_factory=list)  # rewrites that disagreed on numbers, with a reproducer
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage
    model_error: float | None = None  # largest error of the whole model over its tolerance's scale; None: not verified
    unverified: str = ""  # what of the whole model could not be compared though it was asked for, and why

    def counts(self) -> dict[str, int]:
        """Rewrites by pattern."""
        return dict(Counter(r.pattern for r in self.rewrites))

    def to_json(self) -> str:
        """All of the report as JSON text."""
        return json.dumps({**asdict(self), "counts": self.counts()}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote. Raises LoadError when `text` is none."""
        try:
            data = json.loads(text)
            del data["counts"]
            rewrites = [
                Rewrite(**{**r, "before": tuple(r["before"]), "after": tuple(r["after"])}) for r in data["rewrites"]
            ]
            refused, undone = ([Refusal(**r) for r in data[key]] for key in ("refusals", "undone"))
            return cls(**{**data, "rewrites": rewrites, "refusals": refused, "undone": undone})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LoadError("not a report of recopt") from error

    def __rich__(self) -> RenderableType:
        from .view.table import table  # rich is imported only to print

        return table(self)

    def __str__(self) -> str:
        from rich.console import Console

        from .view.table import WIDTH

        console = Console(width=WIDTH, color_system=None, force_terminal=False, highlight=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())
