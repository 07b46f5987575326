"""Fused operators: one file each, its Triton kernel, its plain-torch twin and its cost as functions of the shapes."""
