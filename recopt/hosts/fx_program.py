"""The torch.export host's graph as programs: checked, run, saved, and as a module that users call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, ExportGraphSignature, InputKind, OutputKind

from ..errors import GraphError, VerifyError
from ..ir.rules import FLOATS, WIDTH
from . import fx_capture, fx_module, fx_operators, fx_ops
from .base import Array, Value
from .files import staged
from .fx_graph import STORED, FxGraph
from .fx_wide import Widened


class FxProgram(FxGraph):
    """What becomes of the graph outside."""

    def check(self) -> None:
        """Raise GraphError, in one line, when torch's own verifier refuses the graph."""
        try:
            self._graph.lint()
            self.program()
        except Exception as error:  # lint and the verifiers raise several types
            raise GraphError(f"the graph is not a valid program: {fx_capture.one_line(error)}") from error

    def program(self) -> ExportedProgram:
        """The graph as an ExportedProgram of its own, sharing the tensors' storage."""
        inputs = self._input_specs()
        stored = {s.target: self._tensors[s.target] for s in inputs if s.target in self._tensors}
        in_state = (InputKind.PARAMETER, InputKind.BUFFER)
        state = {s.target for s in inputs if s.kind in in_state and s.persistent is not False}
        return ExportedProgram(
            root=self._gm,
            graph=fx_ops.copy_graph(self._graph),
            graph_signature=ExportGraphSignature(inputs, self._results()),
            state_dict={t: v for t, v in stored.items() if t in state},
            range_constraints=self._template.range_constraints,
            module_call_graph=self._template.module_call_graph[:1],
            example_inputs=self._template.example_inputs,
            constants={t: v for t, v in stored.items() if t not in state},
            verifiers=self._template.verifiers,
        )

    def module(self) -> fx_module.Program:
        """The graph as a callable module: arguments, results and parameter names of the original's."""
        tensors: dict[str, tuple[torch.Tensor, bool | None]] = {}
        for spec in self._specs.values():
            if spec.kind in STORED and spec.target is not None:
                persistent = None if spec.kind is InputKind.PARAMETER else bool(spec.persistent)
                tensors[spec.target] = self._tensors[spec.target], persistent
        by_tensor = {id(entry[0]): entry for entry in tensors.values()}
        for name, tensor in self._template.state_dict.items():  # other names of shared parameters
            if id(tensor) in by_tensor:
                tensors.setdefault(name, by_tensor[id(tensor)])
        signature = self._template.module_call_graph[0].signature
        assert signature is not None
        targets = {str(n.target) for n in self._graph.find_nodes(op="get_attr")}
        return fx_module.build(
            fx_module.Parts(
                graph=self._graph,
                submodules={name: getattr(self._gm, name) for name in targets},
                inputs=self._specs_in_order(),
                shapes={node: _checked_shape(self._values[node]) for node in self._fed()},
                outputs=self._output_specs,
                tensors=tensors,
                in_spec=signature.in_spec,
                out_spec=signature.out_spec,
                names=getattr(signature, "forward_arg_names", None) or [],
                calls=fx_operators.CALLS,
            )
        )

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """The outputs for `feeds` by torch's operators, on the device of the parameters. Nothing is written back."""
        return self._run(feeds, lambda *args: self._gm.forward(*args))

    def run_in_float64(self, feeds: Sequence[Array]) -> list[Array] | None:
        """The same with every float widened; None where an operator insists on its own dtype, and where the graph
        rounds to a narrower float than its outputs are, since that is part of its meaning."""
        values = [*self.inputs, *(v for node in self.nodes for v in node.outputs)]
        narrowest = min((WIDTH[v.dtype] for v in values if v.dtype in FLOATS), default=0)
        if any(WIDTH[v.dtype] > narrowest for v in self.outputs if v.dtype in FLOATS):
            return None
        try:
            return self._run(feeds, lambda *args: Widened(self._gm).run_wide(args))
        except VerifyError:
            return None

    def _run(self, feeds: Sequence[Array], forward: Callable[..., Any]) -> list[Array]:
        fed = self._fed()
        if len(feeds) != len(fed):
            raise VerifyError(f"the program takes {len(fed)} inputs, got {len(feeds)}")
        given = dict(zip(fed, feeds, strict=True))
        device = self._device()
        args: list[Any] = []
        for node, spec in self._specs_in_order().items():
            if node in given:
                feed = given[node]
                args.append(feed.item() if self._values[node].scalar else fx_ops.to_torch(np.asarray(feed)).to(device))
            elif isinstance(spec.arg, ConstantArgument):
                args.append(spec.arg.value)
            else:
                args.append(self._tensors[spec.target or ""])
        if not self._compiled:
            self._gm.compile_code()
            self._compiled = True
        try:
            with torch.no_grad():
                results = forward(*args)
        except Exception as error:  # operators raise anything
            raise VerifyError(f"torch cannot run the program: {fx_capture.one_line(error)}") from error
        kinds = zip(self._output_specs, self._output().args[0], results, strict=True)  # type: ignore[arg-type]  # an output node's argument is a tuple
        wanted = [r for spec, n, r in kinds if spec.kind is OutputKind.USER_OUTPUT and isinstance(n, fx.Node)]
        return [fx_ops.to_numpy(torch.as_tensor(result)) for result in wanted]

    def save(self, path: Path) -> None:
        """Write a .pt2 archive. A loader needs `import recopt.hosts.fx`, which defines the fused operators.
        Raises GraphError for what torch's archives do not hold, such as an unregistered namedtuple."""
        with staged(path) as place, open(place, "wb") as file:
            try:
                with fx_capture.quiet():
                    torch.export.save(self.program(), file)
            except OSError:
                raise
            except Exception as error:  # torch raises anything for what it cannot write
                raise GraphError(f"torch.export cannot save the program: {fx_capture.one_line(error)}") from error

    @property
    def device(self) -> str:
        return self._device().type

    def native(self) -> fx_module.Program:
        return self.module()

    def executable(self) -> fx_module.Program:
        return self.module()

    def examples(self, given: Any) -> list[Array] | None:
        """`given`, else what the program was captured with."""
        captured = self._template.example_inputs if given is None else fx_capture.call_of(self._template, given)
        leaves = [] if captured is None else torch.utils._pytree.tree_leaves(captured)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if len(tensors) != len(self.inputs):
            return None
        return [fx_ops.to_numpy(tensor.detach().cpu()) for tensor in tensors]

    def count_parameters(self) -> int:
        return sum(
            t.numel() for t in {id(t): t for t in self._tensors.values() if isinstance(t, torch.Tensor)}.values()
        )

    def count_nodes(self) -> int:
        return len(self._nodes)


def _checked_shape(value: Value) -> tuple[int | str, ...] | None:
    if value.scalar or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else str(size) for size in value.shape)
