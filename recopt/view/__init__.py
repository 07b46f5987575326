"""How recopt's results look: reports as tables, graphs and their differences as text."""
