"""What passes/simplify_layout.py and stack_columns.py do to the nodes of a graph: one step a file."""
