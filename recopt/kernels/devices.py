"""What the kernels ask of a GPU."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


@functools.lru_cache
def architecture(device: int) -> int:
    """The first number of its compute capability: 8 for Ampere, 9 for Hopper."""
    return torch.cuda.get_device_capability(device)[0]


def starts_early(device: torch.device) -> bool:
    """Whether a kernel there can start while the one before it drains: from Hopper on."""
    return device.type == "cuda" and architecture(device.index) >= 9


@functools.lru_cache
def processors(device: int) -> int:
    """How many streaming multiprocessors it has."""
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


@functools.lru_cache
def shared_bytes(device: int) -> int:
    """The shared memory that a block can ask for."""
    properties = torch.cuda.get_device_properties(device)
    # Some builds name only what a block gets without asking, which is less.
    return int(getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block))


def device_of(t: Tensor) -> AbstractContextManager[object]:
    """What is launched inside runs where `t` is."""
    if not t.is_cuda or t.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(t.device)
