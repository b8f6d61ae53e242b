"""One client's examples, opened once and kept, and the model that fits them."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from fedhess.config import RunConfig
from fedhess.domains import open_benchmark
from fedhess.domains.data import DomainData
from fedhess.domains.split import SplitRule, split_domain
from fedhess.execution import set_execution
from fedhess.models import create_model, prepare_inputs, prepared_shape
from fedhess.models.headed import HeadedModel
from fedhess.prefetching import AHEAD, read_ahead
from fedhess.protocol import SOURCE

DOMAINS_KEPT = 12  # four domains of three trials: a job comes back to them with its next strategy


class LocalDomain:
    """One client's examples, on their way to the device in batches.

    Args:
        data: The domain's examples, as the model sees them.
        train_indices: Which of them are trained on.
        evaluate_indices: Which of them are evaluated.
        out_indices: A target's out split, for the oracle alone; empty unless the run splits targets.
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
        out_indices: Tensor | None = None,
    ) -> None:
        self.data = data
        self.train_indices = train_indices
        self.evaluate_indices = evaluate_indices
        self.out_indices = train_indices[:0] if out_indices is None else out_indices
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

    def train_batches(self, positions: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Fetch batches of training examples by position; the full batch is fetched once and kept."""
        everything = torch.arange(self.train_size)
        if not positions or not torch.equal(positions[0], everything):
            yield from self.batches([self.train_indices[part] for part in positions])
            return
        if self._everything is None:
            self._everything = self.batch(self.train_indices)
        for _ in positions:  # one full batch is like the other
            yield self._everything

    def train_aspects(self, positions: Tensor) -> Tensor | None:
        """Give width by height of training images as they lie on disk, by position; None where that is unknown."""
        aspects: Tensor | None = getattr(self.data, "aspects", None)
        return None if aspects is None else aspects[self.train_indices[positions]]

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Fetch batches by the indices of their examples, as `batch` does; files are read ahead."""
        ahead = min(AHEAD, len(parts) - 1) if getattr(self.data, "reads_files", False) else 0
        for inputs, labels in read_ahead(self._read, parts, ahead=max(ahead, 0)):
            yield inputs.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Fetch examples by their index in the domain: inputs (B, ...) and labels (B,) on the device."""
        return next(self.batches([indices]))

    def _read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Read examples into memory that a CUDA device, if it is one, can fetch them from while it computes."""
        inputs, labels = self.data.inputs(indices), self.data.labels[indices]
        if inputs.is_floating_point():
            inputs = inputs.to(self._dtype)
        return (inputs.pin_memory(), labels.pin_memory()) if self._device.type == "cuda" else (inputs, labels)


@lru_cache(maxsize=DOMAINS_KEPT)
def _prepared(domains: str, options: tuple[tuple[str, str | int | float | bool], ...], data_dir: str | None,
              domain: str, model: str, device: str, seed: int, images: str,
              image_cache_gb: float | None) -> DomainData:  # fmt: skip
    benchmark = open_benchmark(
        domains, data_dir=data_dir, seed=seed, options=dict(options), require_real=True, held=(domain,)
    )
    return prepare_inputs(
        model, benchmark.load(domain), device=torch.device(device), images=images, image_cache_gb=image_cache_gb
    )


@lru_cache(maxsize=64)
def _geometry(domains: str, options: tuple[tuple[str, str | int | float | bool], ...], data_dir: str | None,
              model: str, seed: int) -> tuple[tuple[int, ...], int, float, tuple[str, ...]]:  # fmt: skip
    benchmark = open_benchmark(domains, data_dir=data_dir, seed=seed, options=dict(options), held=())
    return prepared_shape(model, benchmark.input_shape), benchmark.outputs, benchmark.holdout, benchmark.domains


@lru_cache(maxsize=DOMAINS_KEPT)
def _local_domain(data_key: tuple[object, ...], *, rule: SplitRule, holdout: float, position: int, seed: int,
                  domain: str, role: str, device: str, dtype: torch.dtype) -> LocalDomain:  # fmt: skip
    data = _prepared(*data_key)
    train = evaluate = torch.arange(len(data))
    out = train[:0]
    if holdout > 0 and (role == SOURCE or rule != "sources"):
        train, out = split_domain(data, rule=rule, holdout=holdout, seed=seed, position=position)
        evaluate, out = (out, out[:0]) if role == SOURCE else (train, out)
    return LocalDomain(
        data,
        train_indices=train if role == SOURCE else train[:0],
        evaluate_indices=evaluate,
        out_indices=out,
        key=(seed, domain, 0),
        device=torch.device(device),
        dtype=dtype,
    )


def local_domain(config: RunConfig, *, domain: str, role: str) -> LocalDomain:
    """Open this client's examples; kept for the next message.

    A source client holds out the benchmark's fraction for evaluation (a benchmark without one evaluates the training
    examples); a target client has no training examples at all, and two splits to evaluate where the run splits targets.
    """
    options = tuple(sorted(config.domains_options.items()))
    data_key = (config.domains, options, config.data_dir, domain, config.model, config.device, config.seed,
                config.images, config.image_cache_gb)  # fmt: skip
    _, _, holdout, names = _geometry(config.domains, options, config.data_dir, config.model, config.seed)
    return _local_domain(
        data_key,
        rule=config.split,
        holdout=holdout,
        position=names.index(domain) if domain in names else 0,  # one that is not there is named where it is loaded
        seed=config.seed,
        domain=domain,
        role=role,
        device=config.device,
        dtype=config.torch_dtype,
    )


def build_model(config: RunConfig) -> HeadedModel:
    """Build the run's model with its initial weights, on the run's device and in its dtype."""
    options = tuple(sorted(config.domains_options.items()))
    shape, outputs, *_ = _geometry(config.domains, options, config.data_dir, config.model, config.seed)
    model = create_model(
        config.model, input_shape=shape, outputs=outputs, seed=config.seed, pretrained=config.pretrained
    )
    model = model.to(device=torch.device(config.device), dtype=config.torch_dtype)
    return set_execution(model, config)


def forget_data() -> None:
    """Drop the examples and benchmarks that this process holds."""
    _prepared.cache_clear()
    _geometry.cache_clear()
    _local_domain.cache_clear()
