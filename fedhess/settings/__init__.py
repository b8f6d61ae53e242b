"""The settings of a run: their types and ranges, defaults by benchmark and model, optimizers."""
