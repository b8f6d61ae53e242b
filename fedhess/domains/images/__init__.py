"""Data sets of image files."""
