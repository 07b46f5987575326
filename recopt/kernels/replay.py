"""A call captured once as a CUDA graph, whose kernels then read the tensors that each later call brings.

A CUDA graph reads where its inputs lay when it was captured, so that users copy each request there first. Here the
kernels' parameters that hold an input's address are rewritten instead, at each call, and a graph of a few kernels is
launched kernel by kernel. Which words of the parameters these are is found out by two captures, with inputs that lie
elsewhere, and proved by calls whose inputs lie elsewhere while the captured ones hold other values. An input that is
not found in plain words or fails the proof is copied, gaps between its elements too; so is one of less aligned memory.
"""

from __future__ import annotations

import ctypes
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from . import replay_native as native
from .graph_nodes import Captured, available, captured, checked
from .launching import driver

DIRECT = 4  # kernels that are launched one by one
MAP, ALIGNMENT = 128, 64  # bytes of a tensor map, which begins with an address, and of what it is aligned to
SMALL = 1 << 20  # bytes up to which tensors are copied together: one launch, but few blocks for a large one
Range = tuple[int, int]  # addresses: the first, and the one behind the last


class ReplayError(ValueError):
    """A call that cannot be captured, or inputs other than those captured."""


class Found(NamedTuple):
    """A word of a kernel's parameters that holds an input's address and an offset."""

    kernel: int
    at: int
    input: int
    offset: int


