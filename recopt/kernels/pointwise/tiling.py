"""How `recopt::pointwise` is cut: rows a block, elements a tile, and which of these for how many rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Tiling(NamedTuple):
    """Rows a block, elements a tile, warps a program."""

    rows: int = 16
    tile: int = 512
    warps: int = 2


Width = tuple[int | None, int]  # a loop's columns: as its program states them, and as they are


def choose(rows: int, widths: Sequence[Width]) -> Tiling:
    """The tiling for so many rows: few rows are cut finely, so that every loop has processors of its own, and so are
    more where few programs fill their tiles.

    Measured on an H200, device us of benchmarks/layout.py's features and columns. 65536 rows: 16 by 512 with 2 warps
    72.9 and 112.2, 32 by 512 the same 76.5 and 112.6, 64 by 1024 with 4 warps 84.4 and 135.1. 2048 rows: 16 by 512 with
    2 warps 4.2 and 4.9, with 4 4.3 and 5.2, 8 by 256 with 2 4.5 and 6.0. 256 rows: 8 by 256 with 4 warps 2.0 and 2.0,
    32 by 512 2.3 and 2.2. 2048 rows, 16 by 512 with 2 warps and 8 by 256 with 4: tags to 20 indicators 8.7 and 4.2 (256
    programs, 0.64 full), 28 crossed ids 3.0 and 2.0 (128, 0.87), three hashes of lists 3.5 and 2.3 (768, 0.51), dates
    of a column 2.2 and 3.8 (640, 0.1), rows normalised and cut 2.3 and 3.1 (384, 0.3).
    """
    if rows <= 4:
        return Tiling(1 if rows == 1 else 4, 256, 2)
    if rows <= 512:
        return Tiling(8, 256, 4)
    coarse = Tiling()
    units = tiles(widths, coarse)
    full = sum(columns for _, columns in widths) * coarse.rows / max(units * coarse.tile, 1)
    if full > 1 / 3 and -(-rows // coarse.rows) * units < 1200:
        return Tiling(8, 256, 4)
    return coarse


def tiles(widths: Sequence[Width], tiling: Tiling) -> int:
    """How many tiles, of all loops, a block of rows has."""
    shapes = [(shape_of(known, tiling), columns) for known, columns in widths]
    return sum(tiling.rows // tile[0] * -(-columns // tile[1]) for tile, columns in shapes)


def shape_of(inner: int | None, tiling: Tiling) -> tuple[int, int]:
    """Rows and columns of a tile of a loop of `inner` columns (None: not known before): those that leave fewest
    columns empty, the wider where equal."""
    widths = [2**n for n in range(9)] if inner is not None else [128]
    columns = min(widths, key=lambda w: (-(-(inner or 1) // w) * w * (1 if w >= min(inner or 1, 32) else 2), -w))
    return max(1, min(tiling.rows, tiling.tile // columns)), columns
