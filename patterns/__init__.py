"""One file per meaning. `ALL` lists the patterns; order is the order in which overlapping matches are preferred."""

from . import attention, embedding_bags, layer_norm, linear, target_attention

ALL = (embedding_bags, target_attention, attention, layer_norm, linear)
