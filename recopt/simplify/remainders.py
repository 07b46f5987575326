"""Remainders of whole numbers without a division, which takes ONNX Runtime 7 ns a number on a CPU."""

from __future__ import annotations

import numpy as np

from ..cost import ON_CPU
from ..hosts.base import Array, Host, Node, Value
from ..hosts.onnx import OnnxHost
from ..ir.sizes import nominal, product
from ..report import Rewrite
from ..rewrite import Context

BITWISE = 18  # opset from which there is a bitwise and
MANY = 1024  # numbers of the nominal batch, whose divisions take 7 us
BITS = {"int32": 32, "int64": 64}


def simplify_remainders(host: Host, context: Context, name: str) -> bool:
    """Rewrite remainders by constants. True where any is.

    before:  Mod(x, 16);         Equal(Mod(x, 5), 0)
    after:   BitwiseAnd(x, 15);  Less(x * a + b, c)
    """
    if not isinstance(host, OnnxHost) or context.target not in ON_CPU:
        return False
    changed = False
    for node in [n for n in host.nodes if n.op == "Mod" and not n.opaque]:
        x, by = node.args
        if x.dtype not in BITS or host.is_constant(x) or not host.is_constant(by) or node.kwargs.get("fmod", 0):
            continue  # that of C ONNX Runtime computes in float64: what it answers for large numbers is its own
        divisors = host.constant(by)
        if (host.opset or 0) >= BITWISE and _powers(divisors):
            steps = {node.outputs[0]: [("BitwiseAnd", divisors - 1)]}
        elif bool(((divisors > 1) & (divisors % 2 == 1)).all()) and (context.target == "ort-cpu" or _many(x)):
            steps = {value: _test(divisors, zero) for value, zero in _tests(host, node)}
        else:
            continue
        for old, chain in steps.items():
            if context.allows(name, old.name):
                _write(host, context, name, node, old, chain)
                changed = True
    return context.settle(host, changed)


def _many(x: Value) -> bool:
    """Whether what is saved is worth an operator more in a file that others run too."""
    return x.shape is not None and nominal(product(x.shape)) >= MANY


def _powers(divisors: Array) -> bool:
    """Whether all are powers of two: remainders are the low bits then, of negative numbers too."""
    return bool(((divisors > 0) & (divisors & (divisors - 1) == 0)).all())


def _tests(host: Host, node: Node) -> list[tuple[Value, bool]]:
    """Where a remainder is only asked whether it is 0: the answers, and whether they are true for 0. Else none."""
    found: list[tuple[Value, bool]] = []
    out = node.outputs[0]
    for user in host.users(out):
        zero = next((a for a in user.args if a is not out and a is not None), None)
        if user.op != "Equal" or zero is None or not host.is_constant(zero) or host.constant(zero).any():
            return []
        answer = user.outputs[0]
        if answer.shape != out.shape or out.shape is None:
            return []
        readers = host.users(answer)
        if readers and not host.is_output(answer) and all(r.op == "Not" for r in readers):
            found += [(r.outputs[0], False) for r in readers]
        else:
            found.append((answer, True))
    return [] if host.is_output(out) else found


def _test(divisors: Array, zero: bool) -> list[tuple[str, Array]]:
    """Steps from x to whether d divides it (or does not), for odd d > 1. Multiplied by the inverse of d modulo 2^n, the
    multiples of d are their quotients, from -limit to limit, and all other numbers the rest (Warren, Hacker's Delight,
    10-17); what is added brings those to the smallest numbers there are."""
    bits, lowest = BITS[divisors.dtype.name], int(np.iinfo(divisors.dtype).min)
    flat = [int(d) for d in divisors.reshape(-1)]
    limits = [(2 ** (bits - 1) - 1) // d for d in flat]

    def held(numbers: list[int]) -> Array:
        return np.array(numbers, divisors.dtype).reshape(divisors.shape)

    def wrapped(n: int) -> int:
        return (n - lowest) % (1 << bits) + lowest

    inverse = held([wrapped(pow(d, -1, 2**bits)) for d in flat])
    shift, last = held([lowest + n for n in limits]), [lowest + 2 * n for n in limits]
    asked = ("Less", held([n + 1 for n in last])) if zero else ("Greater", held(last))
    return [("Mul", inverse), ("Add", shift), asked]


def _write(host: OnnxHost, context: Context, name: str, node: Node, old: Value, chain: list[tuple[str, Array]]) -> None:
    """`chain` of the operand of `node` in the place of `old`."""
    value, dtype = node.args[0], node.args[0].dtype
    assert old.node is not None
    with host.at(old.node):
        for n, (op, number) in enumerate(chain):
            constant = host.share_constant(number, name=f"{old.name}_number")
            last = n + 1 == len(chain)
            value = host.call(op, [value, constant], name=old.name, shape=old.shape, dtype=old.dtype if last else dtype)
    host.replace(old, value)
    after = (value.node.name if value.node else value.name,)
    gone = (node.name, old.node.name)
    context.report.rewrites.append(
        Rewrite(name, "remainder", old.name, gone, after, 0.0, 0.0, 0.0, None, "no division")
    )
