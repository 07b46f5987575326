"""A call captured once as a CUDA graph, whose kernels then read the tensors that each later call brings.

A CUDA graph reads where its inputs lay when it was captured, so that users copy each request there first. Here the
kernels' parameters that hold an input's address are rewritten instead, at each call. Which words of the parameters
these are is found out by two captures, with inputs that lie elsewhere, and proved by calls whose inputs lie elsewhere
while the captured ones hold other values. An input that is not found in plain words or fails the proof is copied, gaps
between its elements too; so is one of less aligned memory, or in that of an output.
"""

from __future__ import annotations

import ctypes
import gc
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from . import replay_native as native
from .graph_nodes import Captured, available, captured, checked
from .launching import driver

MAP, ALIGNMENT = 128, 64  # bytes of a tensor map, which begins with an address, and of what it is aligned to
SMALL = 1 << 20  # bytes up to which tensors are copied together: one launch, but few blocks for a large one
PLAIN = (Tensor, torch.nn.Parameter)
Range = tuple[int, int]  # addresses: the first, and the one behind the last


class Found(NamedTuple):
    """A word of a kernel's parameters that holds an input's address and an offset."""

    kernel: int
    at: int
    input: int
    offset: int


class Replay:
    """A function of tensors at fixed shapes, captured once. `outputs` is what it returns at each call: the same
    tensors, which the next call overwrites. `copied` are the numbers of the inputs that each call copies.

    Not for two threads at once. Calls on several streams wait for each other.
    """

    def __init__(
        self, function: Callable[..., Any], examples: Sequence[Tensor], error: type[Exception] = ValueError
    ) -> None:
        """Capture a call at examples, tensors of one GPU, whose values are typical: an input for which zeros would give
        the same outputs is copied. Raises `error` where that cannot be done."""
        complaint = _unfit(examples) or _lacking()
        if complaint:
            raise error(complaint)
        self._error, self._device = error, examples[0].device
        self._function = function  # whose weights the graph reads
        try:
            with torch.no_grad(), torch.cuda.device(self._device):
                self._capture(examples)
        except (RuntimeError, TypeError) as failed:  # what is asked of the device meanwhile, missing inputs
            raise error(f"the call cannot be captured: {str(failed).partition(chr(10))[0]}") from failed
        self.copied = [n for n, t in enumerate(self._held) if t.numel() and n not in self._plan.pointed]
        self._run, self._address = self._plan.run, self._plan.address

    def __repr__(self) -> str:
        return f"Replay({len(self._held)} inputs, {len(self.copied)} copied)"

    def __call__(self, *inputs: Tensor) -> Any:
        """The outputs at these inputs, of the shapes, strides and types captured, on the current stream. Raises the
        constructor's `error` for others."""
        if self._run(self._address, inputs) is not None:
            self._again(inputs)
        return self.outputs

    def _capture(self, examples: Sequence[Tensor]) -> None:
        self._held = [_like(t) for t in examples]
        _copy(self._held, examples)
        self._graph, self.outputs = _recorded(self._function, self._held)
        self._check_effects(examples)
        self._plan = self._pointed(examples)

    def _again(self, inputs: Sequence[Tensor]) -> None:
        """A call that was not made: another device is the current one, or an input is not as captured."""
        with torch.cuda.device(self._device):
            if self._run(self._address, inputs) is not None:
                raise self._error(self._complaint(inputs) or "the context of CUDA is not the one of the capture")

    def _complaint(self, inputs: Sequence[Tensor]) -> str | None:
        """What of the inputs is not as captured."""
        if len(inputs) != len(self._held):
            return f"{len(inputs)} inputs, {len(self._held)} were captured"
        unfit = _unfit(inputs)
        if unfit:
            return unfit
        for n, (given, held) in enumerate(zip(inputs, self._held, strict=True)):
            if given.device != held.device:
                return f"input {n} lies on {given.device}, {held.device} was captured"
            if (given.shape, given.dtype) != (held.shape, held.dtype):
                return f"input {n} is {_text(given)}, {_text(held)} was captured"
            pairs = zip(given.shape, given.stride(), held.stride(), strict=True)
            if given.numel() and any(size > 1 and a != b for size, a, b in pairs):
                return f"input {n} has strides {given.stride()}, {held.stride()} were captured"
        return None

    def _check_effects(self, examples: Sequence[Tensor]) -> None:
        """Raise where a replay draws random numbers, which would be the same at each call, or writes into its
        inputs."""
        state = torch.cuda.get_rng_state(self._device)
        self._graph.replay()
        if not torch.equal(state, torch.cuda.get_rng_state(self._device)):
            raise self._error("the call draws random numbers")
        for n, (held, given) in enumerate(zip(self._held, examples, strict=True)):
            if not _same([held], [given]):
                raise self._error(f"the call writes into input {n}")

    def _pointed(self, examples: Sequence[Tensor]) -> Plan:
        """A plan that points kernels at those inputs whose words prove to be all there are."""
        others = [_like(t) for t in self._held]
        _copy(others, examples)
        graph, _ = _recorded(self._function, others)
        first, second = (captured(g.raw_cuda_graph()) for g in (self._graph, graph))
        self._kept = given(first)
        words, refused = found(first, second, _ranges(self._held), _ranges(others))

        def plan(inputs: set[int]) -> Plan:
            return Plan(first, self._graph.raw_cuda_graph(), words, inputs, self._held, _tensors(self.outputs))

        every = self._telling(examples, {w.input for w in words} - refused)
        if every and self._proves(whole := plan(every), examples):
            return whole
        some = {n for n in every if self._proves(plan({n}), examples)}
        if some and self._proves(rest := plan(some), examples):
            return rest
        return plan(set())

    def _telling(self, examples: Sequence[Tensor], inputs: set[int]) -> set[int]:
        """Those inputs whose zeros give other outputs: so a kernel that reads the captured one would be found out. Only
        zeros, which every table and every offset has a place for: an id out of range stops the device."""
        expected = self._replayed()
        if not _same(expected, self._replayed()):
            return set()
        result = set()
        for n in sorted(inputs):
            _once(self._held[n]).zero_()
            if not _same(expected, self._replayed()):
                result.add(n)
            _copy([self._held[n]], [examples[n]])
        return result

    def _replayed(self) -> list[Tensor]:
        """Copies of the outputs at what the captured inputs hold."""
        self._graph.replay()
        return [t.clone() for t in _tensors(self.outputs)]

    def _proves(self, plan: Plan, examples: Sequence[Tensor]) -> bool:
        """Whether its calls give the outputs bit for bit, with inputs as little aligned as may be, while the captured
        ones hold zeros."""
        _copy(self._held, examples)
        expected = self._replayed()
        for shift in (native.ALIGNED, 0, 3 * native.ALIGNED):
            for n in plan.pointed:
                _once(self._held[n]).zero_()
            fresh = [_like(t, shift) for t in self._held]
            _copy(fresh, examples)
            self._graph.replay()  # so that the outputs are others
            if plan.run(plan.address, tuple(fresh)) is not None or not _same(expected, _tensors(self.outputs)):
                return False
        return True


