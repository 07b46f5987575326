"""Counters on which the programs of one launch meet: the last to come knows that it is."""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_TILES = 4096


class _Slab:
    """Counters of a device, all zero between launches."""

    def __init__(self, device: torch.device) -> None:
        self.counters = torch.zeros(1 << 20, dtype=torch.int32, device=device)
        self.used = 0

    def take(self, count: int) -> Tensor | None:
        count = -(-count // 4) * 4  # keeps every slice aligned to 16 bytes, as the compiled kernel assumes
        if self.used + count > self.counters.numel():
            return None
        self.used += count
        return self.counters[self.used - count : self.used]


_slabs: dict[torch.device, _Slab] = {}
_of_streams: dict[tuple[torch.device, int], Tensor] = {}


def counters(device: torch.device, count: int) -> Tensor:
    """Zeroed counters that no other launch in flight uses: one set a stream, and one a captured launch."""
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    capturing = torch.cuda.is_current_stream_capturing()
    if not capturing:
        key = (device, torch.cuda.current_stream(device).cuda_stream)
        found = _of_streams.get(key)
        if found is not None and count <= _MAX_TILES:
            return found
        slab = _slabs.get(device) or _slabs.setdefault(device, _Slab(device))
        fresh = slab.take(_MAX_TILES) if count <= _MAX_TILES else None
        if fresh is not None:
            _of_streams[key] = fresh
            return fresh
    elif device in _slabs:
        # Graphs captured on one stream may be replayed side by side, so each captured launch owns its counters.
        fresh = _slabs[device].take(count)
        if fresh is not None:
            return fresh
    return torch.zeros(count, dtype=torch.int32, device=device)
