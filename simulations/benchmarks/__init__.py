"""Measurements behind the figures of ``python -m fedhess.simulations.timing``."""
