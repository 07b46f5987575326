"""A model with wider floats, to see what its own round."""
