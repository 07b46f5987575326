"""The call of an optimized module: straight to its operators, where nobody watches and inputs like these came before.

nn.Module's call, fx's and that of the check of inputs take 2 us together, as long as two small operators on a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch.fx.graph import PythonCode
from torch.nn.modules import module as hooks

from ..errors import GraphError
from .fx_straight import straighten

CHECK = "_check"  # the submodule that checks inputs
_SIGNATURE = re.compile(r"^def forward\(self(?:, )?([\w, ]*)\):$", re.MULTILINE)
_LINE = re.compile(rf"^    {CHECK} = self\.{CHECK}\((.*?)\);.*$", re.MULTILINE)
_MODULE_CALL = torch.nn.Module.__call__

Expected: TypeAlias = tuple[str, tuple[int | str, ...], torch.dtype | None]


class InputCheck(torch.nn.Module):
    """Raises GraphError for tensors that the program was not made for. What passed is remembered in `seen`.

    `expected` has a name, the sizes (those of one symbol are equal) and, where it matters, the dtype of each.
    """

    def __init__(self, expected: Sequence[Expected]) -> None:
        super().__init__()
        self.expected = tuple(expected)
        self.seen: set[tuple[Any, ...]] = set()

    def asked(self, line: re.Match[str]) -> str:
        """The line of generated code that calls the check, where a call is made only of what is new."""
        tensors, place = line[1].split(", "), f"self._modules[{CHECK!r}]"
        key = [f"getattr({t}, 'shape', None), " for t in tensors]
        key += [f"getattr({t}, 'dtype', None), " for t, e in zip(tensors, self.expected, strict=True) if e[2]]
        return f"    if ({''.join(key)}) not in {place}.seen: {place}({line[1]})"

    def forward(self, *tensors: torch.Tensor) -> None:
        if torch.compiler.is_compiling() or torch._C._get_tracing_state():
            return
        try:
            shapes = [tensor.shape for tensor in tensors]
        except AttributeError:
            kinds = ", ".join(type(tensor).__name__ for tensor in tensors)
            raise GraphError(f"the program takes {len(tensors)} tensors, got {kinds}") from None
        symbols: dict[str, int] = {}
        dtypes = []
        for (name, sizes, dtype), tensor in zip(self.expected, tensors, strict=True):
            fits = len(sizes) == tensor.dim() and all(
                (symbols.setdefault(want, have) if isinstance(want, str) else want) == have
                for want, have in zip(sizes, tensor.shape, strict=True)
            )
            if not fits:
                wanted = ", ".join(map(str, sizes))
                raise GraphError(f"input {name} has shape {tuple(tensor.shape)}, the program takes ({wanted})")
            if dtype is not None:
                dtypes.append(tensor.dtype)
                if dtype != tensor.dtype:
                    raise GraphError(f"input {name} is {tensor.dtype}, the program takes {dtype}")
        if len(self.seen) >= 4096:
            self.seen.clear()
        self.seen.add((*shapes, *dtypes))


def is_watched(module: torch.nn.Module) -> bool:
    """Whether hooks, of the module or of all, a tracer, a mode or a compiler are to see its calls."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state()
        or torch._C._len_torch_dispatch_stack() > 0
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
        or torch.nn.Module.__call__ is not _MODULE_CALL
    )


def through_module(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """nn.Module's call, which a tracer may have replaced."""
    return torch.nn.Module.__call__(module, *args, **kwargs)


def _straight(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    return (through_module if is_watched(module) else type(module).forward)(module, *args, **kwargs)


def entry(program: torch.nn.Module, code: PythonCode) -> Callable[..., Any]:
    """The `__call__` for a module's generated code.

    before:  def forward(self, x): self._check(x); ..
    after:   def forward(self, x): if is_watched(self): return through_module(self, x)
                                   if (x.shape,) not in <seen>: self._check(x)
                                   ..
    """
    signature, check = _SIGNATURE.search(code.src), program._modules.get(CHECK)
    if signature is None:
        return _straight
    watched = f"\n    if is_watched(self): return through_module(self, {signature[1]})"
    body = code.src[signature.end() :]
    if isinstance(check, InputCheck):
        body = _LINE.sub(check.asked, body)
    body, functions = straighten(program, code, body)
    scope = {**code.globals, **functions, "is_watched": is_watched, "through_module": through_module}
    exec(code.src[: signature.end()] + watched + body, scope)
    call: Callable[..., Any] = scope["forward"]
    return call
