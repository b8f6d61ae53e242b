"""The ServerApp: who takes part, exchanges of statistics, local training, aggregation, evaluation and checkpoints.

In come a Flower grid and a run config; out come the rows of each evaluated round.
"""
