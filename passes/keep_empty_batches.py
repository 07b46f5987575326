"""For ONNX Runtime on a CPU: matrices are not turned by a `Transpose` that it takes into a product of empty batches.

before:  MatMul(Transpose(x [n, 3, 5], perm 0 2 1), w [3, 4])
after:   MatMul(Einsum(x, "abc->acb"), w)
"""

from __future__ import annotations

from string import ascii_lowercase

from recopt.cost import ON_CPU
from recopt.hosts.base import Host, Node
from recopt.report import Rewrite
from recopt.rewrite import Context

name = "keep-empty-batches"

# ONNX Runtime (1.31) makes a FusedMatMul of a product of turned matrices, which refuses a batch of none where the other
# operand has none of its own. An Einsum stays apart: of one row it takes 0.9 us more, of 256 up to a third less, as the
# product is then one of all rows. What the model turns itself stays as it is.
EINSUM = 12  # opset


def run(host: Host, context: Context) -> bool:
    """Whether anything was rewritten."""
    if context.target not in ON_CPU:
        return False
    from recopt.hosts.onnx import OnnxHost

    assert isinstance(host, OnnxHost)
    if host.opset < EINSUM:
        return False
    own = {node.name for node in context.given.nodes if node.op == "Transpose"} if context.given else set()
    changed = False
    for node in [n for n in host.nodes if _turns(n) and n.name not in own]:
        root = node.outputs[0]
        if not any(_broadcasts(user, node) for user in host.users(root)) or not context.allows(name, root.name):
            continue
        letters = ascii_lowercase[: len(root.shape or ())]
        equation = f"{letters}->{letters[:-2]}{letters[-1]}{letters[-2]}"
        with host.at(node):
            new = host.call(
                "Einsum", [node.args[0]], {"equation": equation}, name=root.name,
                shape=root.shape, dtype=root.dtype, like=root,
            )  # fmt: skip
        host.replace(root, new)
        made = (new.node.name,) if new.node else ()
        detail = "matrices of a batch that may be empty are turned apart from their product"
        context.report.rewrites.append(
            Rewrite(name, "Transpose", root.name, (node.name,), made, 0.0, 0.0, 0.0, None, detail)
        )
        changed = True
    return context.settle(host, changed)


def _turns(node: Node) -> bool:
    """Whether a node turns the matrices of a batch that may be empty, of numbers that ONNX Runtime's Einsum takes."""
    if node.op != "Transpose" or node.opaque:
        return False
    perm, x = list(node.kwargs.get("perm") or ()), node.args[0]
    rank = len(perm)
    if rank < 3 or perm != [*range(rank - 2), rank - 1, rank - 2] or x.dtype not in ("float32", "float64"):
        return False
    return not all(isinstance(size, int) and size > 0 for size in (x.shape or ())[:-2])


def _broadcasts(user: Node, node: Node) -> bool:
    """Whether a node is a product with an operand of another batch than the matrices that `node` turns."""
    if user.op != "MatMul" or user.opaque:
        return False
    shape = node.outputs[0].shape or ()
    others = [a.shape for a in user.inputs if a is not node.outputs[0]]
    return any(other is None or other[:-2] != shape[:-2] for other in others)
