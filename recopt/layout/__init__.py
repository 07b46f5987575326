"""Which elements of which values a value is made of, bit for bit, and the fewest layout operators that make it."""
