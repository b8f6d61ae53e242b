"""The settings of a run: name, type, range and default of each, defaults by benchmark and model, and optimizers.

The input is text, TOML or JSON, the output a checked ``RunConfig``.
"""