class Plan:
    """The arrays that a call in C reads, and what they point to."""

    def __init__(
        self, graph: Captured, handle: int, words: Sequence[Found], pointed: set[int], held: Sequence[Tensor],
        outputs: Sequence[Tensor],
    ) -> None:  # fmt: skip
        self.pointed, self.run = pointed, native.module().run
        for w in words:  # what another plan wrote
            graph.kernels[w.kernel].write(w.at, held[w.input].data_ptr() + w.offset)
        mine = [[w for w in words if w.kernel == n and w.input in pointed] for n in range(len(graph.kernels))]
        kernels = [n for n, own in enumerate(mine) if own]
        launches = (native.Launch * len(kernels))(
            *[
                native.Launch(graph.kernels[n].handle, ctypes.addressof(graph.kernels[n].params), len(mine[n]))
                for n in kernels
            ]
        )
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
        storages = [t.untyped_storage() for t in outputs if t.is_cuda]
        written = (native.Range * len(storages))(
            *[native.Range(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages]
        )
        self._alive = (graph, launches, flat, inputs, shapes, addresses, written)
        self._struct = plan = native.Plan()
        self.address = ctypes.addressof(plan)
        plan.input, plan.node = ctypes.addressof(inputs), ctypes.addressof(launches)
        plan.word, plan.address = ctypes.addressof(flat), ctypes.addressof(addresses)
        plan.output, plan.outputs = ctypes.addressof(written), len(storages)
        plan.inputs, plan.nodes = len(held), len(kernels)
        self._bind(handle, held[0])

    def _bind(self, handle: int, t: Tensor) -> None:
        """Entry points and handles."""
        plan, functions, library = self._struct, native.exchange(), driver()
        assert functions is not None
        plan.describe, plan.stream_of = functions
        for name, call in (
            ("context_of", "cuCtxGetCurrent"), ("record", "cuEventRecord"), ("wait", "cuStreamWaitEvent"),
            ("copy", "cuMemcpyDtoDAsync_v2"),
            ("set", "cuGraphExecKernelNodeSetParams_v2"), ("start", "cuGraphLaunch"),
        ):  # fmt: skip
            setattr(plan, name, ctypes.cast(getattr(library, call), ctypes.c_void_p).value)
        like = native.seen(t)
        plan.device_type, plan.device = like.device_type, like.device
        plan.tensor, plan.parameter, plan.is_neg, plan.is_conj = map(id, (*PLAIN, Tensor.is_neg, Tensor.is_conj))
        context, event, executable = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        checked(library.cuCtxGetCurrent(ctypes.byref(context)), "finding the context")
        checked(library.cuEventCreate(ctypes.byref(event), 2), "making an event")  # 2: without times
        weakref.finalize(self, library.cuEventDestroy_v2, event).atexit = False
        instantiate = library.cuGraphInstantiateWithFlags  # torch's own graph stays as captured
        checked(instantiate(ctypes.byref(executable), ctypes.c_void_p(handle), ctypes.c_ulonglong(0)), "a graph")
        weakref.finalize(self, library.cuGraphExecDestroy, executable).atexit = False
        plan.context, plan.event, plan.exec = context.value, event.value, executable.value


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


def given(graph: Captured) -> list[Tensor]:
    """The tensors whose memory the kernels of a graph are given, of all that are alive: what an operator derived from
    weights it may forget while the graph still reads it."""
    spans = [(kernel, at, size) for kernel in graph.kernels for at, size in kernel.spans]
    words = sorted({kernel.word(n) for kernel, at, size in spans for n in range(at, at + size - 7, 8)})
    result = []
    for t in gc.get_objects():
        if type(t) in PLAIN and t.layout == torch.strided and t.device.type != "meta":
            storage = t.untyped_storage()
            place = bisect_left(words, storage.data_ptr())
            if place < len(words) and words[place] < storage.data_ptr() + storage.nbytes():
                result.append(t)
    return result


def _unfit(examples: Sequence[Tensor]) -> str | None:
    """Why these are no inputs of a replay."""
    for n, t in enumerate(examples):
        if type(t) not in PLAIN:
            return f"input {n} is of {type(t).__name__}, not a plain tensor"
        if not t.is_cuda or t.device != examples[0].device:
            return f"input {n} lies on {t.device}: all inputs must lie on one GPU"
        if t.layout != torch.strided or t.is_conj() or t.is_neg():
            return f"input {n} is not a plain strided tensor"
    return None if examples else "a call without inputs has nothing to replay"


def _lacking() -> str | None:
    """What of the machine's a replay lacks."""
    if native.exchange() is None:
        return "it needs torch 2.10 or newer"
    if not available():
        return "it needs a driver of CUDA 12.4 or newer"
    return "it needs Triton and a C compiler" if native.module() is None else None


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
