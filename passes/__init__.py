"""The passes, in the order in which they run: read `PIPELINE` from top to bottom."""

from . import (
    clean_up,
    fuse_attention,
    fuse_embedding_bags,
    fuse_gru,
    fuse_layer_norm,
    fuse_linear,
    fuse_target_attention,
)

PIPELINE = (
    clean_up,
    fuse_embedding_bags,
    fuse_gru,
    fuse_target_attention,
    fuse_attention,
    fuse_layer_norm,
    fuse_linear,
)