class Replay:
    """A function of tensors at fixed shapes, captured once. `outputs` is what it returns at each call: the same
    tensors, which the next call overwrites. `copied` are the numbers of the inputs that a call copies.

    Not for two threads at once. Calls on several streams wait for each other.
    """

    def __init__(self, function: Callable[..., Any], examples: Sequence[Tensor]) -> None:
        """Capture a call at examples, tensors of one GPU, whose values are typical: an input for which zeros would give
        the same outputs is copied. Raises ReplayError."""
        self._device = _device_of(examples)
        with torch.no_grad(), torch.cuda.device(self._device):
            self._held = [_like(t) for t in examples]
            _copy(self._held, examples)
            self._graph, self.outputs = _recorded(function, self._held)
            self._plan: Plan | None = None
            self._check_effects(examples)
            if native.module() is not None and native.exchange() is not None and available():
                self._point(function, examples)

    @property
    def copied(self) -> list[int]:
        """The inputs that are copied at each call."""
        pointed = set() if self._plan is None else self._plan.pointed
        return [n for n, t in enumerate(self._held) if t.numel() and n not in pointed]

    def __repr__(self) -> str:
        how = "" if self._plan is None or not self._plan.direct else ", launched one by one"
        kernels = "" if self._plan is None else f", {len(self._plan.captured.kernels)} kernels{how}"
        return f"Replay({len(self._held)} inputs, {len(self.copied)} copied{kernels})"

    def __call__(self, *inputs: Tensor) -> Any:
        """The outputs at these inputs, of the shapes, strides and types captured, on the current stream. Raises
        ReplayError for others."""
        if self._plan is None:
            self._by_copies(inputs)
        else:
            left = self._plan.run(self._plan.address, inputs)
            if left is not None:
                self._finish(left, inputs)
        return self.outputs

    def _finish(self, left: int, inputs: Sequence[Tensor]) -> None:
        """What C leaves to do: another device is the current one, an input is not as captured."""
        assert self._plan is not None
        if left is False:
            with torch.cuda.device(self._device):
                if self._plan.run(self._plan.address, inputs) is None:
                    return
        raise ReplayError(self._complaint(inputs) or "the context of CUDA is not the one of the capture")

    def _by_copies(self, inputs: Sequence[Tensor]) -> None:
        complaint = self._complaint(inputs)
        if complaint:
            raise ReplayError(complaint)
        with torch.no_grad(), torch.cuda.device(self._device):
            _copy(self._held, inputs)
            self._graph.replay()

    def _complaint(self, inputs: Sequence[Tensor]) -> str | None:
        """What of the inputs is not as captured."""
        if len(inputs) != len(self._held):
            return f"{len(inputs)} inputs, {len(self._held)} were captured"
        for n, (given, held) in enumerate(zip(inputs, self._held, strict=True)):
            if type(given) not in (Tensor, torch.nn.Parameter):
                return f"input {n} is a {type(given).__name__}, not a plain tensor"
            if given.device != held.device:
                return f"input {n} lies on {given.device}, {held.device} was captured"
            if (given.shape, given.dtype) != (held.shape, held.dtype):
                return f"input {n} is {_text(given)}, {_text(held)} was captured"
            pairs = zip(given.shape, given.stride(), held.stride(), strict=True)
            if given.numel() and any(size > 1 and a != b for size, a, b in pairs):
                return f"input {n} has strides {given.stride()}, {held.stride()} were captured"
        return None

    def _check_effects(self, examples: Sequence[Tensor]) -> None:
        """Raise ReplayError where a replay draws random numbers, which would be the same at each call, or writes into
        its inputs."""
        state = torch.cuda.get_rng_state(self._device)
        self._graph.replay()
        if not torch.equal(state, torch.cuda.get_rng_state(self._device)):
            raise ReplayError("the call draws random numbers")
        for n, (held, given) in enumerate(zip(self._held, examples, strict=True)):
            if not _same([held], [given]):
                raise ReplayError(f"the call writes into input {n}")

    # --- pointing

    def _point(self, function: Callable[..., Any], examples: Sequence[Tensor]) -> None:
        """Find the words that hold the inputs' addresses, and keep those that prove to be all there are."""
        others = [_like(t) for t in self._held]
        _copy(others, examples)
        graph, _ = _recorded(function, others)
        first, second = (captured(g.raw_cuda_graph()) for g in (self._graph, graph))
        words, refused = found(first, second, _ranges(self._held), _ranges(others))
        del graph
        pointed = self._telling(examples, {w.input for w in words} - refused)
        if pointed and not self._proved(first, words, pointed, examples):
            pointed = {n for n in pointed if self._proved(first, words, {n}, examples)}
            if not (pointed and self._proved(first, words, pointed, examples)):
                self._plan = None
        _copy(self._held, examples)

    def _telling(self, examples: Sequence[Tensor], pointed: set[int]) -> set[int]:
        """Those inputs whose zeros give other outputs: so a kernel that reads the captured one would be found out. Only
        zeros, which every table and every offset has a place for: an id out of range stops the device."""
        expected, again = self._replayed(), self._replayed()
        if not _same(expected, again):
            return set()
        result = set()
        for n in sorted(pointed):
            _once(self._held[n]).zero_()
            if not _same(expected, self._replayed()):
                result.add(n)
            _copy([self._held[n]], [examples[n]])
        return result

    def _replayed(self) -> list[Tensor]:
        """Copies of the outputs at what the captured inputs hold."""
        self._graph.replay()
        return [t.clone() for t in _tensors(self.outputs)]

    def _proved(self, graph: Captured, words: list[Found], pointed: set[int], examples: Sequence[Tensor]) -> bool:
        """Whether calls that point so give the outputs bit for bit, with inputs as little aligned as may be, while the
        captured ones hold zeros. The plan stays the current one."""
        _copy(self._held, examples)
        expected = self._replayed()
        self._plan = Plan(graph, self._graph.raw_cuda_graph(), words, pointed, self._held)
        for shift in (native.ALIGNED, 0, 3 * native.ALIGNED):
            for n in pointed:
                _once(self._held[n]).zero_()
            fresh = [_like(t, shift) for t in self._held]
            _copy(fresh, examples)
            self._graph.replay()  # so that the outputs are others
            self(*fresh)
            if not _same(expected, _tensors(self.outputs)):
                return False
        return True


