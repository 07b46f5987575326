"""How the kernel of ``recopt::embedding_bags`` can run: the vocabulary of its table of measured choices."""

from __future__ import annotations

from typing import NamedTuple


class Config(NamedTuple):
    """One launch: warps a program, values a thread holds of a bag and of single rows, columns of a slice, ids of a bag
    that are read at once at most; a program makes as many bags as fill its threads.

    ``columns`` is the widest slice of a row that one program reads: a narrow slice of a large table fits the L2, whose
    hits are then worth more than whole rows. ``evict`` and ``modifier`` are the hints of the rows' loads, ``stages``
    the distance at which rows are prefetched through shared memory (0: not), ``registers`` a cap a thread (0: none).
    ``early`` starts the kernel while the one before it drains (from Hopper on).
    """

    warps: int = 2
    bag_values: int = 16
    row_values: int = 16
    columns: int = 128
    at_once: int = 32
    evict: str = ""
    modifier: str = ""
    stages: int = 0
    registers: int = 0
    early: bool = True


class Staged(NamedTuple):
    """One launch of the kernel in CUDA C++: warps a program, quads of rows a thread reads at once, bytes of a slice of
    wide rows, programs that a processor must hold at least, ``bags`` that a warp makes one after the other.

    ``early`` starts the kernel while the one before it drains (from Hopper on), and lets the one after it start when
    its programs end (1), have begun (2) or still wait themselves (3); ``ahead`` has ids sent to the L2 before the
    kernel before has ended. Rows that ``pass_by`` take no place in the L1: it pays where hardly any comes again.
    ``flat``: a thread for each part of each row, of single rows alone; for as many as run at once.
    """

    warps: int = 4
    quads: int = 4
    slice: int = 256
    blocks: int = 1
    ahead: bool = False
    early: int = 1
    bags: int = 1
    pass_by: bool = False
    flat: bool = False
