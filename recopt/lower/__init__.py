"""Fused operators written into a host graph: one file per host."""
