"""How kernels are handed their arguments, and what is remembered between launches."""

from __future__ import annotations

import ctypes

import pytest
import torch

from recopt.kernels import launching
from recopt.kernels.launching import TritonLaunch, packed, planned


def test_arguments_lie_where_the_kernel_reads_them() -> None:
    x = torch.zeros(3)
    values, slots = packed([x, -5, x[1:], 2**31 - 1])
    assert len(values) == len(slots) == 4
    assert [ctypes.c_int.from_address(slots[n]).value for n in (1, 3)] == [-5, 2**31 - 1]
    assert [ctypes.c_void_p.from_address(slots[n]).value for n in (0, 2)] == [x.data_ptr(), x.data_ptr() + 4]


def test_plans_are_made_once_and_forgotten_where_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "MAX_PLANS", 2)
    plans: dict[object, int | None] = {}
    made = iter((None, 1, 2, 3))
    assert [planned(plans, key, lambda: next(made)) for key in "aabbab"] == [None, None, 1, 1, None, 1]
    assert planned(plans, "c", lambda: next(made)) == 2
    assert list(plans) == ["c"]


def test_a_kernel_is_compiled_at_its_first_launch() -> None:
    calls: list[object] = []

    class Kernel:
        """As Triton's: called at a grid with options it compiles, and what it compiled is called at the grid alone."""

        def __getitem__(self, grid: object) -> object:
            return lambda *args, **options: (
                calls.append((grid, args, options)) or {grid: lambda *args: calls.append(args)}
            )

    launch = TritonLaunch(Kernel(), (3, 1, 1), num_warps=4)
    launch(1, 2)
    launch(1, 5)
    assert calls == [((3, 1, 1), (1, 2), {"num_warps": 4}), (1, 5)]
