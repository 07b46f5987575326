"""The fastest way for a linear x [M, K] @ w [N, K].T on Hopper. Written by benchmarks/tune_linear.py: do not edit."""

from .linear_config import Config, Tile

M = (64,)
N = (64,)
K = (64,)
CONFIGS: tuple[Config | None, ...] = (None, Tile(64, 64, 32))
ROWS: dict[tuple[int, int], tuple[int, ...]] = {(0, 0): (1,)}
