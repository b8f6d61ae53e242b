"""The ClientApp: statistics, local training and evaluation on the examples of one client.

In come Flower messages with a model and references; out come statistics, updates and metrics. A target's client answers
evaluate messages only.
"""
