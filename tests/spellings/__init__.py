"""Equivalent spellings and near misses of each pattern, as data."""
