"""Fused operators: one file each, with its plain-torch twin, its Triton kernel and its cost as functions of the shapes."""
