"""Federated domain generalization by aligning head gradients and Hessians across domains, on Flower."""

__version__ = "0.1.0"

from pathlib import Path

# A Flower bundle of a checkout has no links: strategies lies beside the package there, as it does in the repository.
if not (Path(__file__).parent / "strategies").is_dir():
    __path__.append(str(Path(__file__).parent.parent))
