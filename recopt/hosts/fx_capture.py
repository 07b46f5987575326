"""From a PyTorch module to an exported program that the FX host can take: batch symbolic, mutation explicit."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.nn.modules import transformer

from ..errors import LoadError, OptionError
from .fx_module import children

# Wrappers that only set a global mode around a sub-graph: functionalising inlines them.
_INLINED = ("wrap_with_set_grad_enabled", "wrap_with_autocast", "_add_batch_dim")  # the last is of torch.vmap
_DATA_DEPENDENT = ("data-dependent", "data dependent", "GuardOnDataDependent", "Could not guard", "control flow")


def capture(module: torch.nn.Module, example_inputs: object, dynamic_shapes: object = None) -> ExportedProgram:
    """Export `module` as it stands (training flag included), without gradients and without running it.

    `example_inputs` is a tuple or list of positional arguments, one tensor, or a dict of keyword arguments. Where
    `dynamic_shapes` is None, dimension 0 of every tensor that has the batch size is kept symbolic if export accepts it.
    Raises LoadError when inputs are missing or do not fit, or when forward decides on the values of tensors.
    """
    if not isinstance(module, torch.nn.Module):
        raise LoadError(f"cannot capture a {type(module).__name__}: need a torch.nn.Module")
    empty = next((n for n, t in (*module.named_parameters(), *module.named_buffers()) if t.is_meta), None)
    if empty is not None:
        raise LoadError(f"cannot capture {type(module).__name__}: {empty!r} lies on the meta device and has no values")
    args, kwargs = arguments(example_inputs)
    if dynamic_shapes is not None:
        if not isinstance(dynamic_shapes, (dict, tuple, list, ShapesCollection)):
            kind = type(dynamic_shapes).__name__
            raise OptionError(f"dynamic_shapes is of {kind}: need what torch.export takes, a dict, tuple or list")
        return _export(module, args, kwargs, dynamic_shapes)
    batch = _batch_size(args, kwargs)
    if batch is None:
        return _export(module, args, kwargs, None)
    # Sizes 0 and 1 are always specialised by export, so a single example is doubled.
    copies = 2 if batch == 1 else 1
    wide_args, wide_kwargs, shapes = _batched(args, kwargs, batch, copies)
    try:
        program = _export(module, wide_args, wide_kwargs, shapes)
    except LoadError:
        return _export(module, args, kwargs, None)
    if program.range_constraints:
        return program
    # No size is a symbol: forward made a number of one, as len(x) is. Read as source code, it may do without.
    try:
        read = _export(module, wide_args, wide_kwargs, shapes, strict=True)
    except LoadError:
        return program
    return read if read.range_constraints else program


def call_of(program: ExportedProgram, given: object) -> tuple[Any, Any]:
    """Example inputs as the positional and keyword arguments of a call of `program`; names may stand for positions.
    Raises OptionError where they fit no call."""
    args, kwargs = arguments(given)
    signature = program.module_call_graph[0].signature
    assert signature is not None
    positional, keywords = children(signature.in_spec)
    names, wanted = list(signature.forward_arg_names or []), list(keywords.context or [])
    if not args and len(names) == positional.num_children + len(wanted) and kwargs.keys() == set(names):
        args = tuple(kwargs[name] for name in names[: positional.num_children])
        kwargs = {name: kwargs[name] for name in wanted}
    if kwargs.keys() == set(wanted):
        kwargs = {name: kwargs[name] for name in wanted}  # in the program's order
        if torch.utils._pytree.tree_structure((args, kwargs)) == signature.in_spec:
            return args, kwargs
    raise OptionError(f"the example inputs do not fit the program, which takes ({', '.join(names)})")


def functional(program: ExportedProgram) -> ExportedProgram:
    """`program` itself when it is free of mutation, else its functional form: same operators, writes as outputs."""
    if not any(_mutates(node) for node in program.graph.nodes):
        return program
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations
            decomposed: ExportedProgram = program.run_decompositions({})
        return decomposed
    except Exception as error:  # torch raises dozens of types here; all mean the same to the user
        raise LoadError(f"the program's in-place operators cannot be made functional: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The first line of an error's text that says something, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def arguments(example_inputs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as positional and keyword arguments. Raises LoadError where they are neither."""
    if example_inputs is None:
        raise LoadError("example inputs are missing: give a tuple of positional or a dict of keyword arguments")
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise LoadError(f"example inputs are a {type(example_inputs).__name__}: need a tuple or a dict")


def _batch_size(args: object, kwargs: object) -> int | None:
    """Dimension 0 of the first tensor, or where that is 1 the most common one; None for no tensor or size 0."""
    leaves = torch.utils._pytree.tree_leaves((args, kwargs))
    found = [leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not found or found[0] != 1:
        return found[0] or None if found else None
    sizes = Counter(found)
    return max(sizes, key=lambda size: sizes[size]) or None


def _batched(args: Any, kwargs: Any, batch: int, copies: int) -> tuple[Any, Any, ShapesCollection]:
    """The examples with the batch repeated `copies` times, and the declaration that dimension 0 of them is dynamic."""
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]  # torch's own class is untyped

    def widen(leaf: object) -> object:
        if not isinstance(leaf, torch.Tensor) or not leaf.dim() or leaf.shape[0] != batch:
            return leaf
        wide = torch.cat([leaf] * copies) if copies > 1 else leaf.detach()  # one object a place: shapes are by identity
        shapes[wide] = {0: Dim.AUTO}
        return wide

    args, kwargs = torch.utils._pytree.tree_map(widen, (args, kwargs))
    return args, kwargs, shapes


def _export(
    module: torch.nn.Module, args: Any, kwargs: Any, dynamic_shapes: Any, strict: bool = False
) -> ExportedProgram:
    said = io.StringIO()  # torch prints the graph so far when it refuses
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings(), quiet(), _any_input():
            warnings.simplefilter("ignore")  # of attributes set while tracing: export puts them back
            with redirect_stderr(said):
                program = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=strict)
    except Exception as error:  # torch raises dozens of types here; all mean the same to the user
        text = f"{type(error).__name__} {error}"
        if any(word in text for word in _DATA_DEPENDENT):
            reason = "its forward decides on the values of tensors, which torch.export refuses"
        elif "dynamic_shapes" in text:
            reason = "the dynamic_shapes do not fit its inputs"
        elif isinstance(error, TypeError):
            reason = "the example inputs do not fit its forward"
        else:
            reason = "torch.export refuses it, or its example inputs do not fit"
        raise LoadError(f"cannot capture {type(module).__name__}: {reason}: {one_line(error)}") from error
    if text := said.getvalue():
        print(text, end="", file=sys.stderr)
    return program


@contextmanager
def _any_input() -> Iterator[None]:
    """Without opt_einsum, which orders a product of three operands by their sizes, and so fixes every one of them; and
    without the look of `nn.TransformerEncoder` at whether its mask is the causal one, a hint that decides on values."""
    order, hint = torch.backends.opt_einsum.enabled, transformer._detect_is_causal_mask
    torch.backends.opt_einsum.enabled = False
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        torch.backends.opt_einsum.enabled, transformer._detect_is_causal_mask = order, hint


@contextmanager
def quiet() -> Iterator[None]:
    """Without the traceback that torch logs of a refusal: the error that is raised says it in one line."""
    log = logging.getLogger("torch")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)


def _mutates(node: torch.fx.Node) -> bool:
    if node.target is torch.ops.aten.batch_norm.default:  # its schema does not say that training writes to buffers
        return node.args[5] is True and node.args[3] is not None
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    return getattr(node.target, "__name__", "") in _INLINED