class Plan:
    """The arrays that a call in C reads, and what they point to."""

    def __init__(
        self, graph: Captured, handle: int, words: Iterable[Found], pointed: set[int], held: Sequence[Tensor]
    ) -> None:
        chain = graph.chain()
        self.captured, self.pointed, self.run = graph, pointed, native.module().run
        self.direct = chain is not None and len(graph.kernels) <= DIRECT
        early = chain or [False] * len(graph.kernels)
        mine = [[w for w in words if w.kernel == n and w.input in pointed] for n in range(len(graph.kernels))]
        kernels = [n for n in range(len(graph.kernels)) if self.direct or mine[n]]
        configs = [graph.kernels[n].config(early[n]) for n in kernels]
        launches = (native.Launch * len(kernels))()
        for launch, n, config in zip(launches, kernels, configs, strict=True):
            kernel = graph.kernels[n]
            launch.handle, launch.words = kernel.handle, len(mine[n])
            launch.params, launch.config = ctypes.addressof(kernel.params), ctypes.addressof(config)
        places = [(w, ctypes.addressof(graph.kernels[n].block) + w.at) for n in kernels for w in mine[n]]
        flat = (native.Word * len(places))(*[native.Word(w.input, w.offset, place) for w, place in places])
        inputs, shapes = (native.Input * len(held))(), []
        for n, t in enumerate(held):
            shape, strides = ((ctypes.c_int64 * t.ndim)(*sizes) for sizes in (t.shape, t.stride()))
            shapes += [shape, strides]
            inputs[n] = native.Input(
                native.seen(t).type, t.ndim, _extent(t) * t.itemsize, int(n in pointed), t.data_ptr(),
                ctypes.addressof(shape), ctypes.addressof(strides),
            )  # fmt: skip
        addresses = (ctypes.c_int64 * len(held))()
        self._alive = (configs, launches, flat, inputs, shapes, addresses)
        self._struct = plan = native.Plan()
        self.address = ctypes.addressof(plan)
        plan.input, plan.node = ctypes.addressof(inputs), ctypes.addressof(launches)
        plan.word, plan.address = ctypes.addressof(flat), ctypes.addressof(addresses)
        plan.inputs, plan.nodes, plan.direct = len(held), len(kernels), int(self.direct)
        self._bind(handle, held[0])

    def _bind(self, handle: int, t: Tensor) -> None:
        """Entry points and handles."""
        plan, functions, library = self._struct, native.exchange(), driver()
        assert functions is not None
        plan.describe, plan.stream_of = functions
        for name, call in (
            ("context_of", "cuCtxGetCurrent"), ("record", "cuEventRecord"), ("wait", "cuStreamWaitEvent"),
            ("copy", "cuMemcpyDtoDAsync_v2"),
            ("set", "cuGraphExecKernelNodeSetParams_v2"), ("start", "cuGraphLaunch"), ("launch", "cuLaunchKernelEx"),
        ):  # fmt: skip
            setattr(plan, name, ctypes.cast(getattr(library, call), ctypes.c_void_p).value)
        like = native.seen(t)
        plan.device_type, plan.device = like.device_type, like.device
        plan.tensor, plan.parameter = id(Tensor), id(torch.nn.Parameter)
        context, event, executable = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        checked(library.cuCtxGetCurrent(ctypes.byref(context)), "finding the context")
        checked(library.cuEventCreate(ctypes.byref(event), 2), "making an event")  # 2: without times
        weakref.finalize(self, library.cuEventDestroy_v2, event).atexit = False
        if not self.direct:  # torch's own stays as captured
            instantiate = library.cuGraphInstantiateWithFlags
            checked(instantiate(ctypes.byref(executable), ctypes.c_void_p(handle), ctypes.c_ulonglong(0)), "a graph")
            weakref.finalize(self, library.cuGraphExecDestroy, executable).atexit = False
        plan.context, plan.event, plan.exec = context.value, event.value, executable.value or 0


