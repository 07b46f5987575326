"""The nodes of a captured CUDA graph, read through the driver: what its kernels are given."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any, ClassVar

from .launching import driver

KERNEL, COPY, FILL, EMPTY = 0, 1, 2, 5  # CUgraphNodeType
CALLS = """
cuCtxGetCurrent cuEventCreate cuEventDestroy_v2 cuEventRecord cuFuncGetParamInfo cuGraphExecDestroy
cuGraphExecKernelNodeSetParams_v2 cuGraphGetNodes cuGraphInstantiateWithFlags cuGraphKernelNodeGetParams_v2
cuGraphLaunch cuGraphMemcpyNodeGetParams cuGraphNodeGetType cuKernelGetParamInfo cuMemcpyDtoDAsync_v2 cuStreamWaitEvent
""".split()


class NodeParams(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_: ClassVar = [
        ("function", ctypes.c_void_p), ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint), ("parameters", ctypes.POINTER(ctypes.c_void_p)), ("extra", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p), ("context", ctypes.c_void_p),
    ]  # fmt: skip


@dataclass
class Node:
    """A kernel of a graph. `block` is a copy of its parameters, each at its offset, that `params` points to through
    `pointers`, so that a parameter is changed by writing there; `spans` are the offset and size of each."""

    handle: int
    params: NodeParams
    block: Any
    spans: tuple[tuple[int, int], ...]
    pointers: Any = None

    @property
    def identity(self) -> tuple[object, ...]:
        """What two captures of one call have in common."""
        p = self.params
        return p.function, p.kernel, tuple(p.grid), tuple(p.block), p.shared, self.spans

    def word(self, at: int) -> int:
        """The 8 bytes of its parameters at an offset."""
        word: int = ctypes.c_uint64.from_buffer(self.block, at).value
        return word

    def write(self, at: int, word: int) -> None:
        """Set them."""
        ctypes.c_uint64.from_buffer(self.block, at).value = word


@dataclass
class Captured:
    """The kernels of a graph in the order of their capture, the words of its copies, where they read and write among
    them, and whether nothing else in it can hold an address."""

    kernels: list[Node]
    copied: list[int]
    readable: bool


@functools.cache
def available() -> bool:
    """Whether the driver has every call that is needed (CUDA 12.4)."""
    return all(hasattr(driver(), name) for name in CALLS)


def captured(graph: int) -> Captured:
    """The nodes of a CUgraph. Raises RuntimeError where the driver does."""
    nodes = _nodes(graph)
    kinds = [_kind(node) for node in nodes]
    kernels = [_kernel(node) for node, kind in zip(nodes, kinds, strict=True) if kind == KERNEL]
    copied = [word for node, kind in zip(nodes, kinds, strict=True) if kind == COPY for word in _copy(node)]
    readable = all(kind in (KERNEL, COPY, FILL, EMPTY) for kind in kinds) and all(k is not None for k in kernels)
    return Captured([k for k in kernels if k is not None], copied, readable)


def checked(status: int, doing: str) -> None:
    """Raise RuntimeError where a call of the driver failed."""
    if status:
        raise RuntimeError(f"{doing} failed with CUDA's error {status}")


def _nodes(graph: int) -> list[int]:
    count, get = ctypes.c_size_t(), driver().cuGraphGetNodes
    checked(get(ctypes.c_void_p(graph), None, ctypes.byref(count)), "reading a graph")
    if not count.value:
        return []  # an array of none is an error
    handles: Any = (ctypes.c_void_p * count.value)()
    checked(get(ctypes.c_void_p(graph), handles, ctypes.byref(count)), "reading a graph")
    return list(handles)


def _kind(node: int) -> int:
    kind = ctypes.c_int()
    checked(driver().cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)), "reading a node")
    return kind.value


def _copy(node: int) -> list[int]:
    """The words of a CUDA_MEMCPY3D."""
    words = (ctypes.c_uint64 * 25)()
    checked(driver().cuGraphMemcpyNodeGetParams(ctypes.c_void_p(node), words), "reading a copy")
    return list(words)


def _kernel(handle: int) -> Node | None:
    """A kernel, or None where its parameters come as one block of unknown layout."""
    params = NodeParams()
    checked(driver().cuGraphKernelNodeGetParams_v2(ctypes.c_void_p(handle), ctypes.byref(params)), "reading a kernel")
    spans = _spans(params)
    if params.extra or (spans and not params.parameters):
        return None
    block = ctypes.create_string_buffer(max((offset + size for offset, size in spans), default=0) + 8)
    base = ctypes.addressof(block)
    for n, (offset, size) in enumerate(spans):
        ctypes.memmove(base + offset, params.parameters[n], size)
    pointers = (ctypes.c_void_p * max(len(spans), 1))(*[base + offset for offset, _ in spans])
    params.parameters = ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))
    return Node(handle, params, block, spans, pointers)


def _spans(params: NodeParams) -> tuple[tuple[int, int], ...]:
    """Offset and size of each of a kernel's parameters."""
    of, what = driver().cuFuncGetParamInfo, params.function
    if not what:
        of, what = driver().cuKernelGetParamInfo, params.kernel
    offset, size = ctypes.c_size_t(), ctypes.c_size_t()
    spans: list[tuple[int, int]] = []
    while not of(ctypes.c_void_p(what), ctypes.c_size_t(len(spans)), ctypes.byref(offset), ctypes.byref(size)):
        spans.append((offset.value, size.value))
    return tuple(spans)
