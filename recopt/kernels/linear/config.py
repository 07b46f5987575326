"""How the kernels of ``recopt::linear`` can run: the vocabulary of its table of measured choices."""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """The tiled kernel: tile sizes, warps, pipeline stages, parts of K, operands swapped, precision.

    Precisions of a float32 product: "split" and "bf16x6" reach float32 accuracy, "tf32x3" too but slower, "ieee" is
    exact products without tensor cores, "tf32" is plain TF32 and never chosen by itself.
    ``early`` starts the kernel while the one before it drains (from Hopper on).
    """

    bm: int
    bn: int
    bk: int
    warps: int = 4
    stages: int = 3
    split: int = 1
    swap: bool = False
    precision: str = "split"
    early: bool = False


class Reduce(NamedTuple):
    """The reduction kernel: outputs a program, the step through K, warps, early as in Tile."""

    bm: int
    bn: int
    bk: int
    warps: int = 4
    early: bool = False

    def fetches(self, m: int, n: int, k: int) -> bool:
        """Whether an early launch brings w [n, k] into L2 before it waits: where no two programs read the same of it,
        and it is small. On an H200, ReLU, without and with: 1 x 64 x 64 1.24 us and 1.02, 1 x 256 x 256 1.40 and 1.18,
        1 x 1024 x 1024 2.99 and 2.64, 1 x 2048 x 1024 3.85 and 4.55.
        """
        return m <= self.bm and n * k <= 1 << 20


class Panel(NamedTuple):
    """The kernel for small float32 products on Hopper: tile sizes, step of a warp through K, stages, warps.

    ``parts`` warps divide K among them, ``rows`` x ``columns`` warps the tile.
    """

    bm: int
    bn: int
    bk: int = 32
    stages: int = 1
    parts: int = 8
    rows: int = 1
    columns: int = 1
    early: bool = False


class Group(NamedTuple):
    """The kernel for middling float32 products on Hopper, 64 rows a tile: columns, stages, registers a thread, early.

    80 registers leave room for two programs a processor. ``split`` programs share a tile: parts of K, as in Tile.
    """

    bn: int
    stages: int = 4
    registers: int = 168
    early: bool = False
    split: int = 1


class Hopper(NamedTuple):
    """The kernel for large float32 products on Hopper, 128 rows a tile: columns, step through K, stages, early."""

    bn: int
    bk: int = 32
    stages: int = 4
    early: bool = False


Config = Tile | Reduce | Panel | Group | Hopper
