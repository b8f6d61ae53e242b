"""The server: the round, its exchanges, aggregation, checkpoints."""
