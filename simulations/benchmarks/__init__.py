"""Measurements behind the figures of ``python -m simulations.timing``."""
