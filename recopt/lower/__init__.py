"""Fused operators written into a host graph: one file per host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import OptionError
from ..fused import (
    Attention,
    AttentionWeights,
    Bilinear,
    DotInteraction,
    EmbeddingBags,
    Gru,
    LayerNorm,
    Linear,
    Spec,
    TargetAttention,
    View,
)
from ..hosts.base import Array, Host, Node, Value
from ..layout.moves import Plan
from .columns import Columns

if TYPE_CHECKING:
    from ..hosts.fx import FxHost
    from ..hosts.onnx import OnnxHost
    from .onnx_writer import Writer

LINEAR = "recopt.linear.default"  # the node that `write` makes of a Linear in an FX graph
# Likewise of a LayerNorm, and how many operands each has, as long as nothing stands beside what it normalises.
NORMS = {"recopt.layer_norm.default": 4, "recopt.rms_norm.default": 3}
# For each dialect the targets that it can be written for, the default first.
TARGETS = {"aten": ("cpu", "cuda"), "onnx": ("portable", "ort-cpu", "ort-cuda", "recopt")}


def write(host: Host, spec: Spec, target: str) -> Value:
    """Append the nodes of a fused operator at the host's insertion point and return its value. Raises LowerError."""
    return _write_aten(_fx(host), spec, target) if host.dialect == "aten" else _write_onnx(_onnx(host), spec, target)


def _fx(host: Host) -> FxHost:
    """The host of an FX graph; torch is imported only where there is one."""
    from ..hosts.fx import FxHost

    assert isinstance(host, FxHost)
    return host


def _onnx(host: Host) -> OnnxHost:
    from ..hosts.onnx import OnnxHost

    assert isinstance(host, OnnxHost)
    return host


def _write_aten(host: FxHost, spec: Spec, target: str) -> Value:
    from . import torch, torch_attention, torch_bags, torch_gru

    if isinstance(spec, Linear):
        return torch.linear(host, spec, target)
    if isinstance(spec, Attention):
        return torch_attention.attention(host, spec, target)
    if isinstance(spec, AttentionWeights):
        return torch_attention.attention_weights(host, spec)
    if isinstance(spec, TargetAttention):
        return torch_attention.target_attention(host, spec, target)
    if isinstance(spec, Gru):
        return torch_gru.gru(host, spec, target)
    if isinstance(spec, LayerNorm):
        return torch.layer_norm(host, spec, target)
    if isinstance(spec, Bilinear):
        return torch.bilinear(host, spec)
    if isinstance(spec, DotInteraction):
        return torch.dot_interaction(host, spec)
    return torch_bags.embedding_bags(host, spec, target)


def _write_onnx(host: Writer, spec: Spec, target: str) -> Value:
    from . import onnx, onnx_attention, onnx_bags, onnx_gru, onnx_norm, onnx_target

    if isinstance(spec, Linear):
        return onnx.linear(host, spec, target)
    if isinstance(spec, Attention):
        return onnx_attention.attention(host, spec, target)
    if isinstance(spec, TargetAttention):
        return onnx_target.target_attention(host, spec, target)
    if isinstance(spec, Gru):
        return onnx_gru.gru(host, spec, target)
    if isinstance(spec, LayerNorm):
        return onnx_norm.layer_norm(host, spec, target)
    if isinstance(spec, Bilinear):
        return onnx.bilinear(host, spec)
    assert not isinstance(spec, (AttentionWeights, DotInteraction))  # which no ONNX target is given
    return onnx_bags.embedding_bags(host, spec, target)


def view(host: Host, item: View, name: str) -> Value:
    """Append the layout steps of `item` at the host's insertion point and return the result. Raises LowerError."""
    if host.dialect == "aten":
        from .torch import layout

        return layout(_fx(host), item.value, item.steps, name)
    from .onnx_layout import view as onnx_view

    return onnx_view(_onnx(host), item, name)


def missing(host: Host, spec: Spec) -> str | None:
    """Why `write` has no operator for `spec` in this graph; None where it has."""
    if host.dialect == "aten":
        return None
    if isinstance(spec, Gru) and not isinstance(spec.x.shape[1], int):
        from .onnx_gru import is_standard

        return None if is_standard(spec) else "steps are written one by one, and their number is not known"
    if not isinstance(spec, LayerNorm) or not spec.centred:
        return None
    from .onnx_norm import NORMALISES

    if (host.opset or 0) >= NORMALISES:
        return None
    return f"LayerNormalization needs opset {NORMALISES}, this is {host.opset}"


