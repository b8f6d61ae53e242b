"""The federated round: the messages between server and clients, and both sides.

In comes a run config; out come one row an evaluated client and round, and checkpoints. ``client`` and ``server`` meet
in ``protocol`` alone; ``engines`` start both.
"""
