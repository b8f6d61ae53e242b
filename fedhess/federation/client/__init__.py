"""A client: one domain's examples, local training, statistics, evaluation."""
