"""One file per meaning. `ALL` lists the patterns; order is the order in which overlapping matches are preferred."""

from . import linear

ALL = (linear,)
