"""Federated domain generalization by aligning head gradients and Hessians across domains, on Flower."""

__version__ = "0.1.0"
