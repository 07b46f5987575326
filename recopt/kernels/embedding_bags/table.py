"""The fastest way for embedding bags on Hopper; data from benchmarks/tune_embedding.py."""

from .config import Config, Staged

MEASURED = (
    "NVIDIA H100 80GB HBM3, torch 2.11.0+cu130; STAGED, (4, 32, 80, 1), (4, 32, 80, 256), (4, 32, 80, 2048), "
    "(4, 32, 20, 256), (4, 32, 20, 512), (1, 32, 20, 512), (1, 32, 80, 256), (4, 16, 1, 1), (4, 16, 1, 256): "
    "NVIDIA H200, torch 2.11.0+cu130"
)
# Bytes a value is stored in, columns as stored, ids a bag, bags -> the least geometric mean over classes of ids.
CHOICES: dict[tuple[int, int, int, int], Config] = {
    (4, 128, 150, 2048): Config(1, 32, 16, 32, 16, "", "", 0, 0, True),
    (1, 128, 150, 2048): Config(1, 64, 16, 128, 8, "", "", 0, 0, True),
    (2, 128, 150, 2048): Config(1, 32, 16, 64, 8, "", "", 0, 0, True),
    (4, 128, 1, 2048): Config(4, 16, 16, 128, 32, "evict_first", "", 0, 0, True),
    (1, 128, 1, 2048): Config(2, 16, 16, 128, 32, "evict_first", "", 0, 0, False),
    (2, 128, 1, 2048): Config(4, 16, 16, 128, 32, "", "", 0, 0, True),
    (4, 128, 1, 256): Config(4, 16, 16, 128, 32, "evict_first", "", 0, 0, True),
    (4, 128, 1, 1): Config(4, 16, 16, 128, 32, "evict_first", "", 0, 0, True),
    (4, 16, 1, 1): Config(4, 16, 16, 128, 32, "evict_first", "", 0, 0, True),
    (1, 128, 1, 256): Config(4, 16, 16, 128, 32, "evict_first", "", 0, 0, True),
    (2, 128, 1, 256): Config(4, 16, 16, 128, 32, "evict_first", "", 0, 0, True),
    (4, 16, 1, 256): Config(4, 16, 16, 128, 32, "evict_first", "", 0, 0, True),
    (4, 32, 20, 512): Config(1, 32, 16, 32, 8, "evict_first", "", 0, 0, True),
    (4, 32, 20, 256): Config(1, 32, 16, 32, 32, "evict_first", "", 0, 0, True),
    (1, 32, 20, 512): Config(1, 64, 16, 32, 8, "evict_first", "", 0, 0, True),
    (2, 32, 20, 512): Config(1, 32, 16, 32, 4, "evict_first", "", 0, 0, True),
    (4, 32, 80, 2048): Config(1, 32, 16, 32, 16, "", "", 0, 0, True),
    (4, 32, 80, 1): Config(1, 32, 16, 32, 32, "evict_first", "", 0, 0, True),
    (4, 32, 80, 256): Config(1, 32, 16, 32, 32, "evict_first", "", 0, 0, True),
    (4, 128, 30, 256): Config(1, 32, 16, 32, 32, "evict_first", "", 0, 0, True),
    (4, 8, 30, 256): Config(1, 32, 16, 32, 32, "evict_first", "", 0, 0, True),
    (4, 32, 30, 256): Config(1, 32, 16, 32, 32, "evict_first", "", 0, 0, True),
    (1, 32, 80, 256): Config(1, 64, 16, 32, 32, "evict_first", "", 0, 0, True),
    (2, 32, 80, 256): Config(2, 16, 16, 32, 16, "evict_first", "", 0, 0, True),
}
# The same shapes, where the kernel in CUDA C++ is faster in that mean, by the hint of the layout.
STAGED: dict[tuple[int, int, int, int], dict[str, Staged]] = {
    (4, 128, 150, 2048): {
        "": Staged(2, 6, 512, 1, False, 1, 1),
        "hot": Staged(4, 2, 512, 8, False, 1, 1),
        "cold": Staged(2, 6, 256, 1, False, 1, 1),
    },
    (2, 128, 150, 2048): {
        "": Staged(4, 2, 256, 4, False, 1, 1),
        "hot": Staged(4, 2, 256, 4, False, 1, 1),
        "cold": Staged(2, 6, 256, 1, False, 1, 1),
    },
    (4, 32, 80, 256): {
        "": Staged(8, 5, 256, 1, True, 2, 1),
        "hot": Staged(8, 5, 256, 1, True, 2, 1),
        "cold": Staged(8, 5, 256, 1, True, 2, 1, True),
    },
    (2, 32, 80, 256): {
        "": Staged(8, 2, 256, 1, True, 2, 1),
        "hot": Staged(8, 2, 256, 1, True, 2, 1),
        "cold": Staged(8, 2, 256, 1, True, 2, 1),
    },
    (4, 32, 20, 512): {"": Staged(4, 2, 256, 1, True, 2, 2, True)},
    (1, 32, 20, 512): {"": Staged(8, 2, 256, 1, True, 2, 1, True)},
    (1, 32, 80, 256): {
        "": Staged(16, 5, 256, 1, True, 2, 1),
        "hot": Staged(16, 5, 256, 1, True, 2, 1),
        "cold": Staged(8, 5, 256, 1, True, 2, 1, True),
    },
    (4, 32, 80, 2048): {
        "": Staged(2, 6, 512, 1, False, 1, 1),
        "hot": Staged(4, 2, 512, 8, False, 1, 1),
        "cold": Staged(4, 5, 256, 1, True, 2, 1, True),
    },
    (4, 32, 80, 1): dict.fromkeys(("", "hot", "cold"), Staged(4, 5, 256, 1, True, 2, 1)),
    (4, 32, 20, 256): {"": Staged(4, 5, 256, 1, True, 2, 1)},
    (4, 16, 1, 1): {"": Staged(4, early=3, slice=512, flat=True)},
    (4, 128, 1, 1): {"": Staged(4, early=3, slice=512, flat=True)},
    (4, 16, 1, 256): {"": Staged(4, early=3, slice=512, flat=True)},
    (4, 128, 1, 256): {"": Staged(8, early=3, slice=512, flat=True)},
    (2, 128, 1, 256): {"": Staged(8, early=3, slice=512, flat=True)},
    (1, 128, 150, 2048): {
        "": Staged(2, 3, 128, 1, False, 1, 1),
        "hot": Staged(2, 4, 128, 1, False, 1, 1),
        "cold": Staged(4, 2, 128, 8, False, 1, 1),
    },
    (4, 128, 30, 256): {"": Staged(4, 2, 512, 8, False, 1, 2)},
    (4, 8, 30, 256): {"": Staged(4, 2, 512, 6, False, 1, 3)},
    (4, 32, 30, 256): {"": Staged(4, 2, 512, 8, False, 1, 2)},
}
