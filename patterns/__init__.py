"""One file per meaning. `ALL` lists the patterns; order is the order in which overlapping matches are preferred."""

from . import attention, bilinear, dot_interaction, embedding_bags, gru, layer_norm, linear, target_attention

ALL = (embedding_bags, gru, target_attention, attention, layer_norm, dot_interaction, bilinear, linear)
