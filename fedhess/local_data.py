"""One client's examples, opened once and kept, and the model that fits them."""

from functools import lru_cache

import torch
from torch import Tensor

from fedhess.config import RunConfig
from fedhess.domains import open_benchmark
from fedhess.domains.data import DomainData
from fedhess.domains.split import split_indices
from fedhess.models import create_model, prepare_inputs, prepared_shape
from fedhess.models.headed import HeadedModel
from fedhess.protocol import SOURCE

DOMAINS_KEPT = 12  # four domains of three trials: a job comes back to them with its next strategy


class LocalDomain:
    """One client's examples, on their way to the device in batches.

    Args:
        data: The domain's examples, as the model sees them.
        train_indices: Which of them are trained on.
        evaluate_indices: Which of them are evaluated.
        key: What names the client's stream of batches.
        device: Where batches go.
        dtype: Floating-point type of batches; images stay uint8 and are scaled by the model.
    """

    def __init__(
        self,
        data: DomainData,
        *,
        train_indices: Tensor,
        evaluate_indices: Tensor,
        key: tuple[str | int, ...],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.data = data
        self.train_indices = train_indices
        self.evaluate_indices = evaluate_indices
        self.key = key
        self._device = device
        self._dtype = dtype
        self._everything: tuple[Tensor, Tensor] | None = None

    @property
    def holds_out(self) -> bool:
        """Whether the evaluation examples are kept out of training."""
        return not bool(torch.isin(self.evaluate_indices, self.train_indices).any())

    @property
    def train_size(self) -> int:
        """Number of training examples."""
        return len(self.train_indices)

    def train_batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Fetch training examples by position; the full batch is fetched once and kept."""
        if not torch.equal(positions, torch.arange(self.train_size)):
            return self.batch(self.train_indices[positions])
        if self._everything is None:
            self._everything = self.batch(self.train_indices)
        return self._everything

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Fetch examples by their index in the domain: inputs (B, ...) and labels (B,) on the device."""
        inputs = self.data.inputs(indices)
        if inputs.is_floating_point():
            inputs = inputs.to(self._dtype)
        return inputs.to(self._device), self.data.labels[indices].to(self._device)


@lru_cache(maxsize=DOMAINS_KEPT)
def _prepared(domains: str, options: tuple[tuple[str, str | int | float | bool], ...], data_dir: str | None,
              domain: str, model: str, device: str, seed: int) -> DomainData:  # fmt: skip
    benchmark = open_benchmark(
        domains, data_dir=data_dir, seed=seed, options=dict(options), require_real=True, held=(domain,)
    )
    return prepare_inputs(model, benchmark.load(domain), device=torch.device(device))


@lru_cache(maxsize=64)
def _geometry(domains: str, options: tuple[tuple[str, str | int | float | bool], ...], data_dir: str | None,
              model: str, seed: int) -> tuple[tuple[int, ...], int, float]:  # fmt: skip
    benchmark = open_benchmark(domains, data_dir=data_dir, seed=seed, options=dict(options), held=())
    return prepared_shape(model, benchmark.input_shape), benchmark.outputs, benchmark.holdout


@lru_cache(maxsize=DOMAINS_KEPT)
def _local_domain(data_key: tuple[object, ...], *, holdout: float, seed: int, domain: str, role: str,
                  device: str, dtype: torch.dtype) -> LocalDomain:  # fmt: skip
    data = _prepared(*data_key)
    if role == SOURCE and holdout > 0:
        train, evaluate = split_indices(data, holdout=holdout, seed=seed)
    else:
        everything = torch.arange(len(data))
        train, evaluate = (everything if role == SOURCE else everything[:0]), everything
    return LocalDomain(
        data,
        train_indices=train,
        evaluate_indices=evaluate,
        key=(seed, domain, 0),
        device=torch.device(device),
        dtype=dtype,
    )


def local_domain(config: RunConfig, *, domain: str, role: str) -> LocalDomain:
    """Open this client's examples; kept for the next message.

    A source client holds out the benchmark's fraction for evaluation (a benchmark without one evaluates the training
    examples); a target client has no training examples at all.
    """
    options = tuple(sorted(config.domains_options.items()))
    data_key = (config.domains, options, config.data_dir, domain, config.model, config.device, config.seed)
    holdout = _geometry(config.domains, options, config.data_dir, config.model, config.seed)[2]
    return _local_domain(
        data_key,
        holdout=holdout,
        seed=config.seed,
        domain=domain,
        role=role,
        device=config.device,
        dtype=config.torch_dtype,
    )


def build_model(config: RunConfig) -> HeadedModel:
    """Build the run's model with its initial weights, on the run's device and in its dtype."""
    options = tuple(sorted(config.domains_options.items()))
    shape, outputs, _ = _geometry(config.domains, options, config.data_dir, config.model, config.seed)
    model = create_model(
        config.model, input_shape=shape, outputs=outputs, seed=config.seed, pretrained=config.pretrained
    )
    return model.to(device=torch.device(config.device), dtype=config.torch_dtype)


def forget_data() -> None:
    """Drop the examples and benchmarks that this process holds."""
    _prepared.cache_clear()
    _geometry.cache_clear()
    _local_domain.cache_clear()
