"""The federated round: the messages between server and clients, and both sides.

The input is a run config; the outputs are the rows of each evaluated round and checkpoints. ``client`` and ``server``
communicate only through ``protocol``; ``engines`` start both.
"""
