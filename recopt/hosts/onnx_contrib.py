"""What ONNX Runtime's fused operators fuse, as the standard operators that it fuses again when it loads a model."""

from __future__ import annotations

from .base import Node, Value

BASES = {"com.microsoft::FusedGemm": "Gemm", "com.microsoft::FusedConv": "Conv"}
FUSED = frozenset(BASES)
PARAMETERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign"), ()),
    **dict.fromkeys(("LeakyRelu", "Elu"), ("alpha",)),
    "HardSigmoid": ("alpha", "beta"),
    "Selu": ("alpha", "gamma"),
}


def parts(node: Node) -> list[tuple[str, tuple[Value | None, ...], dict[str, object]]] | None:
    """A fused product and activation as the two operators that it is: (operator, arguments but the product, attributes)
    each. None for any other node, and for one that they do not say all of."""
    base = BASES.get(node.op)
    name = node.kwargs.get("activation", "")
    if base is None or (name and name not in PARAMETERS) or any(v is not None for v in node.args[3:]):
        return None
    attributes = {k: v for k, v in node.kwargs.items() if not k.startswith("activation")}
    product = (base, tuple(node.args[:3]), attributes)
    if not name:
        return [product]
    given = node.kwargs.get("activation_params", ())
    values = (
        dict(zip(PARAMETERS[name], given, strict=False))
        if base == "Conv"
        else {p: node.kwargs[f"activation_{p}"] for p in PARAMETERS[name] if f"activation_{p}" in node.kwargs}
    )
    return [product, (name, (), values)] if len(values) == len(PARAMETERS[name]) else None
