"""How CUDA C++ kernels are handed their arguments."""

from __future__ import annotations

import ctypes

import torch

from recopt.kernels.launching import packed


def test_arguments_lie_where_the_kernel_reads_them() -> None:
    x = torch.zeros(3)
    values, slots = packed([x, -5, x[1:], 2**31 - 1])
    assert len(values) == len(slots) == 4
    assert [ctypes.c_int.from_address(slots[n]).value for n in (1, 3)] == [-5, 2**31 - 1]
    assert [ctypes.c_void_p.from_address(slots[n]).value for n in (0, 2)] == [x.data_ptr(), x.data_ptr() + 4]
