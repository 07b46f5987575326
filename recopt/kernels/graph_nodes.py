"""The nodes of a captured CUDA graph, read through the driver: what its kernels are given and how they are launched."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from .launching import BESIDE, Attribute, LaunchConfig, driver

KERNEL, COPY, FILL, EMPTY = 0, 1, 2, 5  # CUgraphNodeType
COOPERATIVE, CLUSTER, SCHEDULING = 2, 4, 5  # CUlaunchAttributeID: of these, what a launch means depends
PROGRAMMATIC = 1  # CUgraphDependencyType: the kernel before says when
CALLS = """
cuCtxGetCurrent cuEventCreate cuEventDestroy_v2 cuEventRecord cuFuncGetParamInfo cuGraphExecDestroy
cuGraphExecKernelNodeSetParams_v2 cuGraphGetEdges_v2 cuGraphGetNodes cuGraphInstantiateWithFlags
cuGraphKernelNodeGetAttribute cuGraphKernelNodeGetParams_v2 cuGraphLaunch cuGraphMemcpyNodeGetParams
cuGraphNodeGetType cuKernelGetParamInfo cuLaunchKernelEx cuMemcpyDtoDAsync_v2
cuStreamWaitEvent
""".split()
Edge: TypeAlias = tuple[int, int, int]  # from node, to node, type


class NodeParams(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_: ClassVar = [
        ("function", ctypes.c_void_p), ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint), ("parameters", ctypes.POINTER(ctypes.c_void_p)), ("extra", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p), ("context", ctypes.c_void_p),
    ]  # fmt: skip


@dataclass
class Node:
    """A kernel of a graph. `block` is a copy of its parameters, each at its offset, that `params` points to, so that a
    parameter is changed by writing there; `spans` are the offset and size of each."""

    handle: int
    params: NodeParams
    block: Any
    spans: tuple[tuple[int, int], ...]
    attributes: list[Attribute] = field(default_factory=list)
    direct: bool = True  # it can be launched without its graph
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

    def config(self, early: bool) -> LaunchConfig:
        """How it is launched by itself; `early`: as soon as the kernel before it allows."""
        attributes = [*self.attributes, *([BESIDE] if early else [])]
        array = (Attribute * max(len(attributes), 1))(*attributes)
        return LaunchConfig(self.params.grid, self.params.block, self.params.shared, None, array, len(attributes))


@dataclass
class Captured:
    """The kernels of a graph, the edges between all its nodes, what its copies read and write, and whether nothing else
    in it can hold an address."""

    kernels: list[Node]
    edges: list[Edge]
    copied: list[int]
    readable: bool
    nodes: list[int]

    def chain(self) -> list[bool] | None:
        """Where it is one kernel after the other, in the order of `kernels`, whether each may start early; else
        None."""
        place = {node: n for n, node in enumerate(self.nodes)}
        inward: list[dict[int, int]] = [{} for _ in self.nodes]
        for a, b, kind in self.edges:
            inward[place[b]][place[a]] = kind
        if len(self.kernels) != len(self.nodes) or not all(kernel.direct for kernel in self.kernels):
            return None
        if any(max(before, default=-1) != n - 1 for n, before in enumerate(inward)):
            return None
        return [before == {n - 1: PROGRAMMATIC} for n, before in enumerate(inward)]


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
    return Captured([k for k in kernels if k is not None], _edges(graph), copied, readable, nodes)


def checked(status: int, doing: str) -> None:
    """Raise RuntimeError where a call of the driver failed."""
    if status:
        raise RuntimeError(f"{doing} failed with CUDA's error {status}")


def _nodes(graph: int) -> list[int]:
    count = ctypes.c_size_t()
    get = driver().cuGraphGetNodes
    checked(get(ctypes.c_void_p(graph), None, ctypes.byref(count)), "reading a graph")
    handles: Any = (ctypes.c_void_p * count.value)()
    checked(get(ctypes.c_void_p(graph), handles, ctypes.byref(count)), "reading a graph")
    return _addresses(handles)


def _edges(graph: int) -> list[Edge]:
    count = ctypes.c_size_t()
    get = driver().cuGraphGetEdges_v2
    checked(get(ctypes.c_void_p(graph), None, None, None, ctypes.byref(count)), "reading a graph's edges")
    if not count.value:
        return []
    ends: list[Any] = [(ctypes.c_void_p * count.value)() for _ in range(2)]
    data = (ctypes.c_uint8 * 8 * count.value)()  # CUgraphEdgeData: the ports, then the type
    checked(get(ctypes.c_void_p(graph), *ends, data, ctypes.byref(count)), "reading a graph's edges")
    # Port 2 of a kernel is passed when its blocks have started, which a launch by itself does not do.
    kinds = [-1 if d[0] == 2 else d[2] for d in data]
    return list(zip(*map(_addresses, ends), kinds, strict=True))


def _addresses(handles: Iterable[Any]) -> list[int]:
    return [handle or 0 for handle in handles]


def _kind(node: int) -> int:
    kind = ctypes.c_int()
    checked(driver().cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)), "reading a node")
    return kind.value


def _copy(node: int) -> list[int]:
    """All words of a CUDA_MEMCPY3D, the two addresses among them."""
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
    size = max((offset + size for offset, size in spans), default=0)
    block = ctypes.create_string_buffer(size + 8)
    for n, (offset, size) in enumerate(spans):
        ctypes.memmove(ctypes.addressof(block) + offset, params.parameters[n], size)
    base = ctypes.addressof(block)
    pointers = (ctypes.c_void_p * max(len(spans), 1))(*[base + offset for offset, _ in spans])
    params.parameters = ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))
    node = Node(handle, params, block, spans, pointers=pointers)
    for kind in (COOPERATIVE, CLUSTER, *([SCHEDULING] if any(_attribute(handle, CLUSTER) or b"") else [])):
        value = _attribute(handle, kind)
        node.direct &= value is not None
        if value is not None and any(value):
            attribute = Attribute(kind)
            ctypes.memmove(ctypes.addressof(attribute) + 8, value, 64)
            node.attributes.append(attribute)
    return node


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


def _attribute(handle: int, kind: int) -> bytes | None:
    value = ctypes.create_string_buffer(64)
    if driver().cuGraphKernelNodeGetAttribute(ctypes.c_void_p(handle), ctypes.c_int(kind), value):
        return None
    return value.raw[: 12 if kind == CLUSTER else 4].ljust(64, b"\0")
