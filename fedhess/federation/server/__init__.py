"""The ServerApp: who takes part, exchanges of statistics, local training, aggregation, evaluation and checkpoints.

In come a Flower grid and a run config; out come the rows of each evaluated round.

`app` goes from discovery to the last evaluation, `round` (or `flower_round`) is one round. Hostile numbers are met by
`norm_bound` and in `round`; what failed and what was sent is in `ledger`.
"""
