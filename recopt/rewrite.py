"""The only place that changes a host: chosen, verified matches become fused operators."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import ModuleType

from . import lower
from .cost import MACHINES, Cost, linear_cost, nodes_cost
from .fused import Concat, Linear, View
from .hosts.base import Host, Node, Value
from .lift import lift
from .lift.base import Lifted
from .match import Match, No
from .report import Refusal, Report, Rewrite
from .verify import Verdict, verify_match


@dataclass
class Context:
    """What passes share: where the result runs, how much is proved, which rewrites may still be made, the account."""

    target: str
    report: Report
    verify: bool = True
    limit: int | None = None  # rewrites that may still be made
    banned: frozenset[str] = field(default=frozenset())  # roots whose rewrite was found to be wrong

    def allows(self, found: Match) -> bool:
        """Whether this match may be made; counts it if so."""
        if found.root.name in self.banned or self.limit == 0:
            return False
        if self.limit is not None:
            self.limit -= 1
        return True


@dataclass(frozen=True)
class Chosen:
    """A match that will be written."""

    match: Match
    saved: Cost
    verdict: Verdict | None


def apply(host: Host, pattern: ModuleType, context: Context) -> bool:
    """Rewrite every place of `host` that `pattern` recognises, that pays on the target and that agrees on numbers."""
    chosen = choose(lift(host), pattern, context)
    write(host, chosen, pattern, context)
    return bool(chosen)


def choose(lifted: Lifted, pattern: ModuleType, context: Context) -> list[Chosen]:
    """The matches to write: later roots first, none inside another, each worth it on the target and proved."""
    host, report = lifted.host, context.report
    taken: set[Node] = set()
    chosen: list[Chosen] = []
    for root in pattern.roots(lifted):
        if root.node in taken:
            continue
        try:
            found = pattern.match(lifted, root)
        except No as why:
            report.refusals.append(Refusal(pattern.name, root.name, str(why)))
            continue
        if found is None:
            continue
        saved = saving(host, found, context.target)
        reason = declines(host, found, saved, context.target)
        if reason:
            report.refusals.append(Refusal(pattern.name, root.name, reason))
            continue
        if not context.allows(found):
            continue
        verdict = verify_match(lifted, found) if context.verify else None
        if verdict is not None and not verdict.ok:
            report.undone.append(Refusal(pattern.name, root.name, f"disagrees with its meaning: {verdict.reproducer}"))
            continue
        taken.update(found.dead)
        chosen.append(Chosen(found, saved, verdict))
    return chosen


def saving(host: Host, found: Match, target: str) -> Cost:
    """What a match saves at the nominal batch."""
    whole = any(v in found.products for n in found.dead for v in n.outputs)  # else the product is computed twice
    before = nodes_cost(host, found.dead) + Cost(flops=found.flops if whole else 0.0)
    return before - linear_cost(found.spec, found.flops, fused_epilogue=target != "portable")


def declines(host: Host, found: Match, saved: Cost, target: str) -> str | None:
    """Why a match is not worth making; None where it is."""
    machine = MACHINES[target]
    if saved.seconds(machine) < -0.5 * machine.launch:
        amounts = f"{saved.launches:+.0f} launches, {saved.bytes:+.2g} bytes, {saved.flops:+.2g} FLOPs"
        return f"does not pay on {target}: {amounts} saved"
    if host.dialect == "onnx":
        replaced = sum(not all(host.is_constant(v) for v in n.outputs) for n in found.dead)
        if replaced <= lower.nodes_written(host, found.spec, target) and not any(
            n.op.startswith("recopt") for n in found.dead
        ):
            return f"is as short as {target} allows already"
    return None


def write(host: Host, chosen: list[Chosen], pattern: ModuleType, context: Context) -> None:
    """Put the fused operators in, in topological order, so that a later one reads an earlier one's result."""
    moved: dict[Value, Value] = {}

    def current(view: View) -> View:
        return replace(view, value=moved.get(view.value, view.value))

    def resolved(spec: Linear) -> Linear:
        x = (
            Concat(tuple(current(v) for v in spec.x.views), spec.x.shape)
            if isinstance(spec.x, Concat)
            else current(spec.x)
        )
        return replace(spec, x=x, w=current(spec.w) if isinstance(spec.w, View) else spec.w)

    for item in reversed(chosen):
        found, saved = item.match, item.saved
        root = found.root.name  # a graph output's name moves to what replaces it
        assert found.root.node is not None
        with host.at(found.root.node):
            made = lower.write(host, resolved(found.spec), context.target)
        host.replace(found.root, made)
        moved[found.root] = made
        context.report.rewrites.append(
            Rewrite(
                pattern.name,
                pattern.operator,
                root,
                tuple(n.name for n in found.dead),
                (made.node.name if made.node else made.name,),
                saved.bytes,
                saved.flops,
                saved.launches,
                None if item.verdict is None else item.verdict.error,
                found.detail,
            )
        )
    host.erase_dead()