def is_written(host: Host, spec: Spec, root: Value, nodes: Sequence[Node]) -> bool:
    """Whether nodes are already what `write` makes of `spec` for `root`, though they are more than one."""
    if host.dialect == "aten" or not isinstance(spec, LayerNorm):
        return False
    from .onnx_norm import is_written as norm_is_written

    return norm_is_written(_onnx(host), spec, root, nodes)


def hint_repeats(host: Host, example: Sequence[Array]) -> bool:
    """Let the embedding bags of an FX graph say whether ids repeat in an example of its inputs. True where any do."""
    if host.dialect != "aten":
        return False
    from .torch_bags import hint_repeats as hint

    return hint(_fx(host), example)


def quicker(host: Host, spec: Spec, target: str) -> bool:
    """Whether what `write` writes is quicker than one operator of the host that does the same."""
    if host.dialect != "aten":
        return False
    from .torch import narrow
    from .torch_attention import compiles, holds
    from .torch_attention import quicker as is_quicker

    if isinstance(spec, TargetAttention):
        return target == "cpu" and compiles(spec)
    if isinstance(spec, AttentionWeights):
        return target == "cuda" and holds(spec)
    return (
        narrow(spec, target)
        if isinstance(spec, LayerNorm)
        else isinstance(spec, Attention) and is_quicker(spec, target)
    )


def join_interactions(host: Host) -> None:
    """Let dot products of pairs write what a concatenation puts in front of them; only in an FX graph."""
    if host.dialect == "aten":
        from .torch_features import join_interactions as join

        join(_fx(host))


def widens(host: Host, x: Value) -> bool:
    """Whether what makes x can write columns more than it does; only in an FX graph."""
    if host.dialect != "aten":
        return False
    from .torch_features import widens as can

    return can(x)


def widened(host: Host, x: Value, more: int) -> Value:
    """Append what makes x with that many columns of zeros behind. Raises GraphError."""
    from .torch_features import widened as make

    return make(_fx(host), x, more)


def in_place(host: Host, spec: Linear) -> bool:
    """Whether `write` reads x and writes y where they lie, whatever the steps of `spec`."""
    if host.dialect == "aten":
        return spec.channels_second
    from .onnx import is_convolution

    return is_convolution(spec)


def nodes_written(host: Host, spec: Spec, target: str) -> int:
    """How many host nodes `write` makes of `spec`, layout included."""
    if host.dialect == "aten":
        return 1
    from .onnx_writer import Counter

    counter = Counter(_onnx(host))
    _write_onnx(counter, spec, target)
    return counter.nodes


def multiplies(host: Host, spec: Spec) -> bool:
    """Whether `spec` becomes products of matrices in a file, though it is none."""
    if host.dialect == "aten" or not isinstance(spec, EmbeddingBags):
        return False
    from .onnx_bag import multiplied

    return any(map(multiplied, spec.bags))


def check_target(host: Host, target: str | None) -> str:
    """`target`; for None the host's own device, or the dialect's default. Raises OptionError for an unknown one."""
    known = TARGETS[host.dialect]
    if target is None:
        return host.device if host.device in known else known[0]
    if target not in known:
        raise OptionError(f"no target {target!r} for this model; there are: {', '.join(known)}")
    return target


def moves(host: Host, plans: Sequence[tuple[Value, Plan, str | None]], now: Mapping[Value, Value]) -> list[Value]:
    """Append what makes each plan, in front of the value that it is for, and an operator of one operand after it where
    one is named; over the values that sources are `now`. Raises LowerError."""
    made = []
    for value, plan, finish in plans:
        assert value.node is not None
        with host.at(value.node):
            if host.dialect == "aten":
                from .torch_moves import moved as torch_moved

                made.append(torch_moved(_fx(host), plan, value.name, now, finish, value))
                continue
            from .onnx_moves import moved

            made.append(moved(_onnx(host), plan, value.name, now))
    return made


def moves_written(host: Host, plan: Plan, now: Mapping[Value, Value]) -> int:
    """How many host nodes `moves` makes of a plan. Raises LowerError."""
    if host.dialect == "aten":
        return plan.nodes
    from .onnx_moves import moved
    from .onnx_writer import Counter

    counter = Counter(_onnx(host))
    moved(counter, plan, "counted", now)
    return counter.nodes


def columns_of(host: Host) -> Columns:
    """What writes one chain over all columns of a tensor."""
    if host.dialect == "aten":
        from .torch_columns import TorchColumns

        return TorchColumns(_fx(host))
    from .onnx_columns import OnnxColumns

    return OnnxColumns(_onnx(host))
