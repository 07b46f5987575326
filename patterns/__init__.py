"""One file per meaning. `ALL` lists the patterns: where two see one node, `inspect` prefers the earlier. Which are
rewritten first is the order of `passes.PIPELINE`. `attention_weights` and `pointwise` are not listed: what they see is
worth an operator on CUDA alone."""

from . import attention, bilinear, dot_interaction, embedding_bags, gru, layer_norm, linear, target_attention

ALL = (embedding_bags, gru, target_attention, attention, layer_norm, dot_interaction, bilinear, linear)
