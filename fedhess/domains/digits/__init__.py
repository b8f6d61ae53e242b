"""Data sets of digits."""
