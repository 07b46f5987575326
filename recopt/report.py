"""What an optimisation did and declined to do: plain data first, a rich table when printed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field


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

    def counts(self) -> dict[str, int]:
        """Rewrites by pattern."""
        return dict(Counter(r.pattern for r in self.rewrites))

    def to_json(self) -> str:
        """All of the report as JSON text."""
        return json.dumps({**asdict(self), "counts": self.counts()}, indent=2)
