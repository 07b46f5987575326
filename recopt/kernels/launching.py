"""Launches with few steps of Python: of CUDA C++ that torch compiled, whose own call casts every argument by itself,
which for 30 of them takes the host longer than most kernels take the GPU; of Triton's kernels, whose own call looks at
every argument; and what is remembered of operands that came before."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

Grid = tuple[int, int, int]
Plan = TypeVar("Plan")
MAX_PLANS = 8192


def planned(plans: dict[Hashable, Plan], key: Hashable, bind: Callable[[], Plan]) -> Plan:
    """The plan of a key, made when it is first asked for; where they would be too many, all are forgotten."""
    try:
        return plans[key]
    except KeyError:
        pass  # not bound in here: what that raises would come with this
    if len(plans) >= MAX_PLANS:
        plans.clear()
    plan = plans[key] = bind()
    return plan


def early_options(early: bool) -> dict[str, bool]:
    """What Triton is told of a kernel that may be `early`, see early.py."""
    return {"launch_pdl": True} if early else {}


class TritonLaunch:
    """A kernel of Triton at one grid: the first call compiles it, later ones, whose arguments are alike, only launch
    it."""

    def __init__(self, kernel: Any, grid: Grid, **options: Any) -> None:
        self.kernel, self.grid, self.options, self.compiled = kernel, grid, options, None

    def __call__(self, *args: Any) -> None:
        if self.compiled is not None:
            self.compiled(*args)
            return
        compiled = self.kernel[self.grid](*args, **self.options)
        self.compiled = compiled and compiled[self.grid]  # the interpreter compiles nothing


@functools.cache
def cuda_kernel(device: int, source: str, name: str, shared: int = 0) -> Any:
    """A kernel of CUDA C++ for a device, with so much shared memory a block at most; None where torch cannot compile
    it."""
    try:
        with torch.cuda.device(device):
            kernel = torch.cuda._compile_kernel(source, name, nvcc_options=["-std=c++17"])
            if shared:
                kernel.set_shared_memory_config(shared)
    except (AttributeError, ImportError, OSError):  # another torch, no toolkit, no NVRTC
        return None
    return kernel


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
