"""One file per meaning. `ALL` lists the patterns; order is the order in which overlapping matches are preferred."""

from . import attention, embedding_bags, linear

ALL = (embedding_bags, attention, linear)
