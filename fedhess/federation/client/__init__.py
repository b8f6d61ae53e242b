"""The ClientApp: statistics, local training and evaluation on the examples of one client.

In come Flower messages with a model and references; out come statistics, updates and metrics. A target's client answers
evaluate messages only.

`app` has the handlers, `call` opens a message, `statistics`, `training` and `evaluation` compute. What a node refuses
is in `limits`, what leaves it changed in `answers` (a target's counts) and `privacy` (clipping and noise).
"""
