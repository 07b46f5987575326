"""Replays: what C does with a call's inputs (against a driver of callbacks), which words are addresses."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from recopt.kernels import replay as replays
from recopt.kernels import replay_native as native
from recopt.kernels.graph_nodes import Captured, Node, NodeParams
from recopt.kernels.replay import Found, Replay, found, given

POINTER = ctypes.c_void_p


class Driver:
    """A driver that notes its calls; a plan for inputs, of which `pointed` are the first parameters of one kernel."""

    def __init__(self, held: list[Tensor], pointed: set[int]) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.stream, self.context, self.status = 7, 5, 0
        self.held = held
        self.block = (ctypes.c_int64 * len(held))(*[t.data_ptr() for t in held])
        start = ctypes.addressof(self.block)
        pointers = (POINTER * len(held))(*range(start, start + 8 * len(held), 8))
        self.params = NodeParams(parameters=ctypes.cast(pointers, ctypes.POINTER(POINTER)), function=3)
        word = [native.Word(n, 8 * n, start + 8 * n) for n in sorted(pointed)]
        self.words = (native.Word * len(word))(*word)
        self.node = native.Launch(11, ctypes.addressof(self.params), len(word))
        shapes = [(ctypes.c_int64 * t.ndim)(*n) for t in held for n in (t.shape, t.stride())]
        rows = [
            native.Input(
                native.seen(t).type, t.ndim, t.nbytes, int(n in pointed), t.data_ptr(),
                *map(ctypes.addressof, shapes[2 * n : 2 * n + 2]),
            )
            for n, t in enumerate(held)
        ]  # fmt: skip
        self.inputs, self.addresses = (native.Input * len(rows))(*rows), (ctypes.c_int64 * len(rows))()
        self.written = aligned(8)
        start = self.written.data_ptr()
        self.output = native.Range(start, start + self.written.nbytes)
        signatures = {
            "stream_of": (self._stream, [ctypes.c_int, ctypes.c_int, ctypes.POINTER(POINTER)]),
            "context_of": (self._context, [ctypes.POINTER(POINTER)]),
            "record": (lambda *a: self._note("record", *a), [POINTER] * 2),
            "wait": (lambda *a: self._note("wait", *a), [POINTER, POINTER, ctypes.c_uint]),
            "copy": (lambda *a: self._note("copy", *a), [ctypes.c_uint64] * 2 + [ctypes.c_size_t, POINTER]),
            "set": (lambda exec, node, _: self._note("set", exec, node, *self.block), [POINTER] * 3),
            "start": (lambda *a: self._note("start", *a), [POINTER] * 2),
        }
        self.kept = {name: ctypes.PYFUNCTYPE(ctypes.c_int, *types)(call) for name, (call, types) in signatures.items()}
        exchange = native.exchange()
        assert exchange is not None
        self.plan = native.Plan(
            describe=exchange[0], tensor=id(Tensor), parameter=id(torch.nn.Parameter),
            is_neg=id(Tensor.is_neg), is_conj=id(Tensor.is_conj), exec=13, context=5, event=17,
            device_type=1, device=native.seen(held[0]).device, inputs=len(held), nodes=1,
            input=ctypes.addressof(self.inputs), node=ctypes.addressof(self.node), word=ctypes.addressof(self.words),
            address=ctypes.addressof(self.addresses), output=ctypes.addressof(self.output), outputs=1,
            **{name: ctypes.cast(call, POINTER).value for name, call in self.kept.items()},
        )  # fmt: skip
        self.alive = (pointers, shapes)

    def _note(self, *call: Any) -> int:
        self.calls.append(call)
        return self.status

    def _stream(self, _: int, __: int, out: Any) -> int:
        out[0] = self.stream
        return 0

    def _context(self, out: Any) -> int:
        out[0] = self.context
        return 0

    def run(self, *inputs: Any) -> Any:
        self.calls.clear()
        return native.module().run(ctypes.addressof(self.plan), inputs)


def aligned(*shape: int, dtype: torch.dtype = torch.float32, shift: int = 0) -> Tensor:
    """A tensor `shift` bytes behind an address divided by 64."""
    t = torch.zeros(4096, dtype=torch.uint8)
    at = -t.data_ptr() % 64 + shift
    count = torch.Size(shape).numel() * dtype.itemsize
    return t[at : at + count].view(dtype).view(shape)


needs_c = pytest.mark.skipif(native.module() is None or native.exchange() is None, reason="no compiler")


@needs_c
def test_c_points_a_kernel_at_what_a_call_brings() -> None:
    d = Driver([aligned(3, 5), aligned(4, dtype=torch.int64), aligned(2)], {0, 1})
    x, ids, other = aligned(3, 5), torch.nn.Parameter(aligned(4, dtype=torch.int64), requires_grad=False), aligned(2)
    assert d.run(x, ids, other) is None
    words = [x.data_ptr(), ids.data_ptr() + 8, d.held[2].data_ptr()]
    copied = ("copy", d.held[2].data_ptr(), other.data_ptr(), 8, 7)  # in no kernel's parameters
    started = [("set", 13, 11, *words), ("start", 13, 7)]
    assert d.calls == [copied, *started]
    assert d.run(x, ids, other) is None
    assert d.calls == [copied, started[-1]]  # nothing to set anew


@needs_c
def test_c_copies_what_is_less_aligned() -> None:
    d = Driver([aligned(3), aligned(3)], {0, 1})
    x, y = aligned(3, shift=32), aligned(3, shift=16)
    assert d.run(x, y) is None
    held = d.held[1].data_ptr()
    assert d.calls == [("copy", held, y.data_ptr(), 12, 7), ("set", 13, 11, x.data_ptr(), held + 8), ("start", 13, 7)]
    assert d.run(x, x) is None
    assert d.calls == [("set", 13, 11, x.data_ptr(), x.data_ptr() + 8), ("start", 13, 7)]


@needs_c
def test_c_copies_what_lies_in_an_output() -> None:
    d = Driver([aligned(3)], {0})
    held = d.held[0].data_ptr()
    assert d.run(d.written[5:]) is None
    assert d.calls == [("copy", held, d.written.data_ptr() + 20, 12, 7), ("start", 13, 7)]
    assert d.run(d.written[:3]) is None
    assert d.calls == [("copy", held, d.written.data_ptr(), 12, 7), ("start", 13, 7)]


@needs_c
def test_c_refuses_what_is_not_as_captured() -> None:
    d = Driver([aligned(4, 1, 6), aligned(0, 3)], {0})
    x, none = aligned(4, 1, 6), aligned(0, 3)
    assert d.run(x, none) is None
    assert d.run(x[:, :1].as_strided((4, 1, 6), (6, 99, 1)), none) is None  # a step that is never taken
    assert d.run(x, none.as_strided((0, 3), (5, 5))) is None
    for other in (aligned(4, 1, 5), aligned(4, 6), aligned(4, 1, 6, dtype=torch.int32), 3, None, x.to("meta"),
                  torch._neg_view(x), aligned(8, 1, 6)[::2], aligned(6, 1, 4).permute(2, 1, 0)):  # fmt: skip
        assert d.run(other, none) == 0
        assert d.calls == []
    c = aligned(3, dtype=torch.complex64)
    assert (Driver([c], {0}).run(c), Driver([c], {0}).run(c.conj())) == (None, 0)
    assert d.run(x, aligned(1, 3)) == 1
    assert d.run(x) == -1
    assert d.run(x, none, x) == -1
    d.context = 6
    assert d.run(x, none) is False
    with pytest.raises(TypeError):
        native.module().run(ctypes.addressof(d.plan), [x, none])


@needs_c
def test_c_waits_for_the_stream_of_the_call_before() -> None:
    d = Driver([aligned(3)], {0})
    d.run(aligned(3))
    d.stream = 8
    d.run(d.held[0])
    assert [c for c in d.calls if c[0] in ("record", "wait")] == [("record", 17, 7), ("wait", 8, 17, 0)]


@needs_c
def test_c_sets_again_what_failed() -> None:
    d = Driver([aligned(3)], {0})
    x, d.status = aligned(3), 400
    with pytest.raises(RuntimeError, match="pointing a kernel at an input failed with CUDA's error 400"):
        d.run(x)
    d.status = 0
    assert d.run(x) is None
    assert d.calls == [("set", 13, 11, x.data_ptr()), ("start", 13, 7)]


def kernel(*parameters: bytes, function: int = 1) -> Node:
    """A kernel of these parameters, each at a multiple of 64."""
    spans = tuple((64 * sum(-(-len(q) // 64) for q in parameters[:n]), len(p)) for n, p in enumerate(parameters))
    block = ctypes.create_string_buffer(max(offset + size for offset, size in spans) + 8)
    for (offset, size), p in zip(spans, parameters, strict=True):
        ctypes.memmove(ctypes.addressof(block) + offset, p, size)
    return Node(0, NodeParams(function=function), block, spans)


def words(*values: int) -> bytes:
    return b"".join(v.to_bytes(8, "little") for v in values)


def graph(*kernels: Node, copied: tuple[int, ...] = (), readable: bool = True) -> Captured:
    return Captured(list(kernels), list(copied), readable)


FIRST, SECOND = [(1 << 20, (1 << 20) + 64), (0, 0), (2 << 20, (2 << 20) + 64)], [
    (5 << 20, (5 << 20) + 64), (0, 0), (9 << 20, (9 << 20) + 64)
]  # fmt: skip


def test_words_that_are_addresses_in_both_captures() -> None:
    a = kernel(words(1 << 20), words(77), b"1234", words(3, (2 << 20) + 8, (1 << 20) + 64, 1 << 20))
    b = kernel(words(5 << 20), words(77), b"1234", words(3, (9 << 20) + 8, (5 << 20) + 64, 1 << 20))
    assert found(graph(a), graph(b), FIRST, SECOND) == ([Found(0, 0, 0, 0), Found(0, 200, 2, 8)], set())


def test_what_else_may_hold_an_address_is_copied() -> None:
    a, b = kernel(words(1 << 20)), kernel(words(5 << 20))
    assert found(graph(a, copied=(0, 2 << 20)), graph(b), FIRST, SECOND)[1] == {2}
    for more, refused in ((15, {0}), (23, {0}), (16, set()), (7, set())):
        tensor_map = [kernel(words(start, *[0] * more)) for start in (1 << 20, 5 << 20)]
        assert found(*map(graph, tensor_map), FIRST, SECOND) == ([Found(0, 0, 0, 0)], refused)
    every = {0, 1, 2}
    assert found(graph(a, readable=False), graph(b), FIRST, SECOND) == ([], every)
    assert found(graph(a), graph(b, b), FIRST, SECOND) == ([], every)
    assert found(graph(a), graph(kernel(words(5 << 20), function=2)), FIRST, SECOND) == ([], every)


def test_tensors_that_kernels_are_given_are_kept() -> None:
    several = [torch.zeros(100) for _ in range(3)]
    block = kernel(words(3, several[0][40:].data_ptr()), words(several[2].data_ptr()))
    kept = given(graph(block))
    assert [any(t is k for k in kept) for t in several] == [True, False, True]


@pytest.mark.parametrize("inputs", [(), (torch.zeros(3),), (3,)])
def test_what_is_not_on_a_gpu_is_refused(inputs: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError):
        Replay(lambda *t: t, inputs)


@pytest.mark.parametrize(
    ("lacks", "text"), [("exchange", "torch 2.10"), ("available", "CUDA 12.4"), ("module", "C compiler")]
)
def test_what_the_machine_lacks_is_named(lacks: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, place in (("exchange", native), ("available", replays), ("module", native)):
        monkeypatch.setattr(place, name, lambda there=name != lacks: there or None)
    assert text in str(replays._lacking())


def test_a_call_that_cannot_be_captured_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def asks(x: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: not permitted\nCompile with")

    for name in ("_unfit", "_lacking"):
        monkeypatch.setattr(replays, name, lambda *_: None)
    monkeypatch.setattr(replays, "_recorded", lambda function, held: function(*held))
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    with pytest.raises(KeyError) as found:
        Replay(asks, (torch.zeros(3),), KeyError)
    assert found.value.args == ("the call cannot be captured: CUDA error: not permitted",)
