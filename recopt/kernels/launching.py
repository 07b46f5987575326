"""Launches of CUDA C++ kernels that torch compiled, with fewer steps of Python than torch's own call takes: that one
casts every argument by itself, which for 30 of them takes the host longer than most kernels take the GPU."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

Grid = tuple[int, int, int]


class Attribute(ctypes.Structure):
    """CUlaunchAttribute, of whose value of 64 bytes one number is set."""

    _fields_: ClassVar = [
        ("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_int * 15)
    ]  # fmt: skip


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_: ClassVar = [
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(Attribute)), ("count", ctypes.c_uint),
    ]  # fmt: skip


BESIDE = Attribute(6, 0, 1)  # programmatic stream serialization: start while the kernel before drains


def launch(
    kernel: Any, grid: Grid, block: Grid, args: Sequence[Tensor | int], shared: int = 0, early: bool = False
) -> None:
    """Start a kernel of `torch.cuda._compile_kernel` on the current stream of the current device. A tensor is passed as
    its address, a number as an `int`. `early`: once the kernel before lets it. Raises RuntimeError where CUDA does."""
    slots = packed(args)
    stream = torch.cuda.current_stream().cuda_stream
    if early:
        config = LaunchConfig(grid, block, shared, stream, ctypes.pointer(BESIDE), 1)
        status = driver().cuLaunchKernelEx(ctypes.byref(config), kernel.func, slots[1], None)
        if status:
            raise RuntimeError(f"the launch of a kernel failed with CUDA's error {status}")
    elif driver().cuLaunchKernel(kernel.func, *grid, *block, shared, stream, slots[1], None):
        kernel(grid, block, list(args), shared)  # fails again, and says why


def packed(args: Sequence[Tensor | int]) -> tuple[Any, Any]:
    """The values of arguments, 8 bytes each, and where each of them lies: a kernel reads the first bytes of an `int`,
    which are its lowest on every machine that has CUDA."""
    count = len(args)
    values = (ctypes.c_int64 * count)(*[a.data_ptr() if isinstance(a, Tensor) else a for a in args])
    first = ctypes.addressof(values)
    return values, (ctypes.c_void_p * count)(*range(first, first + 8 * count, 8))


@functools.cache
def driver() -> Any:
    """CUDA's driver, loaded once: torch opens it at each of its calls, for 27 us."""
    library = torch.cuda._utils._get_gpu_runtime_library()
    size, pointer = ctypes.c_uint, ctypes.c_void_p
    library.cuLaunchKernel.argtypes = [pointer, *[size] * 7, pointer, pointer, pointer]
    return library
