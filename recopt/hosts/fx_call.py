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
        tensors = line[1].split(", ")
        key = [f"getattr({t}, 'shape', None), " for t in tensors]
        key += [f"getattr({t}, 'dtype', None), " for t, e in zip(tensors, self.expected, strict=True) if e[2]]
        return f"    if ({''.join(key)}) not in recopt_seen: self._modules[{CHECK!r}]({line[1]})"

    def forward(self, *tensors: torch.Tensor) -> None:
        if torch.compiler.is_compiling() or torch._C._get_tracing_state():
            return
        if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
            kinds = ", ".join(type(tensor).__name__ for tensor in tensors)
            raise GraphError(f"the program takes {len(tensors)} tensors, got {kinds}")
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
        self.seen.add((*(tensor.shape for tensor in tensors), *dtypes))


# What generated code calls the module's own functions; no value of a graph is named so.
_SCOPE: dict[str, Any] = {
    f"recopt_{name}": value
    for name, value in {
        "is_compiling": torch.compiler.is_compiling,
        "tracing": torch._C._get_tracing_state,
        "modes": torch._C._len_torch_dispatch_stack,
        "before_all": hooks._global_forward_pre_hooks,
        "after_all": hooks._global_forward_hooks,
        "before_all_backward": hooks._global_backward_pre_hooks,
        "after_all_backward": hooks._global_backward_hooks,
        "Module": torch.nn.Module,
        "module_call": torch.nn.Module.__call__,
    }.items()
}
# Whether hooks, of the module or of all, a tracer, a mode or a compiler are to see a call. As text, and with attributes
# from the module's dictionary, it takes 0.12 us less than as a function.
_IS_WATCHED = " or ".join(
    ["recopt_is_compiling()", "recopt_tracing()", "recopt_modes()"]
    + [f"recopt_own['_{kind}_hooks']" for kind in ("forward", "forward_pre", "backward", "backward_pre")]
    + [name for name in _SCOPE if "_all" in name]
    + ["recopt_Module.__call__ is not recopt_module_call"]
)
_OWN = re.compile(r"\bself\.(_modules|_buffers|_parameters)\[")


def entry(program: torch.nn.Module, code: PythonCode) -> Callable[..., Any]:
    """The `__call__` for a module's generated code.

    before:  def forward(self, x): self._check(x); ..
    after:   def forward(self, x): if <watched>: return Module.__call__(self, x)
                                   if (x.shape,) not in <seen>: self._check(x)
                                   ..
    """
    scope, check = {**code.globals, **_SCOPE}, program._modules.get(CHECK)
    if signature := _SIGNATURE.search(code.src):
        head, given, body = code.src[: signature.end()], signature[1], code.src[signature.end() :]
        if isinstance(check, InputCheck):
            body = _LINE.sub(check.asked, body)
            scope["recopt_seen"] = check.seen
        body, functions = straighten(program, code, body)
        scope |= functions
    else:
        head, given = "def forward(self, *args, **kwargs):", "*args, **kwargs"
        body = "\n    return type(self).forward(self, *args, **kwargs)"
    watched = f"\n    if {_IS_WATCHED}: return recopt_Module.__call__(self, {given})"
    body = _OWN.sub(r"recopt_own['\1'][", body)
    exec(f"{head}\n    recopt_own = self.__dict__{watched}{body}", scope)
    call: Callable[..., Any] = scope["forward"]
    return call
