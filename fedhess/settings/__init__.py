"""The settings of a run: name, type, range and default of each, defaults by benchmark and model, and optimizers.

In come text, TOML or JSON; out comes a checked ``RunConfig``.
"""
