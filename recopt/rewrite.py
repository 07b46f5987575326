"""The only place that changes a host: chosen, verified matches become fused operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType

from . import lower, merge
from .cost import (
    CPU,
    LOOKUPS,
    MACHINES,
    ON_CPU,
    Cost,
    attention_cost,
    bags_cost,
    bilinear_cost,
    gru_cost,
    interaction_cost,
    linear_cost,
    nodes_cost,
    norm_cost,
    product_flops,
    target_cost,
    weights_cost,
)
from .fused import (
    Again,
    Attention,
    AttentionWeights,
    Bilinear,
    DotInteraction,
    EmbeddingBags,
    Gru,
    LayerNorm,
    Linear,
    Step,
    Take,
    TargetAttention,
    View,
    reading,
)
from .hosts.base import Array, Host, Node, Value
from .ir import sizes
from .ir.rules import FLOATS
from .ir.term import TooLarge
from .lift import lift
from .lift.base import Lifted
from .match import Match, No, needless
from .report import Key, Refusal, Report, Rewrite
from .verify import Verdict, verify_match

FEW_FLOPS = 0.2  # of what target attention takes: a concat's first layer costs more, a sum's less
FEW_ROWS = 64  # up to which ONNX Runtime's GRU is faster than its steps on a CPU: 0.23 at 1, 0.81 at 16, 1.23 at 256


@dataclass
class Place:
    """Embedding bags of the graph: `value` is computed by `spec`, and by `nodes`, which nothing else needs."""

    spec: EmbeddingBags
    value: Value
    nodes: tuple[Node, ...]


@dataclass
class Context:
    """What passes share: where the result runs, how much is proved, which rewrites may still be made, the account."""

    target: str
    report: Report
    verify: bool = True
    limit: int | None = None  # rewrites that may still be made
    banned: frozenset[Key] = field(default=frozenset())  # rewrites that were found to be wrong
    only: Key | None = None  # the one rewrite that may be made
    inputs: Sequence[Sequence[Array]] = ()  # of the model, on which it runs
    example: Sequence[Array] | None = None  # what the caller gave, if anything
    given: Host | None = None  # the model before all passes
    places: list[Place] | None = None  # embedding bags, once a pass has looked for them
    no_tables: list[tuple[str, str]] | None = None  # what data reads rows of and is no table, and why
    lifted: Lifted | None = None  # of the host as it is, where a pass that changed nothing left it

    def terms_of(self, host: Host) -> Lifted:
        """The terms of `host`."""
        if self.lifted is None or self.lifted.host is not host:
            self.lifted = lift(host)
        return self.lifted

    def settle(self, host: Host, changed: bool, *, merged: bool = False) -> bool:
        """`changed`, as a pass says it of `host`: if so, the terms are of the past and what nothing reads goes. Where
        `merged`, equal nodes that it wrote become one."""
        if changed:
            self.lifted = None
            host.erase_dead()
            if merged:
                host.normalise()
        return changed

    def allows(self, pattern: str, root: str) -> bool:
        """Whether this rewrite may be made; counts it if so."""
        if (pattern, root) in self.banned or self.limit == 0 or self.only not in (None, (pattern, root)):
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
    chosen, declined = choose(context.terms_of(host), pattern, context)
    written: list[tuple[Match, Value]] = []
    if chosen:
        context.lifted = None
        written = write(host, chosen, pattern, context)
    if pattern.operator == "recopt::embedding_bags":
        context.places = places(host, [*written, *declined])
    return bool(chosen)


def places(host: Host, found: Sequence[tuple[Match, Value]]) -> list[Place]:
    """The embedding bags of `found`, with the values that they are now: of two that share nodes the earlier one."""
    taken: set[Node] = set()
    there = set(host.nodes)
    kept = []
    for match, value in found:
        spec = match.spec
        if not isinstance(spec, EmbeddingBags) or any(v.node and v.node not in there for v in (value, *_read(spec))):
            continue
        nodes = match.dead if value is match.root else needless(host, value, _read(spec))
        if taken.isdisjoint(nodes):
            kept.append(Place(spec, value, nodes))
            taken.update(nodes)
    return kept


def _read(spec: EmbeddingBags) -> list[Value]:
    return [view.value for view in spec.views]


def choose(lifted: Lifted, pattern: ModuleType, context: Context) -> tuple[list[Chosen], list[tuple[Match, Value]]]:
    """The matches to write: later roots first, none inside another, each worth it on the target and proved; and those
    that are not worth it, with their roots."""
    host, report = lifted.host, context.report
    taken: set[Node] = set()
    chosen: list[Chosen] = []
    declined: list[tuple[Match, Value]] = []
    refused: dict[Value, str] = {}
    for root in pattern.roots(lifted):
        if root.node in taken:
            continue
        try:
            found = pattern.match(lifted, root)
        except (No, TooLarge, RecursionError) as why:
            large = f"{root.name} is {'too large a term' if isinstance(why, TooLarge) else 'nested too deep to follow'}"
            refused[root] = str(why) if isinstance(why, No) else large
            readers = [v for node in host.users(root) for v in node.outputs]
            if not readers or any(refused.get(v) != refused[root] for v in readers):  # else said where it ends
                report.refusals.append(Refusal(pattern.name, root.name, refused[root]))
            continue
        if found is None:
            continue
        saved = saving(lifted, found, context.target)
        reason = declines(host, found, saved, context.target)
        if reason:
            report.refusals.append(Refusal(pattern.name, root.name, reason))
            declined.append((found, root))
            continue
        if not context.allows(pattern.name, root.name):
            declined.append((found, root))
            continue
        verdict = verify_match(lifted, found) if context.verify else None
        if verdict is not None and not verdict.ok:
            report.undone.append(Refusal(pattern.name, root.name, f"disagrees with its meaning: {verdict.reproducer}"))
            continue
        taken.update(found.dead)
        chosen.append(Chosen(found, saved, verdict))
    return chosen, declined


def saving(lifted: Lifted, found: Match, target: str) -> Cost:
    """What a match saves at the nominal batch. A product that other nodes need too is computed twice from then on."""
    gone = [v for node in found.dead for v in node.outputs if v in found.products]
    spec = found.spec
    if isinstance(spec, Attention):  # its own products are those that are gone; scores that stay are computed twice
        twice = sum(product_flops(lifted.definition[v]) for v in found.products if v not in gone)
        return nodes_cost(lifted.host, found.dead) - attention_cost(spec, twice)
    if isinstance(spec, Gru) and found.reference is not None:
        return Cost()  # one operator for another
    if isinstance(spec, Gru):
        return nodes_cost(lifted.host, found.dead) + Cost(flops=found.flops) - gru_cost(spec)
    if isinstance(spec, LayerNorm):
        return nodes_cost(lifted.host, found.dead) - norm_cost(spec)
    if isinstance(spec, TargetAttention):
        gone = [v for node in found.dead for v in node.outputs if v in lifted.definition]
    before = nodes_cost(lifted.host, found.dead) + Cost(flops=sum(product_flops(lifted.definition[v]) for v in gone))
    if isinstance(spec, TargetAttention):
        return before - target_cost(spec)
    if isinstance(spec, Bilinear):
        return before - bilinear_cost(spec)
    if isinstance(spec, AttentionWeights):
        return before - weights_cost(spec)
    if isinstance(spec, DotInteraction):
        return before - interaction_cost(spec)
    if isinstance(spec, EmbeddingBags):
        return before - bags_cost(spec, found.flops)
    return before - linear_cost(spec, found.flops, target != "portable", lower.in_place(lifted.host, spec))


def _only_wraps(host: Host, found: Match, spec: EmbeddingBags) -> bool:
    """Whether embedding bags would take the place of one lookup, and of what computes its ids as they do: one of ten
    microseconds then takes 1.3 to 1.5 times as long."""
    dead = found.dead
    if len(spec.bags) == 1 and spec.bags[0].program:
        dead = tuple(node for node in dead if any(v.dtype in FLOATS for v in node.outputs))
    filled = len(spec.bags) == 1 and any(isinstance(piece[0], Again) for piece in spec.pieces)  # and a pad of its rows
    return nodes_cost(host, dead).launches <= 1 + filled


def _without_largest(found: Match) -> bool:
    """Whether a softmax is spelled as exponentials over their sum: a Softmax, which looks for the largest score first,
    takes 1.1 to 1.25 of the time of an attention of those three operators on a CPU."""
    ops = {node.op for node in found.dead}
    return isinstance(found.spec, Attention) and {"Exp", "ReduceSum", "Div"} <= ops and "ReduceMax" not in ops


def _reads_apart(found: Match, spec: EmbeddingBags) -> bool:
    """Whether one lookup would be several, of ids that are moved: the parts of its rows cost nothing, and of
    `e[:, 1:] - e[:, :-1]` two lookups took 1.3 to 1.6 times as long. Columns of ids are read where they lie.
    Or one of more rows, for maxima of windows that share some: 1.05 to 1.08 of the time; their sums take 0.8.
    """
    moved = {(b.table, b.ids) for b in spec.bags if _moves(b.ids)}
    lookups = [n for n in found.dead if n.op in LOOKUPS and any(v.dtype in FLOATS for v in n.outputs)]
    largest = [s.places for b in spec.bags if b.pool == "max" for s in b.ids.steps if isinstance(s, Take)]
    again = any(len(places) > len(set(places)) for places in largest)
    return 0 < len(lookups) < len(moved) + again


def _picks(spec: EmbeddingBags) -> bool:
    """Whether the ids of some lookup are picked among others."""
    return any(isinstance(s, Take) for b in spec.bags for s in b.ids.steps)


def _moves(ids: View) -> bool:
    """Whether ids are not columns of a tensor, or all of it."""
    return len(ids.steps) > 1 or any(isinstance(s, Take) for s in ids.steps)


def _as_much(host: Host, spec: TargetAttention, saved: Cost) -> bool:
    """Whether target attention spares a CPU nothing: 1.05 to 1.16 of the time of torch's operators for a first layer
    that adds up two, 0.11 to 0.78 where it is one call of C."""
    multiplies = sizes.product(spec.weights[2].shape) != 0
    return not multiplies and saved.flops < FEW_FLOPS * target_cost(spec).flops and not lower.quicker(host, spec, "cpu")


def declines(host: Host, found: Match, saved: Cost, target: str) -> str | None:
    """Why a match is not worth making; None where it is."""
    machine = MACHINES[target]
    missing = lower.missing(host, found.spec)
    if missing is not None:
        return missing
    launches = nodes_cost(host, found.dead).launches
    if isinstance(found.spec, (Attention, LayerNorm)) and launches <= 1:
        # without any, only views of the operator would go
        return None if launches and lower.quicker(host, found.spec, target) else "is one operator already"
    if isinstance(found.spec, Attention) and found.spec.unseen == "scores" and target == "cuda":
        return "no kernel weighs by scores without a softmax"
    if isinstance(found.spec, AttentionWeights) and not lower.quicker(host, found.spec, target):
        return "no kernel makes weights of so many keys, or of another type"
    if isinstance(found.spec, Attention) and target == "cpu" and host.is_constant(found.spec.q.value):
        # 10 us more at batch 1, 0.9 to 1.3 of the time at 256 rows of 50 keys of 64, one to four queries.
        return "the model learned its queries, which a product with weights serves as well on a CPU"
    gru = isinstance(found.spec, Gru) and target in ON_CPU
    if gru and sizes.nominal(found.spec.shape[0]) > FEW_ROWS:
        return "ONNX Runtime's GRU takes 1.2 to 1.3 times as long as the steps at the nominal batch"
    if isinstance(found.spec, Gru) and found.reference is not None:
        return None  # one operator for another, which runs torch's own where that is faster
    if saved.seconds(machine) < -0.5 * machine.launch:
        amounts = f"{saved.launches:+.0f} launches, {saved.bytes:+.2g} bytes, {saved.flops:+.2g} FLOPs"
        return f"does not pay on {target}: {amounts} saved"
    if target == "cpu" and isinstance(found.spec, EmbeddingBags) and _only_wraps(host, found, found.spec):
        return "is one lookup already, which the operator would only wrap"
    if target == "cpu" and isinstance(found.spec, EmbeddingBags) and _reads_apart(found, found.spec):
        return "joins parts of one lookup's rows, which would become several"
    gathers = machine is CPU or host.dialect == "onnx"
    if found.again and isinstance(found.spec, EmbeddingBags) and (gathers or _picks(found.spec)):
        # No kernel gathers and pools there, and rows that lie in memory are read faster than they are gathered. Picked
        # rows are read by what multiplies them in pairs, on a GPU too.
        return f"looks {', '.join(sorted(v.name for v in found.again))} up again, which others need too"
    if isinstance(found.spec, TargetAttention) and target == "cpu" and _as_much(host, found.spec, saved):
        return "target and items are weighed apart already, which takes a CPU no longer"
    if isinstance(found.spec, (TargetAttention, Bilinear)):
        return None  # it is there for the work that it saves, not for its length
    if target != "recopt" and lower.is_written(host, found.spec, found.root, found.dead):
        return "is what ONNX Runtime makes one kernel of already"
    if isinstance(found.spec, LayerNorm) and not found.spec.centred and found.spec.eps:
        return None  # what is written is as long, but one kernel
    if host.dialect == "onnx" and target != "recopt":  # there the operator is the point, whatever it replaces
        replaced = sum(not all(host.is_constant(v) for v in n.outputs) for n in found.dead)
        loops = any(host.regions(n) for n in found.dead)  # which run their nodes again and again
        # a product of matrices takes 0.4 to 1.0 of the time of nodes that multiply and add: it may take one more
        products = any(n.op in ("MatMul", "Gemm") for n in found.dead)
        quicker = machine is CPU and not products and lower.multiplies(host, found.spec)
        fewer = -1 if quicker else 3 if machine is CPU and _without_largest(found) else 1
        if not loops and replaced < lower.nodes_written(host, found.spec, target) + fewer:
            return f"is as short as {target} allows already"
    return None


def write(host: Host, chosen: list[Chosen], pattern: ModuleType, context: Context) -> list[tuple[Match, Value]]:
    """Put the fused operators in, in topological order, so that a later one reads an earlier one's result. Returns
    what was written, over the values that it reads now, and its value."""
    written: list[tuple[Match, Value]] = []
    moved: dict[Value, Value] = {}

    for group in _groups(host, chosen, context.target):
        first = group[0].match.root.node  # the earliest: all of a group read the same, and constants
        first = group[0].match.at or first
        assert first is not None
        with host.at(first):
            steps: list[tuple[Step, ...]]
            serves = group[0].match.serves
            if serves:
                spec, steps = reading(group[0].match.spec, moved), [s for _, s in serves]
            elif len(group) == 1:
                spec, steps = reading(group[0].match.spec, moved), [()]
            else:
                specs = [reading(item.match.spec, moved) for item in group]
                spec, steps = merge.joined(host, [s for s in specs if isinstance(s, Linear)])
            whole = lower.write(host, spec, context.target)
            made = [lower.view(host, View(whole, spec.shape, s), spec.name) if s else whole for s in steps]
        replaced = [v for v, _ in serves] or [item.match.root for item in group]
        for n, item in enumerate(group):
            values = (whole, *made) if serves else (whole, made[n])
            after = dict.fromkeys(v.node.name if v.node else v.name for v in values)
            context.report.rewrites.append(_account(item, pattern, tuple(after)))
        for old, value in zip(replaced, made, strict=True):
            host.replace(old, value)
            moved[old] = value
        if not serves:
            for item, value in zip(group, made, strict=True):
                written.append((replace(item.match, spec=reading(item.match.spec, moved)), value))
    host.erase_dead()
    return written


def _groups(host: Host, chosen: list[Chosen], target: str) -> list[list[Chosen]]:
    """What is written together, in topological order: linears of one input where that pays, all others alone."""
    groups: dict[object, list[Chosen]] = {}
    for item in reversed(chosen):
        spec = item.match.spec
        groups.setdefault(merge.key(spec) if isinstance(spec, Linear) else id(item), []).append(item)
    flat: list[list[Chosen]] = []
    for group in groups.values():
        specs = [item.match.spec for item in group if isinstance(item.match.spec, Linear)]
        flat += [group] if merge.joins(host, specs, target) else [[item] for item in group]
    place = {id(item): n for n, item in enumerate(reversed(chosen))}
    return sorted(flat, key=lambda g: place[id(g[0])])


def _account(item: Chosen, pattern: ModuleType, after: tuple[str, ...]) -> Rewrite:
    found, saved = item.match, item.saved
    error = None if item.verdict is None else item.verdict.error
    before = tuple(n.name for n in found.dead)
    amounts = (saved.bytes, saved.flops, saved.launches)
    return Rewrite(pattern.name, pattern.operator, found.root.name, before, after, *amounts, error, found.detail)
