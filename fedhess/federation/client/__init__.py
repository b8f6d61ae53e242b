"""The ClientApp: statistics, local training and evaluation on the examples of one client.

It receives Flower messages with a model and references, and replies with statistics, updates and metrics. A target's
client replies to evaluate messages only.

`app` has the handlers, `call` reads a message; `statistics`, `training` and `evaluation` compute. `limits` has what a
node refuses. `answers` (a target's counts) and `privacy` (clipping and noise) change values before they are sent.
"""
