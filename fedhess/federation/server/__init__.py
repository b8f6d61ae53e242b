"""The ServerApp: who takes part, exchanges of statistics, local training, aggregation, evaluation and checkpoints.

The inputs are a Flower grid and a run config; the outputs are the rows of each evaluated round.

`app` runs from discovery to the last evaluation, `round` (or `flower_round`) runs one round. `norm_bound` and `round`
handle hostile numbers; `ledger` records failures and traffic.
"""
