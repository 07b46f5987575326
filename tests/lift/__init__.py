"""Tests of the lift tables."""
