"""A region written into an FX graph as one `recopt::pointwise`: a node with a result for each output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import GraphError, LowerError
from ..hosts.base import Value
from ..hosts.fx import FxHost
from ..hosts.fx_operators import POINTWISE
from ..kernels.pointwise import PointwiseError, parse_program

if TYPE_CHECKING:
    from ..patterns.pointwise import Spec


def pointwise(host: FxHost, spec: Spec, name: str) -> tuple[Value, ...]:
    """Write `spec` at the insertion point and return its outputs. Raises LowerError where it does not fit."""
    text = str(spec.program)
    like = next(v for v in spec.inputs if isinstance(v, Value))
    try:
        if str(parse_program(text)) != text:
            raise LowerError(f"the program of {name} does not read as it was written")
        inputs = [v if isinstance(v, Value) else host.add_constant(v, name=f"{name}_numbers") for v in spec.inputs]
        first = host.call(POINTWISE, (inputs, text), name=name, like=like)
    except (GraphError, PointwiseError) as error:
        raise LowerError(f"recopt::pointwise {name}: {error}") from error
    assert first.node is not None
    made = first.node.outputs
    for value, wanted in zip(made, spec.outputs, strict=True):
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            raise LowerError(f"{wanted.name} is {value.dtype} {value.shape}, not {wanted.dtype} {wanted.shape}")
    return made
