"""Jobs: the runs (strategy, target, seed) that a command asks for, checked before anything starts, and their directory.

Settings go in. A job directory with ``config.json`` and run directories with ``rounds.jsonl`` and checkpoints come out.
"""
