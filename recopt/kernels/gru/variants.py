"""What the CUDA C++ of a recurrence is compiled for: how many rows a block has, its threads, shared memory and text."""

from __future__ import annotations

from typing import NamedTuple

from ..cuda_hopper import HOPPER, WGMMA, wgmma
from ..cuda_math import FOUR, FUNCTIONS, HALVES, PTX, cuda_text
from .cluster import CLUSTER
from .operands import BLOCK, OPERANDS
from .pairs import PAIRS
from .rows import AHEAD, ROWS
from .tiles import MATRICES, TILES

KEEP = "__device__ __forceinline__ float keep(float h, const float* p) { return KEEP; }\n"
STAGES = 3  # inputs in flight
SLOTS = 3  # products of inputs that wait for their step


class Plan(NamedTuple):
    """How a batch is cut: rows a block, 1 or 2 by multiply-adds, 8 or 16 on the tensor cores; or rows a cluster, 8,
    16 or 32, with the products of the inputs in the kernel."""

    rows: int
    cluster: bool = False


class Variant(NamedTuple):
    """One kernel: its macros."""

    hidden: int
    inputs: int  # 0 where their products come from elsewhere
    plan: Plan
    after: bool
    keep: str
    gates: int
    started: bool  # from a state that is given
    bytes: int  # 16 or 4: how the inputs, or their products, are fetched

    @property
    def cluster(self) -> int:
        """Blocks that share their rows."""
        return 2 if self.paired or (self.plan.cluster and self.hidden > 64) else 1

    @property
    def paired(self) -> bool:
        """Whether the kernel is that of `pairs`, which Hopper's own instructions need to be asked for."""
        return self.plan.rows == 32

    @property
    def threads(self) -> int:
        """How many threads a block has."""
        if self.paired:
            return 384
        if self.plan.rows < 8:
            return 32 * -(-(-(-self.hidden // self.units) * self.parts) // 32)
        return 64 * self._warps if self.inputs else 32 * -(-self.hidden // 16)

    @property
    def _warps(self) -> int:
        """Of each kind in a block of a cluster."""
        return -(-self.hidden // (16 * self.cluster))

    @property
    def units(self) -> int:
        """How many units of a state `parts` threads make together: more read less, and exchange more sums.

        Measured on an H200, a row of 128 units, 50 steps, without the products of the inputs, 1, 2 and 4 of them in us:
        GRU 27.4, 26.9 and 26.3, AUGRU 39.5, 33.1 and 30.0; by twice as many threads, 2 of them, 30.2 and 34.5.
        """
        return 4 if self.plan.rows == 1 else 2 if self.hidden > 32 else 1

    @property
    def parts(self) -> int:
        """How many threads share the units of a group, each with a part of the state."""
        return (2 if self.plan.rows == 1 else 4) * self.units

    @property
    def shared(self) -> int:
        """Bytes of shared memory that a block is given at its launch."""
        rows = self.plan.rows
        if self.paired:
            sixteens = -(-self.inputs // 16)
            inputs = (128 * rows if sixteens <= 4 else 64 * rows + 2 * BLOCK) * sixteens
            operands = 6 * 16 * BLOCK + 16 * (64 * rows + 16) + inputs + 1536 * rows
            return operands + 4 * (4 * rows + 8 * self.gates * rows + 24) + 8 * (3 * 2 + 4 * 4 + 2)
        if rows < 8:
            return 0
        if self.inputs:
            warps, pieces = self._warps, (self._warps * self.cluster, -(-self.inputs // 16))
            ring, split = SLOTS * 3 * rows // 8 * 32 * warps * 16, 2 * rows * sum(64 * (n + 1 + n % 2) for n in pieces)
            floats = STAGES * rows * (-(-self.inputs // 4) * 4) + 64 * warps + 2 * rows + 2 * 8
            return ring + split + 4 * (floats + SLOTS * warps * self.gates * rows) + 8 * (2 + 2 * SLOTS * warps)
        wide, line = -(-self.hidden // 16) * 16, (3 * self.hidden + 11) // 16 * 16 + 4
        return 4 * (STAGES * rows * (line + self.gates) + wide + 2) + 2 * 2 * 2 * rows * (wide + 8)

    @property
    def source(self) -> str:
        """The whole text for the compiler."""
        rows = self.plan.rows
        numbers = range(self.gates)
        if rows < 8:
            size = {"ROWS": rows, "UNITS": self.units, "PARTS": self.parts, "K": self.inputs}
            size |= {"AHEAD": AHEAD, "VECTORS": int(self.bytes == 16)}
        elif self.paired:
            size = {"K": self.inputs, "TILES": rows // 8, "VECTORS": int(self.bytes == 16), "BLOCK": BLOCK}
        elif self.inputs:
            size = {"K": self.inputs, "CLUSTER": self.cluster, "TILES": rows // 8, "SLOTS": SLOTS}
        else:
            size = {"TILES": rows // 8}
        macros = size | {
            "H": self.hidden, "AFTER": int(self.after), "GATES": self.gates, "KEEP": cuda_text(self.keep),
            "STARTED": int(self.started), "BYTES": self.bytes, "STAGES": STAGES,
            "GATE_ARGUMENTS": "".join(f", const float* g{n}, int r{n}, int s{n}" for n in numbers),
            "GATE_POINTERS": "{" + ", ".join(f"g{n}" for n in numbers) + "}",
            "GATE_ROWS": "{" + ", ".join(f"r{n}" for n in numbers) + "}",
            "GATE_STEPS": "{" + ", ".join(f"s{n}" for n in numbers) + "}",
        }  # fmt: skip
        text = "".join(f"#define {name} {value}\n" for name, value in macros.items()) + FUNCTIONS + KEEP
        if rows < 8:
            return text + PTX + FOUR + ROWS
        if self.paired:
            tiles = rows // 8
            products = WGMMA + wgmma(2 * tiles, False) + wgmma(tiles, False) + wgmma(tiles, True)
            return text + PTX + HALVES + FOUR + HOPPER + products + MATRICES + OPERANDS + PAIRS
        if self.inputs:
            return text + PTX + HALVES + HOPPER + CLUSTER
        return text + PTX + HALVES + MATRICES + TILES