def found(
    first: Captured, second: Captured, ranges: Sequence[Range], others: Sequence[Range]
) -> tuple[list[Found], set[int]]:
    """The words of kernels' parameters that hold addresses of inputs, `ranges` in the first of two captures and
    `others` in the second; and the inputs that something else holds, which must be copied: a tensor map, a copy."""
    every = set(range(len(ranges)))
    kernels = list(zip(first.kernels, second.kernels, strict=False))
    alike = len(first.kernels) == len(second.kernels) and all(a.identity == b.identity for a, b in kernels)
    if not (alike and first.readable and second.readable):
        return [], every
    order = sorted(n for n, (start, end) in enumerate(ranges) if start < end)
    order.sort(key=lambda n: ranges[n][0])
    starts = [ranges[n][0] for n in order]

    def owner(word: int) -> int | None:
        place = bisect_right(starts, word) - 1
        return order[place] if place >= 0 and word < ranges[order[place]][1] else None

    words, refused = [], {n for n in map(owner, first.copied) if n is not None}
    for k, (a, b) in enumerate(kernels):
        for offset, size in a.spans:
            for at in range(offset, offset + size - 7, 8):
                n = owner(a.word(at))
                if n is None or b.word(at) - others[n][0] != a.word(at) - ranges[n][0]:
                    continue  # a number by chance
                if not (at % ALIGNMENT or offset % ALIGNMENT or size % ALIGNMENT) and offset + size - at >= MAP:
                    refused.add(n)
                words.append(Found(k, at, n, a.word(at) - ranges[n][0]))
    return words, refused


def _device_of(examples: Sequence[Tensor]) -> torch.device:
    """The GPU that all examples lie on. Raises ReplayError."""
    for n, t in enumerate(examples):
        if type(t) not in (Tensor, torch.nn.Parameter):
            raise ReplayError(f"input {n} is a {type(t).__name__}, not a plain tensor")
        if not t.is_cuda or t.device != examples[0].device:
            raise ReplayError(f"input {n} lies on {t.device}: all inputs must lie on one GPU")
        if t.layout != torch.strided or t.is_conj() or t.is_neg():
            raise ReplayError(f"input {n} is not a plain strided tensor")
    if not examples:
        raise ReplayError("a call without inputs has nothing to replay")
    return examples[0].device


def _recorded(function: Callable[..., Any], held: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of a call, after a warm-up on a stream of its own, and its outputs."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch types no constructor of streams
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(*held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        outputs = function(*held)
    graph.instantiate()
    return graph, outputs


def _like(t: Tensor, shift: int = 0) -> Tensor:
    """Memory for a tensor of the same sizes and strides, so many bytes behind where memory begins."""
    base = torch.empty(_extent(t) * t.itemsize + shift, dtype=torch.uint8, device=t.device)
    return base[shift:].view(t.dtype).as_strided(t.shape, t.stride())


def _extent(t: Tensor) -> int:
    """How many elements lie from the first to the last."""
    return 1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0


def _ranges(tensors: Iterable[Tensor]) -> list[Range]:
    return [(t.data_ptr(), t.data_ptr() + _extent(t) * t.itemsize) for t in tensors]


def _once(t: Tensor) -> Tensor:
    """Each element of an expanded tensor once."""
    for axis, step in enumerate(t.stride()):
        if step == 0 and t.shape[axis] > 1:
            t = t.narrow(axis, 0, 1)
    return t


def _copy(to: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Copy each tensor, the small ones in one launch."""
    pairs = [(_once(a), _once(b)) for a, b in zip(to, given, strict=True) if a.numel()]
    small = [(a, b) for a, b in pairs if a.nbytes <= SMALL]
    if small:
        torch._foreach_copy_([a for a, _ in small], [b for _, b in small])
    for a, b in pairs:
        if a.nbytes > SMALL:
            a.copy_(b)


def _tensors(outputs: Any) -> list[Tensor]:
    return [t for t in tree_leaves(outputs) if isinstance(t, Tensor)]


def _same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether tensors have the same bits."""
    return all(
        torch.equal(x.contiguous().view(-1).view(torch.uint8), y.contiguous().view(-1).view(torch.uint8))
        for x, y in zip(a, b, strict=True)
    )


def _text(t: Tensor) -> str:
    return f"{t.dtype} {tuple(t.shape)}"
