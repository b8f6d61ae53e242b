"""What a command asks for: a job of runs (strategy, target, seed), checked before anything starts, and its directory.

In come settings; out come run directories with ``rounds.jsonl``, checkpoints and ``config.json``.
"""
