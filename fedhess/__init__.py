"""Federated domain generalization by aligning head gradients and Hessians across domains, on Flower.

The API for notebooks is here, and each name is imported on first use. :func:`run` trains and evaluates, :func:`search`
tunes as well, and :func:`open` reads a recorded job; all return :class:`Results`. :func:`load` loads an exported model.
They raise :class:`UsageError` (also as :class:`StrategyError`), :class:`FederationError` or :class:`StorageError`.
Strategies derive from :class:`DomainStrategy` and add a penalty to a client's :class:`Step`; the statistics they align
are in :mod:`fedhess.curvature`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from fedhess.base.lazy import lazy_names

if TYPE_CHECKING:
    from fedhess.alignment.step import Step as Step
    from fedhess.alignment.strategy import DomainStrategy as DomainStrategy
    from fedhess.base.errors import FederationError as FederationError
    from fedhess.base.errors import StorageError as StorageError
    from fedhess.base.errors import StrategyError as StrategyError
    from fedhess.base.errors import UsageError as UsageError
    from fedhess.models.exported import load_exported as load
    from fedhess.results.results import Results as Results
    from fedhess.results.results import open_results as open
    from fedhess.simulate import run as run
    from fedhess.sweep import search as search

__version__ = "0.1.0"
__all__ = [
    "DomainStrategy",
    "FederationError",
    "Results",
    "Step",
    "StorageError",
    "StrategyError",
    "UsageError",
    "load",
    "open",
    "run",
    "search",
]

__getattr__ = lazy_names(
    __name__,
    {
        "DomainStrategy": "fedhess.alignment.strategy:DomainStrategy",
        "FederationError": "fedhess.base.errors:FederationError",
        "Results": "fedhess.results.results:Results",
        "Step": "fedhess.alignment.step:Step",
        "StorageError": "fedhess.base.errors:StorageError",
        "StrategyError": "fedhess.base.errors:StrategyError",
        "UsageError": "fedhess.base.errors:UsageError",
        "load": "fedhess.models.exported:load_exported",
        "open": "fedhess.results.results:open_results",
        "run": "fedhess.simulate:run",
        "search": "fedhess.sweep:search",
    },
)

# A Flower bundle of a checkout has no symlinks: there, strategies lies beside the package, as in the repository.
if not (Path(__file__).parent / "strategies").is_dir():
    __path__.append(str(Path(__file__).parent.parent))
