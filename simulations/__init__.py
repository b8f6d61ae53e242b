"""Runnable experiments: one experiment a file, each a command ``python -m fedhess.simulations.NAME``."""
